"""Every route of workflows: what it asks of the block, what it answers, and how it says that something failed.

Source: reference/dapr-surface.md 0, 1.14; reference/observed-layouts.md 7.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
import pytest_asyncio

from mesh.blocks.workflows import (
    Get,
    History,
    HistoryPage,
    List,
    Page,
    Purge,
    PurgeMany,
    RaiseEvent,
    Rerun,
    Resume,
    Show,
    Shown,
    Start,
    Suspend,
    Terminate,
    Wait,
)
from mesh.errors import BrokerUnavailableError, DeadlineExceededError, MeshError, RecordsMissingError
from mesh.workflows import events
from mesh.workflows.errors import (
    WorkflowEventNotFoundError,
    WorkflowExistsError,
    WorkflowForbiddenError,
    WorkflowNotEndedError,
    WorkflowNotFoundError,
    WorkflowStalledError,
)
from mesh.workflows.messages import Told
from mesh.workflows.state import Awaited, State, Status, View
from mesh.workflows.waiting import Child, Raised, Task, Timer, Waiting
from tests.support.workflow_api import Served, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = 1_800_000_000.25
STATE = State(
    1_800_000_000_250,
    "e1",
    "order",
    Status.COMPLETED,
    AT,
    AT + 2,
    started=AT + 1,
    ended=AT + 2,
    events=7,
    turns=3,
    custom_status='"paid"',
)
VIEW = View("o-1", STATE, '{"total": 7}', "done")
STATUS = {
    "instanceID": "o-1",
    "workflowName": "order",
    "createdAt": "2027-01-15T08:00:00.250Z",
    "lastUpdatedAt": "2027-01-15T08:00:02.250Z",
    "runtimeStatus": "COMPLETED",
}
NOT_FOUND = (404, "ERR_INSTANCE_ID_NOT_FOUND", "unable to find workflow with the provided instance ID: o-1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("home")) as served:
        yield served


@pytest.fixture
def served(module_served: Served) -> Served:
    module_served.block.asked.clear()
    module_served.block.deadlines.clear()
    module_served.block.answers.clear()
    return module_served


async def ask(served: Served, verb: str, path: str, body: object = None) -> tuple[int, Any]:
    data = body if isinstance(body, bytes | None) else orjson.dumps(body)
    async with served.http.request(verb, path, data=data) as response:
        assert response.headers["Content-Type"] == "application/json"
        return response.status, await response.json()


W = "/v1.0/workflows/dapr"
MESH = "/v1.0/mesh/workflows"
ASKED: list[tuple[str, str, object, str, object]] = [
    ("POST", f"{W}/order/start", None, "shop", Start("order")),
    ("POST", f"{W}/order/start?instanceID=ä_1-", b'{"a": 1.10}', "shop", Start("order", "ä_1-", '{"a": 1.10}')),
    ("POST", f"{W}/order/start?appID=till", b"no json", "till", Start("order", "", "no json")),
    ("POST", "/v1.0-beta1/workflows/any/a%2Fb/start", None, "shop", Start("a/b")),
    ("POST", "/v1.0-alpha1/workflows/any/w/start?appID=shop", None, "shop", Start("w")),
    ("GET", f"{W}/o-1", None, "shop", Get("o-1")),
    ("GET", f"{W}/a:0001?appID=till", None, "till", Get("a:0001")),
    ("GET", f"{W}/o-1?appID=caf%C3%A9", None, "café", Get("o-1")),
    ("GET", f"{MESH}/o-1?appID=_till", None, "_till", Show("o-1")),
    ("POST", f"{W}/o-1/raiseEvent/yes", b"[1]", "shop", RaiseEvent("o-1", "yes", "[1]")),
    ("POST", f"{W}/o-1/raiseEvent/yes?appID=till", None, "till", RaiseEvent("o-1", "yes")),
    ("POST", f"{W}/o-1/terminate", None, "shop", Terminate("o-1", None, recursive=True)),
    ("POST", f"{W}/o-1/pause", {}, "shop", Suspend("o-1")),
    ("POST", f"{W}/o-1/resume", {"workflow_component": "x", "other": 1}, "shop", Resume("o-1")),
    ("POST", f"{W}/o-1/purge?appID=till", None, "till", Purge("o-1", recursive=True)),
    ("GET", MESH, None, "shop", List()),
    (
        "GET",
        f"{MESH}?status=running,Failed&status=failed&name=order&since=2027-01-15T08:00:00Z&after=x&limit=5&appID=till",
        None,
        "till",
        List((0, 3), "order", 1_800_000_000.0, "x", 5),
    ),
    (
        "POST",
        MESH,
        {"name": "order", "instanceID": "i", "version": "2", "startTime": "2027-01-15T08:00:00Z"},
        "shop",
        Start("order", "i", None, "2", 1_800_000_000.0),
    ),
    ("POST", MESH, b'{"name": "order", "input": {"a": 1.10}}', "shop", Start("order", "", '{"a": 1.10}')),
    ("GET", f"{MESH}/o-1", None, "shop", Show("o-1")),
    ("GET", f"{MESH}/o-1/history?after=2&limit=3", None, "shop", History("o-1", 2, 3)),
    ("POST", f"{MESH}/o-1/rerun", None, "shop", Rerun("o-1", None)),
    (
        "POST",
        f"{MESH}/o-1/rerun",
        b'{"event": 3, "newInstanceID": "n", "input": 1.0, "newChildID": "c"}',
        "shop",
        Rerun("o-1", 3, "n", "1.0", overwrite=True, new_child_id="c"),
    ),
    ("POST", f"{MESH}/o-1/terminate", {"output": [1], "recursive": False}, "shop", Terminate("o-1", "[1]")),
    ("POST", f"{MESH}/o-1/suspend", {"reason": "r"}, "shop", Suspend("o-1", "r")),
    ("POST", f"{MESH}/o-1/resume", None, "shop", Resume("o-1")),
    ("POST", f"{MESH}/o-1/purge", {"force": True}, "shop", Purge("o-1", recursive=True, force=True)),
    ("POST", f"{MESH}/purge", None, "shop", PurgeMany()),
    (
        "POST",
        f"{MESH}/purge?appID=till",
        {"statuses": ["COMPLETED"], "olderThan": "2027-01-15T08:00:00Z", "limit": 2, "force": True, "recursive": True},
        "till",
        PurgeMany((1,), ended_before=1_800_000_000.0, limit=2, force=True, recursive=True),
    ),
]
ANSWERS: dict[str, object] = {
    "start": "made",
    "get": VIEW,
    "purge": Told(2),
    "purge_many": Told(5, complete=False),
    "rerun": "again",
    "list": Page([VIEW], "next"),
    "show": Shown(VIEW, 3, "node"),
    "history": HistoryPage(VIEW, (), 7),
}


@pytest.mark.parametrize(("verb", "path", "body", "app_id", "asked"), ASKED, ids=[f"{a[0]} {a[1]}" for a in ASKED])
async def test_what_is_asked(served: Served, verb: str, path: str, body: object, app_id: str, asked: object) -> None:
    """Of the block, and of which application; what changes something is answered with 202."""
    served.block.answers.update(ANSWERS)
    status, told = await ask(served, verb, path, body)
    assert served.block.asked == [(app_id, asked)]
    if isinstance(asked, Purge | PurgeMany) and "/mesh/" in path:
        assert (status, told) == (200, {"purged": 2, "complete": True}) or told == {"purged": 5, "complete": False}
    elif verb == "POST":
        made = {Start: {"instanceID": "made"}, Rerun: {"instanceID": "again"}}.get(type(asked), {})
        assert (status, told) == (202, made)
    else:
        assert status == 200


async def test_status(served: Served) -> None:
    """The reference's: times with as many digits as they need, and properties that are texts."""
    served.block.answers["get"] = VIEW
    status, told = await ask(served, "GET", f"{W}/o-1")
    properties = {"custom_status": '"paid"', "input": '{"total": 7}', "output": "done"}
    expected = {**STATUS, "properties": {f"dapr.workflow.{name}": value for name, value in properties.items()}}
    assert (status, told) == (200, expected)
    failure = events.Failure("Refused", "no", "line 1")
    state = State(1, "e", "w", 77, 0.0, 1e18)
    served.block.answers["get"] = View("x", state, failure=failure)
    _, told = await ask(served, "GET", f"{W}/x")
    assert told == {
        "instanceID": "x",
        "workflowName": "w",
        "createdAt": "1970-01-01T00:00:00Z",
        "lastUpdatedAt": "9999-12-31T23:59:59Z",
        "runtimeStatus": "UNKNOWN",
        "properties": {
            "dapr.workflow.failure.error_type": "Refused",
            "dapr.workflow.failure.error_message": "no",
            "dapr.workflow.failure.stack_trace": "line 1",
        },
    }


