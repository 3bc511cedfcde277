"""How those who serve an address come to know each other, though what they say may be lost or late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from mesh.broker import Message
from mesh.calls.exchange import Exchange
from mesh.calls.link import FRAME_HEADER
from tests.support.eventually import eventually
from tests.support.lossy import APP, ASK_AFTER, BOTH, KNOWN, Mesh, Node, mesh_of, soon

NEVER = 3600.0
TAKER = pytest.mark.parametrize("taker", [0, 1])


@pytest.fixture
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    """A mesh without proofs; with them for a test that is parametrized so."""
    async with mesh_of(request) as mesh:
        yield mesh


async def check_that_calls_run_once(mesh: Mesh, caller: Exchange, taker: Node) -> None:
    """Each of two members takes one; the answers of one are lost, until it has been asked what became of its call."""
    bodies = [b"0", b"1"]
    taker.loses = lambda to, message: isinstance(to, str) and FRAME_HEADER not in message.headers

    def asked() -> None:
        told = [link.waiting is not None and link.waiting.members is not None for link in caller.links.values()]
        assert any(told) or len(mesh.ran) > len(bodies)

    async with asyncio.TaskGroup() as tasks:
        for body in bodies:
            tasks.create_task(caller.request(APP, Message({}, body), soon()))
        await eventually(asked)
        taker.loses = lambda to, message: False
    assert sorted(mesh.ran) == bodies


@BOTH
@TAKER
async def test_who_answers_before_it_is_confirmed_that_it_was_asked_is_known(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, taker: int
) -> None:
    monkeypatch.setattr("mesh.calls.members.SOON", NEVER)
    _, caller = await mesh.node()
    members = [await mesh.node() for _ in range(2)]
    members[1][0].confirms_late = True
    async with members[0][1].serve(APP, "g", mesh.answer), members[1][1].serve(APP, "g", mesh.answer):
        await asyncio.sleep(KNOWN)
        await check_that_calls_run_once(mesh, caller, members[taker][0])


@BOTH
async def test_who_is_new_asks_again_who_is_there(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.calls.members.SOON", ASK_AFTER)
    _, caller = await mesh.node()
    (broker, older), (_, newer) = await mesh.node(), await mesh.node()
    async with older.serve(APP, "g", mesh.answer):
        broker.lose_next("here")
        async with newer.serve(APP, "g", mesh.answer):
            await asyncio.sleep(KNOWN)
            assert len(broker.lost) == 1
            await check_that_calls_run_once(mesh, caller, broker)


@BOTH
@TAKER
async def test_who_was_cut_off_asks_who_came_meanwhile(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, taker: int) -> None:
    monkeypatch.setattr("mesh.calls.members.SOON", NEVER)
    _, caller = await mesh.node()
    members = [await mesh.node() for _ in range(2)]
    async with members[0][1].serve(APP, "g", mesh.answer):
        await asyncio.sleep(KNOWN)
        members[0][0].deaf = True
        async with members[1][1].serve(APP, "g", mesh.answer):
            await asyncio.sleep(KNOWN)  # What the newcomer has said is over.
            members[0][0].restore()
            await asyncio.sleep(KNOWN)
            await check_that_calls_run_once(mesh, caller, members[taker][0])


@BOTH
async def test_who_has_said_that_it_leaves_does_not_say_that_it_is_here(mesh: Mesh) -> None:
    """It would be waited for as if it had died, when it is to be known whether anybody took a call."""
    broker, caller = await mesh.node()
    (asks, stays), (says, leaves) = await mesh.node(), await mesh.node()

    def asked_meanwhile(to: object, message: Message) -> bool:
        if message.headers.get(FRAME_HEADER) == "bye":
            asks.restore()
        return False

    async with stays.serve(APP, "g", mesh.answer):
        async with leaves.serve(APP, "g", mesh.answer):
            await asyncio.sleep(KNOWN)
            says.loses, says.confirms_late = asked_meanwhile, True
        await asyncio.sleep(KNOWN)
        broker.lose_next(None, served=True)
        assert (await caller.request(APP, Message({}, b"x"), soon())).body == b"x"


@BOTH
async def test_who_knows_the_same_does_not_answer(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage all ask who came meanwhile: where nobody did, none tells all others that it is here."""
    monkeypatch.setattr("mesh.calls.members.SOON", ASK_AFTER)
    asked = answered = 0

    def count(to: object, message: Message) -> bool:
        nonlocal asked, answered
        if message.headers.get(FRAME_HEADER) == "here":
            answered += isinstance(to, str)
            asked += not isinstance(to, str)
        return False

    nodes = [await mesh.node() for _ in range(8)]
    async with AsyncExitStack() as stack:
        for broker, exchange in nodes:
            await stack.enter_async_context(exchange.serve(APP, "g", mesh.answer))
            broker.loses = count
        members = [exchange._members[0] for _, exchange in nodes]

        def all_known() -> None:
            assert {len(each._heard) for each in members} == {len(nodes) - 1}
            assert all(each._asks == 1 for each in members)  # The last one is with the next beat, much later.

        await eventually(all_known)
        asked = answered = 0
        for broker, _ in nodes:
            broker.restore()

        def all_asked() -> None:
            assert asked == 2 * len(nodes)

        await eventually(all_asked)
        assert answered == 0
        # One that came meanwhile is told of by each who knows it, to those who do not.
        members[0]._leave(members[1].node, members[0]._exchange.monotonic())
        nodes[0][0].restore()

        def known_again() -> None:
            assert members[1].node in members[0]._heard

        await eventually(known_again)
        assert 0 < answered <= 3 * len(nodes)
