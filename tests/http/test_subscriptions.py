"""Subscriptions: how they are declared, where events go, what the application gets and what its answers do.

Source: reference/dapr-surface.md 2.1 to 2.6, 6.6.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from gateway.config import Tokens
from mesh.blocks.topics import spelled
from mesh.errors import BadArgumentError, ConfigError
from tests.http.harness import ANY, DEFAULTS, App, Backbone, Got, Node, component, gateway, matches, yaml
from tests.support.eventually import eventually

UUID = matches(re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z").match)
DEAD = {"pubsubname": "pubsub", "topic": "dead", "route": "/dead"}


def subscription(topic: str = "t", route: str | None = "/t", **more: object) -> dict[str, object]:
    return {"pubsubname": "pubsub", "topic": topic, **({} if route is None else {"route": route}), **more}


def declared(name: str, spec: Mapping[str, object], version: str = "v1alpha1", scopes: Sequence[str] = ()) -> str:
    return yaml("Subscription", name, {"pubsubname": "pubsub", "topic": "t", **spec}, version=version, scopes=scopes)


def settled(node: Node) -> dict[str, int]:
    """Count what became of deliveries, by outcome."""
    counts: dict[str, int] = {}
    for name, number in node.gateway._runtime.counters.snapshot().items():
        label = name[-1] if name[0] == "events_delivered" else name[0]
        counts[label] = counts.get(label, 0) + number
    return counts


async def until_settled(node: Node, **wanted: int) -> None:
    def check() -> None:
        counts = settled(node)
        assert {name: counts.get(name, 0) for name in wanted} == wanted, counts

    await eventually(check)


RULES = {
    "rules": [{"match": 'event.type == "a"', "path": "/a"}, {"match": "has(event.data.b)", "path": "b"}],
    "default": "/rest",
}


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(([subscription("t", None, routes=RULES)], ""), id="programmatic-2"),
        pytest.param((None, declared("s", {"routes": RULES}, "v2alpha1")), id="declarative-2"),
    ],
)
async def test_rules(backbone: Backbone, tmp_path: Path, given: tuple[Any, str]) -> None:
    """The first rule that takes an event decides, else the default; paths need no leading slash."""
    async with (
        App(given[0]) as app,
        gateway(backbone, tmp_path, app=app, resources=given[1] and DEFAULTS + given[1]) as node,
    ):
        await node.publish("t", "x", query="?metadata.cloudevent.type=a")
        await node.publish("t", {"b": 1})
        await node.publish("t", {"c": 1})
        for path in ("/a", "/b", "/rest"):
            await app.until(path)
        assert len(app.got) == 3


@pytest.mark.parametrize(
    ("programmatic", "resources"),
    [
        pytest.param([subscription(route="t")], "", id="programmatic-1-no-slash"),
        pytest.param([subscription(routes={"default": "/t"}, route="/no")], "", id="routes-default-beats-route"),
        pytest.param([{"PubsubName": "pubsub", "Topic": "t", "Route": "/t"}], "", id="any-case"),
        pytest.param([subscription(route=None), subscription()], "", id="no-route-is-left-out"),
        pytest.param([subscription(), subscription(route="/second")], "", id="first-of-two"),
        pytest.param([{"pubsubname": "nope", "topic": "t", "route": "/n"}, subscription()], "", id="unknown-component"),
        pytest.param(None, declared("s", {"route": "/t"}), id="declarative-1"),
        pytest.param(None, declared("s", {"route": "/t"}, scopes=["app", "b"]), id="in-scope"),
        pytest.param(None, declared("a", {"route": "/t"}) + declared("b", {"route": "t"}), id="declared-twice"),
        pytest.param([subscription()], declared("s", {"route": "/declared"}), id="programmatic-replaces"),
        pytest.param([subscription("u", "/u")], declared("s", {"route": "/t"}), id="both-kinds"),
    ],
)
async def test_declaring(memory: Backbone, tmp_path: Path, programmatic: object, resources: str) -> None:
    """Every way to subscribe leads to the one route."""
    async with (
        App(programmatic) as app,
        gateway(memory, tmp_path, app=app, resources=resources and DEFAULTS + resources) as node,
    ):
        await node.publish("t", "x")
        await app.until("/t")
        await until_settled(node, success=1)
        assert [got.path for got in app.got] == ["/t"]
        assert app.init[0].headers["dapr-app-id"] == "app"


TWO = declared("a", {"routes": {"rules": [{"match": 'event.type == "a"', "path": "/a"}]}}, "v2alpha1")
TWO += declared("b", {"routes": {"rules": [{"match": "true", "path": "/b"}], "default": "/c"}}, "v2alpha1")
TWO_OF_THE_APPLICATION = [
    subscription("t", None, routes={"rules": [{"match": 'event.type == "a"', "path": "/a"}]}),
    subscription("t", None, routes={"rules": [{"match": "true", "path": "/b"}], "default": "/c"}),
]


@pytest.mark.parametrize(
    ("programmatic", "resources"), [(None, DEFAULTS + TWO), (TWO_OF_THE_APPLICATION, "")], ids=["declared", "own"]
)
async def test_rules_of_two_subscriptions_to_one_topic(
    memory: Backbone, tmp_path: Path, programmatic: object, resources: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the first come first; which two are taken together is told."""
    caplog.set_level("INFO")
    async with App(programmatic) as app, gateway(memory, tmp_path, app=app, resources=resources) as node:
        await node.publish("t", "x", query="?metadata.cloudevent.type=a")
        await node.publish("t", "y")
        assert [got.json["data"] for got in await app.until("/a") + await app.until("/b")] == ["x", "y"]
        await until_settled(node, success=2)
        assert len(app.got) == 2
    if resources:
        assert re.search(r"pubsub/t: the rules of 'b' \(.*all.yaml:\d+\) apply after those of 'a' \(", caplog.text)


