"""Who waits for an answer of an owner is told when that is gone, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from mesh import address
from mesh.errors import StateError, StreamBrokenError
from mesh.ownership.table import Member, Table
from mesh.ownership.watching import Watch
from tests.support import virtual_time

NODE, OTHER = (address.owner("default", "app", node) for node in ("node", "another"))
HERE = Table.new(1).joined("s", Member("app", "node"))


@dataclass
class Owners:
    """Those of one kind, as the store has them."""

    table: Table = HERE
    read: int = 0
    fails: bool = False
    still: bool = False
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.get, self.is_gone)

    async def get(self, kind: str) -> Table:
        self.read += 1
        if self.fails:
            raise StateError("the store is away")
        return self.table

    async def is_gone(self, to: address.Address) -> bool:
        await asyncio.sleep(1.0 if self.still else 0.01)
        return to == NODE and not self.still


def run(play: Callable[[Owners], Awaitable[None]]) -> Owners:
    owners = Owners()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(owners.watch.run())
            await play(owners)
            watching.cancel()

    virtual_time.run(main())
    return owners


async def answers(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


def test_an_answer_that_comes_soon_costs_no_read() -> None:
    async def play(owners: Owners) -> None:
        for _ in range(20):
            assert await owners.watch.wait("kind", "s", NODE, answers(1.9)) == "done"

    assert run(play).read == 0


def test_an_owner_that_is_there_is_waited_for() -> None:
    async def play(owners: Owners) -> None:
        assert await owners.watch.wait("kind", "s", NODE, answers(100.0)) == "done"
        await asyncio.sleep(100.0)

    assert 50 < run(play).read < 110, "one for each second, and none once nobody waits"


def test_an_owner_that_is_gone_is_not() -> None:
    """Whoever else it was asked by learns it too; what was asked of others goes on."""

    async def play(owners: Owners) -> None:
        loop = asyncio.get_running_loop()
        owners.table = HERE.joined("other", Member("app", "another"))
        async with asyncio.TaskGroup() as tasks:
            lost = [tasks.create_task(lose(owners)) for _ in range(3)]
            kept = tasks.create_task(owners.watch.wait("kind", "other", OTHER, answers(20.0)))
            await asyncio.sleep(5.0)
            owners.table, began = owners.table.without({"s"}), loop.time()
            await asyncio.wait(lost)
            assert loop.time() - began < 4.0
            assert await kept == "done"

    async def lose(owners: Owners) -> None:
        with pytest.raises(StreamBrokenError, match="it may have been done"):
            await owners.watch.wait("kind", "s", NODE, answers(1000.0))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(play)


def test_an_answer_that_is_on_its_way_is_taken() -> None:
    """Who hands over what it has leaves the table, and what it has answered may arrive later."""

    async def play(owners: Owners) -> None:
        asked = asyncio.ensure_future(owners.watch.wait("kind", "s", NODE, answers(10.9)))
        await asyncio.sleep(10.0)
        owners.table = Table.new(1)
        assert await asked == "done"

    run(play)


def test_an_owner_that_stands_still_is_waited_for() -> None:
    """Once it goes on, it refuses what it had not begun; that goes to the next owner, and nothing fails."""

    async def play(owners: Owners) -> None:
        owners.table, owners.still = Table.new(1), True
        assert await owners.watch.wait("kind", "s", NODE, answers(15.0)) == "done"

    run(play)


def test_a_store_that_fails_says_nothing() -> None:
    async def play(owners: Owners) -> None:
        owners.fails = True
        assert await owners.watch.wait("kind", "gone", NODE, answers(30.0)) == "done"

    run(play)


def test_a_caller_that_gives_up_is_cancelled() -> None:
    async def play(owners: Owners) -> None:
        owners.table = Table.new(1)
        asked = asyncio.ensure_future(owners.watch.wait("kind", "s", NODE, answers(100.0)))
        await asyncio.sleep(1.0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    run(play)
