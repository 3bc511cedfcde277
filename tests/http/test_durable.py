"""Durable calls and delayed events: what the broker keeps until its time, or its application, has come."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from tests.http.harness import (
    ANY,
    App,
    Backbone,
    Case,
    Got,
    Node,
    Reply,
    cases,
    check,
    component,
    error,
    gateway,
    matches,
    yaml,
)
from tests.support.eventually import eventually

TARGET = "/v1.0/invoke/callee/method/work"
DURABLE = {"mesh-delivery": "durable"}
SUBSCRIBED = [{"pubsubname": "pubsub", "topic": topic, "route": f"/{topic}"} for topic in ("t", "outcomes", "lost")]


async def call(node: Node, body: object = "x", **headers: str) -> str:
    """Make a durable call; give its id."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = await node.request("POST", TARGET, {**DURABLE, **named}, body)
    assert reply.status == 202, reply
    assert set(reply.json) == {"id"}
    return str(reply.json["id"])


async def outcome(node: Node, call_id: str, state: str) -> Mapping[str, object]:
    """Wait until a call is in a state."""

    async def look() -> Reply:
        reply = await node.get(f"/v1.0/mesh/invocations/{call_id}")
        assert (reply.status, reply.json["state"]) == (200, state), reply
        return reply

    told: Mapping[str, object] = (await eventually(look)).json
    return told


@pytest.fixture
async def caller(nats: Backbone, tmp_path: Path) -> AsyncIterator[Node]:
    async with gateway(nats, tmp_path, app_id="caller") as node:
        yield node


async def test_the_callee_may_come_later(caller: Node, nats: Backbone, tmp_path: Path) -> None:
    """A call to an application that was never there is kept, runs once it comes, and tells what came of it."""
    call_id = await call(
        caller, {"n": 1}, X_Mine="kept", Mesh_Proven_By="x", Mesh_Attempt="7", Content_Type="application/json"
    )
    assert await outcome(caller, call_id, "pending") == {
        "id": call_id,
        "appId": "callee",
        "method": "/work",
        "state": "pending",
        "attempts": 0,
    }
    async with App() as app:
        app.answer("/work", 201, {"made": True}, X_Answer="yes")
        async with gateway(nats, tmp_path, app=app, app_id="callee"):
            (got,) = await app.until("/work")
            told = await outcome(caller, call_id, "succeeded")
    assert (got.method, got.json, got.headers["x-mine"]) == ("POST", {"n": 1}, "kept")
    assert (got.headers["mesh-call-id"], got.headers["dapr-caller-app-id"]) == (call_id, "caller")
    assert not {"mesh-delivery", "mesh-proven-by", "dapr-app-id"} & set(got.headers)
    assert "7" not in got.all("mesh-attempt")  # Nobody but the gateway says it.
    assert (told["status"], told["data"], told["attempts"]) == (201, {"made": True}, 1)
    assert {name.lower(): value for name, value in told["headers"].items()}["x-answer"] == "yes"  # type: ignore[attr-defined]


async def test_one_key_is_one_call(caller: Node, nats: Backbone, tmp_path: Path) -> None:
    """The same idempotency key gives the same id and runs once, also after it has run; another key is another call."""
    first = await call(caller, "1", mesh_idempotency_key="k")
    assert await call(caller, "2", mesh_idempotency_key="k") == first
    async with App() as app, gateway(nats, tmp_path, app=app, app_id="callee"):
        await outcome(caller, first, "succeeded")
        assert await call(caller, "3", Idempotency_Key="k") == first
        other = await call(caller, "4", mesh_idempotency_key="another")
        await outcome(caller, other, "succeeded")
        assert [got.body for got in app.at("/work")] == [b"1", b"4"]


async def test_a_key_holds_for_its_window(caller: Node, nats: Backbone, tmp_path: Path) -> None:
    """After its window the same key is another call, though the first one has run; its outcome stays."""
    async with App() as app, gateway(nats, tmp_path, app=app, app_id="callee"):
        first = await call(caller, "1", mesh_idempotency_key="k", mesh_idempotency_window="1s")
        assert await call(caller, "2", mesh_idempotency_key="k", mesh_idempotency_window="1s") == first
        await outcome(caller, first, "succeeded")

        async def another() -> str:
            other = await call(caller, "3", mesh_idempotency_key="k", mesh_idempotency_window="1s")
            assert other != first
            return other

        other = await eventually(another)
        await outcome(caller, other, "succeeded")
        await outcome(caller, first, "succeeded")
        assert [got.body for got in app.at("/work")] == [b"1", b"3"]


