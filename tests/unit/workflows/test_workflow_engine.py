"""The engine by its parts: what is written together, what stays out of memory, when it looks, and how it ends."""

from __future__ import annotations

import asyncio

import pytest

from mesh.errors import BadArgumentError, DeadlineExceededError, MeshError, StateError, StateLimitError
from mesh.ownership.errors import NobodyHostsError, NotOwnerError
from mesh.workflows import rerun
from mesh.workflows.actions import Answer, Complete, CreateChild, ScheduleTask, SendEvent
from mesh.workflows.errors import (
    WorkflowEndedError,
    WorkflowExistsError,
    WorkflowForbiddenError,
    WorkflowNotEndedError,
    WorkflowNotFoundError,
    WorkflowTooLargeError,
)
from mesh.workflows.events import (
    ChildCompleted,
    ChildFailed,
    Event,
    EventRaised,
    Failure,
    TaskCompleted,
    TaskScheduled,
    TimerFired,
)
from mesh.workflows.messages import AnyMessage, ChildDone, Purge, Raise, Resume, Start, Suspend, Terminate, Told
from mesh.workflows.state import Status
from mesh.workflows.waiting import Waiting
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork
from tests.support import virtual_time
from tests.support.workflow_node import REF, answers, clock, live, node_of
from tests.support.workflow_programs import answer as run_program
from tests.support.workflows import Disk

# Writes


@live
async def test_a_chain_is_a_write_for_the_start_one_for_each_turn_and_one_at_the_end() -> None:
    async with node_of() as node:
        await node.start(["task", "a"], ["task", "b"], ["task", "c"])
        state = await node.ended()
        await asyncio.sleep(1)
        assert state.status == Status.COMPLETED
        assert node.disk.writes == 1 + 4 + 1
        assert node.dispatch.activities == 3
        assert node.engine.loaded == (0, 0)


@live
async def test_what_waits_for_the_same_instance_goes_in_one_write() -> None:
    async with node_of() as node:
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


@live
async def test_results_go_with_the_turn_and_each_turn_takes_all_that_are_there() -> None:
    async with node_of() as node:
        await node.start(["all", [["task", "a"]] * 100])
        await node.ended()
        assert node.dispatch.activities == 100
        assert node.disk.writes < 8


@live
async def test_an_asker_that_goes_cancels_no_write() -> None:
    async with node_of() as node:
        node.disk.pause = lambda: asyncio.sleep(1)
        with pytest.raises(DeadlineExceededError):
            await node.tell(Start("program", "x", input="[]"), seconds=2.5)  # In the middle of the write.
        await asyncio.sleep(20)
        assert node.state().status == Status.COMPLETED


@live
async def test_what_was_not_begun_when_its_asker_went_is_not_done() -> None:
    async with node_of() as node:
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


@live
async def test_what_only_waits_is_not_in_memory_and_timers_are_exact() -> None:
    async with node_of(memory_bytes=50_000) as node:
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


@live
async def test_a_start_may_be_put_off() -> None:
    async with node_of() as node:
        await node.tell(Start("program", "x", input="[]", scheduled=clock() + 100))
        await asyncio.sleep(99.9)
        assert node.state().status == Status.PENDING
        assert node.dispatch.turns == 0
        state = await node.ended()
        assert state.started is not None
        assert state.started - state.created == pytest.approx(100, abs=0.01)


@live
async def test_one_that_begins_anew_for_ever_pauses() -> None:
    async with node_of() as node:
        node.turn = answers(Complete(1, Status.CONTINUED_AS_NEW, "[]"))
        await node.start()
        await asyncio.sleep(10)
        assert 500 < node.dispatch.turns < 1300


# Owners


@live
async def test_who_leaves_writes_what_it_holds_and_runs_nothing_more() -> None:
    disk, go_on = Disk(), asyncio.Event()
    ran = []

    async def task(work: TaskWork) -> TaskResult:
        ran.append(work.task)
        if work.task == 2:
            await go_on.wait()
        return TaskResult("1")

    async with node_of(disk, drain=5.0) as node, node_of(disk, epoch=2) as other:
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


@live
async def test_who_leaves_while_a_turn_hangs_writes_what_has_come() -> None:
    async with node_of(drain=2.0) as node:
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


@live
async def test_who_is_not_sure_answers_nothing() -> None:
    async with node_of() as node:
        await node.start(["event", "e"])
        node.sure = False
        for message in (Start("program", "y"), Raise("e"), Purge(), Terminate()):
            with pytest.raises(NotOwnerError):
                await node.tell(message)
        with pytest.raises(NotOwnerError):
            await node.ended()


