"""Turns: what is new in one, what its answer makes, and which answers come to nothing."""

from __future__ import annotations

import pytest

from mesh.workflows import decide, turns
from mesh.workflows.actions import (
    Action,
    Answer,
    Complete,
    CreateChild,
    CreateDetached,
    CreateTimer,
    ScheduleTask,
    SendEvent,
    TerminateInstance,
    VersionMissing,
    Wait,
)
from mesh.workflows.events import (
    FOREVER,
    EventRaised,
    Failure,
    Parent,
    Retry,
    Started,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    Trace,
)
from mesh.workflows.messages import ChildDone, Raise, Resume, Start, Suspend, Terminate
from mesh.workflows.observed import below
from mesh.workflows.state import Status, Step
from tests.support.workflow_rules import NOW, Flow

PARENT = Parent("desk", "p-1", 3, "order", "pe-1")
DONE = Complete(99, Status.COMPLETED, '"out"')


def begun(*actions: Action) -> Flow:
    flow = Flow()
    flow.turn(*actions)
    return flow


def test_an_answer_schedules_what_it_asks_for_under_the_turn_that_it_answers() -> None:
    flow = Flow()
    step = flow.finish(
        flow.begin(),
        ScheduleTask(1, "charge", "1", app="shop"),
        ScheduleTask(2, "bill", app="billing", execution_id="mine", retry=Retry(3)),
        CreateTimer(3, (int(NOW) + 9, 7)),
        CreateTimer(4, (FOREVER, 999_999_999)),
        Wait(5, "approve"),
    )

    assert flow.kinds == ["TurnStarted", "Started", "TaskScheduled", "TaskScheduled", "TimerCreated", "TimerCreated"]
    assert (step.append[2].app, step.append[3].app, step.append[3].execution_id) == (None, "billing", "mine")
    assert (flow.state.due, flow.state.open_tasks, flow.state.turns) == (NOW + 9.000000007, 2, 1)
    assert (flow.status, flow.state.started) == (Status.RUNNING, NOW)
    assert flow.idle()


def test_what_others_are_asked_goes_to_the_outbox_in_order() -> None:
    trace = Trace(f"00-{'a' * 32}-{'b' * 16}-01")
    flow = Flow(Start("order", "e-1", trace=trace))
    flow.turn(
        CreateChild(1, "c-1", "ship", "1", version="2", app="depot"),
        CreateDetached(2, "", "audit", tags={"a": "b"}, scheduled=NOW + 9),
        TerminateInstance(3, "o-7", recursive=True),
        SendEvent(4, "o-8", "hello"),
    )
    child, detached, terminated, event = [sent.message for sent in flow.state.outbox]

    assert [sent.app for sent in flow.state.outbox] == ["depot", "shop", "shop", "shop"]
    assert child == Start(
        "ship", "e-1-1", "2", "1", Parent("shop", "o-1", 1, "order", "e-1"), trace=below(trace, "e-1"), caller="shop"
    )
    assert detached == Start("audit", "e-1-2", scheduled=NOW + 9, tags={"a": "b"})
    assert flow.state.outbox[1].instance == "o-1:0002"
    assert (terminated, event.name) == (Terminate(recursive=True), "hello")
    assert (flow.kinds[2:], flow.state.open_children) == (["ChildCreated", "DetachedCreated", "EventSent"], 1)


def test_a_turn_has_all_that_is_new_and_of_each_action_the_first_outcome() -> None:
    flow = begun(ScheduleTask(1, "charge"), ScheduleTask(2, "pack"), CreateChild(3, "c-1", "ship"))
    flow.tell(Raise("hello"))
    late = TaskFailed(NOW, 2, "e-1-2", Failure("Late", "too late"))
    flow.resolve(2)
    flow.volatile += [late, TaskCompleted(NOW, 7, "e-1-7")]
    flow.resolve(1)
    turn = flow.begin()

    assert [type(event).__name__ for event in turn.new] == [
        "TurnStarted",
        "EventRaised",
        "TaskCompleted",
        "TaskCompleted",
    ]
    assert (turn.new[2].task, turn.new[3].task, turn.taken, turn.number) == (2, 1, 1, 2)
    flow.finish(turn)
    assert (flow.state.open_tasks, flow.state.open_children, flow.volatile) == (0, 1, [])


