"""Applications on gRPC: calls, events, subscriptions, health, and what is no such application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
import pytest_asyncio

from gateway.config import HealthCheck, Tokens
from gateway.grpc.messages import STATUS, message
from tests.grpc.app import GRPCApp, fail, invoked
from tests.http.harness import DEFAULTS, Backbone, Node, component, gateway, yaml
from tests.support.certificates import Authority
from tests.support.eventually import eventually

INVOKE = "/v1.0/invoke/app/method"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RAW = {"rawPayload": "true"}
HEALTH = HealthCheck(interval=0.05, timeout=2.0, threshold=2)


def on(app: GRPCApp, **settings: Any) -> dict[str, Any]:
    return {"app": app.port, "app_protocol": "grpc", **settings}


def wanted(topic: str, route: str | None = None, **more: Any) -> dict[str, Any]:
    """Ask for a topic of the one component."""
    routes = {} if route is None else {"routes": {"default": route}}
    return {"pubsub_name": "pubsub", "topic": topic, **routes, **more}


def event_reply(status: int) -> Any:
    return message("TopicEventResponse")(status=status)


async def test_calls(memory: Backbone, tmp_path: Path) -> None:
    """Method, verb, query, type and body are in the message, header fields in the metadata, those of HTTP renamed."""
    async with GRPCApp() as app, gateway(memory, tmp_path, **on(app)) as node:
        app.answers["OnInvoke"] = invoked(b'{"a":1}', "application/json", x_given="yes")
        headers = {
            "Content-Type": "text/plain",
            "X-One": "1",
            "Accept": "*/*",
            "traceparent": TRACE,
            "Grpc-Timeout": "1n",
        }
        reply = await node.request("PATCH", f"{INVOKE}/orders/a%20b?x=1&y=%20", headers, b"\x00body")
        assert (reply.status, reply.body) == (200, b'{"a":1}')
        assert {"content-type": "application/json", "x-given": "yes"}.items() <= reply.headers.items()
        assert not any(name.startswith("grpc-") for name in reply.headers)
        (asked,) = app.of("OnInvoke")
        request = asked.message
        assert (request.method, request.data.value, request.data.type_url) == ("orders/a%20b", b"\x00body", "")
        assert (request.content_type, request.http_extension.verb) == ("text/plain", 9)
        assert request.http_extension.querystring == "x=1&y=%20"
        given = asked.metadata
        assert (given["x-one"], given["dapr-accept"], given["dapr-grpc-timeout"]) == ("1", "*/*", "1n")
        assert str(given["traceparent"])[:36] == TRACE[:36]

        async def parts() -> Any:
            for _ in range(3):
                yield b"part"

        await node.request("POST", f"{INVOKE}/streamed", None, parts())
        assert app.of("OnInvoke")[-1].message.data.value == b"part" * 3
        await node.get(f"{INVOKE}/")
        assert (app.of("OnInvoke")[-1].message.method, app.of("OnInvoke")[-1].message.http_extension.verb) == ("", 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[GRPCApp, Node]]:
    home = tmp_path_factory.mktemp("calling")
    async with GRPCApp() as app, gateway(Backbone("memory:"), home, **on(app)) as node:
        yield app, node


DETAILS = message("Status", STATUS)(code=5, message="no such order")
DETAILS.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo").value = message("ErrorInfo", STATUS)(
    reason="GONE"
).SerializeToString()
DETAILS.details.add(type_url="type.googleapis.com/their.own.Type").value = b"\x08\x01"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("CANCELLED", 408),
        ("UNKNOWN", 500),
        ("INVALID_ARGUMENT", 400),
        ("DEADLINE_EXCEEDED", 504),
        ("NOT_FOUND", 404),
        ("ALREADY_EXISTS", 409),
        ("PERMISSION_DENIED", 403),
        ("RESOURCE_EXHAUSTED", 429),
        ("FAILED_PRECONDITION", 400),
        ("ABORTED", 409),
        ("OUT_OF_RANGE", 400),
        ("UNIMPLEMENTED", 501),
        ("INTERNAL", 500),
        ("UNAVAILABLE", 503),
        ("DATA_LOSS", 500),
        ("UNAUTHENTICATED", 401),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_statuses_of_calls(calling: tuple[GRPCApp, Node], code: str, status: int) -> None:
    app, node = calling
    app.answers["OnInvoke"] = fail(code, "no such order: ö%", grpc_status_details_bin=DETAILS.SerializeToString())
    reply = await node.post(f"{INVOKE}/m", b"x")
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "GONE"}
    number = getattr(grpc.StatusCode, code).value[0]
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert reply.json == {"code": number, "message": "no such order: ö%", "details": [info]}


async def test_large_bodies(memory: Backbone, tmp_path: Path) -> None:
    """What does not go into a message is refused, whole or streamed, and what is too large to be held is not taken."""
    async with GRPCApp() as app, gateway(memory, tmp_path, **on(app, max_body_bytes=100_000)) as node:
        app.answers["OnInvoke"] = invoked(b"x" * 100_000)
        assert (await node.post(f"{INVOKE}/m", b"x" * 100_000)).body == b"x" * 100_000

        async def parts() -> Any:
            for _ in range(11):
                yield b"x" * 10_000

        reply = await node.request("POST", f"{INVOKE}/m", None, parts())
        text = "a body of more than 100000 bytes does not go into a message (--max-body-size)"
        assert (reply.status, reply.json) == (413, {"code": 8, "message": text})
        app.answers["OnInvoke"] = invoked(b"x" * 200_000)
        reply = await node.post(f"{INVOKE}/m", b"")
        assert (reply.status, reply.json["errorCode"]) == (500, "ERR_DIRECT_INVOKE")
        assert "the application's answer cannot be read: a message of 2" in reply.json["message"]


EVENTS = [wanted(topic) for topic in ("plain", "retry", "drop", "later", "none", "absent")]


async def test_events(memory: Backbone, tmp_path: Path) -> None:
    """Each answer means what it means over HTTP; what nobody implements is dropped, and is no dead letter."""
    app = GRPCApp(*({**each, "dead_letter_topic": "dead"} for each in EVENTS), wanted("dead"))
    statuses = {"retry": 1, "drop": 2, "later": 7}

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request.topic == "none":
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no handler")
        if request.topic == "absent":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such order")
        return event_reply(statuses.get(request.topic, 0))

    app.answers["OnTopicEvent"] = answer
    async with app, gateway(memory, tmp_path, **on(app)) as node:
        (listed,) = app.of("ListTopicSubscriptions")
        assert listed.metadata["dapr-app-id"] == "app"
        await node.publish("plain", {"a": 1}, query="?metadata.cloudevent.id=i1&metadata.cloudevent.source=s")
        (asked,) = await app.until("OnTopicEvent")
        event = asked.message
        assert (event.id, event.source, event.type, event.spec_version) == ("i1", "s", "com.dapr.event.sent", "1.0")
        assert (event.topic, event.pubsub_name, event.path) == ("plain", "pubsub", "")
        assert (event.data, event.data_content_type) == (b'{"a":1}', "application/json")
        assert asked.metadata["pubsubname"] == "pubsub"
        assert str(asked.metadata["traceparent"])[:36] == event.extensions["traceparent"][:36]
        for topic in ("none", "drop", "retry", "later", "absent"):
            await node.publish(topic, topic)
        dead = await app.until("OnTopicEvent", 1 + 5 + 4)
        reasons = {
            each.message.data.decode(): each.metadata["mesh-dead-letter-reason"]
            for each in dead
            if each.message.topic == "dead"
        }
        assert reasons == {
            "drop": "the%20application%20answered%20DROP",
            "retry": "the%20application%20answered%20RETRY",
            "later": "the%20application%20answered%20RETRY",
            "absent": "the%20application%20answered%20NOT_FOUND:%20no%20such%20order",
        }


async def test_policies_know_the_status(memory: Backbone, tmp_path: Path) -> None:
    """Of a delivery that failed: one that is not retried goes to the dead letters at once."""
    retry = {"policy": "constant", "duration": "10ms", "maxRetries": 3, "matching": {"gRPCStatusCodes": "14"}}
    targets = {"components": {"pubsub": {"inbound": {"retry": "r"}}}}
    policy = yaml("Resiliency", "p", {"policies": {"retries": {"r": retry}}, "targets": targets})
    app = GRPCApp(wanted("t", dead_letter_topic="dead"), wanted("dead", metadata=RAW))
    answered = {"away": "UNAVAILABLE", "unknown": "NOT_FOUND"}

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request.topic == "t":
            await context.abort(getattr(grpc.StatusCode, answered[request.data.decode()]), "")
        return event_reply(0)

    app.answers["OnTopicEvent"] = answer
    async with app, gateway(memory, tmp_path, resources=DEFAULTS + policy, **on(app)) as node:
        for data in answered:
            await node.publish("t", data)
        await app.until("OnTopicEvent", 4 + 1 + 2)
        tried = [each.message.data.decode() for each in app.of("OnTopicEvent") if each.message.topic == "t"]
        assert sorted(tried) == ["away"] * 4 + ["unknown"]


async def test_subscriptions(memory: Backbone, tmp_path: Path) -> None:
    """Routes are names, handed over as they were given; a subscription without any has the empty one."""
    rules = [{"match": 'event.type == "special"', "path": "special"}]
    app = GRPCApp(
        {
            "pubsub_name": "pubsub",
            "topic": "t",
            "routes": {"rules": rules, "default": "/rest"},
            "metadata": {"ordered": "true"},
        },
        wanted("plain"),
        wanted("ruled", routes={"rules": rules}),
        {"pubsub_name": "", "topic": "wrong"},
    )
    declared = yaml(
        "Subscription",
        "s",
        {"pubsubname": "pubsub", "topic": "declared", "routes": {"default": "/d"}},
        version="v2alpha1",
    )
    async with app, gateway(memory, tmp_path, resources=DEFAULTS + declared, **on(app)) as node:
        for topic, kind in (
            ("t", "special"),
            ("t", "x"),
            ("plain", "x"),
            ("ruled", "x"),
            ("ruled", "special"),
            ("declared", "x"),
        ):
            await node.publish(topic, "1", query=f"?metadata.cloudevent.type={kind}")
        got = await app.until("OnTopicEvent", 5)
        assert sorted((each.message.topic, each.message.path) for each in got) == [
            ("declared", "/d"),
            ("plain", ""),
            ("ruled", "special"),
            ("t", "/rest"),
            ("t", "special"),
        ]
        told = (await node.get("/v1.0/metadata")).json
        assert told["appConnectionProperties"] == {"port": app.port, "protocol": "grpc", "channelAddress": "127.0.0.1"}
        found = {each["topic"]: (each["type"], each["rules"]) for each in told["subscriptions"]}
        assert found["plain"] == ("PROGRAMMATIC", [{"path": ""}])
        assert found["t"] == ("PROGRAMMATIC", [*rules, {"path": "/rest"}])


async def test_subscriptions_are_asked_again(memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is another answer than that nothing is wanted."""
    monkeypatch.setattr("gateway.http.application.SUBSCRIBE_RETRY", 0.01)
    async with GRPCApp(*EVENTS) as app:
        app.answers["ListTopicSubscriptions"], later = (
            fail("UNAVAILABLE", "starting"),
            app.answers["ListTopicSubscriptions"],
        )
        async with gateway(memory, tmp_path, ready=False, **on(app)) as node:
            await app.until("ListTopicSubscriptions")
            app.answers["ListTopicSubscriptions"] = later
            await node.until_ready()
            await node.publish("plain")
            await app.until("OnTopicEvent")


