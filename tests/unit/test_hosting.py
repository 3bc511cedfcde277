"""A host that leaves, and one that cannot begin, on a broker of memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import pytest

from mesh import address
from mesh.address import Address
from mesh.blocks.state import GET, Get
from mesh.broker import Sink
from mesh.calls.exchange import Exchange
from mesh.errors import BrokerUnavailableError, NotConfiguredError
from mesh.node.runtime import NodeSettings
from tests.support.eventually import eventually
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


async def test_a_component_that_cannot_be_announced_is_not_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt begins anew."""
    mesh = MemoryMesh()
    async with (
        node("memory:", "ns", component("other", "state.in-memory"), app_id="host", registry=mesh) as host,
        node("memory:", "ns", app_id="asker", registry=mesh) as asker,
    ):
        listen = host.broker.listen

        def refusing(where: Address, sink: Sink) -> AbstractAsyncContextManager[None]:
            if where == address.hosts("ns"):
                raise BrokerUnavailableError("away")
            return listen(where, sink)

        monkeypatch.setattr(host.broker, "listen", refusing)
        wanted = NodeSettings("host", "ns", "memory:", components=(STORE,))
        assert [str(each) for each in (await host.reload(wanted)).done] == ["Component other removed"]
        with pytest.raises(NotConfiguredError):
            await ask(asker, GET, "store", Get("k"))
        monkeypatch.undo()
        told = await host.reload(wanted)
        assert ([str(each) for each in told.done], told.kept) == (["Component store added"], ())

        async def answered() -> None:
            with suppress(NotConfiguredError):  # That there is nobody was found out just now.
                assert await ask(asker, GET, "store", Get("k")) is None
                return
            raise AssertionError

        await eventually(answered)
