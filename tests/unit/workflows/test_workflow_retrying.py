"""Activities that the engine itself tries again: how often, when, and which attempts count."""

from __future__ import annotations

import pytest

from mesh.workflows import decide, retrying
from mesh.workflows.actions import CreateTimer, ScheduleTask
from mesh.workflows.events import FOREVER, Failure, Retry, Retrying, TaskCompleted, TaskFailed, TaskScheduled
from mesh.workflows.messages import Raise
from mesh.workflows.worker import TaskResult
from tests.support.workflow_rules import NOW, Flow

BROKEN = Failure("Broken", "the line is down")


def task(retry: Retry | None, at: float = NOW) -> TaskScheduled:
    return TaskScheduled(at, 1, "charge", "e-1-1", retry=retry)


@pytest.mark.parametrize(
    ("retry", "attempt", "failure", "pause"),
    [
        (None, 1, BROKEN, None),
        (Retry(1), 1, BROKEN, None),
        (Retry(3), 1, BROKEN, 1),
        (Retry(3), 2, BROKEN, 1),
        (Retry(3), 3, BROKEN, None),
        (Retry(9, 2, 3), 1, BROKEN, 2),
        (Retry(9, 2, 3), 3, BROKEN, 18),
        (Retry(9, 2, 3, longest=10), 3, BROKEN, 10),
        (Retry(9, 2, 3, within=18), 3, BROKEN, 18),
        (Retry(9, 2, 3, within=17), 3, BROKEN, None),
        (Retry(9, never=("Other",)), 1, BROKEN, 1),
        (Retry(9, never=("Broken",)), 1, BROKEN, None),
        (Retry(9), 1, Failure("Broken", "no", final=True), None),
        (Retry(10_000, 2, 3, longest=60), 9_000, BROKEN, 60),
        (Retry(10_000, 2, 3), 9_000, BROKEN, FOREVER - NOW),
    ],
)
def test_the_next_attempt(retry: Retry | None, attempt: int, failure: Failure, pause: float | None) -> None:
    made = retrying.next_attempt(task(retry), attempt, failure, NOW)

    assert made == (Retrying(NOW, 1, attempt + 1, NOW + pause, failure) if pause is not None else None)


def retried() -> Flow:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge", retry=Retry(3, 10)), CreateTimer(2, (int(NOW) + 60, 0)))
    flow.resolve(1, failure=BROKEN)
    flow.absorb()
    return flow


def test_a_failed_attempt_is_no_matter_of_a_turn_and_stands_in_the_history_with_when_the_next_one_is_due() -> None:
    flow = retried()

    assert (flow.kinds[-1], flow.waiting, flow.state.due) == ("Retrying", [], NOW + 10)
    assert flow.idle()
    assert (retrying.due(flow.instance, flow.now), retrying.waiting(flow.instance, flow.now)) == ([], {1})
    flow.now += 10
    assert (retrying.due(flow.instance, flow.now), retrying.waiting(flow.instance, flow.now)) == ([1], set())
    assert retrying.due(flow.instance, flow.now, {1}) == []
    assert flow.instance.next_due(flow.now) == NOW + 60
    flow.reload()
    assert flow.instance.attempts == {1: 2}


def test_attempts_end_with_a_failure_that_the_workflow_is_told_of() -> None:
    flow = retried()
    flow.now += 10
    flow.resolve(1, failure=BROKEN, attempt=2)
    flow.absorb()
    assert (flow.instance.attempts, flow.state.due) == ({1: 3}, NOW + 20)
    flow.now += 10
    last = flow.resolve(1, failure=BROKEN, attempt=3)

    assert isinstance(last, TaskFailed)
    assert [type(event) for event in flow.begin().new][1:] == [TaskFailed]
    flow.turn()
    assert (flow.instance.attempts, flow.instance.retries, flow.state.due) == ({}, {}, NOW + 60)


def test_of_an_older_attempt_only_a_success_counts() -> None:
    flow = retried()

    assert flow.resolve(1, failure=BROKEN, attempt=1) is None
    assert isinstance(flow.resolve(1, attempt=1), TaskCompleted)
    flow.turn()
    assert flow.state.due == NOW + 60
    assert flow.resolve(1, attempt=2) is None


def test_an_attempt_whose_worker_was_lost_makes_its_late_failure_count_no_more() -> None:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge", retry=Retry(2)))
    flow.instance.attempts[1] = 2

    assert flow.resolve(1, failure=BROKEN, attempt=1) is None
    assert isinstance(flow.resolve(1, failure=BROKEN, attempt=2), TaskFailed)


def test_one_that_has_an_outcome_which_is_not_stored_waits_for_no_other() -> None:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge", retry=Retry(3)))
    flow.resolve(1)
    result = TaskResult(failure=BROKEN)

    assert decide.resolve(flow.instance, flow.state.generation, 1, result, 1, NOW, held={1}) is None


@pytest.mark.parametrize(("generation", "task"), [(-1, 1), (1, 1), (0, 2)])
def test_results_of_another_execution_or_of_nothing_that_was_asked_for_count_for_nothing(generation, task) -> None:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge"))

    assert decide.resolve(flow.instance, flow.state.generation + generation, task, TaskResult(), 1, NOW) is None


def test_a_retry_of_what_has_an_outcome_meanwhile_is_not_stored() -> None:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge", retry=Retry(3)))
    again = Retrying(NOW, 1, 2, NOW + 1, BROKEN)
    flow.resolve(1)
    flow.turn()

    assert decide.absorb(flow.instance, [again], NOW) is None


def test_a_result_and_a_retry_are_stored_in_one_step_while_a_turn_is_out() -> None:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge", retry=Retry(3, 10)), ScheduleTask(2, "pack"))
    flow.tell(Raise("x"))
    turn = flow.begin()
    flow.resolve(1, failure=BROKEN)
    flow.resolve(2)
    flow.absorb()
    flow.finish(turn)

    assert flow.kinds[-3:] == ["Retrying", "TurnStarted", "EventRaised"]
    assert (flow.waiting, flow.state.due, sorted(flow.instance.tasks)) == (["TaskCompleted"], NOW + 10, [1])