async def test_who_refuses_to_say_what_it_wants_is_served(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that answers 401 over HTTP: it is called, and gets what is declared."""
    declared = yaml("Subscription", "s", {"pubsubname": "pubsub", "topic": "plain", "route": "plain"})
    async with GRPCApp() as app:
        app.answers["ListTopicSubscriptions"] = fail("UNAUTHENTICATED", "no token")
        async with gateway(memory, tmp_path, resources=DEFAULTS + declared, **on(app)) as node:
            await node.publish("plain")
            await app.until("OnTopicEvent")
    assert "UNAUTHENTICATED: no token to ListTopicSubscriptions: it asks for no topics" in caplog.text


@pytest.mark.parametrize("name", ["OnBulkTopicEvent", "OnBulkTopicEventAlpha1", "none"])
async def test_batches(memory: Backbone, tmp_path: Path, name: str) -> None:
    """By the new method or the old one; an entry has an event, or the bytes of a raw one."""
    bulk = {"enabled": True, "max_messages_count": 3, "max_await_duration_ms": 200}
    app = GRPCApp(
        {
            "pubsub_name": "pubsub",
            "topic": "t",
            "bulk_subscribe": bulk,
            "routes": {"default": "r"},
            "dead_letter_topic": "dead",
        },
        wanted("raw", bulk_subscribe=bulk, metadata=RAW),
        wanted("dead"),
    )

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        dropped = [each.cloud_event.data == b"bad" for each in request.entries]
        statuses = [
            {"entry_id": each.entry_id, "status": 2 if drop else 0}
            for each, drop in zip(request.entries, dropped, strict=True)
        ]
        return message("TopicEventBulkResponse")(statuses=statuses)

    if name != "none":
        app.answers[name] = answer
    async with app, gateway(memory, tmp_path, **on(app)) as node:
        for data in ("one", "bad", "two"):
            await node.publish("t", data)
        await node.publish("raw", b"\xff\x00", query="?metadata.rawPayload=true")
        if name == "none":
            # Taken for done: none comes again, and none is dead.
            await node.publish("dead", "last")
            assert [each.message.data for each in await app.until("OnTopicEvent")] == [b"last"]
            return
        batches = {each.message.topic: each.message for each in await app.until(name, 2)}
        batch = batches["t"]
        assert (batch.pubsub_name, batch.path, batch.type) == ("pubsub", "r", "com.dapr.event.sent.bulk")
        assert sorted(each.cloud_event.data for each in batch.entries) == [b"bad", b"one", b"two"]
        assert {each.content_type for each in batch.entries} == {"application/cloudevents+json"}
        assert batch.entries[0].metadata["mesh-attempt"] == "1"
        assert [(each.bytes, each.content_type) for each in batches["raw"].entries] == [
            (b"\xff\x00", "application/octet-stream")
        ]
        assert [each.message.data for each in await app.until("OnTopicEvent")] == [b"bad"]


async def test_raw_and_binary_events(memory: Backbone, tmp_path: Path) -> None:
    """Data are the bytes that were published."""
    app = GRPCApp(
        wanted("t"),
        wanted("raw", metadata=RAW),
    )
    async with app, gateway(memory, tmp_path, **on(app)) as node:
        await node.publish("t", b"\x00\xff", "application/octet-stream")
        await node.publish("raw", b"\xff\x01", query="?metadata.rawPayload=true")
        got = {each.message.topic: each.message for each in await app.until("OnTopicEvent", 2)}
        assert (got["t"].data, got["t"].data_content_type) == (b"\x00\xff", "application/octet-stream")
        assert (got["raw"].data, got["raw"].data_content_type) == (b"\xff\x01", "application/octet-stream")


async def test_data_of_any_depth(memory: Backbone, tmp_path: Path) -> None:
    """What the publisher was told is stored arrives."""
    deep = b"[" * 900 + b"]" * 900
    async with GRPCApp(wanted("t")) as app, gateway(memory, tmp_path, **on(app)) as node:
        await node.publish("t", deep, "application/json")
        (event,) = await app.until("OnTopicEvent")
        assert event.message.data == deep


async def test_an_event_that_is_no_message(memory: Backbone, tmp_path: Path) -> None:
    """Nesting has a limit there: it is dropped with its reason, and holds up nothing, alone or in a batch."""
    bulk = {"enabled": True, "max_messages_count": 2, "max_await_duration_ms": 200}
    app = GRPCApp(
        wanted("t", dead_letter_topic="dead"),
        wanted("many", dead_letter_topic="dead", bulk_subscribe=bulk),
        wanted("dead", metadata=RAW),
    )

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        statuses = [{"entry_id": each.entry_id, "status": 0} for each in request.entries]
        return message("TopicEventBulkResponse")(statuses=statuses)

    app.answers["OnBulkTopicEvent"] = answer
    deep: object = 1
    for _ in range(200):
        deep = {"a": deep}
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": 1, "ext": deep}
    async with app, gateway(memory, tmp_path, **on(app)) as node:
        for topic in ("t", "many"):
            await node.publish(topic, orjson.dumps(event), "application/cloudevents+json")
        await node.publish("many", "good")
        dead = await app.until("OnTopicEvent", 2)
        (batch,) = await app.until("OnBulkTopicEvent")
        said = "the%20event%20does%20not%20go%20into%20a%20message%20of%20gRPC:"
        assert all(str(each.metadata["mesh-dead-letter-reason"]).startswith(said) for each in dead), dead
        assert [each.cloud_event.data for each in batch.message.entries] == [b"good"]
        assert {each.message.topic for each in app.of("OnTopicEvent")} == {"dead"}


async def test_tokens(memory: Backbone, tmp_path: Path) -> None:
    """Every call has the application's token, but probes."""
    app = GRPCApp(*EVENTS[:1])
    app.answers["OnInvoke"] = invoked()
    app.always("HealthCheck", message("HealthCheckResponse")())
    async with app, gateway(memory, tmp_path, **on(app, tokens=Tokens(app="secret"), app_health=HEALTH)) as node:
        await node.publish("plain")
        await app.until("OnTopicEvent")
        await node.request("POST", f"{INVOKE}/m", {"dapr-api-token": "mine"}, b"")
        tokens = {each.name: each.metadata.get("dapr-api-token") for each in app.got}
    assert tokens == {
        "HealthCheck": None,
        "ListTopicSubscriptions": "secret",
        "OnTopicEvent": "secret",
        "OnInvoke": "secret",
    }


async def test_health(memory: Backbone, tmp_path: Path) -> None:
    """Only while it answers its probes with OK it is there."""
    app = GRPCApp(*EVENTS[:1])
    app.answers["OnInvoke"] = invoked(b"hello")
    async with app, gateway(memory, tmp_path, ready=False, **on(app, app_health=HEALTH)) as node:
        healthy = message("HealthCheckResponse")()
        for answer in (None, fail("UNAVAILABLE")):
            if answer is not None:
                app.answers["HealthCheck"] = answer
                await app.until("HealthCheck", len(app.of("HealthCheck")) + 3)
            assert node.gateway.not_ready == ("app",)
            app.always("HealthCheck", healthy)
            await node.until_ready()
            assert (await node.post(f"{INVOKE}/m", b"")).body == b"hello"
            app.answers["HealthCheck"] = fail("INTERNAL")

            def away() -> None:
                assert node.gateway.not_ready == ("app",)

            await eventually(away)
        await node.publish("plain")
        assert not app.of("OnTopicEvent")
        app.always("HealthCheck", healthy)
        await app.until("OnTopicEvent")


async def test_concurrency_is_limited(memory: Backbone, tmp_path: Path) -> None:
    running, most, go = 0, 0, asyncio.Event()

    async def slow(request: Any, context: grpc.aio.ServicerContext) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return await invoked(b"x")(request, context)

    async with GRPCApp() as app, gateway(memory, tmp_path, **on(app, app_max_concurrency=2)) as node:
        app.answers["OnInvoke"] = slow
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(node.post(f"{INVOKE}/m", b"")) for _ in range(6)]
            await app.until("OnInvoke", 2)
            go.set()
    assert most == 2
    assert {call.result().body for call in calls} == {b"x"}


