"""The management of workflows against the real block: every route, the command line, rights, limits, metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.dispatch import main
from tests.http.harness import Backbone, Node, gateway, yaml
from tests.http.workflow_app import Worker
from tests.support.collector import Collector
from tests.support.eventually import eventually

W, MESH = "/v1.0/workflows/dapr", "/v1.0/mesh/workflows"
NAMES = ("create_orchestration||order", "orchestration||order", "activity||charge")


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    async with Worker() as worker:
        yield worker


async def until(node: Node, instance: str, status: str) -> dict[str, Any]:
    async def check() -> dict[str, Any]:
        told = (await node.get(f"{MESH}/{instance}")).json
        assert told["runtimeStatus"] == status, told
        return dict(told)

    return dict(await eventually(check))


async def post(node: Node, path: str, body: object = None) -> Any:
    reply = await node.post(path, body)
    assert reply.status in (200, 202), reply
    return reply.json


async def test_a_life(backbone: Backbone, worker: Worker, tmp_path: Path) -> None:
    """An instance is started, suspended, resumed, told something, looked at in every way, run again and purged."""
    async with gateway(backbone, tmp_path, app=worker, app_id="shop") as node:
        metadata = (await node.get("/v1.0/metadata")).json
        assert metadata["workflows"] == {"connectedWorkers": 1}
        assert await post(node, f"{W}/order/start?instanceID=o-1", {"total": 7}) == {"instanceID": "o-1"}
        again = await node.post(f"{W}/order/start?instanceID=o-1")
        assert (again.status, again.json["errorCode"]) == (500, "ERR_START_WORKFLOW")
        assert "an active workflow with ID 'o-1' already exists" in again.json["message"]
        await worker.until("/workflow/run/order", 2)
        assert await post(node, f"{W}/o-1/pause", {}) == {}
        told = await until(node, "o-1", "SUSPENDED")
        assert (told["input"], told["customStatus"]) == ({"total": 7}, "waiting")
        assert [each["name"] for each in told["waitsForEvents"]] == ["go"]
        assert await post(node, f"{W}/o-1/raiseEvent/go", [1.5]) == {}
        told = (await node.get(f"{MESH}/o-1")).json
        assert ([each["name"] for each in told["raised"]], told["waitingFor"]) == (["go"], {"raised": 1})
        assert await post(node, f"{W}/o-1/resume") == {}
        reply = await node.get(f"{MESH}/o-1?wait=30s")
        assert (reply.json["runtimeStatus"], reply.json["output"]) == ("COMPLETED", [1.5])
        status = (await node.get(f"{W}/o-1")).json
        assert status["runtimeStatus"] == "COMPLETED"
        assert status["properties"]["dapr.workflow.output"] == "[1.5]"
        listed = (await node.get(f"{MESH}?status=completed&name=order&since=1h")).json
        assert [each["instanceID"] for each in listed["workflows"]] == ["o-1"]
        assert (await node.get(f"{MESH}?status=running")).json == {"workflows": []}
        history = (await node.get(f"{MESH}/o-1/history")).json
        kinds = [each["event"] for each in history["events"]]
        assert {"started", "turn", "scheduled", "completed", "raised", "ended"} <= set(kinds)
        assert history["total"] == len(kinds)
        scheduled = next(each for each in history["events"] if each["event"] == "scheduled")
        rerun = await post(node, f"{MESH}/o-1/rerun", {"event": scheduled["task"], "newInstanceID": "o-2"})
        assert rerun == {"instanceID": "o-2"}
        await post(node, f"{W}/o-2/raiseEvent/go", 2)
        assert (await node.get(f"{MESH}/o-2?wait=30s")).json["output"] == 2
        assert (await post(node, f"{MESH}/o-1/purge"))["purged"] == 1
        assert (await post(node, f"{MESH}/purge", {"statuses": ["COMPLETED"]})) == {"purged": 1, "complete": True}
        for path in (f"{W}/o-1", f"{MESH}/o-1", f"{MESH}/o-2/history"):
            gone = await node.get(path)
            assert (gone.status, gone.json["errorCode"]) == (404, "ERR_INSTANCE_ID_NOT_FOUND")


async def test_terminating_and_purging(memory: Backbone, worker: Worker, tmp_path: Path) -> None:
    """What has not ended is purged only by force; what has takes no events, and another start under its id."""
    async with gateway(memory, tmp_path, app=worker, app_id="shop") as node:
        await post(node, f"{W}/order/start?instanceID=o-1")
        refused = await node.post(f"{W}/o-1/purge")
        assert (refused.status, refused.json["errorCode"]) == (500, "ERR_PURGE_WORKFLOW")
        await post(node, f"{MESH}/o-1/terminate", {"output": {"why": 1}})
        told = await until(node, "o-1", "TERMINATED")
        assert told["output"] == {"why": 1}
        await post(node, f"{W}/order/start?instanceID=o-1")
        await worker.until("/workflow/run/order", 2)
        assert (await post(node, f"{MESH}/o-1/purge", {"force": True}))["purged"] == 1
        assert (await node.get(f"{W}/o-1")).status == 404
        for verb, path in (("POST", "pause"), ("POST", "resume"), ("POST", "raiseEvent/go")):
            none = await node.request(verb, f"{W}/none/{path}")
            assert (none.status, "no such instance exists" in none.json["message"]) == (500, True), none.json
        assert (await node.post(f"{W}/none/terminate")).status == 404
        later = await post(node, MESH, {"name": "order", "startTime": "2999-01-01T00:00:00Z", "input": 1})
        told = (await node.get(f"{MESH}/{later['instanceID']}")).json
        assert (told["runtimeStatus"], told["startTime"]) == ("PENDING", "2999-01-01T00:00:00Z")


IN_USE = "an active workflow with ID 'runs' already exists"
NONE = "unable to find workflow with the provided instance ID: none"
# What is asked beside an instance that runs, and one that has ended; Dapr's routes have the statuses of the reference.
STATUSES: list[tuple[str, str, object, int, str, str]] = [
    ("POST", MESH, {"name": "order", "instanceID": "runs"}, 409, "ERR_START_WORKFLOW", IN_USE),
    ("POST", f"{W}/order/start?instanceID=runs", None, 500, "ERR_START_WORKFLOW", IN_USE),
    ("GET", f"{MESH}/none", None, 404, "ERR_INSTANCE_ID_NOT_FOUND", NONE),
    ("GET", f"{MESH}/none?wait=1s", None, 404, "ERR_INSTANCE_ID_NOT_FOUND", NONE),
    ("GET", f"{MESH}/none/history", None, 404, "ERR_INSTANCE_ID_NOT_FOUND", NONE),
    *(
        ("POST", f"{MESH}/none/{each}", None, 404, "ERR_INSTANCE_ID_NOT_FOUND", NONE)
        for each in ("suspend", "resume", "terminate", "purge", "rerun")
    ),
    ("POST", f"{W}/none/pause", None, 500, "ERR_PAUSE_WORKFLOW", "no such instance exists"),
    ("POST", f"{W}/none/resume", None, 500, "ERR_RESUME_WORKFLOW", "no such instance exists"),
    ("POST", f"{W}/none/raiseEvent/go", None, 500, "ERR_RAISE_EVENT_WORKFLOW", "no such instance exists"),
    ("POST", f"{W}/none/terminate", None, 404, "ERR_INSTANCE_ID_NOT_FOUND", NONE),
    ("POST", f"{W}/none/purge", None, 404, "ERR_INSTANCE_ID_NOT_FOUND", NONE),
    ("POST", f"{MESH}/runs/purge", None, 409, "ERR_PURGE_WORKFLOW", "has not ended"),
    ("POST", f"{W}/runs/purge", None, 500, "ERR_PURGE_WORKFLOW", "has not ended"),
    ("POST", f"{MESH}/runs/rerun", None, 409, "ERR_RERUN_WORKFLOW", "has not ended"),
    ("POST", f"{MESH}/ended/rerun", {"event": 1, "newInstanceID": "runs"}, 409, "ERR_RERUN_WORKFLOW", IN_USE),
    ("POST", f"{MESH}/ended/rerun", {"event": 99}, 404, "ERR_RERUN_WORKFLOW", "99"),
    ("POST", f"{W}/ended/raiseEvent/go", None, 500, "ERR_RAISE_EVENT_WORKFLOW", "has ended, and takes no events"),
    *(("POST", f"{MESH}/ended/{each}", None, 202, "", "") for each in ("suspend", "resume", "terminate")),
    *(("POST", f"{W}/ended/{each}", None, 202, "", "") for each in ("pause", "resume", "terminate")),
]


async def test_statuses(memory: Backbone, worker: Worker, tmp_path: Path) -> None:
    """What an id is in use for, or not there for; what has ended takes what changes nothing, and stays as it was."""
    async with gateway(memory, tmp_path, app=worker, app_id="shop") as node:
        for each in ("runs", "ended"):
            await post(node, f"{W}/order/start?instanceID={each}")
        await post(node, f"{W}/ended/raiseEvent/go", 1)
        ended = await until(node, "ended", "COMPLETED")
        for verb, path, body, status, code, text in STATUSES:
            got = await node.request(verb, path, None, body)
            told = {"errorCode": code} if code else {}
            assert (got.status, {**got.json, "message": ""}) == (status, {**told, "message": ""}), (verb, path, got)
            assert text in got.json.get("message", ""), (verb, path, got)
        assert await until(node, "ended", "COMPLETED") == ended
        await until(node, "runs", "RUNNING")


async def test_another_application(nats: Backbone, worker: Worker, tmp_path: Path) -> None:
    """By its app id; a policy of the other one says what may be done, and metrics tell of it."""
    rules = [{"callers": [{"appID": "till"}], "workflows": [{"name": "ord*", "operations": ["schedule", "get"]}]}]
    policy = yaml("WorkflowAccessPolicy", "p", {"rules": rules}, scopes=("shop",))
    async with (
        gateway(nats, tmp_path, app=worker, app_id="shop", resources=policy, metrics=True, metrics_port=0) as shop,
        gateway(nats, tmp_path, app_id="till") as till,
        gateway(nats, tmp_path, app_id="other") as other,
    ):
        assert (await shop.get("/v1.0/metadata")).json["workflowAccessPolicies"] == [{"name": "p"}]
        await post(till, f"{W}/order/start?instanceID=o-1&appID=shop", 7)
        assert (await till.get(f"{W}/o-1?appID=shop")).json["workflowName"] == "order"
        assert (await till.get(f"{W}/o-1")).status == 404  # It has none of its own.
        refused = await till.post(f"{W}/o-1/raiseEvent/go?appID=shop", 1)
        assert (refused.status, refused.json["errorCode"]) == (403, "ERR_RAISE_EVENT_WORKFLOW")
        assert "access denied by workflow access policy" in refused.json["message"]
        refused = await other.post(f"{W}/order/start?appID=shop")
        assert (refused.status, refused.json["errorCode"]) == (403, "ERR_START_WORKFLOW")
        await post(shop, f"{W}/o-1/raiseEvent/go", 1)
        assert (await shop.get(f"{MESH}/o-1?wait=30s")).json["output"] == 1

        async def counted() -> None:
            url = f"http://127.0.0.1:{shop.gateway.metrics_port}/metrics"
            async with shop.session.get(url) as response:
                text = await response.text()
            for name in ("execution_count", "activity_execution_count", "activity_operation_count"):
                assert f"dapr_runtime_workflow_{name}{{" in text
            assert "dapr_runtime_workflow_acl_action_denied_total{" in text

        await eventually(counted)


async def test_the_command(
    memory: Backbone,
    worker: Worker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a start to a history that says what has failed."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path))

    async def mesh(*words: str) -> str:
        code = await asyncio.to_thread(main, ["wf", *words])
        out, err = capsys.readouterr()
        assert code == 0, err
        return str(out)

    worker.fails = True
    async with gateway(memory, tmp_path, app=worker, app_id="shop", registered=True) as node:
        assert await mesh("start", "order", "-i", "o-1", "-x", '{"total": 7}') == "o-1\n"
        await until(node, "o-1", "FAILED")
        lines = (await mesh("history", "o-1")).splitlines()
        assert lines[0] == "order  o-1  FAILED"
        assert [line for line in lines if "charge #" in line and "failed in" in line and "Refused: no" in line]
        assert json.loads(await mesh("list", "-s", "failed", "-o", "json"))[0]["instanceID"] == "o-1"
        assert json.loads(await mesh("purge", "--all", "-o", "json")) == {"purged": 1}


async def test_what_is_kept(memory: Backbone, worker: Worker, tmp_path: Path) -> None:
    """What a Configuration says is to be kept for no time is gone at once; what it says nothing of stays."""
    file = tmp_path / "kept.yaml"
    file.write_text(yaml("Configuration", "c", {"workflow": {"stateRetentionPolicy": {"failed": "0s"}}}))
    async with gateway(memory, tmp_path, app=worker, app_id="shop", configuration_files=(file,)) as node:
        await post(node, f"{W}/order/start?instanceID=good")
        await post(node, f"{W}/good/raiseEvent/go", 1)
        await until(node, "good", "COMPLETED")
        worker.fails = True
        await post(node, f"{W}/order/start?instanceID=bad")

        async def gone() -> None:
            assert (await node.get(f"{W}/bad")).status == 404

        await eventually(gone)
        assert (await node.get(f"{W}/good")).status == 200


async def test_spans(memory: Backbone, worker: Worker, tmp_path: Path) -> None:
    """A start, the execution below it, and an activity below that, whose worker is told of it; all of one trace."""
    async with Collector() as collector:
        tracing = {"samplingRate": "1", "zipkin": {"endpointAddress": collector.url}}
        file = tmp_path / "tracing.yaml"
        file.write_text(yaml("Configuration", "c", {"tracing": tracing}))
        async with gateway(memory, tmp_path, app=worker, app_id="shop", configuration_files=(file,)) as node:
            await post(node, f"{W}/order/start?instanceID=o-1")
            await post(node, f"{W}/o-1/raiseEvent/go", 1)
            await until(node, "o-1", "COMPLETED")

            def all_there() -> None:
                assert set(NAMES) <= {each.name for each in collector.spans}

            await eventually(all_there)
    spans = {each.name: each for each in collector.spans}
    create, order, charge = (spans[each] for each in NAMES)
    assert order.is_below(create)
    assert charge.is_below(order)
    assert order.tags["durabletask.runtime_status"] == "COMPLETED"
    (told,) = worker.at("/workflow/activity/charge")
    assert told.headers["traceparent"].split("-")[1:3] == charge.traceparent.split("-")[1:3]
