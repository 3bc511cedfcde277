"""What is on Kafka for a topic, and its records one after the other.

Kafka takes no single record away. Which ones were taken from a topic is kept by the offsets of a group of our own
(``mesh-dlq``), which reads nothing else: those before the offset of a partition, and behind it those that its note
lists. So a topic's other groups get them as ever, and the broker lets go of them by age.
"""

from __future__ import annotations

import asyncio
import bisect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from brokers.kafka._cluster import EARLIEST, LATEST, Cluster, error_of
from brokers.kafka._group import Lost, Membership, NewRound
from brokers.kafka._names import group_name, topic_name
from brokers.kafka._records import fetch_request, fetched, message_of, records
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError
from mesh.inspection import Letter, Pile, Standing

__all__ = ["DLQ_GROUP", "Inspection", "Records", "Taken"]

DLQ_GROUP = "mesh-dlq"
NO_GROUP = "Dead"
COORDINATOR_WITHIN = 10.0
EMPTY_FETCHES = 5  # One may be so although there is more; each waits a second.
MAX_NOTE = 4000  # A broker takes 4,096 bytes by default.
_NOTE = re.compile(r"\d{1,19}(-\d{1,19})?(,\d{1,19}(-\d{1,19})?)*", re.ASCII)
_T = TypeVar("_T")


class Taken:
    """Which offsets of a partition were taken: all before one, and some behind it, in ranges."""

    def __init__(self, before: int, note: str = "") -> None:
        """Begin with what was kept.

        Args:
            before: The first that is not known to be taken.
            note: Ranges behind it: ``12-15,18``. What is no such list counts as none.
        """
        self.before = before
        self._ranges: list[list[int]] = []
        if _NOTE.fullmatch(note):
            for part in note.split(","):
                first, _, last = part.partition("-")
                self._ranges.append([int(first), int(last or first)])
        if any(first > last for first, last in self._ranges):
            self._ranges = []
        self._join()

    def __contains__(self, offset: int) -> bool:
        at = bisect.bisect_right(self._ranges, [offset, 1 << 63])
        return offset < self.before or (at > 0 and self._ranges[at - 1][1] >= offset)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self._ranges)

    def add(self, first: int, last: int | None = None) -> None:
        """Note that one was taken, or all from one to another."""
        bisect.insort(self._ranges, [first, first if last is None else last])
        self._join()

    def joined(self, other: Taken) -> Taken:
        """Give what is taken by one or the other."""
        both = Taken(max(self.before, other.before))
        both._ranges = [list(each) for each in (*self._ranges, *other._ranges)]
        both._join()
        return both

    def _join(self) -> None:
        joined: list[list[int]] = []
        for first, last in sorted(self._ranges):
            if joined and first <= joined[-1][1] + 1:
                joined[-1][1] = max(joined[-1][1], last)
            else:
                joined.append([first, last])
        while joined and joined[0][0] <= self.before:
            self.before = max(self.before, joined.pop(0)[1] + 1)
        self._ranges = joined

    @property
    def note(self) -> str:
        """The ranges, as they are kept."""
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self._ranges)


class Inspection:
    """The part of the adapter that looks on."""

    _cluster: Cluster

    async def _state_of(self, group: str) -> str | None:
        raise NotImplementedError

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Look at a topic, and at the state of a group; see ``Inspectable``."""
        topic, there, differs = topic_name(address.text), None, ""
        if options is not None:
            states = {
                ordered: await self._state_of(group_name(address, options.group, ordered=ordered))
                for ordered in (True, False)
            }
            there = states[options.ordered] not in (None, NO_GROUP)
            if not there and states[not options.ordered] not in (None, NO_GROUP):
                other = not options.ordered
                differs = f"group {options.group!r} exists with ordered={other}, wanted {options.ordered}"
        exists = await self._cluster.find(topic)
        return Standing(f"topic {topic}", exists=exists, group=there, differs=differs)

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        """Go through a topic's records; what is removed is remembered by a group of our own."""
        topic = topic_name(address.text)
        group = Membership(self._cluster, DLQ_GROUP, topic)
        try:
            await self._cluster.refresh(topic)
            yield Records(self._cluster, group, topic, message_of)
        finally:
            await group.close()


def _altered(record: Any, message: Message) -> str:
    """Say what of a record a message cannot hold."""
    if record.value is None:
        return "its record has no value, which is not the same as an empty one"
    if len(dict(record.headers)) < len(record.headers):
        return "its record has several headers of one name"
    if record.key is not None and (message.key or "").encode(errors="surrogateescape") != record.key:
        return "its record has a key that is no text"
    try:
        for _, value in record.headers:
            value.decode()
    except (AttributeError, UnicodeDecodeError):  # The former: a header without a value.
        return "its record has a header that is no text"
    return ""


