"""How to reach Redis: read from a backbone URL, or from the metadata of a component."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import ClassVar, Self, TypeVar
from urllib.parse import unquote

from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import Reading, hosts_of, inbox_option, layout_setting, shown_hosts, tls_of, url_options
from brokers.shared.tls import TLS_OPTIONS, TLSFiles, ca_setting, certificate_setting, key_setting
from mesh.errors import ConfigError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, DURATION, VERBATIM, Setting, ignored, setting, whole

__all__ = ["RedisConfig", "RedisReader", "RedisServerSettings", "RedisSettings", "Sentinels"]

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
SENTINEL_OPTIONS = ("sentinel_master", "sentinel_username", "sentinel_password")
URL_OPTIONS = (*TLS_OPTIONS, *SENTINEL_OPTIONS, "db", "inbox")
SHAPE = "redis://[user:password@]host[:port][/db]"


@dataclass(frozen=True, slots=True)
class RedisServerSettings:
    """How a component says where Redis is, and who logs in there."""

    host: str = setting(
        "redisHost",
        "Host and port of the server; with `failover`, of the Sentinels, separated by commas.",
        required=True,
        default="",
        example="localhost:6379",
    )
    port: int | None = setting(
        "redisPort",
        "The port, if `redisHost` has none; 6379, of Sentinels 26379.",
        whole(1, 65535),
        example="6379",
    )
    username: str | None = setting("redisUsername", "The user of the server's access list.", VERBATIM, example="shop")
    password: str | None = setting(
        "redisPassword", "Its password; if empty, nobody is logged in.", VERBATIM, secret=True
    )
    db: int = setting("redisDB", "The number of the database.", whole(), default=0)
    kind: str = setting("redisType", "`node`, or `cluster` in the native layout.", default="node")
    tls: bool = setting("enableTLS", "Whether to use TLS.", BOOLEAN, default=False)
    unverified: bool = setting("insecureSkipTLSVerify", "Whether to accept any certificate.", BOOLEAN, default=False)
    ca: str | None = ca_setting()
    certificate: str | None = certificate_setting()
    key: str | None = key_setting()
    entra: bool = setting("useEntraID", "Whether to log in by Entra ID, which is refused.", BOOLEAN, default=False)
    failover: bool = setting("failover", "Whether Sentinels say where the primary is.", BOOLEAN, default=False)
    master: str = setting("sentinelMasterName", "What the Sentinels call the primary.", default="", example="mymaster")
    sentinel_username: str | None = setting("sentinelUsername", "A user of the Sentinels.", VERBATIM, example="shop")
    sentinel_password: str | None = setting("sentinelPassword", "Its password.", VERBATIM, secret=True)


@dataclass(frozen=True, slots=True)
class RedisSettings(RedisServerSettings):
    """Settings of ``pubsub.redis``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored(
            "there is no pool of connections",
            *("poolSize", "poolTimeout", "minIdleConns", "maxConnAge", "idleTimeout", "idleCheckFrequency"),
        ),
        *ignored(
            "the times and repetitions of commands are fixed",
            *("redisMaxRetries", "redisMinRetryInterval", "redisMaxRetryInterval", "maxRetries", "maxRetryBackoff"),
            *("dialTimeout", "readTimeout", "writeTimeout"),
        ),
        *ignored("how many events wait here, concurrency and maxInFlight of a subscription say", "queueDepth"),
        *ignored("an event comes again after 15 s without a sign of life", "processingTimeout", "redeliverInterval"),
        *ignored("what is handled is deleted, and what is not never is; streamTTL says for how long", "maxLenApprox"),
    )

    layout: str = layout_setting()
    concurrency: int | None = setting(
        "concurrency",
        "Most events of a subscription at work at once at one instance; else what that says.",
        whole(),
        example="10",
    )
    ttl: float | None = setting("streamTTL", "How long an event is kept; 7 days if not set.", DURATION, example="168h")


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Who knows where the primary is.

    Attributes:
        hosts: Host and port of each.
        master: What they call the primary.
        username: An ACL user of theirs; None for the default one.
        password: None logs nobody in there.
    """

    hosts: tuple[tuple[str, int], ...]
    master: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """How to reach Redis, and what a component limits.

    Attributes:
        host: Name or address.
        port: TCP port.
        username: An ACL user; None for the default one.
        password: None logs nobody in.
        db: Number of the database.
        tls: TLS context; None for plain TCP. Sentinels are asked over TLS, too.
        sentinels: Asked for host and port with each connect; None for those above.
        connect_wait: Seconds that an attempt to connect may take.
        ping_interval: Seconds between signs of life; a server that misses two is reconnected to.
        max_in_flight: Most deliveries at once of any subscription; None for what each asks for.
        max_age: Seconds that events are kept; None for what the topology asks for.
        inbox: Stands in the names of this node's channels, so that the server can tell whose they are; empty = nothing.
    """

    host: str = "localhost"
    port: int = DEFAULT_PORT
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    sentinels: Sentinels | None = None
    connect_wait: float = CONNECT_WAIT
    ping_interval: float = 10.0
    max_in_flight: int | None = None
    max_age: float | None = None
    inbox: str = ""

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        hosts = ((self.host, self.port),) if self.sentinels is None else self.sentinels.hosts
        master = "" if self.sentinels is None else f"?sentinel_master={self.sentinels.master}"
        return f"{'redis' if self.tls is None else 'rediss'}://{shown_hosts(hosts)}/{self.db}{master}"

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read ``redis[s]://[user][:password@]host[:port][,host[:port]]…[/db][?option=value]``.

        Raises:
            ConfigError: It is not such a URL.
        """
        rest, _, query = url.partition("?")
        scheme, _, place = rest.partition("://")
        if scheme not in ("redis", "rediss"):
            raise ConfigError(f"a Redis URL begins with redis:// or rediss://, not {scheme}://")
        options = url_options("Redis", query, URL_OPTIONS)
        login, _, place = place.rpartition("@")
        user, _, password = login.partition(":")
        text, _, path = place.partition("/")
        master = options.get("sentinel_master")
        try:
            hosts = hosts_of(text or "localhost", DEFAULT_PORT if master is None else DEFAULT_SENTINEL_PORT)
            db = int(path.strip("/") or options.get("db", "0"))
        except ValueError:  # Its text may hold a part of the password.
            raise ConfigError(f"the backbone URL is not {SHAPE}") from None
        files = tls_of(options, None if scheme == "rediss" else "rediss")
        if master is None and (len(hosts) > 1 or any(name in options for name in SENTINEL_OPTIONS)):
            raise ConfigError("several hosts are Sentinels, which need the option sentinel_master; no Redis Cluster")
        known = (options.get("sentinel_username"), options.get("sentinel_password"))
        host, port = hosts[0] if master is None else ("localhost", DEFAULT_PORT)
        return cls(
            host,
            port,
            username=unquote(user) or None,
            password=unquote(password) or None,
            db=db,
            tls=None if files is None else files.context(),
            sentinels=None if master is None else Sentinels(hosts, master, *known),
            inbox=inbox_option(options),
        )

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the metadata of ``pubsub.redis``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        return cls(**_Reader(component, RedisSettings).read())  # type: ignore[arg-type]  # its keys are our fields


