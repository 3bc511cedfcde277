"""How to reach RabbitMQ: read from a backbone URL, or from the metadata of a component.

Source: RabbitMQ URI specification and query parameters; Dapr 1.18, RabbitMQ pub/sub.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar
from urllib.parse import unquote

from brokers.rabbitmq._names import PLAIN
from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import (
    Reading,
    count_option,
    hosts_of,
    inbox_option,
    layout_setting,
    shown_hosts,
    tls_of,
    url_options,
)
from brokers.shared.tls import TLS_OPTIONS, TLSFiles, ca_setting, certificate_setting, key_setting
from mesh.errors import ConfigError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, SECONDS, VERBATIM, Setting, choice, ignored, setting, whole

__all__ = ["ConfigReader", "ConnectionSettings", "RabbitMQConfig", "RabbitMQSettings"]

PORTS = {"amqp": 5672, "amqps": 5671}
SHAPE = "a RabbitMQ URL is amqp://user:password@host:port/vhost, or amqps://…"
URL_OPTIONS = (*TLS_OPTIONS, "auth_mechanism", "connection_timeout", "heartbeat", "inbox")
_Settings = TypeVar("_Settings", bound="ConnectionSettings")

_QUEUES = "queues and exchanges are made by the mesh, and are durable"


@dataclass(frozen=True)
class ConnectionSettings:
    """Where the server is, and who we are: the same in every layout."""

    url: str = setting(
        "connectionString",
        "The URL of the server, `amqp://user:password@host:port/vhost`; or `hostname` and `protocol`.",
        default="",
        secret=True,
        aliases=("host",),
        suggested=True,
    )
    hostname: str = setting("hostname", "Host, or host and port, of the server.", default="", example="localhost")
    protocol: str = setting("protocol", "Goes with `hostname`.", choice("amqp", "amqps"), default="amqp")
    username: str | None = setting(
        "username", "The user; if not set, that of the URL, or `guest`.", VERBATIM, example="guest"
    )
    password: str | None = setting("password", "Its password.", VERBATIM, secret=True)
    ca: str | None = ca_setting()
    certificate: str | None = certificate_setting()
    key: str | None = key_setting()
    external: bool | None = setting("saslExternal", "Whether the client's certificate says who we are.", BOOLEAN)
    heartbeat: float | None = setting(
        "heartBeat",
        "Time between signs of life; a server that misses two is left for the next. 10 s.",
        SECONDS,
        example="10s",
    )
    reconnect: float | None = setting(
        "reconnectWaitSeconds",
        "Most time between two attempts to reconnect; 2 s.",
        SECONDS,
        aliases=("reconnectWait",),
        example="2s",
    )
    name: str | None = setting("clientName", "Name of the connections in the server's reports.", example="shop")
    concurrency: str = setting(
        "concurrency",
        "Whether an instance works on one event at a time.",
        choice("parallel", "single"),
        default="parallel",
        aliases=("concurrencyMode",),
    )


@dataclass(frozen=True, slots=True)
class RabbitMQSettings(ConnectionSettings):
    """Settings of ``pubsub.rabbitmq``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored(
            "the mesh retries alike on every broker, see Resiliency",
            *("backOffDuration", "backOffInitialInterval", "backOffMaxInterval", "backOffMaxRetries", "backOffPolicy"),
            *("backOffMultiplier", "backOffRandomizationFactor"),
        ),
        *ignored("what failed is retried, see Resiliency", "requeueInFailure", anyway=("true",)),
        *ignored("an event is acknowledged once it was handled", "autoAck", anyway=("false",)),
        *ignored(_QUEUES, "durable", anyway=("true",)),
        *ignored(_QUEUES, "deletedWhenUnused", anyway=("false",)),
        *ignored(f"{_QUEUES}: events are stored", "deliveryMode", anyway=("2",)),
        *ignored("an exchange has its kind from the mesh", "exchangeKind", anyway=("fanout",)),
        *ignored("every publish is confirmed", "publisherConfirm", anyway=("true",)),
        *ignored("deadLetterTopic of a subscription says where", "enableDeadLetter", anyway=("false",)),
        *ignored("properties of messages are not passed on", "publishMessagePropertiesToMetadata", anyway=("false",)),
    )

    layout: str = layout_setting()
    prefetch: int | None = setting(
        "prefetchCount",
        "Most events of a subscription at work at once at one instance; else what that says.",
        whole(),
        example="10",
    )
    ttl: float | None = setting(
        "ttlInSeconds", "How long an event is kept; 7 days if not set.", SECONDS, example="168h"
    )
    max_events: int | None = setting(
        "maxLen", "Most events that wait in a queue; a publish above that is refused.", whole(), example="10000"
    )
    max_bytes: int | None = setting(
        "maxLenBytes", "Most bytes that wait in a queue; a publish above that is refused.", whole(), example="100000000"
    )


