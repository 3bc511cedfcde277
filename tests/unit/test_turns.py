"""Turns: one at a time, the next when the holder leaves or is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from mesh.errors import MeshError, RecordsMissingError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.ownership import session
from mesh.ownership.kind import table_key
from mesh.ownership.turns import in_turn
from mesh.store import Item, KeyValueStateStore, Stored
from tests.support.eventually import eventually
from tests.support.sharing import running_owners


class Work:
    """Notes how many do it at once."""

    def __init__(self) -> None:
        self.doing = self.begun = 0

    async def __call__(self) -> None:
        self.doing += 1
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.doing -= 1


class Records(KeyValueStateStore):
    """Can fail."""

    broken = False
    asked = 0
    error: MeshError = StateError("away")

    async def get(self, key: str, *, strong: bool, metadata: object = None) -> Stored | None:
        self.asked += 1
        if self.broken:
            raise self.error
        return await super().get(key, strong=strong)

    async def write(self, items: Sequence[Item]) -> None:
        if self.broken:
            raise self.error
        await super().write(items)


def _is(got: int, wanted: int) -> None:
    assert got == wanted


async def test_one_at_a_time() -> None:
    """Of several nodes, and of several of one node; who leaves lets the next one in, and at last nothing is left."""
    records, all_work = Records(MemoryKeyValue()), [Work() for _ in range(4)]
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running_owners(records)) for _ in range(3)]
        async with asyncio.TaskGroup() as tasks:
            taking = [
                tasks.create_task(in_turn(owners, "a", work, asyncio.Event()))
                for owners, work in zip([*nodes, nodes[0]], all_work, strict=True)
            ]
            for begun in (1, 2, 3, 4):
                await eventually(lambda begun=begun: _is(sum(work.begun for work in all_work), begun))
                (now,) = (index for index, work in enumerate(all_work) if work.doing)
                taking[now].cancel()
                await asyncio.wait([taking[now]])
    assert [work.begun for work in all_work] == [1, 1, 1, 1]
    assert await records.get(table_key("turn.a"), strong=True) is None


async def test_whoever_comes_it_is_not_handed_over_in_the_middle() -> None:
    """Nor is it when many have come."""
    records, first, others = Records(MemoryKeyValue()), Work(), Work()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        nodes = [await stack.enter_async_context(running_owners(records)) for _ in range(8)]
        taking = [tasks.create_task(in_turn(nodes[0], "a", first, asyncio.Event()))]
        await eventually(lambda: _is(first.doing, 1))
        taking += [tasks.create_task(in_turn(each, "a", others, asyncio.Event())) for each in nodes[1:]]
        await eventually(lambda: _members(records, 8))
        assert (first.doing, first.begun, others.begun) == (1, 1, 0)
        for task in taking:
            task.cancel()


async def _members(records: Records, count: int) -> None:
    found = await records.get(table_key("turn.a"), strong=True)
    assert found is not None
    assert found.value.count(b"node") == count


async def test_keys_are_apart() -> None:
    """Different turns do not wait for each other."""
    records, work = Records(MemoryKeyValue()), Work()
    async with running_owners(records) as owners, asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(in_turn(owners, key, work, asyncio.Event())) for key in "ab"]
        await eventually(lambda: _is(work.doing, 2))
        for task in both:
            task.cancel()


async def test_it_ends_with_the_work() -> None:
    """Its error is told, and the turn is given back."""
    records = Records(MemoryKeyValue())

    async def fail() -> None:
        raise StateError("broken")

    async with running_owners(records) as owners:
        with pytest.raises(StateError, match="broken"):
            await in_turn(owners, "a", fail, asyncio.Event())
    assert await records.get(table_key("turn.a"), strong=True) is None


async def test_who_ends_waits_no_more() -> None:
    """One that has not had the turn yet."""
    records, ending, work = Records(MemoryKeyValue()), asyncio.Event(), Work()
    async with running_owners(records) as one, running_owners(records) as other, asyncio.TaskGroup() as tasks:
        doing = tasks.create_task(in_turn(one, "a", work, asyncio.Event()))
        await eventually(lambda: _is(work.doing, 1))
        waiting = tasks.create_task(in_turn(other, "a", work, ending))
        await eventually(lambda: _members_of_two(records))
        ending.set()
        async with asyncio.timeout(30.0):
            await waiting
        assert work.begun == 1
        doing.cancel()


async def test_who_ends_does_not_wait_for_another_of_its_node() -> None:
    """One that reads the same for another application, say, and goes on."""
    records, ending, work = Records(MemoryKeyValue()), asyncio.Event(), Work()
    async with running_owners(records) as owners, asyncio.TaskGroup() as tasks:
        doing = tasks.create_task(in_turn(owners, "a", work, asyncio.Event()))
        await eventually(lambda: _is(work.doing, 1))
        waiting = tasks.create_task(in_turn(owners, "a", work, ending))
        ending.set()
        async with asyncio.timeout(30.0):
            await waiting
        assert (work.doing, work.begun) == (1, 1)
        doing.cancel()


async def _members_of_two(records: Records) -> None:
    await _members(records, 2)


@pytest.fixture
def _short_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_SECONDS", 0.02), ("SURE_SECONDS", 0.5), ("HOLD_SECONDS", 1.0)):
        monkeypatch.setattr(session, name, seconds)


async def _lost_and_done_again(records: Records, work: Work) -> None:
    await eventually(lambda: _is(work.doing, 1))
    records.broken = True
    await eventually(lambda: _is(work.doing, 0))
    records.broken = False
    await eventually(lambda: _is(work.begun, 2))


@pytest.mark.usefixtures("_short_sessions")
async def test_records_that_are_away() -> None:
    """End the work in time; it goes on when they are back."""
    records, work = Records(MemoryKeyValue()), Work()
    async with running_owners(records) as owners, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(in_turn(owners, "a", work, asyncio.Event()))
        await _lost_and_done_again(records, work)
        task.cancel()


@pytest.mark.usefixtures("_short_sessions")
async def test_work_that_fails_as_it_is_cut_off() -> None:
    """It is done again all the same: the turn was lost before."""
    records, work = Records(MemoryKeyValue()), Work()

    async def fail_late() -> None:
        try:
            await work()
        except asyncio.CancelledError:
            if work.begun == 1:
                raise StateError("it cannot be left well") from None
            raise

    async with running_owners(records) as owners, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(in_turn(owners, "a", fail_late, asyncio.Event()))
        await _lost_and_done_again(records, work)
        task.cancel()


async def test_records_that_are_away_while_the_turn_is_waited_for() -> None:
    """Nobody's work ends for that, which may be another's of the same group; it ends where none are to be expected."""
    records, work = Records(MemoryKeyValue()), Work()
    records.broken = True
    async with running_owners(records) as owners, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(in_turn(owners, "a", work, asyncio.Event()))
        await eventually(lambda: _is(records.asked > 0, True))
        records.broken = False
        await eventually(lambda: _is(work.begun, 1))
        task.cancel()
    records.broken, records.error = True, RecordsMissingError("no store")
    async with running_owners(records) as owners:
        with pytest.raises(RecordsMissingError, match="no store"):
            await in_turn(owners, "b", Work(), asyncio.Event())
