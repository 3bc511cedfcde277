"""Running an instance again from one of its events: what is taken over, and what is asked for anew."""

from __future__ import annotations

import pytest

from mesh.errors import BadArgumentError
from mesh.workflows import decide, rerun
from mesh.workflows.actions import Complete, CreateChild, CreateTimer, ScheduleTask, SendEvent
from mesh.workflows.errors import WorkflowEventNotFoundError, WorkflowNotEndedError
from mesh.workflows.events import ChildCreated, Parent, Started, TaskScheduled, TimerCreated
from mesh.workflows.messages import ChildDone, Raise, Resume, Start, Suspend, Terminate
from mesh.workflows.state import Status, Step
from tests.support.workflow_rules import NOW, Flow

LATER = NOW + 500


def ended() -> Flow:
    """One with two turns of work, the second one wide, of which not all had an outcome."""
    flow = Flow(Start("order", "e-1", input='"in"', parent=Parent("shop", "p-1", 1)))
    flow.turn(ScheduleTask(1, "charge"), CreateTimer(2, (int(NOW) + 5, 0)), CreateChild(3, "c-3", "ship"))
    flow.tell(Suspend())
    flow.tell(Raise("hello"))
    flow.tell(Resume())
    flow.resolve(1)
    flow.turn(ScheduleTask(4, "pack", '"old"'), CreateChild(5, "o-1:0005", "ship"), SendEvent(6, "o-2", "hi"))
    flow.tell(ChildDone("e-1", 5, "shop", "1"))
    flow.resolve(4)
    flow.turn(ScheduleTask(7, "bill"))
    flow.resolve(7)
    flow.turn(Complete(8, Status.FAILED))
    return flow


def again(flow: Flow, event: int | None, **options: object) -> Flow:
    message = rerun.make("o-1", flow.state, flow.instance.history, event, "o-9", "e-9", LATER, **options)
    return Flow(message, id="o-9")


def test_what_was_done_before_the_event_is_taken_over_and_the_rest_of_its_turn_is_asked_for_anew() -> None:
    new = again(ended(), 4)

    assert new.kinds == [
        "TurnStarted",
        "Started",
        "TaskScheduled",
        "TimerCreated",
        "ChildCreated",
        "TurnStarted",
        "EventRaised",
        "TaskCompleted",
        "TaskScheduled",
        "ChildCreated",
        "EventSent",
    ]
    assert (list(new.instance.tasks), list(new.instance.timers), list(new.instance.children)) == ([4], [2], [3, 5])
    assert (new.status, new.state.turns, new.state.due) == (Status.RUNNING, 2, NOW + 5)
    task = new.instance.tasks[4]
    assert (task.at, task.input, task.execution_id, task.rerun_of) == (LATER, '"old"', "e-9-4", "o-1")


def test_the_new_instance_is_nobodys_child_and_its_children_are_its_own() -> None:
    new = again(ended(), 4)
    started = new.instance.started

    assert isinstance(started, Started)
    assert (started.parent, new.state.parent, started.rerun_of, started.input) == (None, None, "o-1", '"in"')
    assert (started.execution, new.state.execution) == ("e-9", "e-9")
    assert [(sent.instance, sent.message.parent.instance) for sent in new.state.outbox] == [
        ("o-9:0003", "o-9"),
        ("o-9:0005", "o-9"),
    ]


def test_it_goes_on_under_the_numbers_of_its_history() -> None:
    new = again(ended(), 4)
    assert new.idle()
    new.resolve(4)
    turn = new.begin()
    assert turn.number == 3
    new.finish(turn, ScheduleTask(7, "bill"))
    assert sorted(new.instance.tasks) == [7]


def test_a_new_input_is_for_the_event_alone() -> None:
    tasks = again(ended(), 1, input=None, overwrite=True).instance.tasks
    assert (tasks[1].input, list(tasks)) == (None, [1])
    assert again(ended(), 4, input='"new"', overwrite=True).instance.tasks[4].input == '"new"'
    assert again(ended(), 4, input='"new"').instance.tasks[4].input == '"old"'


def test_from_a_timer_that_fires_at_once_where_its_time_has_passed() -> None:
    new = again(ended(), 2)
    new.now = LATER
    new.fire()

    assert [event.timer for event in new.volatile] == [2]
    assert isinstance(new.instance.asked[2], TimerCreated)
    assert new.instance.asked[2].rerun_of == "o-1"


def test_from_a_child_which_has_another_id_then() -> None:
    new = again(ended(), 5, new_child_id="c-5", input="2", overwrite=True)
    child = new.instance.children[5]

    assert isinstance(child, ChildCreated)
    assert (child.instance, child.input, child.rerun_of) == ("c-5", "2", "o-1")
    assert new.state.outbox[-1].instance == "c-5"
    assert again(ended(), 5).instance.children[5].instance == "o-9:0005"


def test_from_its_first_event_where_none_is_named() -> None:
    new = again(ended(), None)
    assert new.kinds == again(ended(), 1).kinds
    assert list(new.instance.tasks) == [1]
    nothing = Flow()
    nothing.turn(Complete(1, Status.COMPLETED))
    with pytest.raises(WorkflowEventNotFoundError, match=r"'o-1' has no activity, timer or child$"):
        again(nothing, None)


def test_what_was_only_stored_when_it_was_terminated_was_not_used_and_is_done_again() -> None:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge"))
    flow.resolve(1)
    flow.absorb()
    flow.tell(Terminate())
    assert flow.kinds[-3:] == ["TaskCompleted", "Terminated", "Completed"]
    new = again(flow, 1)

    assert new.kinds == ["TurnStarted", "Started", "TaskScheduled"]
    assert isinstance(new.instance.tasks[1], TaskScheduled)


@pytest.mark.parametrize(
    ("event", "options", "error", "text"),
    [
        (6, {}, WorkflowEventNotFoundError, "the workflow 'o-1' has no activity, timer or child with id 6; its"),
        (77, {}, WorkflowEventNotFoundError, "with id 77; its first has id 1"),
        (2, {"overwrite": True}, BadArgumentError, "event 2 of the workflow 'o-1' is a timer, which has no input"),
        (4, {"new_child_id": "c"}, BadArgumentError, "is no child, which a new id is for"),
    ],
)
def test_what_makes_no_sense_is_refused(event, options, error, text) -> None:
    with pytest.raises(error, match=text):
        again(ended(), event, **options)


def test_only_what_has_ended_is_run_again_and_under_another_id() -> None:
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge"))
    with pytest.raises(WorkflowNotEndedError, match="the workflow 'o-1' has not ended"):
        again(flow, 1)
    flow.tell(Terminate())
    with pytest.raises(BadArgumentError, match="under its own id"):
        rerun.make("o-1", flow.state, flow.instance.history, 1, "o-1", "e-9", LATER)


def test_one_that_was_run_again_can_be_run_again() -> None:
    new = again(ended(), 4)
    new.resolve(4)
    new.turn(Complete(9, Status.COMPLETED))
    new.commit(Step(decide.delivered(new.state, {1, 2})))
    message = rerun.make("o-9", new.state, new.instance.history, 4, "o-10", "e-10", LATER)
    third = Flow(message, id="o-10")

    assert (third.instance.tasks[4].execution_id, third.instance.tasks[4].rerun_of) == ("e-10-4", "o-9")