def test_a_turn_that_is_lost_is_handed_out_again_with_what_came_since() -> None:
    flow = begun(ScheduleTask(1, "charge"))
    flow.resolve(1)
    lost = flow.begin()
    flow.tell(Raise("hello"))
    turn = flow.begin()

    assert (lost.number, turn.number) == (2, 2)
    assert [type(event).__name__ for event in turn.new] == ["TurnStarted", "EventRaised", "TaskCompleted"]


def test_an_answer_to_an_older_turn_or_execution_comes_to_nothing() -> None:
    flow = Flow()
    first = flow.begin()
    flow.finish(first, ScheduleTask(1, "charge"))
    assert turns.finish(flow.instance, first, Answer((DONE,)), NOW, "x") is None
    flow.resolve(1)
    second = flow.begin()
    flow.finish(second, Complete(2, Status.CONTINUED_AS_NEW))
    third = flow.begin()
    assert (third.number, third.generation) == (1, first.generation + 1)
    assert turns.finish(flow.instance, first, Answer((DONE,)), NOW, "x") is None
    assert turns.stall(flow.instance, second, 2, "late", NOW) is None


def test_what_was_stored_while_its_turn_was_out_is_in_the_history_once() -> None:
    flow = begun(ScheduleTask(1, "charge"), ScheduleTask(2, "pack"))
    flow.resolve(1)
    turn = flow.begin()
    flow.resolve(2)
    flow.absorb()
    assert flow.waiting == ["TaskCompleted", "TaskCompleted"]
    flow.finish(turn)

    assert [event.task for event in flow.instance.history if isinstance(event, TaskCompleted)] == [1]
    assert [event.task for event in flow.state.inbox] == [2]


def test_a_step_that_was_not_committed_has_changed_nothing() -> None:
    flow = begun(ScheduleTask(1, "charge"), CreateTimer(2, (int(NOW), 0)))
    flow.resolve(1)
    flow.fire()
    turn = flow.begin()
    before = (flow.state, list(flow.instance.history), dict(flow.instance.tasks), dict(flow.instance.timers))
    assert turns.finish(flow.instance, turn, Answer((ScheduleTask(3, "x"),)), NOW, "x") is not None
    assert turns.finish(flow.instance, turn, Answer((DONE,)), NOW, "x") is not None

    assert before == (
        flow.state,
        flow.instance.history,
        flow.instance.tasks,
        flow.instance.timers,
    )
    flow.finish(turn, DONE)
    assert flow.status == Status.COMPLETED


@pytest.mark.parametrize(
    ("complete", "result", "type_"),
    [
        (DONE, '"out"', None),
        (Complete(9, Status.FAILED, failure=Failure("Mine", "no")), None, "Mine"),
        (Complete(9, Status.FAILED), None, "WorkflowFailed"),
        (Complete(9, Status.TERMINATED), None, "WorkflowTerminated"),
        (Complete(9, Status.CANCELED), None, "WorkflowCanceled"),
        (Complete(9, Status.SUSPENDED), None, "InvalidAnswer"),
    ],
)
def test_the_end_is_told_to_the_parent_once(complete: Complete, result: str | None, type_: str | None) -> None:
    flow = Flow(Start("order", "e-1", parent=PARENT))
    flow.turn(complete)
    [sent] = flow.state.outbox

    assert (sent.app, sent.instance) == ("desk", "p-1")
    failure = sent.message.failure
    assert sent.message == ChildDone("pe-1", 3, "shop", result, failure)
    assert (failure.type if failure is not None else None) == type_
    assert (flow.kinds[-1], flow.state.ended) == ("Completed", NOW)
    assert flow.idle()