REFUSED: list[tuple[str, str, object, int, str, str]] = [
    ("POST", f"{W}/w/start?instanceID={'ä' * 33}", None, 400, "ERR_INSTANCE_ID_TOO_LONG", "max length of 64"),
    ("POST", f"{W}/w/start?instanceID=a:b", None, 400, "ERR_INSTANCE_ID_INVALID", "instance ID 'a:b' is invalid"),
    ("POST", f"{W}/w/start?appID=a/b", None, 400, "ERR_WORKFLOW_APP_ID_INVALID", "'a/b' is invalid"),
    ("GET", f"{W}/w?appID=a.b", None, 400, "ERR_WORKFLOW_APP_ID_INVALID", "'a.b' is invalid"),
    ("POST", MESH + "?appID=a%20b", None, 400, "ERR_WORKFLOW_APP_ID_INVALID", "'a b' is invalid"),
    ("GET", f"{W}/w?appID=a/b", None, 400, "ERR_WORKFLOW_APP_ID_INVALID", "'a/b' is invalid"),
    ("POST", f"{W}/w/start", b"\xff", 400, "ERR_BAD_REQUEST", "the input is not UTF-8"),
    ("POST", f"{W}/w/raiseEvent/e", b"\xff", 400, "ERR_BAD_REQUEST", "the data is not UTF-8"),
    ("POST", f"{W}/w/raiseEvent/", None, 400, "ERR_WORKFLOW_EVENT_NAME_MISSING", "missing workflow event name"),
    ("POST", f"{W}/w/terminate", b"{", 400, "ERR_MALFORMED_REQUEST", "unexpected end of data"),
    ("POST", f"{W}/w/pause", b"[]", 400, "ERR_MALFORMED_REQUEST", "the body must be an object"),
    ("POST", f"{W}/w/purge", {"instanceID": 1}, 400, "ERR_MALFORMED_REQUEST", "instanceid must be a string"),
    ("POST", f"{W}/w/unknown", None, 404, "ERR_DIRECT_INVOKE", "failed getting app id"),
    ("GET", f"{W}/w/start", None, 404, "ERR_DIRECT_INVOKE", "failed getting app id"),
    ("GET", "/v1.0-alpha2/workflows/dapr/w", None, 404, "ERR_DIRECT_INVOKE", "failed getting app id"),
    ("GET", f"{MESH}?status=runing", None, 400, "ERR_BAD_REQUEST", "there is no status RUNING; did you mean RUNNING?"),
    ("GET", f"{MESH}?since=soon", None, 400, "ERR_BAD_REQUEST", "nor a time as 2030"),
    ("GET", f"{MESH}?limit=0", None, 400, "ERR_BAD_REQUEST", "limit is"),
    ("GET", f"{MESH}/w?wait=x", None, 400, "ERR_BAD_REQUEST", "wait: "),
    ("POST", MESH, None, 400, "ERR_WORKFLOW_NAME_MISSING", "workflow name is not configured"),
    ("POST", MESH, {"name": "w", "startTime": "now"}, 400, "ERR_BAD_REQUEST", "startTime: not a time"),
    ("POST", MESH, {"name": 1}, 400, "ERR_MALFORMED_REQUEST", "name must be a string"),
    ("POST", f"{MESH}/w/rerun", {"newInstanceID": "a/b"}, 400, "ERR_INSTANCE_ID_INVALID", "'a/b' is invalid"),
    ("POST", f"{MESH}/w/rerun", {"event": -1}, 400, "ERR_MALFORMED_REQUEST", "the number of an event"),
    ("POST", f"{MESH}/w/rerun", {"newInstanceID": "a b"}, 400, "ERR_INSTANCE_ID_INVALID", "'a b' is invalid"),
    ("POST", f"{MESH}/w/terminate", {"recursive": 1}, 400, "ERR_MALFORMED_REQUEST", "recursive must be true or false"),
    ("POST", f"{MESH}/w/rerun", {"eventID": 3}, 400, "ERR_MALFORMED_REQUEST", "no member eventid; did you mean event?"),
    ("POST", f"{MESH}/w/suspend", {"why": ""}, 400, "ERR_MALFORMED_REQUEST", "no member why; one of reason"),
    ("POST", f"{MESH}/w/suspend", [], 400, "ERR_MALFORMED_REQUEST", "the body must be an object"),
    ("POST", f"{MESH}/purge", {"status": ["FAILED"]}, 400, "ERR_MALFORMED_REQUEST", "did you mean statuses?"),
    ("POST", f"{MESH}/purge", {"statuses": "a"}, 400, "ERR_MALFORMED_REQUEST", "a list of statuses"),
    ("POST", f"{MESH}/purge", {"statuses": []}, 400, "ERR_MALFORMED_REQUEST", "with one at least"),
    ("POST", f"{MESH}/purge", {"limit": 1001}, 400, "ERR_MALFORMED_REQUEST", "a whole number from 1 to 1000"),
]


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "code", "text"), REFUSED, ids=[f"{each[0]} {each[1]}"[:80] for each in REFUSED]
)
async def test_what_is_refused(
    served: Served, verb: str, path: str, body: object, status: int, code: str, text: str
) -> None:
    """Before the block is asked."""
    got, told = await ask(served, verb, path, body)
    assert (got, told["errorCode"]) == (status, code)
    assert text in told["message"]
    assert served.block.asked == []