@live
async def test_who_was_replaced_and_does_not_know_changes_nothing() -> None:
    disk = Disk()
    async with node_of(disk) as node, node_of(disk, epoch=2) as other:
        await other.start(["event", "e"])
        with pytest.raises(NotOwnerError):
            await node.start(["event", "e"], id="new")
        await other.tell(Raise("e"))
        assert (await other.ended()).status == Status.COMPLETED
        assert Ref(0, "new") not in disk.live


@live
async def test_a_store_that_is_away_fails_who_asks_and_no_instance() -> None:
    async with node_of() as node:
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


@live
async def test_a_turn_that_cannot_be_stored_stalls_its_instance_until_a_worker_comes() -> None:
    async with node_of(Disk(largest=8)) as node:
        await node.start(["all", [["task", "a"]] * 10])
        await asyncio.sleep(10)
        assert node.state().status == Status.STALLED
        turns = node.dispatch.turns
        await asyncio.sleep(1000)
        assert node.dispatch.turns == turns
        node.disk.largest = 100
        node.engine.worker_attached()
        assert (await node.ended()).status == Status.COMPLETED


@live
async def test_a_message_that_cannot_be_stored_fails_who_asks() -> None:
    async with node_of() as node:
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


@live
async def test_a_turn_that_no_worker_can_be_given_stalls_its_instance() -> None:
    async with node_of() as node:

        async def turn(work: TurnWork) -> Answer:
            node.engine.turn_impossible(work, "5 MiB of history")
            return Answer()

        node.turn = turn
        await node.start(["task", "a"])
        await asyncio.sleep(1)
        assert node.state().status == Status.STALLED
        assert "5 MiB" in repr(node.events()[-1])


@live
async def test_a_lost_turn_is_handed_out_again_and_its_late_answer_does_not_count() -> None:
    async with node_of() as node:
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


@live
async def test_a_lost_activity_runs_again_as_another_attempt_if_it_had_begun() -> None:
    async with node_of() as node:
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


@pytest.mark.parametrize(
    "error",
    [
        WorkflowForbiddenError("no policy allows it"),
        BadArgumentError("no application is so called"),
        StateLimitError("a key has at most 1024 bytes"),
    ],
)
def test_a_child_that_cannot_be_started_has_failed(error: MeshError) -> None:
    virtual_time.run(_child_that_fails(error))


async def _child_that_fails(error: MeshError) -> None:
    async with node_of() as node:

        async def forbid(instance: str, message: AnyMessage) -> Told:
            raise error

        node.tell_others = forbid
        await node.start(["child", []])
        await node.ended()
        failed = next(event for event in node.events() if isinstance(event, ChildFailed))
        assert failed.failure == Failure(type(error).__name__.removesuffix("Error"), str(error), final=True)


