"""Operations of the mesh as activities, through a node's own pipeline and towards a real application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import orjson
import pytest

from gateway.http.application import HTTPApplication
from mesh.blocks.workflow_operations import OperationsWorker
from mesh.resources.subscription import Subscription
from mesh.workflows.events import Failure, Trace
from mesh.workflows.operations import MEMBERS
from mesh.workflows.worker import TaskResult, TaskWork
from tests.http.actor_app import ActorApp
from tests.support.eventually import eventually
from tests.support.nodes import component, node, unique

TRACE = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "v=1")


@pytest.fixture
async def app() -> AsyncIterator[ActorApp]:
    async with ActorApp() as app:
        yield app


@pytest.fixture
async def worker(app: ActorApp) -> AsyncIterator[OperationsWorker]:
    """One of a node whose application subscribes to a topic and hosts actors."""

    async def programmatic() -> Sequence[Subscription]:
        return [Subscription("", "pubsub", "orders", default_path="/orders")]

    components = (
        component("pubsub", "pubsub.mesh"),
        component("statestore", "state.mesh"),
        component("hook", "bindings.http", url=f"http://127.0.0.1:{app.port}/hook"),
    )
    runtime = node("memory:", unique("ns"), *components)

    def serves() -> None:
        assert runtime.serving

    async with HTTPApplication(f"http://127.0.0.1:{app.port}") as application, runtime:
        application.watch()
        async with runtime.inbound(application, programmatic):
            await eventually(serves)
            yield OperationsWorker(runtime.run, runtime.caller)


def work(name: str, given: object = None) -> TaskWork:
    text = given if isinstance(given, str) or given is None else orjson.dumps(given).decode()
    return TaskWork("app", "o-1", "order", 7, 3, 2, f"mesh.{name}", "x1-3", "app", 0.0, text, trace=TRACE)


async def result(worker: OperationsWorker, name: str, **given: object) -> object:
    came = await worker.task(work(name, given))
    assert came.failure is None, came
    return None if came.result is None else orjson.loads(came.result)


async def failure(worker: OperationsWorker, name: str, given: object = None) -> Failure:
    came = await worker.task(work(name, given))
    assert came.failure is not None, came
    assert came.result is None
    return came.failure


async def test_a_publish(app: ActorApp, worker: OperationsWorker) -> None:
    """Its event has the same id, however often it is repeated."""
    for _ in range(2):
        assert await result(worker, "publish", pubsub="pubsub", topic="orders", data={"id": 1}) is None
    first, second = await app.until("/orders", 2)
    assert (first.json["data"], first.json["id"], second.json["id"]) == ({"id": 1}, "x1-3", "x1-3")
    assert first.json["traceparent"].split("-")[1] == TRACE.parent.split("-")[1]


async def test_text_that_is_no_json(app: ActorApp, worker: OperationsWorker) -> None:
    """It goes as it is, and not as a text of JSON."""
    xml = {"data": "<x/>", "contentType": "application/xml; charset=utf-8"}
    assert await result(worker, "publish", pubsub="pubsub", topic="orders", **xml) is None
    (event,) = await app.until("/orders", 1)
    assert (event.json["data"], event.json["datacontenttype"]) == ("<x/>", xml["contentType"])
    app.answer("/pay", 200, b"")
    await result(worker, "invoke", app="app", path="pay", headers={"content-type": "text/plain"}, data="x")
    await result(worker, "invoke", app="app", path="pay", headers={"Content-Type": "text/json"}, data={"a": 1})
    await result(worker, "invoke", app="app", path="pay", data="x")
    assert [each.body for each in app.at("/pay")] == [b"x", b'{"a":1}', b'"x"']


async def test_a_call(app: ActorApp, worker: OperationsWorker) -> None:
    app.answer("/pay", 201, {"ok": True}, X_Receipt="7")
    told = await result(worker, "invoke", app="app", path="pay", headers={"X-A": "1"}, data={"sum": 3})
    assert isinstance(told, dict)
    assert (told["status"], told["data"], told["headers"]["x-receipt"]) == (201, {"ok": True}, "7")
    got = app.at("/pay")[0]
    assert (got.method, got.json) == ("POST", {"sum": 3})
    assert {
        "x-a": "1",
        "mesh-idempotency-key": "x1-3",
        "content-type": "application/json",
        "tracestate": TRACE.state,
    }.items() <= got.headers.items()
    assert got.headers["traceparent"].split("-")[1] == TRACE.parent.split("-")[1]
    app.answer("/text", 200, b"plain")
    assert (await result(worker, "invoke", app="app", path="/text", method="GET"))["data"] == "plain"  # type: ignore[index]
    app.answer("/bytes", 200, b"\xff")
    assert (await result(worker, "invoke", app="app", path="/bytes"))["data"] == "/w=="  # type: ignore[index]


@pytest.mark.parametrize(("status", "final"), [(400, True), (404, True), (408, False), (429, False), (500, False)])
async def test_a_call_that_fails(app: ActorApp, worker: OperationsWorker, status: int, final: bool) -> None:
    app.answer("/pay", status, b"no")
    assert await failure(worker, "invoke", {"app": "app", "path": "/pay"}) == Failure(
        f"HTTP{status}", f"app answered {status}: no", final=final
    )


async def test_state(worker: OperationsWorker) -> None:
    of = {"store": "statestore", "key": "k"}
    assert await result(worker, "state.get", **of) is None
    assert await result(worker, "state.set", **of, value={"n": 1}) is None
    assert await result(worker, "state.get", **of) == {"n": 1}
    assert await result(worker, "state.delete", **of) is None
    assert await result(worker, "state.get", **of) is None


async def test_values_stay_as_they_were_written(app: ActorApp, worker: OperationsWorker) -> None:
    """A number may have more digits than a float."""
    text = '{"app": "app", "path": "/pay", "data": {"n": 12345678901234567890123, "x": 1.10}}'
    assert (await worker.task(work("invoke", text))).failure is None
    assert app.at("/pay")[0].body == b'{"n": 12345678901234567890123, "x": 1.10}'
    deep = f'{{"store": "statestore", "key": "k", "value": {"[" * 1000}{"]" * 1000}}}'
    came = await worker.task(work("state.set", deep))
    assert came.failure is None or came.failure.type == "BAD_ARGUMENT"


async def test_a_binding(app: ActorApp, worker: OperationsWorker) -> None:
    app.answer("/hook", 200, {"taken": 1})
    assert await result(worker, "binding", binding="hook", command="post", data={"x": 1}) == {"taken": 1}
    assert app.at("/hook")[0].json == {"x": 1}


async def test_an_actor(app: ActorApp, worker: OperationsWorker) -> None:
    app.answer("/actors/thing/1/method/add", 200, b"[3]")
    assert await result(worker, "actor", type="thing", id="1", method="add", data=3) == [3]
    got = app.at("/actors/thing/1/method/add")[0]
    assert (got.body, got.headers["mesh-idempotency-key"]) == (b"3", "x1-3")


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("sing", {}, f"there is no operation mesh.sing; there are {', '.join(MEMBERS)}"),
        ("publish", "[]", "the input of mesh.publish must be an object"),
        ("publish", None, "topic must be a string that is not empty"),
        ("state.get", {"kee": "k"}, "the input of mesh.state.get has 'kee', and may have key, metadata, store"),
        ("state.get", {"store": "s", "key": 1}, "key must be a string that is not empty"),
        ("publish", {"topic": "t", "metadata": {"a": 1}}, "metadata must be an object of strings"),
        (
            "invoke",
            {"app": "app", "path": "/a b"},
            "path must be percent-encoded where it has spaces, or other than printable ASCII",
        ),
        (
            "invoke",
            {"app": "app", "path": "/a\r\nx: y"},
            "path must be percent-encoded where it has spaces, or other than printable ASCII",
        ),
        (
            "invoke",
            {"app": "app", "path": "/", "method": "GET /\r\n"},
            "method must be a verb of HTTP, and is 'GET /\\r\\n'",
        ),
        (
            "invoke",
            {"app": "app", "path": "/", "headers": {"a": "b\n"}},
            "the header a cannot hold the character U+000A",
        ),
    ],
)
async def test_what_makes_no_sense(worker: OperationsWorker, name: str, given: object, told: str) -> None:
    assert await worker.task(work(name, given)) == TaskResult(failure=Failure("BAD_ARGUMENT", told, final=True))


async def test_what_is_not_there(worker: OperationsWorker) -> None:
    no_json = await failure(worker, "publish", "{")
    assert (no_json.type, no_json.final) == ("BAD_ARGUMENT", True)
    assert no_json.message.startswith("the input of mesh.publish is no JSON: ")
    missing = await failure(worker, "publish", {"pubsub": "other", "topic": "t"})
    assert (missing.type, missing.final) == ("COMPONENT_NOT_FOUND", True)
    away = await failure(worker, "invoke", {"app": "nobody", "path": "/"})
    assert (away.type, away.final) == ("NO_RESPONDER", False)


def test_what_it_runs() -> None:
    worker = OperationsWorker(None, None)  # type: ignore[arg-type]
    assert worker.runs_activity("mesh.publish")
    assert worker.runs_activity("mesh.sing")
    assert not worker.runs_activity("publish")
    assert not worker.runs_workflow("mesh.publish")
    assert not worker.knows("o-1")
