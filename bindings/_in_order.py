"""Reads partitions in order: an event after the application has taken the one before, and notes of what was taken."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, Protocol, Self, TypeVar

import msgspec

from mesh.blocks.binding_contract import BindingEvent, Reading
from mesh.errors import ConflictError, MeshError
from mesh.store import Concurrency, Item, StateStore

__all__ = ["AGAIN_SECONDS", "InOrder", "LONGEST_WAIT", "Notes", "patiently"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS, LONGEST_WAIT = 1.0, 15.0
NOTE_SECONDS = 1.0


class Mark(Protocol):
    """How far a partition has been read, as a value for JSON."""

    def before(self, other: Self, /) -> bool:
        """Tell whether the other one is further."""


M = TypeVar("M", bound=Mark)
_T = TypeVar("_T")


async def patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask until there is an answer; raises ``MeshError`` where asking again does not help."""
    told, wait = "", AGAIN_SECONDS
    while True:
        try:
            return await ask()
        except MeshError as error:
            if not error.retryable:
                raise
            if str(error) != told:
                logger.warning("asking again: %s", error)
            told = str(error)
        await asyncio.sleep(wait)
        wait = min(wait * 2, LONGEST_WAIT)


class Notes(Generic[M]):
    """What is noted of the partitions that a consumer reads.

    Attributes:
        records: Where the notes are.
        none: The mark of a partition of which nothing is noted.
    """

    def __init__(self, records: StateStore, place: str, none: M) -> None:
        """Prepare; all keys begin with the place."""
        self.records, self._place, self.none = records, place, none

    def key(self, partition: str) -> str:
        """Name a partition's note."""
        return f"{self._place}||{partition}"

    async def read(self, partition: str) -> M:
        """Read how far a partition was read."""
        found = await self.records.get(self.key(partition), strong=True)
        return self.none if found is None else msgspec.json.decode(found.value, type=type(self.none))

    async def first(self, key: str, value: object) -> None:
        """Write something, unless it is there."""
        with suppress(ConflictError):
            await self.records.write([Item(key, msgspec.json.encode(value), None, Concurrency.FIRST_WRITE)])

    async def write(self, partition: str, mark: M, ttl: float | None = None) -> None:
        """Write how far a partition was read.

        Args:
            partition: Its name.
            mark: How far.
            ttl: Seconds that the note is kept; None = for ever.

        Raises:
            ConflictError: Somebody else has read on.
            MeshError: The records cannot be reached.
        """
        key = self.key(partition)
        found = await self.records.get(key, strong=True)
        known = None if found is None else msgspec.json.decode(found.value, type=type(mark))
        if known == mark:  # By a write whose answer was lost.
            return
        if known is not None and not known.before(mark):
            raise ConflictError(f"{partition} was read by somebody else meanwhile")
        etag, first = (None, Concurrency.FIRST_WRITE) if found is None else (found.etag, None)
        await self.records.write([Item(key, msgspec.json.encode(mark), etag, first, ttl)])


class InOrder(Generic[M]):
    """Hands the events of a partition to the application.

    Attributes:
        mark: How far it was read.
        leaving: Set when nothing further is to be taken.
        handling: Whether something is under way that must not be cancelled when it is left.
    """

    def __init__(self, notes: Notes[M], partition: str, reading: Reading, leaving: asyncio.Event, shown: str) -> None:
        """Prepare; the last one names the partition in logs."""
        self._notes, self._partition, self._reading, self._shown = notes, partition, reading, shown
        self.mark = self._noted = notes.none
        self.leaving = leaving
        self.handling = False
        self._since = time.monotonic()  # When it was last noted, or tried.

    async def begin(self) -> None:
        """Find out how far it was read."""
        self.mark = self._noted = await patiently(lambda: self._notes.read(self._partition))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Do what must not be cancelled by leaving."""
        self.handling = True
        try:
            yield
        finally:
            self.handling = False

    async def take(self, events: Iterable[tuple[BindingEvent, M]]) -> bool:
        """Hand events over, one after the other, and note from time to time which were taken.

        Args:
            events: Each with the mark behind it.

        Returns:
            Whether all were taken before this is left.
        """
        for event, mark in events:
            if self.leaving.is_set() or not await self._hand(event):
                return False
            self.mark = mark
            if time.monotonic() >= self._since + NOTE_SECONDS:
                await self.note()
        return True

    async def note(self, ttl: float | None = None, *, must: bool = False) -> None:
        """Note what was taken.

        Args:
            ttl: Seconds that the note is kept; None = for ever.
            must: Whether it cannot wait for the next time.

        Raises:
            ConflictError: Somebody else has read on.
            MeshError: It must, and cannot.
        """
        self._since = time.monotonic()
        if not self._noted.before(self.mark):
            return
        try:
            await self._notes.write(self._partition, self.mark, ttl)
        except ConflictError:
            raise ConflictError(f"{self._shown} was read by somebody else meanwhile") from None
        except MeshError as error:
            if must:
                raise
            logger.warning("what was read of %s cannot be noted now: %s", self._shown, error)
        else:
            self._noted = self.mark

    async def _hand(self, event: BindingEvent) -> bool:
        """Hand an event over until it is taken; tell whether it was, before this is left."""
        wait = AGAIN_SECONDS
        while True:
            try:
                await self._reading.handle(event)
            except MeshError as error:
                logger.warning("%s waits for an event to be taken: %s", self._shown, error)
            else:
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.leaving.wait()
                    return False
            wait = min(wait * 2, LONGEST_WAIT)
