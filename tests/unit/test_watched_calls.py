"""Calls without an end in sight: their two sides watch each other before an answer has begun."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.address import Address
from mesh.broker import Message
from mesh.calls.exchange import Exchange, Request
from mesh.calls.link import FRAME_HEADER
from mesh.errors import StreamBrokenError
from tests.support.eventually import eventually

APP = address.app("default", "app")
SILENCE_LIMIT = 1.0  # Longer than a busy machine may stop for.
FAR = 24 * 3600.0


class Node(MemoryBroker):
    """A node that may die: then nothing it sends arrives."""

    def __init__(self, hub: MemoryHub) -> None:
        super().__init__(hub)
        self.dead = False
        self.sent: list[str | None] = []

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        self.sent.append(message.headers.get(FRAME_HEADER))
        if not self.dead:
            await super().send(to, message, reply_to)


class Pair:
    def __init__(self, one: Node, two: Node, caller: Exchange, callee: Exchange) -> None:
        self.one, self.two, self.caller, self.callee = one, two, caller, callee
        self.begun, self.go_on, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(self, request: Request) -> None:
        """Take all of the request, and answer when told to."""
        body = b"".join([part async for part in request.parts()])
        self.begun.set()
        try:
            await self.go_on.wait()
        finally:
            self.ended.set()
        await request.reply({}, body)

    async def request(self, *parts: bytes) -> bytes:
        """Call, with a body as a whole or in parts."""

        async def body() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        whole, streamed = (parts[0], None) if len(parts) == 1 else (b"", body())
        reply = await self.caller.request(APP, Message({}, whole), time.time() + FAR, streamed, watched=True)
        return b"".join([part async for part in reply.parts()])


@pytest.fixture
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    hub = MemoryHub()
    async with Node(hub) as one, Node(hub) as two:
        ping_interval = getattr(request, "param", 0.05)
        settings = {"ping_interval": ping_interval, "silence_limit": max(SILENCE_LIMIT, 2 * ping_interval)}
        async with Exchange(one, **settings) as caller, Exchange(two, **settings) as callee:
            made = Pair(one, two, caller, callee)
            async with callee.serve(APP, "g", made.answer):
                yield made
            await eventually(lambda: _empty(caller, callee))


def _empty(*exchanges: Exchange) -> None:
    assert [exchange.links for exchange in exchanges] == [{}, {}]


BODIES = pytest.mark.parametrize("parts", [(b"whole",), (b"in ", b"parts")], ids=["whole", "streamed"])


@BODIES
async def test_an_answer_that_begins_late(pair: Pair, parts: tuple[bytes, ...]) -> None:
    """Silence of the application is none of its gateway."""
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(pair.request(*parts))
        await pair.begun.wait()
        await asyncio.sleep(2 * SILENCE_LIMIT)  # What must not happen would by then.
        assert not call.done()
        pair.go_on.set()
    assert call.result() == b"".join(parts)
    assert {"ping"} <= set(pair.one.sent) & set(pair.two.sent)


@pytest.mark.parametrize("pair", [60.0], ids=[""], indirect=True)  # Longer than a busy machine may stop for.
async def test_one_that_is_answered_at_once_costs_nothing_more(pair: Pair) -> None:
    pair.go_on.set()
    assert await pair.request(b"x") == b"x"
    assert (pair.one.sent, pair.two.sent) == ([None], [None])


@BODIES
@pytest.mark.parametrize("shown", [False, True], ids=["at once", "later"])
async def test_a_callee_that_dies(pair: Pair, parts: tuple[bytes, ...], shown: bool) -> None:
    """Its caller finds out, whether it had heard of it or not."""
    if not shown and len(parts) == 1:
        pair.two.dead = True
    call = asyncio.ensure_future(pair.request(*parts))
    await pair.begun.wait()
    if shown:
        await eventually(lambda: _sent(pair.two, "ping"))
    pair.two.dead = True
    async with asyncio.timeout(10 * SILENCE_LIMIT):
        with pytest.raises(StreamBrokenError, match="no sign of life"):
            await call
    await pair.ended.wait()


@BODIES
async def test_a_caller_that_dies(pair: Pair, parts: tuple[bytes, ...]) -> None:
    """The callee does not work for it for ever."""
    call = asyncio.ensure_future(pair.request(*parts))
    await eventually(lambda: _sent(pair.one, "ping"))
    pair.one.dead = True
    async with asyncio.timeout(10 * SILENCE_LIMIT):
        await pair.ended.wait()
    with pytest.raises(StreamBrokenError):
        await call


@BODIES
async def test_a_caller_that_gives_up(pair: Pair, parts: tuple[bytes, ...]) -> None:
    call = asyncio.ensure_future(pair.request(*parts))
    await eventually(lambda: _sent(pair.one, "ping"))
    call.cancel()
    await asyncio.wait([call])
    async with asyncio.timeout(SILENCE_LIMIT):  # It is told.
        await pair.ended.wait()


def _sent(node: Node, kind: str) -> None:
    assert kind in node.sent
