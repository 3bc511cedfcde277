"""What nodes tell all others: who is back, who reads input bindings, and whose application takes their events."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from mesh import address
from mesh.address import Address
from mesh.broker import Frame, Message
from mesh.calls.context import counts, tell
from mesh.node.directory import Directory
from mesh.trust.identity import TrustSettings
from tests.http.harness import App, Backbone, component, gateway
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, node

TOLD = {
    "that an application is back": (address.back("ns", "stock"), b"", "stock"),
    "that an application takes events of bindings": (address.readers("ns"), b'{"app":"stock"}', "stock"),
    "that owners have changed": (address.owners("ns", "actors.thing"), b"a-session", None),
    "that jobs may be waiting": (address.jobs("ns", "stock"), b"", "stock"),
    "that one reads bindings": (address.triggered("ns"), b'{"apps":[]}', None),
}


@pytest.mark.parametrize(("at", "body", "whose"), TOLD.values(), ids=TOLD)
async def test_nobody_else_tells(trust: TrustSettings, at: Address, body: bytes, whose: str | None) -> None:
    """Neither who proves nothing, nor another application, where one's own word counts, nor one of elsewhere."""
    mesh, came = MemoryMesh(), asyncio.Queue[Frame]()
    async with (
        node("memory:", "ns", app_id="shop", registry=mesh, trust=trust) as shop,
        node("memory:", "ns", app_id="stock", registry=mesh, trust=trust) as stock,
        node("memory:", "ns", app_id="evil", registry=mesh, trust=trust) as evil,
        node("memory:", "elsewhere", app_id="stock", registry=mesh, trust=trust) as elsewhere,
        node("memory:", "ns", app_id="stock", registry=mesh) as unproven,
        shop.broker.listen(at, came.put_nowait),
    ):

        async def is_taken() -> bool:
            async with asyncio.timeout(30):
                return counts(shop.exchange, at, await came.get(), "ns", whose)

        for teller, taken in ((unproven, False), (evil, whose is None), (elsewhere, False), (stock, True)):
            await tell(teller.exchange, at, body)
            assert await is_taken() == taken, teller.settings
        # As it was told, but at another place, or with another text.
        guard = stock.exchange.guard
        assert guard is not None
        for message in (
            guard.tell(address.back("ns", "other").text, Message({}, body)),
            Message(guard.tell(at.text, Message({}, body)).headers, b'{"app":"shop"}'),
        ):
            await evil.broker.broadcast(at, message)
            assert not await is_taken()


async def test_calls_are_asked_again_only_once_the_application_says_so(
    trust: TrustSettings, caplog: pytest.LogCaptureFixture
) -> None:
    mesh = MemoryMesh()
    async with (
        node("memory:", "ns", app_id="shop", registry=mesh, trust=trust) as shop,
        node("memory:", "ns", app_id="stock", registry=mesh, trust=trust) as stock,
        node("memory:", "ns", app_id="evil", registry=mesh, trust=trust) as evil,
        asyncio.TaskGroup() as tasks,
    ):
        directory, at = Directory(shop.exchange, "ns"), address.back("ns", "stock")
        async with directory.run():
            waiting = tasks.create_task(directory.until_news("stock"))

            async def refused() -> None:
                await tell(evil.exchange, at)
                assert "ns/evil may not say that of stock" in caplog.text

            with caplog.at_level(logging.WARNING):
                await eventually(refused)
            assert not waiting.done()

            async def told() -> None:
                await tell(stock.exchange, at)
                assert waiting.done()

            await eventually(told)


async def test_input_bindings_of_hosts_reach_applications_elsewhere(
    trust: TrustSettings, nats: Backbone, tmp_path: Path
) -> None:
    cron = component("tick", "bindings.cron", schedule="@every 1s")
    async with (
        App() as app,
        gateway(nats, tmp_path, app_id="host", resources=cron, trust=trust),
        gateway(nats, tmp_path, app=app, app_id="stock", trust=trust),
    ):
        await app.until("/tick", 2)
    assert [got.method for got in app.at("/tick")][:2] == ["OPTIONS", "POST"]
