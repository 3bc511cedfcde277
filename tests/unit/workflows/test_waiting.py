"""What an instance waits for: by its history, and by what workers say of events."""

from __future__ import annotations

import pytest

from mesh.workflows.actions import Complete, CreateChild, CreateTimer, ScheduleTask
from mesh.workflows.events import FOREVER, Origin
from mesh.workflows.messages import Raise, Terminate
from mesh.workflows.state import Awaited, Status
from mesh.workflows.waiting import MAX_AWAITED, MAX_LISTED, Child, Raised, Task, Timer, Waiting, waiting_of
from tests.support.workflow_rules import NOW, Flow

AT = int(NOW)


def told(flow: Flow, *settled: int) -> Waiting:
    tasks = [
        Task(each.id, each.name, each.app or "shop", each.at, 1, running=False)
        for each in flow.instance.tasks.values()
        if each.id not in settled
    ]
    return waiting_of(flow.instance, tasks, settled.__contains__)


def names(flow: Flow) -> list[tuple[str, int]]:
    return [(each.name, each.count) for each in told(flow).events]


def test_what_is_open_is_told_with_its_time() -> None:
    flow = Flow()
    flow.turn(
        ScheduleTask(1, "charge"),
        CreateTimer(2, (AT + 60, 500_000_000)),
        CreateTimer(3, (AT + 30, 0), origin=Origin(3, "e-1-1")),
        CreateTimer(4, (FOREVER, 0)),
        CreateChild(5, "c-1", "ship", app="depot"),
        CreateChild(6, "", "pack"),
    )

    assert told(flow) == Waiting(
        (Task(1, "charge", "shop", NOW, 1, running=False),),
        (Timer(3, NOW, AT + 30, retries="e-1-1"), Timer(2, NOW, AT + 60.5)),
        (),
        (Child(5, "ship", "depot", "c-1", NOW), Child(6, "pack", "shop", "o-1:0006", NOW)),
        all_timers=2,
    )
    assert [each.id for each in told(flow, 1, 3).timers] == [2]
    flow.tell(Terminate())
    assert told(flow) == Waiting()


def test_events_that_a_worker_over_http_waits_for() -> None:
    """Each takes the first of its name; what nobody has waited for is kept, and told."""
    flow = Flow()
    flow.turn(waits=["go", "go", "stop"])
    assert flow.state.awaited == (Awaited("go", 2, NOW), Awaited("stop", 1, NOW))
    flow.now += 1
    flow.tell(Raise("go"))
    flow.tell(Raise("other", token="t"))
    assert told(flow).raised == (Raised("go", NOW + 1), Raised("other", NOW + 1))  # In no turn yet.
    flow.now += 1
    flow.turn(waits=["go", "go", "stop"])

    assert flow.state.awaited == (Awaited("go", 1, NOW + 2), Awaited("stop", 1, NOW), Awaited("other", -1, NOW + 2))
    assert names(flow) == [("go", 1), ("stop", 1)]
    assert (told(flow).raised, told(flow).all_raised) == ((Raised("other", NOW + 1),), 1)
    flow.reload()
    assert names(flow) == [("go", 1), ("stop", 1)], "also at another owner"
    flow.now += 1
    flow.tell(Raise("go"))
    flow.turn(waits=["go", "go", "stop", "other"])
    assert names(flow) == [("stop", 1)]
    assert told(flow).raised == ()
    flow.tell(Raise("stop"))
    flow.turn(Complete(9, Status.CONTINUED_AS_NEW))
    assert flow.state.awaited == ()


def test_of_one_name_the_last_that_came_were_not_taken() -> None:
    flow = Flow()
    flow.turn(waits=["go"])
    for _ in range(3):
        flow.now += 1
        flow.tell(Raise("go"))
    flow.turn(waits=["go"])
    assert told(flow).raised == (Raised("go", NOW + 2), Raised("go", NOW + 3))


def test_events_that_a_worker_over_grpc_waits_for_are_known_by_its_timers() -> None:
    """An event of any case is that of the first wait; one that is over by its timer waits no more."""
    flow = Flow()
    flow.turn(
        CreateTimer(1, (FOREVER, 0), origin=Origin(2, "Approve")),
        CreateTimer(2, (AT + 60, 0), origin=Origin(2, "cancel")),
        CreateTimer(3, (AT + 90, 0), origin=Origin(2, "cancel")),
    )
    assert told(flow).events == (Awaited("Approve", 1, NOW), Awaited("cancel", 2, NOW))
    assert told(flow).timers == (Timer(2, NOW, AT + 60.0, "cancel"), Timer(3, NOW, AT + 90.0, "cancel"))
    flow.tell(Raise("approve"))
    flow.tell(Raise("unknown"))
    assert [each.name for each in told(flow).raised] == ["approve", "unknown"]
    flow.turn()
    assert names(flow) == [("cancel", 2)]
    assert told(flow).raised == ()  # Whether the code has taken them is not known.
    flow.now += 61
    flow.fire()
    flow.turn()
    assert names(flow) == [("cancel", 1)]
    flow.tell(Raise("CANCEL"))
    flow.turn()
    assert names(flow) == []


@pytest.mark.parametrize("kind", ["tasks", "timers", "children", "raised"])
def test_there_is_a_limit_of_each_kind(kind: str) -> None:
    flow, many = Flow(), range(1, MAX_LISTED + 6)
    if kind == "raised":
        for _ in many:
            flow.tell(Raise("go"))
    else:
        make = {
            "tasks": lambda each: ScheduleTask(each, "a"),
            "timers": lambda each: CreateTimer(each, (AT + each, 0)),
            "children": lambda each: CreateChild(each, f"c-{each}", "w"),
        }[kind]
        flow.turn(*map(make, many))
    found = told(flow)
    assert len(getattr(found, kind)) == MAX_LISTED
    counts = {"tasks": flow.state.open_tasks, "children": flow.state.open_children}
    assert counts.get(kind, found.all_timers + found.all_raised) == len(many)


def test_the_names_that_are_kept_are_few_and_short() -> None:
    flow = Flow()
    for each in range(10):
        flow.tell(Raise(f"kept-{each}"))
    flow.turn(waits=[f"{each}-{'x' * 1000}" for each in range(60)])
    assert len(flow.state.awaited) == MAX_AWAITED
    assert {len(each.name) for each in flow.state.awaited} == {100}
    assert all(each.count == 1 for each in flow.state.awaited)
    flow.now += 1
    flow.tell(Raise("kept-0"))
    flow.turn(waits=[f"{each}-{'x' * 1000}" for each in range(60)])
    assert {each.since for each in flow.state.awaited} == {NOW}
