"""Limits that cost no timer: when they strike, that they can be put off, and whose a cancellation is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from mesh.deadlines import SWEEP_INTERVAL, Deadlines
from tests.support import virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def struck_after(seconds: float | None, work: Coroutine[object, object, None]) -> float:
    """Give when the limit struck, in seconds from when it was entered."""
    began = now()
    with pytest.raises(TimeoutError), Deadlines().limit(seconds):
        await work
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()
    return now() - began


@pytest.mark.parametrize(("seconds", "late"), [(0.3, 0.0), (4.9, 0.0), (5.0, SWEEP_INTERVAL), (60.0, SWEEP_INTERVAL)])
def test_a_limit_strikes_when_its_time_is_over(seconds: float, late: float) -> None:
    struck = virtual_time.run(struck_after(seconds, asyncio.sleep(100.0)))
    assert seconds - 0.001 <= struck <= seconds + late + 0.001


@pytest.mark.parametrize("seconds", [0.3, 60.0, None])
def test_what_is_in_time_leaves_nothing_behind(seconds: float | None) -> None:
    async def run() -> None:
        deadlines = Deadlines()
        with deadlines.limit(seconds):
            await asyncio.sleep(0.2)
        assert not deadlines._watched
        await asyncio.sleep(100.0)

    virtual_time.run(run())


@pytest.mark.parametrize("seconds", [0.3, 60.0])
def test_the_time_stands_still_while_it_is_put_off_and_begins_anew(seconds: float) -> None:
    async def run() -> float:
        began = now()
        with pytest.raises(TimeoutError), Deadlines().limit(seconds) as limit:
            await asyncio.sleep(0.2)
            limit.put_off(waits=True)
            await asyncio.sleep(1000.0)
            limit.put_off(waits=False)
            await asyncio.sleep(1000.0)
        return now() - began

    assert 1000.2 + seconds <= virtual_time.run(run()) <= 1000.2 + seconds + SWEEP_INTERVAL + 0.001


@pytest.mark.parametrize("seconds", [0.3, 60.0])
@pytest.mark.parametrize("late", [False, True])
def test_a_cancellation_of_others_stays_theirs(seconds: float, *, late: bool) -> None:
    """Also one that comes when the limit has just struck."""

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        with Deadlines().limit(seconds):
            if not late:
                task.cancel()
            try:
                await asyncio.sleep(1000.0)
            except asyncio.CancelledError:
                if late:
                    task.cancel()
                raise

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work())
        assert task.cancelled()

    virtual_time.run(run())
