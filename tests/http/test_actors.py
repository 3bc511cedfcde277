"""Actors over HTTP: a real gateway, and an application that records its turns.

Source: reference/dapr-surface.md 1.12, 2.2, 2.8, 0.3.2; reference/observed-layouts.md 3, 7; sdk-expectations.md 15-19.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from mesh.errors import BadArgumentError, EventError
from mesh.operation import Caller
from mesh.ownership.asking import Asked
from mesh.ownership.table import PARTITIONS, partition_of
from mesh.packing import pack
from tests.http.actor_app import ACTORS, ActorApp, call
from tests.http.harness import Backbone, Case, Got, Node, cases, check, component, error, gateway, matches
from tests.support.eventually import eventually

shared = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Node, ActorApp]]:
    """A gateway with an application that answers some methods in its own way."""
    async with (
        ActorApp() as app,
        gateway(Backbone("memory:"), tmp_path_factory.mktemp("home"), app=app, app_id="a") as node,
    ):
        app.answer("/actors/thing/1/method/doit", 200, b"done", x_more="1")
        app.answer("/actors/thing/1/method/fails", 500, b"it broke")
        app.answer("/actors/thing/1/method/long", 500, b"x" * 10_000)
        app.answer("/actors/thing/1/method/created", 201, b"")
        app.answer("/actors/thing/1/method/missing", 404, b"what?")
        app.answer("/actors/thing/1/method/own", 200, b'{"own":1}', X_Daprerrorresponseheader="true")
        yield node, app


def failed(message: object) -> dict[str, object]:
    return error("ERR_ACTOR_INVOKE_METHOD", message)


BAD = error("ERR_BAD_REQUEST", matches(lambda text: text.startswith("invalid request: ")))
OTHER = f"{ACTORS}/other/1/reminders/r"
R, T = f"{ACTORS}/thing/1/reminders", f"{ACTORS}/thing/1/timers"
NO_REMINDER = error("ERR_ACTOR_REMINDER_NOT_FOUND", "actor reminder not found: none")
BAD_REMINDER, BAD_TIMER = error("ERR_ACTOR_REMINDER_CREATE"), error("ERR_ACTOR_TIMER_CREATE")
NO_HOST = (
    "error invoke actor method: failed to lookup actor: api error: code = FailedPrecondition desc = "
    "did not find address for actor 'notype/1'"
)
RESERVED = error("ERR_ACTOR_TYPE_RESERVED")
NON_HOSTED = error(
    "ERR_ACTOR_REMINDER_NON_HOSTED", "operations on actor reminders are only possible on hosted actor types"
)
MISSING = error("ERR_ACTOR_INSTANCE_MISSING", "actor instance is missing")


@shared
@cases(
    Case("post", call("doit"), 200, b"done", {"x-more": "1"}),
    Case("get", call("doit", verb="GET"), 200, b"done"),
    Case("delete", call("doit", verb="DELETE"), 200, b"done"),
    Case("app-500", call("fails"), 500, failed("error invoke actor method: error from actor service: (500) it broke")),
    Case("app-201", call("created"), 500, failed("error invoke actor method: error from actor service: (201) ")),
    Case("app-404", call("missing"), 500, failed("error invoke actor method: actor method not found")),
    Case("capped", call("long"), 500, failed(matches(lambda text: len(text) < 600 and text.endswith("x…")))),
    Case("own-error", call("own"), 200, b'{"own":1}', {"x-daprerrorresponseheader": "true"}),
    Case("nobody-hosts", call("doit", type_="notype"), 500, failed(NO_HOST)),
    Case("reserved", call("doit", type_="dapr.internal.x"), 403, RESERVED),
    Case("hash", call("doit", id_="a%23b"), 400, BAD),
    Case("question", call("doit", id_="a%3Fb"), 400, BAD),
    Case("slash", call("doit", id_="a%2Fb"), 400, BAD),
    Case("backslash", call("doit", id_="a%5Cb"), 400, BAD),
    Case("nul", call("doit", id_="a%00b"), 400, BAD),
    Case("control", call("doit", type_="a%0Ab"), 400, BAD),
    Case("in-a-method", call("a%23b"), 400, BAD),
    Case("long-id", call("doit", id_="x" * 257), 400, BAD),
    Case("state-of-none", ("GET", f"{ACTORS}/thing/none/state/k"), 204, b""),
    Case("state-of-another-type", ("GET", f"{ACTORS}/other/none/state/k"), 204, b""),
    Case("write-of-none", ("POST", f"{ACTORS}/thing/none/state", None, []), 400, MISSING),
    Case("write-of-another-type", ("POST", f"{ACTORS}/other/1/state", None, []), 400, MISSING),
    Case(
        "write-of-what",
        ("POST", f"{ACTORS}/thing/none/state", None, [{"operation": "zap", "request": {"key": "k"}}]),
        400,
        error("ERR_NOT_SUPPORTED_STATE_OPERATION", "operation type zap not supported"),
    ),
    Case("write-object", ("POST", f"{ACTORS}/thing/1/state", None, {}), 400, error("ERR_MALFORMED_REQUEST")),
    Case("reminder-missing", ("GET", f"{R}/none"), 404, NO_REMINDER),
    Case("reminder-none-to-delete", ("DELETE", f"{R}/none"), 204, b""),
    Case("reminder-not-hosted", ("GET", f"{ACTORS}/other/1/reminders/r"), 403, NON_HOSTED),
    Case("reminder-not-hosted-post", ("POST", OTHER, None, {"dueTime": "1h"}), 403, NON_HOSTED),
    Case("reminder-bad", ("POST", f"{R}/r", None, {"dueTime": "x"}), 500, BAD_REMINDER),
    Case(
        "reminder-two-policies",
        ("POST", f"{R}/r", None, {"dueTime": "1h", "failurePolicy": {"drop": {}, "constant": {}}}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
    Case(
        "reminder-policy-of-nothing",
        ("POST", f"{R}/r", None, {"dueTime": "1h", "failurePolicy": {"constant": False}}),
        400,
        error("ERR_MALFORMED_REQUEST", "failed deserializing HTTP body: failurePolicy.constant must be an object"),
    ),
    Case(
        "reminder-policy-with-underscores",
        ("POST", f"{R}/r", None, {"dueTime": "1h", "failure_policy": {"constant": {"max_retries": -1}}}),
        400,
        error("ERR_MALFORMED_REQUEST", matches(lambda text: "failurePolicy.constant.maxRetries" in text)),
    ),
    Case("reminder-days", ("POST", f"{R}/r", None, {"period": "P1D"}), 500, BAD_REMINDER),
    Case("timer-none-to-delete", ("DELETE", f"{ACTORS}/thing/none/timers/none"), 204, b""),
    Case("timer-of-none", ("POST", f"{ACTORS}/thing/none/timers/t", None, {"dueTime": "1s"}), 500, BAD_TIMER),
    Case("timer-bad", ("POST", f"{T}/t", None, {"period": "R0/PT1S"}), 500, BAD_TIMER),
)  # fmt: skip
async def test_answers(served: tuple[Node, ActorApp], case: Case) -> None:
    """What each route answers."""
    await check(served[0], case)


@shared
async def test_what_the_application_gets(served: tuple[Node, ActorApp]) -> None:
    """Always PUT, with query, headers and body as they were, who calls, and an id of the turn that rises."""
    node, app = served
    headers = {"X-Own": "1", "Dapr-Caller-App-Id": "somebody", "mesh-turn-id": "9-9", "Dapr-Reentrancy-Id": "mine"}
    for _ in range(2):
        reply = await node.request("POST", f"{ACTORS}/thing/a%20b/method/x?q=b%20c", headers, b"hello")
        assert (reply.status, reply.body) == (200, b"")
    first, second = [got for got in app.got if got.path == "/actors/thing/a%20b/method/x"]
    assert (first.method, first.target, first.body) == ("PUT", "/actors/thing/a%20b/method/x?q=b%20c", b"hello")
    assert first.headers["dapr-api-call"] == "true"
    assert first.all("dapr-caller-app-id") == ["a"]
    assert first.headers["dapr-caller-namespace"] == node.gateway.config.namespace
    assert first.headers["x-own"] == "1"
    assert first.headers["dapr-reentrancy-id"] == "mine"
    ids = [tuple(map(int, got.headers["mesh-turn-id"].split("-"))) for got in (first, second)]
    assert len(first.all("mesh-turn-id")) == 1
    assert ids[0] < ids[1]
    assert ids[0] != (9, 9)


@shared
async def test_an_empty_body_stays_empty(served: tuple[Node, ActorApp]) -> None:
    """A call without a body reaches the application without one, and its empty answer stays empty."""
    node, app = served
    reply = await node.request("GET", f"{ACTORS}/thing/empty/method/x", {"Content-Type": "application/json"})
    assert (reply.status, reply.body) == (200, b"")
    assert app.at("/actors/thing/empty/method/x")[0].body == b""


@shared
async def test_it_is_asked_what_it_hosts(served: tuple[Node, ActorApp]) -> None:
    asked = [got for got in served[1].init if got.path == "/dapr/config"]
    assert [(got.method, got.headers["dapr-app-id"]) for got in asked] == [("GET", "a")]


@pytest.mark.parametrize("type_", ["", "state.mesh", "state.sqlite", "state.in-memory"])
async def test_state(memory: Backbone, tmp_path: Path, type_: str) -> None:
    """Upsert, delete and read in a transaction, with TTL; of each actor its own."""
    file = {"connectionString": str(tmp_path / "state.db")} if type_ == "state.sqlite" else {}
    stores = component("plain", "state.mesh") + component("marked", type_, actorStateStore="true", **file)
    async with ActorApp() as app, gateway(memory, tmp_path, app=app, resources=stores if type_ else "") as node:
        await node.request(*call("x"))
        values = {"text": "a", "number": 1, "none": None, "object": {"a": [1]}}
        upserts = [{"operation": "upsert", "request": {"key": key, "value": value}} for key, value in values.items()]
        expiring = {"key": "brief", "value": 1, "metadata": {"ttlInSeconds": "100"}}
        state = f"{ACTORS}/thing/1/state"
        reply = await node.request("POST", state, None, [*upserts, {"operation": "upsert", "request": expiring}])
        assert (reply.status, reply.body) == (204, b"")
        for key, value in values.items():
            found = await node.get(f"{state}/{key}")
            assert (found.status, found.body) == (200, orjson.dumps(value))
            assert "metadata.ttlexpiretime" not in found.headers
        found = await node.get(f"{state}/brief")
        assert found.headers["metadata.ttlexpiretime"].endswith("Z")
        reply = await node.request("PUT", state, None, [{"operation": "delete", "request": {"key": "text"}}])
        assert reply.status == 204
        assert (await node.get(f"{state}/text")).status == 204
        await node.request(*call("x", id_="2"))
        assert (await node.get(f"{ACTORS}/thing/2/state/number")).status == 204


async def test_no_store_for_state(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where none is marked, methods work and state says which line to add; nor may it lack an ability."""
    stores = component("plain", "state.mesh")
    config = {"entities": ["thing", "other"]}
    async with ActorApp(config) as app, gateway(memory, tmp_path, app=app, resources=stores) as node:
        warned = [each for each in caplog.messages if '{name: actorStateStore, value: "true"}' in each]
        assert len(warned) == 1, "at start, and once for all types"
        assert (await node.request(*call("x"))).status == 200
        delete = [{"operation": "delete", "request": {"key": "k"}}]
        state = f"{ACTORS}/thing/1/state"
        for request in (("GET", f"{state}/k"), ("POST", state, None, delete)):
            reply = await node.request(*request)
            assert reply.status == 500
            assert reply.json["errorCode"] == "ERR_ACTOR_RUNTIME_NOT_FOUND"
            assert '{name: actorStateStore, value: "true"}' in reply.json["message"]


