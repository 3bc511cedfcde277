"""A member of a consumer group of an event hub.

Members note in blobs which partitions each has, and how far these were taken: up to before the first event that is
unsettled. A partition is read with the owner level that the vendor's processors have, so that the member that claimed
it last reads alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient

from brokers.clients.azure_amqp import plain
from brokers.clients.azure_checkpoints import BEGINNING, Checkpoint, Checkpoints, Ownership
from brokers.clients.eventhubs import QUIET_SECONDS, arriving
from brokers.native._eventhubs_shares import share_of
from brokers.native._lanes import Held, LaneSource, Partition, Settler
from brokers.shared.backoff import waits
from brokers.shared.limits import measure
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Delivery, Message
from mesh.errors import BrokerError, BrokerUnavailableError
from mesh.tasks import task_group

__all__ = ["Member", "Pace", "Place"]

logger = logging.getLogger(__name__)

OWNER_LEVEL = 0
EVENT_BYTES = 512  # What an event takes beside what it holds, about.
STOLEN = "link:stolen"
NOTE_SECONDS, NOTE_AGAIN_SECONDS = 0.5, 2.0
ROOM_SECONDS = 0.05
FINISH_SECONDS = 5.0
LIST_SECONDS = 60.0


class Pace(NamedTuple):
    """How members share; all of a group should agree.

    Attributes:
        look: Seconds between two looks at who has what.
        expires: Seconds after which a partition whose owner was silent is anybody's. Libraries say so every 10 or 30 s.
    """

    look: float = 10.0
    expires: float = 60.0


class Place(Protocol):
    """What a member asks of a hub."""

    async def partitions(self) -> Sequence[str]:
        """List them."""

    async def end(self, name: str) -> Checkpoint:
        """Tell where a partition ends now."""

    def failed(self, error: BaseException) -> BrokerError:
        """Make our error of the library's; one that cannot be tried again is no ``BrokerUnavailableError``."""


class _TakenOverError(Exception):
    """Another member reads the partition."""


class _Record(NamedTuple):
    """An event, as lanes know it: one without an order has a key of its own."""

    key: str | int | None
    offset: int
    value: bytes
    message: Message


@dataclass(slots=True, eq=False)
class _Share:
    """A partition that this member has.

    Attributes:
        name: Its name.
        lanes: What of it is unsettled.
        read: Behind what reading goes on.
        noted: How far it is noted as taken.
        owned: What the blob says.
        passed: Number and offset of events, from behind what is noted on.
        task: Reads it.
    """

    name: str
    lanes: Partition
    read: str | int
    noted: Checkpoint
    owned: Ownership
    passed: deque[Checkpoint] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None

    def taken(self) -> Checkpoint:
        """Tell up to where all is settled."""
        low, found = self.lanes.low, self.noted
        while self.passed and self.passed[0].number < low:
            found = self.passed.popleft()
        return found


