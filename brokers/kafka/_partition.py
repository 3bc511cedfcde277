"""One partition in the hands of one member: what is fetched, begun, done, and what others have of it.

Kafka stores one offset per group and partition. Everything else that a successor must know goes
into the note beside it: what is done beyond the offset, how often something was tried, what a
member that is leaving still works on. While a member works, the note says up to where it may have
begun (``b``), so that what dies with it is known to have been tried.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import Any

import orjson

from mesh.broker import Message

__all__ = ["Item", "Partition", "State"]

MAX_NOTE_BYTES = 3900  # Kafka's own limit is 4,096 (offset.metadata.max.bytes).


class State(Enum):
    """Where an item stands."""

    READY = "ready"
    PARKED = "parked"  # An earlier one of its key is not done.
    BEGUN = "begun"
    DELAYED = "delayed"
    HELD = "held"  # Another member works on it.
    DONE = "done"


class Item:
    """One message that is not done."""

    __slots__ = ("attempt", "deadline", "key", "message", "offset", "partition", "size", "state", "timer")

    def __init__(self, partition: Partition, offset: int, message: Message, key: str | None) -> None:
        self.partition = partition
        self.offset = offset
        self.message = message
        self.key = key
        self.attempt = 0
        self.state = State.READY
        self.deadline = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.size = len(message.body)


class Partition:
    """What a member knows of a partition that it owns."""

    def __init__(self, number: int, offset: int, note: str) -> None:
        self.number = number
        self.top = offset
        self.items: dict[int, Item] = {}
        self.owned = True
        self.ready = 0
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

    def is_done(self, offset: int) -> bool:
        """Tell whether an earlier owner was done with it."""
        return any(begin <= offset < end for begin, end in self.skip)

    def add(self, item: Item) -> None:
        """Take a fetched item, with what is known of it."""
        offset = item.offset
        item.attempt = self.attempts.pop(offset, 0) + (offset < self.tried_below)
        self.items[offset] = item
        self.bytes += item.size
        held = self.held.pop(offset, None)
        if held is not None:
            item.attempt = held[0]
            item.state = State.HELD
            item.deadline = held[1]
        elif offset in self.due:
            item.state = State.DELAYED
            item.deadline = self.due.pop(offset)
        else:
            self.ready += 1
            if not item.attempt:
                return
        self.touched = offset

    def remove(self, item: Item) -> None:
        """Be done with an item."""
        if self.items.pop(item.offset, None) is not None:
            self.bytes -= item.size

    def note(self, node: str, window: int | None) -> tuple[int, str]:
        """Give the offset to commit, and the note beside it.

        Args:
            node: This node.
            window: How far ahead may be begun; None when nothing more will be.
        """
        low = self.low
        if window is None and not self.items and not self.skip and not self.held:
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
            if item.state is State.HELD:
                held.append((at, count, int(item.deadline * 1000), ""))
                continue
            if item.state is State.BEGUN and window is None:
                held.append((at, count, int((item.deadline + clock) * 1000), node))
                continue
            if item.state is State.DELAYED:
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