async def test_one_at_a_time(memory: Backbone, tmp_path: Path) -> None:
    """Calls of one actor follow each other in order; those of others run at once."""
    running: dict[str, int] = {}
    most: dict[str, int] = {}
    release, order = asyncio.Event(), []

    async def slow(got: Got, request: web.BaseRequest) -> web.Response:
        actor = got.path.split("/")[3]
        running[actor] = running.get(actor, 0) + 1
        most[actor] = max(most.get(actor, 0), running[actor])
        if got.body != b"in":
            order.append(got.body)
        await release.wait()
        running[actor] -= 1
        return web.Response()

    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:
        for actor in "ab":
            app.answers[f"/actors/thing/{actor}/method/slow"] = slow
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.request(*call("slow", id_="b")))
            hosted = node.gateway._runtime.services["actors"].types["thing"]  # type: ignore[attr-defined]

            def all_came(so_far: int) -> None:
                activation = hosted.activation("a")
                assert activation is not None
                assert activation.turns.waiting == so_far

            for number in range(5):
                tasks.create_task(node.request("POST", f"{ACTORS}/thing/a/method/slow", None, b"%d" % number))
                await eventually(partial(all_came, number))
            await eventually(lambda: _equal(running, {"a": 1, "b": 1}))
            release.set()
        assert most == {"a": 1, "b": 1}
        assert order == [b"%d" % number for number in range(5)]