OVER = DeadlineExceededError("too late")
FAILED: list[tuple[str, str, str, MeshError, tuple[int, str, str]]] = [
    (
        "start",
        "POST",
        f"{W}/w/start",
        WorkflowExistsError("an active workflow with ID 'i' already exists"),
        (500, "ERR_START_WORKFLOW", "error starting workflow 'w': an active workflow with ID 'i' already exists"),
    ),
    (
        "start",
        "POST",
        f"{W}/w/start",
        WorkflowForbiddenError("access denied by workflow access policy: no"),
        (403, "ERR_START_WORKFLOW", "error starting workflow 'w': access denied by workflow access policy: no"),
    ),
    (
        "start",
        "POST",
        f"{W}/w/start",
        RecordsMissingError("no place"),
        (500, "ERR_START_WORKFLOW", "error starting workflow 'w': no place"),
    ),
    ("get", "GET", f"{W}/o-1", WorkflowNotFoundError("o-1"), NOT_FOUND),
    (
        "get",
        "GET",
        f"{W}/o-1",
        OVER,
        (500, "ERR_GET_WORKFLOW", "error while getting workflow info on instance 'o-1': too late"),
    ),
    (
        "raise_event",
        "POST",
        f"{W}/o-1/raiseEvent/e",
        WorkflowNotFoundError(),
        (500, "ERR_RAISE_EVENT_WORKFLOW", "error raising event on workflow 'o-1': no such instance exists"),
    ),
    (
        "raise_event",
        "POST",
        f"{W}/o-1/raiseEvent/e",
        WorkflowStalledError("it is stalled"),
        (500, "ERR_RAISE_EVENT_WORKFLOW", "error raising event on workflow 'o-1': it is stalled"),
    ),
    ("terminate", "POST", f"{W}/o-1/terminate", WorkflowNotFoundError(), NOT_FOUND),
    (
        "terminate",
        "POST",
        f"{W}/o-1/terminate",
        BrokerUnavailableError("away"),
        (500, "ERR_TERMINATE_WORKFLOW", "error terminating workflow 'o-1': away"),
    ),
    (
        "suspend",
        "POST",
        f"{W}/o-1/pause",
        WorkflowNotFoundError(),
        (500, "ERR_PAUSE_WORKFLOW", "error pausing workflow o-1: no such instance exists"),
    ),
    (
        "resume",
        "POST",
        f"{W}/o-1/resume",
        WorkflowNotFoundError(),
        (500, "ERR_RESUME_WORKFLOW", "error resuming workflow o-1: no such instance exists"),
    ),
    ("purge", "POST", f"{W}/o-1/purge", WorkflowNotFoundError(), NOT_FOUND),
    (
        "purge",
        "POST",
        f"{W}/o-1/purge",
        WorkflowNotEndedError("it runs"),
        (500, "ERR_PURGE_WORKFLOW", "error purging workflow o-1: it runs"),
    ),
    (
        "start",
        "POST",
        MESH,
        WorkflowExistsError("an active workflow with ID 'i' already exists"),
        (409, "ERR_START_WORKFLOW", "error starting workflow 'w': an active workflow with ID 'i' already exists"),
    ),
    (
        "purge",
        "POST",
        f"{MESH}/o-1/purge",
        WorkflowNotEndedError("it runs"),
        (409, "ERR_PURGE_WORKFLOW", "error purging workflow o-1: it runs"),
    ),
    (
        "suspend",
        "POST",
        f"{MESH}/o-1/suspend",
        BrokerUnavailableError("away"),
        (500, "ERR_PAUSE_WORKFLOW", "error pausing workflow o-1: away"),
    ),
    ("purge", "POST", f"{MESH}/o-1/purge", WorkflowNotFoundError(), NOT_FOUND),
    ("rerun", "POST", f"{MESH}/o-1/rerun", WorkflowNotFoundError(), NOT_FOUND),
    ("suspend", "POST", f"{MESH}/o-1/suspend", WorkflowNotFoundError(), NOT_FOUND),
    ("resume", "POST", f"{MESH}/o-1/resume", WorkflowNotFoundError(), NOT_FOUND),
    ("terminate", "POST", f"{MESH}/o-1/terminate", WorkflowNotFoundError(), NOT_FOUND),
    ("show", "GET", f"{MESH}/o-1", WorkflowNotFoundError(), NOT_FOUND),
    ("history", "GET", f"{MESH}/o-1/history", WorkflowNotFoundError(), NOT_FOUND),
    ("list", "GET", MESH, OVER, (500, "ERR_LIST_WORKFLOWS", "error listing workflows: too late")),
    (
        "purge_many",
        "POST",
        f"{MESH}/purge",
        WorkflowForbiddenError("no"),
        (403, "ERR_PURGE_WORKFLOW", "error purging workflows: no"),
    ),
    (
        "rerun",
        "POST",
        f"{MESH}/o-1/rerun",
        WorkflowNotEndedError("it runs"),
        (409, "ERR_RERUN_WORKFLOW", "error rerunning workflow 'o-1': it runs"),
    ),
    (
        "rerun",
        "POST",
        f"{MESH}/o-1/rerun",
        WorkflowEventNotFoundError("no event 0"),
        (404, "ERR_RERUN_WORKFLOW", "error rerunning workflow 'o-1': no event 0"),
    ),
]


