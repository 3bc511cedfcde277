"""A worker in the process of a test, whose workflows are generators; see `tests.support.workflow_replay`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from mesh.blocks.workflows import HOST
from mesh.errors import AppFailedError
from mesh.node.runtime import Runtime
from mesh.tasks import task_group
from mesh.workflows.actions import Answer
from mesh.workflows.events import Failure
from mesh.workflows.worker import TaskResult, TaskWork, TurnWork
from tests.support.nodes import ask
from tests.support.workflow_replay import Code, Replay

__all__ = ["Worker", "working"]


class Worker:
    """See `mesh.workflows.worker.Worker`.

    Attributes:
        turns: The ids of instances, a turn each.
        tasks: Names of activities with their inputs, as they were begun.
    """

    def __init__(
        self,
        workflows: Mapping[str, Code],
        activities: Mapping[str, Callable[[Any], Awaitable[Any]]],
        *,
        max_turns: int = 100,
        max_tasks: int = 100,
    ) -> None:
        self.title = "test"
        self.max_turns, self.max_tasks = max_turns, max_tasks
        self.ended = asyncio.Event()
        self.turns: list[str] = []
        self.tasks: list[tuple[str, Any]] = []
        self._workflows, self._activities = workflows, activities

    def runs_workflow(self, name: str) -> bool:
        return name in self._workflows

    def runs_activity(self, name: str) -> bool:
        return name in self._activities

    def knows(self, instance: str) -> bool:
        return False

    async def turn(self, work: TurnWork) -> Answer:
        self.turns.append(work.ref.id)
        return Replay(self._workflows[work.name], work.ref.id).answer(work.past, work.new)

    async def task(self, work: TaskWork) -> TaskResult:
        given = None if work.input is None else json.loads(work.input)
        self.tasks.append((work.name, given))
        if self.ended.is_set():
            raise AppFailedError("the worker has ended")
        try:
            return TaskResult(json.dumps(await self._activities[work.name](given)))
        except ValueError as error:
            return TaskResult(None, Failure("ValueError", str(error)))


@asynccontextmanager
async def working(runtime: Runtime, worker: Worker) -> AsyncIterator[Worker]:
    """Attach a worker to a node, as one that holds a stream open."""
    async with task_group() as tasks:
        held = tasks.create_task(ask(runtime, HOST, runtime.settings.app_id, worker))
        try:
            yield worker
        finally:
            worker.ended.set()
            await asyncio.wait([held])
            held.cancel()