def _equal(found: object, wanted: object) -> None:
    assert found == wanted


async def test_a_caller_that_hangs_up_leaves_the_turn_running(memory: Backbone, tmp_path: Path) -> None:
    """The application may be at it still, so the next call waits for it."""
    release, entered = asyncio.Event(), []

    async def slow(got: Got, request: web.BaseRequest) -> web.Response:
        entered.append(got.body)
        await release.wait()
        return web.Response(body=got.body)

    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/actors/thing/1/method/slow"] = slow
        target = f"{ACTORS}/thing/1/method/slow"
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(node.request("POST", target, None, b"first"))
            await eventually(lambda: _equal(entered, [b"first"]))
            first.cancel()
        refused = await node.request("POST", target, {"mesh-timeout": "300ms"}, b"second")
        assert refused.status == 500
        assert refused.json["errorCode"] == "ERR_ACTOR_INVOKE_METHOD"
        async with asyncio.TaskGroup() as tasks:
            third = tasks.create_task(node.request("POST", target, None, b"third"))
            assert entered == [b"first"]
            release.set()
        assert third.result().body == b"third"
        assert entered == [b"first", b"third"]


async def test_reentrancy(memory: Backbone, tmp_path: Path) -> None:
    """A chain of calls comes back to its actor, as often as it may; where reentrancy is off it waits in vain."""
    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:

        async def nested(got: Got, request: web.BaseRequest) -> web.Response:
            left = int(got.body)
            if not left:
                return web.Response(body=got.headers["dapr-reentrancy-id"].encode())
            chain = {"Dapr-Reentrancy-Id": got.headers["dapr-reentrancy-id"]}
            reply = await node.request("POST", f"/v1.0{got.path}", chain, b"%d" % (left - 1))
            return web.Response(status=reply.status, body=reply.body)

        app.answers["/actors/again/1/method/nested"] = nested
        target = f"{ACTORS}/again/1/method/nested"
        reply = await node.request("POST", target, None, b"2")
        assert reply.status == 200
        assert [got.headers["dapr-reentrancy-id"] for got in app.got] == [reply.body.decode()] * 3
        again = await node.request("POST", target, None, b"0")
        assert again.body != reply.body
        deep = await node.request("POST", target, None, b"3")
        assert deep.status == 500
        text = deep.body.decode()
        assert "ERR_ACTOR_STACK_DEPTH" in text
        assert "maximum stack depth exceeded" in text