async def test_two_subscriptions_that_differ(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Declared ones are refused at start; of the application's the first counts, and the other is named."""
    two = declared("a", {"route": "/t"}) + declared("b", {"route": "/second"})
    with pytest.raises(ConfigError, match="a second subscription to the topic 't' of 'pubsub', beside 'a' "):
        async with gateway(memory, tmp_path, resources=DEFAULTS + two):
            pass
    async with App([subscription(), subscription(route="/second")]) as app, gateway(memory, tmp_path, app=app) as node:
        await node.publish("t", "x")
        await app.until("/t")
        assert (
            "beside that of the application: the rules of both would apply, but they differ in the route" in caplog.text
        )


async def test_the_application_s_own_replaces_a_declared_one(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is told, by name and place."""
    caplog.set_level("INFO")
    resources = DEFAULTS + declared("mine", {"route": "/declared"})
    async with App([subscription()]) as app, gateway(memory, tmp_path, app=app, resources=resources) as node:
        await node.publish("t", "x")
        await app.until("/t")
    assert "pubsub/t: the application's own subscription replaces the declared 'mine' (" in caplog.text


@pytest.mark.parametrize("spelling", ["isRawPayload", "rawpayload", "RawPayload"])
async def test_spellings_of_raw_payload(memory: Backbone, tmp_path: Path, spelling: str) -> None:
    """Of the subscription and of the publish."""
    resources = DEFAULTS + declared("s", {"route": "/t", "metadata": {spelling: "true"}})
    async with App() as app, gateway(memory, tmp_path, app=app, resources=resources) as node:
        await node.publish("t", b"\x00", query=f"?metadata.{spelling}=true")
        assert (await app.until("/t"))[0].json["data_base64"] == "AA=="


async def test_publish_metadata_that_has_no_effect_is_named_once(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of a request in one line."""
    async with gateway(memory, tmp_path) as node:
        for _ in range(2):
            await node.publish("t", "x", query="?metadata.routingKey=a&metadata.priority=3&metadata.TTLINSECONDS=9")
        entry = {"event": "x", "contentType": "text/plain"}
        entries = [{**entry, "entryId": str(at), "metadata": {f"h{at}": "1", "priority": "1"}} for at in range(3)]
        assert (await node.post("/v1.0/publish/bulk/pubsub/t", entries)).status == 204
    told = [record.getMessage() for record in caplog.records if "publish metadata" in record.getMessage()]
    known = "known: delay, partitionKey, rawPayload, scheduledSendTime, ttl, ttlInSeconds, cloudevent.…"
    assert told == [
        f"pubsub: the publish metadata 'priority', 'routingKey' have no effect; {known}",
        f"pubsub: the publish metadata 'h0', 'h1', 'h2' have no effect; {known}",
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("ttlInSecond", "ttlInSeconds"), ("ttl_in_seconds", "ttlInSeconds"), ("ttlSeconds", "ttlInSeconds")),
        *(("raw-payload", "rawPayload"), ("rawPayloads", "rawPayload"), ("partition_key", "partitionKey")),
        *(("scheduledSendTimes", "scheduledSendTime"), ("delays", "delay")),
        *(("cloudevent.sourc", "cloudevent.source"), ("cloudevents.type", "cloudevent.type")),
        *((name, None) for name in ("rawPayload", "IsRawPayload", "TTL", "CloudEvent.ID")),
        # Names of brokers, and attributes that exist but are not set so.
        *((name, None) for name in ("key", "partition", "partitionNum", "priority", "ScheduledEnqueueTimeUtc")),
        *(
            (name, None)
            for name in ("cloudevent.time", "cloudevent.specversion", "cloudevent.", "title", "day", "x" * 999)
        ),
        *(
            (name, None)
            for name in ("payload", "relay", "TimeToLive", "messageId", "routingKey", "__key", "deliverAfter")
        ),
    ],
)
def test_only_a_near_miss_of_publish_metadata_is_refused(name: str, meant: str | None) -> None:
    """Brokers have names of their own, which are no mistake."""
    if meant is None:
        assert list(spelled({name: "1"}).values()) == ["1"]
        return
    with pytest.raises(BadArgumentError, match=f"did you mean '{re.escape(meant)}'"):
        spelled({name: "1"})


