"""Every method of workflows of the service ``Dapr``: what it asks of the block, what it answers, and how it fails.

Source: reference/dapr-surface.md 1.14, 8.4; reference/observed-layouts.md 7.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from mesh.blocks.workflows import Get, Purge, RaiseEvent, Resume, Start, Suspend, Terminate
from mesh.errors import BrokerUnavailableError, DeadlineExceededError, MeshError, RecordsMissingError
from mesh.workflows.errors import WorkflowExistsError, WorkflowForbiddenError, WorkflowNotFoundError
from mesh.workflows.events import Failure
from mesh.workflows.state import State, Status, View
from tests.grpc.harness import Client, client, refused
from tests.http.harness import Backbone, gateway
from tests.http.workflow_app import Worker
from tests.support.eventually import eventually
from tests.support.workflow_api import Served, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERSIONS = ("Beta1", "Alpha1")
ONE: Mapping[str, str] = {"instance_id": "o-1", "workflow_component": "dapr"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, Client]]:
    async with (
        serving(tmp_path_factory.mktemp("home")) as served,
        grpc.aio.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel,
    ):
        yield served, Client(channel)


@pytest.fixture
def served(module_served: tuple[Served, Client]) -> tuple[Served, Client]:
    module_served[0].block.asked.clear()
    module_served[0].block.answers.clear()
    return module_served


ASKED: list[tuple[str, Mapping[str, Any], str, object]] = [
    ("Start", {"workflow_name": "order"}, "shop", Start("order")),
    (
        "Start",
        {
            **ONE,
            "workflow_name": "order",
            "input": b'{"a": 1.10}',
            "options": {"dapr.workflow.start_time": "2027-01-15T08:00:00Z", "other": "x"},
            "app_id": "till",
        },
        "till",
        Start("order", "o-1", '{"a": 1.10}', scheduled=1_800_000_000.0),
    ),
    ("RaiseEvent", {**ONE, "event_name": "yes", "event_data": b"1"}, "shop", RaiseEvent("o-1", "yes", "1")),
    ("RaiseEvent", {**ONE, "event_name": "yes", "app_id": "till"}, "till", RaiseEvent("o-1", "yes")),
    ("Terminate", ONE, "shop", Terminate("o-1", recursive=True)),
    ("Pause", ONE, "shop", Suspend("o-1")),
    ("Resume", {**ONE, "app_id": "till"}, "till", Resume("o-1")),
    ("Purge", ONE, "shop", Purge("o-1", recursive=True)),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "fields", "app_id", "asked"), ASKED)
async def test_what_is_asked(
    served: tuple[Served, Client], version: str, name: str, fields: Mapping[str, Any], app_id: str, asked: object
) -> None:
    """Of the block, and of which application."""
    block, client = served[0].block, served[1]
    block.answers["start"] = "made"
    told = await client.call(f"{name}Workflow{version}", **fields)
    assert block.asked == [(app_id, asked)]
    assert told == ({"instance_id": "made"} if name == "Start" else {})


@pytest.mark.parametrize("version", VERSIONS)
async def test_status(served: tuple[Served, Client], version: str) -> None:
    """As over HTTP."""
    block, client = served[0].block, served[1]
    state = State(1, "e", "order", Status.FAILED, 1_800_000_000.25, 1_800_000_001.0)
    block.answers["get"] = View("o-1", state, "7", failure=Failure("Refused", "no"))
    told = await client.call(f"GetWorkflow{version}", **ONE)
    assert block.asked == [("shop", Get("o-1"))]
    assert told == {
        "instance_id": "o-1",
        "workflow_name": "order",
        "created_at": "2027-01-15T08:00:00.250Z",
        "last_updated_at": "2027-01-15T08:00:01Z",
        "runtime_status": "FAILED",
        "properties": {
            "dapr.workflow.input": "7",
            "dapr.workflow.failure.error_type": "Refused",
            "dapr.workflow.failure.error_message": "no",
        },
    }


REFUSED: list[tuple[str, Mapping[str, Any], str]] = [
    ("Start", {}, "workflow name is not configured"),
    ("Start", {"workflow_name": "w", "instance_id": "a" * 65}, "workflow instance ID exceeds the max length of 64"),
    ("Start", {"workflow_name": "w", "instance_id": "a b"}, "workflow instance ID 'a b' is invalid"),
    ("Start", {"workflow_name": "w", "input": b"\xff"}, "invalid request: the input is not UTF-8"),
    (
        "Start",
        {"workflow_name": "w", "options": {"dapr.workflow.start_time": "soon"}},
        "invalid request: the option dapr.workflow.start_time: not a time",
    ),
    ("Start", {"workflow_name": "w", "app_id": "a b"}, "the app ID 'a b' is invalid"),
    ("RaiseEvent", ONE, "missing workflow event name"),
    ("RaiseEvent", {**ONE, "event_name": "e", "event_data": b"\xff"}, "invalid request: the data is not UTF-8"),
    *((name, {}, "no instance ID was provided") for name in ("Get", "Terminate", "Pause", "Resume", "Purge")),
    ("RaiseEvent", {"event_name": "e"}, "no instance ID was provided"),
]


@pytest.mark.parametrize(("name", "fields", "text"), REFUSED)
async def test_what_is_refused(served: tuple[Served, Client], name: str, fields: Mapping[str, Any], text: str) -> None:
    """Before the block is asked."""
    code, told = await refused(served[1], f"{name}WorkflowBeta1", **fields)
    assert code == "INVALID_ARGUMENT"
    assert told.startswith(text)
    assert served[0].block.asked == []


NOT_FOUND = ("NOT_FOUND", "unable to find workflow with the provided instance ID: o-1")
FAILED: list[tuple[str, str, MeshError, tuple[str, str]]] = [
    ("Start", "start", WorkflowExistsError("it is active"), ("INTERNAL", "error starting workflow 'w': it is active")),
    ("Start", "start", WorkflowForbiddenError("no"), ("PERMISSION_DENIED", "error starting workflow 'w': no")),
    (
        "Start",
        "start",
        RecordsMissingError("no place"),
        ("FAILED_PRECONDITION", "error starting workflow 'w': no place"),
    ),
    ("Start", "start", BrokerUnavailableError("away"), ("UNAVAILABLE", "error starting workflow 'w': away")),
    ("Get", "get", WorkflowNotFoundError(), NOT_FOUND),
    (
        "Get",
        "get",
        DeadlineExceededError("late"),
        ("DEADLINE_EXCEEDED", "error while getting workflow info on instance 'o-1': late"),
    ),
    ("Terminate", "terminate", WorkflowNotFoundError(), NOT_FOUND),
    ("Purge", "purge", WorkflowNotFoundError(), NOT_FOUND),
    (
        "Pause",
        "suspend",
        WorkflowNotFoundError(),
        ("NOT_FOUND", "error pausing workflow o-1: no such instance exists"),
    ),
    (
        "Resume",
        "resume",
        WorkflowNotFoundError(),
        ("NOT_FOUND", "error resuming workflow o-1: no such instance exists"),
    ),
    (
        "RaiseEvent",
        "raise_event",
        WorkflowNotFoundError(),
        ("NOT_FOUND", "error raising event on workflow 'o-1': no such instance exists"),
    ),
]


@pytest.mark.parametrize(("name", "method", "error", "expected"), FAILED)
async def test_what_fails(
    served: tuple[Served, Client], name: str, method: str, error: MeshError, expected: tuple[str, str]
) -> None:
    """Texts are the reference's."""
    served[0].block.answers[method] = error
    fields = {"Start": {"workflow_name": "w"}, "RaiseEvent": {**ONE, "event_name": "e"}}.get(name, ONE)
    assert await refused(served[1], f"{name}WorkflowBeta1", **fields) == expected


