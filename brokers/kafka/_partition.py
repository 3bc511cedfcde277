"""One partition in the hands of one member: what is fetched, begun, done, and what others have of it.

Kafka stores one offset per group and partition. Everything else that a successor must know goes
into the note beside it: what is done beyond the offset, how often something was tried, what a
member that is leaving still works on. While a member works, the note says up to where it may have
begun (``b``), so that what dies with it is known to have been tried.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from typing import Any

import orjson

from mesh.broker import Message

__all__ = [
    "BEGUN",
    "DELAYED",
    "DONE",
    "HELD",
    "PARKED",
    "READY",
    "Chunk",
    "Item",
    "Partition",
    "State",
    "UnreadableError",
]

MAX_NOTE_BYTES = 3900  # Kafka's own limit is 4,096 (offset.metadata.max.bytes).


class State(Enum):
    """Where an item stands."""

    READY = "ready"
    PARKED = "parked"  # An earlier one of its key is not done.
    BEGUN = "begun"
    DELAYED = "delayed"
    HELD = "held"  # Another member works on it.
    DONE = "done"


READY, PARKED, BEGUN, DELAYED, HELD, DONE = State  # A lookup in the class takes long, and there are many.


class Item:
    """One message that is not done."""

    __slots__ = ("attempt", "deadline", "message", "offset", "partition", "state", "timer")

    def __init__(self, partition: Partition, offset: int, message: Message) -> None:
        self.partition = partition
        self.offset = offset
        self.message = message
        self.attempt = 0
        self.state = READY
        self.deadline = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Chunk:
    """What a fetch brought: its records are read when there is room for them.

    An object for each record of a whole fetch would keep the garbage collector busy.
    """

    __slots__ = ("records", "size", "top")

    def __init__(self, records: Iterator[Any], top: int, size: int) -> None:
        self.records = records
        self.top = top
        self.size = size


class UnreadableError(Exception):
    """What is stored there cannot be read."""


class Partition:
    """What a member knows of a partition that it owns.

    Attributes:
        fetched: The offset to fetch from.
        top: Below it, everything was read.
        retry: Set while what follows could not be read, and is not fetched again yet.
    """

    def __init__(self, number: int, offset: int, note: str) -> None:
        self.number = number
        self.fetched = self.top = offset
        self.unread: deque[Chunk] = deque()
        self.unread_bytes = 0
        self.retry: asyncio.TimerHandle | None = None
        self.items: dict[int, Item] = {}
        self.owned = True
        self.bytes = 0
        self.reserved = offset
        self.committed: tuple[int, str] | None = None
        self.skip: list[tuple[int, int]] = []
        self.attempts: dict[int, int] = {}
        self.due: dict[int, float] = {}
        self.held: dict[int, tuple[int, float, str]] = {}
        self.tried_below = offset
        self.touched = offset - 1  # Nothing after it was ever begun, held or delayed, so the note need not tell.
        if note:
            self._read(offset, note)

    def _read(self, low: int, note: str) -> None:
        try:
            said = orjson.loads(note)
        except ValueError:
            return  # Somebody else's note.
        if not isinstance(said, dict):
            return
        self.skip = [(low + begin, low + end) for begin, end in said.get("d", ())]
        self.attempts = {low + at: count for at, count in said.get("a", ())}
        self.due = {low + at: due / 1000 for at, due in said.get("w", ())}
        self.held = {low + at: (count, until / 1000, node) for at, count, until, node in said.get("h", ())}
        self.tried_below = low + said.get("b", 0)

    @property
    def low(self) -> int:
        """The first offset that is not done."""
        return next(iter(self.items)) if self.items else self.top

    def fetch(self, records: Iterator[Any], top: int, size: int) -> None:
        """Take what was fetched."""
        self.unread.append(Chunk(records, top, size))
        self.unread_bytes += size
        self.fetched = top

    def go_on_from(self, offset: int) -> None:
        """Fetch from there: what is between is gone."""
        self.fetched = offset
        if not self.unread:
            self.top = offset
            self.forget_passed()

    def read(self, count: int) -> list[Any]:
        """Read on: at most so many records, all of one chunk, of which there is one.

        Raises:
            UnreadableError: The next one cannot be read; those before it were given.
        """
        chunk = self.unread[0]
        found: list[Any] = []
        try:
            found.extend(islice(chunk.records, count))
        except Exception as error:
            if not found:
                self._read_anew(self.top)
                raise UnreadableError(repr(error)) from error
            self._read_anew(found[-1].offset + 1)  # The iterator has ended, but nothing may be passed over.
            return found
        if len(found) == count:
            self.top = found[-1].offset + 1
        else:
            self.unread.popleft()
            self.unread_bytes -= chunk.size
            self.top = chunk.top
        return found

    def _read_anew(self, offset: int) -> None:
        self.unread.clear()
        self.unread_bytes = 0
        self.fetched = self.top = offset

    def forget_passed(self) -> None:
        """Forget what the note told, as far as that was read or is gone."""
        self.skip = [each for each in self.skip if each[1] > self.top]
        self.attempts = {at: count for at, count in self.attempts.items() if at >= self.top}
        self.due = {at: due for at, due in self.due.items() if at >= self.top}
        self.held = {at: held for at, held in self.held.items() if at >= self.top}

    @property
    def told(self) -> bool:
        """Whether the note told something of what is not read yet."""
        return bool(self.skip or self.held or self.attempts or self.due)

    def is_done(self, offset: int) -> bool:
        """Tell whether an earlier owner was done with it."""
        return any(begin <= offset < end for begin, end in self.skip)

    def add(self, item: Item) -> None:
        """Take a fetched item, with what is known of it."""
        offset = item.offset
        if self.attempts or offset < self.tried_below:
            item.attempt = self.attempts.pop(offset, 0) + (offset < self.tried_below)
        self.items[offset] = item
        self.bytes += len(item.message.body)
        if not item.attempt and not self.held and not self.due:
            return
        held = self.held.pop(offset, None)
        if held is not None:
            item.attempt = held[0]
            item.state = HELD
            item.deadline = held[1]
        elif offset in self.due:
            item.state = DELAYED
            item.deadline = self.due.pop(offset)
        elif not item.attempt:
            return
        self.touched = offset

    def remove(self, item: Item) -> None:
        """Be done with an item."""
        if self.items.pop(item.offset, None) is not None:
            self.bytes -= len(item.message.body)

    def note(self, node: str, window: int | None) -> tuple[int, str]:
        """Give the offset to commit, and the note beside it.

        Args:
            node: This node.
            window: How far ahead may be begun; None when nothing more will be.
        """
        low = self.low
        if window is None and not self.items and not self.told:
            return low, ""
        done: list[Any] = []
        attempts: list[Any] = []
        due: list[Any] = []
        held: list[Any] = []
        last = low
        clock = time.time() - asyncio.get_running_loop().time()
        for offset, item in self.items.items():
            if offset > last:
                done.append((last - low, offset - low))
            last = offset + 1
            if offset > self.touched:
                last = self.top
                break
            at = offset - low
            count = item.attempt
            if item.state is HELD:
                held.append((at, count, int(item.deadline * 1000), ""))
                continue
            if item.state is BEGUN and window is None:
                held.append((at, count, int((item.deadline + clock) * 1000), node))
                continue
            if item.state is DELAYED:
                due.append((at, int(item.deadline * 1000)))
            if window is not None and offset < self.reserved:
                count -= 1  # Whoever finds this note adds it again.
            if count > 0:
                attempts.append((at, count))
        if self.top > last:
            done.append((last - low, self.top - low))
        done += [(max(begin, self.top) - low, end - low) for begin, end in self.skip if end > self.top]
        attempts += [(offset - low, count) for offset, count in self.attempts.items()]
        due += [(offset - low, int(when * 1000)) for offset, when in self.due.items()]
        held += [(at - low, count, int(until * 1000), by) for at, (count, until, by) in self.held.items()]
        said: dict[str, Any] = {}
        if window is not None:
            said["b"] = window
        parts: dict[str, list[Any]] = {"h": held, "a": attempts, "w": due, "d": done}
        said.update({name: value for name, value in parts.items() if value})
        text = orjson.dumps(said)
        for name in ("d", "w", "a", "h"):  # What does not fit is forgotten: it comes again, or earlier.
            while len(text) > MAX_NOTE_BYTES and name in said:
                said[name] = said[name][: len(said[name]) // 2]
                if not said[name]:
                    del said[name]
                text = orjson.dumps(said)
        return low, text.decode()
