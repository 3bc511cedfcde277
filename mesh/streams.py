"""The streams that clients hold open at a node, how many there may be, and how they end when it drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from mesh.errors import StreamEndedError

__all__ = ["DRAINS", "Streams"]

MAX_STREAMS = 1000
DRAINS = "this gateway ends; another one, or the one that comes after it, goes on"


class Streams:
    """Those of one node.

    Attributes:
        ending: Set when the node drains: then each finishes what is in flight, and ends.
        renewed: Set when resources have changed; then there is another one.
    """

    def __init__(self) -> None:
        """Have none yet."""
        self.ending, self.renewed = asyncio.Event(), asyncio.Event()
        self._open = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one open.

        Raises:
            StreamEndedError: There may be no other one.
        """
        if self.ending.is_set():
            raise StreamEndedError(DRAINS)
        if self._open >= MAX_STREAMS:
            raise StreamEndedError(f"this gateway has {MAX_STREAMS} streams already; end some")
        self._open += 1
        self._none.clear()
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._none.set()

    def renew(self) -> None:
        """Have those look at resources again that depend on them."""
        self.renewed.set()
        self.renewed = asyncio.Event()

    @asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """Let there be streams while entered; leaving ends them, and waits until they have."""
        try:
            yield
        finally:
            self.ending.set()
            await self._none.wait()
