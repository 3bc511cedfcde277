"""What both layouts of topics on an MQTT server have in common: its URL, settings, and what a topic may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from brokers.shared.tls import ca_setting, certificate_setting, key_setting
from mesh.errors import ConfigError
from mesh.resources.settings import BOOLEAN, setting

__all__ = ["PORTS", "UNCLEAN", "WEB_PORTS", "MQTTServer", "MQTTServerSettings", "server_of"]

PORTS = {"mqtt": 1883, "tcp": 1883, "mqtts": 8883, "ssl": 8883, "tls": 8883, "tcps": 8883}
WEB_PORTS = {"ws": 80, "wss": 443}
SECURE = frozenset({"mqtts", "ssl", "tls", "tcps", "wss"})
SHAPE = "an MQTT URL is mqtt://user:password@host:port, or mqtts://…"
# What MQTT strings may not, or should not hold: control characters and those that Unicode never assigns.
_UNASSIGNED = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
UNCLEAN = re.compile(f"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_UNASSIGNED}]")


@dataclass(frozen=True, slots=True)
class MQTTServer:
    """Where a server is, and who we are to it.

    Attributes:
        host: Name or address.
        port: TCP port.
        username: None logs nobody in.
        password: Its proof.
        secure: Whether it is reached by TLS.
        path: Of a WebSocket; empty = plain TCP.
    """

    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    secure: bool = False
    path: str = ""

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "ws" if self.path else "mqtt"
        return f"{scheme}{'s' if self.secure else ''}://{host}:{self.port}{self.path}"


def server_of(url: str, *, web: bool = False) -> MQTTServer:
    """Read a URL without options; Dapr's components write ``tcp`` and ``ssl`` for the scheme.

    Args:
        url: The text.
        web: Whether it may be that of a WebSocket.

    Raises:
        ConfigError: It is no such URL; the message shows nothing of it.
    """
    ports = {**PORTS, **WEB_PORTS} if web else PORTS
    try:
        parts = urlsplit(url)
        port = parts.port or ports[parts.scheme]
    except (KeyError, ValueError):  # Its text may hold a part of the password.
        raise ConfigError(SHAPE) from None
    of_web = parts.scheme in WEB_PORTS
    if parts.scheme not in ports or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(SHAPE)
    if parts.path.strip("/") and not of_web:
        raise ConfigError(SHAPE)
    return MQTTServer(
        parts.hostname,
        port,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        parts.scheme in SECURE,
        (parts.path if parts.path.strip("/") else "/mqtt") if of_web else "",
    )


@dataclass(frozen=True)  # Without slots: of several bases, only one may have them.
class MQTTServerSettings:
    """Settings of every layout."""

    retain: bool = setting(
        "retain", "Whether the server keeps the last message of a topic for later subscribers.", BOOLEAN, default=False
    )
    clean: bool = setting(
        "cleanSession",
        "Whether sessions end with their instance; what comes while none is connected is lost.",
        BOOLEAN,
        default=False,
    )
    ca: str | None = ca_setting()
    certificate: str | None = certificate_setting()
    key: str | None = key_setting()
