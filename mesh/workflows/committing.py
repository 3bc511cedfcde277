"""Writing instances to the store, as the owner of their partitions.

A step is one write: the record, on the condition that the partition's fence (`mesh/timers/fence.py`) is as this owner
has left it. Why that is enough: an owner takes the fence, and reads the instances then. What a former owner wrote
before that is what it reads; what such a one writes later conflicts. Of one instance at most one step is being written
at an owner. A write whose outcome is not known has the fence taken anew, so that it conflicts if it is yet to come; and
the instance is read again before anything else happens to it. Other writes that were on their way under the former
fence conflict as well, and are written again as they are, which nobody can have forestalled.
Reading begins with the fence, too: of what came between it and the next step, that would write over chunks and blobs.

What lies beside a record is written before it, under the fence as well, and means nothing without it. So whatever is
read is an instance as a step has left it.

What has ended is in a store of its own, under a fence of its own: it is written there, then deleted among what is live.
Where both are found, somebody was cut off in between, and what has ended counts; unless the other one is newer: the id
was used again since, or an owner of a version that does not look here has gone on. By clocks that differ it may seem so
only; then the last step is done again, of which nobody was told.

Writes of many instances that wait at the same time go out together (`mesh/workflows/group_commit.py`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

from msgspec.structs import replace

from mesh.deadlines import Deadlines
from mesh.errors import MeshError, StateLimitError
from mesh.ownership.errors import NotOwnerError
from mesh.store import Item, StateStore, Stored
from mesh.tasks import task_group
from mesh.timers.fence import Fence
from mesh.workflows import record
from mesh.workflows.contracts import Loaded, Saved
from mesh.workflows.errors import WorkflowTooLargeError, WorkflowUnreadableError
from mesh.workflows.group_commit import WRITE_SECONDS, GroupCommit
from mesh.workflows.reading import Beside
from mesh.workflows.record import Garbage, Kept, Keys, Plan, Record, decode, instance_of, plan
from mesh.workflows.state import State, Step

__all__ = ["Committer"]

logger = logging.getLogger(__name__)

PAGE = 200
AT_ONCE = 32  # Writes of one instance, of what lies beside its record.
CLEANING = 8  # Generations that are deleted at a time.
SHORTEST_TTL = 1.0
MARKED = 1000  # Ids of a partition that are remembered, at about 100 bytes each: 25 MB, should one node own all 256.


class _Owned:
    """A partition, with its fences in both stores, and what is known to be there.

    Attributes:
        marks: The ids of all records among what is live, and of some more; None = they are too many.
        marked: Whether a scan was there to find all, since when nobody else has written any.
    """

    __slots__ = ("ended", "live", "marked", "marks")

    def __init__(self, live: Fence, ended: Fence) -> None:
        self.live, self.ended = live, ended
        self.marks: set[str] | None = set()
        self.marked = False

    def mark(self, instance: str) -> None:
        """Take note that a record may be there from now on."""
        if self.marks is not None:
            self.marks.add(instance)
            if len(self.marks) > MARKED:
                self.marks = None

    def unmark(self, instance: str) -> None:
        """Take note that none is there: it was deleted, for sure."""
        if self.marks is not None:
            self.marks.discard(instance)

    def may_have(self, instance: str) -> bool:
        """Tell whether a record may be there."""
        return not self.marked or self.marks is None or instance in self.marks


class Committer:
    """Keeps the instances of a kind (a `mesh.workflows.contracts.Commits`), while it runs."""

    def __init__(
        self,
        kind: str,
        live: StateStore,
        ended: StateStore,
        clock: Callable[[], float] = time.time,
        *,
        seconds: float = WRITE_SECONDS,
    ) -> None:
        """Touch nothing yet.

        Args:
            kind: That of the partitions.
            live: Has the instances that have not been put away, and what lies beside all; with etags, transactions and
                listing of keys, which are dotted paths.
            ended: Has those that have been; as ``live``, and what is in it may expire.
            clock: Unix time in seconds.
            seconds: How long a write may take that nobody waits for. The others are bounded by who asks.
        """
        self._kind = kind
        self._keys = Keys(kind)
        self._live, self._ended = live, ended
        self._live_group, self._ended_group = GroupCommit(live, seconds), GroupCommit(ended, seconds)
        self._clock = clock
        self._seconds, self._deadlines = seconds, Deadlines()
        self._owned: dict[int, _Owned] = {}
        self._cleaning = asyncio.Semaphore(CLEANING)
        self._tasks: asyncio.TaskGroup | None = None
        self._background: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Write; leaving cancels what is being cleaned up, which the next owner does."""
        async with self._live_group.run(), self._ended_group.run(), task_group() as self._tasks:
            try:
                yield
            finally:
                self._tasks = None
                for task in self._background:
                    task.cancel()

    # Partitions

    async def take(self, partition: int, epoch: int, owns: Callable[[], bool]) -> None:
        """Begin to own a partition: from now on nothing is accepted that a former owner writes."""
        live = Fence(self._live, self._kind, partition, epoch, owns, self._live_group.write)
        await live.take()
        ended = Fence(self._ended, self._kind, partition, epoch, owns, self._ended_group.write)
        self._owned[partition] = _Owned(live, ended)

    def forget(self, partition: int) -> None:
        """Own it no more."""
        self._owned.pop(partition, None)

    async def scan(self, partition: int) -> AsyncIterator[tuple[str, State | None]]:
        """Give all that have not been put away; None = it cannot be read by this version."""
        owned = self._of(partition)
        async for key, value in self._pages(self._keys.live_in(partition)):
            instance = instance_of(key)
            owned.mark(instance)
            try:
                found = decode(instance, value)
                yield instance, await Beside(self._live, self._keys, partition, instance, found).state()
            except WorkflowUnreadableError as error:
                logger.warning("%s", error)
                yield instance, None
        owned.marked = True

    async def expiring(self, partition: int) -> AsyncIterator[tuple[float, str]]:
        """Give the instances that were put away and are to be deleted, with when, Unix time in seconds."""
        prefix = self._keys.expiring_in(partition)
        async for key, _ in self._pages(prefix):
            milliseconds, _, token = key.removeprefix(prefix).partition(".")
            yield int(milliseconds) / 1000, instance_of(token)

    async def _pages(self, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        after = ""
        while True:
            page = await self._live.scan(prefix, after, PAGE)
            for after, stored in page:
                yield after, stored.value
            if len(page) < PAGE:
                return

    # Instances

    async def load(self, partition: int, instance: str) -> Loaded | None:
        """Read one that has not been put away, or has: then by ``State.ended``."""
        owned = self._of(partition)
        await owned.live.take()  # What is still on its way under a former one must not come behind this.
        await owned.ended.take()
        with _Sizes(instance):  # An id may be too long.
            found = live = ended = None
            if owned.may_have(instance):
                found = await self._live.get(self._keys.live_of(partition, instance), strong=True)
                live = None if found is None else decode(instance, found.value)
            if live is None or _may_have_ended(live):
                found = await self._ended.get(self._keys.ended_of(partition, instance), strong=True)
                ended = None if found is None else decode(instance, found.value)
        if ended is not None and live is not None:
            if _written(live) > _written(ended):
                ended = None
            else:
                await self._bury(owned, partition, instance, ended)
        if (stored := ended or live) is None:
            return None
        loaded = await Beside(self._live, self._keys, partition, instance, stored).loaded()
        kept = replace(cast("Kept", loaded.saved), put_away=stored is ended)
        self._clean(partition, instance, kept)
        return dataclasses.replace(loaded, saved=kept)

    async def commit(self, partition: int, instance: str, saved: Saved | None, step: Step) -> Saved:
        """Write a step, all or nothing; ``saved`` is that of the step before, None for what is new."""
        owned, before = self._of(partition), cast("Kept | None", saved)
        made = plan(before, step)
        if before is not None and before.put_away:
            await self._unexpire(owned, partition, instance, before.until)  # Else it would end what begins now.
        with _Sizes(instance):
            await self._write_beside(owned, partition, instance, made)
            owned.mark(instance)
            await owned.live.write(Item(self._keys.live_of(partition, instance), made.record))
        if before is not None and before.put_away:
            try:
                await owned.ended.write(Item(self._keys.ended_of(partition, instance), None))
            except MeshError as error:  # It is written over once the instance has ended again.
                logger.info("the record of the former instance %r is left: %s", instance[:200], error)
        self._clean(partition, instance, made.kept)
        return made.kept

    async def end(self, partition: int, instance: str, saved: Saved, step: Step, until: float | None) -> Saved:
        """Write the last step of one that is not put away yet, and put it away with it: two writes, not three."""
        owned, made = self._of(partition), plan(cast("Kept", saved), step, until)
        with _Sizes(instance):
            await self._write_beside(owned, partition, instance, made)
            await self._move(owned, partition, instance, made.kept, made.record)
        self._clean(partition, instance, made.kept)
        return replace(made.kept, put_away=True)

    async def put_away(self, partition: int, instance: str, saved: Saved, state: State, until: float | None) -> None:
        """Move what has ended out of what ``scan`` gives; ``until`` when it is to be kept, None = for good."""
        kept = replace(cast("Kept", saved), until=until)
        await self._move(self._of(partition), partition, instance, kept, record.put_away(kept, state))

    async def purge(self, partition: int, instance: str) -> bool:
        """Delete all there is of one, whatever its state is; gives whether there was anything."""
        owned = self._of(partition)
        live, ended = self._keys.live_of(partition, instance), self._keys.ended_of(partition, instance)
        await owned.ended.take()  # What is still being put away under a former one must not come behind this.
        found, there = await self._live.get(live, strong=True), await self._ended.get(ended, strong=True)
        stored = _readable(instance, found or there)
        # What is left when this is cut off is found by the next purge, so what tells of the instance goes last; and it
        # is to be read, whatever is left of what lies beside it.
        emptied = None if stored is None else record.emptied(stored, self._clock())
        if emptied is not None:
            await owned.ended.write(Item(ended, emptied))
        if found is not None:
            await owned.live.write(Item(live, None))
            owned.unmark(instance)
        beside = [key async for key, _ in self._pages(self._keys.beside(partition, instance))]
        await _each(owned.live.write, [Item(key, None) for key in beside])
        if there is not None or emptied is not None:
            former = _readable(instance, there)
            await self._unexpire(owned, partition, instance, None if former is None else former.until)
            await owned.ended.write(Item(ended, None))
        return found is not None or there is not None or bool(beside)

    # Helping

    def _of(self, partition: int) -> _Owned:
        owned = self._owned.get(partition)
        if owned is None:
            raise NotOwnerError(f"this node does not own partition {partition} of {self._kind}")
        return owned

    async def _write_beside(self, owned: _Owned, partition: int, instance: str, made: Plan) -> None:
        if made.beside:
            begin = self._keys.beside(partition, instance, made.kept.generation)
            await _each(owned.live.write, [Item(begin + name, value) for name, value in made.beside])

    async def _move(self, owned: _Owned, partition: int, instance: str, kept: Kept, value: bytes) -> None:
        ttl = None
        if kept.until is not None and not kept.fat:
            ttl = max(SHORTEST_TTL, kept.until - self._clock())
        await owned.ended.write(Item(self._keys.ended_of(partition, instance), value, ttl=ttl))
        await self._bury(owned, partition, instance, kept)

    async def _bury(self, owned: _Owned, partition: int, instance: str, kept: Kept | Record) -> None:
        """Have no record of it left but the one among those that have ended."""
        if kept.until is not None and kept.fat:
            await owned.live.write(Item(self._keys.expiring_of(partition, instance, kept.until), b""))
        await owned.live.write(Item(self._keys.live_of(partition, instance), None))
        owned.unmark(instance)

    async def _unexpire(self, owned: _Owned, partition: int, instance: str, until: float | None) -> None:
        if until is not None:
            key = self._keys.expiring_of(partition, instance, until)
            if await self._live.get(key, strong=True) is not None:
                await owned.live.write(Item(key, None))

    def _clean(self, partition: int, instance: str, kept: Kept) -> None:
        """Begin to delete what former generations have left."""
        for each in kept.garbage:
            if self._tasks is not None and not each.cleaning and not each.gone:
                each.cleaning = True
                task = self._tasks.create_task(self._delete(partition, instance, each), name="workflows-clean")
                self._background.add(task)
                task.add_done_callback(self._background.discard)

    async def _delete(self, partition: int, instance: str, garbage: Garbage) -> None:
        begin = self._keys.beside(partition, instance, garbage.old.generation)
        try:
            async with self._cleaning:
                owned = self._of(partition)
                write = partial(self._deadlines.within, self._seconds, owned.live.write)
                await _each(write, [Item(begin + name, None) for name in garbage.old.names()])
            garbage.gone = True
        except MeshError as error:
            logger.info("a former generation of workflow instance %r is left for now: %s", instance[:200], error)
        finally:
            garbage.cleaning = False


async def _each(write: Callable[[Item], Awaitable[None]], items: Sequence[Item]) -> None:
    """Write several, some at a time."""
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await write(item)

    async with task_group() as tasks:
        for _ in range(min(AT_ONCE, len(items))):
            tasks.create_task(work(), name="workflows-write")


class _Sizes:
    """Says of what the store cannot take which instance it is of."""

    __slots__ = ("_instance",)

    def __init__(self, instance: str) -> None:
        self._instance = instance

    def __enter__(self) -> None:
        """Begin; a generator for it takes longer."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StateLimitError):
            text = f"workflow instance '{self._instance[:200]}' cannot be stored: {error}"
            raise WorkflowTooLargeError(text) from error


def _may_have_ended(live: Record) -> bool:
    """Tell whether ``Committer.end`` may have been cut off behind it."""
    state = live.state  # Without its inbox; and without its outbox, where it is spilled.
    return bool(live.inbox or live.spilled is not None or state.wants_owner or state.due is not None)


def _written(found: Record) -> tuple[int, float]:
    return found.state.generation, found.state.updated


def _readable(instance: str, stored: Stored | None) -> Record | None:
    try:
        return None if stored is None else decode(instance, stored.value)
    except WorkflowUnreadableError:
        return None
