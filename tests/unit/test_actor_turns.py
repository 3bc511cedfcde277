"""One turn at a time per actor, in order, whatever is cancelled, closed or nested."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.actors.errors import ActorBusyError, StackTooDeepError
from mesh.actors.turns import Room, Turns
from tests.support.virtual_time import run

# When each call comes, how long its turn takes, when its caller gives up, which chain it belongs to, how deep it nests.
CALLS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 3),
        st.one_of(st.none(), st.integers(0, 6)),
        st.sampled_from([None, "a", "b"]),
        st.integers(0, 3),
    ),
    max_size=12,
)


class _Watched:
    """Turns, with what happened in them."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.inside: list[tuple[int, str | None]] = []
        self.order: list[int] = []
        self.refused: list[int] = []

    async def call(self, number: int, seconds: float, chain: str | None, depth: int) -> None:
        if not await self.turns.enter(chain):
            self.refused.append(number)
            return
        try:
            others = [each for each in self.inside if each[0] != number]
            assert all(each == chain and chain is not None for _, each in others), "two chains are in it at once"
            if not self.inside:
                self.order.append(number)
            self.inside.append((number, chain))
            await asyncio.sleep(seconds)
            if depth and chain is not None:
                await self.call(number, seconds, chain, depth - 1)
            self.inside.remove((number, chain))
        except asyncio.CancelledError:
            self.inside.remove((number, chain))
            raise
        finally:
            self.turns.leave()


@settings(max_examples=80, deadline=None)
@given(calls=CALLS, closes=st.one_of(st.none(), st.integers(0, 8)))
def test_one_chain_at_a_time(calls: list[tuple[int, int, int | None, str | None, int]], closes: int | None) -> None:
    """Never are two chains in it, nothing is lost, and who did not give up comes in order."""
    room = Room(100)
    watched = _Watched(Turns(1000, 100, room))

    async def come(number: int, call: tuple[int, int, int | None, str | None, int]) -> None:
        at, seconds, gives_up, chain, depth = call
        await asyncio.sleep(at)
        try:
            async with asyncio.timeout(gives_up):
                await watched.call(number, seconds, chain, depth)
        except TimeoutError:
            assert gives_up is not None

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, call in enumerate(calls):
                tasks.create_task(come(number, call))
            if closes is not None:
                await asyncio.sleep(closes + 0.5)
                watched.turns.close()
                await watched.turns.until_idle()
                assert not watched.inside
        assert not watched.turns.running
        assert watched.turns.waiting == 0

    run(main())
    assert room.taken == 0
    assert closes is not None or not watched.refused
    ordered = [number for number in watched.order if calls[number][3] is None]
    assert ordered == sorted(ordered, key=lambda number: calls[number][0])


async def test_a_chain_too_deep() -> None:
    """A chain comes back as often as it may."""
    turns = Turns(2, 10, Room(10))
    assert await turns.enter("a")
    assert await turns.enter("a")
    with pytest.raises(StackTooDeepError):
        await turns.enter("a")


async def test_without_reentrancy_a_chain_waits_for_itself() -> None:
    """The id of a chain means nothing where reentrancy is off."""
    turns = Turns(None, 10, Room(10))
    assert await turns.enter("a")
    async with asyncio.TaskGroup() as tasks:
        again = tasks.create_task(turns.enter("a"))
        await asyncio.sleep(0)
        assert turns.waiting == 1
        turns.leave()
    assert again.result()


async def test_too_many_wait() -> None:
    """What does not fit is refused at once, of one actor and of all."""
    room = Room(3)
    turns = Turns(None, 1, room)
    assert await turns.enter(None)
    async with asyncio.TaskGroup() as tasks:
        second = tasks.create_task(turns.enter(None))
        await asyncio.sleep(0)
        with pytest.raises(ActorBusyError, match="1 calls wait for this actor already"):
            await turns.enter(None)
        other = Turns(None, 1, room)
        assert await other.enter(None)
        with pytest.raises(ActorBusyError, match="3 calls of actors run or wait"):
            await Turns(None, 1, room).enter(None)
        turns.leave()
    assert second.result()


async def test_closed_while_a_waiter_is_cancelled() -> None:
    """Who was told that it is closed, and gave up in the same moment, leaves nothing behind."""
    room = Room(10)
    turns = Turns(None, 10, room)
    assert await turns.enter(None)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(turns.enter(None))
        await asyncio.sleep(0)
        turns.close()
        waiting.cancel()
    turns.leave()
    assert room.taken == 0
