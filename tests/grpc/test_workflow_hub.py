"""The worker protocol of workflows: what clients ask, and the stream of a worker, before an engine that is scripted.

Source: reference/dapr-surface.md 1.14; the service TaskHubSidecarService.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gateway.grpc.messages import service
from mesh.blocks import workflows
from mesh.errors import AppFailedError, AppUnreachableError, DeadlineExceededError, MeshError, RecordsMissingError
from mesh.operation import Method
from mesh.ownership.errors import NobodyHostsError
from mesh.telemetry import Tracing
from mesh.workflows import errors, events
from mesh.workflows.actions import Answer, Complete, ScheduleTask
from mesh.workflows.events import Event, Failure, Parent
from mesh.workflows.messages import Told
from mesh.workflows.state import State, Status, View
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork, WorkTooLargeError
from tests.grpc.harness import Client, Failed
from tests.support.eventually import PATIENCE
from tests.support.proxy import Proxy
from tests.support.workflow_engine import APP, Engine, listening

HUB = service("TaskHubSidecarService", "")
AT = {"seconds": 1_800_000_000, "nanos": 250_000_000}
NOW = 1_800_000_000.25
ROUTER = {"sourceAppID": APP, "targetAppID": "other"}
TEXT = {"value": "1"}


@asynccontextmanager
async def hub(port: int) -> AsyncIterator[Client]:
    """Connect, each time anew."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Client(channel, HUB)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """The engine."""
    async with Engine() as made:
        yield made


@pytest.fixture
async def port(engine: Engine, tmp_path: Path) -> AsyncIterator[int]:
    """The port before it."""
    async with listening(engine, tmp_path) as port:
        yield port


@pytest.fixture
async def client(port: int) -> AsyncIterator[Client]:
    """A client."""
    async with hub(port) as made:
        yield made


VIEW = View(
    "i",
    State(
        7,
        "x1",
        "order",
        Status.FAILED,
        NOW,
        NOW + 1,
        "v2",
        NOW + 2,
        NOW + 3,
        custom_status="",
        parent=Parent("up", "p", 3),
    ),
    "1",
    None,
    Failure("Broken", "it broke"),
    {"k": "v"},
    NOW,
)
STATE = {
    "exists": True,
    "workflowState": {
        "instanceId": "i",
        "name": "order",
        "version": {"value": "v2"},
        "workflowStatus": 3,
        "scheduledStartTimestamp": AT,
        "createdTimestamp": AT,
        "lastUpdatedTimestamp": {**AT, "seconds": AT["seconds"] + 1},
        "startedAt": {**AT, "seconds": AT["seconds"] + 2},
        "completedTimestamp": {**AT, "seconds": AT["seconds"] + 3},
        "input": TEXT,
        "customStatus": {"value": ""},
        "failureDetails": {"errorType": "Broken", "errorMessage": "it broke"},
        "executionId": {"value": "x1"},
        "parentInstanceId": {"value": "p"},
        "parentAppId": {"value": "up"},
        "tags": {"k": "v"},
    },
}
PAGE = workflows.Page([VIEW, VIEW], "next")
ASKED: list[tuple[str, Mapping[str, Any], object, object, Mapping[str, Any]]] = [
    (
        "StartInstance",
        {
            "instanceId": "i",
            "name": "order",
            "version": {"value": "v2"},
            "input": {"value": ""},
            "scheduledStartTimestamp": AT,
            "executionId": {"value": "x1"},
            "tags": {"k": "v"},
            "parentTraceContext": {"traceParent": "00-a-b-01", "traceState": {"value": "s"}},
        },
        workflows.Start("order", "i", "", "v2", NOW, "x1", events.Trace("00-a-b-01", "s"), {"k": "v"}),
        "i",
        {"instanceId": "i"},
    ),
    (
        "StartInstance",
        {"name": "order", "version": {"value": ""}},
        workflows.Start("order"),
        "made",
        {"instanceId": "made"},
    ),
    ("GetInstance", {"instanceId": "i", "getInputsAndOutputs": True}, workflows.Get("i"), VIEW, STATE),
    ("GetInstance", {"instanceId": "i"}, workflows.Get("i", texts=False), None, {}),
    (
        "WaitForInstanceStart",
        {"instanceId": "i", "getInputsAndOutputs": True},
        workflows.Wait("i", ended=False),
        VIEW,
        STATE,
    ),
    ("WaitForInstanceCompletion", {"instanceId": "i"}, workflows.Wait("i", texts=False), VIEW, STATE),
    ("RaiseEvent", {"instanceId": "i", "name": "go", "input": TEXT}, workflows.RaiseEvent("i", "go", "1"), None, {}),
    ("RaiseEvent", {"instanceId": "i", "name": "go"}, workflows.RaiseEvent("i", "go"), None, {}),
    (
        "TerminateInstance",
        {"instanceId": "i", "output": TEXT, "recursive": True},
        workflows.Terminate("i", "1", recursive=True),
        None,
        {},
    ),
    ("SuspendInstance", {"instanceId": "i", "reason": TEXT}, workflows.Suspend("i", "1"), None, {}),
    ("ResumeInstance", {"instanceId": "i"}, workflows.Resume("i"), None, {}),
    (
        "PurgeInstances",
        {"instanceId": "i", "recursive": True, "force": True},
        workflows.Purge("i", recursive=True, force=True),
        Told(3, complete=True),
        {"deletedInstanceCount": 3, "isComplete": {"value": True}},
    ),
    (
        "PurgeInstances",
        {"purgeInstanceFilter": {"createdTimeFrom": AT, "runtimeStatus": [1, 3]}},
        workflows.PurgeMany((1, 3), NOW),
        Told(1000, complete=False),
        {"deletedInstanceCount": 1000, "isComplete": {"value": False}},
    ),
    (
        "RerunWorkflowFromEvent",
        {
            "sourceInstanceID": "i",
            "eventID": 3,
            "newInstanceID": "j",
            "input": TEXT,
            "overwriteInput": True,
            "newChildWorkflowInstanceID": "c",
        },
        workflows.Rerun("i", 3, "j", "1", overwrite=True, new_child_id="c"),
        "j",
        {"newInstanceID": "j"},
    ),
    (
        "ListInstanceIDs",
        {"pageSize": 2, "continuationToken": "last"},
        workflows.List(after="last", limit=2),
        PAGE,
        {"instanceIds": ["i", "i"], "continuationToken": "next"},
    ),
    (
        "ListInstanceIDs",
        {},
        workflows.List(limit=workflows.MAX_PAGE),
        workflows.Page([]),
        {},
    ),
    (
        "GetInstanceHistory",
        {"instanceId": "i"},
        workflows.History("i"),
        workflows.HistoryPage(
            VIEW, [events.TurnStarted(NOW), events.Retrying(NOW, 1, 2, NOW, Failure("", "")), events.Resumed(NOW)], 3
        ),
        {
            "events": [
                {"eventId": -1, "timestamp": AT, "workflowStarted": {}},
                {"eventId": -1, "timestamp": AT, "executionResumed": {}},
            ]
        },
    ),
]


@pytest.mark.parametrize(("method", "fields", "arguments", "given", "reply"), ASKED)
async def test_a_call(
    engine: Engine,
    client: Client,
    method: str,
    fields: Mapping[str, Any],
    arguments: object,
    given: object,
    reply: Mapping[str, Any],
) -> None:
    """It is an operation of the block, and the reply what that gives."""
    name = {method.arguments: method.name for method in METHODS}[type(arguments)]
    engine.answers[name] = given
    answer = await client.message(method, **fields)
    assert answer == type(answer)(**reply)
    (asked,) = engine.asked
    assert (asked.arguments, asked.target, asked.context.caller.app_id) == (arguments, APP, APP)
    assert asked.context.deadline is not None, "the client's"


METHODS = [each for each in vars(workflows).values() if isinstance(each, Method) and each.name not in ("show", "host")]


async def test_a_call_to_another_application(engine: Engine, client: Client) -> None:
    engine.answers["start"] = "i"
    await client.message("StartInstance", name="order", router=ROUTER)
    assert engine.asked[0].target == "other"


async def test_a_call_to_what_can_be_no_application(engine: Engine, client: Client) -> None:
    """It is refused at once: nobody will ever answer."""
    with pytest.raises(Failed) as failed:
        await client.message("StartInstance", name="order", router={"targetAppID": "a/b"})
    assert (failed.value.code, failed.value.text) == ("INVALID_ARGUMENT", "the app ID 'a/b' is invalid")
    assert engine.asked == []


FAILURES: list[tuple[MeshError, str, str]] = [
    (errors.WorkflowNotFoundError("i"), "NOT_FOUND", "no such instance exists: 'i'"),
    (errors.WorkflowExistsError("an active one"), "ALREADY_EXISTS", "an active one"),
    (errors.WorkflowNotEndedError("not ended"), "FAILED_PRECONDITION", "not ended"),
    (errors.WorkflowStalledError("stalled"), "FAILED_PRECONDITION", "stalled"),
    (errors.WorkflowForbiddenError("access denied"), "PERMISSION_DENIED", "access denied"),
    (errors.WorkflowTooLargeError("too large"), "RESOURCE_EXHAUSTED", "too large"),
    (errors.WorkflowUnreadableError("newer"), "DATA_LOSS", "newer"),
    (NobodyHostsError("nobody"), "UNAVAILABLE", "nobody"),
    (DeadlineExceededError("late"), "DEADLINE_EXCEEDED", "late"),
    (RecordsMissingError("no store"), "FAILED_PRECONDITION", "no store"),
]


@pytest.mark.parametrize(("error", "code", "text"), FAILURES, ids=[type(each[0]).__name__ for each in FAILURES])
async def test_a_failure(engine: Engine, client: Client, error: MeshError, code: str, text: str) -> None:
    """It has the status that SDKs go by."""
    engine.answers["wait"] = error
    with pytest.raises(Failed) as failed:
        await client.message("WaitForInstanceCompletion", instanceId="i")
    assert (failed.value.code, failed.value.text) == (code, text)


# Workers


def turn(number: int = 1, past: tuple[Event, ...] = (), id_: str = "i") -> TurnWork:
    return TurnWork(Ref(0, id_), APP, "order", "x1", 1, number, past, (events.TurnStarted(NOW),))


def task(number: int = 3, given: str | None = "1") -> TaskWork:
    return TaskWork(APP, "i", "order", 1, number, 1, "charge", "key", APP, NOW, given)


class Worker:
    """A stream of items, and whoever gives them."""

    def __init__(self, client: Client, engine: Engine, call: Any) -> None:
        self.client, self.engine, self.call = client, engine, call

    async def item(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self.call.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.workers[-1], name)


@asynccontextmanager
async def working(engine: Engine, client: Client, *capabilities: int) -> AsyncIterator[Worker]:
    """Hold a stream open."""
    call = client.open("GetWorkItems", client.request("GetWorkItems", capabilities=capabilities))
    async with asyncio.timeout(PATIENCE):
        await engine.attached.wait()
    try:
        yield Worker(client, engine, call)
    finally:
        call.cancel()


async def outcome(work: Awaitable[object]) -> object:
    try:
        return await work
    except MeshError as error:
        return error


async def test_a_turn_and_an_activity(engine: Engine, client: Client, port: int) -> None:
    """Answers that give the token back may come over any connection, and by either name."""
    async with working(engine, client) as worker, hub(port) as other, asyncio.TaskGroup() as tasks:
        turned, resulted = tasks.create_task(worker.turn(turn())), tasks.create_task(worker.task(task()))
        first, second = await worker.item(), await worker.item()
        assert (first.WhichOneof("request"), second.WhichOneof("request")) == ("workflowRequest", "activityRequest")
        action = {"id": 1, "scheduleTask": {"name": "charge"}}
        fields = {"instanceId": "i", "actions": [action], "completionToken": first.completionToken}
        await other.message("CompleteWorkflowTask", **fields)
        fields = {"instanceId": "i", "taskId": 3, "result": TEXT, "completionToken": second.completionToken}
        await other.message("CompleteActivityTask", **fields)
    assert turned.result() == Answer((ScheduleTask(1, "charge"),))
    assert resulted.result() == TaskResult("1")


async def test_answers_without_a_token(engine: Engine, client: Client, port: int) -> None:
    """They count on the connection of the stream alone: over another one they may be late ones, to a turn before."""
    async with working(engine, client) as worker, hub(port) as other, asyncio.TaskGroup() as tasks:
        turned, resulted = tasks.create_task(worker.turn(turn())), tasks.create_task(worker.task(task()))
        await worker.item()
        await worker.item()
        await other.message("CompleteOrchestratorTask", instanceId="i", customStatus={"value": "late"})
        await client.message("CompleteOrchestratorTask", instanceId="j", customStatus={"value": "of another one"})
        await client.message("CompleteActivityTask", instanceId="i", taskId=4, result={"value": "of another one"})
        await client.message("CompleteOrchestratorTask", instanceId="i", customStatus={"value": "now"})
        await client.message("CompleteOrchestratorTask", instanceId="i", customStatus={"value": "twice"})
        await client.message("CompleteActivityTask", instanceId="i", taskId=3)
    assert turned.result() == Answer(custom_status="now")
    assert resulted.result() == TaskResult()


async def test_a_token_of_something_else(engine: Engine, client: Client) -> None:
    """One of before, one of another gateway, one of an activity for a turn: nothing happens."""
    async with working(engine, client) as worker, asyncio.TaskGroup() as tasks:
        turned = tasks.create_task(worker.turn(turn()))
        token = (await worker.item()).completionToken
        for fields in ({"instanceId": "j", "completionToken": token}, {"instanceId": "i", "completionToken": "1.1"}):
            await client.message("CompleteOrchestratorTask", **fields, customStatus={"value": "no"})
        await client.message("CompleteActivityTask", instanceId="i", taskId=1, completionToken=token)
        await client.message("CompleteOrchestratorTask", instanceId="i", completionToken=token)
    assert turned.result() == Answer()


async def test_the_connection_ends(engine: Engine, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker had is given back at once; what it never read counts as not taken."""
    monkeypatch.setattr("mesh.workflows.stream.LATE_SECONDS", 3600.0)
    async with Proxy(port) as proxy, hub(proxy.port) as leaving, working(engine, leaving) as worker:
        given = engine.workers[0]
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            turned = tasks.create_task(outcome(given.turn(turn())))
            await worker.item()
            proxy.cut()
    assert isinstance(turned.result(), AppFailedError)
    assert isinstance(await outcome(given.task(task())), AppUnreachableError)


