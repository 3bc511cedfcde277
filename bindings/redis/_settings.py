"""How to reach Redis, as the components ``state.redis``, ``lock.redis`` and ``configuration.redis`` say it.

Source: Dapr 1.18, the settings that its Redis components have in common.
"""

from __future__ import annotations

import ssl
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from bindings.redis._indexes import Index, parse_indexes
from mesh.errors import ConfigError
from mesh.resources.component import Component
from mesh.resources.settings import (
    BOOLEAN,
    COUNT,
    Kind,
    Setting,
    choice,
    ignored,
    read_settings,
    setting,
    whole,
)
from mesh.values import parse_duration

__all__ = ["Address", "RedisSettings", "StateSettings", "read"]

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
START_SHARE = 0.8  # Of the time for a component's start, so that what fails can still be told.
PEM = "-----BEGIN"

Address = tuple[str, int]


def _hosts(text: str) -> tuple[tuple[str, int | None], ...]:
    if "@" in unicodedata.normalize("NFKC", text):  # It may hold a password.
        raise ValueError("is host:port, without credentials: those are the settings redisUsername and redisPassword")
    if "://" in text:
        raise ValueError(f"is host:port, and no URL: {text!r}; TLS is the setting enableTLS")
    return tuple(_host(each.strip(), text) for each in text.split(","))


def _host(each: str, whole_text: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{each}")
        if parts.hostname and parts.port != 0 and parts.netloc == each and " " not in each and not each.endswith(":"):
            return parts.hostname, parts.port
    except ValueError:  # Of the port, or of an IPv6 address.
        pass
    raise ValueError(f"is host:port, or several with commas between, not {whole_text!r}")


def _milliseconds(text: str) -> float:
    return parse_duration(text, bare="ms")


def _milliseconds_or_off(text: str) -> float:
    return 0.0 if text.strip() == "-1" else _milliseconds(text)


HOSTS = Kind("host:port, or several with commas between", _hosts)
DURATION = Kind("duration, or milliseconds", _milliseconds)
OR_OFF = Kind("duration, or milliseconds; -1 is off, as 0", _milliseconds_or_off)


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """What all components on Redis have in common."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("an operation waits for a connection until its own deadline", "poolTimeout"),
        *ignored("connections are opened when they are needed, and kept", "minIdleConns", "idleCheckFrequency"),
        *ignored(
            "it is about messages of pubsub.redis",
            *("processingTimeout", "redeliverInterval", "queueDepth", "concurrency", "maxLenApprox"),
        ),
    )

    hosts: tuple[tuple[str, int | None], ...] = setting(
        "redisHost",
        "Host and port of the server; several with commas between are nodes of a cluster, or Sentinels.",
        HOSTS,
        required=True,
        example="localhost:6379",
    )
    port: int | None = setting("redisPort", "The port, where redisHost has none.", whole(1, 65535), example="6379")
    username: str | None = setting(
        "redisUsername", "The ACL user to log in as; the default one where it is not set.", example="shop"
    )
    password: str | None = setting("redisPassword", "Its password.", secret=True)
    db: int = setting("redisDB", "Number of the database; a cluster has only 0.", whole(), default=0)
    kind: str = setting(
        "redisType", "Whether it is one server or a cluster.", choice("node", "cluster"), default="node"
    )
    tls: bool = setting("enableTLS", "Whether to connect over TLS.", BOOLEAN, default=False)
    insecure: bool = setting(
        "insecureSkipTLSVerify", "Whether the server need not prove who it is.", BOOLEAN, default=False
    )
    ca: str | None = setting(
        "caCert", "Whom to trust over TLS, PEM or a path; the system's where it is not set.", example="ca.pem"
    )
    certificate: str | None = setting("clientCert", "Our certificate over TLS, PEM or a path.", example="client.pem")
    key: str | None = setting("clientKey", "Its private key, PEM or a path.", secret=True)
    entra: bool = setting("useEntraID", "Logging in by Entra ID, which is refused.", BOOLEAN, default=False)
    failover: bool = setting(
        "failover", "Whether redisHost names Sentinels, who know the primary.", BOOLEAN, default=False
    )
    master: str | None = setting("sentinelMasterName", "What the Sentinels call the primary.", example="mymaster")
    sentinel_username: str | None = setting("sentinelUsername", "The ACL user at the Sentinels.", example="shop")
    sentinel_password: str | None = setting("sentinelPassword", "Its password.", secret=True)
    retries: int = setting(
        "redisMaxRetries",
        "How often a command is sent again that was certainly not done, or that only reads; -1 or 0 is never.",
        whole(-1, 100),
        default=3,
        aliases=("maxRetries",),
    )
    least_wait: float = setting(
        "redisMinRetryInterval", "The wait before the first repetition; it doubles.", OR_OFF, default=0.008
    )
    most_wait: float = setting(
        "redisMaxRetryInterval",
        "The longest such wait.",
        OR_OFF,
        default=0.512,
        aliases=("maxRetryBackoff",),
    )
    dial_timeout: float = setting("dialTimeout", "How long connecting may take.", DURATION, default=5.0)
    read_timeout: float = setting("readTimeout", "How long a reply may take.", DURATION, default=3.0)
    write_timeout: float | None = setting(
        "writeTimeout", "How long sending may take; as readTimeout.", DURATION, example="3s"
    )
    pool: int = setting(
        "poolSize", "Most connections to a server; each carries many commands at once.", COUNT, default=4
    )
    max_age: float = setting("maxConnAge", "How old a connection may get; 0 is any age.", OR_OFF, default=0.0)
    idle: float = setting("idleTimeout", "How long a connection may be idle; 0 is for ever.", OR_OFF, default=300.0)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Give host and port of each."""
        default = self.port or (DEFAULT_SENTINEL_PORT if self.failover else DEFAULT_PORT)
        return tuple((host, port or default) for host, port in self.hosts)

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses)
        if self.failover:
            return f"Redis {self.master!r} of the Sentinels {hosts}"
        return f"{'the Redis cluster' if self.kind == 'cluster' else 'Redis'} at {hosts}"

    def context(self) -> ssl.SSLContext | None:
        """Make the TLS context; it reads files, so it blocks.

        Raises:
            ValueError: Something of it cannot be used.
        """
        if not self.tls:
            return None
        try:
            text = self.ca is not None and PEM in self.ca
            made = ssl.create_default_context(cafile=None if text else self.ca, cadata=self.ca if text else None)
        except (OSError, ValueError) as error:
            raise ValueError(f"the CA certificate cannot be used: {error}") from error
        if self.insecure:
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        if self.certificate is not None:
            try:
                with tempfile.TemporaryDirectory() as directory:  # The ssl module reads a key from a file only.
                    certificate = _as_file(self.certificate, Path(directory, "certificate"))
                    key = None if self.key is None else _as_file(self.key, Path(directory, "key"))
                    made.load_cert_chain(certificate, key, password=_no_password)
            except (OSError, ValueError) as error:
                raise ValueError(f"clientCert and clientKey cannot be used: {error}") from error
        return made


