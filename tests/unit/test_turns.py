"""Turns: one at a time, the next when the holder leaves or is silent."""

from __future__ import annotations

import asyncio

import pytest

from mesh.blocks import turns
from mesh.blocks.turns import in_turn
from mesh.errors import MeshError, RecordsMissingError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.store import Item, KeyValueStateStore
from tests.support.eventually import eventually


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(turns, "SURE_SECONDS", 0.5)


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

    broken, asked = False, 0
    error: MeshError = StateError("away")

    async def write(self, items: list[Item]) -> None:  # type: ignore[override]
        self.asked += 1
        if self.broken:
            raise self.error
        await super().write(items)


async def test_one_at_a_time() -> None:
    """Who leaves lets the next one in."""
    records, all_work = Records(MemoryKeyValue()), [Work() for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        taking = [tasks.create_task(in_turn(records, "a", work, asyncio.Event())) for work in all_work]
        for begun in (1, 2, 3):
            await eventually(lambda begun=begun: _is(sum(work.begun for work in all_work), begun))
            (now,) = (index for index, work in enumerate(all_work) if work.doing)
            taking[now].cancel()
            await asyncio.wait([taking[now]])
    assert [work.begun for work in all_work] == [1, 1, 1]
    assert await records.get("a", strong=True) is None


def _is(got: int, wanted: int) -> None:
    assert got == wanted


class Slow(KeyValueStateStore):
    """Its first write is done long before it is answered, or fails although it is done."""

    fails, begun = False, 0

    async def write(self, items: list[Item]) -> None:  # type: ignore[override]
        await super().write(items)
        self.begun += 1
        if self.begun == 1 and self.fails:
            raise StateError("no answer")
        if self.begun == 1:
            await asyncio.Event().wait()


async def test_who_leaves_while_it_takes_its_turn_gives_it_back() -> None:
    """Else nobody had it until its record ends."""
    records = Slow(MemoryKeyValue())
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(in_turn(records, "a", Work(), asyncio.Event()))
        await eventually(lambda: _is(records.begun, 1))
        taking.cancel()
        await asyncio.wait([taking])
    assert await records.get("a", strong=True) is None


async def test_a_turn_that_may_have_been_taken_is_given_back() -> None:
    """So that it can be taken again, by whoever comes first."""
    records, work = Slow(MemoryKeyValue()), Work()
    records.fails = True
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(in_turn(records, "a", work, asyncio.Event()))
        await eventually(lambda: _is(work.doing, 1))
        assert records.begun >= 3  # Taken, given back, taken.
        taking.cancel()


async def test_keys_are_apart() -> None:
    """Different turns do not wait for each other."""
    records, work = Records(MemoryKeyValue()), Work()
    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(in_turn(records, key, work, asyncio.Event())) for key in "ab"]
        await eventually(lambda: _is(work.doing, 2))
        for task in both:
            task.cancel()


async def test_it_ends_with_the_work() -> None:
    """Its error is told, and the turn is given back."""
    records = Records(MemoryKeyValue())

    async def fail() -> None:
        raise StateError("broken")

    with pytest.raises(StateError, match="broken"):
        await in_turn(records, "a", fail, asyncio.Event())
    assert await records.get("a", strong=True) is None


async def test_a_lost_turn_ends_the_work() -> None:
    """And it is begun anew when the turn is back."""
    records, work = Records(MemoryKeyValue()), Work()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(in_turn(records, "a", work, asyncio.Event()))
        await eventually(lambda: _is(work.doing, 1))
        await records.write([Item("a", b"somebody")])
        await eventually(lambda: _is(work.doing, 0))
        await records.write([Item("a", None)])
        await eventually(lambda: _is(work.begun, 2))
        task.cancel()


async def test_who_ends_waits_no_more() -> None:
    """Neither one who has not had the turn yet, nor one who has lost it."""
    records, ending, work = Records(MemoryKeyValue()), asyncio.Event(), Work()
    async with asyncio.timeout(30.0), asyncio.TaskGroup() as tasks:
        tasks.create_task(in_turn(records, "a", work, ending))
        await eventually(lambda: _is(work.doing, 1))
        tasks.create_task(in_turn(records, "a", work, ending))
        ending.set()
        await records.write([Item("a", b"somebody")])
    assert work.begun == 1


async def test_records_that_are_away() -> None:
    """End the work in time; it goes on when they are back."""
    records, work = Records(MemoryKeyValue()), Work()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(in_turn(records, "a", work, asyncio.Event()))
        await eventually(lambda: _is(work.doing, 1))
        records.broken = True
        await eventually(lambda: _is(work.doing, 0))
        records.broken = False
        await records.write([Item("a", None)])
        await eventually(lambda: _is(work.begun, 2))
        task.cancel()


async def test_records_that_are_away_while_the_turn_is_waited_for() -> None:
    """Nobody's work ends for that, which may be another's of the same group; it ends where none are to be expected."""
    records, work = Records(MemoryKeyValue()), Work()
    records.broken = True
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(in_turn(records, "a", work, asyncio.Event()))
        await eventually(lambda: _is(records.asked > 1, True))
        records.broken = False
        await eventually(lambda: _is(work.begun, 1))
        task.cancel()
    records.broken, records.error = True, RecordsMissingError("no store")
    with pytest.raises(RecordsMissingError, match="no store"):
        await in_turn(records, "b", Work(), asyncio.Event())


async def test_no_clock_but_the_stores_ends_a_turn() -> None:
    """Neither taken nor renewed."""
    records, work = Leases(MemoryKeyValue()), Work()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(in_turn(records, "a", work, asyncio.Event()))
        await eventually(lambda: _is(len(records.leases) > 2, True))
        task.cancel()
    assert all(records.leases)


class Leases(KeyValueStateStore):
    """Notes which writes are leases."""

    def __init__(self, key_value: MemoryKeyValue) -> None:
        super().__init__(key_value)
        self.leases: list[bool] = []

    async def write(self, items: list[Item]) -> None:  # type: ignore[override]
        self.leases += [self._operation(item).lease for item in items if item.value is not None]
        await super().write(items)
