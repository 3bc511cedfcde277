"""An engine of workflows with a store in memory and a worker that runs programs, on virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mesh.workflows.actions import Action, Answer
from mesh.workflows.engine import Engine
from mesh.workflows.messages import AnyMessage, Start, Told
from mesh.workflows.state import State
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork
from tests.support import virtual_time
from tests.support.workflow_programs import answer as run_program
from tests.support.workflows import Disk, MemoryCommits, PullDispatch

__all__ = ["APP", "EPOCH", "REF", "Node", "answers", "clock", "live", "node_of"]

EPOCH = 1_700_000_000.0
REF = Ref(0, "o")
APP = "shop"


def clock() -> float:
    return EPOCH + asyncio.get_running_loop().time()


class Node:
    """An engine with a worker that runs programs, and what tests turn off and count."""

    def __init__(self, disk: Disk, tasks: asyncio.TaskGroup, **options: Any) -> None:
        self.disk = disk
        self.sure = True
        self.told: list[tuple[str, str, AnyMessage]] = []
        self.tell_others: Callable[[str, AnyMessage], Awaitable[Told]] = self._tell_here
        self.turn: Callable[[TurnWork], Awaitable[Answer]] = self._turn
        self.task: Callable[[TaskWork], Awaitable[TaskResult | None]] = self._task
        self.commits = MemoryCommits(disk)
        self.dispatch = PullDispatch(tasks, lambda work: self.turn(work), lambda work: self.task(work))
        self.engine = Engine(
            APP,
            self.commits,
            self.dispatch,
            self._deliver,
            lambda _: self.sure,
            look=self._look,
            clock=clock,
            **options,
        )
        self.dispatch.engine = self.engine

    async def _turn(self, work: TurnWork) -> Answer:
        return run_program(work)

    async def _task(self, work: TaskWork) -> TaskResult:
        return TaskResult(json.dumps(json.loads(work.input or "") + "!"))

    async def _tell_here(self, instance: str, message: AnyMessage) -> Told:
        return await self.engine.tell(Ref(0, instance), message, clock() + 30)

    async def _deliver(self, app: str, instance: str, message: AnyMessage, until: float) -> Told:
        self.told.append((app, instance, message))
        return await self.tell_others(instance, message)

    async def _look(self, app: str, instance: str, until: float) -> State | None:
        ref = Ref(0, instance)
        found = self.disk.live.get(ref) or self.disk.ended.get(ref)
        return None if found is None else found.state

    async def tell(self, message: AnyMessage, id: str = REF.id, seconds: float = 30.0) -> Told:
        return await self.engine.tell(Ref(0, id), message, clock() + seconds)

    async def start(self, *steps: Sequence[object], id: str = REF.id, execution: str = "x") -> Told:
        return await self.tell(Start("program", execution, input=json.dumps(steps)), id)

    async def ended(self, id: str = REF.id) -> State:
        await self.engine.wait(Ref(0, id), lambda state: state is not None and state.ended is not None, clock() + 1000)
        return self.state(id)

    def state(self, id: str = REF.id) -> State:
        ref = Ref(0, id)
        return (self.disk.live.get(ref) or self.disk.ended[ref]).state

    def events(self, id: str = REF.id) -> Sequence[object]:
        ref = Ref(0, id)
        return (self.disk.live.get(ref) or self.disk.ended[ref]).history


@asynccontextmanager
async def node_of(disk: Disk | None = None, epoch: int = 1, **options: Any) -> AsyncIterator[Node]:
    disk = disk or Disk()
    async with asyncio.TaskGroup() as tasks:
        node = Node(disk, tasks, **options)
        async with node.engine.run():
            node.engine.take(0, epoch)
            yield node
            node.dispatch.dead = True
    assert not disk.broken


def live(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        virtual_time.run(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def answers(*actions: Action) -> Callable[[TurnWork], Awaitable[Answer]]:
    async def turn(_: TurnWork) -> Answer:
        return Answer(actions)

    return turn
