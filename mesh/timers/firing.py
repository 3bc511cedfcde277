"""Firing what is due: look at the record, fire, move the record on."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from mesh.errors import ConflictError, MeshError
from mesh.store import MAX_PARALLEL, Item, StateStore
from mesh.timers.hints import Hints, due_hints
from mesh.timers.record import Outcome, Record, Timer, milliseconds, record_of

__all__ = ["STORE_SECONDS", "Fire", "Firing", "Held"]

logger = logging.getLogger(__name__)

STORE_SECONDS = 5.0  # What one read or write may take.
LOOK_SECONDS = 5.0  # The clock may be set, and the machine sleeps: no wait for what is due is longer.
AWAY_SECONDS = 0.5  # Until a timer is tried again that nobody took, or whose record could not be read.
PAUSES = 0.05, 2.0  # Between tries, where nothing but that happens.
MISSES = 3  # In a row, then it pauses.
_NEVER = 2**63
_T = TypeVar("_T")

Fire = Callable[[Timer], Awaitable[Outcome]]


class Held:
    """A partition that this node owns.

    Attributes:
        epoch: In which it is owned.
        hints: When to look at which record.
        firing: What is in flight, by the last two tokens of the records' keys.
        again: What of it must be looked at once more, since its time came in the middle of it.
        popped: When a hint was taken of what is looked at later, in milliseconds: the clock may be set back until then.
        writing: What was asked of the store for those who put and delete.
        leaving: Whether no firing more is begun.
        closed: Whether nothing more is put or deleted either.
    """

    __slots__ = ("again", "closed", "epoch", "firing", "hints", "leaving", "popped", "writing")

    def __init__(self, epoch: int) -> None:
        """Begin with nothing."""
        self.epoch = epoch
        self.hints = Hints()
        self.firing: dict[bytes, asyncio.Task[None]] = {}
        self.again: set[bytes] = set()
        self.popped: dict[bytes, int] = {}
        self.writing: set[asyncio.Future[None]] = set()
        self.leaving = self.closed = False


class Firing:
    """Fires what is due in the partitions that are held.

    Attributes:
        held: Those, by number.
    """

    def __init__(
        self,
        kind: str,
        records: StateStore,
        fire: Fire,
        sure: Callable[[int], bool],
        clock: Callable[[], float],
        at_once: int,
    ) -> None:
        """Prepare; the arguments are those of ``Timers``."""
        self.held: dict[int, Held] = {}
        self._kind = kind
        self._records = records
        self._fire = fire
        self._sure = sure
        self._clock = clock
        self._at_once = at_once
        self._in_flight = 0
        self._changed = asyncio.Event()
        self._wakes = _NEVER  # The time of the hint that is waited for.
        self._asking = asyncio.Semaphore(MAX_PARALLEL)
        self._missed: deque[tuple[float, int, Held, bytes]] = deque()  # With the time when it is tried again.
        self._misses = 0
        self._paused_until = -math.inf

    def hint(self, partition: int, due: float, rest: str | bytes) -> None:
        """Remember to look at a record at a Unix time, where the partition is held."""
        if (held := self.held.get(partition)) is not None:
            self._push(held, milliseconds(due), rest if isinstance(rest, bytes) else rest.encode())

    def _push(self, held: Held, due: int, rest: bytes) -> None:
        held.hints.push(due, rest)
        if due < self._wakes:
            self._changed.set()

    def _now(self) -> int:
        return math.floor(self._clock() * 1000)

    # What is due

    def look(self) -> None:
        """Look for what is due."""
        self._changed.set()

    async def work(self, tasks: asyncio.TaskGroup) -> None:
        """Fire, without an end; what it begins are tasks of the group."""
        while True:
            self._changed.clear()
            self._try_again()
            seconds = self._begin(tasks)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    def _begin(self, tasks: asyncio.TaskGroup) -> float | None:
        """Begin what is due and may begin; gives for how many seconds there is nothing to do, None = for ever."""
        time, now = asyncio.get_running_loop().time(), self._now()
        waits = [self._missed[0][0] - time] if self._missed else []
        open_for_all = self._misses < MISSES
        free = self._at_once - self._in_flight
        if self._paused_until > time:
            self._wakes = -1
            return min([self._paused_until - time, *waits])
        hints = {partition: held.hints for partition, held in self.held.items() if not held.leaving}
        if (
            not open_for_all
            and free > 0
            and any(each.first is not None and each.first <= now for each in hints.values())
        ):
            free = 1  # However long it takes, and what is in flight already: others are tried after the pause.
            self._pause()
        for partition, rest in due_hints(hints, now, free):
            held = self.held[partition]
            if rest in held.firing:
                held.again.add(rest)
                held.popped[rest] = now
                continue
            popped = max(now, held.popped.pop(rest, now))
            task = tasks.create_task(self._look_at(held, partition, rest, popped), name="timer")
            held.firing[rest] = task
            self._in_flight += 1
            task.add_done_callback(partial(self._ended, held, rest))
        if self._paused_until > time:
            self._wakes = -1
            return min([self._paused_until - time, *waits])
        if self._in_flight >= self._at_once:
            self._wakes = -1  # The end of one of them is what is waited for.
            return min(waits, default=None)
        self._wakes = min((first for each in hints.values() if (first := each.first) is not None), default=_NEVER)
        if self._wakes != _NEVER:
            waits.append(min(max(self._wakes - now, 1) / 1000, LOOK_SECONDS))
        return min(waits, default=None)

    def _ended(self, held: Held, rest: bytes, task: asyncio.Task[None]) -> None:
        del held.firing[rest]
        self._in_flight -= 1
        again = rest in held.again
        held.again.discard(rest)
        if task.cancelled():  # By what it waited for, where the partition is still held: its record is as it was.
            self._push(held, self._now() + round(AWAY_SECONDS * 1000), rest)
        elif again:
            self._push(held, self._now(), rest)
        self._changed.set()

    # What cannot be done now

    def _miss(self, held: Held, partition: int, rest: bytes, popped: int) -> None:
        """Try it again later; where nothing else happens, try others less often as well."""
        held.popped[rest] = popped
        time = asyncio.get_running_loop().time()
        self._missed.append((time + AWAY_SECONDS, partition, held, rest))
        self._misses += 1
        if self._misses >= MISSES and self._paused_until <= time:
            self._pause()

    def _pause(self) -> None:
        shortest, longest = PAUSES
        pause = min(longest, shortest * 2 ** min(self._misses - MISSES, 10))
        self._paused_until = asyncio.get_running_loop().time() + pause

    def _works(self) -> None:
        self._misses, self._paused_until = 0, -math.inf

    def _try_again(self) -> None:
        """Put back what was missed, behind what is due already: each gets its turn."""
        time, now = asyncio.get_running_loop().time(), self._now()
        while self._missed and self._missed[0][0] <= time:
            _, partition, held, rest = self._missed.popleft()
            if self.held.get(partition) is held:
                held.hints.push(now, rest)

    # One timer

    async def _look_at(self, held: Held, partition: int, rest: bytes, popped: int) -> None:
        """Look at a record, and fire it if it is due."""
        try:
            async with asyncio.timeout(STORE_SECONDS):
                found = await self._read(partition, rest)
        except (MeshError, TimeoutError) as error:
            logger.debug("timer %r of %s cannot be read: %s", rest, self._kind, error)
            self._miss(held, partition, rest, popped)
            return
        if found is None:
            return
        record, etag = found
        due = milliseconds(record.due)
        if due > min(popped, self._now()):
            # What was written in this epoch has a hint of its own, unless the clock was set back since that was due.
            # What another owner wrote may have arrived after this one had read the partition.
            if due <= popped or record.epoch != held.epoch:
                self._push(held, due, rest)
            return
        outcome = await self._fired(record.timer) if self._sure(partition) else Outcome.AWAY
        if outcome is Outcome.AWAY:
            self._miss(held, partition, rest, popped)
            return
        self._works()
        await self._move_on(held, partition, rest, etag, record.after(outcome, self._clock(), held.epoch))

    async def _fired(self, timer: Timer) -> Outcome:
        try:
            return await self._fire(timer)
        except MeshError as error:
            logger.warning("timer %r of %r, of %s, failed: %s", timer.name, timer.key, self._kind, error)
        except Exception:  # One that is defective must not stop all others.
            logger.exception("timer %r of %r, of %s, failed", timer.name, timer.key, self._kind)
        return Outcome.FAILED

    async def _move_on(self, held: Held, partition: int, rest: bytes, etag: str, left: Record | None) -> None:
        """Write what is left of a record, unless it is another one by now."""
        item = Item(record_of(self._kind, partition, rest), None if left is None else left.encode(), etag)
        try:
            await self._until_known(rest, lambda: self._write(item))
        except ConflictError:  # Overwritten or deleted; or this write was done before, and its answer was lost.
            found = await self._until_known(rest, lambda: self._read(partition, rest))
            left = None if found is None else found[0]
        if left is not None:
            self._push(held, milliseconds(left.due), rest)

    async def _until_known(self, rest: bytes, call: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the store until it answers; raises ``ConflictError``."""
        pause, longest = PAUSES
        while True:
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    return await call()
            except ConflictError:
                raise
            except (MeshError, TimeoutError) as error:
                logger.warning("timer %r of %s has fired, and cannot be moved on yet: %s", rest, self._kind, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _write(self, item: Item) -> None:
        async with self._asking:
            await self._records.write([item])

    async def _read(self, partition: int, rest: bytes) -> tuple[Record, str] | None:
        """Read a record; gives its etag too; None = it is not there, or is no timer."""
        async with self._asking:
            stored = await self._records.get(record_of(self._kind, partition, rest), strong=True)
        if stored is None:
            return None
        try:
            return Record.decode(rest.decode(), stored.value), stored.etag
        except ValueError as error:
            logger.error("timer %r of %s is left alone: %s", rest, self._kind, error)  # noqa: TRY400 - it says all
            return None