async def test_timers(memory: Backbone, tmp_path: Path) -> None:
    """A timer fires as a turn with what it was set with, repeats, and is over when it says so."""
    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:
        await node.request(*call("x"))
        timer = {"dueTime": "0h0m0s50ms", "period": "R2/PT0.05S", "data": {"a": 1}, "callback": "cb"}
        timer["period"] = "50ms"
        assert (await node.request("POST", f"{ACTORS}/thing/1/timers/tim", None, timer)).status == 204
        first, _ = (await app.until("/actors/thing/1/method/timer/tim", 2))[:2]
        assert first.method == "PUT"
        assert first.json == {"data": {"a": 1}, "callback": "cb", "dueTime": "0h0m0s50ms", "period": "50ms"}
        assert (await node.request("DELETE", f"{ACTORS}/thing/1/timers/tim")).status == 204
        app.answer("/actors/thing/1/method/timer/once", X_Daprremindercancel="true")
        await node.request("PUT", f"{ACTORS}/thing/1/timers/once", None, {"period": "10ms"})
        await node.request("PUT", f"{ACTORS}/thing/1/timers/mark", None, {"dueTime": "200ms"})
        await app.until("/actors/thing/1/method/timer/mark")
        assert len(app.at("/actors/thing/1/method/timer/once")) == 1
        assert app.at("/actors/thing/1/method/timer/mark")[0].json["data"] is None


