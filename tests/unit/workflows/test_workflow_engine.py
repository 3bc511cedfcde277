"""The engine by its parts: what is written together, what stays out of memory, when it looks, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.errors import DeadlineExceededError, StateError
from mesh.ownership.errors import NobodyHostsError, NotOwnerError
from mesh.workflows.actions import Action, Answer, Complete, CreateChild, ScheduleTask, SendEvent
from mesh.workflows.engine import Engine
from mesh.workflows.errors import (
    WorkflowEndedError,
    WorkflowExistsError,
    WorkflowForbiddenError,
    WorkflowNotEndedError,
    WorkflowNotFoundError,
    WorkflowTooLargeError,
)
from mesh.workflows.events import ChildFailed, EventRaised, Failure, TaskCompleted, TaskScheduled, TimerFired
from mesh.workflows.messages import AnyMessage, ChildDone, Purge, Raise, Resume, Start, Suspend, Terminate, Told
from mesh.workflows.state import State, Status
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork
from tests.support import virtual_time
from tests.support.workflow_programs import answer as run_program
from tests.support.workflows import Disk, MemoryCommits, PullDispatch

EPOCH = 1_700_000_000.0
REF = Ref(0, "o")
APP = "shop"


def clock() -> float:
    return EPOCH + asyncio.get_running_loop().time()


class _Node:
    """An engine with a worker that runs programs, and what tests turn off and count."""

    def __init__(self, disk: Disk, tasks: asyncio.TaskGroup, **options: Any) -> None:
        self.disk = disk
        self.sure = True
        self.told: list[tuple[str, str, AnyMessage]] = []
        self.tell_others: Callable[[str, AnyMessage], Awaitable[Told]] = self._tell_here
        self.turn: Callable[[TurnWork], Awaitable[Answer]] = self._turn
        self.task: Callable[[TaskWork], Awaitable[TaskResult | None]] = self._task
        self.commits = MemoryCommits(disk)
        self.dispatch = PullDispatch(tasks, lambda work: self.turn(work), lambda work: self.task(work))
        self.engine = Engine(
            APP, self.commits, self.dispatch, self._deliver, lambda _: self.sure, clock=clock, **options
        )
        self.dispatch.engine = self.engine

    async def _turn(self, work: TurnWork) -> Answer:
        return run_program(work)

    async def _task(self, work: TaskWork) -> TaskResult:
        return TaskResult(json.dumps(json.loads(work.input or "") + "!"))

    async def _tell_here(self, instance: str, message: AnyMessage) -> Told:
        return await self.engine.tell(Ref(0, instance), message, clock() + 30)

    async def _deliver(self, app: str, instance: str, message: AnyMessage, until: float) -> Told:
        self.told.append((app, instance, message))
        return await self.tell_others(instance, message)

    async def tell(self, message: AnyMessage, id: str = REF.id, seconds: float = 30.0) -> Told:
        return await self.engine.tell(Ref(0, id), message, clock() + seconds)

    async def start(self, *steps: Sequence[object], id: str = REF.id, execution: str = "x") -> Told:
        return await self.tell(Start("program", execution, input=json.dumps(steps)), id)

    async def ended(self, id: str = REF.id) -> State:
        await self.engine.wait(Ref(0, id), lambda state: state is not None and state.ended is not None, clock() + 1000)
        return self.state(id)

    def state(self, id: str = REF.id) -> State:
        ref = Ref(0, id)
        return (self.disk.live.get(ref) or self.disk.ended[ref]).state

    def events(self, id: str = REF.id) -> Sequence[object]:
        ref = Ref(0, id)
        return (self.disk.live.get(ref) or self.disk.ended[ref]).history


@asynccontextmanager
async def _node(disk: Disk | None = None, epoch: int = 1, **options: Any) -> AsyncIterator[_Node]:
    disk = disk or Disk()
    async with asyncio.TaskGroup() as tasks:
        node = _Node(disk, tasks, **options)
        async with node.engine.run():
            node.engine.take(0, epoch)
            yield node
            node.dispatch.dead = True
    assert not disk.broken


def _live(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        virtual_time.run(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def _answers(*actions: Action) -> Callable[[TurnWork], Awaitable[Answer]]:
    async def turn(_: TurnWork) -> Answer:
        return Answer(actions)

    return turn


# Writes


@_live
async def test_a_chain_is_a_write_for_the_start_one_for_each_turn_and_one_at_the_end() -> None:
    async with _node() as node:
        await node.start(["task", "a"], ["task", "b"], ["task", "c"])
        state = await node.ended()
        await asyncio.sleep(1)
        assert state.status == Status.COMPLETED
        assert node.disk.writes == 1 + 4 + 1
        assert node.dispatch.activities == 3
        assert node.engine.loaded == (0, 0)


@_live
async def test_what_waits_for_the_same_instance_goes_in_one_write() -> None:
    async with _node() as node:
        await node.start(["event", "e"])
        await asyncio.sleep(1)
        await node.tell(Suspend())
        before, open_again = node.disk.writes, asyncio.Event()
        node.disk.pause = open_again.wait  # type: ignore[assignment]  # What it gives is not looked at.
        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(node.tell(Raise(f"e{number}")))
            await asyncio.sleep(0.1)
            open_again.set()
        assert node.disk.writes == before + 1
        assert [event.name for event in node.state().inbox] == [f"e{number}" for number in range(50)]


@_live
async def test_results_go_with_the_turn_and_each_turn_takes_all_that_are_there() -> None:
    async with _node() as node:
        await node.start(["all", [["task", "a"]] * 100])
        await node.ended()
        assert node.dispatch.activities == 100
        assert node.disk.writes < 8


@_live
async def test_an_asker_that_goes_cancels_no_write() -> None:
    async with _node() as node:
        node.disk.pause = lambda: asyncio.sleep(1)
        with pytest.raises(DeadlineExceededError):
            await node.tell(Start("program", "x", input="[]"), seconds=2.5)  # In the middle of the write.
        await asyncio.sleep(20)
        assert node.state().status == Status.COMPLETED


@_live
async def test_what_was_not_begun_when_its_asker_went_is_not_done() -> None:
    async with _node() as node:
        await node.start(["event", "e"])
        await asyncio.sleep(1)
        node.disk.pause = lambda: asyncio.sleep(1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.tell(Raise("first")))
            await asyncio.sleep(0.1)
            with pytest.raises(DeadlineExceededError):
                await node.tell(Raise("second"), seconds=0.5)
        await asyncio.sleep(20)
        assert [event.name for event in node.events() if isinstance(event, EventRaised)] == ["first"]


# Memory and time


@_live
async def test_what_only_waits_is_not_in_memory_and_timers_are_exact() -> None:
    async with _node(memory_bytes=50_000) as node:
        waits = {f"t{number}": 600.0 + number * 0.0125 for number in range(300)}
        for id, seconds in waits.items():
            await node.start(["timer", seconds], id=id)
        await node.start(["event", "e"], id="idle")
        await asyncio.sleep(60)
        assert node.engine.loaded[0] < 25
        assert node.engine.loaded[1] <= 50_000
        await asyncio.sleep(600)
        for id in waits:
            assert node.state(id).status == Status.COMPLETED
            fired = next(event for event in node.events(id) if isinstance(event, TimerFired))
            assert 0 <= fired.at - (fired.fire_at[0] + fired.fire_at[1] / 1e9) < 0.002
        await node.tell(Raise("e"), "idle")
        assert (await node.ended("idle")).status == Status.COMPLETED


@_live
async def test_a_start_may_be_put_off() -> None:
    async with _node() as node:
        await node.tell(Start("program", "x", input="[]", scheduled=clock() + 100))
        await asyncio.sleep(99.9)
        assert node.state().status == Status.PENDING
        assert node.dispatch.turns == 0
        state = await node.ended()
        assert state.started is not None
        assert state.started - state.created == pytest.approx(100, abs=0.01)


@_live
async def test_one_that_begins_anew_for_ever_pauses() -> None:
    async with _node() as node:
        node.turn = _answers(Complete(1, Status.CONTINUED_AS_NEW, "[]"))
        await node.start()
        await asyncio.sleep(10)
        assert 500 < node.dispatch.turns < 1300


# Owners


@_live
async def test_who_leaves_writes_what_it_holds_and_runs_nothing_more() -> None:
    disk, go_on = Disk(), asyncio.Event()
    ran = []

    async def task(work: TaskWork) -> TaskResult:
        ran.append(work.task)
        if work.task == 2:
            await go_on.wait()
        return TaskResult("1")

    async with _node(disk, drain=5.0) as node, _node(disk, epoch=2) as other:
        other.engine.drop(0)
        node.task = other.task = task
        node.engine.take(0, 3)
        await node.start(["all", [["task", "a"], ["task", "b"]]])
        await asyncio.sleep(0.1)
        turns: list[TurnWork] = []

        async def hang(work: TurnWork) -> Answer:
            turns.append(work)
            await asyncio.Event().wait()
            return Answer()

        node.turn = hang
        seen = asyncio.create_task(node.ended())  # noqa: TID251 - it is awaited below
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.engine.leave(0))
            await asyncio.sleep(1)
            with pytest.raises(NotOwnerError):
                await node.tell(Raise("e"))
            go_on.set()
        with pytest.raises(NotOwnerError):
            await seen
        stored = (*node.events(), *node.state().inbox)
        assert [event.task for event in stored if isinstance(event, TaskCompleted)] == [1, 2]
        other.engine.take(0, 4)
        assert (await other.ended()).status == Status.COMPLETED
        assert sorted(ran) == [1, 2]


@_live
async def test_who_leaves_while_a_turn_hangs_writes_what_has_come() -> None:
    async with _node(drain=2.0) as node:
        hangs, go_on = asyncio.Event(), asyncio.Event()

        async def turn(work: TurnWork) -> Answer:
            if len(work.past) > 1:
                hangs.set()
                await go_on.wait()
            return run_program(work)

        node.turn = turn
        await node.start(["all", [["task", "a"], ["task", "b"]]])
        await hangs.wait()
        await asyncio.sleep(0.1)
        await node.engine.leave(0)
        stored = (*node.events(), *node.state().inbox)
        assert [event.task for event in stored if isinstance(event, TaskCompleted)] == [1, 2]
        go_on.set()
        await asyncio.sleep(1)
        node.engine.take(0, 5)
        assert (await node.ended()).status == Status.COMPLETED
        assert node.dispatch.activities == 2


@_live
async def test_who_is_not_sure_answers_nothing() -> None:
    async with _node() as node:
        await node.start(["event", "e"])
        node.sure = False
        for message in (Start("program", "y"), Raise("e"), Purge(), Terminate()):
            with pytest.raises(NotOwnerError):
                await node.tell(message)
        with pytest.raises(NotOwnerError):
            await node.ended()


@_live
async def test_who_was_replaced_and_does_not_know_changes_nothing() -> None:
    disk = Disk()
    async with _node(disk) as node, _node(disk, epoch=2) as other:
        await other.start(["event", "e"])
        with pytest.raises(NotOwnerError):
            await node.start(["event", "e"], id="new")
        await other.tell(Raise("e"))
        assert (await other.ended()).status == Status.COMPLETED
        assert Ref(0, "new") not in disk.live


@_live
async def test_a_store_that_is_away_fails_who_asks_and_no_instance() -> None:
    async with _node() as node:
        await node.start(["timer", 5.0], ["task", "a"])
        await asyncio.sleep(1)
        node.commits.load, load = _away, node.commits.load  # type: ignore[method-assign]
        node.commits.commit, commit = _away, node.commits.commit  # type: ignore[method-assign]
        for _ in range(3):
            with pytest.raises(StateError):
                await node.tell(Raise("e"))
        await asyncio.sleep(60)
        node.commits.load, node.commits.commit = load, commit  # type: ignore[method-assign]
        assert (await node.ended()).status == Status.COMPLETED


async def _away(*_: object) -> None:
    raise StateError("the store is away")


# Stalled, and too large


@_live
async def test_a_turn_that_cannot_be_stored_stalls_its_instance_until_a_worker_comes() -> None:
    async with _node(Disk(largest=8)) as node:
        await node.start(["all", [["task", "a"]] * 10])
        await asyncio.sleep(10)
        assert node.state().status == Status.STALLED
        turns = node.dispatch.turns
        await asyncio.sleep(1000)
        assert node.dispatch.turns == turns
        node.disk.largest = 100
        node.engine.worker_attached()
        assert (await node.ended()).status == Status.COMPLETED


@_live
async def test_a_message_that_cannot_be_stored_fails_who_asks() -> None:
    async with _node() as node:
        await node.start(["event", "e"])
        await asyncio.sleep(1)
        node.commits.commit, commit = _too_large, node.commits.commit  # type: ignore[method-assign]
        with pytest.raises(WorkflowTooLargeError):
            await node.tell(Raise("e"))
        node.commits.commit = commit  # type: ignore[method-assign]
        assert node.state().inbox == ()
        await node.tell(Raise("e"))
        assert (await node.ended()).status == Status.COMPLETED


async def _too_large(*_: object) -> None:
    raise WorkflowTooLargeError("it does not fit")


@_live
async def test_a_turn_that_no_worker_can_be_given_stalls_its_instance() -> None:
    async with _node() as node:

        async def turn(work: TurnWork) -> Answer:
            await node.engine.turn_impossible(work, "5 MiB of history")
            return Answer()

        node.turn = turn
        await node.start(["task", "a"])
        await asyncio.sleep(1)
        assert node.state().status == Status.STALLED
        assert "5 MiB" in repr(node.events()[-1])


@_live
async def test_a_lost_turn_is_handed_out_again_and_its_late_answer_does_not_count() -> None:
    async with _node() as node:
        works: list[TurnWork] = []

        async def turn(work: TurnWork) -> Answer:
            works.append(work)
            if len(works) == 1:
                node.engine.turn_lost(work)
                return Answer((Complete(1, Status.FAILED),))
            return run_program(work)

        node.turn = turn
        await node.start(["task", "a"])
        assert (await node.ended()).status == Status.COMPLETED
        assert (works[0].number, works[0].new[1:]) == (works[1].number, works[1].new[1:])


@_live
async def test_a_lost_activity_runs_again_as_another_attempt_if_it_had_begun() -> None:
    async with _node() as node:
        works: list[TaskWork] = []

        async def task(work: TaskWork) -> TaskResult | None:
            works.append(work)
            if len(works) < 3:
                node.engine.task_lost(REF, work, begun=len(works) == 2)
                return None
            return TaskResult("1")

        node.task = task
        node.turn = _tasks_then_complete
        await node.start()
        await node.ended()
        assert [work.attempt for work in works] == [1, 1, 2]
        assert len({work.execution_id for work in works}) == 1


async def _tasks_then_complete(work: TurnWork) -> Answer:
    if any(isinstance(event, TaskScheduled) for event in work.past):
        done = [event for event in work.new if isinstance(event, TaskCompleted)]
        return Answer((Complete(2, Status.COMPLETED),) if done else ())
    return Answer((ScheduleTask(1, "a"),))


# Others


@_live
async def test_a_child_that_cannot_be_started_has_failed() -> None:
    async with _node() as node:

        async def forbid(instance: str, message: AnyMessage) -> Told:
            raise WorkflowForbiddenError("no policy allows it")

        node.tell_others = forbid
        await node.start(["child", []])
        await node.ended()
        failed = next(event for event in node.events() if isinstance(event, ChildFailed))
        assert failed.failure == Failure("WorkflowForbidden", "no policy allows it", final=True)


@_live
async def test_others_are_told_until_they_have_it_each_in_order() -> None:
    async with _node() as node:
        away = True

        async def tell(instance: str, message: AnyMessage) -> Told:
            if away and instance == "other":
                raise StateError("nobody is there")
            return Told()

        node.tell_others = tell
        node.turn = _answers(
            CreateChild(1, "other", "program"),
            SendEvent(2, "other", "first"),
            SendEvent(3, "third", "second"),
            Complete(4, Status.COMPLETED),
        )
        await node.start()
        await asyncio.sleep(600)
        assert [id for _, id, _ in node.told if id != "other"] == ["third"]
        assert 8 < len(node.told) < 30
        assert REF in node.disk.live, "what is put away has told everybody"
        away = False
        await asyncio.sleep(100)
        assert [type(message) for _, id, message in node.told if id == "other"][-2:] == [Start, Raise]
        assert node.disk.ended[REF].state.outbox == ()


@_live
async def test_what_was_delivered_is_forgotten_soon() -> None:
    async with _node() as node:
        await node.start(["child", [["event", "e"]]])
        await asyncio.sleep(0.5)
        assert len(node.state().outbox) == 1
        await asyncio.sleep(2)
        assert node.state().outbox == ()
        await node.tell(Raise("e"), "o:0001")
        assert (await node.ended()).status == Status.COMPLETED


@_live
async def test_an_outcome_that_is_too_large_for_the_parent_is_a_failure() -> None:
    async with _node() as node:

        async def tell(instance: str, message: AnyMessage) -> Told:
            if isinstance(message, ChildDone) and message.failure is None:
                raise WorkflowTooLargeError("it does not fit")
            return await node.engine.tell(Ref(0, instance), message, clock() + 30)

        node.tell_others = tell
        await node.start(["child", []])
        await node.ended()
        failed = next(event for event in node.events() if isinstance(event, ChildFailed))
        assert failed.failure.type == "WorkflowTooLarge"


# The end


@_live
async def test_an_id_may_be_used_again_once_its_instance_has_ended() -> None:
    async with _node() as node:
        await node.start(["event", "e"])
        assert await node.start(["event", "e"]) == Told(0), "the same question, once more"
        with pytest.raises(WorkflowExistsError):
            await node.start([], execution="y")
        await node.tell(Raise("e"))
        first = await node.ended()
        with pytest.raises(WorkflowEndedError):
            await node.tell(Raise("e"))
        await asyncio.sleep(1)
        assert await node.start(["task", "a"], execution="y") == Told(1)
        await asyncio.sleep(1)
        second = await node.ended()
        assert second.execution == "y"
        assert second.generation > first.generation
        assert await node.tell(Purge()) == Told(1)
        assert not node.disk.keys()


@_live
async def test_purging() -> None:
    async with _node() as node:
        with pytest.raises(WorkflowNotFoundError):
            await node.tell(Purge())
        await node.start(["child", [["child", [["event", "e"]]]]])
        await asyncio.sleep(1)
        for recursive in (True, False):
            with pytest.raises(WorkflowNotEndedError):
                await node.tell(Purge(recursive=recursive))
        assert await node.tell(Purge(recursive=True, force=True)) == Told(3)
        assert not node.disk.keys()
        await asyncio.sleep(100)
        assert not node.disk.keys()
        assert node.engine.loaded == (0, 0)


@_live
async def test_a_purge_by_force_leaves_children_whose_application_is_not_there() -> None:
    async with _node() as node:
        await node.start(["child", [["event", "e"]]])
        await asyncio.sleep(1)

        async def nobody(_instance: str, _message: AnyMessage) -> Told:
            raise NobodyHostsError("no node hosts workflows.nobody")

        node.tell_others = nobody
        assert await node.tell(Purge(recursive=True, force=True)) == Told(1)
        assert REF not in node.disk.keys()


@_live
async def test_an_instance_of_another_that_was_no_child_is_not_purged() -> None:
    async with _node() as node:
        await node.start(["event", "e"], id="other")
        node.turn = _answers(CreateChild(1, "other", "program"), Complete(2, Status.COMPLETED))
        await node.start()
        await asyncio.sleep(10)
        with pytest.raises(WorkflowNotEndedError):  # It does not say that it was no child: it has ended before.
            await node.tell(Purge(recursive=True))
        assert Ref(0, "other") in node.disk.live


@pytest.mark.parametrize("keep", [None, 0.0, 100.0])
def test_what_has_ended_is_kept_for_as_long_as_it_is_to_be(keep: float | None) -> None:
    async def live() -> None:
        async with _node(retention=lambda _: keep) as node:
            await node.start()
            await asyncio.sleep(90)
            assert bool(node.disk.ended) is (keep != 0)
            assert not node.disk.live
            await asyncio.sleep(100)
            assert bool(node.disk.keys()) is (keep is None)

    virtual_time.run(live())


@_live
async def test_what_expired_while_nobody_was_there_is_purged_and_what_began_anew_is_not() -> None:
    disk = Disk()
    async with _node(disk, retention=lambda _: 50.0) as node:
        await node.start()
        await node.start(id="again")
        await asyncio.sleep(1)
    until = dict(disk.until)
    await asyncio.sleep(100)
    async with _node(disk, epoch=2, retention=lambda _: 50.0) as node:
        await node.start(["event", "e"], id="again", execution="y")
        disk.until = until  # As if the start had not come to deleting it.
        await asyncio.sleep(70)
        assert disk.keys() - set(disk.until) == {Ref(0, "again")}
        await node.tell(Resume(), "again")


@_live
async def test_waiting() -> None:
    async with _node() as node:
        await node.engine.wait(REF, lambda state: state is None, clock() + 1)
        with pytest.raises(DeadlineExceededError):
            await node.engine.wait(REF, lambda state: state is not None, clock() + 1)
        async with asyncio.TaskGroup() as tasks:
            gone = tasks.create_task(
                node.engine.wait(REF, lambda state: state is not None and state.ended is not None, clock() + 100)
            )
            await asyncio.sleep(0.1)
            await node.start(["timer", 7.0])
            await asyncio.sleep(1)
            assert not gone.done()
        await node.tell(Purge())
        await node.engine.wait(REF, lambda state: state is None, clock() + 1)


@_live
async def test_open_tasks_are_told_of() -> None:
    async with _node() as node:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def task(work: TaskWork) -> TaskResult:
            begun.set()
            await go_on.wait()
            return TaskResult('"a!"')

        node.task = task
        await node.start(["task", "a"])
        await begun.wait()
        [(work, out)] = node.engine.open_tasks(REF)
        assert (work.name, work.attempt, out) == ("task", 1, True)
        go_on.set()
        await node.ended()
        assert not node.engine.open_tasks(REF)
