"""Taps where nodes prove who they are: values go to whom they are allowed to, and nobody else reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from mesh import address
from mesh.blocks.state import SAVE, Save
from mesh.broker import Message
from mesh.calls.context import tell
from mesh.node.runtime import Runtime
from mesh.resources.configuration import AccessControl, Configuration, ConfigurationSpec, TapAccess
from mesh.store import Item
from mesh.tap.sight import Dropped, Refused, Sight
from mesh.tap.wanted import Wanted
from mesh.tap.watch import Question, Told
from mesh.trust.identity import TrustSettings
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.nodes import ask, component, node
from tests.support.tapped import Seen, tapping
from tests.trust.test_sealed_nodes import tapped

NAMESPACE = "taps"
SECRET = b"the-combination-is-1-2-3-4"
ALLOWS = Configuration(spec=ConfigurationSpec(access_control=AccessControl(tap=TapAccess(values=("watcher",)))))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as server:
        yield server


def _node(server: NatsServer, app_id: str, trust: TrustSettings | None) -> Runtime:
    store = component("store", "state.in-memory")
    return node(server.url, NAMESPACE, store, app_id=app_id, trust=trust, configuration=ALLOWS)


async def _save(runtime: Runtime, seen: Seen) -> Sight:
    await ask(runtime, SAVE, "store", Save([Item("k", SECRET)]))
    return await seen.until(lambda each: each.app == runtime.settings.app_id and each.method == "save")


@pytest.mark.parametrize("seals", [True, False])
async def test_only_who_asked_reads_what_is_sealed(trust: TrustSettings, server: NatsServer, seals: bool) -> None:
    trust = replace(trust, seal=seals)
    async with AsyncExitStack() as stack:
        heard = await stack.enter_async_context(tapped("nats", server))
        stock, watcher = [await stack.enter_async_context(_node(server, each, trust)) for each in ("stock", "watcher")]
        seen = await stack.enter_async_context(tapping(watcher, stock, values=True))
        sight = await _save(stock, seen)
        assert sight.request is not None and SECRET in (sight.request.body or b"")
        assert not seen.of(Refused)
    assert (SECRET in heard.seen) == (not seals)


async def test_who_is_not_named_sees_no_values(trust: TrustSettings, server: NatsServer) -> None:
    async with _node(server, "stock", trust) as stock, _node(server, "thief", trust) as thief:
        async with tapping(thief, stock, values=True) as seen:
            sight = await _save(stock, seen)
        assert sight.hidden and sight.request is not None and sight.request.body is None
        assert {each.app for each in seen.of(Refused)} == {"stock", "thief"}


async def test_nobody_asks_or_answers_in_the_name_of_another(trust: TrustSettings, server: NatsServer) -> None:
    """Not even an application that has proven to be another one."""
    async with AsyncExitStack() as stack:
        stock, watcher, thief = [
            await stack.enter_async_context(_node(server, each, trust)) for each in ("stock", "watcher", "thief")
        ]
        question = msgspec.msgpack.encode(Question("t-1", "watcher", Wanted(values=True)))
        where = address.taps(NAMESPACE)
        await tell(thief.exchange, where, question)
        await thief.broker.broadcast(where, Message({}, question))
        async with tapping(watcher, stock, thief, values=True, blocks=("state",)) as seen:  # Behind the others.
            assert stock.parts.taps.count == 1  # type: ignore[attr-defined]
            lie = msgspec.msgpack.encode(Told([msgspec.Raw(msgspec.msgpack.encode(Dropped("stock", "x", 7)))]))
            at = address.taps(NAMESPACE, next(iter(stock.parts.taps._watches)))  # type: ignore[attr-defined]
            await tell(thief.exchange, at, lie)
            await thief.broker.broadcast(at, Message({}, lie))
            await _save(thief, seen)
            assert not seen.of(Dropped)


async def test_a_claimed_name_is_not_enough(trust: TrustSettings, server: NatsServer) -> None:
    """Where not everybody has to prove who he is, who does not is told no values."""
    async with (
        _node(server, "stock", replace(trust, mode="permissive")) as stock,
        _node(server, "watcher", None) as watcher,
        tapping(watcher, stock, values=True) as seen,
    ):
        sight = await _save(stock, seen)
        assert sight.hidden

        def refused() -> None:
            assert any("does not prove who it is" in each.reason for each in seen.of(Refused))

        await eventually(refused)
