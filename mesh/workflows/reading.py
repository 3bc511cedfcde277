"""Reading instances from the store, at any node: it need not own their partitions."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from msgspec.structs import replace

from mesh.errors import BadArgumentError, MeshError, StateError
from mesh.store import StateStore, Stored
from mesh.workflows.contracts import Loaded
from mesh.workflows.errors import WorkflowUnreadableError
from mesh.workflows.events import Event, Started
from mesh.workflows.record import (
    FIRST,
    BlobRef,
    Keys,
    Record,
    blob,
    chunk,
    decode,
    instance_of,
    kept_of,
    read_chunk,
    read_event,
    read_state,
    slot_part,
    unreadable,
    view_of,
)
from mesh.workflows.state import ENDED, State, View

__all__ = ["Beside", "Reader"]

logger = logging.getLogger(__name__)

PAGE = 200  # Records at a time.
BESIDE = 32  # Values at a time of what lies beside a record, each of up to 256 KiB.
TRIES = 5
MOST_READ = 10_000  # Records that one page reads.
_T = TypeVar("_T")


class Beside:
    """Reads what lies beside a record."""

    def __init__(self, store: StateStore, keys: Keys, partition: int, instance: str, record: Record) -> None:
        """Touch nothing yet."""
        self._store = store
        self._instance = instance
        self._record = record
        self._begin = keys.beside(partition, instance, record.state.generation)
        self._bytes = 0

    async def loaded(self) -> Loaded:
        """Read all.

        Raises:
            WorkflowUnreadableError: Something is missing: the instance has changed meanwhile, or is damaged.
            MeshError: The store failed.
        """
        state, inbox = await self._state()
        history = await self.history()
        size = self._bytes
        if inbox:
            state = replace(state, inbox=tuple(await self._whole(inbox)))
        return Loaded(state, history, kept_of(self._record, state, inbox, history, size))

    async def state(self) -> State:
        """Read the state; raises as ``loaded`` does."""
        state, inbox = await self._state()
        return replace(state, inbox=tuple(await self._whole(inbox))) if inbox else state

    async def history(self) -> Sequence[Event]:
        """Read the history; raises as ``loaded`` does."""
        stored: list[Event] = []
        for data in await self._read([chunk(number) for number in range(self._record.chunks)]):
            stored += self._decoded(read_chunk, data)
            self._bytes += len(data)
        return await self._whole([*stored, *self._record.tail])

    async def input(self) -> str | None:
        """Read the input; raises as ``loaded`` does."""
        events: Sequence[Event] = self._record.tail
        if self._record.chunks:
            events = self._decoded(read_chunk, (await self._read([chunk(0)]))[0])
        elif not events:
            events = (await self._state())[1]
        for each in events[:FIRST]:
            event = (await self._whole([each]))[0]
            if isinstance(event, Started):
                return event.input
        return None

    async def last(self) -> Event | None:
        """Read the last event of the history; raises as ``loaded`` does."""
        return (await self._whole(self._record.tail[-1:]))[0] if self._record.tail else None

    async def _state(self) -> tuple[State, Sequence[Event]]:
        spilled = self._record.spilled
        if spilled is None:
            return self._record.state, self._record.inbox
        whole = b"".join(await self._read([slot_part(spilled.slot, number) for number in range(spilled.count)]))
        if zlib.crc32(whole) != spilled.checksum:
            raise unreadable(self._instance, "its state is another one's")
        return self._decoded(read_state, whole)

    async def _whole(self, events: Sequence[Event]) -> Sequence[Event]:
        """Put large events in the place of what stands for them."""
        away = [each for each in events if isinstance(each, BlobRef)]
        if not away:
            return events
        names = [blob(number) for each in away for number in range(each.first, each.first + each.count)]
        parts = dict(zip(names, await self._read(names), strict=True))
        found: list[Event] = []
        for each in events:
            if isinstance(each, BlobRef):
                numbers = range(each.first, each.first + each.count)
                data = b"".join([parts[blob(number)] for number in numbers])
                self._bytes += len(data)
                each = self._decoded(read_event, data)
            found.append(each)
        return found

    def _decoded(self, read: Callable[[bytes], _T], data: bytes) -> _T:
        try:
            return read(data)
        except (ValueError, RecursionError) as error:
            raise unreadable(self._instance, str(error)) from None

    async def _read(self, names: Sequence[str]) -> list[bytes]:
        found: list[bytes] = []
        for start in range(0, len(names), BESIDE):
            page = names[start : start + BESIDE]
            for name, stored in zip(page, await self._get(page), strict=True):
                if isinstance(stored, MeshError):
                    raise stored
                if stored is None:
                    raise unreadable(self._instance, f"{self._begin}{name} is missing")
                found.append(stored.value)
        return found

    async def _get(self, names: Sequence[str]) -> Sequence[Stored | MeshError | None]:
        return await self._store.get_many([self._begin + name for name in names], strong=True)


class Reader:
    """Reads the instances of a kind."""

    def __init__(
        self, kind: str, live: StateStore, ended: StateStore, partition: Callable[[str], Awaitable[int]]
    ) -> None:
        """Touch nothing yet.

        Args:
            kind: That of the partitions.
            live: Has the instances that have not been put away, and what lies beside all.
            ended: Has those that have been.
            partition: Gives the partition of an instance.
        """
        self._keys = Keys(kind)
        self._live, self._ended = live, ended
        self._partition = partition

    async def view(self, instance: str, *, texts: bool) -> View | None:
        """Look at one; without its ``texts``, input and output, by its record alone.

        Raises:
            WorkflowUnreadableError: It was written by a newer version, or is damaged.
            MeshError: The store failed.
        """

        async def look(beside: Beside, record: Record) -> View:
            if record.spilled is not None:
                record = replace(record, state=await beside.state())
            if not texts:
                return dataclasses.replace(view_of(instance, record), output=None)
            return view_of(instance, record, input=await beside.input(), last=await beside.last())

        return await self._look(instance, look)

    async def history(self, instance: str) -> tuple[View, Sequence[Event]] | None:
        """Read one with its history, as committed; raises as ``view`` does."""

        async def look(beside: Beside, record: Record) -> tuple[View, Sequence[Event]]:
            loaded = await beside.loaded()
            begun = next(
                (each for each in (*loaded.history[:8], *loaded.state.inbox) if isinstance(each, Started)), None
            )
            view = view_of(
                instance,
                replace(record, state=loaded.state),
                input=None if begun is None else begun.input,
                last=loaded.history[-1] if loaded.history else None,
            )
            return view, loaded.history

        return await self._look(instance, look)

    async def page(
        self,
        *,
        statuses: Collection[int] = (),
        name: str = "",
        created_from: float | None = None,
        after: str = "",
        limit: int = 100,
    ) -> tuple[Sequence[View], str]:
        """Look at many, without their texts; arguments as of `mesh.blocks.workflows.List`.

        Those that have not been put away come first, so that none is missed that is put away meanwhile; it may come
        twice. Gives the views, and what gives the next page, empty = there is none; a page may have few, or none, when
        few of those that were read are wanted. What cannot be read is left out.

        Raises:
            BadArgumentError: ``after`` is no page's.
            MeshError: The store failed.
        """
        views: list[View] = []
        read = 0
        filtered = bool(statuses or name or created_from is not None)
        for store, prefix in ((self._live, self._keys.live), (self._ended, self._keys.ended)):
            if after and not after.startswith(prefix):
                if store is self._ended:
                    raise BadArgumentError("no page of workflow instances ends there")
                continue
            if store is self._ended and statuses and ENDED.isdisjoint(statuses):
                break  # There is none.
            while True:
                if len(views) >= limit or read >= MOST_READ:
                    return views, after or prefix
                most = PAGE if filtered else min(PAGE, limit - len(views))
                page = await store.scan(prefix, after.removeprefix(prefix) and after, most)
                for key, stored in page:
                    if len(views) >= limit:
                        break
                    after, view = key, _shown(instance_of(key), stored)
                    if view is not None and _is_wanted(view.state, statuses, name, created_from):
                        views.append(view)
                if len(page) < most and len(views) < limit:
                    break
                read += len(page)
            after = ""
        return views, ""

    async def _look(self, instance: str, look: Callable[[Beside, Record], Awaitable[_T]]) -> _T | None:
        partition = await self._partition(instance)
        before: Stored | None = None
        for _ in range(TRIES):
            found = await self._found(partition, instance)
            if found is None:
                return None
            record = decode(instance, found.value)
            try:
                return await look(Beside(self._live, self._keys, partition, instance, record), record)
            except WorkflowUnreadableError:
                if before is not None and before.value == found.value:
                    raise  # It has not changed meanwhile: it is damaged.
            before = found
        raise StateError(f"workflow instance '{instance[:200]}' changes faster than it can be read: try again")

    async def _found(self, partition: int, instance: str) -> Stored | None:
        live, ended = self._keys.live_of(partition, instance), self._keys.ended_of(partition, instance)
        # It is put away by a write there, then a deletion here; and it may begin anew in between.
        return (
            await self._live.get(live, strong=True)
            or await self._ended.get(ended, strong=True)
            or await self._live.get(live, strong=True)
        )


def _shown(instance: str, stored: Stored) -> View | None:
    try:
        return dataclasses.replace(view_of(instance, decode(instance, stored.value)), output=None)
    except WorkflowUnreadableError as error:
        logger.warning("%s", error)
        return None


def _is_wanted(state: State, statuses: Collection[int], name: str, created_from: float | None) -> bool:
    return (
        (not statuses or state.status in statuses)
        and (not name or state.name == name)
        and (created_from is None or state.created >= created_from)
    )
