"""What a group of tasks raises."""

from __future__ import annotations

import asyncio

import pytest

from mesh.errors import BrokerUnavailableError, DeadlineExceededError
from mesh.tasks import only_error, task_group

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
