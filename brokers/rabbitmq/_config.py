"""How to reach RabbitMQ: from a URL, or from a component's metadata."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote, urlsplit

from mesh.durations import parse_duration
from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component
from mesh.resources.documents import did_you_mean

__all__ = ["RabbitMQConfig", "TLSFiles"]

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
OURS = frozenset(
    {
        "caCert",
        "clientCert",
        "clientKey",
        "clientName",
        "concurrency",
        "connectionString",
        "heartBeat",
        "host",
        "hostname",
        "maxLen",
        "maxLenBytes",
        "password",
        "port",
        "prefetchCount",
        "protocol",
        "reconnectWaitSeconds",
        "saslExternal",
        "ttlInSeconds",
        "username",
    }
)
# Read by the mesh itself, for every pub/sub component.
GENERAL = frozenset({"allowedTopics", "consumerID", "protectedTopics", "publishingScopes", "subscriptionScopes"})
# What they ask for is always so, or has no counterpart here; docs/brokers/rabbitmq.md says which.
IGNORED = frozenset(
    {
        "autoAck",
        "backOffDuration",
        "backOffInitialInterval",
        "backOffMaxInterval",
        "backOffMaxRetries",
        "backOffPolicy",
        "deletedWhenUnused",
        "deliveryMode",
        "durable",
        "enableDeadLetter",
        "exchangeKind",
        "publishMessagePropertiesToMetadata",
        "publisherConfirm",
        "requeueInFailure",
    }
)


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """What a TLS connection is made with; PEM text or paths.

    Attributes:
        ca: Whom to trust; None = whom the system trusts.
        certificate: Ours, with ``key``.
        key: Its private key.
        verify: Whether the server must prove who it is.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Make the context; reads files, so it blocks."""
        pem = self.ca is not None and "-----BEGIN" in self.ca
        context = ssl.create_default_context(cafile=None if pem else self.ca, cadata=self.ca if pem else None)
        if self.certificate is not None:
            with _as_file(self.certificate) as certificate, _as_file(self.key) as key:
                context.load_cert_chain(certificate, key)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class RabbitMQConfig:
    """How to reach RabbitMQ, and a few limits.

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
        max_age: Seconds an event is kept, if less than what the space asks for.
        max_bytes: Most bytes that wait in a queue, if less than what the space asks for.
        max_events: Most events that wait in a queue; a publish above it is rejected.
        max_in_flight: Most deliveries at a member, if less than what its subscription asks for.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str = "guest"
    password: str = "guest"  # noqa: S105 - RabbitMQ's own default, which it takes from localhost only
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
        """Read ``amqp://user:password@host:port/vhost?heartbeat=10``.

        Nodes of one cluster are separated by commas, as whole URLs or as ``host:port`` after the first.

        Raises:
            ConfigError: It is no such URL; the message shows no credentials.
        """
        first, *others = url.split(",")
        others = [f"//{other.rpartition('@')[2].rpartition('//')[2]}" for other in others]
        if others and "/" in others[-1][2:]:  # amqp://a,b/vhost
            others[-1], _, path = others[-1].rpartition("/")
            first = f"{first.rstrip('/')}/{path}" if urlsplit(first).path in ("", "/") else first
        parts = urlsplit(first)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise ConfigError("a RabbitMQ URL is amqp://user:password@host:port/vhost, or amqps://…")
        hosts = []
        for each in (parts, *map(urlsplit, others)):
            try:
                hosts.append((each.hostname or "", each.port or DEFAULT_PORTS[parts.scheme]))
            except ValueError as error:
                raise ConfigError(f"a RabbitMQ URL is amqp://user:password@host:port/vhost: {error}") from None
        config = cls(
            hosts=tuple(hosts),
            user=unquote(parts.username) if parts.username is not None else "guest",
            password=unquote(parts.password) if parts.password is not None else "guest",
            vhost=unquote(parts.path[1:]) or "/",
            tls=TLSFiles() if parts.scheme == "amqps" else None,
        )
        return config._with_query(parts.query)

    def _with_query(self, query: str) -> RabbitMQConfig:
        """Take the query parameters of RabbitMQ's URI specification."""
        config, tls = self, self.tls or TLSFiles()
        for name, value in parse_qsl(query, keep_blank_values=True):
            try:
                match name:
                    case "heartbeat":
                        config = replace(config, heartbeat=max(1, int(value)))
                    case "connection_timeout":
                        config = replace(config, connect_wait=int(value) / 1000)
                    case "auth_mechanism":
                        config = replace(config, external=_one_of(value.lower(), "plain", "external") == "external")
                    case "cacertfile":
                        tls = replace(tls, ca=value)
                    case "certfile":
                        tls = replace(tls, certificate=value)
                    case "keyfile":
                        tls = replace(tls, key=value)
                    case "verify":
                        tls = replace(tls, verify=_one_of(value, "verify_peer", "verify_none") == "verify_peer")
                    case _:
                        raise ValueError(_unknown(name, URL_PARAMETERS))
            except ValueError as error:
                raise ConfigError(f"RabbitMQ URL: {name}: {error}") from None
        return replace(config, tls=tls) if config.tls is not None else config

    @classmethod
    def from_component(cls, component: Component) -> RabbitMQConfig:
        """Read the metadata of a ``pubsub.rabbitmq``.

        Raises:
            ConfigError: A setting is unknown, wrong or missing; holds all problems, located.
        """
        reader = _Reader(component)
        reader.refuse_unknown()
        config = reader.address()
        config = replace(
            config,
            user=reader.text("username") or config.user,
            password=reader.text("password") or config.password,
            name=reader.text("clientName") or component.name,
            external=reader.value("saslExternal", _boolean, config.external),
            heartbeat=reader.value("heartBeat", _heartbeat, config.heartbeat),
            max_backoff=reader.value("reconnectWaitSeconds", _seconds, config.max_backoff),
            max_age=reader.value("ttlInSeconds", _seconds, None),
            max_bytes=reader.value("maxLenBytes", _count, None),
            max_events=reader.value("maxLen", _count, None),
            max_in_flight=reader.value("prefetchCount", _count, None),
        )
        if reader.value("concurrency", lambda text: _one_of(text.lower(), "parallel", "single"), "") == "single":
            config = replace(config, max_in_flight=1)
        if config.tls is not None:
            files = TLSFiles(reader.text("caCert"), reader.text("clientCert"), reader.text("clientKey"))
            config = replace(config, tls=replace(config.tls, **{k: v for k, v in _given(files) if v is not None}))
        reader.finish()
        return config
