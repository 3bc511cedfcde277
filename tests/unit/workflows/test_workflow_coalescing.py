"""When turns are held back that could only see one more of many results, and when they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest

from mesh.workflows.actions import Action, Answer, Complete, CreateChild, CreateTimer, ScheduleTask
from mesh.workflows.coalescing import FEW, LONGEST, TURNS
from mesh.workflows.events import ChildCreated, Event, Failure, TaskCompleted
from mesh.workflows.messages import ChildDone, Raise, Start
from mesh.workflows.state import Status
from mesh.workflows.worker import TaskResult, TaskWork, TurnWork
from tests.support import virtual_time
from tests.support.workflow_node import EPOCH, REF, Node, live, node_of

DONE = Complete(10**6, Status.COMPLETED, "1")


def now() -> float:
    return asyncio.get_running_loop().time()


class Fan:
    """Code that asks for many activities at once and waits for them all; each comes back at a time of its own.

    Attributes:
        turns: Of each turn when it began and ended, and how many results it was the first to see.
        came: When each result came, in order.
    """

    def __init__(
        self, node: Node, back: Sequence[float], *, took: float = 0.01, also: Sequence[Action] = (), fails: int = -1
    ) -> None:
        """Have a node run it; ``back`` in seconds since the first turn ended, ``took`` what each turn takes."""
        self.turns: list[tuple[float, float, int]] = []
        self.came: list[float] = []
        self._back, self._took, self._also, self._fails = back, took, also, fails
        node.turn, node.task = self._turn, self._task

    @property
    def asked(self) -> float:
        """When the first turn ended."""
        return self.turns[0][1]

    def begun(self) -> list[float]:
        """Give when turns began, after the first, in seconds since that ended."""
        return [round(begun - self.asked, 6) for begun, _, _ in self.turns[1:]]

    def after(self, done: int, new: Sequence[Event]) -> Answer:
        """Go on with so many results, or wait."""
        return Answer((DONE,) if done == len(self._back) else ())

    async def _turn(self, work: TurnWork) -> Answer:
        new = [event for event in work.new if isinstance(event, TaskCompleted)]
        begun = now()
        await asyncio.sleep(self._took)
        self.turns.append((begun, now(), len(new)))
        if len(self.turns) == 1:
            return Answer((*(ScheduleTask(id, "a") for id in range(len(self._back))), *self._also))
        return self.after(sum(count for _, _, count in self.turns), work.new)

    async def _task(self, work: TaskWork) -> TaskResult:
        if work.task < len(self._back):
            await asyncio.sleep(self.asked + self._back[work.task] - now())
        self.came.append(now())
        return TaskResult(failure=Failure("E", "it failed")) if work.task == self._fails else TaskResult("1")


async def start(node: Node) -> None:
    await node.tell(Start("fan", "x"))


@live
async def test_a_fan_out_has_few_turns_and_ends_with_its_last_result() -> None:
    async with node_of() as node:
        fan = Fan(node, [0.001 * number for number in range(1, 1001)])
        await start(node)
        await node.ended()
        assert fan.begun()[0] == 0.001, "the first result has its turn at once"
        assert len(fan.turns) < 12
        assert fan.turns[-1][0] <= fan.came[-1] + 0.01, "it waits at most for a turn that is out"
        assert node.disk.writes <= len(fan.turns) + 3


@pytest.mark.parametrize(("took", "first"), [(0.001, 1.0), (0.01, 0.05), (0.02, 0.4), (0.2, 2.0), (1.5, 2.0)])
def test_a_turn_is_held_back_within_bounds(took: float, first: float) -> None:
    async def check() -> None:
        async with node_of() as node:
            fan = Fan(node, [first + 0.01 * number for number in range(1000)], took=took)
            await start(node)
            await node.ended()
            assert fan.turns[1][0] == pytest.approx(fan.came[0])
            for last, turn in zip(fan.turns[1:], fan.turns[2:-1], strict=False):
                most = min(last[1] - fan.asked, TURNS * (last[1] - last[0]), LONGEST)
                assert 0 <= turn[0] - last[1] <= most + 1e-6
            held = [turn[0] - last[1] for last, turn in zip(fan.turns[1:], fan.turns[2:-1], strict=False)]
            assert max(held) > 0.5 * min(first, TURNS * took, LONGEST)

    virtual_time.run(check())


@pytest.mark.parametrize("size", [FEW - 1, FEW])
def test_who_waits_for_few_has_a_turn_for_each_result(size: int) -> None:
    async def check() -> None:
        async with node_of() as node:
            fan = Fan(node, [1 + 0.02 * number for number in range(size)])
            await start(node)
            await node.ended()
            assert (len(fan.turns) == 1 + size) == (size < FEW)

    virtual_time.run(check())


@live
async def test_results_that_are_rare_have_their_turns_at_once() -> None:
    async with node_of() as node:
        fan = Fan(node, [0.5 * number for number in range(1, 21)])
        await start(node)
        await node.ended()
        assert [begun for begun, _, _ in fan.turns[1:]] == pytest.approx(fan.came)


class _Pipeline(Fan):
    """Does something for each result."""

    def __init__(self, node: Node, do: Callable[[int], Answer]) -> None:
        super().__init__(node, [1 + 0.02 * number for number in range(20)])
        self._do = do

    def after(self, done: int, new: Sequence[Event]) -> Answer:
        return super().after(done, new) if done >= 20 else self._do(done)


@pytest.mark.parametrize(
    "do",
    [
        lambda done: Answer((ScheduleTask(100 + done, "a", app="elsewhere"),)),
        lambda done: Answer((CreateTimer(100 + done, (int(EPOCH) + 10**6, 0)),)),
        lambda done: Answer((CreateChild(100 + done, f"child{done}", "fan"),)),
        lambda done: Answer(custom_status=f'"{done} of 20"'),
    ],
    ids=["activity", "timer", "child", "custom status"],
)
def test_who_goes_on_with_each_result_is_not_held_back(do: Callable[[int], Answer]) -> None:
    async def check() -> None:
        async with node_of() as node:
            forward = node.dispatch.task

            def here(ref: Any, task: int, name: str, app: str | None) -> None:
                if app is None:
                    forward(ref, task, name, app)

            node.dispatch.task = here  # type: ignore[method-assign]

            async def others(_: str, message: object) -> Any:
                await asyncio.Event().wait()

            node.tell_others = others
            fan = _Pipeline(node, do)
            await start(node)
            await node.ended()
            assert [begun for begun, _, _ in fan.turns[1:]] == pytest.approx(fan.came)

    virtual_time.run(check())


# What ends it

BACK = [1.0, 1.2, *[100.0] * 18]
"""The first result is seen from 1.0 to 1.1; the second one would be held back until 2.1."""


async def _raise(node: Node) -> None:
    await node.tell(Raise("e"))


async def _child(node: Node) -> None:
    child = next(event for event in node.events() if isinstance(event, ChildCreated))
    await node.tell(ChildDone("x", child.id, "shop", result="1"))


async def _nothing(_: Node) -> None:
    pass


@pytest.mark.parametrize("at", [1.5, 1.05], ids=["while it is held back", "while a turn is out"])
@pytest.mark.parametrize("what", ["nothing", "event", "child", "timer", "failure"])
def test_anything_but_one_more_result_has_its_turn_at_once(what: str, at: float) -> None:
    tell: Callable[[Node], Awaitable[None]] = {"event": _raise, "child": _child}.get(what, _nothing)

    async def check() -> None:
        async with node_of() as node:
            fires = EPOCH + now() + 0.1 + at
            also: dict[str, Action] = {
                "timer": CreateTimer(100, (int(fires), round(fires % 1 * 1e9))),
                "child": CreateChild(100, "child", "fan"),
            }
            node.tell_others = partial(_hang)
            back = [*BACK[:2], at, *BACK[3:]] if what == "failure" else BACK
            fan = Fan(node, back, took=0.1, also=[also[what]] if what in also else [], fails=2)
            await start(node)
            await asyncio.sleep(0.1 + at)
            await tell(node)
            await asyncio.sleep(10)
            expected = [1.0, 2.1] if what == "nothing" else [1.0, 1.5] if at == 1.5 else [1.0, 1.1]
            assert fan.begun()[:2] == pytest.approx(expected, abs=0.002)

    virtual_time.run(check())


async def _hang(*_: object) -> Any:
    await asyncio.Event().wait()


@live
async def test_a_new_owner_does_not_know_how_long_it_went_and_begins_at_once() -> None:
    async with node_of() as node:
        fan = Fan(node, [1.0, 1.2, 1.3, *[1.4] * 17], took=0.1)
        await start(node)
        await asyncio.sleep(0.1 + 1.15)
        await node.engine.leave(REF.partition)
        node.engine.take(REF.partition, 7)
        assert (await node.ended()).status == Status.COMPLETED
        assert fan.turns[-1][0] < fan.asked + 3.0
