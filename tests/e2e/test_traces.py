"""A request through three applications and a topic is one trace, in a real Zipkin and OpenTelemetry Collector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.http.harness import App, Backbone, Got, Node, gateway, yaml
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.otel_collector_server import OTelCollector, needs_otel_collector
from tests.support.zipkin_server import ZipkinServer

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BUY, TAKE, PUBLISH = "CallLocal/orders/buy", "CallLocal/stock/take", "/v1.0/publish/pubsub/taken"
CHAIN = [
    ("shop", "CLIENT", BUY),
    ("orders", "SERVER", BUY),
    ("orders", "CLIENT", TAKE),
    ("stock", "SERVER", TAKE),
    ("stock", "CLIENT", PUBLISH),
    ("mailer", "CLIENT", "pubsub/taken"),
]
KINDS = {2: "SERVER", 3: "CLIENT"}
"""Of OTLP."""


@pytest.fixture
async def zipkin(tmp_path: Path) -> AsyncIterator[ZipkinServer]:
    async with ZipkinServer(tmp_path / "zipkin") as server:
        yield server


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Backbone]:
    async with NatsServer(tmp_path / "nats") as server:
        yield Backbone(server.url)


def passes_on(node: Node, target: str) -> Any:
    """Make the answer of an application that asks its gateway for the next step, and knows no more than to pass on."""

    async def answer(got: Got, request: web.BaseRequest) -> web.Response:
        reply = await node.request("POST", target, {"traceparent": got.headers["traceparent"]}, b"x")
        return web.Response(status=200 if reply.status < 300 else 500)

    return answer


@asynccontextmanager
async def bought(backbone: Backbone, tmp_path: Path, tracing: dict[str, object]) -> AsyncIterator[None]:
    """Let the shop call orders, orders call stock, stock publish, and the mailer be told; they run while entered."""
    file = tmp_path / "tracing.yaml"
    # The caller says what is sampled.
    file.write_text(yaml("Configuration", "c", {"tracing": {"samplingRate": "0.0001", **tracing}}))
    mails = App([{"pubsubname": "pubsub", "topic": "taken", "route": "/taken"}])
    async with AsyncExitStack() as stack:
        applications = {"orders": App(), "stock": App(), "mailer": mails}
        nodes: dict[str, Node] = {}
        for app_id, app in applications.items():
            await stack.enter_async_context(app)
            started = gateway(backbone, tmp_path, app=app, app_id=app_id, configuration_files=(file,))
            nodes[app_id] = await stack.enter_async_context(started)
        shop = await stack.enter_async_context(gateway(backbone, tmp_path, app_id="shop", configuration_files=(file,)))
        applications["orders"].answers["/buy"] = passes_on(nodes["orders"], "/v1.0/invoke/stock/method/take")
        applications["stock"].answers["/take"] = passes_on(nodes["stock"], "/v1.0/publish/pubsub/taken")
        parent = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        reply = await shop.request("POST", "/v1.0/invoke/orders/method/buy", parent, b"x")
        assert reply.status == 200, reply
        await mails.until("/taken")
        yield


def chain(spans: list[dict[str, Any]], parent: str, span: str) -> list[dict[str, Any]]:
    """Order spans, each of which is the only child of the one before; the names are those of their fields."""
    by_parent = {each[parent]: each for each in spans}
    assert len(by_parent) == len(spans) == len(CHAIN)
    below, found = CALLER, []
    while below in by_parent:
        found.append(by_parent[below])
        below = found[-1][span]
    return found


async def test_one_trace_in_zipkin(zipkin: ZipkinServer, nats: Backbone, tmp_path: Path) -> None:
    """Asked by its own API; it writes names in lower case."""

    async def all_there() -> list[dict[str, Any]]:
        found = await asyncio.to_thread(zipkin.trace, TRACE)
        assert len(found) == len(CHAIN), found
        return found

    async with bought(nats, tmp_path, {"zipkin": {"endpointAddress": zipkin.url}}):
        spans = await eventually(all_there)
        names = await asyncio.to_thread(zipkin.asked, "/services")
    found = [
        (each["localEndpoint"]["serviceName"], each["kind"], each["name"]) for each in chain(spans, "parentId", "id")
    ]
    assert found == [(app_id, kind, name.lower()) for app_id, kind, name in CHAIN]
    assert {"shop", "orders", "stock", "mailer"} <= set(names)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_one_trace_in_a_collector(nats: Backbone, tmp_path: Path, protocol: str) -> None:
    """By OTLP, as its exporter has written it to a file; the end of a gateway sends what waits."""
    needs_otel_collector()
    async with OTelCollector(tmp_path / "collector") as collector:
        otel = {"endpointAddress": collector.place(protocol), "protocol": protocol, "isSecure": False}
        async with bought(nats, tmp_path, {"otel": otel}):
            pass

        def all_there() -> list[dict[str, Any]]:
            # By their ids: what was on its way when a gateway ended was sent again.
            found = {each["spanId"]: each for each in collector.spans() if each["traceId"] == TRACE}
            assert len(found) == len(CHAIN), found
            return list(found.values())

        spans = chain(await eventually(all_there), "parentSpanId", "spanId")
    assert [(each["app"], KINDS[each["kind"]], each["name"]) for each in spans] == CHAIN
