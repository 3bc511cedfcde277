"""What members of a group hold of a queue in a cloud, and have not begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mesh.errors import BrokerError

__all__ = ["GoneError", "Lanes"]

_Item = TypeVar("_Item")


class GoneError(BrokerError):
    """What a group takes from was deleted; subscribed again, it is made again."""

    retryable = True


class Lanes(Generic[_Item]):
    """Hands out the items of a lane one after the other, and those without a lane at once."""

    def __init__(self, lane: Callable[[_Item], str]) -> None:
        """Begin without any.

        Args:
            lane: Tells an item's; empty = it has none.
        """
        self._lane = lane
        self._items: deque[_Item] = deque()
        self._busy: set[str] = set()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[_Item]:
        return iter(tuple(self._items))

    def add(self, item: _Item) -> None:
        """Have one more, which came after all others."""
        self._items.append(item)

    def begin(self, most: int) -> list[_Item]:
        """Give what can be begun now; its lanes are busy until they are freed."""
        begun: list[_Item] = []
        left: deque[_Item] = deque()
        for item in self._items:
            lane = self._lane(item)
            if len(begun) == most or lane in self._busy:
                left.append(item)
                continue
            begun.append(item)
            if lane:
                self._busy.add(lane)
        self._items = left
        return begun

    def behind(self, item: _Item) -> list[_Item]:
        """Take out those of the same lane, which must not overtake one that is not done with."""
        lane = self._lane(item)
        found = [each for each in self._items if lane and self._lane(each) == lane]
        if found:
            self._items = deque(each for each in self._items if self._lane(each) != lane)
        return found

    def free(self, item: _Item) -> None:
        """Go on with its lane."""
        self._busy.discard(self._lane(item))

    def clear(self) -> list[_Item]:
        """Take out all."""
        found = [*self._items]
        self._items.clear()
        return found