def test_what_is_asked_for_before_the_end_reaches_others_and_what_nobody_would_wait_for_is_left_out() -> None:
    flow = begun(ScheduleTask(1, "charge"), SendEvent(2, "o-2", "hi"), CreateTimer(3, (int(NOW), 0)), DONE)

    assert flow.kinds == ["TurnStarted", "Started", "EventSent", "Completed"]
    assert [sent.instance for sent in flow.state.outbox] == ["o-2"]


def test_what_is_asked_for_behind_the_end_is_not_done() -> None:
    assert begun(DONE, SendEvent(2, "o-2", "hi"), Complete(3, Status.FAILED)).state.outbox == ()


def test_a_new_execution_begins_with_its_input_what_was_not_used_and_what_came_meanwhile() -> None:
    flow = Flow(Start("order", "e-1", parent=PARENT, version="1", tags={"a": "b"}))
    flow.turn(ScheduleTask(1, "charge"), CreateTimer(2, (int(NOW) + 9, 0)), CreateChild(3, "c-1", "ship"))
    flow.tell(Raise("used"))
    turn = flow.begin()
    flow.tell(Raise("meanwhile", token="t-1"))
    flow.tell(ChildDone("e-1", 3, "shop", "1"))
    flow.resolve(1)
    unused = EventRaised(NOW, "unused")
    flow.finish(turn, Complete(9, Status.CONTINUED_AS_NEW, '"next"', carryover=(unused,), version="2"))

    started, carried, meanwhile = flow.state.inbox
    assert (started.input, started.version, started.parent, started.tags) == ('"next"', "2", PARENT, {"a": "b"})
    assert (carried, meanwhile.name) == (unused, "meanwhile")
    assert (flow.kinds, flow.state.execution, flow.state.parent) == ([], "e-1+", PARENT)
    assert (flow.status, flow.state.due, flow.state.turns, flow.volatile) == (Status.RUNNING, None, 0, [])
    assert [sent.instance for sent in flow.state.outbox] == ["c-1"]
    assert flow.tell(ChildDone("e-1", 3, "shop", "1")) is None
    assert [type(event).__name__ for event in flow.begin().new][:2] == ["TurnStarted", "Started"]


def test_events_that_a_worker_carries_over_in_any_order_come_in_that_in_which_they_were_raised() -> None:
    flow = Flow()
    for name in ("a", "b", "c"):
        flow.tell(Raise("item", f'"{name}"'))
    carried = tuple(EventRaised(NOW, "item", given) for given in ('"c"', '"made up"', '"b"'))
    flow.finish(flow.begin(), Complete(9, Status.CONTINUED_AS_NEW, carryover=carried))

    assert [each.input for each in flow.state.inbox[1:]] == ['"b"', '"c"', '"made up"']


def test_one_that_was_suspended_meanwhile_is_so_in_its_new_execution() -> None:
    flow = Flow()
    turn = flow.begin()
    flow.tell(Suspend(), turn=turn)
    flow.finish(turn, Complete(9, Status.CONTINUED_AS_NEW))

    assert (flow.status, flow.waiting) == (Status.SUSPENDED, ["Started"])
    assert flow.idle()
    flow.tell(Resume())
    assert (flow.status, flow.waiting) == (Status.RUNNING, ["Started"])


def test_the_time_of_turns_never_goes_back() -> None:
    flow = begun(ScheduleTask(1, "charge"))
    flow.resolve(1)
    flow.now -= 30

    assert flow.begin().new[0].at == NOW


def test_custom_status_stays_until_there_is_another_one() -> None:
    flow = Flow()
    for given, kept in (('"a"', '"a"'), (None, '"a"'), ("", "")):
        flow.tell(Raise("x"))
        answer = Answer(custom_status=given)
        flow.commit(turns.finish(flow.instance, flow.begin(), answer, NOW, "x"))
        assert flow.state.custom_status == kept


def test_version_and_patches_stand_on_the_turn_that_they_are_of() -> None:
    flow = Flow()
    answer = Answer((ScheduleTask(1, "charge"),), version="7", patches=("p1",))
    flow.commit(turns.finish(flow.instance, flow.begin(), answer, NOW, "x"))

    assert (flow.instance.history[0].version, flow.instance.history[0].patches) == ("7", ("p1",))
    assert (flow.state.version, list(flow.instance.patches)) == ("7", ["p1"])


