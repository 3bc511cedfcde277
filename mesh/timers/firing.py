"""Firing what is due: look at the record, fire, move the record on.

Many are due at once. So records are read in batches, and those whose firing has ended are written in batches: whatever
has come while the writers were at work is in the next one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

from mesh.errors import ConflictError, MeshError, StateError
from mesh.store import Item, StateStore, Stored
from mesh.timers.fence import Fence
from mesh.timers.hints import Hints, due_hints
from mesh.timers.record import Outcome, Record, Timer, milliseconds, record_of

__all__ = ["STORE_SECONDS", "Fire", "Firing", "Held"]

logger = logging.getLogger(__name__)

STORE_SECONDS = 5.0  # What one read or write may take.
LOOK_SECONDS = 5.0  # The clock may be set, and the machine sleeps: no wait for what is due is longer.
AWAY_SECONDS = 0.5  # Until a timer is tried again that nobody took, or whose record could not be read.
PAUSES = 0.05, 2.0  # Between tries, where nothing but that happens.
MISSES = 3  # In a row, then it pauses.
BATCH = 100  # Records that are read or written together.
FEW_SECONDS = 0.1  # How long it waits for so many to end, where fewer may begin: those in flight may hang.
WRITERS = 4  # Batches that are written at the same time.
_NEVER = 2**63

Fire = Callable[[Timer], Awaitable[Outcome]]


class Held:
    """A partition that this node owns.

    Attributes:
        epoch: In which it is owned.
        fence: Which each put goes with.
        hints: When to look at which record.
        firing: What is in flight, by the last two tokens of the records' keys.
        idle: Set while nothing is.
        again: What of it must be looked at once more, since its time came in the middle of it.
        popped: When a hint was taken of what is looked at later, in milliseconds: the clock may be set back until then.
        writing: How many put and delete just now.
        written: Set while nobody does.
        leaving: Whether no firing more is begun.
        closed: Whether nothing more is put or deleted either.
    """

    __slots__ = (
        "again",
        "closed",
        "epoch",
        "fence",
        "firing",
        "hints",
        "idle",
        "leaving",
        "popped",
        "writing",
        "written",
    )

    def __init__(self, epoch: int, fence: Fence) -> None:
        """Begin with nothing."""
        self.epoch = epoch
        self.fence = fence
        self.hints = Hints()
        self.firing: dict[bytes, Look] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self.again: set[bytes] = set()
        self.popped: dict[bytes, int] = {}
        self.writing = 0
        self.written = asyncio.Event()
        self.written.set()
        self.leaving = self.closed = False

    def cancel(self) -> int:
        """Cancel the firings that have not ended; gives how many."""
        tasks = [look.task for look in self.firing.values() if look.task is not None]
        return sum(task.cancel() for task in tasks)


class Look:
    """One look at a record: it is read, fired, and moved on.

    Attributes:
        held: Its partition.
        partition: Its number.
        rest: The last two tokens of the record's key.
        popped: When its hint was taken, in milliseconds.
        task: Its firing, until that has ended.
        etag: As it was fired.
        left: What is left of it after that.
        stale: Whether the timer was put anew or deleted since it was read.
        pause: Seconds until it is written again, should that fail.
    """

    __slots__ = ("etag", "held", "left", "partition", "pause", "popped", "rest", "stale", "task")

    def __init__(self, held: Held, partition: int, rest: bytes, popped: int) -> None:
        """Begin."""
        self.held = held
        self.partition = partition
        self.rest = rest
        self.popped = popped
        self.task: asyncio.Task[None] | None = None
        self.etag = ""
        self.left: Record | None = None
        self.stale = False
        self.pause = PAUSES[0]


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
        self._few = min(BATCH, max(1, at_once // 10))  # So many less than that are as good as all.
        self._few_until: float | None = None
        self._in_flight = 0
        self._changed = asyncio.Event()
        self._wakes = _NEVER  # The time of the hint that is waited for.
        self._tasks = asyncio.TaskGroup()  # That of ``work``.
        self._done: deque[Look] = deque()  # What is to be moved on.
        self._writers = 0
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
        self._tasks = tasks
        while True:
            self._changed.clear()
            self._try_again()
            seconds = self._begin()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    def _begin(self) -> float | None:
        """Begin what is due and may begin; gives for how many seconds there is nothing to do, None = for ever."""
        time, now = asyncio.get_running_loop().time(), self._now()
        waits = [self._missed[0][0] - time] if self._missed else []
        open_for_all = self._misses < MISSES
        free = self._at_once - self._in_flight
        if self._paused_until > time:
            self._wakes = -1
            return min([self._paused_until - time, *waits])
        if free < self._few:  # The end of some is what is waited for: then so many are looked for, and read, together.
            if free and self._few_until is None:
                self._few_until = time + FEW_SECONDS
            if self._few_until is None or time < self._few_until:
                self._wakes = -1
                return min(waits if self._few_until is None else [self._few_until - time, *waits], default=None)
        self._few_until = None
        hints = {partition: held.hints for partition, held in self.held.items() if not held.leaving}
        looks: list[Look] = []
        if not open_for_all and any(each.first is not None and each.first <= now for each in hints.values()):
            free = 1  # However long it takes, and what is in flight already: others are tried after the pause.
            self._pause()
        for partition, rest in due_hints(hints, now, free):
            held = self.held[partition]
            if rest in held.firing:
                held.again.add(rest)
                held.popped[rest] = now
                continue
            look = held.firing[rest] = Look(held, partition, rest, max(now, held.popped.pop(rest, now)))
            held.idle.clear()
            self._in_flight += 1
            looks.append(look)
        for start in range(0, len(looks), BATCH):
            self._tasks.create_task(self._look_at(looks[start : start + BATCH]), name="timers-look")
        if self._paused_until > time:
            self._wakes = -1
            return min([self._paused_until - time, *waits])
        if self._in_flight >= self._at_once:
            self._wakes = -1
            return min(waits, default=None)
        self._wakes = min((first for each in hints.values() if (first := each.first) is not None), default=_NEVER)
        if self._wakes != _NEVER:
            waits.append(min(max(self._wakes - now, 1) / 1000, LOOK_SECONDS))
        return min(waits, default=None)

    def _ended(self, look: Look, *, cancelled: bool = False) -> None:
        held, rest = look.held, look.rest
        del held.firing[rest]
        self._in_flight -= 1
        again = rest in held.again
        held.again.discard(rest)
        if cancelled:  # By what it waited for, where the partition is still held: its record is as it was.
            self._push(held, self._now() + round(AWAY_SECONDS * 1000), rest)
        elif again:
            self._push(held, self._now(), rest)
        if not held.firing:
            held.idle.set()
        self._changed.set()

    # What cannot be done now

    def _miss(self, look: Look, *, alone: bool = False) -> None:
        """Try it again later; where nothing else happens, try others less often as well, unless it is alone in it."""
        held, partition, rest = look.held, look.partition, look.rest
        held.popped[rest] = look.popped
        self._ended(look)
        time = asyncio.get_running_loop().time()
        self._missed.append((time + AWAY_SECONDS, partition, held, rest))
        if alone:
            return
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

    # One timer, among others

    async def _look_at(self, looks: Sequence[Look]) -> None:
        """Look at records, and fire those that are due."""
        for look in looks:
            look.stale = False  # What was written before is read now.
        for look, found in zip(looks, await self._read(looks), strict=True):
            if not self._may_fire(look):
                self._ended(look)
            elif isinstance(found, MeshError):
                logger.debug("timer %r of %s cannot be read: %s", look.rest, self._kind, found)
                self._miss(look)
            elif found is None or (record := self._record(look, found)) is None:
                self._ended(look)
            elif (due := milliseconds(record.due)) > min(look.popped, self._now()):
                # What was written in this epoch has a hint of its own, unless the clock was set back since that was
                # due. What another owner wrote may have arrived after this one had read the partition.
                if due <= look.popped or record.epoch != look.held.epoch:
                    self._push(look.held, due, look.rest)
                self._ended(look)
            elif not self._sure(look.partition):
                self._miss(look)
            else:
                look.etag = found.etag
                look.task = self._tasks.create_task(self._fire_one(look, record), name="timer")
                look.task.add_done_callback(partial(self._fired_or_cancelled, look))

    def _may_fire(self, look: Look) -> bool:
        return self._holds(look) and not look.held.leaving

    def _holds(self, look: Look) -> bool:
        return self.held.get(look.partition) is look.held

    async def _fire_one(self, look: Look, record: Record) -> None:
        outcome = await self._fired(record.timer)
        look.task = None
        if outcome in (Outcome.AWAY, Outcome.BUSY):
            self._miss(look, alone=outcome is Outcome.BUSY)
            return
        self._works()
        look.left = record.after(outcome, self._clock(), look.held.epoch)
        self._move_on(look)

    def _fired_or_cancelled(self, look: Look, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            look.task = None
            self._ended(look, cancelled=True)

    async def _fired(self, timer: Timer) -> Outcome:
        try:
            return await self._fire(timer)
        except MeshError as error:
            logger.warning("timer %r of %r, of %s, failed: %s", timer.name, timer.key, self._kind, error)
        except Exception:  # One that is defective must not stop all others.
            logger.exception("timer %r of %r, of %s, failed", timer.name, timer.key, self._kind)
        return Outcome.FAILED

    def _move_on(self, look: Look) -> None:
        """Have what is left of a record written, unless it is another one by now."""
        if not self._holds(look):
            self._ended(look)
            return
        self._done.append(look)
        if self._writers < WRITERS:
            self._writers += 1
            self._tasks.create_task(self._move_all(), name="timers-write")

    async def _move_all(self) -> None:
        while self._done:
            looks = [self._done.popleft() for _ in range(min(BATCH, len(self._done)))]
            await self._move(looks)
        self._writers -= 1

    async def _move(self, looks: Sequence[Look]) -> None:
        conflicting: list[Look] = []
        for look, result in zip(looks, await self._write(looks), strict=True):
            if result is None:
                self._moved(look, look.left)
            elif isinstance(result, ConflictError):  # Overwritten or deleted; or it was done before, and the answer
                conflicting.append(look)  # was lost.
            else:
                self._move_later(look, result)
        if not conflicting:
            return
        for look, found in zip(conflicting, await self._read(conflicting), strict=True):
            if isinstance(found, MeshError):
                self._move_later(look, found)
            else:
                self._moved(look, None if found is None else self._record(look, found))

    def _moved(self, look: Look, left: Record | None) -> None:
        if left is not None:
            self._push(look.held, milliseconds(left.due), look.rest)
        self._ended(look)

    def _move_later(self, look: Look, error: MeshError) -> None:
        """Ask the store until it answers."""
        logger.warning("timer %r of %s has fired, and cannot be moved on yet: %s", look.rest, self._kind, error)
        asyncio.get_running_loop().call_later(look.pause, self._move_on, look)
        look.pause = min(2 * look.pause, PAUSES[1])

    async def _write(self, looks: Sequence[Look]) -> Sequence[MeshError | None]:
        """Write what is left of records; gives what each came to."""
        items = [Item(self._key(each), None if each.left is None else each.left.encode(), each.etag) for each in looks]
        results: list[MeshError | None] = []
        try:
            async with asyncio.timeout(STORE_SECONDS):
                while len(results) < len(items):
                    results += await self._records.save_each(items[len(results) :])
                    if not isinstance(results[-1], ConflictError | None):
                        break  # Else those behind a conflict, at which some stores stop, would wait for nothing.
        except (MeshError, TimeoutError) as error:
            results += [_known(error)] * (len(items) - len(results))
        return [*results, *[StateError("was not tried")] * (len(items) - len(results))]

    async def _read(self, looks: Sequence[Look]) -> Sequence[Stored | MeshError | None]:
        """Read records; gives what each came to."""
        try:
            async with asyncio.timeout(STORE_SECONDS):
                return await self._records.get_many([self._key(each) for each in looks], strong=True)
        except (MeshError, TimeoutError) as error:
            return [_known(error)] * len(looks)

    def _key(self, look: Look) -> str:
        return record_of(self._kind, look.partition, look.rest)

    def _record(self, look: Look, stored: Stored) -> Record | None:
        """Read a record; None = it is no timer."""
        try:
            return Record.decode(look.rest.decode(), stored.value)
        except ValueError as error:
            logger.error("timer %r of %s is left alone: %s", look.rest, self._kind, error)  # noqa: TRY400 - it says all
            return None


def _known(error: MeshError | TimeoutError) -> MeshError:
    return error if isinstance(error, MeshError) else StateError("it did not answer in time")