async def test_a_restart_loses_no_event(backbone: Backbone, tmp_path: Path) -> None:
    """Those under way are delivered again, those that come meanwhile wait."""
    app, hang = GRPCApp(*EVENTS[:1]), asyncio.Event()
    done: set[bytes] = set()

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request.data == b"2":
            await hang.wait()
        done.add(request.data)
        return event_reply(0)

    app.answers["OnTopicEvent"] = answer
    await app.start()
    async with gateway(backbone, tmp_path, **on(app)) as node:
        for number in range(5):
            await node.publish("plain", str(number))
        await app.until("OnTopicEvent", 5)
        await app.stop()
        hang.set()
        await node.publish("plain", "5")
        await app.start()

        def all_there() -> None:
            assert done >= {b"%d" % number for number in range(6)}

        await eventually(all_there)
        await app.stop()


async def test_cancellation_reaches_the_application(memory: Backbone, tmp_path: Path) -> None:
    """A caller that has stopped waiting."""
    ended = asyncio.Event()

    async def hang(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with GRPCApp() as app, gateway(memory, tmp_path, **on(app)) as node:
        app.answers["OnInvoke"] = hang
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(node.post(f"{INVOKE}/m", b""))
            await app.until("OnInvoke")
            call.cancel()
        async with asyncio.timeout(10):
            await ended.wait()


async def test_tls(memory: Backbone, tmp_path: Path) -> None:
    """Whose certificate is not looked at."""
    proof = Authority(tmp_path).issue("server")
    pair = (Path(proof.key).read_bytes(), Path(proof.certificate).read_bytes())
    async with GRPCApp(*EVENTS[:1], credentials=grpc.ssl_server_credentials([pair])) as app:
        app.answers["OnInvoke"] = invoked(b"hello")
        async with gateway(memory, tmp_path, app=app.port, app_protocol="grpcs") as node:
            assert (await node.post(f"{INVOKE}/m", b"")).body == b"hello"
            await node.publish("plain")
            await app.until("OnTopicEvent")


async def test_a_configuration_has_no_callback(memory: Backbone, tmp_path: Path) -> None:
    """It is followed by the stream of gRPC; over HTTP there is nobody to tell."""
    resources = component("conf", "configuration.mesh")
    async with GRPCApp() as app, gateway(memory, tmp_path, resources=resources, **on(app)) as node:
        reply = await node.get("/v1.0/configuration/conf/subscribe")
        assert (reply.status, reply.json["errorCode"]) == (500, "ERR_APP_CHANNEL_NIL")
        assert "SubscribeConfiguration" in reply.json["message"]
