"""A worker in the process of a test: workflows are generators that yield what they wait for."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mesh.blocks.workflows import HOST
from mesh.errors import AppFailedError
from mesh.node.runtime import Runtime
from mesh.tasks import task_group
from mesh.workflows.actions import Action, Answer, Complete, CreateChild, CreateTimer, ScheduleTask, SendEvent
from mesh.workflows.events import (
    ChildCompleted,
    ChildCreated,
    ChildFailed,
    Event,
    EventRaised,
    EventSent,
    Failure,
    Retry,
    Started,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCreated,
    TimerFired,
    TurnStarted,
)
from mesh.workflows.state import Status
from mesh.workflows.worker import TaskResult, TaskWork, TurnWork
from tests.support.nodes import ask

__all__ = ["Again", "Call", "Child", "Failed", "Send", "Timer", "Wait", "Worker", "working"]

Code = Callable[[Any], Generator[Any, Any, Any]]


@dataclass(frozen=True)
class Call:
    """An activity."""

    name: str
    input: object = None
    app: str | None = None
    retry: Retry | None = None


@dataclass(frozen=True)
class Timer:
    """So many seconds from the turn on that asks for it first."""

    seconds: float


@dataclass(frozen=True)
class Child:
    """A child."""

    name: str
    input: object = None
    id: str = ""
    app: str | None = None


@dataclass(frozen=True)
class Send:
    """An event of another instance; nothing is waited for."""

    to: str
    name: str
    data: object = None


@dataclass(frozen=True)
class Wait:
    """An event of its own."""

    name: str


@dataclass(frozen=True)
class Again:
    """What a workflow returns to begin anew."""

    input: object


class Failed(Exception):
    """What is thrown into the code for an activity, or a child, that failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.type, failure.message)
        self.failure = failure


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
        return _replay(self._workflows[work.name], [*work.past, *work.new])

    async def task(self, work: TaskWork) -> TaskResult:
        given = None if work.input is None else json.loads(work.input)
        self.tasks.append((work.name, given))
        if self.ended.is_set():
            raise AppFailedError("the worker has ended")
        try:
            return TaskResult(json.dumps(await self._activities[work.name](given)))
        except ValueError as error:
            return TaskResult(None, Failure("ValueError", str(error)))


def _replay(code: Code, history: Sequence[Event]) -> Answer:
    started = next(each for each in history if isinstance(each, Started))
    asked, came = set[int](), dict[int, Any]()
    raised = defaultdict[str, deque[Any]](deque)
    now = 0.0
    for event in history:
        match event:
            case TurnStarted(at=at):
                now = at
            case TaskScheduled(id=id_) | TimerCreated(id=id_) | ChildCreated(id=id_) | EventSent(id=id_):
                asked.add(id_)
            case TaskCompleted(task=id_, result=text) | ChildCompleted(task=id_, result=text):
                came.setdefault(id_, None if text is None else json.loads(text))
            case TaskFailed(task=id_, failure=failure) | ChildFailed(task=id_, failure=failure):
                came.setdefault(id_, Failed(failure))
            case TimerFired(timer=id_):
                came.setdefault(id_, None)
            case EventRaised(name=name, input=text):
                raised[name].append(None if text is None else json.loads(text))
            case _:
                pass
    running = code(None if started.input is None else json.loads(started.input))
    actions: list[Action] = []
    number, sent, failed = 0, None, None
    while True:
        try:
            wanted = running.send(sent) if failed is None else running.throw(failed)
        except StopIteration as stop:
            result, status = stop.value, Status.COMPLETED
            if isinstance(result, Again):
                result, status = result.input, Status.CONTINUED_AS_NEW
            actions.append(Complete(number + 1, status, json.dumps(result)))
            break
        except Failed as error:
            actions.append(Complete(number + 1, Status.FAILED, failure=error.failure))
            break
        many = wanted if isinstance(wanted, list) else [wanted]
        found: list[Any] = []
        for each in many:
            if isinstance(each, Wait):
                if raised[each.name]:
                    found.append(raised[each.name].popleft())
                continue
            number += 1
            if number not in asked:
                actions.append(_action(number, each, now))
            if isinstance(each, Send):
                found.append(None)
            elif number in came:
                found.append(came[number])
        if len(found) < len(many):
            break
        failed = next((each for each in found if isinstance(each, Failed)), None)
        sent = found if isinstance(wanted, list) else found[0]
    return Answer(tuple(actions))


def _action(number: int, wanted: object, now: float) -> Action:
    match wanted:
        case Call(name=name, input=given, app=app, retry=retry):
            return ScheduleTask(number, name, json.dumps(given), app=app, retry=retry)
        case Timer(seconds=after):
            whole, rest = divmod(now + after, 1)
            return CreateTimer(number, (int(whole), int(rest * 1e9)))
        case Child(name=name, input=given, id=id_, app=app):
            return CreateChild(number, id_, name, json.dumps(given), app=app)
        case Send(to=to, name=name, data=data):
            return SendEvent(number, to, name, json.dumps(data))
        case _:
            raise AssertionError(wanted)


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
