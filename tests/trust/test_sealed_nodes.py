"""What whole gateways say to each other, as a plain client with all rights on the broker sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.trust.identity import TrustSettings
from tests.http.actor_app import ActorApp
from tests.http.harness import App, Backbone, Node, gateway, yaml
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.redis_server import RedisServer
from tests.support.server import Server

SECRET = "the-combination-is-1-2-3-4"
STORE = yaml("Component", "store", {"type": "state.in-memory", "version": "v1", "metadata": []}).replace(
    '"name":"store"', '"name":"store","annotations":{"mesh.placement":"backbone"}'
)
ALL = {"nats": b'CONNECT {"verbose":false}\r\nSUB > 1\r\nPING\r\n', "redis": b"MONITOR\r\n"}
BEGUN = {"nats": b"PONG", "redis": b"+OK"}


class Tap:
    """All that a broker tells a client that asks for all."""

    def __init__(self) -> None:
        self.seen = bytearray()

    async def listen(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(1 << 20):
            self.seen += data


@asynccontextmanager
async def tapped(broker: str, server: Server) -> AsyncIterator[Tap]:
    tap = Tap()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
    writer.write(ALL[broker])

    def begun() -> None:
        assert BEGUN[broker] in tap.seen

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tap.listen(reader))
        try:
            await eventually(begun)
            yield tap
        finally:
            writer.close()


def _server(broker: str, folder: Path) -> NatsServer | RedisServer:
    return NatsServer(folder) if broker == "nats" else RedisServer(folder)


@pytest.mark.parametrize("seals", [True, False])
@pytest.mark.parametrize("broker", ["nats", pytest.param("redis", marks=pytest.mark.costly)])
async def test_the_broker_reads_nothing(trust: TrustSettings, broker: str, seals: bool, tmp_path: Path) -> None:
    trust = replace(trust, seal=seals)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(_server(broker, tmp_path / broker))
        backbone, app = Backbone(server.url), await stack.enter_async_context(ActorApp())
        tap = await stack.enter_async_context(tapped(broker, server))
        started = gateway(backbone, tmp_path, app=app, app_id="stock", trust=trust, resources=STORE)
        await stack.enter_async_context(started)
        shop = await stack.enter_async_context(gateway(backbone, tmp_path, app_id="shop", trust=trust))
        before = len(tap.seen)
        await _talk(shop, app)

        def heard() -> None:
            assert len(tap.seen) - before > 3_000_000  # Both streams, and all else.

        await eventually(heard)
    assert (SECRET.encode() in tap.seen) == (not seals)
    assert b"default" in tap.seen or b"stock" in tap.seen  # Who is asked stays in the open.


async def _talk(shop: Node, app: App) -> None:
    """Call, whole and in streams, an actor as well, and use a component that the other gateway has.

    Each says the secret.
    """
    app.answer(f"/{SECRET}", body={"code": SECRET}, told=SECRET)
    for _ in range(2):
        target = f"/v1.0/invoke/stock/method/{SECRET}?code={SECRET}"
        reply = await shop.request("POST", target, {"x-code": SECRET}, {"code": SECRET})
        assert (reply.status, reply.json) == (200, {"code": SECRET})
    assert app.got[-1].headers["x-code"] == SECRET
    large = f"{SECRET} ".encode() * 60_000
    app.answer("/large", body=large)
    reply = await shop.request("POST", "/v1.0/invoke/stock/method/large", None, large)
    assert (reply.status, reply.body) == (200, large)
    assert app.got[-1].body == large
    app.answer(f"/actors/thing/1/method/{SECRET}", body={"code": SECRET}, told=SECRET)
    reply = await shop.request("POST", f"/v1.0/actors/thing/1/method/{SECRET}", {"x-code": SECRET}, {"code": SECRET})
    assert (reply.status, reply.json) == (200, {"code": SECRET})
    assert app.got[-1].headers["x-code"] == SECRET
    saved = await shop.post("/v1.0/state/store", [{"key": SECRET, "value": SECRET}])
    assert saved.status == 204, saved.body
    assert (await shop.get(f"/v1.0/state/store/{SECRET}")).json == SECRET
