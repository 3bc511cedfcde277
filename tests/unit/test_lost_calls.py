"""Calls whose request or answer is lost on the way, and what the members of a group say of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from mesh import address
from mesh.address import Address
from mesh.broker import Message
from mesh.calls import exchange
from mesh.calls.exchange import Exchange, Request
from mesh.calls.link import FRAME_HEADER, TAKEN
from mesh.calls.taken import GENERATION, GENERATION_SECONDS, MAX_ENDED, MAX_KEPT_BYTES, MAX_REFUSED, Shared, Taken
from mesh.errors import DeadlineExceededError, StreamBrokenError
from tests.support.eventually import eventually
from tests.support.lossy import APP, ASK_AFTER, BOTH, KNOWN, Mesh, mesh_of, soon


@pytest.fixture
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    """A mesh without proofs; with them for a test that is parametrized so."""
    async with mesh_of(request) as mesh:
        yield mesh


@BOTH
async def test_a_lost_answer_is_sent_again(mesh: Mesh) -> None:
    _, caller = await mesh.node()
    broker, callee = await mesh.node()
    async with callee.serve(APP, "g", mesh.answer):
        broker.lose_next(None)
        reply = await caller.request(APP, Message({}, b"x"), soon())
    assert (reply.body, mesh.ran, len(broker.lost)) == (b"x", [b"x"], 1)


async def test_an_address_where_nothing_can_be_asked_delays_no_other(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "TELL_WAIT", 60.0)
    asker, caller = await mesh.node()
    broker, callee = await mesh.node()
    other, answer, stuck = address.app("default", "other"), asyncio.Event(), asyncio.Event()
    forward = asker.broadcast

    async def broadcast(to: Address, message: Message) -> None:
        if to == address.members(other):
            stuck.set()
            await answer.wait()
        await forward(to, message)

    async def late(request: Request) -> None:
        await answer.wait()
        await request.reply({}, b"")

    asker.broadcast = broadcast  # type: ignore[method-assign]  # As where the broker takes nothing for it now.
    async with callee.serve(APP, "g", mesh.answer), callee.serve(other, "g", late), asyncio.TaskGroup() as tasks:
        tasks.create_task(caller.request(other, Message({}, b""), soon()))
        await stuck.wait()
        broker.lose_next(None)
        reply = await caller.request(APP, Message({}, b"x"), soon())
        answer.set()
    assert (reply.body, mesh.ran, len(broker.lost)) == (b"x", [b"x"], 1)


@BOTH
async def test_a_lost_head_is_sent_again(mesh: Mesh) -> None:
    _, caller = await mesh.node()
    broker, callee = await mesh.node()

    async def stream(request: Request) -> None:
        await request.begin({"n": "1"})
        for _ in range(10):
            await request.write(b"x")
            await asyncio.sleep(ASK_AFTER)
        await request.end()

    async with callee.serve(APP, "g", stream):
        broker.lose_next("head")
        reply = await caller.request(APP, Message({}, b""), soon())
        assert reply.headers["n"] == "1"
        assert b"".join([part async for part in reply.parts()]) == b"x" * 10


@BOTH
async def test_an_answer_that_is_kept_no_more_fails_its_call_at_once(mesh: Mesh) -> None:
    _, caller = await mesh.node()
    broker, callee = await mesh.node()

    async def stream(request: Request) -> None:
        await request.begin({})
        await request.end()

    async with callee.serve(APP, "g", stream):
        broker.loses = lambda to, message: message.headers.get(FRAME_HEADER) in ("head", "end")
        with pytest.raises(StreamBrokenError, match="its answer was lost"):
            await caller.request(APP, Message({}, b""), soon())


@BOTH
async def test_an_error_that_got_lost_is_told_again(mesh: Mesh) -> None:
    _, caller = await mesh.node()
    broker, callee = await mesh.node()

    async def fail(request: Request) -> None:
        broker.lose_next("abort")
        raise ValueError("for the test")

    async with callee.serve(APP, "g", fail):
        with pytest.raises(StreamBrokenError, match="for the test"):
            await caller.request(APP, Message({}, b""), soon())


@pytest.mark.parametrize("streamed", [False, True])
@BOTH
async def test_a_lost_request_is_sent_again_once_everybody_has_refused_it(mesh: Mesh, streamed: bool) -> None:
    broker, caller = await mesh.node()
    members = [await mesh.node() for _ in range(3)]

    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    async def answer(request: Request) -> None:
        mesh.ran.append(b"".join([part async for part in request.parts()]))
        await request.reply({}, mesh.ran[-1])

    async with AsyncExitStack() as serving:
        for _, member in members:
            await serving.enter_async_context(member.serve(APP, "g", answer))
        await asyncio.sleep(KNOWN)
        broker.lose_next("open" if streamed else None, served=True)
        reply = await caller.request(APP, Message({}, b"" if streamed else b"x"), soon(), body() if streamed else None)
        assert (reply.body, mesh.ran) == (b"x", [b"x"])
        [(to, message, reply_to)] = broker.lost
        for _ in members:  # It was not lost, but late.
            await broker.send(to, message, reply_to)
        assert (await caller.request(APP, Message({}, b"y"), soon())).body == b"y"
    assert len(mesh.ran) == 2


@BOTH
async def test_who_is_alone_at_its_address_vouches_for_it_from_its_first_moment(mesh: Mesh) -> None:
    """Nobody served that of an owner before, so it need not have been heard."""
    broker, caller = await mesh.node()
    _, callee = await mesh.node()
    own = address.owner("default", "app", "a-node")
    async with callee.serve(own, "a-node", mesh.answer):
        broker.lose_next(None, served=True)
        reply = await caller.request(own, Message({}, b"x"), soon())
    assert (reply.body, mesh.ran) == (b"x", [b"x"])


async def test_a_call_that_was_asked_about_in_vain_is_sent_again_in_the_end(mesh: Mesh) -> None:
    """Who was there before it still vouches for it, however often an answer got lost meanwhile."""
    broker, caller = await mesh.node()
    losing, callee = await mesh.node()

    def loses(to: str | Address, message: Message) -> bool:
        return message.headers.get(FRAME_HEADER) == "told" and len(losing.lost) < 5

    async with callee.serve(APP, "g", mesh.answer):
        await asyncio.sleep(KNOWN)
        broker.lose_next(None, served=True)
        losing.loses = loses
        assert (await caller.request(APP, Message({}, b"x"), soon(20.0))).body == b"x"
    assert (len(losing.lost), mesh.ran) == (5, [b"x"])


@BOTH
async def test_a_member_that_died_may_have_run_it(mesh: Mesh) -> None:
    broker, caller = await mesh.node()
    _, alive = await mesh.node()
    dying, died = await mesh.node()
    async with alive.serve(APP, "g", mesh.answer):
        async with died.serve(APP, "g", mesh.answer):
            await asyncio.sleep(KNOWN)
            broker.lose_next(None, served=True)
            async with asyncio.TaskGroup() as tasks:
                call = tasks.create_task(_ends_by_its_deadline(caller))
                await eventually(lambda: _assert(bool(broker.lost)))
                dying.loses = lambda to, message: True
        await call
    assert mesh.ran == []


async def test_a_member_that_left_may_have_run_it(mesh: Mesh) -> None:
    broker, caller = await mesh.node()
    _, stays = await mesh.node()
    _, leaves = await mesh.node()
    async with stays.serve(APP, "g", mesh.answer), asyncio.TaskGroup() as tasks, AsyncExitStack() as serving:
        await serving.enter_async_context(leaves.serve(APP, "g", mesh.answer))
        await asyncio.sleep(KNOWN)
        broker.lose_next(None, served=True)
        tasks.create_task(_ends_by_its_deadline(caller))
        await eventually(lambda: _assert(bool(broker.lost)))
    assert mesh.ran == []


async def test_a_new_member_does_not_know_who_may_have_run_it(mesh: Mesh) -> None:
    broker, caller = await mesh.node()
    _, callee = await mesh.node()
    broker.lose_next(None, served=True)
    async with callee.serve(APP, "g", mesh.answer):
        await _ends_by_its_deadline(caller)
    assert mesh.ran == []


async def test_calls_after_a_death_are_sent_again_once_it_is_known(mesh: Mesh) -> None:
    """Somebody who left well before the call does not hinder it."""
    broker, caller = await mesh.node()
    _, stays = await mesh.node()
    _, leaves = await mesh.node()
    async with stays.serve(APP, "g", mesh.answer):
        async with leaves.serve(APP, "g", mesh.answer):
            await asyncio.sleep(KNOWN)
        await asyncio.sleep(KNOWN)
        broker.lose_next(None, served=True)
        assert (await caller.request(APP, Message({}, b"x"), soon())).body == b"x"


async def test_a_call_that_runs_for_long_runs_once(mesh: Mesh) -> None:
    _, caller = await mesh.node()
    members = [await mesh.node() for _ in range(2)]

    async def answer(request: Request) -> None:
        mesh.ran.append(request.body)
        await asyncio.sleep(10 * ASK_AFTER)
        await request.reply({}, request.body)

    async with AsyncExitStack() as serving:
        for _, member in members:
            await serving.enter_async_context(member.serve(APP, "g", answer))
        await asyncio.sleep(KNOWN)
        assert (await caller.request(APP, Message({}, b"x"), soon())).body == b"x"
    assert mesh.ran == [b"x"]


def not_heard(to: str | Address, message: Message) -> bool:
    """What a broker keeps back whose rights let a node tell the other members nothing."""
    return to == address.members(APP)


@pytest.mark.parametrize("heard", [0, 1])
@BOTH
async def test_a_call_runs_once_where_a_member_is_not_heard(mesh: Mesh, heard: int) -> None:
    """Neither who is not heard nor who does not hear it makes the caller repeat what the other one runs."""
    _, caller = await mesh.node()
    members = [await mesh.node() for _ in range(2)]
    for broker, _ in members[heard:]:
        broker.loses = not_heard

    async def answer(request: Request) -> None:
        mesh.ran.append(request.body)
        await asyncio.sleep(10 * ASK_AFTER)
        await request.reply({}, request.body)

    bodies = [b"%d" % number for number in range(8)]
    async with AsyncExitStack() as serving:
        for _, member in members:
            await serving.enter_async_context(member.serve(APP, "g", answer))
        await asyncio.sleep(KNOWN)
        async with asyncio.TaskGroup() as tasks:
            for body in bodies:
                tasks.create_task(caller.request(APP, Message({}, body), soon()))
    assert sorted(mesh.ran) == bodies


async def test_who_is_not_heard_says_so_once_and_vouches_for_nobody_until_it_is(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _beat_soon(monkeypatch, caplog)
    broker, caller = await mesh.node()
    unheard, callee = await mesh.node()
    kept_back = 0

    def counted(to: str | Address, message: Message) -> bool:
        nonlocal kept_back
        kept_back += not_heard(to, message)
        return not_heard(to, message)

    unheard.loses = counted
    async with callee.serve(APP, "g", mesh.answer):
        await eventually(lambda: _assert(kept_back > 3))
        [told] = caplog.messages
        assert "what this node tells the other instances of app does not come back" in told
        broker.lose_next(None, served=True)
        await _ends_by_its_deadline(caller)
        assert mesh.ran == []
        unheard.loses = lambda to, message: False
        await eventually(lambda: _assert(caplog.messages[1:] == ["the other instances of app hear this node again"]))
        await asyncio.sleep(KNOWN)
        broker.lose_next(None, served=True)
        assert (await caller.request(APP, Message({}, b"x"), soon())).body == b"x"
    assert mesh.ran == [b"x"]


PROVEN = pytest.mark.parametrize("mesh", [True], ids=["proven"], indirect=True)


def _beat_soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("mesh.calls.members.BEAT", ASK_AFTER)
    monkeypatch.setattr("mesh.calls.members.ECHO_WAIT", ASK_AFTER)
    caplog.set_level("INFO", "mesh.calls.members")


@PROVEN
async def test_who_cannot_prove_itself_is_not_said_to_lack_rights(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _beat_soon(monkeypatch, caplog)
    broker, callee = await mesh.node()
    assert callee.guard is not None
    standing, said = callee.guard.standing, 0

    def not_counted(to: str | Address, message: Message) -> bool:
        nonlocal said
        said += 1
        return True

    broker.loses = not_counted
    standing.proven.clear()
    standing.ended.set()
    async with callee.serve(APP, "g", mesh.answer):
        await eventually(lambda: _assert(said > 3))
        assert caplog.messages == []
        standing.ended.clear()
        standing.proven.set()
        await eventually(lambda: _assert(any("does not come back" in each for each in caplog.messages)))


@PROVEN
async def test_who_may_not_answer_hears_itself(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _beat_soon(monkeypatch, caplog)
    broker, callee = await mesh.node()
    monkeypatch.setattr(callee.guard, "_hosts", frozenset({"other"}))
    broker.loses = lambda to, message: True
    async with callee.serve(address.component("default", "store", "abc"), "g", mesh.answer):
        await eventually(lambda: _assert(any("does not come back" in each for each in caplog.messages)))
        broker.loses = lambda to, message: False
        await eventually(lambda: _assert(any("hear this node again" in each for each in caplog.messages)))


@BOTH
async def test_that_a_call_was_taken_is_told_again(mesh: Mesh) -> None:
    _, caller = await mesh.node()
    broker, callee = await mesh.node()
    told: list[str] = []

    def loses(to: str | Address, message: Message) -> bool:
        if message.headers.get(FRAME_HEADER) == TAKEN:
            told.append(str(to))
        return not_heard(to, message) or len(told) == 1

    broker.loses = loses

    async def answer(request: Request) -> None:
        await eventually(lambda: _assert(any(link.taken for link in caller.links.values())))
        await mesh.answer(request)

    async with callee.serve(APP, "g", answer):
        await caller.request(APP, Message({}, b"x"), soon())
    assert mesh.ran == [b"x"]
    assert len(told) > 1
    assert len(set(told)) == 1


@BOTH
async def test_a_request_that_comes_twice_runs_once(mesh: Mesh) -> None:
    broker, caller = await mesh.node()
    _, callee = await mesh.node()

    def twice(to: str | Address, message: Message) -> bool:
        if to == APP:
            broker.lost.append((to, message, f"{broker.inbox}.{next(iter(caller.links))}"))
        return False

    broker.loses = twice
    async with callee.serve(APP, "g", mesh.answer):
        await caller.request(APP, Message({}, b"x"), soon())
        broker.loses = lambda to, message: False
        await broker.send(*broker.lost[0])
        await caller.request(APP, Message({}, b"y"), soon())
    assert mesh.ran == [b"x", b"y"]


async def _ends_by_its_deadline(caller: Exchange) -> None:
    with pytest.raises(DeadlineExceededError):
        await caller.request(APP, Message({}, b"x"), soon(10 * ASK_AFTER))


def _assert(condition: bool) -> None:
    assert condition


# Bounds


def request(exchange: Exchange, body: bytes = b"") -> Request:
    return Request(exchange, Message({}, body), "inbox.token", soon())


async def test_what_is_remembered_is_bounded(mesh: Mesh) -> None:
    _, exchange = await mesh.node()
    taken = Taken()
    size = MAX_KEPT_BYTES // 4
    requests = [request(exchange) for _ in range(6)]
    for number, each in enumerate(requests):
        taken.add(str(number), each)
        each.answered = True
        taken.keep(each, Message({}, bytes(size)))
    assert [each.answer is None for each in requests] == [True, True, True, False, False, False]
    others = [request(exchange) for _ in range(9)]
    for by, each in zip("abbbbbbbb", others, strict=True):
        taken.keep(each, Message({}, bytes(size // 2)), by)
    assert [each.answer is None for each in others] == [False, *[True] * 6, False, False]
    assert [each.answer is None for each in requests] == [True, True, True, True, False, False]
    taken.age(0.0)
    running, done = request(exchange), request(exchange)
    taken.add("running", running)
    done.answered = True
    for now in (1.0, 2.0, 3.0):
        for number in range(GENERATION):
            taken.add(f"{now} {number}", done)
        assert not taken.add(f"{now} 0", done)
        taken.age(now)
    assert taken.get("running") is running
    assert not taken.knows("5")
    assert not taken.knows("1.0 0")
    assert taken.knows("3.0 0")
    assert not taken.knows_all_since(1.0)
    assert taken.knows_all_since(2.5)
    taken.add("refused", None)
    for turn in (1, 2):
        taken.age(3.0 + turn * GENERATION_SECONDS)
    assert not taken.knows("3.0 0")
    assert not taken.add("refused", done), "its caller was told that it never runs"
    for number in range(MAX_REFUSED):
        taken.add(f"more {number}", None)
    assert not taken.knows("refused")


async def test_ended_calls_are_not_run_when_they_come(mesh: Mesh) -> None:
    """Their number is bounded, and pushes out nothing that was refused."""
    _, exchange = await mesh.node()
    taken, late = Taken(), request(exchange)
    taken.add("refused", None)
    for token in ("refused", "late"):
        taken.end(token)
        assert not taken.add(token, late)
    for number in range(MAX_ENDED):
        taken.end(f"more {number}")
    assert taken.add("late", late)
    assert not taken.add("refused", late)


def test_nobody_loses_to_another_what_is_remembered() -> None:
    held = Shared(6)
    for by, count in (("a", 2), ("b", 9), ("c", 1), ("b", 3)):
        for number in range(count):
            held.add(by, f"{count}{number}")
    assert [held.has("a", token) for token in ("20", "21")] == [True, True]
    assert held.has("c", "10")
    assert [held.has("b", f"3{number}") for number in range(3)] == [True, True, True]
    assert not held.has("b", "98")
    held.add("d", "x")
    assert [held.has("b", f"3{number}") for number in range(3)] == [False, True, True]
    assert held.has("a", "20")