class Member(LaneSource):
    """Takes events; those of one lane one after the other."""

    def __init__(
        self,
        place: Place,
        reader: Callable[[], EventHubConsumerClient],
        checkpoints: Checkpoints,
        address: Address,
        outage: Outage,
        *,
        pace: Pace,
        lane: Callable[[EventData], str | int | None],
        read: Callable[[EventData, str], Message],
    ) -> None:
        """Prepare; `joined` takes part.

        Args:
            place: The hub.
            reader: Makes what reads a partition, for the group.
            checkpoints: Of the group.
            address: Of the events.
            outage: Is told when the service is away.
            pace: How members share.
            lane: Tells which events follow each other; a number = none.
            read: Makes the message of an event, and is told its partition.
        """
        self._place, self._reader, self._checkpoints = place, reader, checkpoints
        self._address, self._outage, self._pace, self._lane, self._read = address, outage, pace, lane, read
        super().__init__()
        self._me = secrets.token_hex(16)
        self._names: Sequence[str] = ()
        self._asked = 0.0
        self._shares: dict[str, _Share] = {}
        self._leaving = asyncio.Event()

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[Member]:
        """Take part; left, what was settled is noted, and the partitions are given back."""
        await self._begin()
        async with task_group() as tasks:
            try:
                await self._claim(tasks)
                looking = tasks.create_task(self._look(tasks), name="eventhubs-look")
                noting = tasks.create_task(self._note_all(), name="eventhubs-note")
                try:
                    yield self
                finally:
                    self._leaving.set()
                    noting.cancel()
                    # What it claims meanwhile is given back, too.
                    await asyncio.wait([looking, noting], timeout=FINISH_SECONDS)
                    looking.cancel()
            finally:
                await self._leave()

    async def _begin(self) -> None:
        """Have a new group begin with what comes from now on.

        The first partition is noted last: once it is, the group has begun, and whatever is not noted was added later,
        or is that of a member of another kind, which notes what it took alone.
        """
        await self._checkpoints.make_container()
        names = await self._partitions()
        known = await self._checkpoints.read()
        if names[0] in known:
            return
        owned = (await self._checkpoints.owners()).of

        async def begin(name: str) -> None:
            begins = BEGINNING if name in owned else await self._place.end(name)
            await self._checkpoints.begin(name, begins)

        async with task_group() as tasks:
            for name in names[1:]:
                if name not in known:
                    tasks.create_task(begin(name), name="eventhubs-begin")
        await begin(names[0])

    async def _partitions(self) -> Sequence[str]:
        """List them; there may be more some day."""
        now = time.monotonic()
        if not self._names or now - self._asked >= LIST_SECONDS:
            try:
                self._names = await self._place.partitions()
            except BrokerUnavailableError:
                if not self._names:
                    raise
            self._asked = now
        return self._names

    async def _leave(self) -> None:
        """Note what was settled, then let others have the partitions."""

        async def give_back(share: _Share) -> None:
            try:
                await self._note(share)
                await self._checkpoints.claim(share.name, "", share.owned)
            except BrokerError as error:
                logger.warning("others have partition %s of %s later: %s", share.name, self._address.label, error)
            self._drop(share)

        async with asyncio.TaskGroup() as tasks:
            for share in tuple(self._shares.values()):
                tasks.create_task(give_back(share), name="eventhubs-leave")

    # Who has what

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        """Claim this member's share, again and again."""
        away = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.look * random.uniform(0.9, 1.1)):  # noqa: S311 - spreads the load
                    await self._leaving.wait()
                return
            try:
                await self._claim(tasks)
                away = False
            except BrokerUnavailableError as error:
                level = logging.DEBUG if away else logging.WARNING
                logger.log(level, "who has which partition of %s stays as it is: %s", self._address.label, error)
                away = True
            except BrokerError as error:
                self._fail(error)
                return

    async def _claim(self, tasks: asyncio.TaskGroup) -> None:
        names, (owned, now) = await self._partitions(), await self._checkpoints.owners()
        wanted = share_of(names, owned, self._me, now - self._pace.expires)
        if self._stopping:  # It keeps what it has, as that is being handled.
            wanted = [name for name in wanted if name in self._shares]
        got: dict[str, Ownership] = {}
        errors: list[BrokerError] = []

        async def claim(name: str) -> None:
            try:
                said = await self._checkpoints.claim(name, self._me, owned.get(name))
            except BrokerError as error:  # Then it may be this member's still, and not one more.
                errors.append(error)
                said = self._shares[name].owned if name in self._shares else None
            if said is not None:
                got[name] = said

        async with asyncio.TaskGroup() as claiming:
            for name in wanted:
                claiming.create_task(claim(name), name="eventhubs-claim")
        for name in [name for name in self._shares if name not in got]:
            self._drop(self._shares[name])
        known = await self._checkpoints.read() if got.keys() - self._shares.keys() else {}
        for name, said in got.items():
            if name in self._shares:
                self._shares[name].owned = said
            else:
                await self._have(name, said, known.get(name), tasks)
        if errors:
            raise errors[0]

    async def _have(self, name: str, said: Ownership, known: Checkpoint | None, tasks: asyncio.TaskGroup) -> None:
        """Begin with a partition: behind what was taken of it."""
        if known is None:
            known = BEGINNING
            await self._checkpoints.begin(name, known)
        lanes = Partition(name, known.number + 1, None, self._room, ordered=True)
        lanes.live = True
        share = self._shares[name] = _Share(name, lanes, known.offset or known.number, known, said)
        share.task = tasks.create_task(self._receive(share), name="eventhubs-partition")

    def _drop(self, share: _Share) -> None:
        """Be done with a partition that is somebody else's now: what is unsettled is theirs."""
        self._shares.pop(share.name, None)
        share.lanes.live = False
        share.lanes.forget()
        self._ready = deque(each for each in self._ready if each[0] is not share.lanes)
        self._outage.forget(share)
        if share.task is not None:
            share.task.cancel()

    # Reading

    async def _receive(self, share: _Share) -> None:
        """Read a partition, and again when the connection was lost."""
        pauses = waits()
        while True:
            before = share.read
            try:
                async with arriving(self._reader, share.name, share.read, OWNER_LEVEL) as queue:
                    while True:
                        self._admit(share, await self._next(queue))
                        while share.lanes.full:  # noqa: ASYNC110 - whatever is settled in it may make room
                            await asyncio.sleep(ROOM_SECONDS)
            except _TakenOverError:
                self._drop(share)  # If it is this member's all the same, the next look begins with it anew.
                return
            except BrokerUnavailableError as error:
                self._outage.lost(error, share)
            except BrokerError as error:
                self._fail(error)
                return
            if share.read != before:
                pauses = waits()
            await asyncio.sleep(next(pauses))

    async def _next(self, queue: asyncio.Queue[Any]) -> Sequence[EventData]:
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                came = await queue.get()
        except TimeoutError:
            raise BrokerUnavailableError("the service does not answer") from None
        if isinstance(came, BaseException):
            if getattr(came, "error", None) == STOLEN:
                raise _TakenOverError
            raise self._place.failed(came)
        return came  # type: ignore[no-any-return]  # as `arriving` says

    def _admit(self, share: _Share, events: Sequence[EventData]) -> None:
        self._outage.back(share)
        records = []
        for event in events:
            number = int(event.sequence_number or 0)
            message = self._read(event, share.name)
            records.append(_Record(self._lane(event), number, message.body, message))
            share.read = str(plain(event.offset))
            share.passed.append(Checkpoint(share.read, number))
        beside = [{**each.message.metadata, **each.message.headers} for each in records]
        sizes = [EVENT_BYTES + measure(each.value, more) for each, more in zip(records, beside, strict=True)]
        for held in share.lanes.admit(records, sizes):
            self._queue(share.lanes, held)

    async def _delivery(self, held: Held, settler: Settler) -> Delivery:
        return Delivery(held.record.message, self._address, held.attempt, settler)

    async def stop(self) -> None:
        """Take no more; the partitions stay this member's until what it has of them is settled."""
        await super().stop()
        for share in self._shares.values():
            if share.task is not None:
                share.task.cancel()

    # Notes

    async def _note_all(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            wait = NOTE_SECONDS
            for share in tuple(self._shares.values()):
                try:
                    await self._note(share)
                except BrokerError as error:
                    logger.debug("%s", error)
                    wait = NOTE_AGAIN_SECONDS
                    self._dirty.set()
            await asyncio.sleep(wait)

    async def _note(self, share: _Share) -> None:
        """Note how far a partition was taken."""
        before, taken = share.noted, share.taken()
        if taken == before or not share.lanes.live:
            return
        share.noted = taken  # So that, if it fails, `taken` gives this again.
        try:
            await self._checkpoints.write(share.name, taken)
        except BaseException:
            share.noted = before
            share.passed.appendleft(taken)
            raise