@live
async def test_others_are_told_until_they_have_it_each_in_order() -> None:
    async with node_of() as node:
        away = True

        async def tell(instance: str, message: AnyMessage) -> Told:
            if away and instance == "other":
                raise StateError("nobody is there")
            return Told()

        node.tell_others = tell
        node.turn = answers(
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


@live
async def test_what_was_delivered_is_forgotten_soon() -> None:
    async with node_of() as node:
        await node.start(["child", [["event", "e"]]])
        await asyncio.sleep(0.5)
        assert len(node.state().outbox) == 1
        await asyncio.sleep(2)
        assert node.state().outbox == ()
        await node.tell(Raise("e"), "o:0001")
        assert (await node.ended()).status == Status.COMPLETED


@live
async def test_an_outcome_that_is_too_large_for_the_parent_is_a_failure() -> None:
    async with node_of() as node:

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


@live
async def test_an_id_may_be_used_again_once_its_instance_has_ended() -> None:
    async with node_of() as node:
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


@live
async def test_purging() -> None:
    async with node_of() as node:
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


@live
async def test_a_purge_by_force_leaves_children_whose_application_is_not_there() -> None:
    async with node_of() as node:
        await node.start(["child", [["event", "e"]]])
        await asyncio.sleep(1)

        async def nobody(_instance: str, _message: AnyMessage) -> Told:
            raise NobodyHostsError("no node hosts workflows.nobody")

        node.tell_others = nobody
        assert await node.tell(Purge(recursive=True, force=True)) == Told(1)
        assert REF not in node.disk.live


@live
async def test_an_instance_of_another_that_was_no_child_is_not_purged() -> None:
    async with node_of() as node:
        await node.start(["event", "e"], id="other")
        await asyncio.sleep(1)
        node.turn = answers(CreateChild(1, "other", "program"), Complete(2, Status.COMPLETED))
        await node.start()
        await asyncio.sleep(10)
        assert await node.tell(Purge(recursive=True)) == Told(1)
        assert Ref(0, "other") in node.disk.live


@live
async def test_what_is_told_a_child_changes_no_other_instance_that_has_its_id() -> None:
    async with node_of() as node:
        await node.start(["event", "e"], id="other")
        await asyncio.sleep(1)
        started = asyncio.Event()

        async def tell(instance: str, message: AnyMessage) -> Told:
            await started.wait()
            return await node.engine.tell(Ref(0, instance), message, clock() + 30)

        node.tell_others = tell
        node.turn = answers(CreateChild(1, "other", "program"))
        await node.start()
        await asyncio.sleep(1)
        await node.tell(Terminate(recursive=True))  # Behind a start that has not arrived.
        started.set()
        await asyncio.sleep(10)
        assert [type(message) for _, _, message in node.told] == [Start, Terminate]
        assert node.state("other").ended is None


@live
async def test_what_is_run_again_leaves_the_children_alone_that_it_has_from_the_first() -> None:
    async with node_of() as node:
        await node.start(["child", []], ["task", "a"])
        state = await node.ended()
        history = [event for event in node.events() if isinstance(event, Event)]
        task = next(event.id for event in history if isinstance(event, TaskScheduled))
        await node.tell(rerun.make("o", state, history, task, "again", "e", clock()), "again")
        assert (await node.ended("again")).status == Status.COMPLETED
        assert any(isinstance(event, ChildCompleted) for event in node.events("again"))
        assert await node.tell(Purge(recursive=True), "again") == Told(1)
        assert await node.tell(Purge(recursive=True)) == Told(2)


@live
async def test_an_id_is_not_used_again_while_children_of_its_instance_are_active() -> None:
    async with node_of() as node:
        await node.start(["child", [["event", "e"]]])
        await asyncio.sleep(1)
        await node.tell(Terminate())
        await asyncio.sleep(1)
        with pytest.raises(WorkflowExistsError, match="its child 'o:0001' of shop is active"):
            await node.start([], execution="y")
        assert await node.start(execution="x") == Told(0), "that has been done"
        await node.tell(Raise("e"), "o:0001")
        await asyncio.sleep(1)
        assert await node.start(execution="y") == Told(1)
        assert (await node.ended()).execution == "y"


@pytest.mark.parametrize("keep", [None, 0.0, 100.0])
def test_what_has_ended_is_kept_for_as_long_as_it_is_to_be(keep: float | None) -> None:
    async def live() -> None:
        async with node_of(retention=lambda _: keep) as node:
            await node.start()
            await asyncio.sleep(90)
            assert bool(node.disk.ended) is (keep != 0)
            assert not node.disk.live
            await asyncio.sleep(100)
            assert bool(node.disk.keys()) is (keep is None)

    virtual_time.run(live())


@live
async def test_what_expired_while_nobody_was_there_is_purged_and_what_began_anew_is_not() -> None:
    disk = Disk()
    async with node_of(disk, retention=lambda _: 50.0) as node:
        await node.start()
        await node.start(id="again")
        await asyncio.sleep(1)
    until = dict(disk.until)
    await asyncio.sleep(100)
    async with node_of(disk, epoch=2, retention=lambda _: 50.0) as node:
        await node.start(["event", "e"], id="again", execution="y")
        disk.until = until  # As if the start had not come to deleting it.
        await asyncio.sleep(70)
        assert disk.keys() - set(disk.until) == {Ref(0, "again")}
        await node.tell(Resume(), "again")


@live
async def test_waiting() -> None:
    async with node_of() as node:
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


@live
async def test_open_tasks_are_told_of() -> None:
    async with node_of() as node:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def task(work: TaskWork) -> TaskResult:
            begun.set()
            await go_on.wait()
            return TaskResult('"a!"')

        node.task = task
        await node.start(["task", "a"])
        await begun.wait()
        (told,) = (await node.engine.waiting(REF, clock() + 1)).tasks
        assert (told.name, told.attempt, told.running, told.worker) == ("task", 1, True, "test")
        go_on.set()
        await node.ended()
        assert await node.engine.waiting(REF, clock() + 1) == Waiting()
        assert await node.engine.waiting(Ref(0, "none"), clock() + 1) == Waiting()