class Records:
    """The records of a topic that were not taken; a ``Pile``."""

    def __init__(self, cluster: Cluster, group: Membership, topic: str, read: Callable[[Any], Message]) -> None:
        """Prepare; ``read`` makes a message of a record."""
        self._cluster, self._group, self._topic, self._read = cluster, group, topic, read
        self._taken: dict[int, Taken] = {}
        self._ends: dict[int, int] = {}

    async def _look(self) -> None:
        partitions = range(self._cluster.partitions(self._topic))
        if self._ends or not partitions:
            return
        begins = await self._cluster.offsets(self._topic, dict.fromkeys(partitions, EARLIEST))
        kept = await self._patiently(lambda: self._group.committed(partitions))
        for number, begin in begins.items():
            offset, note = kept.get(number, (begin, ""))
            self._taken[number] = taken = Taken(offset, note)
            if begin > offset:  # Those were let go of by age.
                taken.add(offset, begin - 1)
        self._ends = await self._cluster.offsets(self._topic, dict.fromkeys(partitions, LATEST))

    async def count(self) -> int:
        """See ``Pile``."""
        await self._look()
        return sum(max(0, end - self._taken[each].before - len(self._taken[each])) for each, end in self._ends.items())

    async def __aiter__(self) -> AsyncIterator[Letter]:
        await self._look()
        for number, end in sorted(self._ends.items()):
            at, empty = self._taken[number].before, 0
            while at < end:
                found, top = records(await self._fetch(number, at), at)
                for record in found:
                    if record.offset < end and record.offset not in self._taken[number]:
                        name, message = f"{number}:{record.offset}", self._read(record)
                        yield Letter(name, message, record.timestamp / 1000, _altered(record, message))
                empty = empty + 1 if top <= at else 0
                if empty == EMPTY_FETCHES:
                    raise BrokerError(
                        f"topic {self._topic} on Kafka: partition {number} ends at offset {end}, but nothing from "
                        f"offset {at} on is read"
                    )
                at = top

    async def _fetch(self, number: int, offset: int) -> bytes:
        leader = self._cluster.leader(self._topic, number)
        if leader is None:
            raise self._cluster.unavailable(f"partition {number} of {self._topic} has no leader")
        response: Any = await self._cluster.call(
            leader, fetch_request([(self._topic, [(number, offset)])], 1.0), wait=1
        )
        for _, _, code, raw in fetched(response):
            if (failure := error_of(code)) is not None:
                raise BrokerError(f"topic {self._topic} on Kafka cannot be read: {failure.__name__}")
            return raw or b""
        return b""

    async def check(self, letters: Sequence[Letter]) -> Sequence[Letter]:
        """See ``Remembering``."""
        await self._with(letters)
        return letters

    async def remove(self, letters: Sequence[Letter]) -> None:
        """See ``Pile``."""
        taken = await self._with(letters)
        notes = {number: (each.before, each.note) for number, each in taken.items()}
        await self._patiently(lambda: self._group.commit(notes))
        self._taken.update(taken)

    async def _with(self, letters: Sequence[Letter]) -> dict[int, Taken]:
        """Add some to what is kept now of their partitions: somebody else may have taken some, too."""
        touched: dict[int, list[int]] = {}
        for each in letters:
            number, _, offset = each.id.partition(":")
            touched.setdefault(int(number), []).append(int(offset))
        kept, added = await self._patiently(lambda: self._group.committed(touched)), dict[int, Taken]()
        for at, offsets in touched.items():
            taken = added[at] = self._taken[at].joined(Taken(*kept.get(at, (0, ""))))
            for each_offset in offsets:
                taken.add(each_offset)
            if len(taken.note) > MAX_NOTE:
                raise PublishRejectedError(
                    f"too many records of {self._topic} were taken out of order to be remembered one by one: "
                    "take those before them as well, then it is one number"
                )
        return added

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the group's coordinator, which a cluster may have yet to choose."""
        deadline = asyncio.get_running_loop().time() + COORDINATOR_WITHIN
        while True:
            try:
                return await ask()
            except (Lost, NewRound) as error:
                raise self._cluster.unavailable(f"somebody takes part in the group {DLQ_GROUP}") from error
            except BrokerUnavailableError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await self._cluster.pause()