@dataclass(frozen=True, slots=True)
class RabbitMQConfig:
    """How to reach RabbitMQ, and limits.

    Attributes:
        hosts: Host and port of each node of one cluster.
        user: Who we are.
        password: Its proof.
        vhost: The virtual host.
        tls: TLS context; None for plain TCP.
        external: Whether the client certificate is the proof of who we are.
        heartbeat: Seconds between signs of life; a server that misses two is left for the next.
        connect_wait: Seconds to wait for the first connection.
        max_backoff: Most seconds between two attempts to reconnect.
        name: The connections' name in the server's reports.
        max_age: Seconds an event is kept, if less than what its space asks for.
        max_bytes: Most bytes that wait in a queue, if less than what its space asks for.
        max_events: Most events that wait in a queue; a publish above it is rejected.
        max_in_flight: Most deliveries at a member, if less than what its subscription asks for.
        inbox: Stands in the names of this node's own queues, for rights by names; empty = nothing.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    external: bool = False
    heartbeat: int = 10
    connect_wait: float = CONNECT_WAIT
    max_backoff: float = 2.0
    name: str = "brokermesh"
    max_age: float | None = None
    max_bytes: int | None = None
    max_events: int | None = None
    max_in_flight: int | None = None
    inbox: str = ""

    @property
    def shown(self) -> str:
        """Where it is, without credentials."""
        return shown_hosts(self.hosts)

    @classmethod
    def from_url(cls, url: str) -> RabbitMQConfig:
        """Read ``amqp://user:password@host:port/vhost``; several nodes as ``host:port,host:port``.

        Raises:
            ConfigError: It is no such URL, or has an unknown parameter; the message shows no credentials.
        """
        config, files = cls.parse(url)
        return config if files is None else replace(config, tls=files.context())

    @classmethod
    def parse(cls, url: str) -> tuple[RabbitMQConfig, TLSFiles | None]:
        """Read a URL; give what TLS is made of apart, as a component may say more about it."""
        rest, _, query = url.partition("?")
        scheme, _, place = rest.partition("://")
        if scheme not in PORTS:
            raise ConfigError(SHAPE)
        options = url_options("RabbitMQ", query, URL_OPTIONS)
        login, _, place = place.rpartition("@")
        user, has_password, password = login.partition(":")
        hosts, _, vhost = place.partition("/")
        mechanism = options.get("auth_mechanism", "plain").casefold()
        if mechanism not in ("plain", "external"):
            raise ConfigError("option auth_mechanism is plain or external")
        timeout = count_option(options, "connection_timeout")
        try:
            found = hosts_of(hosts, PORTS[scheme])
        except ValueError:  # Its text may hold a part of the password.
            raise ConfigError(SHAPE) from None
        config = cls(
            found,
            user=unquote(user) if login else "guest",
            password=unquote(password) if has_password else "guest",
            vhost=unquote(vhost) or "/",
            external=mechanism == "external",
            heartbeat=count_option(options, "heartbeat") or 10,
            connect_wait=CONNECT_WAIT if timeout is None else timeout / 1000,
            inbox=inbox_option(options).translate(PLAIN),
        )
        return config, tls_of(options, None if scheme == "amqps" else "amqps")

    @classmethod
    def from_component(cls, component: Component) -> RabbitMQConfig:
        """Read the metadata of ``pubsub.rabbitmq``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        reader = ConfigReader(component, RabbitMQSettings)
        found = reader.found
        return replace(
            reader.config(),
            max_age=found.ttl,
            max_bytes=found.max_bytes or None,
            max_events=found.max_events or None,
            max_in_flight=1 if found.concurrency == "single" else found.prefetch or None,
        )


class ConfigReader(Reading[_Settings]):
    """Reads the settings of ``pubsub.rabbitmq``."""

    def config(self) -> RabbitMQConfig:
        """Give how to reach the server.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        config, files = self._server()
        return replace(config, **self._fields(config, files))  # type: ignore[arg-type]  # its keys are its fields

    def _server(self) -> tuple[RabbitMQConfig, TLSFiles | None]:
        """Read where the server is: one URL, or its parts."""
        found, url = self.found, self.found.url
        setting = next((name for name in ("connectionString", "host") if self.text(name)), "hostname")
        if url:
            self.useless(f"beside {setting}", "hostname", "protocol")
        else:
            if not found.hostname:
                self.wrong(setting, "says not where RabbitMQ is: set connectionString, or hostname and protocol")
            url = f"{found.protocol}://{found.hostname or 'localhost'}"
        try:
            return RabbitMQConfig.parse(url)
        except ConfigError as error:
            self.wrong(setting, str(error))
            return RabbitMQConfig(()), None

    def _fields(self, config: RabbitMQConfig, files: TLSFiles | None) -> dict[str, object]:
        """Give the fields of the configuration, beside those that the URL gives."""
        found = self.found
        if files is None:
            self.without_tls("a connectionString that begins with amqps:// turns it on")
        heartbeat = config.heartbeat if found.heartbeat is None else max(1, round(found.heartbeat))
        fields: dict[str, object] = {
            "name": found.name or f"brokermesh {self.component.name}",
            "user": found.username or config.user,
            "password": found.password or config.password,
            "external": config.external if found.external is None else found.external,
            "heartbeat": heartbeat,
            "max_backoff": found.reconnect or config.max_backoff,
            "connect_wait": min(config.connect_wait, self.connect_wait),
            "tls": None if files is None else self.tls("clientCert", "clientKey", ca="caCert", files=files),
        }
        self.finish()
        return fields
