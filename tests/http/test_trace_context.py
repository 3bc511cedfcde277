"""Trace context and baggage go along every way that something takes through the mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from tests.http.harness import DEFAULTS, App, Backbone, Case, Got, Node, cases, check, error, gateway
from tests.support.eventually import eventually

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
CARRIED = {"tracestate": "a=1,b=2", "baggage": "k=v%20w;p=1,other=x"}
GIVEN = {"traceparent": PARENT, **CARRIED}
SUBSCRIBED = [
    {"pubsubname": "pubsub", "topic": "t", "route": "/t"},
    {"pubsubname": "pubsub", "topic": "fails", "route": "/fails", "deadLetterTopic": "dead"},
    {"pubsubname": "pubsub", "topic": "dead", "route": "/dead"},
    {"pubsubname": "pubsub", "topic": "outcomes", "route": "/outcomes"},
]
BULK = [{"entryId": "1", "event": "x", "contentType": "text/plain"}]


@pytest.fixture
async def node(backbone: Backbone, tmp_path: Path) -> AsyncIterator[tuple[Node, App]]:
    async with App(SUBSCRIBED) as app, gateway(backbone, tmp_path, app=app) as node:
        yield node, app


async def publish(node: Node) -> None:
    await node.request("POST", "/v1.0/publish/pubsub/t", GIVEN, b"x")


async def publish_own(node: Node) -> None:
    event = b'{"id":"1","source":"s","type":"t","specversion":"1.0","data":1}'
    await node.request(
        "POST", "/v1.0/publish/pubsub/t", {**GIVEN, "Content-Type": "application/cloudevents+json"}, event
    )


async def publish_bulk(node: Node) -> None:
    headers = {**GIVEN, "Content-Type": "application/json"}
    reply = await node.request("POST", "/v1.0-alpha1/publish/bulk/pubsub/t", headers, BULK)
    assert reply.status == 204


async def publish_to_fail(node: Node) -> None:
    await node.request("POST", "/v1.0/publish/pubsub/fails", GIVEN, b"x")


async def call(node: Node) -> None:
    await node.request("POST", "/v1.0/invoke/app/method/work", GIVEN, b"x")


async def call_durably(node: Node) -> None:
    headers = {**GIVEN, "mesh-delivery": "durable", "mesh-reply-topic": "outcomes"}
    reply = await node.request("POST", "/v1.0/invoke/app/method/work", headers, b"x")
    assert reply.status == 202


@pytest.mark.parametrize(
    ("ask", "path"),
    [
        pytest.param(publish, "/t", id="publish"),
        pytest.param(publish_own, "/t", id="an event of one's own"),
        pytest.param(publish_bulk, "/t", id="bulk publish"),
        pytest.param(publish_to_fail, "/dead", id="dead letter"),
        pytest.param(call, "/work", id="call"),
        pytest.param(call_durably, "/work", id="durable call"),
        pytest.param(call_durably, "/outcomes", id="outcome of a durable call"),
    ],
)
async def test_it_comes_to_the_application(
    node: tuple[Node, App], ask: Callable[[Node], Awaitable[None]], path: str
) -> None:
    """The same trace, not sampled as it was not; state and baggage as they were given."""
    asked, app = node
    app.answer("/fails", 404)
    await ask(asked)
    got = (await app.until(path))[0]
    assert got.headers["traceparent"][:36] == PARENT[:36]
    assert got.headers["traceparent"].endswith("-00")
    assert {name: got.headers.get(name) for name in CARRIED} == CARRIED


def taken(got: Got, request: web.BaseRequest) -> web.Response:
    statuses = [{"entryId": each["entryId"], "status": "SUCCESS"} for each in got.json["entries"]]
    return web.Response(body=orjson.dumps({"statuses": statuses}))


async def test_it_comes_in_a_batch(backbone: Backbone, tmp_path: Path) -> None:
    """With each entry."""
    subscribed = {"pubsubname": "pubsub", "topic": "t", "route": "/t", "bulkSubscribe": {"enabled": True}}
    async with App([subscribed]) as app, gateway(backbone, tmp_path, app=app) as node:
        app.answers["/t"] = taken
        await publish(node)
        (entry,) = (await app.until("/t"))[0].json["entries"]
    assert entry["metadata"]["baggage"] == CARRIED["baggage"]
    assert entry["event"]["traceparent"][:36] == PARENT[:36]
    assert entry["event"]["tracestate"] == CARRIED["tracestate"]


async def test_it_comes_to_another_gateway(nats: Backbone, tmp_path: Path, app: App) -> None:
    """With a call over the backbone."""
    async with (
        gateway(nats, tmp_path, app=app, app_id="callee"),
        gateway(nats, tmp_path, app_id="caller") as node,
    ):
        await node.request("POST", "/v1.0/invoke/callee/method/work", GIVEN, b"x")
        got: Got = (await app.until("/work"))[0]
    assert got.headers["traceparent"][:36] == PARENT[:36]
    assert {name: got.headers.get(name) for name in CARRIED} == CARRIED


async def test_it_comes_to_a_hosted_component(nats: Backbone, tmp_path: Path) -> None:
    """A binding at another node has it as metadata."""
    async with App() as service:
        binding = (
            '{"apiVersion":"dapr.io/v1alpha1","kind":"Component","metadata":{"name":"web","annotations":'
            '{"mesh.placement":"backbone"}},"spec":{"type":"bindings.http","version":"v1","metadata":'
            f'[{{"name":"url","value":"http://127.0.0.1:{service.port}"}}]}}}}'
        )
        async with (
            gateway(nats, tmp_path, app_id="host", resources=binding),
            gateway(nats, tmp_path, app_id="caller", resources=DEFAULTS) as node,
        ):

            async def asked() -> None:
                body = b'{"operation":"post","metadata":{"path":"/echo"}}'
                reply = await node.request("POST", "/v1.0/bindings/web", GIVEN, body)
                assert reply.status == 200, reply

            await eventually(asked)
        got = service.at("/echo")[0]
    assert got.headers["traceparent"][:36] == PARENT[:36]
    assert {name: got.headers.get(name) for name in CARRIED} == CARRIED


REFUSED = error("ERR_BAD_REQUEST", "invalid request: the header baggage is no W3C baggage")


@cases(
    *(
        Case(f"{what}: {value[:12]}", ("POST", target, {"baggage": value}, b"[]"), 400, REFUSED)
        for what, target in (
            ("publish", "/v1.0/publish/pubsub/t"),
            ("call", "/v1.0/invoke/app/method/x"),
            ("state", "/v1.0/state/statestore"),
            ("binding", "/v1.0/bindings/nope"),
        )
        for value in ("no value", "k=é", "k=v,,x=y", "=v", 'k="v"', "k=v;=", "k=" + "v" * 8192)
    ),
    Case("spaces", ("POST", "/v1.0/publish/pubsub/t", {"baggage": " k = v ; p , o = "}, b"x"), 204),
    Case("empty", ("POST", "/v1.0/publish/pubsub/t", {"baggage": ""}, b"x"), 204),
)
async def test_baggage_that_is_none(memory: Backbone, tmp_path: Path, case: Case) -> None:
    """It is refused, whatever is asked."""
    async with gateway(memory, tmp_path) as node:
        await check(node, case)
