"""How to reach RabbitMQ: read from a backbone URL, or from the metadata of a component.

Source: RabbitMQ URI specification and query parameters; Dapr 1.18, RabbitMQ pub/sub.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import Settings, count_option, hosts_of, ignored, names, shown_hosts, tls_of, url_options
from brokers.shared.tls import TLS_OPTIONS, TLSFiles
from mesh.errors import ConfigError
from mesh.resources.component import Component

__all__ = ["IGNORED", "USED", "RabbitMQConfig"]

PORTS = {"amqp": 5672, "amqps": 5671}
SHAPE = "a RabbitMQ URL is amqp://user:password@host:port/vhost, or amqps://…"
URL_OPTIONS = (*TLS_OPTIONS, "auth_mechanism", "connection_timeout", "heartbeat")

USED = names(
    """
    caCert clientCert clientKey clientName concurrency concurrencyMode connectionString heartBeat host hostname
    maxLen maxLenBytes password prefetchCount protocol reconnectWait reconnectWaitSeconds saslExternal ttlInSeconds
    username
    """
)
_QUEUES = "queues and exchanges are made by the mesh, and are durable"
IGNORED = {
    **ignored(
        "the mesh retries alike on every broker, see Resiliency",
        "backOffDuration backOffInitialInterval backOffMaxInterval backOffMaxRetries backOffPolicy backOffMultiplier "
        "backOffRandomizationFactor",
    ),
    **ignored("what failed is retried, see Resiliency", "requeueInFailure", "true"),
    **ignored("an event is acknowledged once it was handled", "autoAck", "false"),
    **ignored(_QUEUES, "durable", "true"),
    **ignored(_QUEUES, "deletedWhenUnused", "false"),
    **ignored(f"{_QUEUES}: events are stored", "deliveryMode", "2"),
    **ignored("an exchange has its kind from the mesh", "exchangeKind", "fanout"),
    **ignored("every publish is confirmed", "publisherConfirm", "true"),
    **ignored("deadLetterTopic of a subscription says where", "enableDeadLetter", "false"),
    **ignored("properties of messages are not passed on", "publishMessagePropertiesToMetadata", "false"),
}


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
        )
        return config, tls_of(options, None if scheme == "amqps" else "amqps")

    @classmethod
    def from_component(cls, component: Component) -> RabbitMQConfig:
        """Read the metadata of ``pubsub.rabbitmq``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        reader = _Reader(component, (*USED, *IGNORED))
        config, files = reader.server()
        return replace(config, **reader.read(config, files))  # type: ignore[arg-type]  # its keys are our fields


class _Reader(Settings):
    """Reads the settings of ``pubsub.rabbitmq``."""

    def server(self) -> tuple[RabbitMQConfig, TLSFiles | None]:
        """Read where the server is: one URL, or its parts."""
        setting = next((name for name in ("connectionString", "host") if self.text(name)), "hostname")
        url = self.text(setting)
        if setting == "hostname":
            protocol = self.choice("protocol", *PORTS)
            if not url:
                self.wrong(setting, "says not where RabbitMQ is: set connectionString, or hostname and protocol")
            url = f"{protocol or 'amqp'}://{url or 'localhost'}"
        try:
            return RabbitMQConfig.parse(url)
        except ConfigError as error:
            self.wrong(setting, str(error))
            return RabbitMQConfig(()), None

    def read(self, config: RabbitMQConfig, files: TLSFiles | None) -> dict[str, object]:
        """Give the fields of the configuration, beside those that the URL gives."""
        most = self.number("prefetchCount") or None
        if self.choice("concurrency", "parallel", "single") == "single":
            most = 1
        heartbeat = self.duration("heartBeat", plain=True)
        fields: dict[str, object] = {
            "name": self.text("clientName") or f"brokermesh {self.component.name}",
            "user": self.component.setting("username") or config.user,
            "password": self.component.setting("password") or config.password,
            "external": self.flag("saslExternal") if self.text("saslExternal") else config.external,
            "heartbeat": config.heartbeat if heartbeat is None else max(1, round(heartbeat)),
            "max_backoff": self.duration("reconnectWaitSeconds", plain=True)
            or self.duration("reconnectWait", plain=True)
            or config.max_backoff,
            "max_age": self.duration("ttlInSeconds", plain=True),
            "max_bytes": self.number("maxLenBytes") or None,
            "max_events": self.number("maxLen") or None,
            "max_in_flight": most,
            "connect_wait": min(config.connect_wait, self.connect_wait),
            "tls": None if files is None else self.tls("clientCert", "clientKey", ca="caCert", files=files),
        }
        self.finish()
        return fields
