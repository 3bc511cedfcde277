"""Who publishes next: the one that came first, also when a broken connection sends many back at once."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

__all__ = ["Line"]

Place = tuple[int, int]


class Line:
    """Those who want to publish, in the order of their numbers."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._entries = count(1)
        self._places: list[Place] = []  # A heap; its first is whose turn it is.
        self._gone: set[Place] = set()
        self._turns: dict[Place, asyncio.Future[None]] = {}

    def number(self) -> int:
        """Give a number behind all others."""
        return next(self._numbers)

    @contextmanager
    def place(self, number: int) -> Iterator[Place]:
        """Stand in line; others wait until this is left."""
        place = (number, next(self._entries))
        heapq.heappush(self._places, place)
        try:
            yield place
        finally:
            self._turns.pop(place, None)
            self._leave(place)

    def is_first(self, place: Place) -> bool:
        """Tell whether nobody is there with a lower number."""
        return self._places[0] == place

    async def first(self, place: Place) -> None:
        """Wait until nobody is there with a lower number."""
        while self._places[0] != place:
            self._turns[place] = turn = asyncio.get_running_loop().create_future()
            await turn

    def _leave(self, place: Place) -> None:
        self._gone.add(place)
        while self._places and self._places[0] in self._gone:
            self._gone.discard(heapq.heappop(self._places))
        if self._places and (turn := self._turns.get(self._places[0])) is not None and not turn.done():
            turn.set_result(None)