async def test_what_is_deleted_while_it_waits_for_its_turn_has_none(memory: Backbone, tmp_path: Path) -> None:
    """Reminders and timers; what is registered anew comes as it is now."""
    began, end = asyncio.Event(), asyncio.Event()

    async def slow(got: Got, request: web.BaseRequest) -> web.Response:
        began.set()
        await end.wait()
        return web.Response()

    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node, asyncio.TaskGroup() as tasks:
        app.answers["/actors/thing/1/method/slow"] = slow
        turn = tasks.create_task(node.request(*call("slow")))
        await began.wait()
        for kind in ("reminders", "timers"):
            for name in ("deleted", "anew"):
                body = {"dueTime": "0s", "data": "old", "callback": "m"}
                assert (await node.request("POST", f"{ACTORS}/thing/1/{kind}/{name}", None, body)).status == 204
        turns = node.gateway._runtime.services["actors"].types["thing"]._active["1"].turns  # type: ignore[attr-defined]

        def waits() -> None:
            assert turns.waiting == 4

        await eventually(waits)
        for kind in ("reminders", "timers"):
            assert (await node.request("DELETE", f"{ACTORS}/thing/1/{kind}/deleted")).status == 204
            body = {"dueTime": "0s", "data": "new", "callback": "m"}
            assert (await node.request("POST", f"{ACTORS}/thing/1/{kind}/anew", None, body)).status == 204
        end.set()
        assert (await turn).status == 200
        for way in ("remind", "timer"):
            assert (await app.until(f"/actors/thing/1/method/{way}/anew"))[0].json["data"] == "new"
            assert not app.at(f"/actors/thing/1/method/{way}/deleted")


async def test_data_are_what_was_sent(memory: Backbone, tmp_path: Path) -> None:
    """Numbers in the data of timers and reminders keep their digits: nothing writes the JSON anew."""
    data = b'{"whole": 123456789012345678901234567890, "dec": 0.10000000000000000000000001, "e": 1E2}'
    body = b'{"dueTime": "10ms", "Data": ' + data + b"}"
    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:
        at = f"{ACTORS}/thing/1/reminders/later"
        assert (await node.request("POST", at, None, body.replace(b"10ms", b"1h"))).status == 204
        assert data in (await node.get(at)).body
        await node.request(*call("x"))
        for kind, turn in (("reminders", "remind"), ("timers", "timer")):
            assert (await node.request("POST", f"{ACTORS}/thing/1/{kind}/now", None, body)).status == 204
            got = (await app.until(f"/actors/thing/1/method/{turn}/now"))[0]
            assert b'"data":' + data in got.body
        for name, levels in ((b"data", 255), (b"other", 1022)):
            deep = b'{"dueTime": "1h", "data": 1, "' + name + b'": ' + b"[" * levels + b"]" * levels + b"}"
            assert (await node.request("POST", at, None, deep)).status == 400