@pytest.mark.costly
@pytest.mark.parametrize("bulk_", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize("duration", ["10ms", "1100ms"])
async def test_attempts_are_counted(backbone: Backbone, tmp_path: Path, duration: str, bulk_: bool) -> None:
    """1, 2, 3, 4 at the application, and 4 in the dead letter, whether delays are waited out here or at the broker."""
    policy = {"policy": "constant", "duration": duration, "maxRetries": 3}
    spec = {"policies": {"retries": {"r": policy}}, "targets": {"components": {"pubsub": {"inbound": {"retry": "r"}}}}}
    more = {"bulkSubscribe": {"enabled": True, "maxMessagesCount": 1}} if bulk_ else {}
    subscribed = [subscription("büro/t", deadLetterTopic="dead", **more), DEAD]
    resources = DEFAULTS + yaml("Resiliency", "r", spec)
    async with App(subscribed) as app, gateway(backbone, tmp_path, app=app, resources=resources) as node:
        app.answer("/t", 500)
        await node.publish("b%C3%BCro/t", "x")
        (dead,) = await app.until("/dead")
        got = app.at("/t")
        headers = [each.json["entries"][0]["metadata"] if bulk_ else each.headers for each in got]
        assert [each["mesh-attempt"] for each in headers] == ["1", "2", "3", "4"]
        assert dead.headers["mesh-dead-letter-attempts"] == "4"
        assert dead.headers["mesh-dead-letter-topic"] == "b%C3%BCro/t"


@pytest.mark.parametrize(
    "resources",
    [
        declared("s", {"route": "/t"}, scopes=["other"]),
        component("pubsub", "pubsub.mesh", subscriptionScopes="app=u") + declared("s", {"route": "/t"}),
        component("pubsub", "pubsub.mesh", protectedTopics="t", subscriptionScopes="other=t")
        + declared("s", {"route": "/t"}),
    ],
    ids=["scope", "subscription-scope", "protected"],
)
async def test_out_of_scope(memory: Backbone, tmp_path: Path, resources: str) -> None:
    """What the application may not have is left out; the rest works."""
    if "Component" not in resources:
        resources = DEFAULTS + resources
    async with (
        App() as app,
        gateway(memory, tmp_path, app=app, resources=resources + declared("u", {"topic": "u", "route": "/u"})) as node,
    ):
        for topic in ("t", "u"):
            assert (await node.post(f"/v1.0/publish/pubsub/{topic}", b"x")).status in (204, 403)
        await app.until("/u")
        assert [got.path for got in app.got] == ["/u"]


async def test_delivery(backbone: Backbone, tmp_path: Path) -> None:
    """Method, headers and body of a delivery."""
    async with App([subscription()]) as app, gateway(backbone, tmp_path, app=app, tokens=Tokens(app="secret")) as node:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await node.request(
            "POST",
            "/v1.0/publish/pubsub/t",
            {"Content-Type": "application/json", "traceparent": trace, "tracestate": "a=1"},
            b"{}",
        )
        (got,) = await app.until("/t")
    assert got.method == "POST"
    assert got.all("content-type") == ["application/cloudevents+json"]
    assert got.headers["pubsubname"] == "pubsub"
    assert got.headers["dapr-api-token"] == "secret"
    assert got.headers["traceparent"][:36] == trace[:36]
    assert got.headers["traceparent"] not in (trace, got.json["traceparent"])
    assert got.headers["tracestate"] == "a=1"
    assert got.headers["content-length"] == str(len(got.body))
    assert got.headers["mesh-attempt"] == "1"
    assert "transfer-encoding" not in got.headers
    assert got.headers["host"] == f"127.0.0.1:{app.port}"


async def test_raw_subscription(memory: Backbone, tmp_path: Path) -> None:
    """Any message comes wrapped into a generated event; an enveloped one with its envelope as data."""
    subscribed = [subscription(metadata={"rawPayload": "true"})]
    async with App(subscribed) as app, gateway(memory, tmp_path, app=app) as node:
        await node.publish("t", b"\x00raw", query="?metadata.rawPayload=true")
        first = (await app.until("/t"))[0].json
        assert first == {
            "data_base64": base64.b64encode(b"\x00raw").decode(),
            "datacontenttype": "application/octet-stream",
            "id": UUID,
            "pubsubname": "pubsub",
            "source": "Dapr",
            "specversion": "1.0",
            "topic": "t",
            "type": "com.dapr.event.sent",
        }
        await node.publish("t", {"n": 1})
        second = (await app.until("/t", 2))[1].json
        inner = orjson.loads(base64.b64decode(second["data_base64"]))
        assert (inner["data"], inner["source"]) == ({"n": 1}, "app")
        assert second["traceparent"] == inner["traceparent"]


async def test_wildcard_topics(backbone: Backbone, tmp_path: Path) -> None:
    """One token or all that follow; the event names its own topic."""
    subscribed = [subscription("orders.*", "/one"), subscription("logs.>", "/rest")]
    async with App(subscribed) as app, gateway(backbone, tmp_path, app=app) as node:
        for topic in ("orders.eu", "orders.eu.x", "logs.a.b", "logs"):
            await node.publish(topic, "x")
        assert [got.json["topic"] for got in await app.until("/one")] == ["orders.eu"]
        assert [got.json["topic"] for got in await app.until("/rest")] == ["logs.a.b"]
        await until_settled(node, success=2)


async def test_two_applications_each_get_it_and_instances_compete(nats: Backbone, tmp_path: Path) -> None:
    """A group is an application."""
    async with App([subscription()]) as a1, App([subscription()]) as a2, App([subscription()]) as b:
        one, two = (gateway(nats, tmp_path, app=each, app_id="a") for each in (a1, a2))
        async with one as node, two, gateway(nats, tmp_path, app=b, app_id="b"):
            for number in range(40):
                await node.publish("t", str(number))
            await b.until("/t", 40)

            def check() -> None:
                assert len(a1.got) + len(a2.got) == 40

            await eventually(check)
            assert {got.json["data"] for got in a1.got + a2.got} == {str(number) for number in range(40)}


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        pytest.param(200, b"", "success", id="trap_12-empty"),
        (204, b"", "success"),
        (201, b"created", "success"),
        (200, b"<html>", "success"),
        (200, b"{}", "success"),
        (200, b"[1]", "success"),
        (200, b'{"other":1}', "success"),
        (200, b'{"status":"SUCCESS"}', "success"),
        (200, b'{"status":""}', "success"),
        (200, b'{"status":null}', "success"),
        (200, b'{"status":7}', "success"),
        (200, b'{"status":"DROP"}', "drop"),
        (200, b'{"Status":"DROP"}', "drop"),
        (404, b"", "drop"),
        (200, b'{"status":"RETRY"}', "retry"),
        (200, b'{"status":"success"}', "retry"),
        (200, b'{"status":"WHAT"}', "retry"),
        (302, b"", "retry"),
        (400, b"", "retry"),
        (500, b'{"status":"SUCCESS"}', "retry"),
    ],
)
@pytest.mark.parametrize("dead_letter", [False, True], ids=["plain", "dead-letter"])
async def test_response_contract(
    memory: Backbone, tmp_path: Path, status: int, body: bytes, outcome: str, dead_letter: bool
) -> None:
    """trap_13, trap_14: what an answer does; with a dead letter topic and no policy, one failure is enough."""
    answers = [(status, body)]
    subscribed = [subscription(deadLetterTopic="dead"), DEAD] if dead_letter else [subscription()]
    async with App(subscribed) as app, gateway(memory, tmp_path, app=app) as node:

        def answer(got: Got, request: web.BaseRequest) -> web.Response:
            now, text = answers.pop() if answers else (200, b"")
            return web.Response(status=now, body=text)

        app.answers["/t"] = answer
        await node.publish("t", "x")
        if dead_letter and outcome != "success":
            (dead,) = await app.until("/dead")
            assert dead.json["data"] == "x"
            assert dead.headers["mesh-dead-letter-topic"] == "t"
            assert dead.headers["mesh-dead-letter-attempts"] == "1"
            assert dead.headers["mesh-dead-letter-reason"]
            await until_settled(node, events_dead_lettered=1, success=1)
            assert len(app.at("/t")) == 1
        elif outcome == "retry":
            first, second = await app.until("/t", 2)
            assert first.body == second.body
            await until_settled(node, retry=1, success=1)
        else:
            await until_settled(node, **{outcome: 1, "events_dropped": int(outcome == "drop")})
            assert len(app.got) == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(("x", "?metadata.cloudevent.type=none"), "no rule matched", id="trap_13-unmatched"),
        pytest.param((b"not json", "?metadata.rawPayload=true"), "not a CloudEvent", id="unparseable"),
        pytest.param((b"[1]", "?metadata.rawPayload=true"), "not a CloudEvent", id="no-object"),
        pytest.param(("x", "?metadata.cloudevent.type=broken"), "no such key", id="cel-error"),
    ],
)
async def test_dead_letters_without_a_call(
    memory: Backbone, tmp_path: Path, make: tuple[Any, str], reason: str
) -> None:
    """What cannot be handed to the application goes to the dead letter topic as it was, with the reason."""
    rules = [
        {"match": 'event.type == "ok"', "path": "/t"},
        {"match": 'event.type == "broken" && event.missing == 1', "path": "/t"},
    ]
    raw_dead = {**DEAD, "metadata": {"rawPayload": "true"}}
    subscribed = [subscription(route=None, routes={"rules": rules}, deadLetterTopic="dead"), raw_dead]
    async with App(subscribed) as app, gateway(memory, tmp_path, app=app) as node:
        await node.publish("t", make[0], query=make[1])
        (dead,) = await app.until("/dead")
        assert reason in dead.headers["mesh-dead-letter-reason"].replace("%20", " ")
        content = base64.b64decode(dead.json["data_base64"])
        assert content == make[0] if isinstance(make[0], bytes) else orjson.loads(content)["data"] == make[0]
        assert not app.at("/t")