async def test_failures_are_retried(caller: Node, nats: Backbone, tmp_path: Path) -> None:
    """A 5xx is tried again; a 4xx is an answer."""
    answers = iter([503, 500, 200])

    def answer(got: Got, request: web.BaseRequest) -> web.Response:
        return web.Response(status=next(answers))

    async with App() as app, gateway(nats, tmp_path, app=app, app_id="callee"):
        app.answers["/work"] = answer
        told = await outcome(caller, await call(caller), "succeeded")
        assert (told["status"], len(app.at("/work"))) == (200, 3)
        app.answer("/work", 422, {"why": "no"})
        told = await outcome(caller, await call(caller), "succeeded")
        assert (told["status"], told["data"]) == (422, {"why": "no"})
        assert len(app.at("/work")) == 4


async def test_outcomes_and_failures_are_published(nats: Backbone, tmp_path: Path) -> None:
    """``mesh-reply-topic`` gets the outcome; a call that a policy gives up is noted and dead-lettered."""
    policy = {
        "policies": {"retries": {"none": {"policy": "constant", "duration": "10ms", "maxRetries": 1}}},
        "targets": {"apps": {"callee": {"retry": "none"}}},
    }
    async with App(SUBSCRIBED) as app:
        app.answer("/bad", 500)
        async with gateway(nats, tmp_path, app=app, app_id="callee", resources=yaml("Resiliency", "r", policy)) as node:
            ok = await call(node, "x", mesh_reply_topic="outcomes")
            (event,) = await app.until("/outcomes")
            assert event.json["id"] == ok
            assert event.json["data"] | {"headers": ANY} == {
                "id": ok,
                "appId": "callee",
                "method": "/work",
                "state": "succeeded",
                "attempts": 1,
                "status": 200,
                "headers": ANY,
            }
            headers = {**DURABLE, "mesh-dead-letter-topic": "pubsub/lost", "mesh-reply-topic": "outcomes"}
            reply = await node.request("POST", "/v1.0/invoke/callee/method/bad", headers, "sent")
            told = await outcome(node, reply.json["id"], "failed")
            assert told["reason"] == "the application answered 500"
            (lost,) = await app.until("/lost")
            assert (lost.json["data"]["id"], lost.json["data"]["data"]) == (reply.json["id"], "sent")
            assert (await app.until("/outcomes", 2))[1].json["data"]["state"] == "failed"
            assert len(app.at("/bad")) == 2


async def test_an_outcome_is_published_with_the_callers_rights(nats: Backbone, tmp_path: Path) -> None:
    """The callee's scopes neither forbid it nor lend it anything; a call whose outcome goes nowhere runs once."""
    scopes = {"publishingScopes": "callee=;trusted=outcomes;stranger=", "subscriptionScopes": "callee=outcomes"}
    resources = component("pubsub", "pubsub.mesh", **scopes) + component("statestore", "state.mesh")
    resources += component("payroll", "pubsub.mesh", scopes=["callee"])
    async with App([SUBSCRIBED[1]]) as app:
        callee = gateway(nats, tmp_path, app=app, app_id="callee", resources=resources)
        trusted = gateway(nats, tmp_path, app_id="trusted", resources=resources)
        stranger = gateway(nats, tmp_path, app_id="stranger", resources=resources)
        async with callee, trusted as may, stranger as may_not:
            for caller, topic in (
                (may_not, "outcomes"),
                (may_not, "pubsub/outcomes"),
                (may, "none/such"),
                (may, "payroll/outcomes"),
            ):
                call_id = await call(caller, mesh_reply_topic=topic)
                await outcome(caller, call_id, "succeeded")
            told = await call(may, mesh_reply_topic="outcomes")
            (event,) = await app.until("/outcomes")
            assert event.json["id"] == told
            await outcome(may, told, "succeeded")
            assert len(app.at("/work")) == 5


async def test_outcomes_are_told_to_the_two_of_them(caller: Node, nats: Backbone, tmp_path: Path) -> None:
    """Caller and callee; to anybody else the id is unknown. A key is its caller's own."""
    async with App() as app, gateway(nats, tmp_path, app=app, app_id="callee") as callee:
        call_id = await call(caller, mesh_idempotency_key="k")
        await outcome(caller, call_id, "succeeded")
        await outcome(callee, call_id, "succeeded")
        async with gateway(nats, tmp_path, app_id="stranger") as stranger:
            assert (await stranger.get(f"/v1.0/mesh/invocations/{call_id}")).status == 404
            assert await call(stranger, mesh_idempotency_key="k") != call_id


