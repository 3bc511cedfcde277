"""A Node and a Python application: calls, events and state through their gateways."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nats import NatsServer
from tests.support.processes import free_port


class Pair(NamedTuple):
    node: AppProcess
    python: AppProcess
    node_gateway: GatewayProcess
    python_gateway: GatewayProcess
    session: aiohttp.ClientSession


@pytest.fixture(params=["embedded", "external"])
async def pair(request: pytest.FixtureRequest, mesh_home: Path, nats_server: NatsServer) -> AsyncIterator[Pair]:
    """Both applications with their gateways, on a server of their own or on one given by MESH_BACKBONE."""
    if shutil.which("node") is None:
        if os.environ.get("CI"):
            pytest.fail("Node.js is not installed")
        pytest.skip("Node.js is not installed")
    backbone = nats_server.url if request.param == "external" else None
    node_port, python_port = free_port(), free_port()
    node = AppProcess(
        mesh_home,
        "orders.js",
        gateway_port=node_port,
        subscriptions=[{"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders"}],
    )
    python = AppProcess(
        mesh_home,
        gateway_port=python_port,
        subscriptions=[{"pubsubname": "pubsub", "topic": "processed", "route": "/events/processed"}],
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(node)
        await stack.enter_async_context(python)
        yield Pair(
            node,
            python,
            await stack.enter_async_context(
                GatewayProcess("nodeapp", mesh_home, app=node, http_port=node_port, backbone=backbone)
            ),
            await stack.enter_async_context(
                GatewayProcess("pythonapp", mesh_home, app=python, http_port=python_port, backbone=backbone)
            ),
            await stack.enter_async_context(aiohttp.ClientSession()),
        )


async def test_python_calls_node_which_stores_the_order(pair: Pair) -> None:
    """The tutorial's two applications; the stored order outlives a restart of all of it."""
    for number in (41, 42):
        order = {"data": {"orderId": number}}
        async with pair.session.post(
            f"{pair.python_gateway.api}/invoke/nodeapp/method/neworder", json=order
        ) as response:
            assert response.status == 200
            assert await response.json() == {"stored": number}
    async with pair.session.get(f"{pair.python_gateway.url}/order", headers={"dapr-app-id": "nodeapp"}) as response:
        assert await response.json() == {"orderId": 42}
    assert pair.node.recorded("order") == ["41", "42"]
    for process in (pair.node_gateway, pair.python_gateway, pair.node):
        await process.terminate()
    for process in (pair.node, pair.node_gateway, pair.python_gateway):
        await process.start()
    async with pair.session.get(f"{pair.python_gateway.api}/invoke/nodeapp/method/order") as response:
        assert await response.json() == {"orderId": 42}


async def test_events_go_both_ways(pair: Pair) -> None:
    """What Python's side publishes Node handles, and what Node publishes about it reaches Python."""
    ids = [str(number) for number in range(20)]
    for identity in ids:
        async with pair.session.post(
            f"{pair.python_gateway.api}/publish/pubsub/orders", json={"id": identity}
        ) as response:
            assert response.status == 204

    def all_were_processed() -> None:
        assert sorted(pair.node.recorded("orders")) == sorted(pair.python.recorded("processed")) == sorted(ids)

    await eventually(all_were_processed, 40.0)


async def test_node_calls_python(pair: Pair) -> None:
    """Through two gateways, with the headers that tell who calls."""
    async with pair.session.post(f"{pair.node.url}/ask", json={"app": "pythonapp", "text": "Grüße"}) as response:
        assert response.status == 200
        answer = await response.json()
    assert answer["method"] == "POST"
    assert answer["path"] == "/echo?from=node"
    assert answer["body"] == '{"app":"pythonapp","text":"Grüße"}'
    headers = {name.lower(): value for name, value in answer["headers"].items()}
    assert headers["dapr-caller-app-id"] == "nodeapp"
    assert headers["dapr-callee-app-id"] == "pythonapp"
