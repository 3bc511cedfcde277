"""When to look at which record: what the owner of a partition remembers of its timers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Hints", "due_hints", "hint"]

STALE = 1000  # So many more than twice what the last reading gave: many may have been overwritten or deleted since.
_TIME_BYTES = 8


def hint(due: int, rest: bytes) -> bytes:
    """Make a hint: it is one object, and sorts by its time.

    Args:
        due: When to look, Unix time in milliseconds.
        rest: The last two tokens of the record's key.
    """
    return max(0, due).to_bytes(_TIME_BYTES, "big") + rest


class Hints:
    """The hints of one partition, in a heap, and the hashes of the names in them; some 180 bytes each.

    Attributes:
        complete: Whether all records have been read, and neither too many hints nor names have come since.
    """

    __slots__ = ("_enough", "_fresh", "_heap", "_names", "complete")

    def __init__(self) -> None:
        """Begin with none, and with the records unread."""
        self.complete = False
        self._heap: list[bytes] = []
        self._names: set[int] = set()  # Of what was here since the last reading, be it gone.
        self._fresh: list[bytes] | None = None  # Those that came while the records were read.
        self._enough = STALE

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first(self) -> int | None:
        """The time of the next one."""
        return int.from_bytes(self._heap[0][:_TIME_BYTES], "big") if self._heap else None

    def push(self, due: int, rest: bytes) -> None:
        """Remember to look at a record."""
        made = hint(due, rest)
        heapq.heappush(self._heap, made)
        self._names.add(hash(rest))
        if self._fresh is not None:
            self._fresh.append(made)
        if max(len(self._heap), len(self._names)) > self._enough:
            self.complete = False

    def may_know(self, rest: bytes) -> bool:
        """Tell whether there may be a record, by the last two tokens of its key; else none was confirmed here."""
        return not self.complete or hash(rest) in self._names

    def pop(self) -> bytes:
        """Take the next one; gives the last two tokens of the record's key."""
        return heapq.heappop(self._heap)[_TIME_BYTES:]

    def reading(self) -> None:
        """Take note that reading begins, perhaps anew: what is pushed from now on it may not find."""
        self._fresh = []

    def read(self, found: Sequence[bytes]) -> None:
        """Keep what was found, and what has come since reading began, instead of what is here."""
        self._heap = [*found, *(self._fresh or ())]
        heapq.heapify(self._heap)
        self._names = {hash(each[_TIME_BYTES:]) for each in self._heap}
        self._fresh = None
        self._enough = 2 * len(self._heap) + STALE
        self.complete = True


def due_hints(of: Mapping[int, Hints], now: int, limit: int) -> Iterator[tuple[int, bytes]]:
    """Take those that are due, the earliest first; gives partitions and what ``pop`` gives.

    Args:
        of: The hints of each partition.
        now: Unix time in milliseconds.
        limit: The most to take.
    """
    if limit <= 0:
        return
    heads = [(first, partition) for partition, hints in of.items() if (first := hints.first) is not None]
    heapq.heapify(heads)
    while limit > 0 and heads and heads[0][0] <= now:
        _, partition = heads[0]
        yield partition, of[partition].pop()
        limit -= 1
        if (first := of[partition].first) is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (first, partition))
