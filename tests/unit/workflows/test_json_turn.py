"""Turns as JSON: what a worker over HTTP is told, and how its answer is read."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from mesh.workflows.actions import (
    Complete,
    CreateChild,
    CreateDetached,
    CreateTimer,
    ScheduleTask,
    SendEvent,
    Wait,
)
from mesh.workflows.events import (
    FOREVER,
    Ancestor,
    ChildCompleted,
    ChildCreated,
    ChildFailed,
    Completed,
    DetachedCreated,
    Event,
    EventRaised,
    EventSent,
    Failure,
    Inherited,
    Resumed,
    Retry,
    Retrying,
    Stalled,
    Started,
    Suspended,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    Terminated,
    TimerCreated,
    TimerFired,
    TurnStarted,
)
from mesh.workflows.json_answer import AnswerInvalidError, failure_of, read_answer
from mesh.workflows.json_turn import event_json, task_json, turn_json
from mesh.workflows.propagation import LINEAGE, OWN
from mesh.workflows.state import Status
from mesh.workflows.worker import Ref, TaskWork, TurnWork

AT = 1_800_000_000.25
NOW = "2027-01-15T08:00:00.250Z"
STARTED = Started(AT, "order", "x1", "shop", input='{"total":7}')


def work(
    past: tuple[Event, ...] = (), new: tuple[Event, ...] = (TurnStarted(AT), STARTED), number: int = 1
) -> TurnWork:
    return TurnWork(Ref(3, "o-1"), "shop", "order", "x1", 7, number, past, new)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (STARTED, {"event": "started", "workflow": "order"}),
        (TurnStarted(AT), {"event": "turn", "now": NOW}),
        (
            TurnStarted(AT, "v2", ("a", "b")),
            {"event": "turn", "now": NOW, "version": "v2", "patches": ["a", "b"]},
        ),
        (TaskScheduled(AT, 1, "charge", "e1", input="1"), {"event": "scheduled", "task": 1, "activity": "charge"}),
        (TaskCompleted(AT, 1, "e1", '{"ok":true}'), {"event": "completed", "task": 1, "result": {"ok": True}}),
        (TaskCompleted(AT, 1, "e1"), {"event": "completed", "task": 1, "result": None}),
        (ChildCompleted(AT, 4, "no JSON"), {"event": "completed", "task": 4, "result": "no JSON"}),
        (
            TaskFailed(AT, 2, "e2", Failure("Refused", "no", "at x", Failure("Inner", "why"), final=True)),
            {
                "event": "failed",
                "task": 2,
                "error": {
                    "type": "Refused",
                    "message": "no",
                    "final": True,
                    "stack": "at x",
                    "cause": {"type": "Inner", "message": "why", "final": False},
                },
            },
        ),
        (
            ChildFailed(AT, 4, Failure("T", "m")),
            {"event": "failed", "task": 4, "error": {"type": "T", "message": "m", "final": False}},
        ),
        (
            Retrying(AT, 2, 3, AT + 1, Failure("T", "m")),
            {"event": "retrying", "task": 2, "attempt": 3, "error": {"type": "T", "message": "m", "final": False}},
        ),
        (
            ChildCreated(AT, 4, "o-1:0004", "ship"),
            {"event": "child", "task": 4, "workflow": "ship", "instance": "o-1:0004"},
        ),
        (TimerCreated(AT, 3, (1_800_000_000, 250_000_000)), {"event": "timer", "task": 3, "fireAt": NOW}),
        (TimerCreated(AT, 3, (FOREVER + 5, 0)), {"event": "timer", "task": 3, "fireAt": "9999-12-31T23:59:59.000Z"}),
        (TimerCreated(AT, 3, (-(2**63), 0)), {"event": "timer", "task": 3, "fireAt": "0001-01-01T00:00:00.000Z"}),
        (TimerFired(AT, 3, (1_800_000_000, 0)), {"event": "fired", "task": 3}),
        (EventRaised(AT, "approve", "true"), {"event": "raised", "name": "approve", "data": True}),
        (EventRaised(AT, 'say "x"', '{"broken'), {"event": "raised", "name": 'say "x"', "data": '{"broken'}),
        (EventSent(AT, 5, "o-2", "hello"), {"event": "sent", "task": 5, "name": "hello", "to": "o-2"}),
        (DetachedCreated(AT, 6, "o-3"), {"event": "detached", "task": 6, "instance": "o-3"}),
        (Suspended(AT, "a break"), {"event": "suspended", "reason": "a break"}),
        (Resumed(AT), {"event": "resumed", "reason": None}),
        (Terminated(AT, '"enough"'), {"event": "terminated", "output": "enough"}),
        (Stalled(AT, 1, "no such version"), {"event": "stalled", "reason": "no such version"}),
        (
            Completed(AT, 9, Status.COMPLETED, "17"),
            {"event": "ended", "status": "COMPLETED", "result": 17, "error": None},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Event) else "",
)
def test_an_event(event: Event, told: dict[str, object]) -> None:
    assert orjson.loads(event_json(event)) == told


HANDED = Inherited(
    AT,
    LINEAGE,
    (
        Ancestor(
            "shop",
            "o-1",
            "order",
            (
                msgspec.msgpack.encode((TurnStarted(AT), STARTED)),
                msgspec.msgpack.encode(
                    (
                        TaskScheduled(AT, 1, "charge", "e1", input="7"),
                        TaskCompleted(AT, 1, "e1", '"paid"'),
                        ChildCreated(AT, 2, "s-1", "ship"),
                    )
                ),
            ),
        ),
        Ancestor("stock", "s-1", "ship", (msgspec.msgpack.encode((EventRaised(AT, "go"),)),)),
    ),
)
TOLD = {
    "scope": "lineage",
    "workflows": [
        {
            "app": "shop",
            "instance": "o-1",
            "workflow": "order",
            "history": [
                {"event": "turn", "now": NOW},
                {"event": "started", "workflow": "order", "input": {"total": 7}},
                {"event": "scheduled", "task": 1, "activity": "charge", "input": 7},
                {"event": "completed", "task": 1, "result": "paid"},
                {"event": "child", "task": 2, "workflow": "ship", "instance": "s-1", "input": None},
            ],
        },
        {
            "app": "stock",
            "instance": "s-1",
            "workflow": "ship",
            "history": [{"event": "raised", "name": "go", "data": None}],
        },
    ],
}


def test_what_was_inherited() -> None:
    """An event of the history, with inputs, which this code has not made; and part of an activity's body."""
    assert orjson.loads(event_json(HANDED)) == {"event": "inherited", **TOLD}
    told = orjson.loads(turn_json(work(new=(TurnStarted(AT), STARTED, HANDED))))
    assert [each["event"] for each in told["history"]] == ["turn", "started", "inherited"]

    given = TaskWork("stock", "s-1", "ship", 7, 3, 1, "audit", "e1-3", "stock", AT, "no JSON", inherited=HANDED)
    assert orjson.loads(task_json(given)) == {"input": "no JSON", "inherited": TOLD}
    given.inherited = None
    assert task_json(given) == b"no JSON"


