"""How to reach NATS: read from a backbone URL, or from the metadata of a component.

Source: Dapr 1.18, NATS JetStream pub/sub. Streams and consumers are the mesh's own, so what Dapr's
component says about them has no effect; docs/brokers/nats.md tells which.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import unquote, urlsplit

from nats.aio.client import RawCredentials

from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import Reading, count_option, inbox_option, layout_setting, url_options
from brokers.shared.tls import TLS_OPTIONS, TLSFiles
from mesh.errors import ConfigError
from mesh.registry import needs
from mesh.resources.component import Component
from mesh.resources.settings import Setting, ignored, setting, whole

__all__ = ["ConnectionSettings", "NatsConfig", "NatsSettings"]

DEFAULT_PORT = 4222
DEFAULT_NAME = "brokermesh"
URL_OPTIONS = (*TLS_OPTIONS, "creds", "inbox", "name", "nkey", "replicas")
SHAPE = "a NATS URL is nats://[user:password@]host[:port][,host[:port]]…, or tls://…"
CREDENTIALS = """-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""
_PART = r"-+BEGIN {}-+\s+(\S+)\s+-+END"


_MADE = "streams and consumers are made by the mesh"
_AT_ONCE = f"{_MADE}; maxInFlight of a subscription says how many events are worked on"


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How a component reaches NATS, in both layouts."""

    url: str = setting(
        "natsURL",
        "The servers, and the options of a backbone URL.",
        required=True,
        default="",
        example="nats://localhost:4222",
    )
    token: str | None = setting("token", "The server's token, if it asks for one.", secret=True)
    jwt: str = setting("jwt", "A user's JWT; `seedKey` goes with it.", default="", secret=True)
    seed: str = setting("seedKey", "The private nkey of the user; `jwt` goes with it.", default="", secret=True)
    certificate: str | None = setting(
        "tls_client_cert", "The client's certificate, a path or a PEM text.", example="client.pem"
    )
    key: str | None = setting("tls_client_key", "Its private key, a path or a PEM text.", secret=True)
    name: str | None = setting("name", "The connection's name in the server's reports.", example="shop")


@dataclass(frozen=True, slots=True)
class NatsSettings(ConnectionSettings):
    """Settings of ``pubsub.jetstream`` with topics of the mesh's own."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored(
            f"{_MADE}: a group begins with the oldest event",
            *("deliverPolicy", "startSequence", "startTime"),
            anyway=("all",),
        ),
        *ignored(f"{_MADE}, which acknowledges each event", "ackPolicy", anyway=("explicit",)),
        *ignored(f"{_MADE}, on disk", "memoryStorage", anyway=("false",)),
        *ignored(f"{_MADE}, without push consumers", "flowControl", "heartbeat", "rateLimit", anyway=("false",)),
        *ignored(f"{_MADE}; the group is consumerID", "durableName", "queueGroupName"),
        *ignored(_AT_ONCE, "concurrency", anyway=("parallel",)),
        *ignored(_AT_ONCE, "maxAckPending"),
        *ignored(f"{_MADE}, which retries alike on every broker, see Resiliency", "ackWait", "backOff", "maxDeliver"),
        *ignored(_MADE, "apiPrefix", "domain", "streamName"),
    )

    layout: str = layout_setting()
    replicas: int = setting("replicas", "Copies of each stream, on a cluster: 1, 3 or 5.", whole(), default=0)


