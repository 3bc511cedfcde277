"""An application as a worker over HTTP: a real one, and the gateway's client to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import orjson
import pytest
from aiohttp import web

from gateway.http.application import HTTPApplication
from mesh.errors import AppFailedError, AppUnreachableError
from mesh.tasks import task_group
from mesh.workflows.actions import Answer, Complete, ScheduleTask
from mesh.workflows.application import MAX_ANSWER_BYTES, ApplicationWorker
from mesh.workflows.declared import Declared, read_declared
from mesh.workflows.events import Ancestor, Failure, Inherited, Started, Trace, TurnStarted
from mesh.workflows.propagation import LINEAGE
from mesh.workflows.state import Status
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork
from tests.http.harness import App, Got

AT = 1_800_000_000.0
TRACE = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "v=1")
RUN, CHARGE = "/workflow/run/order", "/workflow/activity/charge"
DECLARED = Declared(frozenset({"order"}), frozenset({"charge"}))


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with App() as app:
        yield app


@pytest.fixture
async def worker(app: App) -> AsyncIterator[ApplicationWorker]:
    async with HTTPApplication(f"http://127.0.0.1:{app.port}", token="secret") as application:
        yield ApplicationWorker(application, DECLARED)


def turn(number: int = 1) -> TurnWork:
    started = Started(AT, "order", "x1", "shop", input="7", trace=TRACE)
    past = (TurnStarted(AT), started) * (number > 1)
    new = (TurnStarted(AT),) if past else (TurnStarted(AT), started)
    return TurnWork(Ref(3, "o-1"), "shop", "order", "x1", 7, number, past, new)


def task(text: str | None = '{"total":7}', name: str = "charge", instance: str = "o-1") -> TaskWork:
    return TaskWork("shop", instance, "order", 7, 3, 2, name, "x1-3", "shop", AT, text, trace=TRACE)


async def test_an_activity(app: App, worker: ApplicationWorker) -> None:
    """What it gets, and that its result stays as it was written."""
    app.answer(CHARGE, 200, b'{ "ok":true }')
    assert await worker.task(task()) == TaskResult('{ "ok":true }')
    got = app.at(CHARGE)[0]
    assert (got.method, got.body) == ("POST", b'{"total":7}')
    told = {
        "content-type": "application/json",
        "dapr-api-token": "secret",
        "mesh-workflow-instance": "o-1",
        "mesh-workflow-name": "order",
        "mesh-workflow-task": "3",
        "mesh-workflow-attempt": "2",
        "mesh-idempotency-key": "x1-3",
        "traceparent": TRACE.parent,
        "tracestate": "v=1",
    }
    assert told.items() <= got.headers.items()


async def test_an_activity_that_history_goes_along_with(app: App, worker: ApplicationWorker) -> None:
    """A header tells of the other body; the worker does not hold it while the application works."""
    app.answer(CHARGE, 200, b"1")
    given = task()
    events = msgspec.msgpack.encode((TurnStarted(AT),))
    given.inherited = Inherited(AT, LINEAGE, (Ancestor("shop", "o-1", "order", (events,)),))
    await worker.task(given)
    got = app.at(CHARGE)[0]
    assert got.headers["mesh-workflow-inherited"] == "lineage"
    told = orjson.loads(got.body)
    assert (told["input"], told["inherited"]["scope"]) == ({"total": 7}, "lineage")
    assert [each["event"] for each in told["inherited"]["workflows"][0]["history"]] == ["turn"]
    assert given.inherited is None
    await worker.task(given)
    assert "mesh-workflow-inherited" not in app.at(CHARGE)[1].headers


async def test_names_in_paths_and_headers(app: App, worker: ApplicationWorker) -> None:
    """They may have anything; no input is no body."""
    assert await worker.task(task(None, "a/b c", "ä%\r\nx: y")) == TaskResult()
    got = app.got[0]
    assert (got.target, got.body) == ("/workflow/activity/a%2Fb%20c", b"")
    assert got.headers["mesh-workflow-instance"] == "%C3%A4%25%0D%0Ax:%20y"


@pytest.mark.parametrize(
    ("status", "body", "result"),
    [
        (200, b"", TaskResult()),
        (200, b" \n", TaskResult()),
        (204, b"", TaskResult()),
        (201, b'"x"', TaskResult('"x"')),
        (404, b"", Failure("ActivityNotFound", "activity 'charge': the application answered 404", final=True)),
        (400, b"", Failure("ActivityFailed", "activity 'charge': the application answered 400", final=True)),
        (402, b'{"type": "Refused", "message": "no"}', Failure("Refused", "no", final=True)),
        (500, b'{"type": "Away", "message": "m", "stack": "s"}', Failure("Away", "m", "s")),
        (502, b"bad gateway", Failure("ActivityFailed", "bad gateway")),
        (500, b'{"message": "m", "final": true}', Failure("ActivityFailed", "m", final=True)),
        (302, b"", Failure("ActivityFailed", "activity 'charge': the application answered 302", final=True)),
    ],
)
async def test_what_comes_of_an_activity(
    app: App, worker: ApplicationWorker, status: int, body: bytes, result: TaskResult | Failure
) -> None:
    app.answer(CHARGE, status, body)
    assert await worker.task(task()) == (result if isinstance(result, TaskResult) else TaskResult(failure=result))


@pytest.mark.parametrize("body", [b"<html>", b'{"a":', b'"\xff"', b"[1] 2"])
async def test_a_result_that_is_no_json(app: App, worker: ApplicationWorker, body: bytes) -> None:
    app.answer(CHARGE, 200, body)
    failure = (await worker.task(task())).failure
    assert failure is not None
    assert (failure.type, failure.final) == ("InvalidResult", True)
    assert failure.message.startswith("activity 'charge': its result is no JSON: ")


@pytest.mark.parametrize("status", [408, 425, 429, 503])
async def test_what_was_not_taken(app: App, worker: ApplicationWorker, status: int) -> None:
    """Neither is an attempt."""
    app.answer(CHARGE, status)
    app.answer(RUN, status)
    with pytest.raises(AppUnreachableError, match=f"'charge': the application answered {status}"):
        await worker.task(task())
    with pytest.raises(AppUnreachableError, match=f"'order': the application answered {status}"):
        await worker.turn(turn())


async def test_retry_after_is_heeded(app: App, worker: ApplicationWorker) -> None:
    """The place stays taken for so long, but no longer than the worker is there."""
    app.answer(CHARGE, 429, b"", Retry_After="20")
    with pytest.raises(AppUnreachableError, match="answered 429"):
        async with task_group() as tasks:
            refused = tasks.create_task(worker.task(task()))
            await app.until(CHARGE)
            assert not (await asyncio.wait([refused], timeout=0.05))[0]
            worker.ended.set()


async def test_an_application_that_is_away_or_breaks_off(app: App, worker: ApplicationWorker) -> None:
    def drop(got: Got, request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    app.answers[CHARGE] = app.answers[RUN] = drop
    for work in (worker.task(task()), worker.turn(turn())):
        with pytest.raises(AppFailedError):
            await work
    await app.stop()
    for work in (worker.task(task()), worker.turn(turn())):
        with pytest.raises(AppUnreachableError):
            await work


async def test_limits_of_time(app: App) -> None:
    async def never(_: Got, __: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    app.answers[CHARGE] = app.answers[RUN] = never
    async with HTTPApplication(f"http://127.0.0.1:{app.port}") as application:
        worker = ApplicationWorker(application, Declared(turn_seconds=0.05, task_seconds=0.05))
        failure = Failure("ActivityTimeout", "activity 'charge': no answer within 0.05 s")
        assert await worker.task(task()) == TaskResult(failure=failure)
        with pytest.raises(AppFailedError, match="'order': no answer to a turn within"):
            await worker.turn(turn())


async def test_waiting_for_a_place_is_no_time_of_the_application(app: App) -> None:
    """Where ``--app-max-concurrency`` limits calls, the limits of time begin once there is a place."""
    free = asyncio.Event()

    async def when_free(_: Got, __: web.BaseRequest) -> web.StreamResponse:
        await free.wait()
        return web.Response()

    app.answers[CHARGE] = when_free
    async with (
        HTTPApplication(f"http://127.0.0.1:{app.port}", permits=asyncio.Semaphore(1)) as application,
        task_group() as tasks,
    ):
        first = tasks.create_task(ApplicationWorker(application, Declared()).task(task()))
        await app.until(CHARGE, 1)
        worker = ApplicationWorker(application, Declared(task_seconds=0.1))
        second = tasks.create_task(worker.task(task()))
        assert (await asyncio.wait([second], timeout=0.3))[0] == set()
        free.set()
        assert await first == await second == TaskResult()
        free.clear()
        late = await worker.task(task())
        assert late.failure is not None
        assert late.failure.type == "ActivityTimeout"


async def test_an_answer_that_is_too_large(app: App, worker: ApplicationWorker) -> None:
    body = b'"' + b"x" * MAX_ANSWER_BYTES + b'"'
    app.answer(CHARGE, 200, body)
    app.answer(RUN, 200, body)
    text = f"the answer is larger than {MAX_ANSWER_BYTES} bytes"
    assert await worker.task(task()) == TaskResult(
        failure=Failure("InvalidResult", f"activity 'charge': {text}", final=True)
    )
    assert failure_in(await worker.turn(turn())) == Failure("InvalidAnswer", f"workflow 'order': {text}", final=True)


# Turns


def failure_in(answer: Answer) -> Failure | None:
    (end,) = answer.actions
    assert isinstance(end, Complete)
    assert end.status == Status.FAILED
    return end.failure


async def test_a_turn(app: App, worker: ApplicationWorker) -> None:
    app.answer(RUN, 200, {"actions": [{"activity": "charge"}], "status": "charging"})
    answer = await worker.turn(turn())
    assert answer == Answer((ScheduleTask(1, "charge"),), '"charging"', whole=True, waits=())
    got = app.at(RUN)[0]
    assert (got.json["instance"], got.json["input"], got.json["turn"]) == ("o-1", 7, 1)
    assert {"traceparent": TRACE.parent, "content-type": "application/json"}.items() <= got.headers.items()


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (404, b"", Failure("WorkflowNotFound", "workflow 'order': the application answered 404", final=True)),
        (400, b'{"type": "T", "message": "m"}', Failure("T", "m", final=True)),
        (422, b"no", Failure("WorkflowFailed", "no", final=True)),
        (
            200,
            b'{"actions": [{"activity": "a", "retry": {}}]}',
            Failure(
                "InvalidAnswer",
                "workflow 'order': actions[0].retry: object missing required field `attempts`",
                final=True,
            ),
        ),
    ],
)
async def test_a_turn_that_fails_the_instance(
    app: App, worker: ApplicationWorker, status: int, body: bytes, failure: Failure
) -> None:
    app.answer(RUN, status, body)
    assert failure_in(await worker.turn(turn())) == failure


@pytest.mark.parametrize("status", [302, 401, 403, 412, 500, 502])
async def test_a_turn_that_is_run_again(app: App, worker: ApplicationWorker, status: int) -> None:
    """Nobody's workflows fail since something stands before the application."""
    app.answer(RUN, status)
    with pytest.raises(AppFailedError, match=f"workflow 'order': the application answered {status}"):
        await worker.turn(turn())


