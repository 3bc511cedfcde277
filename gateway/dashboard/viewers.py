"""Who looks on: what each is still to be told, with a bound to it, so that nobody who reads slowly holds the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.errors import APIError

__all__ = ["Viewer", "Viewers", "event"]

MAX_VIEWERS = 32
MAX_EVENTS, MAX_BYTES = 1_000, 4 * 1024 * 1024
AT_ONCE_BYTES = 256 * 1024


def event(kind: str, data: bytes) -> bytes:
    """Write a server-sent event; ``data`` is JSON, which has no line breaks."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class Viewer:
    """What one who looks on is still to be told.

    Attributes:
        written: Writes what is told.
        closed: Whether nothing more is told.
    """

    def __init__(self, written: Callable[[str, bytes], bytes] = event) -> None:
        """Have nothing to tell yet.

        Args:
            written: Writes what is told, of its kind and its JSON; empty = it is left out.
        """
        self.written = written
        self._latest: dict[str, bytes] = {}
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._waiting = asyncio.Event()
        self.closed = False

    def close(self) -> None:
        """Tell nothing more: ``next`` returns at once."""
        self.closed = True
        self._waiting.set()

    def tell(self, kind: str, data: bytes) -> None:
        """Tell something, unless too much waits already: then it is counted."""
        if not (told := self.written(kind, data)):
            return
        if len(self._events) >= MAX_EVENTS or self._bytes + len(told) > MAX_BYTES:
            self._dropped += 1
        else:
            self._events.append(told)
            self._bytes += len(told)
        self._waiting.set()

    def renew(self, kind: str, data: bytes) -> None:
        """Tell something in place of the last one of its kind, if that still waits."""
        if told := self.written(kind, data):
            self._latest[kind] = told
            self._waiting.set()

    def take_dropped(self) -> int:
        """Give how many events were not told since this was asked last."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    async def next(self, seconds: float) -> bytes:
        """Give what is to be told next; empty after so many seconds without anything."""
        try:
            async with asyncio.timeout(seconds):
                await self._waiting.wait()
        except TimeoutError:
            return b""
        parts = [*self._latest.values()]
        self._latest.clear()
        size = 0
        while self._events and (not size or size + len(self._events[0]) <= AT_ONCE_BYTES):
            size += len(self._events[0])
            parts.append(self._events.popleft())
        self._bytes -= size
        if not self._events:
            self._waiting.clear()
        return b"".join(parts)


class Viewers:
    """All of them."""

    def __init__(self) -> None:
        """Have none yet."""
        self._all: set[Viewer] = set()

    @contextmanager
    def one(self, written: Callable[[str, bytes], bytes] = event) -> Iterator[Viewer]:
        """Let one look on while entered.

        Args:
            written: See `Viewer`.

        Raises:
            APIError: There may be no other one.
        """
        if len(self._all) >= MAX_VIEWERS:
            text = f"{MAX_VIEWERS} pages of this dashboard are open already; close one, or start another dashboard"
            raise APIError(503, "ERR_DASHBOARD_FULL", text)
        viewer = Viewer(written)
        self._all.add(viewer)
        try:
            yield viewer
        finally:
            self._all.discard(viewer)

    def renew(self, kind: str, data: bytes) -> None:
        """Tell all of them the latest of a kind."""
        for viewer in self._all:
            viewer.renew(kind, data)
