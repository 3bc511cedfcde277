"""A store of workflows in memory that fails as told, and who gives turns and activities to a program in Python."""

from __future__ import annotations

import asyncio
import enum
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from mesh.errors import OutcomeUnknownError, StateError
from mesh.ownership.errors import NotOwnerError
from mesh.workflows.actions import Answer
from mesh.workflows.contracts import Loaded
from mesh.workflows.engine import Engine
from mesh.workflows.errors import WorkflowTooLargeError
from mesh.workflows.events import Event
from mesh.workflows.state import State, Step
from mesh.workflows.worker import Place, Ref, TaskResult, TaskWork, TurnWork

__all__ = ["Disk", "Fault", "MemoryCommits", "PullDispatch", "Record"]


class Fault(enum.Enum):
    """What becomes of an access to the store."""

    NONE = enum.auto()
    BEFORE = enum.auto()  # It fails, and was not done.
    AFTER = enum.auto()  # It fails, and was done.
    LATE = enum.auto()  # It fails, and is done some time later, unless the store refuses it by then.


@dataclass(frozen=True)
class Record:
    """What is stored of an instance."""

    version: int
    state: State
    history: tuple[Event, ...]


@dataclass
class Disk:
    """What outlives owners.

    Attributes:
        live: What has not been put away.
        ended: What has.
        until: When that is to be deleted.
        broken: What a correct engine never does.
        writes: How many there were.
    """

    fault: Callable[[], Fault] = lambda: Fault.NONE
    pause: Callable[[], Awaitable[None]] | None = None
    live: dict[Ref, Record] = field(default_factory=dict)
    ended: dict[Ref, Record] = field(default_factory=dict)
    until: dict[Ref, float] = field(default_factory=dict)
    fences: dict[int, tuple[int, int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    largest: int = 10**9
    writes: int = 0
    _numbers: int = 0

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def keys(self) -> set[Ref]:
        """Give the instances that there is anything of."""
        return {*self.live, *self.ended, *self.until}


@dataclass(frozen=True)
class _Saved:
    version: int
    size: int


@dataclass(eq=False)
class _Tenure:
    """One owner's time of a partition, and the fence as it has left it."""

    epoch: int
    owns: Callable[[], bool]
    fence: tuple[int, int] | None = None


class MemoryCommits:
    """An implementation of `mesh.workflows.contracts.Commits` for one owner."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._tenures: dict[int, _Tenure] = {}
        self._busy: set[Ref] = set()
        self.dead = False

    async def take(self, partition: int, epoch: int, owns: Callable[[], bool]) -> None:
        tenure = self._tenures[partition] = _Tenure(epoch, owns)
        await self._fence(partition, tenure)

    def forget(self, partition: int) -> None:
        self._tenures.pop(partition, None)

    def _tenure(self, partition: int) -> _Tenure:
        if (tenure := self._tenures.get(partition)) is None:
            raise NotOwnerError("not taken")
        return tenure

    async def _fence(self, partition: int, tenure: _Tenure) -> tuple[int, int]:
        """Take the fence, unless it is this owner's as far as it knows."""
        if tenure.fence is None:
            await self._pass()
            if not tenure.owns() or self._disk.fences.get(partition, (0, 0))[0] > tenure.epoch:
                raise NotOwnerError("another one's")
            tenure.fence = self._disk.fences[partition] = tenure.epoch, self._disk.number()
        return tenure.fence

    async def _pass(self) -> None:
        if self._disk.pause is not None:
            await self._disk.pause()
        if self.dead:
            await asyncio.Event().wait()

    async def scan(self, partition: int) -> AsyncIterator[tuple[str, State | None]]:
        await self._pass()
        if self._disk.fault() is not Fault.NONE:
            raise StateError("scan")
        for ref, record in list(self._disk.live.items()):
            if ref.partition == partition:
                yield ref.id, record.state

    async def expiring(self, partition: int) -> AsyncIterator[tuple[float, str]]:
        await self._pass()
        for ref, until in list(self._disk.until.items()):
            if ref.partition == partition:
                yield until, ref.id

    async def load(self, partition: int, instance: str) -> Loaded | None:
        ref = Ref(partition, instance)
        with self._alone(ref):
            await self._fence(
                partition, self._tenure(partition)
            )  # Else what is written late would come behind what is read now.
            await self._pass()
            if self._disk.fault() is not Fault.NONE:
                raise StateError("load")
            live, record = self._disk.live.get(ref), self._disk.ended.get(ref)
            if record is None or (live is not None and live.state.generation > record.state.generation):
                record = live
            elif live is not None:  # It was cut off behind the first write of ``end``.
                await self._apply(ref, lambda: self._bury(ref, record, self._disk.until.get(ref)))
            if record is None:
                return None
            return Loaded(record.state, record.history, _Saved(record.version, 100 * len(record.history)))

    async def commit(self, partition: int, instance: str, saved: _Saved | None, step: Step) -> _Saved:
        ref = Ref(partition, instance)
        version = self._disk.number()

        def write() -> None:
            self._disk.until.pop(ref, None)
            self._disk.live[ref] = self._made(ref, version, saved, step)

        if len(step.append) > self._disk.largest:
            raise WorkflowTooLargeError("more than fits")
        await self._write(ref, write)
        return _Saved(version, 100 * step.state.events)

    def _made(self, ref: Ref, version: int, saved: _Saved | None, step: Step) -> Record:
        """Make what a step leaves behind, and see that it is of what was there."""
        before, ended = self._disk.live.get(ref), self._disk.ended.get(ref)
        if before is None and saved is not None:
            before = ended
        if (None if saved is None else saved.version) != (None if before is None else before.version):
            self._disk.broken.append(f"{ref}: written on {saved}, and {before} was there")
        if ended is not None and ended.state.generation >= step.state.generation:
            self._disk.broken.append(f"{ref}: {step} is behind its end, {ended}")
        new = before is None or before.state.generation != step.state.generation
        history = step.append if new else (*before.history, *step.append)  # type: ignore[union-attr]
        if step.state.events != len(history):
            self._disk.broken.append(f"{ref}: {step.state.events} events, and {len(history)} there")
        return Record(version, step.state, history)

    async def end(self, partition: int, instance: str, saved: _Saved, step: Step, until: float | None) -> _Saved:
        """Write it among those that have ended, then delete it here: in two writes, as stores have to."""
        ref = Ref(partition, instance)
        record = Record(self._disk.number(), step.state, ())

        def write() -> None:
            nonlocal record
            if step.state.ended is None or step.state.outbox:
                self._disk.broken.append(f"{ref}: ended as {step.state}")
            live = self._disk.live.get(ref)
            if live is None or not (live.state.wants_owner or live.state.due is not None):
                self._disk.broken.append(f"{ref}: nobody would finish the end of {live}")
            record = self._disk.ended[ref] = self._made(ref, record.version, saved, step)

        if len(step.append) > self._disk.largest:
            raise WorkflowTooLargeError("more than fits")
        await self._write(ref, write)
        await self._write(ref, lambda: self._bury(ref, record, until))
        return _Saved(record.version, 100 * step.state.events)

    def _bury(self, ref: Ref, record: Record, until: float | None) -> None:
        live = self._disk.live.pop(ref, None)
        if live is not None and live.state.generation > record.state.generation:
            self._disk.broken.append(f"{ref}: {live} is deleted for {record}")
        if until is not None:
            self._disk.until[ref] = until

    async def put_away(self, partition: int, instance: str, saved: _Saved, state: State, until: float | None) -> None:
        ref = Ref(partition, instance)

        def write() -> None:
            record = self._disk.live.pop(ref, None)
            if record is None:
                return
            if state.ended is None or state.outbox or record.version != saved.version:
                self._disk.broken.append(f"{ref}: put away as {state}")
            self._disk.ended[ref] = replace(record, state=state)
            if until is not None:
                self._disk.until[ref] = until

        await self._write(ref, write)

    async def purge(self, partition: int, instance: str) -> bool:
        ref = Ref(partition, instance)
        found = False

        def write() -> None:
            nonlocal found
            found = any(kept.pop(ref, None) is not None for kept in (self._disk.live, self._disk.ended))
            self._disk.ended.pop(ref, None)
            self._disk.until.pop(ref, None)

        await self._write(ref, write)
        return found

    async def _write(self, ref: Ref, write: Callable[[], None]) -> None:
        with self._alone(ref):
            await self._apply(ref, write)

    async def _apply(self, ref: Ref, write: Callable[[], None]) -> None:
        tenure = self._tenure(ref.partition)
        fence = await self._fence(ref.partition, tenure)
        fault = self._disk.fault()

        def apply() -> bool:
            if self._disk.fences.get(ref.partition) != fence:
                return False
            self._disk.writes += 1
            write()
            return True

        await self._pass()
        if fault is Fault.BEFORE:
            raise StateError("cut before the write")
        if fault is Fault.LATE:
            tenure.fence = None  # Taken anew before anything else.
            asyncio.get_running_loop().call_later(1.7, apply)
            raise OutcomeUnknownError("on its way")
        while not apply():
            if tenure.fence == fence:
                tenure.fence = None
            fence = await self._fence(ref.partition, tenure)
        if fault is Fault.AFTER:
            tenure.fence = None
            raise OutcomeUnknownError("the answer was lost")
        await self._pass()

    def _alone(self, ref: Ref) -> _Alone:
        return _Alone(self._busy, ref, self._disk)


class _Alone:
    """Sees that the functions of one instance are never at work at the same time."""

    def __init__(self, busy: set[Ref], ref: Ref, disk: Disk) -> None:
        self._busy, self._ref, self._disk = busy, ref, disk

    def __enter__(self) -> None:
        if self._ref in self._busy:
            self._disk.broken.append(f"{self._ref}: two at once")
        self._busy.add(self._ref)

    def __exit__(self, *_: object) -> None:
        self._busy.discard(self._ref)


class PullDispatch:
    """Gives each turn and activity to functions at once, in a task of its own, until it is stopped."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        turn: Callable[[TurnWork], Awaitable[Answer]],
        task: Callable[[TaskWork], Awaitable[TaskResult | None]],
    ) -> None:
        self._tasks = tasks
        self._turn, self._task = turn, task
        self._wanted: dict[Ref, int] = defaultdict(int)  # Rises when what was wanted before is so no more.
        self.engine: Engine
        self.dead = False
        self.turns = self.activities = 0

    def turn(self, ref: Ref, name: str) -> None:
        self._begin(self._run_turn(ref, self._wanted[ref]))

    def task(self, ref: Ref, task: int, name: str, app: str | None) -> None:
        self._begin(self._run_task(ref, task, self._wanted[ref]))

    def forget(self, ref: Ref) -> None:
        self._wanted[ref] += 1

    def place(self, ref: Ref, task: int) -> Place | None:
        return "", "test"

    def _begin(self, work: Awaitable[None]) -> None:
        if not self.dead:
            self._tasks.create_task(work)  # type: ignore[arg-type]

    async def _run_turn(self, ref: Ref, wanted: int) -> None:
        if self._wanted[ref] != wanted or (work := await self.engine.open_turn(ref)) is None:
            return
        self.turns += 1
        self.engine.turned(work, await self._turn(work))

    async def _run_task(self, ref: Ref, task: int, wanted: int) -> None:
        if self._wanted[ref] != wanted or (work := await self.engine.open_task(ref, task)) is None:
            return
        self.activities += 1
        if (result := await self._task(work)) is not None:  # Else it is lost, and the engine knows of it.
            self.engine.resolved(ref, work, result)