async def test_reminders(memory: Backbone, tmp_path: Path) -> None:
    """A reminder is kept, told of, not replaced unless it may be, fires as a turn and wakes its actor."""
    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:
        at = f"{ACTORS}/thing/r/reminders/rem"
        wanted = {"dueTime": "1h", "period": "R2/PT1S", "data": {"rd": 1}}
        assert (await node.request("POST", at, None, wanted)).status == 204
        found = await node.get(at)
        assert found.json == {
            "actorID": "r",
            "actorType": "thing",
            "data": {"rd": 1},
            "dueTime": "1h",
            "period": "@every 1s",
        }
        refused = await node.request("POST", at, None, {**wanted, "overwrite": False})
        assert (refused.status, refused.json["errorCode"]) == (409, "ERR_ACTOR_REMINDER_ALREADY_EXISTS")
        assert not app.got
        assert (await node.request("PUT", at, None, {**wanted, "dueTime": "10ms", "period": ""})).status == 204
        got = (await app.until("/actors/thing/r/method/remind/rem"))[0]
        assert (got.method, got.json) == ("PUT", {"data": {"rd": 1}, "dueTime": "", "period": ""})

        async def gone() -> None:
            assert (await node.get(at)).status == 404

        await eventually(gone)
        await node.request("PUT", at, None, {"dueTime": "1h", "failurePolicy": {"constant": {"interval": "1s"}}})
        assert (await node.request("DELETE", at)).status == 204
        assert (await node.get(at)).status == 404


async def test_idle_actors_are_deactivated(memory: Backbone, tmp_path: Path) -> None:
    """After its idle time the application is told; the next call activates it anew."""
    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:
        await node.request(*call("x", type_="brief"))
        await app.until("/actors/brief/1")
        await node.request(*call("x", type_="brief"))
        assert app.paths() == [
            "PUT /actors/brief/1/method/x",
            "DELETE /actors/brief/1",
            "PUT /actors/brief/1/method/x",
        ]


async def test_stopping_deactivates(memory: Backbone, tmp_path: Path) -> None:
    """A gateway that stops has the application let go of all active actors, once their turns have ended."""
    release = asyncio.Event()

    async def slow(got: Got, request: web.BaseRequest) -> web.Response:
        await release.wait()
        return web.Response(body=b"done")

    async with ActorApp() as app, AsyncExitStack() as stack:
        node = await stack.enter_async_context(gateway(memory, tmp_path, app=app))
        app.answers["/actors/thing/2/method/slow"] = slow
        await node.request(*call("x"))
        async with asyncio.TaskGroup() as tasks:
            late = tasks.create_task(node.request(*call("slow", id_="2")))
            await app.until("/actors/thing/2/method/slow")
            tasks.create_task(stack.aclose())
            await app.until("/actors/thing/1")
            release.set()
        assert late.result().body == b"done"
        assert [path for path in app.paths() if path.startswith("DELETE")] == [
            "DELETE /actors/thing/1",
            "DELETE /actors/thing/2",
        ]


async def test_an_application_that_comes_back(memory: Backbone, tmp_path: Path) -> None:
    """What was active died with it, and is not asked to end; a call waits until it is back."""
    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:
        await node.request(*call("x"))
        await app.stop()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(node.request(*call("x")))
            await eventually(lambda: _equal(bool(node.gateway.not_ready), True))
            await app.start()
        assert waiting.result().status == 200
        assert app.paths() == ["PUT /actors/thing/1/method/x"] * 2


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"entities": ["thing"], "actorIdleTimeout": "soon"}, "actorIdleTimeout must be a duration"),
        ({"entities": ["thing", "a/b"]}, "entities[1]: actor type must not contain '/'"),
        ({"entities": ["thing"], "reentrancy": {"enabled": True, "maxStackDepth": 0}}, "reentrancy.maxStackDepth"),
        (
            {"entities": ["thing"], "entitiesConfig": [{"entities": ["thing"], "drainOngoingCallTimeout": 5}]},
            "entitiesConfig[0].drainOngoingCallTimeout",
        ),
    ],
)
async def test_wrong_settings_are_told(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, config: object, told: str
) -> None:
    """They name the field, and the type works on."""
    with caplog.at_level(logging.WARNING):
        async with ActorApp(config) as app, gateway(memory, tmp_path, app=app) as node:
            assert (await node.request(*call("x"))).status == 200
    assert told in caplog.text


