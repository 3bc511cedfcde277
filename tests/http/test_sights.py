"""What a tap is told of each building block, of actors, of workflows, and of what comes to an application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import orjson
from aiohttp import web

from mesh.node.runtime import Runtime
from mesh.tap.sight import Seen, Sight
from tests.http.harness import DEFAULTS, Backbone, Node, component, gateway
from tests.http.test_workflows_over_http import Worker, results, started, until_ended
from tests.support.tapped import Seen as Told
from tests.support.tapped import tapping


def _run(turn: dict[str, Any]) -> object:
    actions = [{"activity": "charge", "input": turn["input"]}]
    return {"actions": actions, "complete": 1} if results(turn) else {"actions": actions}


def _app() -> Worker:
    app = Worker(_run, entities=["cart"])
    app.answers["/workflow/activity/charge"] = lambda got, _: web.Response(body=b'{"sum": 7}')
    app.answer("/actors/cart/7/method/add", body={"items": 1})
    app.answer("/actors/cart/7/method/remind/later")
    app.answer("/job/clean", body=b"cleaned")
    return app


@asynccontextmanager
async def _tapped(backbone: Backbone, home: Path, resources: str = DEFAULTS) -> AsyncIterator[tuple[Node, Told]]:
    (home / "secrets.json").write_text('{"db": "TOPSECRET"}')
    resources += component("vault", "secretstores.local.file", secretsFile=str(home / "secrets.json"))
    resources += component("files", "bindings.localstorage", rootPath=str(home / "files"))
    resources += component("tick", "bindings.cron", schedule="@every 1s", direction="input")
    app = _app()
    app.answer("/tick", body=b"taken")
    async with app, gateway(backbone, home, app=app, resources=resources, single_host=True) as node:
        runtime = cast("Runtime", node.gateway._runtime)
        async with tapping(runtime, runtime, values=True) as seen:
            yield node, seen


def _json(sight: Sight, what: str = "request") -> Any:
    found = getattr(sight, what)
    assert found is not None and found.body is not None, sight
    return orjson.loads(found.body)


async def test_components(backbone: Backbone, tmp_path: Path) -> None:
    async with _tapped(backbone, tmp_path) as (node, seen):
        await node.post("/v1.0/state/statestore", [{"key": "k", "value": {"a": 1}}])
        saved = await seen.until(lambda each: (each.block, each.method) == ("state", "save"))
        assert (saved.target, saved.details) == ("statestore", {"count": 1})
        assert _json(saved)["items"][0]["value"] == {"a": 1}

        secret = await node.get("/v1.0/secrets/vault/db")
        assert secret.json == {"db": "TOPSECRET"}
        read = await seen.until(lambda each: (each.block, each.method) == ("secrets", "get"))
        assert (read.target, read.details) == ("vault", {"name": "db"})
        assert read.reply is not None and read.reply.body is None

        written = {"operation": "create", "data": "text", "metadata": {"fileName": "a", "token": "TOPSECRET"}}
        await node.post("/v1.0/bindings/files", written)
        bound = await seen.until(lambda each: (each.block, each.target) == ("bindings", "files"))
        assert bound.details["operation"] == "create"
        assert _json(bound)["metadata"] == {"fileName": "a", "token": "(hidden)"}

        ticked = await seen.until(lambda each: (each.block, each.seen) == ("bindings", Seen.ARRIVED))
        told = {"verb": "POST", "path": "/tick", "status": 200}
        assert (ticked.method, ticked.target, ticked.outcome) == ("trigger", "tick", "success")
        assert told.items() <= ticked.details.items()
        assert ticked.reply is not None and ticked.reply.body == b"taken"
        assert not [each for each in seen.of(Sight) if "TOPSECRET" in repr(each)]


async def test_calls_that_the_broker_keeps(backbone: Backbone, tmp_path: Path) -> None:
    async with _tapped(backbone, tmp_path) as (node, seen):
        headers = {"mesh-delivery": "durable", "mesh-idempotency-key": "one"}
        reply = await node.request("POST", "/v1.0/invoke/app/method/later?x=1", headers, b"in")
        assert reply.status == 202
        asked = await seen.until(lambda each: (each.block, each.method) == ("durable", "accept"))
        assert (asked.target, asked.details["verb"], asked.details["path"]) == ("app", "POST", "/later")
        came = await seen.until(lambda each: (each.block, each.seen) == ("durable", Seen.ARRIVED))
        assert (came.method, came.target, came.source, came.outcome) == ("call", "app", "app", "success")
        assert came.details["id"] == asked.details["id"]
        assert (came.details["path"], came.details["status"], came.details["settlement"]) == ("/later", 200, "ack")


async def test_actors_and_jobs(backbone: Backbone, tmp_path: Path) -> None:
    async with _tapped(backbone, tmp_path) as (node, seen):
        assert (await node.post("/v1.0/actors/cart/7/method/add", b"in")).json == {"items": 1}
        asked = await seen.until(lambda each: (each.block, each.seen) == ("actors", Seen.ASKED))
        assert (asked.method, asked.target) == ("invoke", "cart/7")
        assert asked.details == {"type": "cart", "id": "7", "method": "add"}
        turn = await seen.until(lambda each: each.seen is Seen.TURN)
        assert (turn.method, turn.target, turn.outcome) == ("method", "cart/7", "ok")
        assert turn.details == {"type": "cart", "id": "7", "name": "add", "status": 200}
        assert turn.request is not None and turn.request.body == b"in"
        assert _json(turn, "reply") == {"items": 1}

        await node.post("/v1.0/actors/cart/7/reminders/later", {"dueTime": "0s"})
        fired = await seen.until(lambda each: each.seen is Seen.TURN and each.method == "reminder")
        assert (fired.target, fired.details["name"]) == ("cart/7", "later")

        job = {"dueTime": "0s", "data": {"n": 1}}
        assert (await node.post("/v1.0-alpha1/jobs/clean", job)).status == 204
        scheduled = await seen.until(lambda each: (each.block, each.method) == ("jobs", "schedule"))
        assert (scheduled.target, scheduled.details) == ("app", {"job": "clean"})
        ran = await seen.until(lambda each: (each.block, each.seen) == ("jobs", Seen.ARRIVED))
        assert (ran.method, ran.target, ran.outcome) == ("trigger", "app", "success")
        told = {"job": "clean", "verb": "POST", "path": "/job/clean", "status": 200}
        assert told.items() <= ran.details.items()


async def test_workflows(backbone: Backbone, tmp_path: Path) -> None:
    async with _tapped(backbone, tmp_path) as (node, seen):
        instance = await started(node, {"total": 7})
        await until_ended(node, instance)
        begun = await seen.until(lambda each: (each.block, each.method) == ("workflows", "start"))
        assert (begun.seen, begun.details["name"]) == (Seen.ASKED, "order")
        turn = await seen.until(lambda each: each.seen is Seen.STEP and each.method == "turn")
        assert (turn.target, turn.outcome) == (f"order/{instance}", "success")
        assert turn.details["workflow"] == "order" and turn.details["instance"] == instance
        ran = await seen.until(lambda each: each.seen is Seen.STEP and each.method == "activity")
        assert (ran.target, ran.outcome, ran.details["activity"]) == (f"order/{instance}", "success", "charge")
        assert (_json(ran), _json(ran, "reply")) == ({"total": 7}, {"sum": 7})