_Settings = TypeVar("_Settings", bound=RedisServerSettings)


class RedisReader(Reading[_Settings]):
    """Reads how to reach the server, and what goes together."""

    def server(self) -> dict[str, object]:
        """Give the fields of the configuration that say so."""
        found = self.found
        if found.entra:
            self.wrong("useEntraID", "Entra ID is not supported")
        return {
            "username": found.username,
            "password": found.password,
            "db": found.db,
            "tls": self._tls(),
            "connect_wait": self.connect_wait,
            **self._place(),
        }

    def _place(self) -> dict[str, object]:
        found = self.found
        if not found.host:
            return {}
        if found.failover and not found.master:
            self.wrong("failover", "needs sentinelMasterName, and in redisHost the Sentinels")
        if not found.failover:
            self.useless("without failover", "sentinelMasterName", "sentinelUsername", "sentinelPassword")
        default = found.port or (DEFAULT_SENTINEL_PORT if found.failover else DEFAULT_PORT)
        try:
            hosts = hosts_of(found.host, default)
        except ValueError:
            self.wrong("redisHost", "is host:port; a login is in redisUsername and redisPassword")
            return {}
        if found.failover:
            known = found.sentinel_username, found.sentinel_password
            return {"sentinels": Sentinels(hosts, found.master, *known)}
        return self._hosts(hosts)

    def _hosts(self, hosts: tuple[tuple[str, int], ...]) -> dict[str, object]:
        if len(hosts) > 1:
            self.wrong("redisHost", "is one host without 'failover': Redis Cluster needs 'layout: native'")
        return {"host": hosts[0][0], "port": hosts[0][1]}

    def _tls(self) -> ssl.SSLContext | None:
        if not self.found.tls:
            self.without_tls('enableTLS: "true" turns it on', "insecureSkipTLSVerify")
            return None
        return self.tls("clientCert", "clientKey", ca="caCert", files=TLSFiles(verify=not self.found.unverified))


class _Reader(RedisReader[RedisSettings]):
    """Reads the settings of ``pubsub.redis`` with the mesh's layout."""

    def read(self) -> dict[str, object]:
        """Give the fields of the configuration."""
        found = self.found
        if (kind := found.kind.lower()) != "node":
            self.wrong("redisType", f"must be 'node', not {kind!r}: Redis Cluster needs 'layout: native'")
        limits = {"max_in_flight": found.concurrency or None, "max_age": found.ttl or None}
        fields = {**self.server(), **limits}
        self.finish()
        return fields
