"""What a gateway tells those who look after it: process, components, resources, log, topics and dead letters."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from gateway.logs import LogRing
from tests.http.harness import (
    ANY,
    App,
    Backbone,
    Case,
    Node,
    cases,
    check,
    component,
    error,
    gateway,
    matches,
    subscription,
    yaml,
)
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
RESOURCES = (
    component("pubsub", "pubsub.mesh")
    + component("statestore", "state.mesh")
    + component(
        "web",
        "bindings.http",
        url="http://user:pw@127.0.0.1:1/a",
        securityToken="s3cret",
        securityTokenHeader="X-Token",
    )
)
EVENTS = "/v1.0/mesh/topics/pubsub"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A gateway whose application refuses what is called bad; ``orders`` has dead letters, ``plain`` has none."""
    home = tmp_path_factory.mktemp("home")
    told = [subscription("pubsub", "orders", letters="failed"), subscription("pubsub", "plain")]
    async with App(told) as app:
        app.answers["/orders"] = lambda got, request: _settled(got)
        async with gateway(
            Backbone(nats_url), home, app=app, app_id="shop", resources=RESOURCES, metrics=True, metrics_port=0
        ) as node:
            for number in range(5):
                await node.publish("plain", {"number": number})
            for number in range(3):
                await node.publish("orders", {"bad": number})
            await node.publish("orders", {"good": True})
            await node.publish("unread", "text")
            items = [{"key": key, "value": {"of": key}} for key in ("a", "a/b", "b")]
            assert (await node.post("/v1.0/state/statestore", items)).status == 204
            await app.until("/plain", 5)
            await eventually_letters(node, 3)
            yield node


def _settled(got: Any) -> Any:
    from aiohttp import web

    return web.json_response({"status": "DROP" if "bad" in got.json["data"] else "SUCCESS"})


async def eventually_letters(node: Node, count: int) -> None:
    async def look() -> None:
        reply = await node.get(f"{EVENTS}/failed/events")
        assert len(reply.json["events"]) == count, reply.json

    await eventually(look)


