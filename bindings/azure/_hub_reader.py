"""Reads the partitions of an event hub for one consumer: each in turn, in order, with notes of what was taken."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from azure.eventhub import EventData

from bindings.azure._amqp import plain, texts
from bindings.azure._checkpoints import CheckpointPlace, checkpoints
from mesh.blocks.binding_contract import BindingError, BindingEvent, Reading
from mesh.blocks.store import Concurrency, Item, StateStore
from mesh.blocks.turns import in_turn
from mesh.errors import ConflictError, MeshError

__all__ = ["HubReader"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS, LONGEST_WAIT = 1.0, 15.0
NOTE_SECONDS = 1.0
QUIET_SECONDS = 15.0
LOOK_SECONDS = 60.0
BEGINNING = "-1"
_IOT = (
    "iothub-connection-device-id",
    "iothub-connection-auth-generation-id",
    "iothub-connection-auth-method",
    "iothub-connection-module-id",
    "iothub-enqueuedtime",
)


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


class HubReader:
    """Reads the partitions of a hub for one consumer.

    Attributes:
        hub: What is read.
        reading: Who takes the events.
        leaving: Set when nothing further is to be taken.
    """

    def __init__(self, hub: _Hub, reading: Reading, records: StateStore, place: str) -> None:
        """Prepare.

        Args:
            hub: What is read.
            reading: Who takes the events.
            records: Where is noted what was taken.
            place: What the keys of the notes begin with.
        """
        self.hub, self.reading, self._records, self._place = hub, reading, records, place
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
        key = f"{self._place}||begun"
        if await self._records.get(key, strong=True) is not None:
            return
        hub = self.hub
        known = {} if before is None else await checkpoints(before, hub.host, hub.hub, hub.group)
        for name in partitions:
            await self._first(self._key(name), Mark(*known[name]) if name in known else Mark(since=now))
        await self._first(key, True)

    async def _first(self, key: str, value: object) -> None:
        with suppress(ConflictError):
            await self._records.write([Item(key, msgspec.json.encode(value), None, Concurrency.FIRST_WRITE)])

    async def look(self, tasks: asyncio.TaskGroup) -> None:
        """Begin with each partition; look from time to time whether there are more."""
        while True:
            try:
                listed = await self.hub.partitions()
            except MeshError as error:
                if not error.retryable:
                    raise
                logger.warning("asking again: %s", error)
                listed = ()
            for name in listed:
                if name not in self._partitions:
                    made = self._partitions[name] = _Partition(self, name)
                    made.task = tasks.create_task(self._read(name, made), name="eventhubs-partition")
            await asyncio.sleep(LOOK_SECONDS if listed else LONGEST_WAIT)

    async def _read(self, name: str, partition: _Partition) -> None:
        """Read a partition when nobody else does; only the first that fails says so, and ends the reading."""
        try:
            await in_turn(self._records, f"{self._key(name)}||turn", partition.read, self.leaving)
        except MeshError as error:
            if not self._failed:
                self._failed = True
                raise
            logger.debug("the reading has ended: %s", error)

    def leave(self) -> None:
        """Take nothing further; what is being handled is waited for."""
        self.leaving.set()
        for partition in self._partitions.values():
            if not partition.handling:
                partition.task.cancel()

    async def mark(self, partition: str) -> Mark:
        """Read how far a partition was read; one that came later is read from its beginning."""
        found = await self._records.get(self._key(partition), strong=True)
        return Mark() if found is None else msgspec.json.decode(found.value, type=Mark)

    async def note(self, partition: str, mark: Mark) -> None:
        """Write how far a partition was read; raises ``ConflictError`` where somebody else has read on."""
        found = await self._records.get(self._key(partition), strong=True)
        if found is not None and msgspec.json.decode(found.value, type=Mark).number >= mark.number:
            raise ConflictError(f"partition {partition} of {self.hub.shown} was read by somebody else meanwhile")
        etag, first = (None, Concurrency.FIRST_WRITE) if found is None else (found.etag, None)
        await self._records.write([Item(self._key(partition), msgspec.json.encode(mark), etag, first)])

    def _key(self, partition: str) -> str:
        return f"{self._place}||{partition}"


class _Partition:
    """Reads one partition.

    Attributes:
        handling: Whether it must not be cancelled when it is left.
        task: Reads it.
    """

    task: asyncio.Task[None]

    def __init__(self, reader: HubReader, name: str) -> None:
        self._reader, self._name = reader, name
        self._shown = f"partition {name} of {reader.hub.shown}"
        self._mark = self._noted = Mark()
        self.handling = False

    async def read(self) -> None:
        """Read on from where it was read to, and again when the connection was lost."""
        self._mark = self._noted = await self._reader.mark(self._name)
        wait = AGAIN_SECONDS
        while not self._reader.leaving.is_set():
            before = self._mark
            try:
                async with self._reader.hub.arriving(self._name, self._mark.position) as queue:
                    await self._take(queue)
            except BindingError as error:
                if not error.retryable:
                    raise
                logger.warning("reading again: %s", error)
                wait = AGAIN_SECONDS if self._mark != before else min(wait * 2, LONGEST_WAIT)
                await asyncio.sleep(wait)

    async def _take(self, queue: asyncio.Queue[Any]) -> None:
        """Hand events over, one after the other, and note which were taken."""
        since, leaving = time.monotonic(), self._reader.leaving
        while not leaving.is_set():
            events = await self._next(queue)
            self.handling = True
            try:
                for event in events:
                    if leaving.is_set() or not await self._hand(event):
                        break
                    self._mark = Mark(str(plain(event.offset)), int(event.sequence_number or 0))
                    if time.monotonic() >= since + NOTE_SECONDS:
                        await self._note()
                        since = time.monotonic()
                if leaving.is_set() or queue.empty():
                    await self._note()
                    since = time.monotonic()
            finally:
                self.handling = False

    async def _next(self, queue: asyncio.Queue[Any]) -> Sequence[EventData]:
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                came = await queue.get()
        except TimeoutError:
            reason = f"the consumer group {self._reader.hub.group!r} may be read by somebody with an owner level"
            raise BindingError(f"{self._shown} cannot be opened: {reason}", retryable=True) from None
        if isinstance(came, BaseException):
            raise self._reader.hub.failed(came)
        return came  # type: ignore[no-any-return]  # as `arriving` says

    async def _hand(self, event: EventData) -> bool:
        """Hand an event over until it is taken; tell whether it was, before this is left."""
        made, wait = BindingEvent(_body(event), _told(event, all_of=self._reader.hub.properties)), AGAIN_SECONDS
        while True:
            try:
                await self._reader.reading.handle(made)
            except MeshError as error:
                logger.warning("%s waits for an event to be taken: %s", self._shown, error)
            else:
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._reader.leaving.wait()
                    return False
            wait = min(wait * 2, LONGEST_WAIT)

    async def _note(self) -> None:
        if self._noted == self._mark:
            return
        try:
            await self._reader.note(self._name, self._mark)
        except ConflictError:
            raise
        except MeshError as error:
            logger.warning("what was read of %s cannot be noted now: %s", self._shown, error)
        else:
            self._noted = self._mark


def _body(event: EventData) -> bytes:
    try:
        return texts(event.body)
    except ValueError:  # It has none.
        return b""


def _told(event: EventData, *, all_of: bool) -> Mapping[str, str]:
    """Give the metadata of an event."""
    told = dict(_properties(event.properties)) if all_of else {}
    system = {str(plain(name)): plain(value) for name, value in (event.system_properties or {}).items()}
    found = {
        "x-opt-sequence-number": event.sequence_number,
        "x-opt-offset": plain(event.offset),
        "x-opt-enqueued-time": _instant(event.enqueued_time) if event.enqueued_time else None,
        "x-opt-partition-key": plain(event.partition_key),
        "message-id": plain(event.message_id),
        **{name: system.get(name) for name in _IOT},
    }
    return {**told, **{name: _text(value) for name, value in found.items() if value is not None}}


def _properties(properties: Mapping[Any, Any] | None) -> Mapping[str, str]:
    return {str(plain(name)): _text(plain(value)) for name, value in (properties or {}).items() if value is not None}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _instant(value) if isinstance(value, datetime) else str(value)


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