@dataclass(frozen=True, slots=True)
class NatsConfig:
    """How to reach NATS.

    Attributes:
        servers: URLs of one cluster, without credentials (``nats://host:4222``).
        user: Goes with ``password``.
        password: Its proof.
        token: Token of the server, if it asks for one.
        seed: The private nkey: alone, or with the JWT of its user.
        jwt: A user's JWT.
        tls: With it, a server that does not offer TLS is refused; None leaves that to the server.
        replicas: Copies of each stream, on a cluster; None for what its topology asks for.
        connect_wait: Seconds that an attempt to connect may take.
        ping_interval: Seconds between signs of life; a server that misses two is left for the next.
        name: The connection's name in the server's reports.
        inbox: Stands in the subjects that answers come to, so that the server can tell whose they are; empty = nothing.
    """

    servers: tuple[str, ...]
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    seed: str | None = field(default=None, repr=False)
    jwt: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    replicas: int | None = None
    connect_wait: float = CONNECT_WAIT
    ping_interval: float = 10.0
    name: str = DEFAULT_NAME
    inbox: str = ""

    def options(self) -> dict[str, object]:
        """Give the client's options."""
        options: dict[str, object] = {"name": self.name}
        if self.inbox:
            options["inbox_prefix"] = f"_INBOX.{self.inbox}"
        if self.tls is not None:
            options["tls"] = self.tls
        if self.seed is not None and self.jwt is not None:
            options["user_credentials"] = RawCredentials(CREDENTIALS.format(jwt=self.jwt, seed=self.seed))
        elif self.seed is not None:
            options["nkeys_seed_str"] = self.seed
        elif self.user is not None:
            options |= {"user": self.user, "password": self.password}
        if self.token is not None:
            options["token"] = self.token
        return options

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read ``nats://[user:password@]host[:port][,…][?option=value]``; a user without password is a token.

        Raises:
            ConfigError: It is not such a URL, or a file that it names cannot be used.
            MissingDependencyError: It names an nkey, and nkeys is not installed.
        """
        config, files = cls._parse(url)
        return config if files is None else replace(config, tls=files.context())

    @classmethod
    def _parse(cls, url: str) -> tuple[Self, TLSFiles | None]:
        rest, _, query = url.partition("?")
        options = url_options("NATS", query, URL_OPTIONS)
        servers, logins = _servers(rest)
        if len(logins) > 1:
            raise ConfigError("the servers of a NATS URL are one cluster, and have one login")
        user, password = logins.pop() if logins else (None, None)
        jwt, seed = _keys(options)
        config = cls(
            servers,
            user=None if password is None else user,
            password=password,
            token=user if password is None else None,
            replicas=count_option(options, "replicas"),
            name=options.get("name") or DEFAULT_NAME,
            inbox=inbox_option(options),
            jwt=jwt,
            seed=seed,
        )
        wants_tls = servers[0].startswith("tls://") or any(name in options for name in TLS_OPTIONS)
        return config, TLSFiles.from_options(options) if wants_tls else None

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the metadata of ``pubsub.jetstream`` or ``pubsub.nats``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
            MissingDependencyError: It has an nkey, and nkeys is not installed.
        """
        settings = Reading(component, NatsSettings)
        config = cls.of(settings)
        config = replace(config, replicas=settings.found.replicas or config.replicas)
        settings.finish()
        return config

    @classmethod
    def of(cls, settings: Reading[Any]) -> Self:
        """Read what has `ConnectionSettings`; what is wrong is noted there.

        Raises:
            MissingDependencyError: It has an nkey, and nkeys is not installed.
        """
        found: ConnectionSettings = settings.found
        config, files = cls(()), None
        try:
            if found.url:
                config, files = cls._parse(found.url)
        except ConfigError as error:
            settings.wrong("natsURL", str(error))
        jwt, seed = found.jwt, found.seed
        if bool(jwt) != bool(seed):
            settings.wrong("jwt" if jwt else "seedKey", "jwt and seedKey go together")
        elif seed:
            try:
                _check_seed(seed)
            except ConfigError as error:
                settings.wrong("seedKey", str(error))
        tls = None
        if files is not None or found.certificate or found.key:
            tls = settings.tls("tls_client_cert", "tls_client_key", files=files)
        named = config.name if config.name != DEFAULT_NAME else f"{DEFAULT_NAME} {settings.component.name}"
        return replace(
            config,
            token=found.token or config.token,
            jwt=jwt or config.jwt,
            seed=seed or config.seed,
            tls=tls,
            name=found.name or named,
            connect_wait=settings.connect_wait,
        )


def _servers(text: str) -> tuple[tuple[str, ...], set[tuple[str, str | None]]]:
    """Take a list of servers apart into URLs without credentials, and the credentials that are there."""
    servers, logins = [], set()
    scheme = text.partition("://")[0]
    for each in text.split(","):
        part = each.strip()
        try:
            parts = urlsplit(part if "://" in part else f"{scheme}://{part}")
            port = parts.port or DEFAULT_PORT
        except ValueError:  # Its text may hold a part of the password.
            raise ConfigError(SHAPE) from None
        behind = parts.path.strip("/") or parts.fragment
        if parts.scheme not in ("nats", "tls") or parts.scheme != scheme or not parts.hostname or behind:
            raise ConfigError(SHAPE)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        servers.append(f"{scheme}://{host}:{port}")
        if parts.username:
            logins.add((unquote(parts.username), None if parts.password is None else unquote(parts.password)))
    return tuple(servers), logins


def _keys(options: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Read the file of the option ``creds`` or ``nkey``; give a JWT, and the seed that goes with it."""
    given = [name for name in ("creds", "nkey") if name in options]
    if not given:
        return None, None
    if len(given) > 1:
        raise ConfigError("a NATS URL has one of creds and nkey")
    [option] = given
    path = options[option]
    try:
        text = Path(path).read_text("ascii")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"option {option}: {path!r} cannot be read: {reason}") from None
    jwt, seed = None, text.strip()
    if option == "creds":
        parts = [re.search(_PART.format(what), text) for what in ("NATS USER JWT", "USER NKEY SEED")]
        if None in parts:
            raise ConfigError(f"option creds: {path!r} does not hold a user's JWT and the seed of its nkey")
        jwt, seed = (part[1] for part in parts if part)
    try:
        _check_seed(seed)
    except ConfigError as error:
        raise ConfigError(f"option {option}: {path!r}: {error}") from None
    return jwt, seed


def _check_seed(seed: str) -> None:
    """Find out early what would end the connection later."""
    try:
        import nkeys
    except ModuleNotFoundError as error:
        raise needs("NATS with an nkey", "nkeys") from error
    try:
        if not seed.startswith("SU"):
            raise ValueError
        nkeys.from_seed(bytearray(seed, "ascii")).public_key  # noqa: B018 - it fails where the seed is none
    except (ValueError, nkeys.NkeysError):
        raise ConfigError("that is not the seed of a user's nkey; it begins with SU") from None