@cases(
    Case(
        "the process",
        ("GET", "/v1.0/mesh/node"),
        200,
        {
            "node": matches(lambda text: len(text) == 16),
            "app": "shop",
            "namespace": ANY,
            "pid": os.getpid(),
            "hostname": ANY,
            "since": matches(lambda value: value > 1e9),
            "uptimeSeconds": matches(lambda value: value > 0),
            "cpuSeconds": matches(lambda value: value > 0),
            "rssBytes": matches(lambda value: value > 1e6),
            "listens": {"addresses": ["127.0.0.1", "::1"], "http": ANY, "grpc": ANY, "metrics": ANY},
            "backbone": matches(lambda text: text.startswith("nats://")),
            "version": ANY,
        },
    ),
    Case("keys", ("GET", "/v1.0/mesh/components/statestore/keys"), 200, {"keys": ["a", "a/b", "b"]}),
    Case(
        "keys from one on",
        ("GET", "/v1.0/mesh/components/statestore/keys?prefix=a&limit=1"),
        200,
        {"keys": ["a"], "after": "a"},
    ),
    Case("keys behind one", ("GET", "/v1.0/mesh/components/statestore/keys?after=a%2Fb"), 200, {"keys": ["b"]}),
    Case("too many keys", ("GET", "/v1.0/mesh/components/statestore/keys?limit=0"), 400, error("ERR_BAD_REQUEST")),
    Case("a value", ("GET", "/v1.0/mesh/components/statestore/keys/a%2Fb"), 200, {"of": "a/b"}),
    Case("no value", ("GET", "/v1.0/mesh/components/statestore/keys/zz"), 204),
    Case(
        "keys of what keeps none",
        ("GET", "/v1.0/mesh/components/pubsub/keys"),
        400,
        error("ERR_STATE_STORE_NOT_FOUND", details=ANY),
    ),
    Case("logs of no level", ("GET", "/v1.0/mesh/logs?level=loud"), 400, error("ERR_BAD_REQUEST")),
    Case("too many lines", ("GET", "/v1.0/mesh/logs?limit=1001"), 400, error("ERR_BAD_REQUEST")),
    Case("lines behind none", ("GET", "/v1.0/mesh/logs?after=x"), 400, error("ERR_BAD_REQUEST")),
    Case("a topic of no component", ("GET", "/v1.0/mesh/topics/nope/t"), 404, error("ERR_PUBSUB_NOT_FOUND")),
    Case("a topic of another block", ("GET", "/v1.0/mesh/topics/statestore/t"), 404, error("ERR_PUBSUB_NOT_FOUND")),
    Case(
        "events of a topic that is not there",
        ("GET", f"{EVENTS}/nothing/events"),
        200,
        {"topic": "nothing", "count": 0, "events": [], "after": None, "complete": True},
    ),
    Case("too many events", ("GET", f"{EVENTS}/plain/events?limit=201"), 400, error("ERR_BAD_REQUEST")),
    Case("newest of no kind", ("GET", f"{EVENTS}/plain/events?newest=perhaps"), 400, error("ERR_BAD_REQUEST")),
    Case("newest behind one", ("GET", f"{EVENTS}/plain/events?newest=true&after=1"), 400, error("ERR_BAD_REQUEST")),
    Case("dead letters of a topic without", ("GET", f"{EVENTS}/plain/dead-letters"), 400, error("ERR_BAD_REQUEST")),
    Case(
        "replay of none",
        ("POST", f"{EVENTS}/failed/dead-letters/replay", None, {}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
    Case("replay of no body", ("POST", f"{EVENTS}/failed/dead-letters/replay"), 400, error("ERR_MALFORMED_REQUEST")),
    Case(
        "replay in two ways",
        ("POST", f"{EVENTS}/failed/dead-letters/replay", None, {"all": True, "ids": ["1"]}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
    Case(
        "replay of no ids",
        ("POST", f"{EVENTS}/failed/dead-letters/replay", None, {"ids": []}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
    Case(
        "replay of numbers",
        ("POST", f"{EVENTS}/failed/dead-letters/replay", None, {"ids": [1]}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
    Case(
        "replay by no rule",
        ("POST", f"{EVENTS}/failed/dead-letters/replay", None, {"where": "event."}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
    Case(
        "a misspelt member",
        ("POST", f"{EVENTS}/failed/dead-letters/replay", None, {"al": True}),
        400,
        error("ERR_MALFORMED_REQUEST", matches(lambda text: "did you mean all" in text)),
    ),
    Case(
        "replay of too many",
        ("POST", f"{EVENTS}/failed/dead-letters/replay", None, {"all": True, "limit": 10001}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
    Case(
        "purge with a topic",
        ("POST", f"{EVENTS}/failed/dead-letters/purge", None, {"all": True, "topic": "t"}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
    Case(
        "purge of a topic that is alive",
        ("POST", f"{EVENTS}/plain/dead-letters/purge", None, {"all": True}),
        400,
        error("ERR_BAD_REQUEST"),
    ),
    Case("replay by GET", ("GET", f"{EVENTS}/failed/dead-letters/replay"), 404, ANY),
    Case("reminders of a type that is not hosted", ("GET", "/v1.0/mesh/reminders/cart"), 403, ANY),
)
async def test_views(node: Node, case: Case) -> None:
    await check(node, case)


async def test_components(node: Node) -> None:
    rows = {each["name"]: each for each in (await node.get("/v1.0/mesh/components")).json["components"]}
    file = rows["statestore"]["file"]
    assert rows["statestore"] == {
        "name": "statestore",
        "type": "state.mesh",
        "version": "v1",
        "block": "state",
        "placement": "nearest",
        "hosts": ["shop"],
        "health": "ok",
        "reason": "",
        "capabilities": matches(lambda told: "KEYS" in told),
        "scopes": [],
        "file": matches(lambda text: text.endswith(".yaml")),
        "line": matches(lambda line: line > 1),
    }
    assert (rows["pubsub"]["placement"], rows["pubsub"]["hosts"], rows["pubsub"]["file"]) == ("local", [], file)


async def test_a_component_of_another_node_is_elsewhere(nats_url: str, tmp_path: Path) -> None:
    backbone = Backbone(nats_url)
    resources = component("pubsub", "pubsub.mesh")
    async with (
        gateway(backbone, tmp_path, app_id="host", resources=component("theirs", "state.mesh")),
        gateway(backbone, tmp_path, app_id="shop", resources=resources) as node,
    ):
        assert (await node.get("/v1.0/state/theirs/k")).status == 204
        (row,) = [
            each for each in (await node.get("/v1.0/mesh/components")).json["components"] if each["name"] == "theirs"
        ]
        assert (row["placement"], row["hosts"], row["health"], row["file"]) == ("elsewhere", ["host"], "unknown", None)


async def test_a_component_that_could_not_be_opened_says_why(nats_url: str, tmp_path: Path) -> None:
    spec = {"type": "state.redis", "version": "v1", "ignoreErrors": True, "initTimeout": "300ms"}
    resources = component("pubsub", "pubsub.mesh") + yaml(
        "Component", "away", {**spec, "metadata": [{"name": "redisHost", "value": "127.0.0.1:1"}]}
    )
    async with gateway(Backbone(nats_url), tmp_path, app_id="shop", resources=resources) as node:
        rows = {each["name"]: each for each in (await node.get("/v1.0/mesh/components")).json["components"]}
        assert (rows["away"]["health"], rows["away"]["placement"]) == ("absent", "")
        assert rows["away"]["reason"]


async def test_resources_have_no_secrets(node: Node) -> None:
    reply = await node.get("/v1.0/mesh/resources")
    rows = {each["name"]: each for each in reply.json["resources"]}
    assert rows.keys() == {"pubsub", "statestore", "web"}
    assert b"s3cret" not in reply.body
    assert b"user:pw" not in reply.body
    assert "value: '***'" in rows["web"]["yaml"]
    assert "http://***@127.0.0.1:1/a" in rows["web"]["yaml"]
    assert rows["web"]["kind"] == "Component"


async def test_topics(node: Node) -> None:
    told = (await node.get("/v1.0/mesh/topics")).json["topics"]
    rows = {each["topic"]: each for each in told}
    assert list(rows) == ["failed", "orders", "plain", "unread"]
    zero = {"success": 0, "retry": 0, "drop": 0}
    assert rows["failed"] == {
        "component": "pubsub",
        "topic": "failed",
        "subscribed": False,
        "published": False,
        "deadLetterTopic": None,
        "deadLetterOf": ["orders"],
        "events": True,
        "waiting": None,
        "taken": None,
        "oldestSeconds": None,
        "attempts": zero,
        "deadLetters": 0,
    }
    assert (rows["orders"]["subscribed"], rows["orders"]["deadLetterTopic"]) == (True, "failed")
    assert (rows["unread"]["subscribed"], rows["unread"]["published"]) == (False, True)
    assert rows["plain"]["attempts"]["success"] == 5


async def test_one_topic(node: Node) -> None:
    told = (await node.get(f"{EVENTS}/plain")).json
    assert (told["kept"], told["exists"], told["group"]) == (5, True, True)
    assert (told["routes"], told["origin"]) == ([{"path": "/plain"}], "PROGRAMMATIC")
    assert "stream" in told["place"]
    told = (await node.get(f"{EVENTS}/nobodys.topic")).json
    assert (told["kept"], told["subscribed"], told["routes"], told["group"]) == (0, False, [], None)


async def test_pages_of_events(node: Node) -> None:
    async def page(query: str) -> tuple[list[int], str | None, bool]:
        told = (await node.get(f"{EVENTS}/plain/events?{query}")).json
        assert (told["topic"], told["count"]) == ("plain", 5)
        return [each["event"]["data"]["number"] for each in told["events"]], told["after"], told["complete"]

    first, after, complete = await page("limit=2")
    assert (first, complete) == ([0, 1], False)
    second, after, complete = await page(f"limit=2&after={after}")
    assert (second, complete) == ([2, 3], False)
    assert await page(f"limit=2&after={after}") == ([4], None, True)
    assert await page("limit=2&newest=true") == ([4, 3], None, True)
    assert await page("limit=5") == ([0, 1, 2, 3, 4], None, True)
    told = (await node.get(f"{EVENTS}/unread/events")).json["events"]
    assert [(each["event"]["data"], each["attempts"], each["reason"]) for each in told] == [("text", None, None)]


async def test_looking_takes_nothing_from_a_subscriber(nats_url: str, tmp_path: Path) -> None:
    """Before it is there, and while it is."""
    backbone = Backbone(nats_url)
    async with gateway(backbone, tmp_path, app_id="maker") as maker:
        for number in range(3):
            await maker.publish("events", {"number": number})
        async with App([subscription("pubsub", "events")]) as app:
            assert len((await maker.get(f"{EVENTS}/events/events")).json["events"]) == 3
            async with gateway(backbone, tmp_path, app=app, app_id="taker") as taker:
                await app.until("/events", 3)
                assert len((await taker.get(f"{EVENTS}/events/events")).json["events"]) == 3
                await maker.publish("events", {"number": 3})
                await app.until("/events", 4)
                assert [got.json["data"]["number"] for got in app.at("/events")] == [0, 1, 2, 3]


async def test_dead_letters_go_back_and_away(nats_url: str, tmp_path: Path) -> None:
    """One by its id, some by a rule, the others at once; not those of another topic, which lie there too."""
    told = [subscription("pubsub", name, letters="failed") for name in ("orders", "others")]
    async with App(told) as app:
        refused = True
        drop = {"status": "DROP"}
        from aiohttp import web

        for path in ("/orders", "/others"):
            app.answers[path] = lambda got, request: web.json_response(drop if refused else {"status": "SUCCESS"})
        async with gateway(Backbone(nats_url), tmp_path, app=app, app_id="shop") as node:
            for number in range(4):
                await node.publish("orders", {"number": number})
            await node.publish("others", {"number": 9})
            await eventually_letters(node, 5)
            refused = False
            letters = (await node.get(f"{EVENTS}/orders/dead-letters")).json
            assert letters["topic"] == "failed"
            assert [each["event"]["data"]["number"] for each in letters["events"]] == [0, 1, 2, 3]
            assert {(each["topic"], each["reason"]) for each in letters["events"]} == {
                ("orders", "the application answered DROP")
            }
            both = (await node.get(f"{EVENTS}/failed/dead-letters?newest=true&limit=2")).json["events"]
            assert sorted(each["event"]["data"]["number"] for each in both)[-1] == 9

            async def act(what: str, **given: object) -> dict[str, Any]:
                reply = await node.post(f"{EVENTS}/orders/dead-letters/{what}", given)
                assert reply.status == 200, reply.body
                return reply.json

            rest = {"left": 0, "why": {}, "unjudged": {}}
            done = await act("replay", ids=[letters["events"][1]["id"]])
            assert done == {"replayed": 1, "to": {"orders": 1}, **rest}
            await app.until("/orders", 5)
            assert app.at("/orders")[-1].json["data"] == {"number": 1}
            assert (await act("purge", where="event.data.number == 2")) == {"purged": 1, **rest}
            assert (await act("replay", all=True, limit=1))["replayed"] == 1
            unjudged = await act("replay", where="event.data.missing == 2")
            assert (unjudged["replayed"], list(unjudged["unjudged"].values())) == (0, [1])
            assert (await act("replay", all=True))["to"] == {"orders": 1}
            await app.until("/orders", 7)
            assert (await act("replay", all=True)) == {"replayed": 0, "to": {}, **rest}
            left = (await node.get(f"{EVENTS}/failed/dead-letters")).json["events"]
            assert [each["topic"] for each in left] == ["others"]


async def test_a_topic_that_is_not_declared_is_changed_only_when_that_is_said(node: Node) -> None:
    await node.publish("stray", {"a": 1})
    path = f"{EVENTS}/stray/dead-letters"
    assert (await node.post(f"{path}/replay", {"all": True})).status == 400
    told = (await node.post(f"{path}/replay", {"all": True, "undeclared": True})).json
    assert (told["replayed"], told["left"]) == (0, 1)
    assert "does not say" in next(iter(told["why"]))
    told = (await node.post(f"{path}/replay", {"all": True, "undeclared": True, "topic": "unread"})).json
    assert told["to"] == {"unread": 1}
    assert (await node.post(f"{path}/purge", {"all": True, "undeclared": True})).json["purged"] == 0


async def test_a_broker_that_keeps_nothing_says_so(memory: Backbone, tmp_path: Path) -> None:
    async with gateway(memory, tmp_path) as node:
        await node.publish("t")
        (row,) = (await node.get("/v1.0/mesh/topics")).json["topics"]
        assert row["events"] is False
        reply = await node.get(f"{EVENTS}/t/events")
        assert (reply.status, reply.json["errorCode"]) == (501, "ERR_TOPIC_NOT_KEPT")
        told = (await node.get(f"{EVENTS}/t")).json
        assert (told["kept"], told["place"], told["exists"]) == (None, None, None)


async def test_resources_say_what_is_wrong_with_them_now(nats_url: str, tmp_path: Path) -> None:
    resources = tmp_path / "resources"
    resources.mkdir()
    (resources / "good.yaml").write_text(component("pubsub", "pubsub.mesh") + "# hunter2\n")
    configuration = tmp_path / "config.yaml"
    headers = [{"name": "authorization", "value": "Bearer hunter2"}]
    otel = {"endpointAddress": "127.0.0.1:4317", "protocol": "grpc", "headers": headers}
    configuration.write_text(yaml("Configuration", "conf", {"tracing": {"otel": otel}}))
    async with gateway(
        Backbone(nats_url),
        tmp_path,
        app_id="shop",
        resource_paths=(resources,),
        configuration_files=(configuration,),
    ) as node:
        (resources / "bad.yaml").write_text(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: b\nspec: {typ: x}\n"
        )
        (resources / "broken.yaml").write_text("a: [hunter2\n")
        reply = await node.get("/v1.0/mesh/resources")
        assert b"hunter2" not in reply.body
        rows = {(each["kind"], each["name"]): each for each in reply.json["resources"]}
        assert rows.keys() == {("Component", "pubsub"), ("Component", "b"), ("", ""), ("Configuration", "conf")}
        assert rows["Component", "pubsub"]["problems"] == []
        (problem, *_) = rows["Component", "b"]["problems"]
        assert (problem["severity"], problem["file"], problem["line"]) == ("error", str(resources / "bad.yaml"), 5)
        (broken,) = rows["", ""]["problems"]
        assert (rows["", ""]["file"], "not valid YAML" in broken["message"]) == (str(resources / "broken.yaml"), True)
        assert "authorization" in rows["Configuration", "conf"]["yaml"]


async def test_the_log_is_kept_and_given_from_a_line_on(node: Node) -> None:
    ring = node.gateway.views.ring
    assert isinstance(ring, LogRing)
    for number in range(3):
        ring.add(logging.LogRecord("mesh.test", logging.WARNING, __file__, 1, "line %d", (number,), None))
    told = (await node.get("/v1.0/mesh/logs?limit=2")).json
    assert [(each["n"], each["level"], each["scope"], each["message"]) for each in told["lines"]] == [
        (2, "warning", "mesh.test", "line 1"),
        (3, "warning", "mesh.test", "line 2"),
    ]
    assert (told["next"], told["missed"]) == (3, 0)
    told = (await node.get("/v1.0/mesh/logs?after=0&limit=1")).json
    assert ([each["n"] for each in told["lines"]], told["next"]) == ([1], 1)
    assert (await node.get("/v1.0/mesh/logs?level=error")).json["lines"] == []
    assert (await node.get("/v1.0/mesh/logs?after=3")).json == {"lines": [], "next": 3, "missed": 0}


async def test_all_at_once(node: Node) -> None:
    """Looking at once is as looking one after the other."""
    paths = ["/v1.0/mesh/topics", f"{EVENTS}/plain/events", f"{EVENTS}/failed/dead-letters", "/v1.0/mesh/components"]
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(node.get(path)) for path in paths * 8]
    replies = [each.result() for each in asked]
    assert {reply.status for reply in replies} == {200}
    assert orjson.loads(replies[1].body) == orjson.loads(replies[5].body)