@pytest.mark.parametrize(
    ("method", "verb", "path", "error", "expected"),
    FAILED,
    ids=[f"{each[0]} {each[2]} {type(each[3]).__name__}" for each in FAILED],
)
async def test_what_fails(
    served: Served, method: str, verb: str, path: str, error: MeshError, expected: tuple[int, str, str]
) -> None:
    """Codes and texts are the reference's, where it has such a call."""
    served.block.answers[method] = error
    status, told = await ask(served, verb, path, {"name": "w"} if path == MESH and verb == "POST" else None)
    assert (status, told) == (expected[0], {"errorCode": expected[1], "message": expected[2]})


async def test_no_instance(served: Served) -> None:
    """The block knows of none."""
    status, told = await ask(served, "GET", f"{W}/o-1")
    assert (status, told["errorCode"], told["message"]) == NOT_FOUND


async def test_list(served: Served) -> None:
    """With what each waits for, and how the next page is asked for."""
    awaited = (Awaited("go", 1, AT), Awaited("gone", -1, AT))
    waiting = State(1, "e", "w", Status.RUNNING, AT, AT, open_tasks=2, open_children=1, due=AT + 60, awaited=awaited)
    ended = State(1, "e", "w", Status.TERMINATED, AT, AT, open_children=1, ended=AT)
    served.block.answers["list"] = Page([VIEW, View("o-2", waiting), View("o-3", ended)], "place")
    status, told = await ask(served, "GET", f"{MESH}?since=1h")
    expected = {"activities": 2, "children": 1, "nextDue": "2027-01-15T08:01:00.250Z"}
    assert (status, told["after"]) == (200, "place")
    assert told["workflows"][0] == {**STATUS, "endedAt": "2027-01-15T08:00:02.250Z", "customStatus": "paid"}
    assert told["workflows"][1]["waitingFor"] == expected
    assert told["workflows"][1]["waitsForEvents"] == [{"name": "go", "since": "2027-01-15T08:00:00.250Z"}]
    assert "waitingFor" not in told["workflows"][2]
    (_, asked), *_ = served.block.asked
    assert isinstance(asked, List)
    assert asked.created_from == pytest.approx(time.time() - 3600, abs=60)


