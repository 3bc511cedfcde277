"""How to reach an MQTT server: read from a URL, or from the metadata of a component."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import ClassVar, Self

from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.mqtt import PORTS, MQTTServer, MQTTServerSettings, server_of
from brokers.shared.settings import Reading, layout_setting, tls_of, url_options
from brokers.shared.tls import TLS_OPTIONS
from mesh.errors import ConfigError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, DURATION, Setting, choice, ignored, setting, whole

__all__ = ["DAY", "MQTTConfig", "MQTTSettings"]

DAY = 24 * 3600.0
URL_OPTIONS = (*TLS_OPTIONS, "mqttVersion", "topicPrefix")
VERSIONS = ("", "5", "3.1.1")
MAX_EXPIRY = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class MQTTSettings(MQTTServerSettings):
    """Settings of ``pubsub.mqtt3`` with the mesh's layout."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("the mesh retries alike on every broker, see Resiliency", "backOffMaxRetries"),
        *ignored("deliveries are made with qos 1", "qos", anyway=("1",)),
    )

    url: str = setting(
        "url",
        "The server: `mqtt://user:password@host:port`, or `mqtts://…` with TLS; `tcp` and `ssl` mean the same.",
        required=True,
        default="",
        example="mqtt://localhost:1883",
    )
    layout: str = layout_setting()
    expiry: float = setting(
        "sessionExpiry", "How long a session outlives its connection; 60 s at least.", DURATION, default=7 * DAY
    )
    shared: bool = setting(
        "sharedSubscriptions",
        "Whether the instances of a group share a subscription; otherwise a group has one.",
        BOOLEAN,
        default=True,
    )
    prefix: str = setting(
        "topicPrefix", "Put before every topic: meshes that share a server stay apart.", default="", example="shop/"
    )
    version: str = setting(
        "mqttVersion",
        "Of the protocol; else the newest of the server.",
        choice("5", "3.1.1"),
        default="",
    )
    max_in_flight: int | None = setting(
        "maxInFlight",
        "Most events of a subscription at work at once at one instance; else what that says.",
        whole(),
        example="10",
    )


@dataclass(frozen=True, slots=True)
class MQTTConfig:
    """How to reach an MQTT server, and what a component asks of it.

    Attributes:
        host: Name or address.
        port: TCP port.
        username: None logs nobody in.
        password: Its proof.
        tls: TLS context; None for plain TCP.
        version: Of the protocol: ``5``, ``3.1.1``, or empty for the newest that the server knows.
        prefix: Put before every topic; ``{space}`` in it stands for ``Address.space``.
        retain: Whether the server keeps the last message of each topic for those who subscribe later.
        clean: Whether sessions end with their connection, so that what comes meanwhile is not delivered.
        shared: Whether the members of a group share a subscription; otherwise a group has one member.
        session_expiry: Seconds that the server keeps a session nobody is connected to.
        max_in_flight: Most deliveries at once of any subscription; None for what each asks for.
        connect_wait: Seconds that an attempt to connect may take.
        ping_interval: Seconds between signs of life; a server that misses two is reconnected to.
        will_delay: Seconds without a connection until other members take over what a member had.
        announce_every: Seconds between two announcements of a member that it has its session.
    """

    host: str = "localhost"
    port: int = PORTS["mqtt"]
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    version: str = ""
    prefix: str = ""
    retain: bool = False
    clean: bool = False
    shared: bool = True
    session_expiry: float = 7 * DAY
    max_in_flight: int | None = None
    connect_wait: float = CONNECT_WAIT
    ping_interval: float = 10.0
    will_delay: float = 2.0
    announce_every: float = 30.0

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtt' if self.tls is None else 'mqtts'}://{host}:{self.port}"

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read ``mqtt[s]://[user:password@]host[:port]``; options follow a ``?``.

        Raises:
            ConfigError: It is not such a URL; the message shows no credentials.
        """
        rest, _, query = url.partition("?")
        options = url_options("MQTT", query, URL_OPTIONS)
        fields = _fields(server_of(rest))
        files = tls_of(options, None if fields.pop("secure") else "mqtts")
        fields["tls"] = None if files is None else files.context()
        version = options.get("mqttVersion", "")
        if version not in VERSIONS:
            raise ConfigError(f"option mqttVersion is 5 or 3.1.1, not {version!r}")
        return cls(**fields, version=version, prefix=_checked_prefix(options.get("topicPrefix", "")))  # type: ignore[arg-type]  # its keys are our fields

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the metadata of ``pubsub.mqtt3``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        return cls(**_Reader(component, MQTTSettings).read())  # type: ignore[arg-type]  # its keys are our fields


def _fields(server: MQTTServer) -> dict[str, object]:
    return {each: getattr(server, each) for each in ("host", "port", "username", "password", "secure")}


def _checked_prefix(text: str) -> str:
    if text.startswith("$") or any(character in "+#" or ord(character) < 0x20 for character in text):
        raise ConfigError("topicPrefix does not begin with '$', and holds no '+', no '#' and no control character")
    return text


class _Reader(Reading[MQTTSettings]):
    """Reads the settings of ``pubsub.mqtt3``."""

    def read(self) -> dict[str, object]:
        """Give the fields of the configuration."""
        found, fields = self.found, self._server()
        secure = fields.pop("secure", False)
        tls = self.tls("clientCert", "clientKey", ca="caCert")
        if not secure and (given := [name for name in ("caCert", "clientCert", "clientKey") if self.text(name)]):
            self.wrong(given[0], "needs a url that begins with mqtts:// (or ssl://)")
        fields |= {
            "tls": tls if secure else None,
            "connect_wait": self.connect_wait,
            "version": found.version,
            "prefix": self._prefix(),
            "retain": found.retain,
            "clean": found.clean,
            "shared": found.shared,
            "max_in_flight": found.max_in_flight or None,
            "session_expiry": found.expiry,
        }
        self._check_qos()
        if not 60 <= found.expiry <= MAX_EXPIRY:
            self.wrong("sessionExpiry", "is 60 s at least, and 136 years at most")
        self.finish()
        return fields

    def _server(self) -> dict[str, object]:
        try:
            return _fields(server_of(self.found.url)) if self.found.url else {}
        except ConfigError as error:
            self.wrong("url", str(error))
            return {}

    def _prefix(self) -> str:
        try:
            return _checked_prefix(self.found.prefix)
        except ConfigError as error:
            self.wrong("topicPrefix", str(error))
            return ""

    def _check_qos(self) -> None:
        qos = self.text("qos") or "1"
        if qos not in ("1", "2"):
            what = "would lose messages; leave it out, or say 1" if qos == "0" else f"is 1, not {qos!r}"
            self.wrong("qos", what)
