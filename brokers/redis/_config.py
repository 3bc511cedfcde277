"""How to reach Redis: read from a backbone URL, or from the metadata of a component."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote

from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import Settings, hosts_of, ignored, names, shown_hosts, tls_of, url_options
from brokers.shared.tls import TLS_OPTIONS, TLSFiles
from mesh.errors import ConfigError
from mesh.resources.component import Component

__all__ = ["IGNORED", "USED", "RedisConfig", "Sentinels"]

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
SENTINEL_OPTIONS = ("sentinel_master", "sentinel_username", "sentinel_password")
URL_OPTIONS = (*TLS_OPTIONS, *SENTINEL_OPTIONS, "db")
SHAPE = "redis://[user:password@]host[:port][/db]"

USED = names(
    """
    redisHost redisPort redisUsername redisPassword redisDB redisType enableTLS insecureSkipTLSVerify caCert
    clientCert clientKey useEntraID failover sentinelMasterName sentinelUsername sentinelPassword concurrency
    streamTTL
    """
)
IGNORED = {
    **ignored(
        "there is no pool of connections",
        "poolSize poolTimeout minIdleConns maxConnAge idleTimeout idleCheckFrequency",
    ),
    **ignored(
        "the times and repetitions of commands are fixed",
        "redisMaxRetries redisMinRetryInterval redisMaxRetryInterval maxRetries maxRetryBackoff dialTimeout "
        "readTimeout writeTimeout",
    ),
    **ignored("how many events wait here, concurrency and maxInFlight of a subscription say", "queueDepth"),
    **ignored("an event comes again after 15 s without a sign of life", "processingTimeout redeliverInterval"),
    **ignored("what is handled is deleted, and what is not never is; streamTTL says for how long", "maxLenApprox"),
}


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
        )

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the metadata of ``pubsub.redis``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        return cls(**_Reader(component, (*USED, *IGNORED)).read())  # type: ignore[arg-type]  # its keys are our fields


class _Reader(Settings):
    """Reads the settings of ``pubsub.redis``."""

    def read(self) -> dict[str, object]:
        """Give the fields of the configuration."""
        if (kind := self.text("redisType").lower() or "node") != "node":
            self.wrong("redisType", f"must be 'node', not {kind!r}: Redis Cluster is not supported")
        if self.flag("useEntraID"):
            self.wrong("useEntraID", "Entra ID is not supported")
        fields: dict[str, object] = {
            "username": self.component.setting("redisUsername") or None,
            "password": self.component.setting("redisPassword") or None,
            "db": self.number("redisDB") or 0,
            "max_in_flight": self.number("concurrency") or None,
            "max_age": self.duration("streamTTL") or None,
            "tls": self._tls(),
            "connect_wait": self.connect_wait,
            **self._place(),
        }
        self.finish()
        return fields

    def _place(self) -> dict[str, object]:
        text, master = self.text("redisHost"), self.text("sentinelMasterName")
        sentinel = self.flag("failover")
        if not text:
            self.wrong("redisHost", "redisHost is missing")
            return {}
        if sentinel and not master:
            self.wrong("failover", "needs sentinelMasterName, and in redisHost the Sentinels")
        default = self.number("redisPort") or (DEFAULT_SENTINEL_PORT if sentinel else DEFAULT_PORT)
        try:
            hosts = hosts_of(text, default)
        except ValueError:
            self.wrong("redisHost", f"is host:port, not {text!r}")
            return {}
        if sentinel:
            setting = self.component.setting
            known = (setting("sentinelUsername") or None, setting("sentinelPassword") or None)
            return {"sentinels": Sentinels(hosts, master, *known)}
        if len(hosts) > 1:
            self.wrong("redisHost", "is one host without 'failover': Redis Cluster is not supported")
        return {"host": hosts[0][0], "port": hosts[0][1]}

    def _tls(self) -> ssl.SSLContext | None:
        verify = not self.flag("insecureSkipTLSVerify")
        if not self.flag("enableTLS"):
            return None
        return self.tls("clientCert", "clientKey", ca="caCert", files=TLSFiles(verify=verify))