def test_the_first_turn() -> None:
    assert orjson.loads(turn_json(work())) == {
        "instance": "o-1",
        "workflow": "order",
        "execution": "x1",
        "turn": 1,
        "now": NOW,
        "new": 0,
        "from": 0,
        "version": None,
        "input": {"total": 7},
        "history": [{"event": "turn", "now": NOW}, {"event": "started", "workflow": "order"}],
    }


def test_a_later_turn_renders_what_is_new_alone() -> None:
    """What was rendered before is taken as it is; with a part kept by the worker, only the rest goes out."""
    later = work((TurnStarted(AT), STARTED, TaskScheduled(AT, 1, "charge", "e1")), (TurnStarted(AT),), 2)
    later.rendered["json"] = [b'{"event":"rendered"}']
    told = orjson.loads(turn_json(later))
    assert [each["event"] for each in told["history"]] == ["rendered", "started", "scheduled", "turn"]
    assert (told["new"], told["from"], told["input"]) == (3, 0, {"total": 7})
    told = orjson.loads(turn_json(later, 2))
    assert [each["event"] for each in told["history"]] == ["scheduled", "turn"]
    assert (told["new"], told["from"], "input" in told) == (3, 2, False)


def answered(answer: object, **of: Any) -> tuple[Any, ...]:
    return read_answer(orjson.dumps(answer), work(**of)).actions