@pytest.mark.parametrize(
    ("before", "now", "stalls"),
    [
        ((), (), False),
        ((), ("a",), False),
        (("a",), ("a",), False),
        (("a",), ("a", "b"), False),
        (("a", "b"), ("b",), True),
        (("a",), (), True),
        (("a", "b"), ("a",), True),
        (("a", "b"), ("b", "a"), True),
    ],
)
def test_the_patches_of_former_turns_are_the_first_of_each_later_one(before, now, stalls) -> None:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge"), patches=before)
    flow.resolve(1)
    flow.turn(DONE, patches=now)

    if not stalls:
        assert flow.status == Status.COMPLETED
        return
    assert (flow.status, flow.waiting, flow.state.due) == (Status.STALLED, ["TaskCompleted"], None)
    text = f"Patch mismatch. History patches: [{', '.join(before)}], current patches: [{', '.join(now)}]."
    assert (flow.instance.history[-1].reason, flow.instance.history[-1].text) == (0, text)


def test_a_stalled_instance_is_told_of_once_for_a_text_and_goes_on_with_a_worker_that_fits() -> None:
    flow = Flow(Start("order", "e-1", version="3"))
    flow.turn(VersionMissing(0))
    assert flow.instance.history[-1].text == "Version not available: 3 of the workflow 'order'"
    assert flow.idle()
    turn = flow.begin(again=True)
    again = Answer((VersionMissing(0),))
    assert turns.finish(flow.instance, turn, again, NOW, "x") is None
    flow.commit(turns.stall(flow.instance, turn, turns.TOO_LARGE, "the history is too large", NOW))
    assert flow.kinds == ["Stalled", "Stalled"]
    flow.finish(flow.begin(again=True), ScheduleTask(1, "charge"))

    assert (flow.status, flow.kinds[2:]) == (Status.RUNNING, ["TurnStarted", "Started", "TaskScheduled"])


def test_one_that_is_suspended_while_it_stalls_stays_suspended_and_keeps_its_timers() -> None:
    flow = begun(CreateTimer(1, (int(NOW) + 9, 0)), ScheduleTask(2, "charge"))
    flow.resolve(2)
    turn = flow.begin()
    flow.tell(Suspend(), turn=turn)
    flow.finish(turn, VersionMissing(0))
    assert (flow.status, flow.state.due) == (Status.SUSPENDED, NOW + 9)
    flow.tell(Resume())
    assert (flow.status, flow.waiting) == (Status.RUNNING, ["TaskCompleted"])


def charged() -> Flow:
    flow = begun(ScheduleTask(1, "charge"), CreateTimer(2, (int(NOW), 0)), SendEvent(4, "o-2", "hi"))
    flow.commit(Step(decide.delivered(flow.state, {1})))
    flow.tell(Raise("x"))
    return flow


SAME = (ScheduleTask(1, "charge", "other"), CreateTimer(2, (5, 5)), Wait(3, "x"), SendEvent(4, "o-2", "hi"))


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_asked_for_before_is_not_asked_for_again(whole: bool) -> None:
    flow = charged()
    flow.turn(*SAME, ScheduleTask(5, "pack"), whole=whole)

    assert flow.kinds[5:] == ["TurnStarted", "EventRaised", "TaskScheduled"]
    assert (flow.state.outbox, sorted(flow.instance.tasks)) == ((), [1, 5])


