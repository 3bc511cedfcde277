"""Spans of the gRPC API: those of the HTTP API, by metadata."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from gateway.config import Tokens
from mesh.telemetry import trace_bin
from tests.grpc.harness import Client, Failed, client, refused
from tests.http.harness import DEFAULTS, App, Backbone, Got, Node, component, gateway
from tests.http.test_spans import PARENT, configured, database
from tests.support.collector import Collector
from tests.support.eventually import eventually

BINARY = trace_bin(PARENT)
DAPR = "/dapr.proto.runtime.v1.Dapr/"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as collector:
        yield collector


@pytest.fixture
async def node(memory: Backbone, collector: Collector, app: App, tmp_path: Path) -> AsyncIterator[Node]:
    app.subscriptions = [{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]
    resources = DEFAULTS + component("secrets", "secretstores.local.env")
    async with gateway(memory, tmp_path, app=app, resources=resources, **configured(tmp_path, collector.url)) as node:
        yield node


@pytest.fixture
async def called(node: Node) -> AsyncIterator[Client]:
    async with client(node) as called:
        yield called


@pytest.mark.parametrize(
    ("method", "fields", "block", "name"),
    [
        ("GetState", {"store_name": "statestore", "key": "k"}, "state", "statestore"),
        ("GetSecret", {"store_name": "secrets", "key": "HOME"}, "secrets", "secrets"),
    ],
)
async def test_of_a_component(
    called: Client, collector: Collector, method: str, fields: dict[str, str], block: str, name: str
) -> None:
    """A CLIENT span named by the method, with the component's tags, in the trace of the metadata."""
    call = called.open(method, called.request(method, **fields), [("traceparent", PARENT), ("dapr-mine", "1")])
    await call
    told = dict(await call.initial_metadata())
    (span,) = await collector.until(f"{DAPR}{method}".lower())
    assert (span.raw["kind"], span.raw["traceId"], span.raw["parentId"]) == ("CLIENT", PARENT[3:35], PARENT[36:52])
    expected = {**database(block, name, f"{DAPR}{method}"), "dapr.protocol": "grpc", "dapr.status_code": "0"}
    expected |= {"dapr.api": f"{DAPR}{method}", "rpc.system": "grpc", "dapr-mine": "1"}
    assert {key: span.tags.get(key) for key in expected} == expected
    assert told["traceparent"] == span.traceparent
    # The other form, grpc-trace-bin, grpcio keeps from who calls.


def binary(traceparent: str) -> bytes:
    _, trace, span, flags = traceparent.split("-")
    return b"\0\0" + bytes.fromhex(trace) + b"\1" + bytes.fromhex(span) + b"\2" + bytes.fromhex(flags)


@pytest.mark.parametrize("metadata", [[("traceparent", PARENT)], [("grpc-trace-bin", binary(PARENT))]])
async def test_an_event(
    called: Client, collector: Collector, app: App, metadata: list[tuple[str, str | bytes]]
) -> None:
    """Published in the caller's trace, in whichever form that was named, and delivered in it."""
    given = [*metadata, ("baggage", "k=v"), ("tracestate", "a=1")]
    await called.call("PublishEvent", given, pubsub_name="pubsub", topic="t", data=b"x")
    published, delivered = await collector.until(f"{DAPR}PublishEvent".lower(), "pubsub/t")
    assert published.raw["parentId"] == PARENT[36:52]
    assert published.tags["messaging.system"] == "pubsub"
    assert delivered.is_below(published)
    (got,) = await app.until("/t")
    assert (got.headers["traceparent"], got.headers["baggage"]) == (delivered.traceparent, "k=v")


async def test_a_call(called: Client, collector: Collector, app: App) -> None:
    """Both sides, and what the application answered."""
    app.answer("/work", 404)
    with pytest.raises(Failed):
        await called.call("InvokeService", id="app", message={"method": "work", "http_extension": {"verb": "GET"}})
    sides = await collector.until("calllocal/app/work", "calllocal/app/work")
    caller, callee = sorted(sides, key=lambda each: str(each.raw["kind"]))
    assert callee.is_below(caller)
    assert (caller.tags["dapr.status_code"], callee.tags["dapr.status_code"]) == ("5", "404")
    assert caller.tags["error"].startswith("NOT_FOUND")
    assert app.at("/work")[-1].headers["traceparent"] == callee.traceparent


async def test_baggage_that_is_none(called: Client, collector: Collector) -> None:
    """It is refused, as over HTTP."""
    with pytest.raises(Failed) as refused:
        await called.call("GetState", [("baggage", "no value")], store_name="statestore", key="k")
    assert refused.value.code == "INVALID_ARGUMENT"
    (span,) = await collector.until(f"{DAPR}GetState".lower())
    assert span.tags["error"].startswith("INVALID_ARGUMENT")


async def test_a_call_that_is_cancelled(called: Client, collector: Collector, app: App) -> None:
    """It was no success."""

    async def hang(got: Got, request: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    app.answers["/hang"] = hang
    message = {"method": "hang", "http_extension": {"verb": "GET"}}
    call = called.open("InvokeService", called.request("InvokeService", id="app", message=message))
    waiting = asyncio.ensure_future(call)
    await app.until("/hang")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    def told() -> None:
        spans = [each for each in collector.spans if each.tags.get("rpc.system") == "grpc"]
        assert [each.tags["error"][:9] for each in spans] == ["CANCELLED"]

    await eventually(told)


async def test_who_may_not_call_is_told_that_first(memory: Backbone, tmp_path: Path) -> None:
    bad = ("baggage", "no value")
    async with gateway(memory, tmp_path, tokens=Tokens(api="t")) as node, client(node) as called:
        for token, code, status in (("x", "UNAUTHENTICATED", 401), ("t", "INVALID_ARGUMENT", 400)):
            given = [bad, ("dapr-api-token", token)]
            assert (await refused(called, "GetMetadata", given))[0] == code
            assert (await node.request("GET", "/v1.0/metadata", dict(given))).status == status