@dataclass(frozen=True, slots=True)
class StateSettings(RedisSettings):
    """Settings of ``state.redis``."""

    indexes: tuple[Index, ...] = setting(
        "queryIndexes",
        "JSON that names the members of values to query by; it needs the server's search module.",
        Kind("JSON", parse_indexes),
        default=(),
        example='[{"name":"orgs","indexes":[{"key":"person.org","type":"TEXT"}]}]',
    )


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # Asking at the terminal would block.


def _as_file(text: str, path: Path) -> Path:
    if PEM not in text:
        return Path(text)
    path.touch(0o600)
    path.write_text(text)
    return path


def read(component: Component, model: type[RedisSettings]) -> tuple[RedisSettings, ssl.SSLContext | None]:
    """Read the settings, look whether they go together, and make the TLS context; it reads files, so it blocks.

    Raises:
        ConfigError: Holds every one that is wrong, located.
    """
    settings = read_settings(component, model)
    problems = [component.problem(text, setting=name) for name, text in _wrong(settings)]
    if problems:
        raise ConfigError(problems)
    if component.assumes("caCert", "clientCert", "clientKey"):
        return settings, None
    try:
        return settings, settings.context()
    except ValueError as error:
        raise ConfigError(component.problem(str(error))) from error


def _wrong(settings: RedisSettings) -> list[tuple[str, str]]:
    cluster = settings.kind == "cluster"
    certificates = {"caCert": settings.ca, "clientCert": settings.certificate, "clientKey": settings.key}
    found = [
        (name, "needs enableTLS: without it nothing is encrypted")
        for name in certificates
        if certificates[name] and not settings.tls
    ]
    rules = (
        (settings.entra, "useEntraID", "Entra ID is not supported; use redisUsername and redisPassword"),
        (
            settings.failover and not settings.master,
            "failover",
            "needs sentinelMasterName, and in redisHost the Sentinels",
        ),
        (settings.failover and cluster, "failover", "does not go with redisType: cluster, which fails over by itself"),
        (cluster and settings.db > 0, "redisDB", "must be 0: a cluster has one database"),
        (
            len(settings.hosts) > 1 and not cluster and not settings.failover,
            "redisHost",
            "is one host, unless redisType is cluster, or failover is true and it names the Sentinels",
        ),
        (settings.key is not None and settings.certificate is None, "clientKey", "goes with clientCert"),
    )
    return found + [(name, text) for wrong, name, text in rules if wrong]
