"""How to reach Redis: read from a backbone URL, or from the metadata of a component."""

from __future__ import annotations

import difflib
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from mesh.durations import parse_duration
from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component

__all__ = ["RedisConfig"]

DEFAULT_PORT = 6379
URL_OPTIONS = frozenset({"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "db"})

USED = (
    "redisHost",
    "redisPort",
    "redisUsername",
    "redisPassword",
    "redisDB",
    "redisType",
    "enableTLS",
    "insecureSkipTLSVerify",
    "clientCert",
    "clientKey",
    "useEntraID",
    "failover",
    "concurrency",
    "streamTTL",
)
# Read elsewhere: the group, and who may use which topic.
COMMON = ("consumerID", "allowedTopics", "protectedTopics", "publishingScopes", "subscriptionScopes")
# They tune a pool, a claim loop or a cap that this adapter does not have.
IGNORED = (
    "redisMaxRetries",
    "redisMinRetryInterval",
    "redisMaxRetryInterval",
    "maxRetries",
    "maxRetryBackoff",
    "dialTimeout",
    "readTimeout",
    "writeTimeout",
    "poolSize",
    "poolTimeout",
    "minIdleConns",
    "maxConnAge",
    "idleTimeout",
    "idleCheckFrequency",
    "queueDepth",
    "processingTimeout",
    "redeliverInterval",
    "maxLenApprox",
    "sentinelMasterName",
    "sentinelUsername",
    "sentinelPassword",
)
TRUE, FALSE = frozenset({"true", "1", "t", "yes", "y", "on"}), frozenset({"false", "0", "f", "no", "n", "off", ""})


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """How to reach Redis, and what a component limits.

    Attributes:
        host: Name or address.
        port: TCP port.
        username: An ACL user; None for the default one.
        password: None logs nobody in.
        db: Number of the database.
        tls: TLS context; None for plain TCP.
        connect_wait: Seconds to wait for the first connection.
        ping_interval: Seconds between signs of life; a server that misses two is reconnected to.
        max_in_flight: Most deliveries at once of any subscription; None for what each asks for.
        max_age: Seconds that events are kept; None for what the topology asks for.
    """

    host: str = "localhost"
    port: int = DEFAULT_PORT
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    connect_wait: float = 10.0
    ping_interval: float = 10.0
    max_in_flight: int | None = None
    max_age: float | None = None

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'redis' if self.tls is None else 'rediss'}://{host}:{self.port}/{self.db}"

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read ``redis[s]://[user][:password@]host[:port][/db]``; TLS options are named as redis-py names them.

        Raises:
            ConfigError: It is not such a URL.
        """
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
            port = parts.port or DEFAULT_PORT
            db = int(parts.path.strip("/") or options.get("db", "0"))
        except ValueError:  # Its text may hold a part of the password.
            raise ConfigError("the backbone URL is not redis://[user:password@]host[:port][/db]") from None
        if parts.scheme not in ("redis", "rediss"):
            raise ConfigError(f"a Redis URL begins with redis:// or rediss://, not {parts.scheme}://")
        if unknown := options.keys() - URL_OPTIONS:
            raise ConfigError(f"unknown option of a Redis URL: {_with_hint(min(unknown), sorted(URL_OPTIONS))}")
        tls = None
        if parts.scheme == "rediss":
            verify = options.get("ssl_cert_reqs", "required")
            if verify not in ("required", "none"):
                raise ConfigError(f"ssl_cert_reqs is 'required' or 'none', not {verify!r}")
            try:
                tls = _tls(options.get("ssl_ca_certs"), verify=verify == "required")
                if certificate := options.get("ssl_certfile"):
                    tls.load_cert_chain(certificate, options.get("ssl_keyfile"))
            except OSError as error:
                raise ConfigError(f"the certificates of the Redis URL cannot be used: {error}") from error
        return cls(
            host=parts.hostname or "localhost",
            port=port,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            db=db,
            tls=tls,
        )

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the metadata of ``pubsub.redis``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        return cls(**_Reader(component).read())  # type: ignore[arg-type]  # its keys are our fields


class _Reader:
    """Reads a component's settings, and gathers what is wrong with them."""

    def __init__(self, component: Component) -> None:
        self._component = component
        self._problems: list[Problem] = []

    def _wrong(self, setting: str, message: str) -> None:
        self._problems.append(self._component.problem(message, setting=setting))

    def _bool(self, name: str) -> bool:
        text = (self._component.setting(name) or "").strip().lower()
        if text not in TRUE | FALSE:
            self._wrong(name, f"is 'true' or 'false', not {text!r}")
        return text in TRUE

    def _int(self, name: str, default: int | None) -> int | None:
        text = (self._component.setting(name) or "").strip()
        if not text:
            return default
        if not text.isascii() or not text.isdigit():
            self._wrong(name, f"is a whole number, not {text!r}")
            return default
        return int(text)

    def read(self) -> dict[str, object]:
        """Give the fields of the configuration."""
        self._check_names()
        host, port = self._host()
        fields: dict[str, object] = {
            "host": host,
            "port": port,
            "username": self._component.setting("redisUsername") or None,
            "password": self._component.setting("redisPassword") or None,
            "db": self._int("redisDB", 0),
            "max_in_flight": self._int("concurrency", None) or None,
            "max_age": self._ttl(),
            "tls": self._tls(),
        }
        if self._problems:
            raise ConfigError(self._problems)
        return fields

    def _check_names(self) -> None:
        known = {name.casefold(): name for name in (*USED, *COMMON, *IGNORED)}
        for entry in self._component.metadata:
            if entry.name.casefold() not in known:
                self._wrong(entry.name, f"unknown setting of {_with_hint(entry.name, list(known.values()))}")
        kind = (self._component.setting("redisType") or "node").strip().lower()
        if kind != "node":
            self._wrong("redisType", f"must be 'node', not {kind!r}: Redis Cluster is not supported")
        for name, what in (("failover", "Redis Sentinel"), ("useEntraID", "Entra ID")):
            if self._bool(name):
                self._wrong(name, f"{what} is not supported")

    def _host(self) -> tuple[str, int]:
        text = (self._component.setting("redisHost") or "").strip()
        if not text:
            self._problems.append(self._component.problem("redisHost is missing", setting="redisHost"))
        if "," in text:
            self._wrong("redisHost", "is one host: Redis Cluster and Sentinel are not supported")
            return "localhost", DEFAULT_PORT
        host, colon, port = text.rpartition(":")
        if not colon or (":" in host and not host.endswith("]")):
            host, port = text, ""
        if port and not (port.isascii() and port.isdigit()):
            self._wrong("redisHost", f"is host:port, not {text!r}")
            port = ""
        default = self._int("redisPort", DEFAULT_PORT)
        return host.strip("[]") or "localhost", int(port) if port else default or DEFAULT_PORT

    def _ttl(self) -> float | None:
        text = (self._component.setting("streamTTL") or "").strip()
        if not text:
            return None
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            self._wrong("streamTTL", str(error))
            return None
        return seconds if seconds > 0 else None

    def _tls(self) -> ssl.SSLContext | None:
        component = self._component
        skip = self._bool("insecureSkipTLSVerify")
        if not self._bool("enableTLS"):
            return None
        context = _tls(None, verify=not skip)
        certificate, key = component.setting("clientCert"), component.setting("clientKey")
        if certificate and key:
            try:
                _load_pair(context, certificate, key)
            except (OSError, ValueError) as error:
                self._wrong("clientCert", f"cannot be used with clientKey: {error}")
        elif certificate or key:
            self._wrong("clientCert" if certificate else "clientKey", "clientCert and clientKey go together")
        return context


def _with_hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.casefold(), [each.casefold() for each in known], n=1)
    hint = next((each for each in known if close and each.casefold() == close[0]), None)
    return f"{name!r}" + (f"; did you mean {hint!r}?" if hint else "")


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load PEM texts (as Dapr has them) or paths; the library only reads files."""
    with tempfile.TemporaryDirectory() as directory:
        paths: list[str] = []
        for name, text in (("certificate", certificate), ("key", key)):
            path = Path(text.strip())
            if "-----BEGIN" in text:
                path = Path(directory, name)
                path.touch(0o600)
                path.write_text(text)
            paths.append(str(path))
        context.load_cert_chain(paths[0], paths[1])


def _tls(authorities: str | None, *, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authorities)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