async def test_a_late_answer(engine: Engine, client: Client) -> None:
    """The stream has ended, and its connection has not: the answer still counts."""
    async with working(engine, client) as worker, asyncio.TaskGroup() as tasks:
        given = engine.workers[0]
        turned = tasks.create_task(given.turn(turn()))
        await worker.item()
        worker.call.cancel()
        await given.ended.wait()
        await client.message("CompleteOrchestratorTask", instanceId="i", customStatus={"value": "late"})
    assert turned.result() == Answer(custom_status="late")


async def test_no_answer_after_the_stream(engine: Engine, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn is given back in the end, though the connection goes on."""
    monkeypatch.setattr("mesh.workflows.stream.LATE_SECONDS", 0.01)
    async with working(engine, client) as worker, asyncio.TaskGroup() as tasks:
        turned = tasks.create_task(outcome(worker.turn(turn())))
        await worker.item()
        worker.call.cancel()
    assert isinstance(turned.result(), AppFailedError)
    await client.message("CompleteOrchestratorTask", instanceId="i")


async def test_a_worker_that_remembers(engine: Engine, client: Client) -> None:
    """It is told what it does not have; of an execution that has ended it forgets all."""
    past: tuple[Event, ...] = (events.TurnStarted(NOW), events.EventRaised(NOW, "go"))

    async def taken(work: TurnWork, **fields: Any) -> tuple[bool, int, int]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.turn(work))
            request = (await worker.item()).workflowRequest
            await client.message("CompleteOrchestratorTask", instanceId="i", **fields)
        return request.HasField("cachedHistory"), request.cachedHistory.eventCount, len(request.pastEvents)

    ended = {"actions": [{"id": 1, "completeWorkflow": {"workflowStatus": 1}}]}
    async with working(engine, client, 2) as worker:
        assert not worker.knows("i")
        assert await taken(turn(1)) == (False, 0, 0)
        assert worker.knows("i")
        assert await taken(turn(2, past)) == (False, 0, 2)
        assert await taken(turn(3, past * 2)) == (True, 2, 2)
        assert await taken(turn(4, past * 3), **ended) == (True, 4, 2)
        assert not worker.knows("i")
        assert await taken(turn(5, past)) == (False, 0, 2)


async def test_a_quiet_stream_is_pinged(engine: Engine, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.workflows.stream.PING_SECONDS", 0.01)
    async with working(engine, client, 3) as worker:
        assert (await worker.item()).WhichOneof("request") == "healthPing"


async def test_what_no_client_of_grpc_takes(engine: Engine, client: Client) -> None:
    """A history that is too large is no turn, ever; such an input fails its activity."""
    large = "x" * (4 * 1024 * 1024)
    async with working(engine, client) as worker:
        with pytest.raises(WorkTooLargeError, match="the history of 'i' is a message of 419"):
            await worker.turn(turn(1, (events.EventRaised(NOW, "go", large),)))
        failure = (await worker.task(task(3, large))).failure
        work = task(4, large)
        work.inherited = events.Inherited(NOW, 1, ())
        both = (await worker.task(work)).failure
    assert (failure.type, failure.final) == ("PayloadTooLarge", True)
    assert failure.message.startswith("the input of the activity 'charge' is a message of 419")
    assert both.message.startswith("the input, with the history handed on, of the activity 'charge' is a message")


async def test_a_store_that_is_not_there_yet(engine: Engine, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker stays, and is given work once it can be: an SDK's may not come again."""
    monkeypatch.setattr("gateway.routes.workflow_stream.RETRY_SECONDS", (0.01, 0.01))
    engine.answers["host"] = RecordsMissingError("no store")
    call = client.open("GetWorkItems", client.request("GetWorkItems"))
    await call.initial_metadata()
    await client.message("Hello")
    del engine.answers["host"]
    async with asyncio.timeout(PATIENCE):
        await engine.attached.wait()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.workers[0].turn(turn()))
        assert (await call.read()).workflowRequest.instanceId == "i"
        await client.message("CompleteOrchestratorTask", instanceId="i")
    call.cancel()