@pytest.mark.parametrize(
    ("given", "action"),
    [
        ({"activity": "charge"}, ScheduleTask(1, "charge")),
        ({"activity": "charge", "input": None}, ScheduleTask(1, "charge", "null")),
        (
            {"activity": "charge", "input": {"a": "ä"}, "version": "2", "app": "billing", "task": 7},
            ScheduleTask(7, "charge", '{"a":"ä"}', "2", app="billing"),
        ),
        (
            {"activity": "charge", "retry": {"attempts": 3}},
            ScheduleTask(1, "charge", retry=Retry(3)),
        ),
        (
            {
                "activity": "charge",
                "retry": {
                    "attempts": 5,
                    "first": "500ms",
                    "factor": 2,
                    "max": "PT1M",
                    "within": "10m",
                    "except": ["Refused"],
                },
            },
            ScheduleTask(1, "charge", retry=Retry(5, 0.5, 2, 60, 600, ("Refused",))),
        ),
        ({"timer": "PT5M"}, CreateTimer(1, (1_800_000_300, 250_000_000))),
        ({"timer": "1.5s"}, CreateTimer(1, (1_800_000_001, 750_000_000))),
        ({"timer": "2027-01-15T08:00:00Z"}, CreateTimer(1, (1_800_000_000, 0))),
        ({"wait": "approve"}, Wait(1, "approve")),
        ({"workflow": "ship", "input": 1}, CreateChild(1, "", "ship", "1")),
        (
            {"workflow": "ship", "id": "s-1", "version": "2", "app": "shipping"},
            CreateChild(1, "s-1", "ship", None, "2", "shipping"),
        ),
        ({"activity": "audit", "propagate": "own"}, ScheduleTask(1, "audit", propagation=OWN)),
        ({"workflow": "audit", "propagate": "lineage"}, CreateChild(1, "", "audit", propagation=LINEAGE)),
        ({"start": "audit", "id": "a-1", "input": []}, CreateDetached(1, "a-1", "audit", "[]")),
        ({"send": "approve", "to": "o-2", "data": True}, SendEvent(1, "o-2", "approve", "true")),
        (
            {"operation": "publish", "pubsub": "p", "topic": "t", "data": {"x": 1}, "retry": {"attempts": 2}},
            ScheduleTask(1, "mesh.publish", '{"data":{"x":1},"pubsub":"p","topic":"t"}', retry=Retry(2)),
        ),
        (
            {"operation": "invoke", "app": "a", "path": "/x", "method": "GET"},
            ScheduleTask(1, "mesh.invoke", '{"app":"a","method":"GET","path":"/x"}'),
        ),
        (
            {"operation": "actor", "type": "cart", "id": "ann", "method": "add"},
            ScheduleTask(1, "mesh.actor", '{"id":"ann","method":"add","type":"cart"}'),
        ),
        (
            {"operation": "state.set", "store": "s", "key": "k", "value": None},
            ScheduleTask(1, "mesh.state.set", '{"store":"s","key":"k","value":null}'),
        ),
    ],
)
def test_an_action(given: dict[str, object], action: object) -> None:
    assert answered({"actions": [given]}) == (action,)


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ({"complete": {"id": 17}}, Complete(1, Status.COMPLETED, '{"id":17}')),
        ({"complete": None}, Complete(1, Status.COMPLETED, "null")),
        (
            {"fail": {"type": "Refused", "message": "no", "stack": "s"}},
            Complete(1, Status.FAILED, failure=Failure("Refused", "no", "s")),
        ),
        ({"fail": {}}, Complete(1, Status.FAILED, failure=Failure("WorkflowFailed", "the workflow has failed"))),
        ({"continueAsNew": 8, "version": "2"}, Complete(1, Status.CONTINUED_AS_NEW, "8", version="2")),
    ],
)
def test_an_end(answer: dict[str, object], end: Complete) -> None:
    assert answered(answer) == (end,)


def test_positions_are_numbers() -> None:
    """An end takes the next one."""
    actions = answered({"actions": [{"wait": "a"}, {"task": 9, "timer": "1s"}, {"activity": "b"}], "complete": 1})
    assert [each.id for each in actions] == [1, 9, 3, 10]


def test_the_rest_of_an_answer() -> None:
    answer = read_answer(b'{"status": "charging", "version": "2", "patches": ["p"]}', work())
    assert (answer.custom_status, answer.version, answer.patches) == ('"charging"', "2", ("p",))
    assert (answer.whole, answer.actions) == (True, ())
    assert read_answer(b"{}", work()).custom_status is None


def test_events_that_nothing_waited_for_go_on() -> None:
    """Each wait takes the first of its name; with ``keepEvents: false`` none is kept."""
    raised = [
        EventRaised(AT, name, text, str(index))
        for index, (name, text) in enumerate([("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")])
    ]
    of = {"past": (TurnStarted(AT), STARTED, *raised[:2]), "new": (TurnStarted(AT), *raised[2:])}
    answer = {"actions": [{"wait": "a"}, {"wait": "a"}, {"wait": "c"}], "continueAsNew": None}
    assert answered(answer, **of)[-1].carryover == (raised[1], raised[3])
    assert answered({**answer, "keepEvents": False}, **of)[-1].carryover == ()