async def test_a_delayed_call_waits(caller: Node, nats: Backbone, tmp_path: Path) -> None:
    """``mesh-delay`` holds a call; the hold counts as no attempt that failed."""
    async with App() as app, gateway(nats, tmp_path, app=app, app_id="callee"):
        asked = time.time()
        call_id = await call(caller, mesh_delay="1200ms")
        await app.until("/work")
        assert time.time() - asked >= 1.2
        await outcome(caller, call_id, "succeeded")


async def test_what_is_due_when_the_broker_has_removed_it_is_refused(caller: Node) -> None:
    """With both times; it would be lost, without anybody who notices."""
    for reply in (
        await caller.request("POST", TARGET, {**DURABLE, "mesh-delay": "192h"}, "x"),
        await caller.post("/v1.0/publish/pubsub/t?metadata.delay=192h", "x"),
    ):
        assert reply.status == 400
        due, kept = map(datetime.fromisoformat, re.findall(r"\d{4}-\S+\+00:00", reply.json["message"]))
        assert timedelta(hours=23) < due - kept < timedelta(hours=25)
    await call(caller, mesh_delay="160h")


BAD = {"errorCode": "ERR_BAD_REQUEST", "message": ANY}


@cases(
    Case("mode", ("POST", TARGET, {"mesh-delivery": "later"}), 400, BAD),
    Case("delay", ("POST", TARGET, {**DURABLE, "mesh-delay": "soon"}), 400, BAD),
    Case("window", ("POST", TARGET, {**DURABLE, "mesh-idempotency-window": "-1s"}), 400, BAD),
    Case("long key", ("POST", TARGET, {**DURABLE, "mesh-idempotency-key": "k" * 600}), 400, BAD),
    Case("long app id", ("POST", f"/v1.0/invoke/{'a' * 300}/method/x", DURABLE), 400, BAD),
    Case("a delay without an end", ("POST", TARGET, {**DURABLE, "mesh-delay": "9999-12-31T23:59:59Z"}), 400, BAD),
    Case("reply topic", ("POST", TARGET, {**DURABLE, "mesh-reply-topic": "pubsub/"}), 400, BAD),
    Case("dead letter topic", ("POST", TARGET, {**DURABLE, "mesh-dead-letter-topic": "/x"}), 400, BAD),
    Case("namespace", ("POST", "/v1.0/invoke/a.other/method/x", DURABLE), 400, BAD),
    Case(
        "unknown id",
        ("GET", "/v1.0/mesh/invocations/" + "0" * 32),
        404,
        error("ERR_DURABLE_INVOKE_NOT_FOUND", matches(lambda text: "0" * 32 in text)),
    ),
    Case("no id", ("GET", "/v1.0/mesh/invocations"), 404, error("ERR_DIRECT_INVOKE")),
)
async def test_refusals(memory: Backbone, tmp_path: Path, case: Case) -> None:
    """What is wrong is said, with the header's name."""
    async with gateway(memory, tmp_path) as node:
        await check(node, case)


@pytest.mark.parametrize("how", ["delay", "scheduledSendTime"])
@pytest.mark.parametrize("raw", [False, True])
async def test_a_delayed_event_waits(backbone: Backbone, tmp_path: Path, how: str, raw: bool) -> None:
    """An event with a delay is delivered not before; one without is not held up by it."""
    flag = str(raw).lower()
    subscribed = [{"pubsubname": "pubsub", "topic": "t", "route": "/t", "metadata": {"rawPayload": flag}}]
    async with App(subscribed) as app, gateway(backbone, tmp_path, app=app) as node:
        at = datetime.now(UTC) + timedelta(seconds=1.2)
        value = "1200ms" if how == "delay" else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        await node.publish("t", "late", query=f"?metadata.{how}={value}&metadata.rawPayload={flag}")
        await node.publish("t", "now", query=f"?metadata.rawPayload={flag}")
        first, second = await app.until("/t", 2)
        assert datetime.now(UTC) >= at - timedelta(milliseconds=2)
        bodies = [got.json.get("data") or got.json["data_base64"] for got in (first, second)]
        assert bodies == (["bm93", "bGF0ZQ=="] if raw else ["now", "late"])


@pytest.mark.parametrize(
    "query",
    [
        "delay=soon",
        "scheduledSendTime=tomorrow",
        "scheduledSendTime=2030-01-01T00:00:00",
        "delay=1s&metadata.scheduledSendTime=2030-01-01T00:00:00Z",
    ],
)
async def test_malformed_delays(memory: Backbone, tmp_path: Path, query: str) -> None:
    """A delay that is none is refused, and nothing is published."""
    async with gateway(memory, tmp_path) as node:
        reply = await node.post(f"/v1.0/publish/pubsub/t?metadata.{query}", "x")
        assert (reply.status, reply.json["errorCode"]) == (400, "ERR_PUBSUB_REQUEST_METADATA")
