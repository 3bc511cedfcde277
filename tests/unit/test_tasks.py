"""What a group of tasks raises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.errors import BrokerUnavailableError, DeadlineExceededError, StreamEndedError
from mesh.tasks import Later, only_error, task_group

AWAY, LATE, BROKEN = BrokerUnavailableError("away"), DeadlineExceededError("late"), ValueError("broken")


@pytest.mark.parametrize(
    ("failures", "raised"),
    [
        ([BROKEN], BROKEN),
        ([AWAY], AWAY),
        ([AWAY, LATE], AWAY),
        ([LATE, AWAY, AWAY], LATE),
    ],
)
async def test_what_callers_can_name_is_raised(failures: list[Exception], raised: Exception) -> None:
    """Several that fail at once, as when a broker is away, are no group: those who ask look for a ``MeshError``."""

    async def fail(error: Exception) -> None:
        await ready.wait()
        raise error

    ready = asyncio.Event()
    with pytest.raises(type(raised)) as caught:
        async with task_group() as tasks:
            for each in failures:
                tasks.create_task(fail(each))
            ready.set()
    assert caught.value is raised


@pytest.mark.parametrize("failures", [[AWAY, BROKEN], [BROKEN, BROKEN]])
def test_what_nobody_foresees_stays_whole(failures: list[Exception]) -> None:
    with pytest.raises(ExceptionGroup) as caught, only_error():
        raise ExceptionGroup("several", failures)
    assert list(caught.value.exceptions) == failures


def test_groups_in_groups() -> None:
    with pytest.raises(BrokerUnavailableError), only_error():
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [AWAY, LATE]), LATE])


async def test_what_is_entered_later_is_left_with_it() -> None:
    """In a task of its own: it outlives the one that asked for it."""
    told: list[str] = []

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        async with asyncio.timeout(60):  # Must be left in the task that has entered it.
            told.append("entered")
            yield
            told.append("left")

    later = Later()
    async with later.run():
        async with task_group() as tasks:
            tasks.create_task(later.enter(context()))
        assert told == ["entered"]
    assert told == ["entered", "left"]


async def test_what_cannot_be_entered_later_is_told_to_who_asks() -> None:
    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        raise AWAY
        yield

    later = Later()
    async with later.run():
        with pytest.raises(BrokerUnavailableError):
            await later.enter(context())


async def test_who_asks_is_cancelled_meanwhile() -> None:
    """What was asked for is entered nonetheless; where that fails, nobody has to be told."""
    told: list[str] = []

    @asynccontextmanager
    async def context(error: Exception | None) -> AsyncIterator[None]:
        await go.wait()
        if error is not None:
            raise error
        entered.set()
        yield
        told.append("left")

    later, go, entered = Later(), asyncio.Event(), asyncio.Event()
    async with later.run():
        async with task_group() as tasks:
            asking = [tasks.create_task(later.enter(context(error))) for error in (None, AWAY)]
            await asyncio.sleep(0)
            for each in asking:
                each.cancel()
        go.set()
        await entered.wait()
    assert told == ["left"]


async def test_nothing_is_entered_once_all_ends() -> None:
    """Who asks is told: also where the task that was to enter it never took its first step."""

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        yield

    async def ask() -> None:
        with pytest.raises(StreamEndedError):
            await later.enter(context())

    async def fail() -> None:
        raise AWAY

    later = Later()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        with pytest.raises(BrokerUnavailableError):
            async with later.run():
                later._tasks.create_task(fail())  # Its end ends the others.
                tasks.create_task(ask())
                await asyncio.Event().wait()
        await ask()


async def test_what_fails_once_it_is_entered_ends_all() -> None:
    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        async with task_group() as tasks:
            tasks.create_task(fails())
            yield

    async def fails() -> None:
        await go.wait()
        raise AWAY

    later, go = Later(), asyncio.Event()
    with pytest.raises(BrokerUnavailableError):
        async with later.run():
            await later.enter(context())
            go.set()
            await asyncio.Event().wait()