SINCE = {"since": "2027-01-15T08:00:00.250Z"}
WAITING = Waiting(
    (
        Task(4, "charge", "till", AT, 2, running=True, node="n2"),
        Task(5, "pack", "shop", AT, 1, running=True, worker="http"),
        Task(6, "bill", "shop", AT, 3, running=False, due=AT + 60),
    ),
    (Timer(7, AT, AT + 60), Timer(8, AT, AT + 60, "go"), Timer(9, AT, AT + 60, "", "x")),
    (Awaited("go", 1, AT), Awaited("stop", 2, AT)),
    (Child(10, "ship", "depot", "c-1", AT),),
    (Raised("other", AT),),
    12,
    1,
)
TOLD: dict[str, object] = {
    "tasks": [
        {"task": 4, "activity": "charge", "appID": "till", **SINCE, "attempt": 2, "running": True, "node": "n2"},
        {"task": 5, "activity": "pack", "appID": "shop", **SINCE, "attempt": 1, "running": True}
        | {"node": "n1", "worker": "http"},
        {"task": 6, "activity": "bill", "appID": "shop", **SINCE, "attempt": 3, "running": False}
        | {"due": "2027-01-15T08:01:00.250Z"},
    ],
    "timers": [
        {"task": 7, **SINCE, "due": "2027-01-15T08:01:00.250Z"},
        {"task": 8, **SINCE, "due": "2027-01-15T08:01:00.250Z", "event": "go"},
        {"task": 9, **SINCE, "due": "2027-01-15T08:01:00.250Z", "retries": "x"},
    ],
    "waitsForEvents": [{"name": "go", **SINCE}, {"name": "stop", **SINCE, "count": 2}],
    "children": [{"task": 10, "workflow": "ship", "instanceID": "c-1", "appID": "depot", **SINCE}],
    "raised": [{"name": "other", "at": SINCE["since"]}],
    "waitingFor": {"activities": 3, "children": 1, "timers": 12, "raised": 1},
}


