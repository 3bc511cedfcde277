"""Connections of clients that speak HTTP/2, for whatever answers their requests.

Source: RFC 9113 sections 6.7 (PING), 6.8 (GOAWAY), 10.5 (denial of service). The state machine is
that of the Rust crate h2.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from httpunk import H2Server
from httpunk.asyncio import H2ServerProtocol
from httpunk.h2.server import ServerRequest

from gateway.http2.fields import CONNECTION_WINDOW_BYTES, LIST_FACTOR, SECTION_FACTOR, STREAM_WINDOW_BYTES, Frames
from gateway.http2.patience import HeldBack

__all__ = ["HTTP2Connections", "Handler", "Peer"]

logger = logging.getLogger(__name__)

MAX_STREAMS = 1000
MAX_CONNECTIONS = 1024
PREFACE_SECONDS = 10.0
CLOSING_SECONDS = 1.0
PREFACE_BYTES = 24
# A peer may vanish without a word, with streams open that wait for it: who is silent is asked whether it is there.
TICK_SECONDS = 10.0
PING_TICKS = 3  # So many of silence until it is asked, and at each one from there on.
LOST_TICKS = 5  # So many until it is given up.
PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00there?\x00\x00"
# What is held of an answer that its client does not read, however large a window it offers; there may be many of them.
UNREAD_BYTES = 128 * 1024

_HTTP_1 = re.compile(rb"(?!PRI )[A-Z]{3,}[A-Z-]* /")


class Peer(Protocol):
    """Who is at the other end of a connection, which is one object for all of its requests.

    Attributes:
        name: As the socket tells it.
        gone: Done once the connection is closed.
    """

    name: object
    gone: asyncio.Future[None]


Handler = Callable[[ServerRequest, Peer], Awaitable[None]]
"""Answers a request."""


class _Connection(HeldBack, H2ServerProtocol):
    """One client."""

    def __init__(self, connections: HTTP2Connections) -> None:
        super().__init__()
        self._connections = connections
        self._open = 0
        self._greeted = False
        self._wire: asyncio.Transport
        self.name: object = None
        self.gone: asyncio.Future[None]
        self._greeting: asyncio.TimerHandle
        self._tick: asyncio.TimerHandle
        self._silent_ticks = 0
        self._frames = Frames(connections.max_header_bytes * SECTION_FACTOR, PREFACE_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.
        self.name = transport.get_extra_info("peername")
        loop = asyncio.get_running_loop()
        self.gone = loop.create_future()
        self._greeting = loop.call_later(PREFACE_SECONDS, self.give_up)
        self._listen_on()
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._greeting.cancel()
        self._silent_ticks = 0
        if not self._greeted:
            self._greeted = True
            if self._connections.http_1 is not None and _HTTP_1.match(data):
                self._wire.write(self._connections.http_1)
                self._wire.close()
                return
            super().connection_made(self._wire)  # type: ignore[no-untyped-call]  # It is spoken to from here on.
        if not self._frames.take(data):
            self.give_up()
            return
        super().data_received(data)  # type: ignore[no-untyped-call]

    def connection_lost(self, exc: Exception | None) -> None:
        self._greeting.cancel()
        self._tick.cancel()
        self._connections.discard(self)
        self.gone.set_result(None)
        if self._serve_task is not None:
            super().connection_lost(exc)

    def eof_received(self) -> bool | None:
        return super().eof_received() if self._serve_task is not None else None  # type: ignore[no-untyped-call]

    def _listen_on(self) -> None:
        self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._listened)

    def _listened(self) -> None:
        """Count ticks, not seconds: of a process that stood still one passes, and what came meanwhile is read then."""
        self._silent_ticks += 1
        if self._silent_ticks > LOST_TICKS:
            logger.info(
                "a client of HTTP/2 did not answer %d pings: its connection is closed", LOST_TICKS - PING_TICKS + 1
            )
            self.give_up()
            return
        if self._silent_ticks >= PING_TICKS and self._serve_task is not None:
            self._wire.write(PING)  # Between frames: the library writes whole ones.
        self._listen_on()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._open

    def give_up(self) -> None:
        """Close it at once."""
        self._wire.abort()

    async def _make_server(self) -> H2Server:
        return H2Server(
            self,
            backend=self._backend,
            max_concurrent_streams=MAX_STREAMS,
            initial_window_size=STREAM_WINDOW_BYTES,
            initial_connection_window_size=CONNECTION_WINDOW_BYTES,
            max_header_list_size=self._connections.max_header_bytes * LIST_FACTOR,
            max_send_buf_size=UNREAD_BYTES,
            auto_date_header=False,
        )

    async def handle(self, request: Any) -> None:
        self._open += 1
        self._connections.told(self)
        try:
            await self._connections.handler(request, self)
        finally:
            self._open -= 1

    async def drained(self) -> None:
        """Take no more requests, and wait until open ones are answered. A failure is left to ``stopped``."""
        try:
            await self.graceful_shutdown()
        except Exception:  # One of many: the others are drained.
            logger.exception("a connection of HTTP/2 could not be drained, and is cut off")
        else:
            await self.wait_closed()

    async def stopped(self) -> None:
        """End whatever is left of it."""
        if self._serve_task is not None:
            self._serve_task.cancel()
        self.give_up()
        await self.wait_closed()


class HTTP2Connections:
    """Those that are open, of a bounded number: of too many, an idle one that was silent longest makes room."""

    def __init__(self, handler: Handler, max_header_bytes: int, http_1: bytes | None = None) -> None:
        """Prepare.

        Args:
            handler: Answers one request.
            max_header_bytes: Largest header section.
            http_1: What a client gets that begins with a request of HTTP/1.1; None = as others that are wrong.
        """
        self.http_1 = http_1
        self.handler = handler
        self.max_header_bytes = max_header_bytes
        self._open: dict[_Connection, None] = {}  # Those that have asked last stand last.

    def __call__(self) -> _Connection:
        """Make the protocol of a connection."""
        return _Connection(self)

    def add(self, connection: _Connection) -> None:
        """Note that one was opened."""
        if len(self._open) >= MAX_CONNECTIONS:
            silent = next((each for each in self._open if each.idle), connection)
            silent.give_up()
        self._open[connection] = None

    def discard(self, connection: _Connection) -> None:
        """Note that one was closed."""
        self._open.pop(connection, None)

    def told(self, connection: _Connection) -> None:
        """Note that one has asked something."""
        if self._open.pop(connection, 0) is None:
            self._open[connection] = None

    def alive(self) -> int:
        """Give how many connections there are."""
        return len(self._open)

    async def drain(self, seconds: float) -> None:
        """Close them: at once those that are idle, the others once they are answered or the time is over."""
        async with asyncio.TaskGroup() as tasks:
            draining = [tasks.create_task(each.drained(), name="http2-drain") for each in self._open]
            if draining:
                _, late = await asyncio.wait(draining, timeout=max(seconds, CLOSING_SECONDS if seconds > 0 else 0.01))
                for task in late:
                    task.cancel()
        async with asyncio.TaskGroup() as tasks:
            for each in list(self._open):
                tasks.create_task(each.stopped(), name="http2-stop")
