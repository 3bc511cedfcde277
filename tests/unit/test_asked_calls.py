"""What a caller asks about its calls, how much of it and when, and where that is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from mesh import address
from mesh.address import Address
from mesh.broker import Message
from mesh.calls.asking import MAX_CALLS
from mesh.calls.exchange import Request
from mesh.calls.link import FRAME_HEADER
from tests.support.eventually import eventually
from tests.support.lossy import APP, KNOWN, Mesh, Node, mesh_of, soon


@pytest.fixture
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    async with mesh_of(request) as mesh:
        yield mesh


def sent(broker: Node, kind: str) -> list[tuple[str | Address, Message]]:
    """Note what a node sends of a kind."""
    noted: list[tuple[str | Address, Message]] = []

    def note(to: str | Address, message: Message) -> bool:
        if message.headers.get(FRAME_HEADER) == kind:
            noted.append((to, message))
        return False

    broker.loses = note
    return noted


async def test_who_asks_is_told_though_an_answer_is_sent_again_with_it(mesh: Mesh) -> None:
    broker, caller = await mesh.node()
    telling, callee = await mesh.node()
    tokens: list[str] = []

    async def answer(request: Request) -> None:
        tokens.extend(caller.links)
        await mesh.answer(request)

    async with callee.serve(APP, "g", answer):
        await asyncio.sleep(KNOWN)
        await caller.request(APP, Message({}, b"x"), soon())
        told = sent(telling, "told")
        calls = [(tokens[0], 0.0, False), ("mesh-lost", 0.0, False)]
        body = orjson.dumps({"inbox": broker.inbox, "at": 0.0, "calls": calls})
        await broker.broadcast(address.members(APP), Message({FRAME_HEADER: "ask"}, body))
        await eventually(lambda: _assert(len(told) == 1))
    [(to, message)] = told
    assert to == f"{broker.inbox}.told"
    assert orjson.loads(message.body)["none"] == ["mesh-lost"]


async def test_few_calls_are_asked_about_until_somebody_tells(mesh: Mesh) -> None:
    """Whoever is behind is not asked for all answers once more; who tells in time is asked about all."""
    broker, caller = await mesh.node()
    telling, callee = await mesh.node()
    go = asyncio.Event()

    async def answer(request: Request) -> None:
        await go.wait()
        await mesh.answer(request)

    bodies = {b"%d" % number for number in range(5 * MAX_CALLS)}
    telling.loses = lambda to, message: message.headers.get(FRAME_HEADER) == "told"
    asked = sent(broker, "ask")

    def counts() -> list[int]:
        return [len(orjson.loads(message.body)["calls"]) for _, message in asked]

    def times() -> set[float]:
        return {orjson.loads(message.body)["at"] for _, message in asked}

    async with callee.serve(APP, "g", answer), asyncio.TaskGroup() as tasks:
        for body in bodies:
            tasks.create_task(caller.request(APP, Message({}, body), soon(30.0)))
        await eventually(lambda: _assert(len(asked) >= 2))
        in_vain = len(asked)
        assert len(times()) == in_vain, "one frame at a time"
        assert max(counts()) <= MAX_CALLS
        telling.loses = lambda to, message: False
        await eventually(lambda: _assert(sum(counts()[in_vain:]) >= len(bodies)))
        go.set()
    assert sorted(mesh.ran) == sorted(bodies)


async def test_calls_are_asked_about_anew_after_an_outage(mesh: Mesh) -> None:
    """Soon, however rarely it was asked about them before."""
    broker, caller = await mesh.node()
    _, callee = await mesh.node()
    go = asyncio.Event()

    async def answer(request: Request) -> None:
        await go.wait()
        await mesh.answer(request)

    async with callee.serve(APP, "g", answer), asyncio.TaskGroup() as tasks:
        tasks.create_task(caller.request(APP, Message({}, b"x"), soon(30.0)))
        await eventually(lambda: _assert(any(link.waiting is not None for link in caller.links.values())))
        [waiting] = [link.waiting for link in caller.links.values()]
        assert waiting is not None
        while waiting.ask_at < caller.monotonic() + 9.0:
            waiting.ask(caller.monotonic())
        asked = sent(broker, "ask")
        broker.restore()
        await eventually(lambda: _assert(len(asked) >= 3), 40.0)
        go.set()


def _assert(condition: bool) -> None:
    assert condition