async def test_show(served: Served) -> None:
    """With its texts as the JSON that they are, and what it waits for."""
    served.block.answers["show"] = Shown(VIEW, 3, "n1", None, {"http": 1})
    status, told = await ask(served, "GET", f"{MESH}/o-1")
    assert (status, told["input"], told["output"]) == (200, {"total": 7}, "done")
    assert (told["partition"], told["owner"], told["workers"], told["events"]) == (3, "n1", {"http": 1}, 7)
    assert not TOLD.keys() & told.keys()
    served.block.answers["show"] = Shown(replace(VIEW, stalled="too large"), 3, "n1")
    _, told = await ask(served, "GET", f"{MESH}/o-1")
    assert told["stalled"] == "too large"


async def test_show_what_it_waits_for(served: Served) -> None:
    """Each kind by itself, with when and where, and how many there are; events are known without its owner."""
    state = State(1, "e", "w", Status.RUNNING, AT, AT, open_tasks=3, open_children=1, awaited=(Awaited("go", 1, AT),))
    served.block.answers["show"] = Shown(View("o-1", state), 3, "n1", WAITING, {"http": 1})
    _, told = await ask(served, "GET", f"{MESH}/o-1")
    assert {name: told.get(name) for name in TOLD} == TOLD
    served.block.answers["show"] = Shown(View("o-1", state), 3, None)
    _, told = await ask(served, "GET", f"{MESH}/o-1")
    assert told["waitsForEvents"] == [{"name": "go", **SINCE}]
    assert "tasks" not in told