async def test_endpoint_switched_off(memory: Backbone, tmp_path: Path) -> None:
    """`--disable-init-endpoints config` asks nothing, and hosts nothing."""
    async with (
        ActorApp() as app,
        gateway(memory, tmp_path, app=app, init_endpoints_off=frozenset({"config"})) as node,
    ):
        assert (await node.request(*call("x"))).status == 500
        assert not [got for got in app.init if got.path == "/dapr/config"]


async def test_larger_answers_come_whole(memory: Backbone, tmp_path: Path) -> None:
    """A body of some megabytes goes there and back."""
    async with ActorApp() as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/actors/thing/1/method/echo"] = lambda got, request: web.Response(body=got.body)
        large = json.dumps(["x" * 1000] * 2000).encode()
        reply = await node.request("POST", f"{ACTORS}/thing/1/method/echo", None, large)
        assert reply.body == large


@shared
@pytest.mark.parametrize(
    "packed",
    [
        "",
        "{}",
        "[]",
        '["nothing"]',
        '["invoke"]',
        '["invoke","x","",[["a"]]]',
        '["invoke","x","",[],1]',
        '["deactivate",1]',
        '["set_reminder","r",{"first":"x"},[1,3,false],true]',
        '["set_reminder","r",{"first":1},[1],true]',
        '["set_reminder","r",{"first":1e999},[1,3,false],true]',
        '["set_reminder","r",{"first":4000000000.0},[1,3,false],true]',
        '["delete_reminder",{}]',
    ],
)
async def test_malformed_questions(served: tuple[Node, ActorApp], packed: str) -> None:
    """What another node makes up is refused, and runs nothing."""
    node, app = served
    service = node.gateway._runtime.services["actors"]
    before = len(app.got)
    asked = Asked("actors.thing", "1", 0, 1, {"actor": packed}, b"", time.time() + 5, Caller("n", "a"))
    with pytest.raises(EventError):
        await service.answer(asked)  # type: ignore[attr-defined]
    assert len(app.got) == before


@shared
async def test_headers_that_another_node_makes_up(served: tuple[Node, ActorApp]) -> None:
    """Those of a connection do not reach the application, and names that could be taken for others are refused."""
    node, app = served
    service = node.gateway._runtime.services["actors"]

    await node.request("POST", f"{ACTORS}/thing/made-up/method/x")  # From now on somebody owns it.
    partition = partition_of("made-up", PARTITIONS)
    epoch = service._parts.owners.epoch("actors.thing", partition)  # type: ignore[attr-defined]

    def asked(*headers: tuple[str, str]) -> Asked:
        packed = {"actor": pack("invoke", "x", "", headers)}
        return Asked("actors.thing", "made-up", partition, epoch, packed, b"5", time.time() + 5, Caller("n", "a"))

    before = len(app.got)
    await service.answer(asked(("Transfer-Encoding", "chunked"), ("Content-Length", "0"), ("x-kept", "1")))  # type: ignore[attr-defined]
    headers = app.got[-1].headers
    assert headers["x-kept"] == "1"
    assert "transfer-encoding" not in headers
    for name in ("Content-Length ", "dapr-caller-app-id:admin", "", "a b"):
        with pytest.raises(BadArgumentError, match="a header must not be named"):
            await service.answer(asked((name, "0")))  # type: ignore[attr-defined]
    assert len(app.got) == before + 1


@shared
@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 257])
async def test_names_are_checked_at_the_owner_too(served: tuple[Node, ActorApp], name: str) -> None:
    node, _ = served
    service = node.gateway._runtime.services["actors"]
    for key, packed in ((name, pack("invoke", "x", "", [])), ("1", pack("invoke", name, "", []))):
        asked = Asked("actors.thing", key, 0, 1, {"actor": packed}, b"", time.time() + 5, Caller("n", "a"))
        with pytest.raises(BadArgumentError):
            await service.answer(asked)  # type: ignore[attr-defined]
