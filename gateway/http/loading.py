"""Connections whose machinery is loaded when the first client needs it, so that a gateway without such pays nothing.

Source: docs/adr/0031-http2.md.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from mesh.registry import needs

__all__ = ["Connections", "Loading", "hand_over", "loaded"]

logger = logging.getLogger(__name__)

_importing = threading.Lock()
_T = TypeVar("_T")


async def loaded(load: Callable[[], _T]) -> _T:
    """Call what imports, in a thread, and one after the other.

    Two threads that import modules which need each other, from two ends, may see one that is half there.
    """

    def one_at_a_time() -> _T:
        with _importing:
            return load()

    return await asyncio.to_thread(one_at_a_time)


class Connections(Protocol):
    """What serves connections."""

    def __call__(self) -> asyncio.Protocol:
        """Make what serves one more."""

    def alive(self) -> int:
        """Give how many connections there are."""

    async def drain(self, seconds: float) -> None:
        """Close them: those that are busy once they are answered, or the time is over."""


class Loading:
    """What serves connections, once it is loaded; that is done in a thread, since it takes some ten milliseconds."""

    def __init__(self, load: Callable[[], Connections], tasks: asyncio.TaskGroup) -> None:
        """Prepare.

        Args:
            load: Called in a thread when the first connection is there.
            tasks: Where it is waited for.
        """
        self._loaded: Connections | None = None
        self._load, self._tasks = load, tasks
        self._loading: asyncio.Task[None] | None = None
        self._waiting: list[_Waiting] = []

    def __call__(self) -> asyncio.Protocol:
        """Make what serves one more, or has it wait."""
        return _Waiting(self) if self._loaded is None else self._loaded()

    def alive(self) -> int:
        """Give how many connections there are."""
        return len(self._waiting) if self._loaded is None else self._loaded.alive()

    def take(self, waiting: _Waiting) -> None:
        """Serve a connection as soon as that can be done; close it if that cannot be."""
        self._waiting.append(waiting)
        if self._loading is None:
            self._loading = self._tasks.create_task(self._run(), name="http2-load")

    async def _run(self) -> None:
        try:
            self._loaded = await loaded(self._load)
        except Exception as error:  # Of an installation that is not whole: everything else works on.
            lacks = (
                needs("HTTP/2", error.name or str(error)) if isinstance(error, ImportError) else "it cannot be loaded"
            )
            logger.exception("a client is refused, what serves HTTP/2 is not there: %s", lacks)
            for each in self._waiting:
                each.refuse()
            self._loading = None  # The next client has another try.
        else:
            for each in self._waiting:
                each.go_on(self._loaded())
        self._waiting.clear()

    async def drain(self, seconds: float) -> None:
        """Close what is there, also what waits."""
        if self._loading is not None:
            await asyncio.wait((self._loading,))
        if self._loaded is not None:
            await self._loaded.drain(seconds)


class _Waiting(asyncio.Protocol):
    def __init__(self, loading: Loading) -> None:
        self._loading = loading
        self._data = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.
        self._transport.pause_reading()
        self._loading.take(self)

    def data_received(self, data: bytes) -> None:
        self._data += data  # uvloop delivers what was there before the pause.

    def refuse(self) -> None:
        self._transport.abort()

    def go_on(self, protocol: asyncio.Protocol) -> None:
        if not self._transport.is_closing():
            hand_over(self._transport, protocol, self._data)
            self._transport.resume_reading()


def hand_over(transport: asyncio.Transport, protocol: asyncio.Protocol, data: bytes) -> None:
    """Let another protocol go on with a connection, beginning with what came already."""
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if data:
        protocol.data_received(data)
