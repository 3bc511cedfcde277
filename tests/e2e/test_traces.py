"""A request through three applications and a topic is one trace in a real Zipkin, asked by its own API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.http.harness import App, Backbone, Got, Node, gateway, yaml
from tests.support.eventually import eventually
from tests.support.nats import NatsServer, find_nats_server
from tests.support.zipkin_server import ZipkinServer, find_zipkin

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SPAN = ("calllocal/orders/buy", "calllocal/stock/take", "/v1.0/publish/pubsub/taken", "pubsub/taken")


@pytest.fixture
async def zipkin(tmp_path: Path) -> AsyncIterator[ZipkinServer]:
    if find_zipkin() is None:
        if os.environ.get("CI"):
            raise FileNotFoundError("zipkin-server")
        pytest.skip("Zipkin is not installed: make provision")
    async with ZipkinServer(tmp_path / "zipkin") as server:
        yield server


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Backbone]:
    if find_nats_server() is None:
        if os.environ.get("CI"):
            raise FileNotFoundError("nats-server")
        pytest.skip("nats-server is not installed")
    async with NatsServer(tmp_path / "nats") as server:
        yield Backbone(server.url)


def passes_on(node: Node, target: str) -> Any:
    """Make the answer of an application that asks its gateway for the next step, and knows no more than to pass on."""

    async def answer(got: Got, request: web.BaseRequest) -> web.Response:
        reply = await node.request("POST", target, {"traceparent": got.headers["traceparent"]}, b"x")
        return web.Response(status=200 if reply.status < 300 else 500)

    return answer


async def test_one_trace(zipkin: ZipkinServer, nats: Backbone, tmp_path: Path) -> None:
    """The shop calls orders, orders calls stock, stock publishes, and the mailer is told."""
    file = tmp_path / "tracing.yaml"
    tracing = {"samplingRate": "0.0001", "zipkin": {"endpointAddress": zipkin.url}}  # The caller says what is sampled.
    file.write_text(yaml("Configuration", "c", {"tracing": tracing}))
    mails = App([{"pubsubname": "pubsub", "topic": "taken", "route": "/taken"}])
    async with AsyncExitStack() as stack:
        applications = {"orders": App(), "stock": App(), "mailer": mails}
        nodes: dict[str, Node] = {}
        for app_id, app in applications.items():
            await stack.enter_async_context(app)
            started = gateway(nats, tmp_path, app=app, app_id=app_id, configuration_files=(file,))
            nodes[app_id] = await stack.enter_async_context(started)
        shop = await stack.enter_async_context(gateway(nats, tmp_path, app_id="shop", configuration_files=(file,)))
        applications["orders"].answers["/buy"] = passes_on(nodes["orders"], "/v1.0/invoke/stock/method/take")
        applications["stock"].answers["/take"] = passes_on(nodes["stock"], "/v1.0/publish/pubsub/taken")
        parent = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        reply = await shop.request("POST", "/v1.0/invoke/orders/method/buy", parent, b"x")
        assert reply.status == 200, reply
        await mails.until("/taken")

        async def all_there() -> list[dict[str, Any]]:
            found = await asyncio.to_thread(zipkin.trace, TRACE)
            assert len(found) == 6, found
            return found

        spans = await eventually(all_there)
        names = await asyncio.to_thread(zipkin.asked, "/services")
    by_parent = {each["parentId"]: each for each in spans}
    assert len(by_parent) == 6  # Each is the only child of the one before.
    below, chain = CALLER, []
    while below in by_parent:
        span = by_parent[below]
        chain.append((span["localEndpoint"]["serviceName"], span["kind"], span["name"]))
        below = span["id"]
    buy, take, publish, deliver = SPAN
    assert chain == [
        ("shop", "CLIENT", buy),
        ("orders", "SERVER", buy),
        ("orders", "CLIENT", take),
        ("stock", "SERVER", take),
        ("stock", "CLIENT", publish),
        ("mailer", "CLIENT", deliver),
    ]
    assert {"shop", "orders", "stock", "mailer"} <= set(names)
