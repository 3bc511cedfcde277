"""Connections to applications as they are opened: a few at a time, and watched however long an answer takes.

Small servers let only some connections wait to be accepted: Python's ``http.server`` has room for five, and who comes
beyond them is left to retries of TCP, which double from a second on: of a hundred calls at once the last took a minute.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

__all__ = ["AT_ONCE", "NOTICED_SECONDS", "SECONDS", "Opening"]

AT_ONCE = 5
SECONDS = 0.005  # In which no more are opened.
# Seconds without a word, then seconds between probes, and how many of these stay unanswered: two minutes in all.
_PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
NOTICED_SECONDS = 120
_OPTIONS = [(getattr(socket, name), value) for name, value in _PROBES.items() if hasattr(socket, name)]
_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)


class Opening:
    """Opens connections to one address."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Prepare; arguments as of ``HTTPClient``."""
        self._to = host, port
        self._tls = tls
        self._room = asyncio.Semaphore(AT_ONCE)

    async def connect(self, made: Callable[[], _Protocol]) -> _Protocol:
        """Open one, once there is room.

        Raises:
            OSError, UnicodeError: As of the loop's ``create_connection``.
        """
        loop = asyncio.get_running_loop()
        await self._room.acquire()
        loop.call_later(SECONDS, self._room.release)
        transport, connection = await loop.create_connection(made, *self._to, ssl=self._tls)
        _probe(transport.get_extra_info("socket"))
        return connection


def _probe(opened: socket.socket) -> None:
    """Have the system look whether the other side is still there, and break the connection off where it is not."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _OPTIONS:
        opened.setsockopt(socket.IPPROTO_TCP, option, value)
