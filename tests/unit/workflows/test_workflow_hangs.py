"""Nothing waits for ever because a store failed once, an instance is asked too much, or what it has is lost again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mesh.errors import DeadlineExceededError, MeshError
from mesh.workflows.actions import Answer, Complete, ScheduleTask, SendEvent
from mesh.workflows.contracts import Loaded
from mesh.workflows.errors import WorkflowExistsError, WorkflowUnreadableError
from mesh.workflows.events import ChildFailed
from mesh.workflows.messages import AnyMessage, Raise, Terminate, Told
from mesh.workflows.state import Status
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork
from tests.support import virtual_time
from tests.support.workflow_node import REF, Node, answers, clock, live, node_of
from tests.support.workflow_programs import answer as run_program
from tests.support.workflows import Disk, Fault


def fail_once(disk: Disk, fault: Fault, *, after: int = 0) -> None:
    """Have one access to the store fail, ``after`` so many others."""
    faults: Iterator[Fault] = iter([Fault.NONE] * after + [fault])
    disk.fault = lambda: next(faults, Fault.NONE)


async def evict(node: Node) -> None:
    """Have nothing of ``REF`` in memory, which may take one instance."""
    await node.start(["event", "e"], id="another")
    await asyncio.sleep(1)
    entry = node.engine._processor.find(REF)
    assert entry is None or not entry.known


@live
async def test_who_waits_is_told_of_what_a_write_of_unknown_outcome_has_done() -> None:
    async with node_of() as node, asyncio.TaskGroup() as tasks:
        await node.start(["event", "e"])
        await asyncio.sleep(1)
        waiting = tasks.create_task(node.ended())
        await asyncio.sleep(1)
        fail_once(node.disk, Fault.AFTER)
        with pytest.raises(MeshError):
            await node.tell(Terminate())
        await asyncio.sleep(10)
        assert waiting.done()
        waiting.cancel()


@live
async def test_nothing_is_kept_of_who_waited_in_vain() -> None:
    async with node_of(memory_bytes=1) as node:
        await node.start(["event", "e"])
        await evict(node)
        for _ in range(3):
            with pytest.raises(DeadlineExceededError):
                await node.engine.wait(REF, lambda state: state is not None and state.ended is not None, clock() + 1)
        await evict(node)
        assert node.engine._processor.find(REF) is None


@pytest.mark.parametrize("known", [False, True])
def test_what_cannot_be_told_of_an_instance_fails_who_asks_and_nothing_else(*, known: bool) -> None:
    def until(state: object) -> bool:
        raise ValueError("no")

    async def run() -> None:
        async with node_of(memory_bytes=10**6 if known else 1) as node:
            go_on = asyncio.Event()

            async def task(work: TaskWork) -> TaskResult:
                await go_on.wait()
                return TaskResult("1")

            node.task = task
            await node.start(["task", "a"])
            await asyncio.sleep(1)
            if not known:
                await evict(node)
            with pytest.raises(ValueError, match="no"):
                await node.engine.wait(REF, until, clock() + 10)
            go_on.set()
            assert (await node.ended()).status == Status.COMPLETED

    virtual_time.run(run())


@live
async def test_a_turn_whose_instance_could_not_be_read_is_asked_for_again() -> None:
    async with node_of(memory_bytes=1) as node:
        wanted: list[str] = []
        node.dispatch.turn = lambda ref, name: wanted.append(ref.id)  # type: ignore[method-assign]
        await node.start(["task", "a"])
        await evict(node)
        del wanted[:]
        fail_once(node.disk, Fault.BEFORE)
        assert await node.engine.open_turn(REF) is None
        await asyncio.sleep(10)
        assert wanted == [REF.id]


@pytest.mark.parametrize("result", [True, False])
def test_what_comes_of_an_execution_that_is_over_is_not_taken_for_that_of_the_next(*, result: bool) -> None:
    """Its activities have the same numbers: an activity that was not taken would be forgotten, or one run twice."""

    async def run() -> None:
        async with node_of() as node:
            turns = iter(
                [
                    [ScheduleTask(1, "a")],
                    [Complete(2, Status.CONTINUED_AS_NEW, "1")],
                    [ScheduleTask(1, "a")],
                    [Complete(2, Status.COMPLETED)],
                ]
            )
            out: list[TaskWork] = []

            async def turn(_: TurnWork) -> Answer:
                return Answer(tuple(next(turns)))

            async def task(work: TaskWork) -> None:
                out.append(work)

            node.turn, node.task = turn, task
            await node.start()
            await asyncio.sleep(1)
            await node.tell(Raise("go"))
            await asyncio.sleep(1)
            former, latter = out
            if result:
                node.engine.resolved(REF, former, TaskResult("1"))
            else:
                node.engine.task_lost(REF, former, begun=False)
            await asyncio.sleep(1)
            assert out == [former, latter]
            node.engine.task_lost(REF, latter, begun=False)
            await asyncio.sleep(1)
            assert len(out) == 3
            node.engine.resolved(REF, out[2], TaskResult("1"))
            assert (await node.ended()).status == Status.COMPLETED

    virtual_time.run(run())


@live
async def test_a_timer_fires_though_its_time_comes_while_the_instance_cannot_be_read() -> None:
    async with node_of(memory_bytes=1) as node:
        await node.start(["timer", 100.0])
        await asyncio.sleep(1)
        await evict(node)
        await asyncio.sleep(97)
        node.disk.pause = lambda: asyncio.sleep(3)
        fail_once(node.disk, Fault.BEFORE)
        with pytest.raises(MeshError):
            await node.tell(Raise("e"))
        node.disk.pause = None
        await asyncio.sleep(10)
        assert node.state().status == Status.COMPLETED


@live
async def test_a_child_that_is_refused_while_its_parent_cannot_be_read_has_failed() -> None:
    async with node_of(memory_bytes=1) as node:
        refuse = asyncio.Event()

        async def tell(instance: str, message: AnyMessage) -> Told:
            await refuse.wait()
            raise WorkflowExistsError("there is one")

        node.tell_others = tell
        await node.start(["child", []])
        await asyncio.sleep(1)
        await evict(node)
        fail_once(node.disk, Fault.BEFORE)
        refuse.set()
        await asyncio.sleep(10)
        assert node.state().status == Status.FAILED
        assert any(isinstance(event, ChildFailed) for event in node.events())


@live
async def test_an_instance_that_is_told_something_all_the_time_has_its_turns() -> None:
    async with node_of() as node, asyncio.TaskGroup() as tasks:
        node.disk.pause = lambda: asyncio.sleep(0.01)
        await node.start(["event", "e"], ["task", "a"])
        await asyncio.sleep(1)

        async def rain(wait: float) -> None:
            await asyncio.sleep(wait)  # So that there is always one more when a write has ended.
            for number in range(400):
                with suppress(MeshError):
                    await node.tell(Raise("e", None, f"{wait}-{number}"))

        raining = [tasks.create_task(rain(wait)) for wait in (0.0, 0.005)]
        await node.ended()
        assert not any(each.done() for each in raining)
        for each in raining:
            each.cancel()


@live
async def test_an_instance_whose_turns_are_lost_again_and_again_is_left_alone_for_longer_and_longer() -> None:
    async with node_of() as node:
        tried: list[float] = []

        async def turn(work: TurnWork) -> Answer:
            if work.ref == REF and len(tried) < 20:
                tried.append(clock())
                await asyncio.sleep(0.01)
                node.engine.turn_lost(work)
            return run_program(work)

        node.turn = turn
        await node.start(["task", "a"])
        for number in range(100):
            await node.start(["task", "a"], id=f"healthy{number}")
            await asyncio.sleep(1)
        assert 5 < len(tried) < 12
        assert tried[1] - tried[0] < 0.1, "a worker that is gone is no reason to wait"
        assert (await node.ended()).status == Status.COMPLETED


@live
async def test_an_activity_that_is_lost_again_and_again_is_begun_later_and_later() -> None:
    async with node_of() as node:
        tried: list[float] = []

        async def task(work: TaskWork) -> TaskResult | None:
            tried.append(clock())
            if len(tried) == 12:
                return TaskResult("1")
            await asyncio.sleep(0.01)
            node.engine.task_lost(REF, work, begun=True)
            return None

        node.task = task
        await node.start(["task", "a"])
        await asyncio.sleep(100)
        assert 5 < len(tried) < 12
        assert tried[1] - tried[0] < 0.1
        assert (await node.ended()).status == Status.COMPLETED
        assert node.engine._processor.find(Ref(0, "o")) is None


@live
async def test_a_stalled_instance_whose_turn_is_lost_is_tried_again() -> None:
    async with node_of() as node:

        async def turn(work: TurnWork) -> Answer:
            if node.dispatch.turns == 1:
                node.engine.turn_impossible(work, "too large")
            elif node.dispatch.turns == 2:
                node.engine.turn_lost(work)
            return run_program(work)

        node.turn = turn
        await node.start(["task", "a"])
        await asyncio.sleep(1)
        assert node.state().status == Status.STALLED
        node.engine.worker_attached()
        await asyncio.sleep(10)
        assert node.state().status == Status.COMPLETED


@live
async def test_what_comes_of_an_instance_that_cannot_be_read_does_not_have_it_read_again_and_again() -> None:
    async with node_of(memory_bytes=1) as node:
        reads = 0

        async def load(*_: object) -> None:
            nonlocal reads
            reads += 1
            raise WorkflowUnreadableError("it is damaged")

        async def task(work: TaskWork) -> TaskResult | None:
            await asyncio.sleep(10)
            return TaskResult("1")

        node.task = task
        await node.start(["task", "a"])
        await evict(node)
        node.commits.load = load  # type: ignore[assignment, method-assign]
        await asyncio.sleep(100)
        assert reads == 1
        with pytest.raises(WorkflowUnreadableError):
            await node.engine.waiting(REF, clock() + 1)


@live
async def test_what_cannot_be_purged_when_it_expires_is_purged_later() -> None:
    async with node_of(retention=lambda _: 50.0) as node:
        await node.start()
        await asyncio.sleep(1)
        assert node.disk.until
        fail_once(node.disk, Fault.BEFORE)
        await asyncio.sleep(70)
        assert node.disk.keys(), "it is read in vain"
        fail_once(node.disk, Fault.BEFORE, after=1)  # Then it is deleted in vain.
        await asyncio.sleep(70)
        assert not node.disk.keys()


@live
async def test_many_whose_time_has_come_are_read_some_at_a_time() -> None:
    async with node_of(memory_bytes=1) as node:
        for number in range(600):
            await node.start(["timer", 1000.0], id=f"t{number}")
        await asyncio.sleep(1)
        reading = most = 0
        load = node.commits.load

        async def counted(partition: int, instance: str) -> Loaded | None:
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            await asyncio.sleep(1)
            reading -= 1
            return await load(partition, instance)

        node.commits.load = counted  # type: ignore[method-assign]
        await asyncio.sleep(1020)
        assert most <= 300
        assert len(node.disk.ended) == 600


@live
async def test_stalled_instances_out_of_memory_are_tried_when_a_worker_comes() -> None:
    async with node_of(memory_bytes=1) as node:
        works = True

        async def turn(work: TurnWork) -> Answer:
            if not works:
                node.engine.turn_impossible(work, "too large")
            return run_program(work)

        works, node.turn = False, turn
        for number in range(10):
            await node.start(["task", "a"], id=f"s{number}")
        await asyncio.sleep(5)
        works = True
        node.engine.worker_attached()
        await asyncio.sleep(20)
        assert len(node.disk.ended) == 10


@live
async def test_who_does_not_answer_keeps_nobody_else_from_being_told() -> None:
    async with node_of() as node:

        async def tell(instance: str, message: AnyMessage) -> Told:
            if instance.startswith("dead"):
                await asyncio.Event().wait()
            return Told()

        node.tell_others = tell
        node.turn = answers(
            *(SendEvent(number, f"dead{number}", "e", app="dead") for number in range(2000)),
            SendEvent(3000, "other", "e"),
        )
        await node.start()
        await asyncio.sleep(1)
        assert [app for app, id, _ in node.told if id == "other"] == ["shop"]
        assert len(node.told) <= 200


@live
async def test_a_turn_that_is_made_when_nobody_waits_for_it_any_more_is_asked_for_again() -> None:
    async with node_of(memory_bytes=1) as node, asyncio.TaskGroup() as tasks:
        wanted: list[str] = []
        node.dispatch.turn = lambda ref, name: wanted.append(ref.id)  # type: ignore[method-assign]
        await node.start(["task", "a"])
        await evict(node)
        del wanted[:]
        opening = tasks.create_task(node.engine.open_turn(REF))
        await asyncio.sleep(0)
        entry = node.engine._processor.find(REF)
        assert entry is not None
        (waiting,) = entry.mailbox.calls
        make = waiting.make

        def made() -> object:
            asyncio.get_running_loop().call_soon(opening.cancel)
            return make()

        waiting.make = made
        await asyncio.sleep(1)
        assert opening.cancelled()
        assert wanted == [REF.id]
        assert await node.engine.open_turn(REF) is not None
