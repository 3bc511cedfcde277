"""How to reach a server of AMQP 1.0."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

__all__ = ["Config"]


@dataclass(frozen=True, slots=True)
class Config:
    """How to connect.

    Attributes:
        host: Where.
        port: There.
        tls: None for plain TCP.
        user: Who logs in; None for nobody.
        password: Its password.
        idle: Seconds of silence, after which a connection is lost.
        connect_wait: Seconds that an attempt to connect may take.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    user: str | None
    password: str | None
    idle: float
    connect_wait: float

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'amqp' if self.tls is None else 'amqps'}://{host}:{self.port}"
