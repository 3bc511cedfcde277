"""A host that leaves, and one that cannot begin, on a broker of memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.address import Address
from mesh.blocks.state import GET, Get
from mesh.calls.exchange import Exchange
from tests.support.nodes import MemoryMesh, ask, component, node

STORE = component("store", "state.in-memory", placement="backbone")


async def test_what_arrives_while_a_host_leaves_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker routes to it until it has unsubscribed: nothing that arrives before is refused."""
    mesh, begun, stop, leaving, go_on = MemoryMesh(), *(asyncio.Event() for _ in range(4))
    serve = Exchange.serve

    @asynccontextmanager
    async def slowly(self: Exchange, where: Address, *args: Any, **more: Any) -> AsyncIterator[None]:
        async with serve(self, where, *args, **more):
            yield
            leaving.set()
            await go_on.wait()  # As if the broker took its time to unsubscribe.

    async def host() -> None:
        async with node("memory:", "ns", STORE, app_id="host", registry=mesh):
            begun.set()
            await stop.wait()

    async with node("memory:", "ns", app_id="asker", registry=mesh) as asker, asyncio.TaskGroup() as tasks:
        monkeypatch.setattr(Exchange, "serve", slowly)
        tasks.create_task(host())
        await begun.wait()
        assert await ask(asker, GET, "store", Get("k")) is None
        stop.set()
        await leaving.wait()
        try:
            for _ in range(20):
                assert await ask(asker, GET, "store", Get("k")) is None
        finally:
            go_on.set()