async def test_a_history_that_the_application_keeps(app: App, worker: ApplicationWorker) -> None:
    """It is sent what it has not; everything, where it has lost that or the execution is another one."""

    def run(got: Got, request: web.BaseRequest) -> web.StreamResponse:
        if got.json["from"] and lost:
            return web.Response(status=412)
        return web.Response(body=b"{}", headers={"Mesh-Workflow-Kept": "2"})

    lost = False
    app.answers[RUN] = run
    await worker.turn(turn())
    assert worker.knows("o-1")
    assert not worker.knows("o-2")
    await worker.turn(turn(2))
    lost = True
    await worker.turn(turn(2))
    other = turn(2)
    other.execution = "x2"
    await worker.turn(other)
    assert [(got.json["from"], len(got.json["history"])) for got in app.got] == [
        (0, 2), (2, 1), (2, 1), (0, 3), (0, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("told", ["", "x", "0", "-1", "99", "1" * 5000, "²"])
async def test_what_cannot_be_kept(app: App, worker: ApplicationWorker, told: str) -> None:
    app.answers[RUN] = lambda got, request: web.Response(body=b"{}", headers={"mesh-workflow-kept": told})
    await worker.turn(turn())
    assert not worker.knows("o-1")


# What it declares


def test_names() -> None:
    def runs(workflows: set[str], activities: set[str]) -> ApplicationWorker:
        return ApplicationWorker(None, Declared(frozenset(workflows), frozenset(activities)))  # type: ignore[arg-type]

    named, all_ = runs({"order"}, {"charge"}), runs({"*"}, {"*"})
    assert [named.runs_workflow("order"), named.runs_workflow("other"), all_.runs_workflow("other")] == [1, 0, 1]
    assert [named.runs_activity("charge"), named.runs_activity("other"), all_.runs_activity("other")] == [1, 0, 1]
    assert not all_.runs_activity("mesh.publish")
    assert not all_.runs_workflow("..")
    assert not all_.runs_activity("..")


def test_all_that_can_be_declared() -> None:
    document = {
        "entities": ["cart"],
        "Workflows": ["order", "order", "*"],
        "activities": ["charge"],
        "workflowSettings": {
            "maxConcurrentWorkflows": 5,
            "maxConcurrentActivities": 6,
            "turnTimeout": "10s",
            "activityTimeout": "1h",
        },
    }
    declared = Declared(frozenset({"order", "*"}), frozenset({"charge"}), 5, 6, 10, 3600)
    assert read_declared(orjson.dumps(document)) == (declared, [])
    assert declared
    assert not Declared()


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", ""),
        (b"<html>", ""),
        (b"[]", ""),
        (b"{}", ""),
        (b'{"workflows": "order"}', "workflows must be an array of names, and is 'order'; the default counts"),
        (b'{"workflows": [1]}', "workflows[0]: a name must be a string that is not empty, not 1"),
        (b'{"activities": [".."]}', "activities[0]: '..' can be no part of a path"),
        (
            b'{"activities": ["mesh.x"]}',
            "activities[0]: 'mesh.x': names that begin with 'mesh.' are operations of the mesh",
        ),
        (b'{"workflowSettings": []}', "workflowSettings must be an object, and is []; the default counts"),
        (
            b'{"workflowSettings": {"turntimout": "5s"}}',
            "workflowSettings has no 'turntimout'; there are maxConcurrentWorkflows, maxConcurrentActivities,"
            " turnTimeout, activityTimeout",
        ),
        (
            b'{"workflowSettings": {"maxConcurrentWorkflows": 0}}',
            "workflowSettings.maxConcurrentWorkflows must be a whole number from 1 to 10000, and is 0;"
            " the default counts",
        ),
        (
            b'{"workflowSettings": {"turnTimeout": 5}}',
            "workflowSettings.turnTimeout must be a duration such as '60m' or '1h30m', and is 5; the default counts",
        ),
    ],
)
def test_what_declares_nothing(document: bytes, problem: str) -> None:
    declared, problems = read_declared(document)
    assert (declared, problems) == (Declared(), [problem] if problem else [])
