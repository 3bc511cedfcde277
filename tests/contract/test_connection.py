"""Connecting, liveness, and what a broker declares about itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from mesh.broker import Broker, Features, Frame, KeyValueProvider, Message, Restorable
from mesh.errors import BrokerUnavailableError
from tests.support.backends import Backend, features_of
from tests.support.contract import Place, no_tasks_besides
from tests.support.eventually import eventually
from tests.support.processes import free_port


async def test_check_returns_while_the_broker_answers(broker: Broker) -> None:
    await broker.check()


async def test_adapter_is_a_broker_and_says_what_it_can(broker: Broker, backend_name: str) -> None:
    declared = features_of(backend_name)
    assert isinstance(broker, Broker)
    assert isinstance(broker.features, Features)
    assert isinstance(broker, KeyValueProvider) is broker.features.key_value
    for name in ("name", "durable", "shared", "ordering", "delay", "dedup", "wildcard", "key_value", "release_counts"):
        assert getattr(broker.features, name) == getattr(declared, name), name
    assert broker.features.max_message_bytes >= 64 * 1024


@pytest.mark.lacks("native")
async def test_every_node_has_an_inbox_of_its_own(broker: Broker, other: Broker) -> None:
    assert broker.inbox
    assert other.inbox
    assert broker.inbox != other.inbox


async def test_nothing_is_left_of_a_node(place: Place) -> None:
    before = asyncio.all_tasks()
    for _ in range(3):
        node = await place.connect()
        await place.leave(node)
    await no_tasks_besides(before)


@pytest.mark.requires("shared", "durable", "frames")
async def test_that_the_connection_is_back_is_told(rough_place: Place) -> None:
    """What is broadcast then is soon heard."""
    broker = await rough_place.connect()
    assert isinstance(broker, Restorable)
    heard: set[bytes] = set()
    restored = asyncio.Event()
    broker.on_restored(restored.set)

    def hear(frame: Frame) -> None:
        if frame.message is not None:
            heard.add(frame.message.body)

    async def is_heard(body: bytes) -> None:
        with suppress(BrokerUnavailableError):
            await broker.broadcast(rough_place.app(), Message({}, body))
        assert body in heard

    async with broker.listen(rough_place.app(), hear):
        await eventually(lambda: is_heard(b"before"))
        assert not restored.is_set()
        await rough_place.backend.restart(kill=True)
        async with asyncio.timeout(60):
            await restored.wait()
        await eventually(lambda: is_heard(b"again"))


@pytest.mark.requires("shared")
async def test_unreachable_broker_is_named_without_its_password(shared_backend: Backend) -> None:
    if shared_backend.port is None:
        pytest.skip("this broker's address cannot be chosen")
    before = asyncio.all_tasks()
    port = free_port()
    with pytest.raises(BrokerUnavailableError) as raised:
        async with shared_backend.unreachable(port):
            pytest.fail("entered")
    assert f"127.0.0.1:{port}" in str(raised.value)
    assert "secret" not in str(raised.value)
    await no_tasks_besides(before)


@pytest.mark.requires("shared")
@pytest.mark.parametrize("way", ["nobody", "hangs up", "says nothing"])
async def test_unreachable_broker_is_told_soon_and_why(shared_backend: Backend, way: str) -> None:
    """A start tries once, so that whoever starts it can say what it waits for, and try again."""
    if shared_backend.port is None:
        pytest.skip("this broker's address cannot be chosen")
    before = asyncio.all_tasks()
    async with _stranger(hangs_up=way == "hangs up") as port:
        if way == "nobody":
            port = free_port()
        with pytest.raises(BrokerUnavailableError) as raised:
            async with asyncio.timeout(3.0), shared_backend.unreachable(port):
                pytest.fail("entered")
    _, _, reason = str(raised.value).partition("is not reachable: ")
    assert reason
    assert ("does not answer" in reason) == (way == "says nothing")
    assert raised.value.__cause__ is not None
    await no_tasks_besides(before)


@asynccontextmanager
async def _stranger(*, hangs_up: bool) -> AsyncIterator[int]:
    """Listen; hang up on whoever connects, or let them wait."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not hangs_up:
            while await reader.read(1024):
                pass
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_cancelled_while_connecting_leaves_nothing_behind(shared_backend: Backend) -> None:
    before = asyncio.all_tasks()
    for turns in [*range(0, 30, 2), 50, 100]:

        async def enter() -> None:
            async with shared_backend.broker():
                await asyncio.Event().wait()

        entering = asyncio.ensure_future(enter())
        for _ in range(turns):
            await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([entering])
        assert entering.cancelled()
    await no_tasks_besides(before)


async def test_cancelled_checks_do_no_harm(broker: Broker) -> None:
    for turns in range(10):
        checking = asyncio.ensure_future(broker.check())
        for _ in range(turns):
            await asyncio.sleep(0)
        checking.cancel()
        await asyncio.wait([checking])
    async with asyncio.timeout(30):
        await broker.check()
