"""Reads the partitions of an event hub for one consumer: each in turn, in order, with notes of what was taken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from azure.eventhub import EventData

from bindings._in_order import AGAIN_SECONDS, LONGEST_WAIT, InOrder, Notes
from bindings.azure._checkpoints import CheckpointPlace, checkpoints
from brokers.clients.azure_amqp import plain
from brokers.clients.eventhubs import QUIET_SECONDS, body_of, properties_of, told
from mesh.blocks.binding_contract import BindingError, BindingEvent, Reading
from mesh.errors import MeshError
from mesh.ownership.turns import in_turn
from mesh.store import StateStore

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners

__all__ = ["HubReader"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
BEGINNING = "-1"


class _Hub(Protocol):
    host: str
    hub: str
    group: str
    shown: str
    properties: bool

    def failed(self, error: BaseException) -> BindingError: ...

    async def partitions(self) -> Sequence[str]:
        """List those that are to be read."""

    def arriving(self, partition: str, after: str | int | datetime) -> AbstractAsyncContextManager[asyncio.Queue[Any]]:
        """Give what comes in a partition: lists of events, an empty one every few seconds without, and errors.

        An error is the end. Where the library cannot open the partition, it tells nothing: then nothing comes.
        """


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a partition has been read.

    Attributes:
        offset: Of the last event that was taken; empty = only its number is known.
        number: Its sequence number; -1 = none was taken, or only the offset is known.
        since: Time from which on events are read, where none was taken.
    """

    offset: str = BEGINNING
    number: int = -1
    since: float | None = None

    @property
    def position(self) -> str | int | datetime:
        """Behind what reading goes on."""
        return self.offset or self.number if self.since is None else datetime.fromtimestamp(self.since, UTC)

    def before(self, other: Mark) -> bool:
        """Tell whether the other one is further."""
        return self.number < other.number


class HubReader:
    """Reads the partitions of a hub for one consumer.

    Attributes:
        leaving: Set when nothing further is to be taken.
    """

    def __init__(self, hub: _Hub, reading: Reading, owners: Owners, records: StateStore, place: str) -> None:
        """Prepare.

        Args:
            hub: What is read.
            reading: Who takes the events.
            owners: By which each partition is read at one host at a time.
            records: Where is noted what was taken.
            place: What the keys of the notes begin with.
        """
        self._hub, self._reading, self._owners = hub, reading, owners
        # A partition that came later is read from its beginning.
        self._notes = Notes(records, place, Mark())
        self._partitions: dict[str, _Partition] = {}
        self.leaving = asyncio.Event()
        self._failed = False

    async def begin(self, partitions: Sequence[str], before: CheckpointPlace | None, now: float) -> None:
        """Find out where this consumer begins: where another reader was, or with what comes from now on.

        Args:
            partitions: All that the hub has now; what comes later is read from its beginning.
            before: Where the other reader left checkpoints.
            now: The time since which this one is there. The end of a partition would be told later.

        Raises:
            MeshError: That cannot be told.
        """
        notes, hub = self._notes, self._hub
        begun = notes.key("begun")
        if await notes.records.get(begun, strong=True) is not None:
            return
        known = {} if before is None else await checkpoints(before, hub.host, hub.hub, hub.group)
        for name in partitions:
            await notes.first(notes.key(name), Mark(*known[name]) if name in known else Mark(since=now))
        await notes.first(begun, True)

    async def look(self, tasks: asyncio.TaskGroup) -> None:
        """Begin with each partition; look from time to time whether there are more."""
        while True:
            try:
                listed = await self._hub.partitions()
            except MeshError as error:
                if not error.retryable:
                    raise
                logger.warning("asking again: %s", error)
                listed = ()
            for name in listed:
                if name not in self._partitions:
                    shown = f"partition {name} of {self._hub.shown}"
                    in_order = InOrder(self._notes, name, self._reading, self.leaving, shown)
                    made = self._partitions[name] = _Partition(self._hub, name, in_order, shown)
                    made.task = tasks.create_task(self._read(name, made), name="eventhubs-partition")
            await asyncio.sleep(LOOK_SECONDS if listed else LONGEST_WAIT)

    async def _read(self, name: str, partition: _Partition) -> None:
        """Read a partition when nobody else does; only the first that fails says so, and ends the reading."""
        try:
            key = f"{self._reading.component}||{self._notes.key(name)}"
            await in_turn(self._owners, key, partition.read, self.leaving)
        except MeshError as error:
            if not self._failed:
                self._failed = True
                raise
            logger.debug("the reading has ended: %s", error)

    def leave(self) -> None:
        """Take nothing further; what is being handled is waited for."""
        self.leaving.set()
        for partition in self._partitions.values():
            if not partition.in_order.handling:
                partition.task.cancel()


class _Partition:
    """Reads one partition.

    Attributes:
        in_order: Hands its events over.
        task: Reads it.
    """

    task: asyncio.Task[None]

    def __init__(self, hub: _Hub, name: str, in_order: InOrder[Mark], shown: str) -> None:
        self._hub, self._name, self.in_order, self._shown = hub, name, in_order, shown

    async def read(self) -> None:
        """Read on from where it was read to, and again when the connection was lost."""
        in_order = self.in_order
        await in_order.begin()
        wait = AGAIN_SECONDS
        while not in_order.leaving.is_set():
            before = in_order.mark
            try:
                async with self._hub.arriving(self._name, before.position) as queue:
                    await self._take(queue)
            except BindingError as error:
                if not error.retryable:
                    raise
                logger.warning("reading again: %s", error)
                wait = AGAIN_SECONDS if in_order.mark != before else min(wait * 2, LONGEST_WAIT)
                await asyncio.sleep(wait)

    async def _take(self, queue: asyncio.Queue[Any]) -> None:
        """Hand over what comes; note it at the latest when nothing further waits."""
        in_order = self.in_order
        while not in_order.leaving.is_set():
            events = await self._next(queue)
            with in_order.whole():
                if not await in_order.take(map(self._event, events)) or queue.empty():
                    await in_order.note()

    async def _next(self, queue: asyncio.Queue[Any]) -> Sequence[EventData]:
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                came = await queue.get()
        except TimeoutError:
            reason = f"the consumer group {self._hub.group!r} may be read by somebody with an owner level"
            raise BindingError(f"{self._shown} cannot be opened: {reason}", retryable=True) from None
        if isinstance(came, BaseException):
            raise self._hub.failed(came)
        return came  # type: ignore[no-any-return]  # as `arriving` says

    def _event(self, event: EventData) -> tuple[BindingEvent, Mark]:
        mark = Mark(str(plain(event.offset)), int(event.sequence_number or 0))
        beside = {**properties_of(event), **told(event)} if self._hub.properties else told(event)
        return BindingEvent(body_of(event), beside), mark