async def test_a_gateway_that_drains(engine: Engine, client: Client) -> None:
    """The stream ends with what has SDKs come again."""
    async with working(engine, client) as worker:
        engine.draining.set()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await worker.item()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("agent", "title", "window"),
    [
        ("grpc-node-js/1.14.7", "grpc-node-js/1.14.7", 100),
        ("dapr-sdk/1 grpc-go/1.80.0", "grpc-go/1.80.0", 11_000),
    ],
)
async def test_windows(engine: Engine, port: int, agent: str, title: str, window: int) -> None:
    """The SDK for Node throws away what it cannot keep: a hundred items. It comes again after its first stream."""
    target = f"127.0.0.1:{port}"
    options = [("grpc.primary_user_agent", agent), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        client = Client(channel, HUB)
        if title.startswith("grpc-node-js"):
            first = client.open("GetWorkItems", client.request("GetWorkItems"))
            assert await first.read() is grpc.aio.EOF
            assert await first.code() is grpc.StatusCode.OK
        async with working(engine, client) as worker:
            assert worker.title == title
            assert worker.max_turns + worker.max_tasks == window


async def test_calls_of_workers_are_no_spans(engine: Engine, tmp_path: Path) -> None:
    """The span that a client is in reaches the operation; what carries work has none of its own."""
    spans: list[object] = []
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    engine.answers["raise_event"] = None
    async with listening(engine, tmp_path, Tracing(1, spans.append)) as port, hub(port) as client:
        await client.message("Hello")
        await client.message("RaiseEvent", [("traceparent", parent)], instanceId="i", name="go")
    assert engine.asked[0].context.traceparent == parent
    assert not spans


async def test_a_turn_that_ends(engine: Engine, client: Client) -> None:
    """A status is a number of the protocol."""
    async with working(engine, client) as worker, asyncio.TaskGroup() as tasks:
        turned = tasks.create_task(worker.turn(turn()))
        await worker.item()
        action = {"id": 2, "completeWorkflow": {"workflowStatus": 1, "result": TEXT}}
        await client.message("CompleteOrchestratorTask", instanceId="i", actions=[action])
    assert turned.result() == Answer((Complete(2, Status.COMPLETED, "1"),))
