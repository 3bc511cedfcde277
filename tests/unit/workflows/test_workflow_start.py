"""How an instance begins: anew, under an id that was used, asked for twice, or with a history."""

from __future__ import annotations

import pytest

from mesh.errors import BadArgumentError
from mesh.workflows import decide
from mesh.workflows.actions import Complete, CreateChild, ScheduleTask
from mesh.workflows.errors import WorkflowExistsError
from mesh.workflows.events import ChildCreated, Parent, Started, TaskScheduled, TurnStarted
from mesh.workflows.messages import Restore, Start, Terminate
from mesh.workflows.state import Status
from tests.support.workflow_rules import NOW, Flow

PARENT = Parent("shop", "p-1", 3, "order", "pe-1")


def test_a_new_instance_waits_for_its_first_turn_with_its_start_in_the_inbox() -> None:
    flow = Flow(Start("order", "e-1", version="", input="1"))

    assert (flow.status, flow.kinds, flow.waiting, flow.state.version) == (Status.PENDING, [], ["Started"], None)
    assert flow.state.generation == int(NOW * 1000)
    assert [type(event) for event in flow.begin().new] == [TurnStarted, Started]


def test_one_that_is_put_off_has_no_turn_before_its_time_and_keeps_what_comes_meanwhile() -> None:
    flow = Flow(Start("order", "e-1", scheduled=NOW + 60))

    assert flow.state.due == NOW + 60
    assert flow.idle()
    flow.now += 60
    assert not flow.idle()


def test_a_time_that_has_passed_puts_nothing_off() -> None:
    flow = Flow(Start("order", "e-1", scheduled=NOW - 1))

    assert flow.state.due is None
    assert not flow.idle()


def test_an_active_id_is_refused_and_the_same_start_has_no_effect() -> None:
    flow = Flow()

    assert decide.start("shop", "o-1", flow.state, Start("order", "e-1"), NOW) is None
    with pytest.raises(WorkflowExistsError, match="an active workflow with ID 'o-1' already exists"):
        decide.start("shop", "o-1", flow.state, Start("order", "e-2"), NOW)


def test_an_id_whose_instance_ended_is_used_again_by_a_later_generation_that_keeps_the_messages_of_the_first() -> None:
    flow = Flow(Start("order", "e-1", parent=PARENT))
    flow.turn(Complete(1, Status.COMPLETED, "1"))
    before = flow.state
    step = decide.start("shop", "o-1", before, Start("other", "e-2"), NOW)

    assert step is not None
    assert step.state.generation == before.generation + 1
    assert (step.state.outbox, step.state.sent) == (before.outbox, before.sent)
    assert step.state.parent is None
    flow.commit(step)
    assert (flow.kinds, flow.waiting, flow.status) == ([], ["Started"], Status.PENDING)


def test_a_start_that_comes_late_once_more_starts_nothing_though_others_came_between() -> None:
    flow = Flow()
    flow.tell(Terminate())
    flow.commit(decide.start("shop", "o-1", flow.state, Start("order", "e-2"), NOW + 1))
    flow.now += 1

    assert decide.start("shop", "o-1", flow.state, Start("order", "e-1"), NOW + 2) is None
    flow.tell(Terminate())
    assert decide.start("shop", "o-1", flow.state, Start("order", "e-1"), NOW + 2) is None


@pytest.mark.parametrize("ended", [False, True])
def test_a_child_that_its_parent_asks_for_once_more_is_the_same_one(ended: bool) -> None:
    flow = Flow(Start("order", "e-1", parent=PARENT))
    if ended:
        flow.turn(Complete(1, Status.COMPLETED))

    assert decide.start("shop", "o-1", flow.state, Start("order", "e-other", parent=PARENT), NOW) is None


def test_the_next_execution_of_a_parent_has_a_child_of_its_own_under_the_same_id() -> None:
    flow = Flow(Start("order", "e-1", parent=PARENT))
    later = Start("order", "e-2", parent=Parent("shop", "p-1", 3, "order", "pe-2"))
    with pytest.raises(WorkflowExistsError):
        decide.start("shop", "o-1", flow.state, later, NOW)
    flow.turn(Complete(1, Status.COMPLETED))

    assert decide.start("shop", "o-1", flow.state, later, NOW) is not None


def test_one_with_a_history_goes_on_where_that_ends_and_starts_the_children_that_are_open() -> None:
    history = (
        TurnStarted(NOW),
        Started(NOW, "order", "e-9", "shop"),
        TaskScheduled(NOW, 1, "charge", "e-9-1"),
        ChildCreated(NOW, 2, "c-2", "ship", app="depot"),
    )
    flow = Flow(Restore("e-9", history))

    assert (flow.status, flow.state.turns) == (Status.RUNNING, 1)
    assert (list(flow.instance.tasks), list(flow.instance.children)) == ([1], [2])
    assert flow.idle()
    [sent] = flow.state.outbox
    assert (sent.app, sent.instance, sent.message.parent) == ("depot", "c-2", Parent("shop", "o-1", 2, "order", "e-9"))
    assert decide.restore("shop", "o-1", flow.state, Restore("e-9", history), NOW) is None
    with pytest.raises(WorkflowExistsError):
        decide.restore("shop", "o-1", flow.state, Restore("e-10", history), NOW)
    flow.tell(Terminate())
    with pytest.raises(WorkflowExistsError, match="a workflow with ID 'o-1' already exists"):
        decide.restore("shop", "o-1", flow.state, Restore("e-10", history), NOW)


def test_what_is_no_history_is_refused() -> None:
    with pytest.raises(BadArgumentError, match="how it was started"):
        decide.restore("shop", "o-1", None, Restore("e-9", (TurnStarted(NOW),)), NOW)


def test_children_and_activities_that_are_asked_for_have_ids_that_are_the_same_when_asked_for_again() -> None:
    flow = Flow()
    step = flow.turn(ScheduleTask(17, "charge"), CreateChild(18, "", "ship"))

    assert step.append[-2].execution_id == "e-1-17"
    assert step.append[-1].instance == "o-1:0012"
    assert step.state.outbox[0].message.execution == "e-1-18"
