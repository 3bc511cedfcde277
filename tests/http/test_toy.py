"""A building block that nobody knows but two tables: over HTTP, hosted, described, with policies and errors."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import aiohttp
import pytest

from gateway.config import GatewayConfig
from gateway.grpc.messages import message
from gateway.http.server import HTTPServer
from gateway.http.stages import staged, stages
from gateway.routes import ROUTES, build_api, build_router
from mesh.blocks import BLOCKS
from mesh.errors import BadArgumentError, ComponentNotFoundError, ConfigError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.registry import Registry
from mesh.resources.component import Component
from tests.http.harness import Backbone
from tests.support.nodes import ask
from tests.support.toy import block, routes

TOY = Component("blue", "toys.box", placement="backbone")


class Installed(Registry):
    """With a package that brings the toy's type."""

    def find(self, name: str) -> EntryPoint | None:
        if name == "toys.box":
            return EntryPoint(name, "tests.support.toy.block:Toy", "mesh.components")
        return super().find(name)


def runtime(backbone: Backbone, app_id: str, *components: Component) -> Runtime:
    settings = NodeSettings(app_id, backbone.namespace, backbone.url, components=components)
    return Runtime(settings, Installed(), (*BLOCKS, block.BLOCK))


class About:
    app_id = "asker"
    outbound_ready = True
    not_ready = ()
    metadata: ClassVar[dict[str, object]] = {}

    def shut_down(self, *, force: bool = False) -> None: ...


@pytest.fixture
async def asker(nats: Backbone) -> AsyncIterator[Runtime]:
    async with runtime(nats, "asker") as asker:
        yield asker


async def test_over_http_and_over_the_backbone(nats: Backbone, asker: Runtime, tmp_path: Path) -> None:
    """The gateway has no such component: a host elsewhere counts, for each caller apart."""
    all_routes = (*ROUTES, *routes.ROUTES)
    api = build_api(asker, GatewayConfig("asker", tmp_path), About(), {}, message, all_routes)
    made = staged(build_router(api, all_routes), stages(api.config))
    server = HTTPServer(made, max_body_bytes=1024, max_header_bytes=1024)
    async with (
        runtime(nats, "host", TOY) as host,
        server.listening(("127.0.0.1",), 0, None, lambda: 0.0) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        assert await ask(host, block.COUNT, "blue", block.Count(5)) == 5
        for by, count in ((1, 1), (3, 4)):
            async with client.post(f"/v1.0/toys/blue?by={by}") as response:
                assert (response.status, await response.json()) == (200, {"count": count})
        async with client.post("/v1.0/toys/blue?by=0") as response:
            expected = {"errorCode": "ERR_BAD_REQUEST", "message": "invalid request: cannot count by 0"}
            assert (response.status, await response.json()) == (400, expected)
        async with client.post("/v1.0/toys/red") as response:
            assert (response.status, (await response.json())["errorCode"]) == (500, "ERR_COMPONENT")
        assert [(each.name, each.capabilities) for each in host.description.components] == [("blue", ("COUNTING",))]
        assert host.counters.snapshot()["operations", "toy", "count", "blue", "ok"] == 4  # Asked and answered for.


async def test_errors_are_of_their_class(nats: Backbone, asker: Runtime) -> None:
    """Wherever they were raised."""
    async with runtime(nats, "host", TOY) as host:
        for node in (host, asker):
            with pytest.raises(BadArgumentError, match="cannot count by 0"):
                await ask(node, block.COUNT, "blue", block.Count(0), deadline=time.time() + 20)
        with pytest.raises(ComponentNotFoundError):
            await ask(host, block.COUNT, "red", block.Count())


async def test_a_kind_that_no_block_has_is_refused_at_start(nats: Backbone) -> None:
    """With its place, and what there is; unless it may be missing."""
    component = Component("blue", "toys.box", file="toys.yaml", line=3)
    settings = NodeSettings("app", nats.namespace, nats.url, components=(component,))
    with pytest.raises(ConfigError, match=r"toys\.yaml:3:1: component type 'toys\.box'.*pubsub, secretstores, state"):
        async with Runtime(settings, Installed()):
            pass
    spared = dataclasses.replace(component, ignore_errors=True)
    async with Runtime(dataclasses.replace(settings, components=(spared,)), Installed()) as node:
        assert node.description.components == ()