def test_what_was_answered_before_is_not_read_again() -> None:
    """The beginning is compared byte by byte; what is not the same is given to the core as a whole."""
    actions = [{"activity": "a", "input": 1}, {"timer": "1m"}]
    first = work()
    read_answer(orjson.dumps({"actions": actions}), first)
    second = work((TurnStarted(AT), STARTED), (TurnStarted(AT + 9),), 2)
    second.rendered = first.rendered
    answer = read_answer(orjson.dumps({"actions": [*actions, {"activity": "b"}]}), second)
    assert (answer.actions, answer.whole) == ((ScheduleTask(3, "b"),), False)
    # The same turn once more, since that answer was lost.
    answer = read_answer(orjson.dumps({"actions": [*actions, {"activity": "b"}]}), second)
    assert ([each.id for each in answer.actions], answer.whole) == ([1, 2, 3], True)
    third = work((TurnStarted(AT), STARTED), (TurnStarted(AT + 9),), 3)
    third.rendered = first.rendered
    answer = read_answer(orjson.dumps({"actions": [{"activity": "other"}, *actions[1:]]}), third)
    assert ([each.id for each in answer.actions], answer.whole) == ([1, 2], True)


def test_all_events_that_were_waited_for_are_told_with_each_answer() -> None:
    """Also those of the beginning, which is not read again."""
    actions = [{"wait": "a"}, {"timer": "1m"}, {"wait": "ä"}]
    first = work()
    assert read_answer(orjson.dumps({"actions": actions}), first).waits == ("a", "ä")
    second = work((TurnStarted(AT), STARTED), (TurnStarted(AT + 9),), 2)
    second.rendered = first.rendered
    answer = read_answer(orjson.dumps({"actions": [*actions, {"wait": "a"}]}), second)
    assert (answer.actions, answer.waits) == ((Wait(4, "a"),), ("a", "ä", "a"))
    third = work((TurnStarted(AT), STARTED), (TurnStarted(AT + 9),), 3)
    third.rendered = second.rendered
    assert read_answer(orjson.dumps({"actions": [{"wait": "b"}]}), third).waits == ("b",)


