"""A server for workers of the official SDKs that stores nothing: what it is answered is what such a worker can do.

It speaks the part of ``TaskHubSidecarService`` that workers do, and plays the engine in memory: each instance schedules
what its workflow asks for, and is forgotten at its end.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import uvloop
from google.protobuf.message_factory import GetMessageClass
from httpunk.exceptions import HTTPunkError
from httpunk.h2.server import ServerRequest

from bench.load import BenchError
from bench.peer import control
from gateway.grpc.call import Call
from gateway.grpc.messages import service
from gateway.grpc.wire import framed
from gateway.http2.server import HTTP2Connections, Peer

SERVICE = service("TaskHubSidecarService", "")
WINDOW = {"grpc-node-js": 100}  # Of items at once; what is above it that SDK throws away.
ANY = 10_000
STATEFUL_HISTORY = 2
PAST, NEW, TURN = b"\x1a", b"\x22", b"\x0a"  # Fields of a WorkflowRequest, and of a WorkItem.


def _message(method: str, *, given: bool = False) -> Any:
    found = SERVICE.methods_by_name[method]
    return GetMessageClass(found.output_type if given else found.input_type)


ITEM = _message("GetWorkItems", given=True)
ASKED = _message("GetWorkItems")
TURN_DONE, TASK_DONE = _message("CompleteOrchestratorTask"), _message("CompleteActivityTask")
DONE = _message("CompleteActivityTask", given=True)()
REQUEST = GetMessageClass(ITEM.DESCRIPTOR.fields_by_name["workflowRequest"].message_type)
EVENT = GetMessageClass(REQUEST.DESCRIPTOR.fields_by_name["newEvents"].message_type)


def _sized(tag: bytes, data: bytes) -> bytes:
    size, varint = len(data), bytearray()
    while size > 127:
        varint.append(size & 127 | 128)
        size >>= 7
    varint.append(size)
    return tag + bytes(varint) + data


def _event(kind: str, number: int = -1, **fields: object) -> bytes:
    made = EVENT(eventId=number)
    made.timestamp.GetCurrentTime()
    part = getattr(made, kind)
    part.SetInParent()
    for name, value in fields.items():
        setattr(part, name, value)
    return made.SerializeToString()


@dataclass(eq=False)
class Instance:
    """One that runs."""

    id: str
    past: list[bytes] = field(default_factory=list)
    turn: list[bytes] = field(default_factory=list)
    new: list[bytes] = field(default_factory=list)
    known: int | None = None
    out: bool = False
    open: int = 0


class Hub:
    """The engine, for one worker."""

    def __init__(self) -> None:
        self.workers = 0
        self._waiting: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._room = ANY
        self._stateful = False
        self._instances: dict[str, Instance] = {}
        self._numbers = 0
        self._name, self._input = "", ""
        self._together = False
        self._until = 0.0
        self._done: asyncio.Future[None] | None = None
        self.turns = self.tasks = self.ended = self.events = 0

    async def answer(self, question: dict[str, object]) -> dict[str, object]:
        """Run instances of a workflow, so many at once, for so long; give what that took.

        With ``together`` results wait until no activity is open, and have one turn.
        """
        while not self.workers:
            await asyncio.sleep(0.01)
        self.turns = self.tasks = self.ended = self.events = 0
        self._name, self._input = str(question["workflow"]), json.dumps(question["input"])
        self._together = bool(question["together"])
        self._done = asyncio.get_running_loop().create_future()
        seconds = float(str(question["seconds"]))
        began = time.perf_counter()
        self._until = began + seconds
        for _ in range(int(str(question["open"]))):
            self._start()
        async with asyncio.timeout(seconds + 30):
            await self._done
        taken = time.perf_counter() - began
        return {"turns": self.turns, "tasks": self.tasks, "ended": self.ended, "events": self.events, "seconds": taken}

    def _start(self) -> None:
        self._numbers += 1
        made = Instance(f"i-{self._numbers}")
        self._instances[made.id] = made
        event = EVENT(eventId=-1)
        event.timestamp.GetCurrentTime()
        event.router.sourceAppID = "stub"
        started = event.executionStarted
        started.name, started.input.value, started.workflowInstance.instanceId = self._name, self._input, made.id
        started.workflowInstance.executionId.value = "1"
        made.new.append(event.SerializeToString())
        self._turn(made)

    def _turn(self, instance: Instance) -> None:
        if instance.out or not instance.new or (self._together and instance.open):
            return
        instance.out = True
        instance.turn = [_event("workflowStarted"), *instance.new]
        instance.new = []
        asked = REQUEST(instanceId=instance.id)
        asked.executionId.value = "1"
        asked.router.sourceAppID = "stub"
        past = instance.past
        if self._stateful and instance.known is not None:
            asked.cachedHistory.eventCount = instance.known
            past = past[instance.known :]
        instance.known = len(instance.past)
        self.events += len(past) + len(instance.turn)
        parts = [asked.SerializeToString()]
        parts += (_sized(PAST, each) for each in past)
        parts += (_sized(NEW, each) for each in instance.turn)
        self._send(_sized(TURN, b"".join(parts)))

    def _send(self, item: bytes) -> None:
        self._waiting.append(framed(item))
        self._more.set()

    def turned(self, answer: Any) -> None:
        """Take what a turn came to."""
        self._room += 1
        self._more.set()
        instance = self._instances[answer.instanceId]
        self.turns += 1
        instance.past += instance.turn
        instance.out = False
        for action in answer.actions:
            kind = action.WhichOneof("workflowActionType")
            if kind == "completeWorkflow":
                self._end(instance, action.completeWorkflow)
                return
            if kind != "scheduleTask":
                raise BenchError(f"a workflow asked for {kind}")
            task = action.scheduleTask
            instance.open += 1
            execution = task.taskExecutionId or f"1-{action.id}"
            event = EVENT(eventId=action.id)
            event.timestamp.GetCurrentTime()
            event.taskScheduled.name, event.taskScheduled.taskExecutionId = task.name, execution
            event.taskScheduled.input.CopyFrom(task.input)
            instance.past.append(event.SerializeToString())
            item = ITEM()
            request = item.activityRequest
            request.name, request.taskId, request.taskExecutionId = task.name, action.id, execution
            request.input.CopyFrom(task.input)
            request.workflowInstance.instanceId = instance.id
            self._send(item.SerializeToString())
        self._turn(instance)

    def resolved(self, answer: Any) -> None:
        """Take an activity's result."""
        self._room += 1
        self._more.set()
        if answer.HasField("failureDetails"):
            raise BenchError(f"an activity failed: {answer}")
        instance = self._instances[answer.instanceId]
        instance.open -= 1
        self.tasks += 1
        event = EVENT(eventId=-1)
        event.timestamp.GetCurrentTime()
        event.taskCompleted.taskScheduledId = answer.taskId
        event.taskCompleted.result.CopyFrom(answer.result)
        instance.new.append(event.SerializeToString())
        self._turn(instance)

    def _end(self, instance: Instance, how: Any) -> None:
        if how.workflowStatus != 1 or how.result.value != self._input:
            raise BenchError(f"a workflow ended with {how}")
        del self._instances[instance.id]
        self.ended += 1
        if time.perf_counter() < self._until:
            self._start()
        elif not self._instances and self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def handle(self, request: ServerRequest, connection: Peer) -> None:
        """Answer a call."""
        method = (request.path or "").rpartition("/")[2]
        call = Call(request, 2**26, connection)
        try:
            if method == "GetWorkItems":
                call.takes(ASKED.FromString)
                asked = await call.message()
                self._stateful = STATEFUL_HISTORY in asked.capabilities
                agent = call.metadata.get("user-agent", "")
                self._room = next((room for name, room in WINDOW.items() if name in agent), ANY)
                await self._hand_out(call)
            elif method in ("CompleteOrchestratorTask", "CompleteWorkflowTask"):
                call.takes(TURN_DONE.FromString)
                self.turned(await call.message())
            elif method == "CompleteActivityTask":
                call.takes(TASK_DONE.FromString)
                self.resolved(await call.message())
            else:
                await call.message()
            await call.reply(DONE)
        except (HTTPunkError, OSError):
            pass  # The worker is gone, and the run with it.
        except (BenchError, LookupError) as error:
            if self._done is not None and not self._done.done():
                self._done.set_exception(error)
            raise

    async def _hand_out(self, call: Call) -> None:
        await call.send_raw(b"")
        self.workers += 1
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._waiting and self._room:
                    count = min(len(self._waiting), self._room, 100)
                    self._room -= count
                    await call.send_raw(b"".join(self._waiting.popleft() for _ in range(count)))
        finally:
            self.workers -= 1


async def main() -> None:
    """Serve until the run is over."""
    hub = Hub()
    server = await asyncio.get_running_loop().create_server(HTTP2Connections(hub.handle, 2**16), "127.0.0.1", 0)
    await control(server.sockets[0].getsockname()[1], hub.answer)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