@pytest.mark.parametrize(
    ("actions", "whole", "text"),
    [
        (
            (CreateTimer(1, (5, 0)),),
            False,
            "history has activity 'charge' with id 1, and the workflow's code now asks for timer there",
        ),
        (
            (ScheduleTask(1, "refund"),),
            False,
            "history has activity 'charge' with id 1, and the workflow's code now asks for activity 'refund' there",
        ),
        (
            (Wait(2, "x"),),
            False,
            "history has timer with id 2, and the workflow's code now asks for wait 'x' there",
        ),
        (
            (ScheduleTask(7, "a"), CreateChild(7, "", "b")),
            False,
            "history has activity 'a' with id 7, and the workflow's code now asks for child workflow 'b' there",
        ),
        (
            SAME[:2],
            True,
            "history has event 'hi' with id 4, and the workflow's code does not ask for it any more",
        ),
        (
            (*SAME[:3], Complete(4, Status.COMPLETED)),
            True,
            "history has event 'hi' with id 4, and the workflow's code does not ask for it any more",
        ),
        (
            (DONE,),
            True,
            "history has activity 'charge' with id 1, and the workflow's code does not ask for it any more",
        ),
    ],
)
def test_code_that_contradicts_the_history_fails_the_instance_and_does_nothing_else(actions, whole, text) -> None:
    flow = charged()
    flow.turn(SendEvent(30, "o-2", "hi"), *actions, whole=whole)
    failure = flow.instance.history[-1].failure

    assert (flow.status, flow.kinds[-2:]) == (Status.FAILED, ["EventRaised", "Completed"])
    assert (failure.type, failure.message, failure.final) == ("NonDeterminismError", text, True)
    assert flow.state.outbox == ()


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (ScheduleTask(2, "pack"), "TaskScheduled"),
        (CreateTimer(2, (int(NOW) + 9, 0)), "TimerCreated"),
        (CreateChild(2, "", "ship"), "ChildCreated"),
    ],
)
def test_changed_code_may_have_something_else_in_the_place_of_a_timer_without_an_end(action: Action, kind: str) -> None:
    """SDKs make one for each wait for an event without a limit, and forget it where a patch came before that wait."""
    flow = begun(ScheduleTask(1, "charge"), CreateTimer(2, (FOREVER, 0)))
    flow.tell(Raise("x"))
    flow.turn(action)
    flow.tell(Raise("y"))
    flow.turn(action)

    assert flow.status == Status.RUNNING
    assert flow.kinds[4:] == ["TurnStarted", "EventRaised", kind, "TurnStarted", "EventRaised"]


def test_a_timer_without_an_end_is_asked_for_once() -> None:
    flow = begun(CreateTimer(2, (FOREVER, 0)))
    flow.tell(Raise("x"))
    flow.turn(CreateTimer(2, (FOREVER, 5)))
    assert flow.kinds.count("TimerCreated") == 1


def test_an_answer_that_is_whole_may_end_what_it_repeats() -> None:
    flow = charged()
    flow.turn(*SAME, DONE, whole=True)
    assert flow.status == Status.COMPLETED


def test_timers_fire_in_order_when_they_are_due_and_never_where_they_have_no_end() -> None:
    flow = begun(
        CreateTimer(1, (int(NOW) + 3, 0)),
        CreateTimer(2, (int(NOW) + 1, 5)),
        CreateTimer(3, (int(NOW) + 3, 0)),
        CreateTimer(4, (FOREVER, 0)),
    )
    flow.now += 1
    flow.fire()
    assert flow.volatile == []
    flow.now += 1
    flow.fire()
    flow.fire()
    assert [event.timer for event in flow.volatile] == [2]
    assert (flow.instance.next_due(flow.now), flow.state.due) == (NOW + 3, NOW + 1.000000005)
    flow.now += 1
    flow.fire()
    assert [event.timer for event in flow.volatile] == [2, 1, 3]
    assert flow.instance.next_due(flow.now) is None
    flow.turn()
    assert (flow.state.due, list(flow.instance.timers)) == (None, [4])


def test_a_first_turn_is_the_same_after_its_owner_has_gone() -> None:
    flow = Flow()
    before = flow.begin()
    flow.reload()
    assert flow.begin() == before
    assert isinstance(before.new[1], Started)


def test_activities_are_open_until_an_outcome_is_stored() -> None:
    flow = begun(ScheduleTask(1, "charge"), ScheduleTask(2, "pack"))
    flow.resolve(1)
    assert sorted(flow.instance.tasks) == [1, 2]
    flow.absorb()
    assert (sorted(flow.instance.tasks), flow.state.open_tasks) == ([2], 1)
    assert isinstance(flow.instance.tasks[2], TaskScheduled)
