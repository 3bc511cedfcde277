"""Calls that are sealed, on each broker that carries calls: whoever takes one that it cannot open is sent it itself."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh.broker import Message
from mesh.calls.exchange import Exchange, Request
from tests.support.contract import Place
from tests.support.hostile import Mesh, Tapped

pytestmark = [pytest.mark.on("memory", "nats", "redis", "rabbitmq", "kafka"), pytest.mark.costly]

SECRET = b"the combination is 1-2-3-4 "
INSTANCES = 3


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """Let the test itself read and write certificates."""


async def echo(request: Request) -> None:
    await request.begin({})
    async for part in request.parts():
        await request.write(part)
    await request.end()


async def test_each_instance_opens_what_is_sealed_to_it(place: Place, tmp_path: Path) -> None:
    namespace = f"sealed{os.getpid()}-{place.number}"
    body = SECRET * 40_000

    async def upload() -> AsyncIterator[bytes]:
        yield body

    async with (
        Mesh(tmp_path / "trust", place.backend.broker, namespace).running(seal=True) as mesh,
        AsyncExitStack() as stack,
    ):
        brokers = [Tapped(mesh.make()) for _ in range(INSTANCES)]
        for broker in brokers:
            await stack.enter_async_context(broker)
            exchange = await stack.enter_async_context(Exchange(broker, guard=mesh.guard("stock")))
            await stack.enter_async_context(exchange.serve(mesh.stock, "stock", echo))
        for stream in (None, upload) * INSTANCES:
            given = None if stream is None else stream()
            message = Message({}, SECRET if given is None else b"")
            reply = await mesh.caller.request(mesh.stock, message, time.time() + 60, given)
            assert b"".join([part async for part in reply.parts()]) == (SECRET if given is None else body)
    for broker in (mesh.caller_broker, *brokers):
        assert not [frame for _, frame, _ in broker.sent if SECRET in frame.body]
