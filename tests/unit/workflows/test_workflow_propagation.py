"""What goes along of a workflow's history with its activities and children: by values, and through an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import msgspec
import pytest
from msgspec.structs import replace

from mesh.errors import BadArgumentError, MeshError
from mesh.workflows import decide, propagation, rerun
from mesh.workflows.actions import Action, Complete, CreateChild, CreateTimer, ScheduleTask
from mesh.workflows.errors import WorkflowNotFoundError, WorkflowTooLargeError
from mesh.workflows.events import (
    Ancestor,
    ChildFailed,
    EventRaised,
    Failure,
    Inherited,
    Parent,
    PlainEvent,
    Started,
    TaskFailed,
    TurnStarted,
)
from mesh.workflows.instance import Instance
from mesh.workflows.messages import AnyMessage, Raise, Start, StartWithHistory, Told
from mesh.workflows.propagation import LINEAGE, MAX_BYTES, MAX_SETTLED_BYTES, OWN, complete, events_of, handed_on
from mesh.workflows.state import Sent, Status
from mesh.workflows.worker import TaskResult, TaskWork
from tests.support.workflow_node import APP, REF, answers, live, node_of
from tests.support.workflow_rules import NOW, Flow

PARENT = Parent("shop", "o-1", 2, "order", "e-1")


def kinds(ancestor: Ancestor) -> list[str]:
    return [type(event).__name__ for event in events_of(ancestor)]


def child_of(flow: Flow, *, id: str = "o-2", app: str = "shop") -> Flow:
    """Deliver the last start that a workflow has for others."""
    (message,) = (sent.message for sent in flow.state.outbox[-1:])
    assert isinstance(message, StartWithHistory)
    return Flow(complete(message, flow.instance, {}), id=id, app=app)


def parent(scope: int | None, *actions: Action) -> Flow:
    """One that has had an activity, and now starts a child."""
    flow = Flow()
    flow.turn(ScheduleTask(1, "charge", '"in"'))
    flow.resolve(1, '"paid"')
    flow.turn(CreateChild(2, "o-2", "ship", propagation=scope), *actions)
    return flow


def test_the_own_history_is_what_had_happened_up_to_what_it_goes_along_with() -> None:
    """Whatever is asked for behind it, or happens later."""
    flow = parent(OWN, ScheduleTask(3, "pack", propagation=OWN), CreateTimer(4, (int(NOW) + 5, 0)))
    flow.tell(Raise("hello"))
    child = child_of(flow).instance.inherited

    assert child is not None
    assert (child.scope, [(each.app, each.instance, each.workflow) for each in child.ancestors]) == (
        OWN,
        [("shop", "o-1", "order")],
    )
    told = ["TurnStarted", "Started", "TaskScheduled", "TurnStarted", "TaskCompleted", "ChildCreated"]
    assert kinds(child.ancestors[0]) == told
    assert events_of(child.ancestors[0]) == tuple(flow.instance.history[:6])
    rendered: dict[str, list[bytes]] = {}
    task = flow.instance.tasks[3]
    first = handed_on(flow.instance, task, rendered)
    assert first is not None
    assert kinds(first.ancestors[0]) == [*told, "TaskScheduled"]
    flow.turn()
    assert handed_on(flow.instance, task, rendered) == handed_on(flow.instance, task) == first
    flow.reload()
    assert handed_on(flow.instance, flow.instance.tasks[3]) == first


def test_lineage_has_what_was_inherited_and_the_own_history_alone_has_not() -> None:
    child = child_of(parent(LINEAGE), app="stock")
    child.turn(ScheduleTask(1, "find", propagation=LINEAGE), CreateChild(2, "o-3", "send", propagation=OWN))
    grandchild = child_of(child, id="o-3")
    grandchild.turn(ScheduleTask(1, "post", propagation=LINEAGE))

    found = handed_on(child.instance, child.instance.tasks[1])
    assert found is not None
    assert (found.scope, [(each.app, each.workflow) for each in found.ancestors]) == (
        LINEAGE,
        [("shop", "order"), ("stock", "ship")],
    )
    assert found.ancestors[0] == child.instance.inherited.ancestors[0]
    assert kinds(found.ancestors[1]) == ["TurnStarted", "Started", "TaskScheduled"]  # None twice.
    posted = handed_on(grandchild.instance, grandchild.instance.tasks[1])
    assert posted is not None
    assert [each.instance for each in posted.ancestors] == ["o-2", "o-3"]  # Not what its parent has not handed on.


@pytest.mark.parametrize("scope", [None, 0, 7])
def test_where_nothing_is_asked_for_nothing_goes_along(scope: int | None) -> None:
    """Nor does any byte tell of it."""
    flow = parent(scope, ScheduleTask(3, "pack", propagation=scope))
    assert handed_on(flow.instance, flow.instance.tasks[3]) is None
    (sent,) = flow.state.outbox
    assert type(sent.message) is Start
    assert msgspec.to_builtins(sent.message)[:3] == [1, "ship", "e-1-2"]
    assert len(msgspec.to_builtins(sent.message)) == 10
    assert Flow(sent.message, id="o-2").waiting == ["Started"]
    work = TaskWork("shop", "o-1", "order", 1, 3, 1, "pack", "e-1-3", "shop", NOW)
    assert b"inherited" not in msgspec.msgpack.encode(work)


def test_what_was_inherited_stays_in_all_executions() -> None:
    child = child_of(parent(LINEAGE))
    before = child.instance.inherited
    assert before is not None
    assert child.waiting == ["Started", "Inherited"]
    child.turn(ScheduleTask(1, "find"))
    child.tell(Raise("go"))
    child.turn(Complete(2, Status.CONTINUED_AS_NEW, '"again"'))
    assert child.waiting == ["Started", "Inherited"]
    child.turn(ScheduleTask(1, "find", propagation=LINEAGE))
    assert child.instance.inherited == before
    found = handed_on(child.instance, child.instance.tasks[1])
    assert found is not None
    assert [kinds(each)[-1] for each in found.ancestors] == ["ChildCreated", "TaskScheduled"]
    assert len(found.ancestors) == 2  # It does not grow with each of them.


def test_what_begins_anew_before_its_child_has_been_started_hands_on_the_history_that_it_had() -> None:
    late = parent(LINEAGE)
    (waiting,) = late.state.outbox
    both = complete(waiting.message, late.instance, {})
    late.tell(Raise("go"))
    late.turn(CreateChild(3, "o-3", "ship", propagation=OWN), Complete(4, Status.CONTINUED_AS_NEW))
    first, second = (sent.message for sent in late.state.outbox)

    assert first == both == complete(waiting.message, late.instance, {})  # Also what is on its way already.
    assert kinds(second.inherited.ancestors[0])[-2:] == ["EventRaised", "ChildCreated"]
    assert late.instance.inherited is None


def test_what_is_run_again_has_inherited_the_same_and_hands_on_by_the_same_scopes() -> None:
    child = child_of(parent(OWN))
    child.turn(ScheduleTask(1, "find"))
    child.resolve(1)
    child.turn(ScheduleTask(2, "send", propagation=LINEAGE), CreateChild(3, "", "bill", propagation=OWN))
    child.resolve(2, failure=Failure("Lost", ""))
    child.turn(Complete(4, Status.FAILED))
    again = rerun.make("o-2", child.state, child.instance.history, 2, "o-9", "e-9", NOW + 5)
    new = Flow(again, id="o-9")

    assert new.instance.inherited == child.instance.inherited
    sent = handed_on(new.instance, new.instance.tasks[2])
    assert sent is not None
    assert [each.instance for each in sent.ancestors] == ["o-1", "o-9"]
    billed = child_of(new, id="o-9:0003").instance.inherited
    assert billed is not None
    assert [(each.instance, kinds(each)[-1]) for each in billed.ancestors] == [("o-9", "ChildCreated")]


def large(count: int, scope: int, *actions: Action) -> Flow:
    flow = Flow(Start("order", "e-1", input=json.dumps("x" * count)))
    flow.turn(CreateChild(1, "o-2", "ship", propagation=scope), ScheduleTask(2, "pack", propagation=scope), *actions)
    return flow


def test_it_is_bounded_in_bytes() -> None:
    child = child_of(large(MAX_BYTES - 1000, OWN))
    child.turn(CreateChild(1, "o-3", "send", json.dumps("x" * 1000), propagation=LINEAGE))
    with pytest.raises(WorkflowTooLargeError, match="propagation: the history for the child workflow 'send' has 10"):
        child_of(child, id="o-3")
    flow = large(MAX_BYTES, OWN)
    with pytest.raises(WorkflowTooLargeError, match=r"for the activity 'pack' has 1[0-9]{6} bytes, and 1048576 are"):
        handed_on(flow.instance, flow.instance.tasks[2])
    with pytest.raises(WorkflowTooLargeError, match="for the child workflow 'ship' has 104"):
        complete(flow.state.outbox[0].message, flow.instance, {})


def test_what_is_too_large_is_refused_also_when_its_parent_has_begun_anew() -> None:
    flow = large(MAX_BYTES, OWN, Complete(3, Status.CONTINUED_AS_NEW))
    (sent,) = flow.state.outbox
    with pytest.raises(WorkflowTooLargeError, match="'ship' has more than 1048576 bytes, or with"):
        complete(sent.message, flow.instance, {})
    with pytest.raises(WorkflowNotFoundError):
        complete(sent.message, None, {})


def test_what_begins_anew_keeps_no_more_of_it_for_all_its_children_than_a_record_may_have() -> None:
    """Those beyond are refused when they are to go out; it is so for all that is kept, over its executions."""
    half = json.dumps("x" * (MAX_BYTES // 2))
    flow = Flow(Start("order", "e-1", input=half))
    for name, given in (("a", half), ("b", None)):
        children = [CreateChild(id, f"{name}-{id}", "ship", propagation=OWN) for id in range(1, 11)]
        flow.turn(*children, Complete(11, Status.CONTINUED_AS_NEW, given))
    kept = [sent.message.inherited is not None for sent in flow.state.outbox]
    assert kept == [True] * 15 + [False] * 5  # Each is a little more than a half.
    size = len(msgspec.msgpack.encode(flow.state))
    assert MAX_SETTLED_BYTES - MAX_BYTES < size < MAX_SETTLED_BYTES + MAX_BYTES
    with pytest.raises(WorkflowTooLargeError, match="or with that for others which had not begun 8388608: keep large"):
        complete(flow.state.outbox[-1].message, flow.instance, {})


def test_many_share_what_goes_along_in_memory() -> None:
    """Only the last few events are told of one by one; nothing is encoded twice."""
    flow = Flow()
    flow.turn(*(ScheduleTask(number, "pack", propagation=OWN) for number in range(500)))
    rendered: dict[str, list[bytes]] = {}
    tasks = list(flow.instance.tasks.values())
    # Asked for in any order.
    made = {task.id: handed_on(flow.instance, task, rendered) for task in [*tasks[400:], *tasks[:400]]}
    for number, task in enumerate(tasks):
        found = made[task.id]
        assert found is not None
        assert events_of(found.ancestors[0]) == tuple(flow.instance.history[: number + 3])
    every = {id(run): len(run) for found in made.values() for run in found.ancestors[0].events}
    assert sum(every.values()) < 2.2 * sum(len(msgspec.msgpack.encode(event)) for event in flow.instance.history)
    assert max(len(found.ancestors[0].events) for found in made.values()) < 64 + 500 / 64


def test_what_many_are_given_is_rendered_once_unless_it_is_large() -> None:
    seen: list[int] = []

    def render(events: Sequence[PlainEvent], instance: str, app: str) -> str:
        seen.append(len(events))
        return f"{app}/{instance} {len(events)}"

    rendered = propagation.rendering(render)
    few, large = (msgspec.msgpack.encode((TurnStarted(NOW), EventRaised(NOW, "x" * size))) for size in (1, 70_000))
    for _ in range(3):
        assert rendered(Ancestor("shop", "o-1", "order", (few, large))) == ["shop/o-1 2"] * 2
    assert rendered(Ancestor("shop", "o-2", "order", (few,))) == ["shop/o-2 2"]
    assert len(seen) == 1 + 3 + 1


def inherited(*events: PlainEvent, app: str = "shop", raw: bytes | None = None) -> Inherited:
    stored = msgspec.msgpack.encode(events) if raw is None else raw
    return Inherited(NOW, OWN, (Ancestor(app, "o-1", "order", (stored,)),))


def deep(causes: int) -> Failure:
    failure = Failure("Lost", "")
    for _ in range(causes):
        failure = Failure("Lost", "", inner=failure)
    return failure


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (inherited(app="other"), BadArgumentError, "shop hands on what is not its own history"),
        (replace(inherited(), scope=7), BadArgumentError, "propagation: there is no scope 7; there are 1 and 2"),
        (Inherited(NOW, OWN, ()), BadArgumentError, "shop hands on what is not its own history"),
        (inherited(raw=b"\x91\x92\xcd\xff\xff\x01"), BadArgumentError, "propagation: the history of 'o-1': "),
        (inherited(raw=b"no"), BadArgumentError, "propagation: the history of 'o-1': "),
        (inherited(raw=b"\x91" * 5000), BadArgumentError, "propagation: the history of 'o-1': "),
        (inherited(TaskFailed(NOW, 1, "", deep(40))), BadArgumentError, "a failure in 'o-1' has too many causes"),
        (inherited(Started(NOW, "x" * MAX_BYTES, "", "")), WorkflowTooLargeError, "propagation: the history for "),
    ],
)
def test_what_comes_from_another_node_is_looked_over(given: Inherited, error: type[MeshError], text: str) -> None:
    start = StartWithHistory("ship", "e-2", parent=PARENT, inherited=given)
    with pytest.raises(error) as caught:
        decide.start("stock", "o-2", None, start, NOW)
    assert text in str(caught.value)
    propagation.check(inherited(TaskFailed(NOW, 1, "", deep(30))), "shop")


def test_messages_and_instances_are_read_as_they_were_written() -> None:
    flow = parent(LINEAGE)
    message = complete(flow.state.outbox[0].message, flow.instance, {})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=AnyMessage) == message
    sent = replace(flow.state.outbox[0], message=message)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Sent) == sent
    work = TaskWork("shop", "o-1", "order", 1, 3, 1, "pack", "e-1-3", "shop", NOW, inherited=message.inherited)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(work), type=TaskWork).inherited == message.inherited


# Through an engine


@live
async def test_an_engine_puts_it_in_when_the_work_goes_out() -> None:
    """The outbox has nothing of it; and it is the same when the child is told of again."""
    seen: list[Inherited | None] = []
    async with node_of() as node:

        async def task(work: TaskWork) -> TaskResult | None:
            seen.append(work.inherited)
            if len(seen) == 1:
                node.engine.task_lost(REF, work, begun=True)
                return None
            return TaskResult("1")

        async def away(instance: str, message: AnyMessage) -> Told:
            if len(node.told) == 1:
                assert all(sent.message.inherited is None for sent in node.state().outbox)
                raise MeshError("not now")
            return Told()

        node.task, node.tell_others = task, away
        node.turn = answers(
            ScheduleTask(1, "pack", propagation=OWN), CreateChild(2, "o-2", "ship", propagation=LINEAGE)
        )
        await node.start()
        await asyncio.sleep(10)
    first, second = (message.inherited for _, _, message in node.told)
    assert first == second
    assert kinds(first.ancestors[0]) == ["TurnStarted", "Started", "TaskScheduled", "ChildCreated"]
    assert [kinds(each.ancestors[0])[-1] for each in seen] == ["TaskScheduled"] * 2
    assert first.ancestors[0].app == APP


@live
async def test_it_is_put_in_also_when_the_instance_was_not_in_memory() -> None:
    async with node_of(memory_bytes=1) as node:
        arrived = asyncio.Event()

        async def away(instance: str, message: AnyMessage) -> Told:
            if not arrived.is_set():
                raise MeshError("nobody is there")
            return Told()

        node.tell_others = away
        node.turn = answers(CreateChild(1, "o-2", "ship", propagation=OWN))
        await node.start()
        await asyncio.sleep(100)
        assert node.engine.loaded[0] == 0
        arrived.set()
        await asyncio.sleep(100)
    assert {kinds(message.inherited.ancestors[0])[-1] for _, _, message in node.told} == {"ChildCreated"}
    assert len({id(message) for _, _, message in node.told}) == len(node.told) > 3


@live
async def test_an_id_that_is_used_again_before_its_child_was_there_does_not_change_what_the_child_is_given() -> None:
    async with node_of() as node:
        there = asyncio.Event()
        told: list[AnyMessage] = []

        async def away(instance: str, message: AnyMessage) -> Told:
            if not there.is_set():
                raise MeshError("nobody is there")
            told.append(message)
            return Told()

        node.tell_others = away
        node.turn = answers(CreateChild(1, "o-2", "ship", propagation=OWN), Complete(2, Status.COMPLETED))
        await node.start()
        await node.ended()
        node.turn = answers()
        assert await node.start(execution="y") == Told(1)
        assert node.state().ended is None
        there.set()
        await asyncio.sleep(100)
        assert not node.state().outbox
    (message,) = told
    assert kinds(message.inherited.ancestors[0])[-1] == "ChildCreated"


@live
async def test_what_is_too_large_fails_the_activity_or_the_child_and_nothing_else() -> None:
    """It never goes out; the code may do something about it."""
    ran: list[TaskWork] = []
    async with node_of() as node:

        async def task(work: TaskWork) -> TaskResult:
            ran.append(work)
            return TaskResult("1")

        node.task = task
        node.turn = answers(
            ScheduleTask(1, "pack", json.dumps("x" * MAX_BYTES), propagation=OWN),
            CreateChild(2, "o-2", "ship", propagation=LINEAGE),
            ScheduleTask(3, "bill"),
        )
        await node.start()
        await asyncio.sleep(10)
        failed = [event for event in node.events() if isinstance(event, TaskFailed | ChildFailed)]
    assert sorted((event.task, event.failure.type, event.failure.final) for event in failed) == [
        (1, "WorkflowTooLarge", True),
        (2, "WorkflowTooLarge", True),
    ]
    assert all("continue as new in time" in event.failure.message for event in failed)
    assert [work.task for work in ran] == [3]
    assert not node.told


@live
async def test_an_operation_of_the_mesh_is_given_nothing() -> None:
    seen: list[Inherited | None] = []
    async with node_of() as node:

        async def task(work: TaskWork) -> TaskResult:
            seen.append(work.inherited)
            return TaskResult("1")

        node.task = task
        node.turn = answers(ScheduleTask(1, "mesh.publish", propagation=OWN))
        await node.start()
        await asyncio.sleep(1)
    assert seen == [None]


def test_instances_know_what_they_have_inherited() -> None:
    flow = child_of(parent(OWN))
    assert Instance("o-2", "shop", flow.state, flow.instance.history).inherited == flow.instance.inherited
