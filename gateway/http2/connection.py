"""One connection of the HTTP/2 client: the library's driver of it, with windows and limits of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

from httpunk import H2Connection
from httpunk._httpunk import H2Streams
from httpunk.asyncio import H2ClientProtocol
from httpunk.exceptions import HTTPunkError
from httpunk.h2.client import Connection as LibraryDriver

from gateway.http.client import MAX_HEAD_BYTES
from gateway.http2.fields import (
    CONNECTION_WINDOW_BYTES,
    LIST_FACTOR,
    SECTION_FACTOR,
    STREAM_WINDOW_BYTES,
    Frames,
)
from gateway.http2.patience import HeldBack

__all__ = ["Connection", "Protocol", "close"]

MAX_FRAME_BYTES = 16 * 1024
CLOSING_SECONDS = 1.0


class _Driver(LibraryDriver):
    """The library's, in whose windows two streams that nobody reads would stop all others.

    Attributes:
        freed: Called when there may be room for a call, or no more of it ever.
    """

    freed: Callable[[], None]

    def __new__(cls, transport: object, **_: object) -> Self:
        state: Any = H2Streams  # Its stub does not tell how it is made.
        made: Self = state.__new__(
            cls,
            "client",
            initial_window_size=STREAM_WINDOW_BYTES,
            connection_window=CONNECTION_WINDOW_BYTES,
            max_frame_size=MAX_FRAME_BYTES,
            max_header_list_size=MAX_HEAD_BYTES * LIST_FACTOR,
            max_send_buf_size=STREAM_WINDOW_BYTES,
            data_frame_budget=None,
            enable_push=False,
        )
        return made

    def _on_slot_freed(self) -> None:
        super()._on_slot_freed()  # type: ignore[no-untyped-call]
        self.freed()

    def _on_conn_done(self) -> None:
        super()._on_conn_done()  # type: ignore[no-untyped-call]
        self.freed()


class Protocol(HeldBack, H2ClientProtocol):
    """The library's, with this driver; ends a connection whose header sections are too large."""

    def __init__(self, authority: str, scheme: str, freed: Callable[[], None]) -> None:
        super().__init__(authority=authority, scheme=scheme)
        self._freed = freed
        self._frames = Frames(MAX_HEAD_BYTES * SECTION_FACTOR)

    def data_received(self, data: bytes) -> None:
        """Look at what comes before the library does."""
        if self._frames.take(data):
            super().data_received(data)  # type: ignore[no-untyped-call]
        elif self._transport is not None:
            self._transport.abort()

    def _make_client(self) -> H2Connection:
        made: H2Connection = super()._make_client()  # type: ignore[no-untyped-call]
        made._conn = driver = _Driver(self, authority=self._authority, scheme=self._scheme, backend=self._backend)
        driver.freed = self._freed
        return made


class Connection:
    """A connection, how many calls are on it, and since when there is none."""

    __slots__ = ("_protocol", "_shared", "calls", "closing", "driver", "unused")

    def __init__(self, protocol: H2ClientProtocol, shared: H2Connection) -> None:
        self._protocol, self._shared = protocol, shared
        self.driver: Any = shared._conn
        self.calls = 0
        self.unused = 0.0
        self.closing: asyncio.TimerHandle | None = None

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls: it broke, or the other side is leaving and finishes what it has."""
        return self._shared.closed

    @property
    def free(self) -> bool:
        """Whether it takes a call now; that is so until something is awaited."""
        return bool(self.driver.can_open()) and not self._shared.closed

    async def close(self) -> None:
        """Take leave."""
        await close(self._protocol)


async def close(protocol: H2ClientProtocol) -> None:
    """Take leave, which the other side may not hear."""
    try:
        async with asyncio.timeout(CLOSING_SECONDS):
            await protocol.aclose()
    except (TimeoutError, HTTPunkError, OSError):
        transport: asyncio.Transport | None = protocol._transport
        if transport is not None:
            transport.abort()
