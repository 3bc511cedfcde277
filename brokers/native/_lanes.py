"""What a member of a consumer group has of one partition: what is next, what is unsettled, and who waits for whom."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from brokers.native._topics import Taken
from mesh.broker import Delivery
from mesh.errors import BrokerError

__all__ = ["Held", "LaneSource", "Partition", "Room", "Settler"]

WINDOW = 1000  # Offsets from the lowest that is unsettled: so many may come again after a crash.
ROOM_BYTES = 16 * 1024 * 1024
FIRST_BYTES = 1024 * 1024  # How large records are taken to be before any is seen.


class Room:
    """The bytes that a member's partitions may hold together.

    One that holds nothing takes a record even where there is no room, so that none waits for the others.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._taken = 0
        self._usual = FIRST_BYTES

    @property
    def left(self) -> bool:
        """Whether there is some."""
        return self._taken < ROOM_BYTES

    def records(self, most: int) -> int:
        """Give how many records may be taken next, of all partitions: those of a size as before fit in."""
        return max(1, min(most, (ROOM_BYTES - self._taken) // self._usual))

    def took(self, sizes: Sequence[int]) -> None:
        """Count what was taken."""
        self._taken += sum(sizes)
        self._usual = max(sizes, default=self._usual)

    def give_back(self, size: int) -> None:
        """Count what is held no longer."""
        self._taken -= size


@dataclass(slots=True, eq=False)
class Held:
    """A record that is unsettled.

    Attributes:
        record: As the client gives it.
        size: The bytes it takes.
        attempt: Which one is next, or now.
        waits: Whether it may be handed out when its turn comes; otherwise it is handed out, or about to be.
        timer: What brings it back later.
    """

    record: Any
    size: int
    attempt: int = 1
    waits: bool = True
    timer: asyncio.TimerHandle | None = None


class Partition:
    """One partition, for as long as it is this member's, and until somebody else had it.

    Records of one key follow each other, and those without a key do; in no order, each is for itself.

    Attributes:
        at: What the client names it by: on Kafka topic and number, of an event hub its name.
        next: The offset that is fetched next.
        committed: The offset that the group has there; None = nothing is committed.
        live: Whether it is this member's now.
        gone: Whether it will not be so again: what is handed out of it still, comes back to nobody.
    """

    def __init__(self, at: Any, position: int, committed: int | None, room: Room, *, ordered: bool) -> None:
        """Begin at a position."""
        self.at, self.next, self.committed = at, position, committed
        self.live = self.gone = False
        self._room, self._ordered = room, ordered
        self._unsettled: dict[int, Held] = {}
        self._lanes: dict[bytes | int | None, deque[Held]] = {}

    @property
    def low(self) -> int:
        """The lowest offset that is unsettled: what is committed."""
        return next(iter(self._unsettled), self.next)

    @property
    def full(self) -> bool:
        """Whether no more is to be fetched until some is settled."""
        return self.next - self.low >= WINDOW or bool(self._unsettled and not self._room.left)

    def goes_on_from(self, committed: int | None) -> bool:
        """Tell whether this is all still true of what the group has committed, and note that."""
        if committed is None or self.committed is None:
            return committed is self.committed
        if self.committed <= committed <= self.low:  # What is below is settled, whoever has committed it.
            self.committed = committed
            return True
        return False

    def _lane(self, record: Any) -> bytes | int | None:
        key: bytes | int | None = record.key if self._ordered else record.offset
        return key

    def admit(self, records: Sequence[Any], sizes: Sequence[int]) -> Iterator[Held]:
        """Take what was fetched, of so many bytes each; give those whose turn it is."""
        self._room.took(sizes)
        for record, size in zip(records, sizes, strict=True):
            held = Held(record, size)
            self._unsettled[record.offset] = held
            self.next = record.offset + 1
            lane = self._lanes.setdefault(self._lane(record), deque())
            lane.append(held)
            if len(lane) == 1:
                yield held

    def settle(self, held: Held) -> Held | None:
        """Be done with a record; give the one whose turn it is then."""
        record = held.record
        if self._unsettled.pop(record.offset, None) is None:
            return None
        self._room.give_back(held.size)
        key = self._lane(record)
        lane = self._lanes[key]
        lane.popleft()
        if lane:
            return lane[0]
        del self._lanes[key]
        return None

    def heads(self) -> Iterator[Held]:
        """Give those whose turn it is and that nobody has."""
        return (lane[0] for lane in self._lanes.values() if lane[0].waits)

    def forget(self) -> None:
        """Hold nothing any more, and bring nothing back."""
        self.gone = True
        for held in self._unsettled.values():
            self._room.give_back(held.size)
            if held.timer is not None:
                held.timer.cancel()
        self._unsettled.clear()
        self._lanes.clear()


class LaneSource(ABC):
    """Hands out the records whose turn it is, of all partitions of a member: a ``Source``."""

    def __init__(self) -> None:
        """Begin without any."""
        self._room = Room()
        self._ready: deque[tuple[Partition, Held]] = deque()
        self._wake = asyncio.Event()
        self._dirty = asyncio.Event()  # Something was settled.
        self._failed: BrokerError | None = None
        self._stopping = False

    @abstractmethod
    async def _delivery(self, held: Held, settler: Settler) -> Delivery | None:
        """Make the delivery of a record; None = it cannot be made now."""

    def _queue(self, partition: Partition, held: Held) -> None:
        """Have a record handed out, if its partition is this member's; else it is once that is so again."""
        if partition.live:
            held.waits = False
            self._ready.append((partition, held))
            self._wake.set()

    def _fail(self, error: BrokerError) -> None:
        """Have `take` raise this."""
        self._failed = error
        self._wake.set()

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for records whose turn it is; see ``Source`` of the layout."""
        while not self._stopping:
            taken: list[Taken] = []
            while self._ready and len(taken) < room:
                partition, held = self._ready.popleft()
                settler = Settler(self, partition, held)
                delivery = await self._delivery(held, settler)
                if delivery is None:
                    self.again(partition, held, 1.0)
                    continue
                taken.append(Taken(delivery, settler.release))
            if taken:
                return taken
            if self._failed is not None:
                raise self._failed
            self._wake.clear()
            await self._wake.wait()
        return ()

    async def stop(self) -> None:
        """Hand out no more."""
        self._stopping = True
        self._wake.set()

    def settle(self, partition: Partition, held: Held) -> None:
        """Be done with a record."""
        follower = partition.settle(held)
        if follower is not None:
            self._queue(partition, follower)
        self._dirty.set()

    def again(self, partition: Partition, held: Held, delay: float) -> None:
        """Hand a record out again, some seconds later; its lane waits for it."""
        if partition.gone:
            return
        if delay > 0:
            held.timer = asyncio.get_running_loop().call_later(delay, self._due, partition, held)
        else:
            self._due(partition, held)

    def _due(self, partition: Partition, held: Held) -> None:
        held.timer = None
        held.waits = True
        self._queue(partition, held)


class Settler:
    """Settles one record."""

    __slots__ = ("_held", "_partition", "_source")

    def __init__(self, source: LaneSource, partition: Partition, held: Held) -> None:
        """Prepare."""
        self._source, self._partition, self._held = source, partition, held

    async def ack(self) -> None:
        """Be done with it."""
        self._source.settle(self._partition, self._held)

    reject = ack  # Dead-lettering is the mesh's, before it.

    async def nack(self, delay: float) -> None:
        """Have it come again, some seconds later."""
        self._held.attempt += 1
        self._source.again(self._partition, self._held, delay)

    async def release(self) -> None:
        """Have it come again as one that was never tried."""
        self._source.again(self._partition, self._held, 0.0)

    async def extend(self) -> None:
        """Nothing: what a member has is its own while it lives."""
