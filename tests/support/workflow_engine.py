"""An engine of workflows that stores nothing, in the place of the block: it gives work to workers as the real one does.

One gateway's gRPC port stands before it, without a mesh.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gateway.config import GatewayConfig
from gateway.grpc.build import build_grpc
from gateway.grpc.messages import message
from gateway.routes.route import API
from mesh.errors import AppFailedError, AppUnreachableError, MeshError, StreamEndedError
from mesh.operation import Caller, Operation
from mesh.streams import DRAINS, Streams
from mesh.tasks import until_any
from mesh.telemetry import Tracing
from mesh.workflows import actions, events
from mesh.workflows.actions import Answer
from mesh.workflows.errors import WorkflowNotFoundError
from mesh.workflows.events import Event
from mesh.workflows.state import State, Status, View
from mesh.workflows.stream import StreamWorker
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork

__all__ = ["APP", "Engine", "Instance", "listening"]

APP = "app"


@dataclass(eq=False)
class Instance:
    """One, its history, and what its next turn is told."""

    id: str
    started: events.Started
    history: list[Event] = field(default_factory=list)
    inbox: list[Event] = field(default_factory=list)
    rendered: dict[str, list[bytes]] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    turns: int = 0
    custom_status: str | None = None

    def tell(self, event: Event) -> None:
        self.inbox.append(event)
        self.wake.set()

    @property
    def view(self) -> View:
        end = next((each for each in self.history if isinstance(each, events.Completed)), None)
        status = Status.RUNNING if end is None else end.status
        at = self.started.at
        state = State(1, self.started.execution, self.started.name, status, at, at, custom_status=self.custom_status)
        if end is None:
            return View(self.id, state, self.started.input)
        return View(self.id, state, self.started.input, end.result, end.failure)


class Engine:
    """Answers the operations that tests need; those that they set in ``answers`` by that.

    Attributes:
        asked: What came, but for streams.
        workers: That hold a stream open.
        instances: By their ids.
        answers: By an operation's name what is given, or raised.
        draining: Set to have streams end.
    """

    def __init__(self) -> None:
        """Have nothing."""
        self.asked: list[Operation] = []
        self.workers: list[StreamWorker] = []
        self.instances: dict[str, Instance] = {}
        self.answers: dict[str, object] = {}
        self.draining, self.attached = asyncio.Event(), asyncio.Event()
        self._room: dict[StreamWorker, tuple[asyncio.Semaphore, asyncio.Semaphore]] = {}
        self._tasks: asyncio.TaskGroup

    async def __aenter__(self) -> Engine:
        """Begin."""
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End what runs."""
        for task in self._running():
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def _running(self) -> Sequence[asyncio.Task[Any]]:
        return [each for each in asyncio.all_tasks() if each.get_name().startswith("engine-")]

    async def run(self, operation: Operation) -> object:
        """Do what is asked."""
        name = operation.method.name
        if name != "host":
            self.asked.append(operation)
        if name in self.answers:
            answer = self.answers[name]
            if isinstance(answer, MeshError):
                raise answer
            return answer
        function = getattr(self, "_" + name)
        return await function(operation.arguments)

    async def _host(self, worker: StreamWorker) -> None:
        if self.draining.is_set():
            raise StreamEndedError(DRAINS)
        self.workers.append(worker)
        self._room[worker] = asyncio.Semaphore(worker.max_turns), asyncio.Semaphore(worker.max_tasks)
        self.attached.set()
        try:
            await until_any(worker.ended, self.draining)
        finally:
            self.workers.remove(worker)
            if not self.workers:
                self.attached.clear()
        if not worker.ended.is_set():
            raise StreamEndedError(DRAINS)

    async def _start(self, asked: Any) -> str:
        id_ = asked.id or f"i{len(self.instances)}"
        execution = asked.execution or f"x-{id_}"
        started = events.Started(time.time(), asked.name, execution, APP, asked.version, asked.input)
        instance = self.instances[id_] = Instance(id_, started)
        instance.tell(started)
        self._tasks.create_task(self._drive(instance), name="engine-instance")
        return id_

    def _found(self, id_: str) -> Instance:
        if id_ not in self.instances:
            raise WorkflowNotFoundError(id_)
        return self.instances[id_]

    async def _get(self, asked: Any) -> View | None:
        return self.instances[asked.id].view if asked.id in self.instances else None

    async def _wait(self, asked: Any) -> View:
        found = self._found(asked.id)
        await found.ended.wait()
        return found.view

    async def _raise_event(self, asked: Any) -> None:
        self._found(asked.id).tell(events.EventRaised(time.time(), asked.name, asked.input))

    async def _history(self, asked: Any) -> Any:
        from mesh.blocks.workflows import HistoryPage

        found = self._found(asked.id)
        return HistoryPage(found.view, list(found.history), len(found.history))

    async def _worker(self) -> StreamWorker:
        while True:
            await self.attached.wait()
            for worker in self.workers:
                if not worker.ended.is_set():
                    return worker
            await asyncio.sleep(0)  # It is about to be taken out.

    async def turn(self, work: TurnWork) -> Answer:
        """Have the worker that came first run a turn, once there is one."""
        worker = await self._worker()
        async with self._room[worker][0]:
            return await worker.turn(work)

    async def task(self, work: TaskWork) -> TaskResult:
        """Have the worker that came first run an activity, once there is one."""
        worker = await self._worker()
        async with self._room[worker][1]:
            return await worker.task(work)

    async def _drive(self, instance: Instance) -> None:
        while not instance.ended.is_set():
            await instance.wake.wait()
            instance.wake.clear()
            new = [events.TurnStarted(time.time()), *instance.inbox]
            instance.inbox.clear()
            instance.turns += 1
            try:
                answer = await self.turn(self._turn(instance, new))
            except (AppFailedError, AppUnreachableError):
                instance.inbox[:0] = new[1:]
                instance.wake.set()
                continue
            self._finish(instance, new, answer)

    def _turn(self, instance: Instance, new: list[Event]) -> TurnWork:
        started, past = instance.started, list(instance.history)
        return TurnWork(
            Ref(0, instance.id),
            APP,
            started.name,
            started.execution,
            1,
            instance.turns,
            past,
            new,
            rendered=instance.rendered,
        )

    def _finish(self, instance: Instance, new: list[Event], answer: Answer) -> None:
        now = time.time()
        instance.custom_status = answer.custom_status
        new[0] = events.TurnStarted(new[0].at, answer.version, answer.patches)
        instance.history += new
        for action in answer.actions:
            match action:
                case actions.ScheduleTask(id=id_, name=name):
                    instance.history.append(events.TaskScheduled(now, id_, name, f"{instance.id}-{id_}", action.input))
                    self._tasks.create_task(self._task(instance, action), name="engine-task")
                case actions.CreateTimer(id=id_, fire_at=moment):
                    instance.history.append(events.TimerCreated(now, id_, moment, action.name, action.origin))
                    if moment[0] < events.FOREVER:
                        fired = events.TimerFired(events.seconds(moment), id_, moment)
                        delay = events.seconds(moment) - now
                        asyncio.get_running_loop().call_later(delay, instance.tell, fired)
                case actions.Complete(id=id_):
                    ended = events.Completed(now, id_, action.status, action.result, action.failure)
                    instance.history.append(ended)
                    instance.ended.set()
                case _:
                    raise AssertionError(action)

    async def _task(self, instance: Instance, action: actions.ScheduleTask) -> None:
        id_, key = action.id, f"{instance.id}-{action.id}"
        given = action.input
        name = instance.started.name
        work = TaskWork(APP, instance.id, name, 1, id_, 1, action.name, key, APP, time.time(), given)
        result = await self.task(work)
        now = time.time()
        if result.failure is None:
            instance.tell(events.TaskCompleted(now, id_, key, result.result))
        else:
            instance.tell(events.TaskFailed(now, id_, key, result.failure))


class _Node:
    app_id = APP
    outbound_ready = True
    not_ready = ()
    metadata: ClassVar[dict[str, object]] = {}

    def shut_down(self, *, force: bool = False) -> None: ...


@asynccontextmanager
async def listening(engine: Engine, home: Path, tracing: Tracing | None = None) -> AsyncIterator[int]:
    """Serve gRPC before an engine; give the port."""
    caller = Caller("default", APP)
    config = GatewayConfig(app_id=APP, home=home)
    api = API(engine.run, {}, caller, tracing or Tracing(0), None, Streams(), config, _Node(), {}, frozenset(), message)  # type: ignore[arg-type]
    connections = build_grpc(api, 0)
    server = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await connections.drain(1)
