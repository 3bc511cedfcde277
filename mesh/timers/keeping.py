"""The timers of a kind, at this node: it keeps those of the partitions that it owns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

from mesh.errors import ConflictError, StateError
from mesh.ownership.errors import NotOwnerError, OwnerLostError
from mesh.store import Item, StateStore
from mesh.tasks import task_group
from mesh.timers.fence import Fence
from mesh.timers.firing import STORE_SECONDS, Fire, Firing, Held
from mesh.timers.reading import Reading
from mesh.timers.record import Record, Timer, TimerExistsError, prefix, record_key

__all__ = ["AT_ONCE", "Timers"]

logger = logging.getLogger(__name__)

AT_ONCE = 1000
DRAIN_SECONDS = 60.0
CANCEL_SECONDS = 1.0  # For what was in flight for longer, to end.
LATE_SECONDS = 30.0  # A write whose outcome is not known is done by then, or never.


class Timers:
    """Fires the timers of the partitions that this node owns (a `mesh.ownership.owning.Keeper`), while it runs."""

    def __init__(
        self,
        kind: str,
        records: StateStore,
        fire: Fire,
        sure: Callable[[int], bool],
        *,
        clock: Callable[[], float] = time.time,
        at_once: int = AT_ONCE,
        drain: float = DRAIN_SECONDS,
    ) -> None:
        """Prepare; nothing is read.

        Args:
            kind: The kind, as in ``mesh/ownership``.
            records: The mesh's own store, with etags and transactions, whose keys are dotted paths.
            fire: Fires a timer, in a time that it bounds itself. What it raises counts as ``FAILED``. It may put and
                delete timers, also the one that it fires.
            sure: Tells whether this node owns a partition now, for sure.
            clock: Unix time in seconds; it may be set.
            at_once: The most that are in flight.
            drain: Seconds that what is in flight has to end when a partition is left; then it is cancelled, and fires
                again at the next owner.
        """
        self._kind = kind
        self._records = records
        self._sure = sure
        self._clock = clock
        self._drain = drain
        self._putting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # By the records' keys.
        self._firing = Firing(kind, records, fire, sure, clock, at_once)
        self._reading = Reading(kind, records, self._firing)

    @property
    def known(self) -> int:
        """How many hints of timers there are here: those of some timers may be several."""
        return sum(len(held.hints) for held in self._firing.held.values())

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Fire what is due; leaving cancels what is in flight."""
        async with task_group() as tasks:
            working = [
                tasks.create_task(self._firing.work(tasks), name="timers-firing"),
                tasks.create_task(self._reading.work(), name="timers-reading"),
            ]
            try:
                yield
            finally:
                for task in working:
                    task.cancel()
                for partition in list(self._firing.held):
                    self.drop(partition)

    # A keeper

    def take(self, partition: int, epoch: int) -> None:
        """Begin: read the partition's timers, and fire what is due."""
        self.drop(partition)
        fence = Fence(self._records, self._kind, partition, epoch, lambda: self._owns(partition, held))
        held = self._firing.held[partition] = Held(epoch, fence)
        self._reading.look()

    async def leave(self, partition: int) -> None:
        """Begin no firing more; return once none is in flight, or was for ``drain`` seconds, and nothing is written.

        What fires may put and delete timers until it has ended.
        """
        if (held := self._firing.held.get(partition)) is None:
            return
        held.leaving = True
        if not await _within(self._drain, held.idle) and (late := held.cancel()):
            logger.warning("%d timers of %s were cut off: they fire again", late, self._kind)
            await _within(CANCEL_SECONDS, held.idle)
        held.closed = True
        await _within(STORE_SECONDS, held.written)  # Else the next owner, who reads it now, may not find what is.
        if self._firing.held.get(partition) is held:
            self.drop(partition)

    def drop(self, partition: int) -> None:
        """End at once."""
        if (held := self._firing.held.pop(partition, None)) is not None:
            held.cancel()

    # Timers

    async def put(self, partition: int, timer: Timer, *, overwrite: bool) -> None:
        """Keep a timer; at the owner of its partition.

        Raises:
            TimerExistsError: There is one, and it is not to be overwritten.
            NotOwnerError: This node is not sure to own the partition; nothing was done.
            OwnerLostError: It is not sure any more; it may have been done.
            MeshError: The store failed; it may have been done.
        """
        key = record_key(self._kind, partition, timer.key, timer.name)
        held = self._begin(partition)
        try:
            async with self._putting.setdefault(key, asyncio.Lock()):
                if not overwrite:
                    await self._check_free(held, partition, key)
                record = Record(timer, timer.timing.first, held.epoch)
                try:
                    await held.fence.write(Item(key, record.encode()))
                except NotOwnerError:
                    raise
                except BaseException:
                    self._hint(partition, key, max(record.due, self._clock() + LATE_SECONDS))
                    self._written(held, partition, key, record.due)
                    raise
                self._written(held, partition, key, record.due)
        finally:
            _end(held)
        self._check_owned(partition, held)

    def fires(self, partition: int, timer: Timer) -> bool:
        """Tell whether a timer that is being fired here is still what it was: not put anew or deleted since."""
        held = self._firing.held.get(partition)
        rest = _rest(record_key(self._kind, partition, timer.key, timer.name)).encode()
        look = None if held is None else held.firing.get(rest)
        return look is not None and not look.stale

    def _written(self, held: Held, partition: int, key: str, due: float) -> None:
        _outdate(held, key)
        self._hint(partition, key, due)

    async def _check_free(self, held: Held, partition: int, key: str) -> None:
        """Look that there is no timer: while its key is this put's alone, and the fence this owner's, none will be.

        It is no condition of the write, which has the fence: NATS stores what has two much slower.
        """
        await held.fence.take()
        if not held.hints.may_know(_rest(key).encode()):
            return
        if (found := await self._records.get(key, strong=True)) is None:
            return
        # It may come from a put whose answer was lost, here or at another node, and have no hint here.
        record = _record(key, found.value)
        self._hint(partition, key, record.due)
        raise TimerExistsError(f"there is a timer {record.timer.name!r} of {record.timer.key!r} already")

    async def get(self, partition: int, key: str, name: str) -> Timer | None:
        """Read a timer, at any node.

        Raises:
            MeshError: The store failed.
        """
        whole = record_key(self._kind, partition, key, name)
        found = await self._records.get(whole, strong=True)
        return None if found is None else _record(whole, found.value).timer

    async def delete(self, partition: int, key: str, name: str) -> bool:
        """Delete a timer, and tell whether there was one; at the owner of its partition. It may be firing just now.

        Raises:
            NotOwnerError: This node is not sure to own the partition; nothing was done.
            OwnerLostError: It is not sure any more; it may have been done.
            MeshError: The store failed; it may have been done.
        """
        whole = record_key(self._kind, partition, key, name)
        held = self._begin(partition)
        try:
            await held.fence.take()  # Else a put of a former owner may bring it back.
            while (found := await self._records.get(whole, strong=True)) is not None and self._sure(partition):
                try:  # What is written late, by a former owner, must not delete what was put at the next one.
                    await self._records.write([Item(whole, None, found.etag)])
                except ConflictError:  # It was moved on, or overwritten.
                    continue
                break
        finally:
            _outdate(held, whole)
            _end(held)
        self._check_owned(partition, held)
        return found is not None

    async def listed(self, partition: int | None, key: str | None, after: str, limit: int) -> Sequence[Timer]:
        """List timers, at any node, in the order of their partitions, keys and names; what is none is left out.

        Args:
            partition: Of a partition; None = of the kind.
            key: Of a key in the partition; None = of all.
            after: The ``record_key`` of the timer behind which to begin; empty = the first one.
            limit: The most to give.

        Raises:
            MeshError: The store failed.
        """
        begins, timers, left_out = prefix(self._kind, partition, key), list[Timer](), list[StateError]()
        while wanted := limit - len(timers):
            page = await self._records.scan(begins, after, wanted)
            for after, stored in page:
                try:
                    timers.append(_record(after, stored.value).timer)
                except StateError as error:
                    left_out.append(error)
            if len(page) < wanted:
                break
        if left_out:
            logger.warning("%d records of %s are left out of a list: %s", len(left_out), self._kind, left_out[0])
        return timers

    async def any(self) -> bool:
        """Tell whether there is a record of the kind, be it one that cannot be read; raises ``MeshError``."""
        return bool(await self._records.scan(prefix(self._kind), "", 1))

    # Helping

    def _begin(self, partition: int) -> Held:
        """Begin to write, as this node is sure to own a partition: ``leave`` waits for the end."""
        held = self._firing.held.get(partition)
        if held is None or held.closed or not self._sure(partition):
            raise NotOwnerError(f"this node does not own partition {partition} of {self._kind}")
        held.writing += 1
        held.written.clear()
        return held

    def _check_owned(self, partition: int, held: Held) -> None:
        if not self._owns(partition, held):
            raise OwnerLostError(f"partition {partition} of {self._kind} may have got another owner meanwhile")

    def _owns(self, partition: int, held: Held) -> bool:
        return self._firing.held.get(partition) is held and self._sure(partition)

    def _hint(self, partition: int, key: str, due: float) -> None:
        self._firing.hint(partition, due, _rest(key).encode())
        held = self._firing.held.get(partition)
        if held is not None and not held.hints.complete:
            self._reading.look()


def _outdate(held: Held, key: str) -> None:
    """Have what is being fired of a record, and has not begun, look at it anew."""
    if (look := held.firing.get(_rest(key).encode())) is not None:
        look.stale = True


def _end(held: Held) -> None:
    held.writing -= 1
    if not held.writing:
        held.written.set()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event; tells whether it came in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _rest(key: str) -> str:
    return ".".join(key.split(".")[-2:])


def _record(key: str, value: bytes) -> Record:
    try:
        return Record.decode(_rest(key), value)
    except ValueError as error:
        raise StateError(f"{key}: {error}") from error
