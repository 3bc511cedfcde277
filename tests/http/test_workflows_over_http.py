"""Workflows whose code is run by the application over HTTP, from the API of the gateway to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.http.harness import App, Backbone, Got, Node, Reply, gateway
from tests.support.eventually import eventually

WORKFLOWS = "/v1.0/workflows/dapr"
Run = Callable[[dict[str, Any]], object]


class Worker(App):
    """An application with one workflow, ``order``, whose code is a function of what it is sent."""

    def __init__(self, run: Run, **config: object) -> None:
        super().__init__()
        self.config: dict[str, object] = {"workflows": ["order"], "activities": ["*"], **config}
        self.answers["/workflow/run/order"] = lambda got, _: web.Response(body=orjson.dumps(run(got.json)))

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/dapr/config":
            self.init.append(Got(request.method, request.raw_path, list(request.headers.items()), b""))
            return web.Response(body=orjson.dumps(self.config))
        return await super()._handle(request)

    async def until_asked(self, paths: set[str]) -> None:
        def check() -> None:
            assert asked(self) >= paths

        await eventually(check)


def asked(app: App) -> set[str]:
    """Give the paths of workers that it was asked for."""
    return {got.path for got in app.got if got.path.startswith("/workflow/")}


def results(turn: dict[str, Any]) -> dict[int, Any]:
    return {each["task"]: each["result"] for each in turn["history"] if each["event"] == "completed"}


async def started(node: Node, given: object = None) -> str:
    reply = await node.post(f"{WORKFLOWS}/order/start", given)
    assert reply.status == 202, reply
    return str(reply.json["instanceID"])


async def until_ended(node: Node, instance: str) -> dict[str, Any]:
    async def check() -> Reply:
        reply = await node.get(f"{WORKFLOWS}/{instance}")
        assert reply.json["runtimeStatus"] in ("COMPLETED", "FAILED", "TERMINATED"), reply
        return reply

    return dict((await eventually(check)).json)


async def test_a_workflow(backbone: Backbone, tmp_path: Path) -> None:
    """An activity that is tried again, one that is an operation of the mesh, and the end."""

    def run(turn: dict[str, Any]) -> object:
        came = results(turn)
        actions: list[dict[str, object]] = [
            {"activity": "charge", "input": turn["input"], "retry": {"attempts": 3, "first": "1ms"}}
        ]
        if 1 in came:
            actions.append({"operation": "state.set", "store": "statestore", "key": "paid", "value": came[1]})
        if 2 not in came:
            return {"actions": actions, "status": "paying"}
        return {"actions": actions, "complete": {"paid": came[1]}}

    def charge(got: Got, request: web.BaseRequest) -> web.StreamResponse:
        if got.headers["mesh-workflow-attempt"] == "1":
            return web.Response(status=500, body=b'{"type": "Away", "message": "the bank is away"}')
        return web.Response(body=b'{"sum": 7}')

    async with Worker(run, entities=["cart"]) as app:
        app.answers["/workflow/activity/charge"] = charge
        async with gateway(backbone, tmp_path, app=app) as node:
            instance = await started(node, {"total": 7})
            told = await until_ended(node, instance)
            assert told["runtimeStatus"] == "COMPLETED"
            assert told["properties"]["dapr.workflow.output"] == '{"paid":{"sum":7}}'
            assert told["properties"]["dapr.workflow.custom_status"] == '"paying"'
            assert (await node.get("/v1.0/state/statestore/paid")).json == {"sum": 7}
    first, second = app.at("/workflow/activity/charge")
    assert (first.json, second.json) == ({"total": 7}, {"total": 7})
    assert first.headers["mesh-idempotency-key"] == second.headers["mesh-idempotency-key"]
    assert first.headers["mesh-workflow-instance"] == instance
    assert len([got for got in app.init if got.path == "/dapr/config"]) == 1


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ({"activity": "a", "inptu": 1}, "actions[0]: object contains unknown field `inptu`"),
        (
            {"activity": "a", "app": "a/b"},
            "actions[0].app: the app id 'a/b' must not contain dots, slashes, '@', blanks or control characters",
        ),
    ],
)
async def test_an_answer_that_makes_no_sense(
    memory: Backbone, tmp_path: Path, action: dict[str, object], text: str
) -> None:
    """The instance fails, and says why."""
    async with (
        Worker(lambda _: {"actions": [action]}) as app,
        gateway(memory, tmp_path, app=app) as node,
    ):
        told = await until_ended(node, await started(node))
        assert told["runtimeStatus"] == "FAILED"
        assert told["properties"]["dapr.workflow.failure.error_type"] == "InvalidAnswer"
        assert told["properties"]["dapr.workflow.failure.error_message"] == f"workflow 'order': {text}"


async def test_an_application_that_is_away_for_a_while(nats: Backbone, tmp_path: Path) -> None:
    """What it did before counts, and the rest comes when it is back."""

    def run(turn: dict[str, Any]) -> object:
        raised = [each["data"] for each in turn["history"] if each["event"] == "raised"]
        actions = [{"activity": "charge"}, {"wait": "go"}]
        return {"actions": actions, "complete": raised[0]} if raised else {"actions": actions}

    async with Worker(run) as app, gateway(nats, tmp_path, app=app) as node:
        instance = await started(node)
        await app.until("/workflow/activity/charge")
        await app.until("/workflow/run/order", 2)
        await app.stop()
        assert (await node.post(f"{WORKFLOWS}/{instance}/raiseEvent/go", 5)).status == 202
        await app.start()
        told = await until_ended(node, instance)
        assert told["properties"]["dapr.workflow.output"] == "5"
    assert len(app.at("/workflow/activity/charge")) == 1


async def test_a_workflow_that_begins_anew(memory: Backbone, tmp_path: Path) -> None:
    """What was raised and not waited for goes with it."""

    def run(turn: dict[str, Any]) -> object:
        raised = [each["data"] for each in turn["history"] if each["event"] == "raised"]
        actions = [{"wait": "go"}]
        if not raised:
            return {"actions": actions}
        total = turn["input"] + raised[0]
        return {"actions": actions, **({"complete": total} if total >= 6 else {"continueAsNew": total})}

    async with Worker(run) as app, gateway(memory, tmp_path, app=app) as node:
        instance = await started(node, 0)
        for number in (1, 2, 3):
            assert (await node.post(f"{WORKFLOWS}/{instance}/raiseEvent/go", number)).status == 202
        assert (await until_ended(node, instance))["properties"]["dapr.workflow.output"] == "6"


async def test_an_activity_that_was_not_done(memory: Backbone, tmp_path: Path) -> None:
    """One that was not taken comes again as it was; one that was cut off is another attempt, with the same key."""

    def run(turn: dict[str, Any]) -> object:
        actions = [{"activity": "charge"}]
        return {"actions": actions, "complete": results(turn)[1]} if results(turn) else {"actions": actions}

    def charge(got: Got, request: web.BaseRequest) -> web.StreamResponse:
        number = len(app.at("/workflow/activity/charge"))
        if number == 1:
            return web.Response(status=503)
        if number == 2:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(body=b"7")

    async with Worker(run) as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/workflow/activity/charge"] = charge
        told = await until_ended(node, await started(node))
        assert told["properties"]["dapr.workflow.output"] == "7"
    calls = app.at("/workflow/activity/charge")
    assert [got.headers["mesh-workflow-attempt"] for got in calls] == ["1", "1", "2"]
    assert len({got.headers["mesh-idempotency-key"] for got in calls}) == 1


async def test_many_activities_at_once(memory: Backbone, tmp_path: Path) -> None:
    """No more than the application takes, by its own word."""
    most = now = 0
    full = asyncio.Event()

    def run(turn: dict[str, Any]) -> object:
        actions = [{"activity": "double", "input": number} for number in range(100)]
        came = results(turn)
        return {"actions": actions, "complete": sum(came.values())} if len(came) == 100 else {"actions": actions}

    async def double(got: Got, _: web.BaseRequest) -> web.StreamResponse:
        nonlocal most, now
        now += 1
        most = max(most, now)
        if now == 5:
            full.set()
        await full.wait()
        await asyncio.sleep(0.001)
        now -= 1
        return web.Response(body=orjson.dumps(2 * got.json))

    async with Worker(run, workflowSettings={"maxConcurrentActivities": 5}) as app:
        app.answers["/workflow/activity/double"] = double
        async with gateway(memory, tmp_path, app=app) as node:
            told = await until_ended(node, await started(node))
    assert told["properties"]["dapr.workflow.output"] == "9900"
    assert most == 5
    assert len(app.at("/workflow/activity/double")) == 100


DECLARED: list[tuple[dict[str, object], set[str]]] = [
    ({}, set()),
    ({"workflows": [], "activities": []}, set()),
    ({"activities": ["*"]}, set()),
    ({"workflows": ["other", "ord*", "orde"], "activities": ["*"]}, set()),
    ({"workflows": ["order"]}, {"/workflow/run/order"}),
    ({"workflows": ["order"], "activities": ["charge", "p*"]}, {"/workflow/run/order", "/workflow/activity/charge"}),
    (
        {"workflows": ["*"], "activities": ["*"]},
        {"/workflow/run/order", "/workflow/activity/charge", "/workflow/activity/pack"},
    ),
]


@pytest.mark.parametrize(("config", "paths"), DECLARED, ids=[str(config) for config, _ in DECLARED])
async def test_what_was_not_declared_is_not_asked_for(
    memory: Backbone, tmp_path: Path, config: dict[str, object], paths: set[str]
) -> None:
    """What there is nobody for waits; ``*`` alone stands for all."""

    def run(turn: dict[str, Any]) -> object:
        actions = [{"activity": "charge"}, {"activity": "pack"}]
        return {"actions": actions, **({"complete": 1} if len(results(turn)) == 2 else {})}

    async with Worker(run) as app:
        app.config = config
        async with gateway(memory, tmp_path, app=app) as node:
            instance = await started(node)
            await app.until_asked(paths)
            told = (await node.get(f"/v1.0/mesh/workflows/{instance}?wait=1s")).json
            assert asked(app) == paths
            waiting = {each["activity"] for each in told.get("tasks", ()) if not each["running"]}
            if not paths:
                assert (told["runtimeStatus"], waiting) == ("PENDING", set())
            elif "/workflow/activity/pack" not in paths:
                assert (told["runtimeStatus"], waiting >= {"pack"}) == ("RUNNING", True)


async def test_an_application_that_says_nothing_of_workflows(memory: Backbone, tmp_path: Path) -> None:
    """It is asked once what it has, and for nothing then, whatever is started."""
    async with App() as app, gateway(memory, tmp_path, app=app) as node:
        instance = await started(node)
        told = (await node.get(f"/v1.0/mesh/workflows/{instance}?wait=1s")).json
        assert (told["runtimeStatus"], asked(app)) == ("PENDING", set())
        assert "workers" not in told
    assert [got.path for got in app.init].count("/dapr/config") == 1
