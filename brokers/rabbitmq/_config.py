"""How to reach RabbitMQ, and what a backbone URL says about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from brokers.shared.tls import TLSFiles
from mesh.errors import ConfigError
from mesh.spelling import did_you_mean

__all__ = ["RabbitMQConfig", "TLSFiles", "one_of", "unknown"]

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
SHAPE = "a RabbitMQ URL is amqp://user:password@host:port/vhost, or amqps://…"
PARAMETERS = ("auth_mechanism", "cacertfile", "certfile", "connection_timeout", "heartbeat", "keyfile", "verify")


@dataclass(frozen=True, slots=True)
class RabbitMQConfig:
    """How to reach RabbitMQ, and limits.

    Attributes:
        hosts: Host and port of each node of one cluster.
        user: Who we are.
        password: Its proof.
        vhost: The virtual host.
        tls: None = no TLS.
        external: Whether the client certificate is the proof of who we are.
        heartbeat: Seconds between signs of life; a server that misses two is left for the next.
        connect_wait: Seconds to wait for the first connection.
        max_backoff: Most seconds between two attempts to reconnect.
        name: The connections' name in the server's reports.
        max_age: Seconds an event is kept, if less than what its space asks for.
        max_bytes: Most bytes that wait in a queue, if less than what its space asks for.
        max_events: Most events that wait in a queue; a publish above it is rejected.
        max_in_flight: Most deliveries at a member, if less than what its subscription asks for.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    tls: TLSFiles | None = None
    external: bool = False
    heartbeat: int = 10
    connect_wait: float = 10.0
    max_backoff: float = 2.0
    name: str = "brokermesh"
    max_age: float | None = None
    max_bytes: int | None = None
    max_events: int | None = None
    max_in_flight: int | None = None

    @property
    def shown(self) -> str:
        """Where it is, without credentials."""
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)

    @classmethod
    def from_url(cls, url: str) -> RabbitMQConfig:
        """Read ``amqp://user:password@host:port/vhost``; several nodes as ``host:port,host:port``.

        Raises:
            ConfigError: It is no such URL, or has an unknown parameter; the message shows no credentials.
        """
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS:
            raise ConfigError(SHAPE)
        login, _, hosts = parts.netloc.rpartition("@")
        user, has_password, password = login.partition(":")
        config = cls(
            hosts=tuple(_host(parts, each) for each in hosts.split(",")),
            user=unquote(user) if login else "guest",
            password=unquote(password) if has_password else "guest",
            vhost=unquote(parts.path[1:]) or "/",
            tls=TLSFiles() if parts.scheme == "amqps" else None,
        )
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            try:
                config = config._with(name, value)
            except ValueError as error:
                raise ConfigError(f"RabbitMQ URL, parameter {name!r}: {error}") from None
        return config

    def _with(self, name: str, value: str) -> RabbitMQConfig:
        """Take a parameter of RabbitMQ's URI specification."""
        tls = self.tls or TLSFiles()
        match name:
            case "heartbeat":
                return replace(self, heartbeat=max(1, int(value)))
            case "connection_timeout":
                return replace(self, connect_wait=int(value) / 1000)
            case "auth_mechanism":
                return replace(self, external=one_of(value, "plain", "external") == "external")
            case "cacertfile":
                return replace(self, tls=replace(tls, ca=value))
            case "certfile":
                return replace(self, tls=replace(tls, certificate=value))
            case "keyfile":
                return replace(self, tls=replace(tls, key=value))
            case "verify":
                peer = one_of(value, "verify_peer", "verify_none") == "verify_peer"
                return replace(self, tls=replace(tls, verify=peer))
            case _:
                raise ValueError(unknown(name, PARAMETERS))


def _host(parts: SplitResult, text: str) -> tuple[str, int]:
    try:
        host = urlsplit(f"//{text}")
        if not host.hostname:
            raise ConfigError(SHAPE)
        return host.hostname, host.port or DEFAULT_PORTS[parts.scheme]
    except ValueError:  # Its text may hold a part of the password.
        raise ConfigError(SHAPE) from None


def one_of(text: str, *allowed: str) -> str:
    """Read one of a few words, without regard to case.

    Raises:
        ValueError: It is another one.
    """
    folded = text.casefold()
    if folded not in allowed:
        raise ValueError(f"is {text!r}; it can be {' or '.join(allowed)}")
    return folded


def unknown(name: str, known: tuple[str, ...]) -> str:
    """Say that a name is not known, and what may have been meant."""
    guess = did_you_mean(name, known)
    return f"is unknown; did you mean {guess!r}?" if guess else f"is unknown; known are: {', '.join(known)}"
