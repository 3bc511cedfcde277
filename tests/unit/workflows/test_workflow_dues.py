"""When there is something to do: each instance at its last time alone, never early, whatever becomes of the clock."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from mesh.workflows.dues import LOOK_SECONDS, STALE, Alarm, Dues
from mesh.workflows.worker import Ref
from tests.support import virtual_time

REFS = [Ref(partition, id) for partition in (0, 1) for id in "abc"]
TIMES = st.floats(0, 100)


@given(
    st.lists(
        st.tuples(st.just("set"), st.sampled_from(REFS), st.none() | TIMES)
        | st.tuples(st.just("take"), st.none(), TIMES)
        | st.tuples(st.just("drop"), st.sampled_from(REFS), st.none())
    )
)
def test_dues_are_taken_once_in_order_when_their_time_has_come(doings: list[tuple[str, Ref, float | None]]) -> None:
    dues, model = Dues(), dict[Ref, float]()
    for what, ref, at in doings:
        if what == "set":
            dues.set(ref, at)
            model.pop(ref, None)
            if at is not None:
                model[ref] = at
        elif what == "drop":
            dues.drop(ref.partition)
            model = {each: due for each, due in model.items() if each.partition != ref.partition}
        else:
            assert at is not None
            due = sorted((when, each) for each, when in model.items() if when <= at)
            assert list(dues.take(at)) == [each for _, each in due]
            for _, each in due:
                del model[each]
        assert len(dues) == len(model)
        assert dues.first == min(model.values(), default=None)


def test_what_is_set_anew_again_and_again_takes_no_more_room() -> None:
    dues = Dues()
    for at in range(20 * STALE):
        dues.set(REFS[0], float(at))
    assert len(dues._heap) <= STALE + 2
    assert dues.first == 20 * STALE - 1


def test_an_alarm_is_exact_never_early_and_bears_a_clock_that_is_set() -> None:
    offset = 0.0
    rung: list[float] = []

    def clock() -> float:
        return asyncio.get_running_loop().time() + offset

    async def live() -> None:
        nonlocal offset
        alarm = Alarm(clock, lambda: rung.append(clock()))
        start = clock()
        alarm.set(start + 20)
        alarm.set(start + 30)  # Later than it rings anyway.
        alarm.set(start + 12.345)
        await asyncio.sleep(12.344)
        assert not rung
        await asyncio.sleep(0.002)
        assert rung == [start + 12.345]
        alarm.set(clock() + 10)
        offset = -100.0  # Set back: it rings later.
        await asyncio.sleep(50)
        assert len(rung) == 1
        offset = 0.0
        await asyncio.sleep(LOOK_SECONDS)
        assert len(rung) == 2
        alarm.set(clock() + 1)
        alarm.stop()
        await asyncio.sleep(10)
        assert len(rung) == 2

    virtual_time.run(live())