@pytest.mark.asyncio
async def test_a_life(memory: Backbone, tmp_path: Path) -> None:
    """All of them, against the real block."""
    async with (
        Worker() as app,
        gateway(memory, tmp_path, app=app, app_id="shop") as node,
        client(node) as called,
    ):

        async def until(status: str) -> dict[str, Any]:
            async def check() -> dict[str, Any]:
                told = await called.call("GetWorkflowBeta1", **ONE)
                assert told["runtime_status"] == status
                return told

            return dict(await eventually(check))

        started = await called.call("StartWorkflowBeta1", **ONE, workflow_name="order", input=b"7")
        assert started == {"instance_id": "o-1"}
        code, text = await refused(called, "StartWorkflowAlpha1", **ONE, workflow_name="order")
        assert (code, "an active workflow with ID 'o-1' already exists" in text) == ("INTERNAL", True)
        await called.call("PauseWorkflowBeta1", **ONE)
        await until("SUSPENDED")
        await called.call("ResumeWorkflowBeta1", **ONE)
        await called.call("RaiseEventWorkflowBeta1", **ONE, event_name="go", event_data=b"1.5")
        told = await until("COMPLETED")
        assert told["properties"]["dapr.workflow.input"] == "7"
        assert told["properties"]["dapr.workflow.output"] == "1.5"
        await called.call("PurgeWorkflowBeta1", **ONE)
        assert (await refused(called, "GetWorkflowBeta1", **ONE))[0] == "NOT_FOUND"
        await called.call("StartWorkflowBeta1", **ONE, workflow_name="order")
        await called.call("TerminateWorkflowBeta1", **ONE)
        await until("TERMINATED")
