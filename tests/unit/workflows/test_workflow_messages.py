"""What an instance is told between its turns and while one is out: once, twice, late, and after its end."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mesh.workflows import decide, turns
from mesh.workflows.actions import Answer, Complete, CreateChild, CreateTimer, ScheduleTask, SendEvent, VersionMissing
from mesh.workflows.errors import WorkflowEndedError, WorkflowStalledError
from mesh.workflows.events import (
    MAX_CAUSES,
    ChildFailed,
    EventRaised,
    Failure,
    Parent,
    Started,
    TaskCompleted,
    TurnStarted,
)
from mesh.workflows.messages import ChildDone, Raise, Resume, Start, Suspend, Terminate
from mesh.workflows.state import Status, Step
from tests.support.workflow_rules import NOW, Flow

PARENT = Parent("desk", "p-1", 3, "order", "pe-1")
GOES_ON = ScheduleTask(1, "charge")


def begun(*actions: object) -> Flow:
    flow = Flow()
    flow.turn(*(actions or (GOES_ON,)))
    return flow


def test_an_event_is_stored_whether_or_not_anybody_waits_and_comes_with_the_next_turn() -> None:
    flow = begun()
    flow.tell(Raise("approve", "true"))
    flow.tell(Raise("approve", "true"))

    assert flow.waiting == ["EventRaised", "EventRaised"]
    assert [type(event) for event in flow.begin().new] == [TurnStarted, EventRaised, EventRaised]


def test_an_event_of_a_token_counts_once_from_inbox_and_from_history_and_over_a_new_execution() -> None:
    flow = begun()
    assert flow.tell(Raise("approve", token="t-1")) is not None
    assert flow.tell(Raise("approve", token="t-1")) is None
    flow.turn()
    assert flow.tell(Raise("approve", token="t-1")) is None
    flow.tell(Raise("again"))
    flow.turn(Complete(9, Status.CONTINUED_AS_NEW))
    assert flow.tell(Raise("approve", token="t-1")) is None
    assert flow.tell(Raise("approve", token="t-2")) is not None


def test_what_was_seen_in_former_executions_is_forgotten_by_time_and_number() -> None:
    flow = begun()
    flow.tell(Raise("approve", token="early"))
    flow.now += 400
    for number in range(200):
        flow.tell(Raise("approve", token=f"t-{number:03d}"))
    flow.turn(Complete(9, Status.CONTINUED_AS_NEW))

    tokens = [token for _, token in flow.state.seen]
    assert len(tokens) == 128
    assert tokens[-1] == "t-199"
    assert "early" not in tokens


def test_an_ended_instance_takes_no_events_and_what_else_it_is_told_has_no_effect() -> None:
    flow = begun(CreateChild(1, "c-1", "ship"), Complete(9, Status.COMPLETED))

    with pytest.raises(WorkflowEndedError, match="the workflow 'o-1' has ended"):
        flow.tell(Raise("approve"))
    for message in (Suspend(), Resume(), Terminate(), ChildDone("e-1", 1, "shop", "1")):
        assert flow.tell(message) is None


def test_events_that_wait_are_bounded_and_what_it_waits_for_itself_comes_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decide, "MAX_WAITING", 2)
    flow = begun(CreateChild(1, "c-1", "ship"))
    flow.tell(Suspend())
    flow.tell(Raise("a"))
    flow.tell(Raise("b", token="b"))

    with pytest.raises(WorkflowStalledError, match="has 2 events that wait"):
        flow.tell(Raise("c"))
    assert flow.tell(Raise("b", token="b")) is None
    flow.tell(ChildDone("e-1", 1, "shop", "1"))
    assert flow.waiting == ["EventRaised", "EventRaised", "ChildCompleted"]


@pytest.mark.parametrize(
    "message",
    [
        ChildDone("e-0", 1, "depot", "1"),  # Of a former execution.
        ChildDone("e-1", 2, "depot", "1"),  # Nobody asked for it.
        ChildDone("e-1", 1, "shop", "1"),  # Of another application.
    ],
)
def test_what_is_not_the_outcome_of_a_child_that_is_open_has_no_effect(message: ChildDone) -> None:
    flow = begun(CreateChild(1, "c-1", "ship", app="depot"))

    assert flow.tell(message) is None
    assert flow.tell(ChildDone("e-1", 1, "depot", failure=Failure("Lost", "gone"))) is not None
    assert flow.tell(ChildDone("e-1", 1, "depot", "1")) is None
    assert isinstance(flow.state.inbox[0], ChildFailed)


def _deep(levels: int) -> Failure:
    failure = Failure("Deepest", "")
    for level in range(levels):
        failure = Failure(f"T{level}", "", inner=failure)
    return failure


def test_of_a_failure_no_more_causes_are_kept_than_whoever_is_told_can_read() -> None:
    """Of an activity, a child, and the instance itself; else no worker could read its history."""
    flow = begun(ScheduleTask(1, "charge"), CreateChild(2, "c-1", "ship"))
    flow.resolve(1, failure=_deep(500))
    flow.tell(ChildDone("e-1", 2, "shop", failure=_deep(500)))
    flow.turn(Complete(3, Status.FAILED, failure=_deep(500)))

    failures = [event.failure for event in flow.instance.history if getattr(event, "failure", None) is not None]
    assert len(failures) == 3
    for failure in failures:
        types = [failure.type]
        while (failure := failure.inner) is not None:
            types.append(failure.type)
        assert types == [f"T{499 - level}" for level in range(MAX_CAUSES)]


def test_between_turns_it_is_suspended_by_its_history_and_the_first_that_it_hears_is_that_it_goes_on() -> None:
    flow = begun()
    flow.tell(Suspend("audit"))
    assert (flow.status, flow.kinds[-1]) == (Status.SUSPENDED, "Suspended")
    assert flow.tell(Suspend("once more")) is None
    flow.tell(Raise("approve"))
    flow.resolve(1)
    assert flow.idle()
    flow.absorb()
    flow.reload()
    assert flow.idle()

    flow.tell(Resume())
    assert flow.status == Status.RUNNING
    assert flow.tell(Resume()) is None
    new = [type(event).__name__ for event in flow.begin().new]
    assert new == ["TurnStarted", "Resumed", "EventRaised", "TaskCompleted"]


def test_while_a_turn_is_out_the_suspension_stands_behind_all_that_comes_of_the_turn() -> None:
    flow = begun()
    flow.resolve(1)
    turn = flow.begin()
    flow.tell(Raise("late"))
    flow.tell(Suspend(), turn=turn)
    assert flow.status == Status.SUSPENDED
    flow.finish(turn, ScheduleTask(2, "pack"))

    assert flow.kinds[-4:] == ["TurnStarted", "TaskCompleted", "TaskScheduled", "Suspended"]
    assert (flow.status, flow.waiting) == (Status.SUSPENDED, ["EventRaised"])
    flow.tell(Resume())
    assert flow.waiting == ["Resumed", "EventRaised"]


def test_a_suspension_that_no_turn_has_seen_is_taken_back_without_a_trace() -> None:
    flow = begun()
    flow.resolve(1)
    turn = flow.begin()
    flow.tell(Suspend(), turn=turn)
    flow.tell(Resume(), turn=turn)
    assert (flow.status, flow.waiting) == (Status.RUNNING, [])
    flow.finish(turn)
    assert (flow.status, flow.kinds[-1]) == (Status.RUNNING, "TaskCompleted")


def test_going_on_that_no_turn_has_seen_is_taken_back_likewise() -> None:
    flow = begun()
    flow.tell(Suspend())
    flow.tell(Resume())
    flow.tell(Suspend())

    assert (flow.status, flow.waiting, flow.kinds.count("Suspended")) == (Status.SUSPENDED, [], 1)


def test_suspended_anew_while_the_turn_is_out_that_has_heard_of_going_on() -> None:
    flow = begun()
    flow.tell(Suspend())
    flow.tell(Resume())
    turn = flow.begin()
    flow.tell(Suspend(), turn=turn)
    flow.reload()  # The turn is lost with its owner.
    assert flow.idle()
    flow.tell(Resume())

    assert flow.waiting == ["Resumed"]
    flow.turn()
    assert (flow.status, flow.instance.suspended, flow.state.inbox) == (Status.RUNNING, False, ())


def test_one_that_has_not_begun_is_suspended_without_a_history() -> None:
    flow = Flow()
    flow.tell(Suspend())
    assert (flow.status, flow.kinds, flow.waiting) == (Status.SUSPENDED, [], ["Started"])
    assert flow.idle()
    flow.tell(Resume())
    assert (flow.status, flow.waiting) == (Status.PENDING, ["Started"])


def test_timers_fire_while_it_is_suspended_and_wait_in_order() -> None:
    flow = begun(CreateTimer(1, (int(NOW) + 5, 0)))
    flow.tell(Suspend())
    assert flow.state.due == NOW + 5
    flow.now += 6
    flow.fire()
    flow.absorb()
    flow.tell(Raise("later"))

    assert (flow.waiting, flow.state.due) == (["TimerFired", "EventRaised"], None)


def test_terminated_without_a_turn_it_keeps_what_was_accepted_and_tells_parent_and_children() -> None:
    flow = Flow(Start("order", "e-1", parent=PARENT))
    flow.turn(CreateChild(1, "c-1", "ship", app="depot"), CreateChild(2, "c-2", "ship"), ScheduleTask(3, "charge"))
    flow.commit(Step(decide.delivered(flow.state, {1, 2})))
    flow.tell(ChildDone("e-1", 2, "shop", "1"))
    flow.tell(Terminate('"over"', recursive=True))

    assert flow.status == Status.TERMINATED
    assert flow.kinds[-3:] == ["ChildCompleted", "Terminated", "Completed"]
    assert flow.instance.history[-1].result == '"over"'
    child, parent = flow.state.outbox
    told = Terminate('"over"', recursive=True, parent=Parent("shop", "o-1", 1, "order", "e-1"))
    assert (child.app, child.instance, child.message) == ("depot", "c-1", told)
    assert (parent.app, parent.instance, parent.message.task) == ("desk", "p-1", 3)
    assert (parent.message.execution, parent.message.failure.type) == ("pe-1", "WorkflowTerminated")
    assert flow.resolve(3) is None


def test_terminated_before_it_began_it_still_tells_of_its_input() -> None:
    flow = Flow()
    flow.tell(Terminate())

    assert flow.kinds == ["Started", "Terminated", "Completed"]
    assert isinstance(flow.instance.history[0], Started)


def test_the_answer_to_a_turn_that_was_out_when_it_was_terminated_comes_to_nothing() -> None:
    flow = Flow(Start("order", "e-1", parent=PARENT))
    turn = flow.begin()
    flow.tell(Terminate(), turn=turn)
    answer = Answer((Complete(1, Status.COMPLETED),))

    assert turns.finish(flow.instance, turn, answer, NOW, "x") is None
    assert turns.stall(flow.instance, turn, 2, "too large", NOW) is None
    assert len(flow.state.outbox) == 1
    flow.commit(decide.start("shop", "o-1", flow.state, Start("order", "e-2"), NOW))
    assert turns.finish(flow.instance, turn, answer, NOW, "x") is None


def test_a_stalled_instance_refuses_events_and_goes_on_with_all_the_rest_when_resumed() -> None:
    flow = begun(CreateChild(1, "c-1", "ship"))
    flow.tell(Raise("first"))
    flow.turn(VersionMissing(0))
    assert (flow.status, flow.kinds[-1], flow.waiting) == (Status.STALLED, "Stalled", ["EventRaised"])
    with pytest.raises(WorkflowStalledError, match="the workflow 'o-1' is stalled"):
        flow.tell(Raise("second"))
    flow.tell(ChildDone("e-1", 1, "shop", "1"))
    assert flow.idle()
    flow.tell(Resume())

    assert flow.status == Status.RUNNING
    flow.turn()
    assert (flow.status, flow.kinds[-3:]) == (Status.RUNNING, ["TurnStarted", "EventRaised", "ChildCompleted"])


def test_messages_are_forgotten_once_they_are_delivered() -> None:
    flow = begun(SendEvent(1, "o-2", "hello", "1"), SendEvent(2, "o-3", "hello", app="desk"))
    first, second = flow.state.outbox

    assert first.message == Raise("hello", "1", f"shop/o-1#{flow.state.generation}#1")
    assert (second.app, second.message.token) == ("desk", f"shop/o-1#{flow.state.generation}#2")
    assert decide.delivered(flow.state, {1}).outbox == (second,)
    assert decide.delivered(flow.state, {1}).sent == 2


def test_a_message_that_was_made_smaller_and_is_refused_all_the_same_is_forgotten() -> None:
    flow = begun(SendEvent(1, "o-2", "hello", "1"))
    (sent,) = flow.state.outbox
    smaller = replace(sent, message=Raise("hello"))
    flow.commit(decide.refused(flow.instance, smaller, Failure("WorkflowTooLarge", "it is large", final=True), NOW))

    assert flow.state.outbox == ()


def test_a_child_that_cannot_be_started_has_failed_and_other_messages_are_only_forgotten() -> None:
    flow = begun(CreateChild(1, "c-1", "ship"), SendEvent(2, "o-2", "hello"))
    start, event = flow.state.outbox
    failure = Failure("WorkflowExists", "it is there", final=True)
    flow.commit(decide.refused(flow.instance, start, failure, NOW))
    flow.commit(decide.refused(flow.instance, event, failure, NOW))

    assert (flow.state.outbox, flow.waiting, flow.state.open_children) == ((), ["ChildFailed"], 0)
    assert decide.refused(flow.instance, start, failure, NOW) is None
    assert flow.tell(ChildDone("e-1", 1, "shop", "1")) is None


def test_a_refused_start_of_a_former_execution_concerns_nobody() -> None:
    flow = begun(CreateChild(1, "c-1", "ship"))
    flow.tell(Raise("x"))
    flow.turn(Complete(2, Status.CONTINUED_AS_NEW))
    flow.turn(CreateChild(1, "c-9", "ship"))
    flow.commit(decide.refused(flow.instance, flow.state.outbox[0], Failure("WorkflowExists", "it is there"), NOW))

    assert (flow.waiting, list(flow.instance.children)) == ([], [1])


def test_only_what_has_ended_and_told_everybody_may_be_purged_unless_it_is_forced() -> None:
    flow = Flow(Start("order", "e-1", parent=PARENT))
    assert not decide.can_purge(flow.state, force=False)
    assert decide.can_purge(flow.state, force=True)
    flow.turn(Complete(1, Status.COMPLETED))
    assert not decide.can_purge(flow.state, force=False)
    assert decide.can_purge(decide.delivered(flow.state, {1}), force=False)


def test_results_that_wait_without_a_turn_are_stored_once() -> None:
    flow = begun(ScheduleTask(1, "charge"), CreateTimer(2, (int(NOW), 5)))
    flow.now += 1
    flow.resolve(1, '"first"')
    flow.fire()
    assert isinstance(flow.volatile[0], TaskCompleted)
    flow.absorb()

    assert (flow.waiting, flow.volatile, flow.state.due) == (["TaskCompleted", "TimerFired"], [], None)
    assert flow.resolve(1, '"second"') is None
    flow.fire()
    assert flow.volatile == []
    assert flow.absorb() is None