@pytest.mark.parametrize("error", [None, OVER])
async def test_show_waits(served: Served, error: MeshError | None) -> None:
    """Until the instance has ended, or the time is over; either way it is shown."""
    served.block.answers |= {"wait": error, "show": Shown(VIEW, 3, None)}
    status, told = await ask(served, "GET", f"{MESH}/o-1?wait=30s&appID=till")
    assert (status, told["owner"]) == (200, None)
    assert served.block.asked == [("till", Wait("o-1", texts=False)), ("till", Show("o-1"))]
    assert served.block.deadlines[0] == pytest.approx(time.time() + 30, abs=20)


async def test_waiting_for_none(served: Served) -> None:
    """It is told at once."""
    served.block.answers["wait"] = WorkflowNotFoundError()
    status, told = await ask(served, "GET", f"{MESH}/o-1?wait=30s")
    assert (status, told["errorCode"], told["message"]) == NOT_FOUND


PARENT = events.Parent("till", "p", 3, "sale", "e0")
FAILURE = events.Failure("Refused", "no", "line 1", events.Failure("Inner", "why"), final=True)
MANY: list[tuple[events.Event, dict[str, object]]] = [
    (
        events.Started(AT, "w", "e", "shop", "1", "[1]", "till", PARENT, AT + 1, tags={"a": "b"}),
        {
            "event": "started",
            "workflow": "w",
            "executionID": "e",
            "appID": "shop",
            "version": "1",
            "input": [1],
            "callerAppID": "till",
            "parent": {"appID": "till", "instanceID": "p", "task": 3, "name": "sale", "execution": "e0"},
            "scheduled": "2027-01-15T08:00:01.250Z",
            "tags": {"a": "b"},
        },
    ),
    (events.TurnStarted(AT, "2", ("p",)), {"event": "turn", "version": "2", "patches": ["p"]}),
    (
        events.TaskScheduled(AT, 0, "charge", "x", "no json", retry=events.Retry(3)),
        {
            "event": "scheduled",
            "task": 0,
            "activity": "charge",
            "input": "no json",
            "retry": {"attempts": 3, "first": 1.0, "factor": 1.0, "longest": None, "within": None, "never": []},
        },
    ),
    (
        events.TaskScheduled(AT, 1, "audit", "x", propagation=2),
        {"event": "scheduled", "task": 1, "activity": "audit", "propagate": "lineage"},
    ),
    (
        events.TaskScheduled(AT, 1, "audit", "x", propagation=0),
        {"event": "scheduled", "task": 1, "activity": "audit"},
    ),
    (
        events.Inherited(AT, 1, (events.Ancestor("till", "p", "sale", (b"\x90",)),)),
        {
            "event": "inherited",
            "scope": "own",
            "workflows": [{"appID": "till", "instanceID": "p", "workflow": "sale", "events": 0}],
        },
    ),
    (events.TaskCompleted(AT, 0, "x", "1.10"), {"event": "completed", "task": 0, "result": 1.10}),
    (
        events.TaskFailed(AT, 0, "x", FAILURE),
        {
            "event": "failed",
            "task": 0,
            "error": {
                "type": "Refused",
                "message": "no",
                "final": True,
                "stackTrace": "line 1",
                "cause": {"type": "Inner", "message": "why"},
            },
        },
    ),
    (
        events.Retrying(AT, 0, 2, AT + 1, events.Failure("E", "m")),
        {
            "event": "retrying",
            "task": 0,
            "attempt": 2,
            "due": "2027-01-15T08:00:01.250Z",
            "error": {"type": "E", "message": "m"},
        },
    ),
    (events.TimerCreated(AT, 1, (1_800_000_001, 0)), {"event": "timer", "task": 1, "fireAt": "2027-01-15T08:00:01Z"}),
    (events.TimerCreated(AT, 1, (events.FOREVER, 999)), {"event": "timer", "task": 1, "fireAt": "never"}),
    (events.TimerFired(AT, 1, (1_800_000_001, 0)), {"event": "fired", "task": 1, "fireAt": "2027-01-15T08:00:01Z"}),
    (
        events.ChildCreated(AT, 2, "c", "ship", app="till"),
        {"event": "child", "task": 2, "workflow": "ship", "instanceID": "c", "appID": "till"},
    ),
    (events.ChildCompleted(AT, 2, "{}"), {"event": "childCompleted", "task": 2, "result": {}}),
    (
        events.ChildFailed(AT, 2, events.Failure("E", "m")),
        {"event": "childFailed", "task": 2, "error": {"type": "E", "message": "m"}},
    ),
    (events.EventSent(AT, 3, "c", "yes"), {"event": "sent", "task": 3, "name": "yes", "instanceID": "c"}),
    (events.EventRaised(AT, "yes", "true", "token"), {"event": "raised", "name": "yes", "data": True}),
    (events.DetachedCreated(AT, 4, "d"), {"event": "detached", "task": 4, "instanceID": "d"}),
    (events.Suspended(AT, "r"), {"event": "suspended", "reason": "r"}),
    (events.Resumed(AT), {"event": "resumed"}),
    (events.Stalled(AT, 1, "no version"), {"event": "stalled", "reason": 1, "why": "no version"}),
    (events.Terminated(AT, "0", recursive=True), {"event": "terminated", "output": 0, "recursive": True}),
    (events.Completed(AT, 5, 1, "[]"), {"event": "ended", "task": 5, "runtimeStatus": "COMPLETED", "result": []}),
]


async def test_history(served: Served) -> None:
    """Each kind of event, with all that it tells; a page that is not the last one says where it ends."""
    shown = [event for event, _ in MANY]
    served.block.answers["history"] = HistoryPage(VIEW, shown, len(shown) + 3)
    status, told = await ask(served, "GET", f"{MESH}/o-1/history?after=2")
    assert (status, told["total"], told["after"]) == (200, len(shown) + 3, len(shown) + 2)
    at = {"at": "2027-01-15T08:00:00.250Z"}
    assert told["events"] == [{**at, **each} for _, each in MANY]
    assert {type(event) for event, _ in MANY} == set(events.AnyEvent.__args__)


async def test_the_client_says_how_long_it_waits(served: Served) -> None:
    served.block.answers["start"] = "made"
    async with served.http.post(f"{W}/w/start", headers={"mesh-timeout": "300s"}) as response:
        assert response.status == 202
    assert served.block.deadlines[0] == pytest.approx(time.time() + 300, abs=60)