@pytest.mark.parametrize("letters", [DEAD, {**DEAD, "bulkSubscribe": {"enabled": True}}], ids=["one", "batch"])
async def test_a_dead_letter_that_is_no_event(memory: Backbone, tmp_path: Path, letters: dict[str, Any]) -> None:
    """Reaches who subscribes to the dead letter topic, wrapped as any raw message; elsewhere it is none."""
    async with (
        App([subscription(deadLetterTopic="dead"), letters]) as app,
        gateway(memory, tmp_path, app=app) as node,
    ):
        await node.publish("t", b"[1]", query="?metadata.rawPayload=true")
        [got] = await app.until("/dead")
        event = got.json["entries"][0]["event"] if "entries" in got.json else got.json
        assert base64.b64decode(event["data_base64"]) == b"[1]"
        assert (event["topic"], event["specversion"]) == ("dead", "1.0")


UNREADABLE = [{"match": "event.data.kind == 1", "path": "/a"}, {"match": "event.data.size > 1", "path": "/b"}]


@pytest.mark.parametrize("own", [True, False], ids=["own", "declared"])
async def test_a_rule_that_cannot_read_an_event(
    memory: Backbone, tmp_path: Path, own: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Is no match, for no other attempt would read it; what is wrong is told once for its kind: where, and of which."""
    routes = {"rules": UNREADABLE, "default": "/rest"}
    resources = "" if own else DEFAULTS + declared("s", {"routes": routes}, "v2alpha1")
    app = App([subscription(route=None, routes=routes)] if own else None)
    async with app, gateway(memory, tmp_path, app=app, resources=resources) as node:
        await node.publish("t", {"size": 2}, query="?metadata.cloudevent.id=first")
        await app.until("/b")
        await node.publish("t", {"size": 3}, query="?metadata.cloudevent.id=second")
        await app.until("/b", 2)
        await node.publish("t", "text", query="?metadata.cloudevent.id=third")
        await app.until("/rest")
        await until_settled(node, success=3)
    told = [record.getMessage() for record in caplog.records if "cannot be evaluated" in record.getMessage()]
    assert len(told) == 3
    place = "rule 1 of the application's subscription" if own else r".*all\.yaml:\d+"
    assert re.match(f"pubsub/t: {place}: expression 'event.data.kind == 1' .*no such key 'kind', .* 'first'", told[0])
    assert all("'third'" in each for each in told[1:])


async def test_an_event_that_no_rule_can_read_does_not_come_again(memory: Backbone, tmp_path: Path) -> None:
    """Without a default route and a dead letter topic it is dropped, as one that no rule takes."""
    routes = {"rules": UNREADABLE}
    async with App([subscription(route=None, routes=routes)]) as app, gateway(memory, tmp_path, app=app) as node:
        await node.publish("t", "text")
        await until_settled(node, drop=1, events_dropped=1, retry=0)
        assert not app.got


async def test_trap_13_expired_events_go_to_the_dead_letter_topic(memory: Backbone, tmp_path: Path) -> None:
    """Never delivered where they were meant for; the dead letter's subscriber gets them nevertheless."""
    subscribed = [subscription(deadLetterTopic="dead"), DEAD]
    async with App(subscribed) as app, gateway(memory, tmp_path, app=app) as node:
        event = {"id": "1", "data": "late", "expiration": "2020-01-01T00:00:00Z"}
        await node.publish("t", orjson.dumps(event), "application/cloudevents+json")
        (dead,) = await app.until("/dead")
        assert dead.headers["mesh-dead-letter-reason"] == "expired"
        assert dead.json["data"] == "late"
        assert not app.at("/t")
        await node.publish("t", "fresh", query="?metadata.ttlInSeconds=100")
        assert (await app.until("/t"))[0].json["data"] == "fresh"


async def test_expired_events_without_dead_letter_topic_are_dropped(memory: Backbone, tmp_path: Path) -> None:
    """They are acknowledged and counted."""
    async with App([subscription()]) as app, gateway(memory, tmp_path, app=app) as node:
        await node.publish("t", b'{"expiration":"2020-01-01T00:00:00Z"}', "application/cloudevents+json")
        await until_settled(node, events_expired=1, events_dropped=1)
        assert not app.got


async def test_order_by_partition_key(memory: Backbone, tmp_path: Path) -> None:
    """An ordered subscription hands out events of one key one after another, also when one is retried."""
    failed = False
    order: list[str] = []

    def answer(got: Got, request: web.BaseRequest) -> web.Response:
        nonlocal failed
        if not failed:
            failed = True
            return web.Response(status=500)
        order.append(got.json["data"])
        return web.Response()

    async with App([subscription(metadata={"ordered": "true"})]) as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/t"] = answer
        for number in range(5):
            await node.publish("t", str(number), query="?metadata.partitionKey=k")
        await app.until("/t", 6)
        assert order == ["0", "1", "2", "3", "4"]


async def test_app_max_concurrency_bounds_deliveries(memory: Backbone, tmp_path: Path) -> None:
    """At most so many calls into the application at once."""
    running, most = 0, 0

    async def slow(got: Got, request: web.BaseRequest) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return web.Response()

    async with App([subscription()]) as app, gateway(memory, tmp_path, app=app, app_max_concurrency=2) as node:
        app.answers["/t"] = slow
        for number in range(20):
            await node.publish("t", str(number))
        await app.until("/t", 20)
    assert most == 2


# Bulk


def bulk(count: int = 100, wait: int = 50, **more: object) -> dict[str, object]:
    options = {"enabled": True, "maxMessagesCount": count, "maxAwaitDurationMs": wait}
    return subscription(route="/bulk", bulkSubscribe=options, **more)


async def test_bulk_delivery(memory: Backbone, tmp_path: Path) -> None:
    """Several events in one call, each an entry with its event as an object."""
    async with App([bulk(3, 60_000)]) as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/bulk"] = all_of("SUCCESS")
        for number in range(3):
            await node.publish("t", {"n": number})
        (got,) = await app.until("/bulk")
        assert got.all("content-type") == ["application/json"]
        assert got.headers["pubsubname"] == "pubsub"
        assert got.json == {
            "id": UUID,
            "entries": [ANY, ANY, ANY],
            "metadata": ANY,
            "pubsubname": "pubsub",
            "topic": "t",
            "type": "com.dapr.event.sent.bulk",
        }
        for entry in got.json["entries"]:
            assert entry == {
                "entryId": UUID,
                "event": ANY,
                "metadata": {"mesh-attempt": "1"},
                "contentType": "application/cloudevents+json",
            }
            assert entry["event"]["pubsubname"] == "pubsub"
        assert sorted(entry["event"]["data"]["n"] for entry in got.json["entries"]) == [0, 1, 2]
        await until_settled(node, success=3)


async def test_a_batch_that_does_not_fill_is_sent_anyway(memory: Backbone, tmp_path: Path) -> None:
    """After the time that the subscription says."""
    async with App([bulk(100, 20)]) as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/bulk"] = all_of("SUCCESS")
        await node.publish("t", "x")
        assert len((await app.until("/bulk"))[0].json["entries"]) == 1


async def test_bulk_raw(memory: Backbone, tmp_path: Path) -> None:
    """Raw entries are base64 strings, of the message or of its envelope."""
    async with (
        App([bulk(2, 60_000, metadata={"rawPayload": "true"})]) as app,
        gateway(memory, tmp_path, app=app) as node,
    ):
        app.answers["/bulk"] = all_of("SUCCESS")
        await node.publish("t", b"\x00\x01", query="?metadata.rawPayload=true")
        await node.publish("t", "enveloped")
        (got,) = await app.until("/bulk")
        raw, enveloped = got.json["entries"]
        assert raw == {
            "entryId": UUID,
            "event": "AAE=",
            "metadata": {"mesh-attempt": "1"},
            "contentType": "application/octet-stream",
        }
        assert orjson.loads(base64.b64decode(enveloped["event"]))["data"] == "enveloped"


async def test_bulk_rules(memory: Backbone, tmp_path: Path) -> None:
    """Entries of different routes go in separate calls."""
    rules = {"rules": [{"match": 'event.type == "a"', "path": "/a"}], "default": "/bulk"}
    async with App([{**bulk(100, 20), "routes": rules}]) as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/a"] = app.answers["/bulk"] = all_of("SUCCESS")
        await node.publish("t", "1", query="?metadata.cloudevent.type=a")
        await node.publish("t", "2")
        assert [each["event"]["data"] for each in (await app.until("/a"))[0].json["entries"]] == ["1"]
        assert [each["event"]["data"] for each in (await app.until("/bulk"))[0].json["entries"]] == ["2"]


def all_of(status: str) -> Any:
    def answer(got: Got, request: web.BaseRequest) -> web.Response:
        statuses = [{"entryId": entry["entryId"], "status": status} for entry in got.json["entries"]]
        return web.Response(body=orjson.dumps({"statuses": statuses}))

    return answer


def saying(*statuses: object) -> Any:
    def answer(got: Got) -> object:
        given = [
            {"entryId": entry["entryId"], "status": status}
            for entry, status in zip(got.json["entries"], statuses, strict=False)
        ]
        return {"statuses": given}

    return answer


async def publish_two(node: Node) -> None:
    """Publish events at once, so that a busy machine has them in one batch, too."""
    events = [{"entryId": data, "event": data, "contentType": "text/plain"} for data in "12"]
    reply = await node.post("/v1.0/publish/bulk/pubsub/t", orjson.dumps(events), "application/json")
    assert reply.status == 204


@pytest.mark.parametrize(
    ("status", "body", "again", "dead"),
    [
        pytest.param(200, saying("SUCCESS", "SUCCESS"), 0, 0, id="success"),
        pytest.param(200, saying("SUCCESS", "RETRY"), 1, 0, id="retry"),
        pytest.param(200, saying("SUCCESS", "DROP"), 0, 1, id="drop"),
        pytest.param(200, saying("SUCCESS"), 1, 0, id="missing entry"),
        pytest.param(200, saying("SUCCESS", ""), 1, 0, id="empty status"),
        pytest.param(200, saying("SUCCESS", "what"), 1, 0, id="unknown status"),
        pytest.param(200, lambda got: None, 2, 0, id="trap_12-empty answer"),
        pytest.param(200, lambda got: {}, 2, 0, id="no statuses"),
        pytest.param(200, lambda got: [1], 2, 0, id="another shape"),
        pytest.param(500, saying("SUCCESS", "SUCCESS"), 2, 0, id="failure"),
        pytest.param(404, lambda got: None, 0, 2, id="not found"),
    ],
)
async def test_bulk_response_contract(
    memory: Backbone, tmp_path: Path, status: int, body: Any, again: int, dead: int
) -> None:
    """Entries settle one by one; only those that failed come again."""
    calls = 0

    def answer(got: Got, request: web.BaseRequest) -> web.Response:
        nonlocal calls
        calls += 1
        if calls > 1:
            return web.Response(body=orjson.dumps(saying("SUCCESS", "SUCCESS")(got)))
        made = body(got)
        return web.Response(status=status, body=b"" if made is None else orjson.dumps(made))

    async with App([bulk(2, 500)]) as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/bulk"] = answer
        await publish_two(node)
        await until_settled(node, success=2 - dead, retry=again, drop=dead, events_dropped=dead)
        assert sum(len(got.json["entries"]) for got in app.got) == 2 + again


async def test_bulk_dead_letter(memory: Backbone, tmp_path: Path) -> None:
    """A dropped entry of a batch goes to the dead letter topic alone."""
    async with App([bulk(2, 500, deadLetterTopic="dead"), DEAD]) as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/bulk"] = lambda got, request: web.Response(body=orjson.dumps(saying("DROP", "SUCCESS")(got)))
        await publish_two(node)
        assert (await app.until("/dead"))[0].json["data"] == "1"
        await until_settled(node, events_dead_lettered=1, success=2)