KINDS = "activity, timer, wait, workflow, operation, send, start"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the answer: no JSON: "),
        (b"<html>", "the answer: no JSON: "),
        (b"[]", "the answer: expected `object`, got `array`"),
        (b'{"action": []}', "the answer: object contains unknown field `action`"),
        (b'{"actions": {}}', "actions: expected `array`, got `object`"),
        (b'{"actions": [{}]}', f"actions[0]: needs one of {KINDS}, and has none"),
        (b'{"actions": [1]}', "actions[0]: expected `object`, got `int`"),
        (b'{"actions": [{"activity": 1}]}', "actions[0].activity: expected `str | null`, got `int`"),
        (b'{"actions": [{"wait": "a"}, {"activity": ""}]}', "actions[1].activity: expected `str` of length >= 1"),
        (
            b'{"actions": [{"activity": "a", "timer": "1s"}]}',
            f"actions[0]: needs one of {KINDS}, and has activity and timer",
        ),
        (b'{"actions": [{"activity": "a", "inptu": 1}]}', "actions[0]: object contains unknown field `inptu`"),
        (b'{"actions": [{"timer": "1s", "input": 1}]}', "actions[0].input: timer has no such member"),
        (b'{"actions": [{"timer": "soon"}]}', "actions[0].timer: not a duration: 'soon'"),
        (b'{"actions": [{"timer": "5"}]}', "actions[0].timer: a duration needs a unit"),
        (b'{"actions": [{"wait": "a", "task": 0}]}', "actions[0].task: expected `int` >= 1"),
        (b'{"actions": [{"wait": "a", "task": 2}, {"wait": "a"}]}', "actions[1].task: 2 is that of actions[0] already"),
        (
            b'{"actions": [{"activity": "a", "retry": {}}]}',
            "actions[0].retry: object missing required field `attempts`",
        ),
        (
            b'{"actions": [{"activity": "a", "retry": {"attempts": 2, "first": "x"}}]}',
            "actions[0].retry.first: not a duration: 'x'",
        ),
        (
            b'{"actions": [{"activity": "a", "retry": {"attempts": 0}}]}',
            "actions[0].retry.attempts: expected `int` >= 1",
        ),
        (b'{"actions": [{"send": "a"}]}', "actions[0].to: is needed for send"),
        (b'{"actions": [{"start": "a"}]}', "actions[0].id: is needed for start"),
        (b'{"actions": [{"operation": "sing"}]}', "actions[0].operation: there is no 'sing'; there are invoke, "),
        (
            b'{"actions": [{"operation": "state.get", "topic": "t"}]}',
            "actions[0].topic: state.get has no such member",
        ),
        (
            b'{"actions": [{"operation": "publish", "pubsub": "p", "topic": "t", "data": "\xff"}]}',
            "actions[0].data: no UTF-8",
        ),
        (b'{"actions": [{"wait": "a", "task": 2147483647}]}', "actions[0].task: expected `int` <= 2147483646"),
        (
            b'{"actions": [{"activity": "a", "app": "%b"}]}' % (b"a" * 257),
            "actions[0].app: the app id 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…' is longer than 256 bytes",
        ),
        *(
            (b'{"actions": [{"timer": "5s"}, {%b, "app": "%b"}]}' % (kind, app), f"actions[1].app: {problem}")
            for kind in (b'"activity": "a"', b'"workflow": "w"', b'"send": "e", "to": "i"', b'"start": "w", "id": "i"')
            for app, problem in (
                (b"", "the app id must not be empty"),
                (b"a/b", "the app id 'a/b' must not contain dots, slashes, '@', blanks or control characters"),
                (b"a\\u0001", r"the app id 'a\x01' must not contain dots, slashes, '@', blanks or control characters"),
            )
        ),
        (
            b'{"actions": [{"activity": "a", "propagate": "all"}]}',
            "actions[0].propagate: there is no 'all'; there are own, lineage",
        ),
        (
            b'{"actions": [{"start": "a", "id": "b", "propagate": "own"}]}',
            "actions[0].propagate: start has no such member",
        ),
        (
            b'{"actions": [{"operation": "publish", "propagate": "own"}]}',
            "actions[0].propagate: publish has no such member",
        ),
        (b'{"complete": 1, "fail": {}}', "the answer: complete and fail are two ends"),
        (b'{"complete": "\xff"}', "complete: no UTF-8"),
        (b'{"actions": [%b]}' % b",".join([b"{}"] * 100_001), "actions: 100001 are more than 100000"),
        (b'{"actions": ' + b"[" * 100_000, "the answer: no JSON: "),
        (b'{"patches": [1]}', "patches[0]: expected `str`, got `int`"),
    ],
)
def test_an_answer_that_is_none(body: bytes, text: str) -> None:
    """The text names the field."""
    with pytest.raises(AnswerInvalidError) as caught:
        read_answer(body, work())
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("app", ["_shop", "café", "-", "x" * 256])
def test_whatever_a_gateway_may_be_called_is_an_application(app: str) -> None:
    """Also in another namespace, where something is called."""
    (action,) = read_answer(orjson.dumps({"actions": [{"activity": "a", "app": app}]}), work()).actions
    assert action == ScheduleTask(1, "a", app=app)
    (action,) = read_answer(orjson.dumps({"actions": [{"operation": "invoke", "app": f"{app}.other"}]}), work()).actions
    assert action == ScheduleTask(1, "mesh.invoke", orjson.dumps({"app": f"{app}.other"}).decode())


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"", Failure("K", "otherwise", final=False)),
        (b"it broke\n", Failure("K", "it broke")),
        (b"{}", Failure("K", "otherwise")),
        (b'{"type": "T", "message": "m", "stack": "s", "final": true}', Failure("T", "m", "s", final=True)),
        (b'{"type": "T", "cause": {"type": "C"}}', Failure("T", "otherwise", None, Failure("C", ""))),
        (b'{"cause": ' * 100_000, Failure("K", ('{"cause": ' * 410)[:4096])),
        (b'{"type": 1}', Failure("K", '{"type": 1}')),
        (b"\xff" * 5000, Failure("K", "\ufffd" * 4096)),
    ],
)
def test_a_failure(body: bytes, failure: Failure) -> None:
    assert failure_of(body, "K", "otherwise", final=False) == failure


def test_causes_are_bounded() -> None:
    found = failure_of(b'{"cause": ' * 100 + b"{}" + b"}" * 100, "K", "otherwise", final=True)
    depth, inner = 0, found.inner
    while inner is not None:
        depth, inner = depth + 1, inner.inner
    assert depth == 10
