"""Events as messages of the workers' protocol, and actions read from it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import MessageToDict

from gateway.grpc.messages import message
from gateway.routes.workflow_answers import answer_of, result_of, seconds_of
from gateway.routes.workflow_wire import EVENTS, GRPCWire, at
from mesh.address import app_id_problem
from mesh.workflows import actions, events
from mesh.workflows.actions import Answer
from mesh.workflows.events import Ancestor, AnyEvent, Event, EventRaised, Failure, Origin, Parent, Trace
from mesh.workflows.propagation import LINEAGE
from mesh.workflows.state import Status
from mesh.workflows.stream import NOTHING
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork

NOW = 1_800_000_000.25
AT = {"seconds": 1_800_000_000, "nanos": 250_000_000}
MOMENT = AT["seconds"], AT["nanos"]
OUTSIDE = -1
POOL = message("HistoryEvent", "").DESCRIPTOR.file.pool
WIRE = GRPCWire(POOL)
TRACE = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b")
TRACED = {"traceParent": TRACE.parent, "spanID": "b7ad6b7169203331", "traceState": {"value": "a=b"}}
FAILURE = Failure("Broken", "it broke", "at line 1", Failure("Inner", ""), final=True)
FAILED = {
    "errorType": "Broken",
    "errorMessage": "it broke",
    "stackTrace": {"value": "at line 1"},
    "innerFailure": {"errorType": "Inner"},
    "isNonRetriable": True,
}
LAST = (events.FOREVER, 999_999_999)
LAST_AT = {"seconds": LAST[0], "nanos": LAST[1]}

TOLD: list[tuple[Event, int, dict[str, Any]]] = [
    (
        events.Started(
            NOW, "order", "x1", "app", "v2", "", "", Parent("up", "p", 3, "parent", "px"), NOW, TRACE, {"k": "v"}
        ),
        OUTSIDE,
        {
            "executionStarted": {
                "name": "order",
                "version": {"value": "v2"},
                "input": {"value": ""},
                "workflowInstance": {"instanceId": "i", "executionId": {"value": "x1"}},
                "parentInstance": {
                    "taskScheduledId": 3,
                    "name": {"value": "parent"},
                    "workflowInstance": {"instanceId": "p", "executionId": {"value": "px"}},
                    "appID": "up",
                },
                "scheduledStartTimestamp": AT,
                "parentTraceContext": TRACED,
                "tags": {"k": "v"},
            },
            "router": {"sourceAppID": "app"},
        },
    ),
    (
        events.Started(NOW, "order", "x1", "app", caller="other"),
        OUTSIDE,
        {
            "executionStarted": {
                "name": "order",
                "workflowInstance": {"instanceId": "i", "executionId": {"value": "x1"}},
            },
            "router": {"sourceAppID": "other", "targetAppID": "app"},
        },
    ),
    (
        events.Completed(NOW, 7, Status.FAILED, None, FAILURE),
        7,
        {"executionCompleted": {"workflowStatus": 3, "failureDetails": FAILED}},
    ),
    (
        events.Terminated(NOW, "out", recursive=True),
        OUTSIDE,
        {"executionTerminated": {"input": {"value": "out"}, "recurse": True}},
    ),
    (
        events.TaskScheduled(NOW, 1, "charge", "key", "1", "v1", "billing", None, TRACE, "old", 2),
        1,
        {
            "taskScheduled": {
                "name": "charge",
                "version": {"value": "v1"},
                "input": {"value": "1"},
                "parentTraceContext": TRACED,
                "taskExecutionId": "key",
                "rerunParentInstanceInfo": {"instanceID": "old"},
                "historyPropagationScope": 2,
            },
            "router": {"sourceAppID": "app", "targetAppID": "billing"},
        },
    ),
    (
        events.TaskCompleted(NOW, 1, "key", "null"),
        OUTSIDE,
        {"taskCompleted": {"taskScheduledId": 1, "result": {"value": "null"}, "taskExecutionId": "key"}},
    ),
    (
        events.TaskFailed(NOW, 1, "key", FAILURE),
        OUTSIDE,
        {"taskFailed": {"taskScheduledId": 1, "failureDetails": FAILED, "taskExecutionId": "key"}},
    ),
    (
        events.ChildCreated(NOW, 2, "i:0002", "ship", "v1", "2", "ships", TRACE, "old", "first", 1),
        2,
        {
            "childWorkflowInstanceCreated": {
                "instanceId": "i:0002",
                "name": "ship",
                "version": {"value": "v1"},
                "input": {"value": "2"},
                "parentTraceContext": TRACED,
                "rerunParentInstanceInfo": {"instanceID": "old"},
                "historyPropagationScope": 1,
                "retryParentInstanceInfo": {"instanceID": "first"},
            },
            "router": {"sourceAppID": "app", "targetAppID": "ships"},
        },
    ),
    (
        events.ChildCompleted(NOW, 2, "3"),
        OUTSIDE,
        {"childWorkflowInstanceCompleted": {"taskScheduledId": 2, "result": {"value": "3"}}},
    ),
    (
        events.ChildFailed(NOW, 2, FAILURE),
        OUTSIDE,
        {"childWorkflowInstanceFailed": {"taskScheduledId": 2, "failureDetails": FAILED}},
    ),
    (
        events.TimerCreated(NOW, 3, LAST, "go", Origin(2, "go"), "old"),
        3,
        {
            "timerCreated": {
                "fireAt": LAST_AT,
                "name": "go",
                "rerunParentInstanceInfo": {"instanceID": "old"},
                "externalEvent": {"name": "go"},
            }
        },
    ),
    (
        events.TimerCreated(NOW, 3, (1, 0), None, Origin(1)),
        3,
        {"timerCreated": {"fireAt": {"seconds": 1}, "createTimer": {}}},
    ),
    (events.TimerFired(NOW, 3, LAST), OUTSIDE, {"timerFired": {"fireAt": LAST_AT, "timerId": 3}}),
    (events.TurnStarted(NOW), OUTSIDE, {"workflowStarted": {}}),
    (
        events.TurnStarted(NOW, "v2", ("a", "b")),
        OUTSIDE,
        {"workflowStarted": {"version": {"name": "v2", "patches": ["a", "b"]}}},
    ),
    (
        events.EventSent(NOW, 4, "other", "go", "1", "else"),
        4,
        {
            "eventSent": {"instanceId": "other", "name": "go", "input": {"value": "1"}},
            "router": {"sourceAppID": "app", "targetAppID": "else"},
        },
    ),
    (events.EventRaised(NOW, "go", "1", "token"), OUTSIDE, {"eventRaised": {"name": "go", "input": {"value": "1"}}}),
    (events.Suspended(NOW, "why"), OUTSIDE, {"executionSuspended": {"input": {"value": "why"}}}),
    (events.Resumed(NOW), OUTSIDE, {"executionResumed": {}}),
    (events.Stalled(NOW, 1, "no v2"), OUTSIDE, {"executionStalled": {"reason": 1, "description": "no v2"}}),
    (events.DetachedCreated(NOW, 5, "d"), 5, {"detachedWorkflowInstanceCreated": {"instanceId": "d"}}),
]


@pytest.mark.parametrize(("event", "number", "expected"), TOLD, ids=[type(told[0]).__name__ for told in TOLD])
def test_an_event_as_a_message(event: Event, number: int, expected: dict[str, Any]) -> None:
    """Each member is where the protocol has it; what is missing is not an empty text."""
    wanted = message("HistoryEvent", "")(eventId=number, timestamp=AT, **expected)
    assert message("HistoryEvent", "").FromString(WIRE.event(event, "i", "app")) == wanted


def test_workers_are_told_of_every_kind_of_event_but_two() -> None:
    """The engine's own attempts are none of theirs; what was inherited is no event there."""
    kinds = set(AnyEvent.__args__)
    assert {type(told[0]) for told in TOLD} == set(EVENTS) == kinds - {events.Retrying, events.Inherited}
    assert WIRE.event(HANDED, "i", "app") == b""
    assert WIRE.event(events.Retrying(NOW, 1, 2, NOW, FAILURE), "i", "app") == b""


HANDED = events.Inherited(
    NOW,
    LINEAGE,
    (
        Ancestor("up", "p", "parent", (msgspec.msgpack.encode([told[0] for told in TOLD]),)),
        Ancestor("app", "i", "order", (msgspec.msgpack.encode((events.Retrying(NOW, 1, 2, NOW, FAILURE),)),)),
    ),
)


def check_inherited(found: Any) -> None:
    """Require that each event is a message as it is where it happened, and whose it is."""
    parse = message("HistoryEvent", "").FromString
    assert found.scope == LINEAGE
    assert [(each.appId, each.instanceId, each.workflowName) for each in found.chunks] == [
        ("up", "p", "parent"),
        ("app", "i", "order"),
    ]
    told = [parse(WIRE.event(told[0], "p", "up")) for told in TOLD]
    assert [parse(each) for each in found.chunks[0].rawEvents] == told
    assert not found.chunks[1].rawEvents


def test_what_was_inherited() -> None:
    """With each turn, rendered once, also for a worker that remembers the history; and with an activity."""
    past: list[Event] = [events.TurnStarted(NOW), TOLD[0][0], HANDED]
    given = work(past, [events.TurnStarted(NOW)])
    given.inherited = HANDED
    framed, known = WIRE.turn(given, "t.1", NOTHING)
    request = item(framed).workflowRequest
    check_inherited(request.propagatedHistory)
    assert (len(request.pastEvents), known) == (2, (3, 2))
    again = item(WIRE.turn(given, "t.2", known)[0]).workflowRequest
    assert (again.cachedHistory.eventCount, len(again.pastEvents)) == (2, 0)
    check_inherited(again.propagatedHistory)
    assert not item(WIRE.turn(work(past, []), "t.3", NOTHING)[0]).workflowRequest.HasField("propagatedHistory")

    task = TaskWork("app", "i", "order", 1, 3, 2, "charge", "key", "app", NOW, "1", inherited=HANDED)
    check_inherited(item(WIRE.task(task, "t.1")).activityRequest.propagatedHistory)
    assert task.inherited is None  # An activity may take long.


def work(past: list[Event], new: list[Event], rendered: dict[str, list[bytes]] | None = None) -> TurnWork:
    made = TurnWork(Ref(0, "i"), "app", "order", "x1", 1, 2, past, new)
    if rendered is not None:
        made.rendered = rendered
    return made


def item(framed: bytes) -> Any:
    assert framed[:5] == b"\0" + (len(framed) - 5).to_bytes(4, "big")
    return message("WorkItem", "").FromString(framed[5:])


def test_a_turn() -> None:
    """Of a history that the worker has in part it is told the rest; what was rendered once is not again."""
    past = [told[0] for told in TOLD[:5]]
    past.insert(2, events.Retrying(NOW, 1, 2, NOW, FAILURE))
    new: list[Event] = [events.TurnStarted(NOW), events.EventRaised(NOW, "go", "x" * 300)]
    given = work(past, new)
    framed, known = WIRE.turn(given, "t.1", NOTHING)
    whole = item(framed)
    assert (whole.completionToken, whole.workflowRequest.instanceId) == ("t.1", "i")
    assert whole.workflowRequest.executionId.value == "x1"
    assert not whole.workflowRequest.HasField("cachedHistory")
    parse = message("HistoryEvent", "").FromString
    told = [parse(WIRE.event(each, "i", "app")) for each in past if not isinstance(each, events.Retrying)]
    assert list(whole.workflowRequest.pastEvents) == told
    assert list(whole.workflowRequest.newEvents) == [parse(WIRE.event(each, "i", "app")) for each in new]
    assert known == (6, 5)
    given.rendered["grpc"][0] = b""  # What is there is used.
    more = work([*past, *new], [events.TurnStarted(NOW)], given.rendered)
    delta = item(WIRE.turn(more, "t.2", known)[0]).workflowRequest
    assert (delta.cachedHistory.eventCount, len(delta.pastEvents), len(delta.newEvents)) == (5, 2, 1)
    assert len(item(WIRE.turn(more, "t.3", NOTHING)[0]).workflowRequest.pastEvents) == 6


def test_an_activity() -> None:
    given = TaskWork("app", "i", "order", 1, 3, 2, "charge", "key", "app", NOW, "1", None, TRACE)
    told = MessageToDict(item(WIRE.task(given, "t.1")))
    assert told == {
        "activityRequest": {
            "name": "charge",
            "input": "1",
            "workflowInstance": {"instanceId": "i"},
            "taskId": 3,
            "parentTraceContext": {**TRACED, "traceState": "a=b"},
            "taskExecutionId": "key",
        },
        "completionToken": "t.1",
    }


ELSEWHERE = {"sourceAppID": "app", "targetAppID": "else"}
HERE = {"sourceAppID": "app", "targetAppID": "app"}
TEXT = {"value": "1"}
SAID: list[tuple[dict[str, Any], actions.Action]] = [
    (
        {
            "id": 1,
            "scheduleTask": {
                "name": "charge",
                "version": {"value": "v1"},
                "input": {"value": ""},
                "taskExecutionId": "key",
                "historyPropagationScope": 0,
            },
            "router": ELSEWHERE,
        },
        actions.ScheduleTask(1, "charge", "", "v1", "key", "else", propagation=0),
    ),
    ({"id": 2, "scheduleTask": {"name": "n"}, "router": HERE}, actions.ScheduleTask(2, "n")),
    (
        {
            "id": 3,
            "createChildWorkflow": {
                "instanceId": "c",
                "name": "ship",
                "version": {"value": "v1"},
                "input": TEXT,
                "historyPropagationScope": 2,
                "retryParentInstanceInfo": {"instanceID": "first"},
            },
            "router": ELSEWHERE,
        },
        actions.CreateChild(3, "c", "ship", "1", "v1", "else", "first", 2),
    ),
    (
        {"id": 4, "createTimer": {"fireAt": LAST_AT, "name": "go", "externalEvent": {"name": "go"}}},
        actions.CreateTimer(4, LAST, "go", Origin(2, "go")),
    ),
    (
        {"id": 4, "createTimer": {"fireAt": LAST_AT, "activityRetry": {"taskExecutionId": "key"}}},
        actions.CreateTimer(4, LAST, None, Origin(3, "key")),
    ),
    (
        {"id": 4, "createTimer": {"fireAt": LAST_AT, "childWorkflowRetry": {"instanceId": "c"}}},
        actions.CreateTimer(4, LAST, None, Origin(4, "c")),
    ),
    (
        {"id": 4, "createTimer": {"fireAt": AT, "createTimer": {}}},
        actions.CreateTimer(4, MOMENT, None, Origin(1)),
    ),
    ({"id": 4, "createTimer": {"fireAt": {}}}, actions.CreateTimer(4, (0, 0))),
    (
        {"id": 5, "sendEvent": {"instance": {"instanceId": "o"}, "name": "go", "data": TEXT}, "router": ELSEWHERE},
        actions.SendEvent(5, "o", "go", "1", "else"),
    ),
    (
        {
            "id": 6,
            "completeWorkflow": {
                "workflowStatus": 2,
                "result": TEXT,
                "newVersion": {"value": "v2"},
                "carryoverEvents": [
                    {"timestamp": AT, "eventRaised": {"name": "go", "input": TEXT}},
                    {"timestamp": AT, "timerFired": {}},
                ],
            },
        },
        actions.Complete(6, Status.CONTINUED_AS_NEW, "1", None, (EventRaised(NOW, "go", "1"),), "v2"),
    ),
    (
        {"id": 6, "completeWorkflow": {"workflowStatus": 3, "failureDetails": FAILED}},
        actions.Complete(6, Status.FAILED, None, FAILURE),
    ),
    (
        {"id": 7, "terminateWorkflow": {"instanceId": "o", "reason": TEXT, "recurse": True}},
        actions.TerminateInstance(7, "o", "1", recursive=True),
    ),
    ({"id": 8, "workflowVersionNotAvailable": {}}, actions.VersionMissing(8)),
    (
        {
            "id": 9,
            "createDetachedWorkflow": {
                "instanceId": "d",
                "name": "ship",
                "input": TEXT,
                "scheduledStartTimestamp": AT,
                "executionId": {"value": "dx"},
                "tags": {"k": "v"},
                "parentTraceContext": TRACED,
            },
        },
        actions.CreateDetached(9, "d", "ship", "1", None, "dx", NOW, TRACE, {"k": "v"}),
    ),
]


@pytest.mark.parametrize(("said", "expected"), SAID, ids=[list(said[0])[1] for said in SAID])
def test_an_action_of_a_message(said: dict[str, Any], expected: actions.Action) -> None:
    response = message("WorkflowResponse", "")(instanceId="i", actions=[said])
    assert answer_of(response, "app") == Answer((expected,))


def test_every_action_is_known() -> None:
    members = message("WorkflowAction", "").DESCRIPTOR.oneofs_by_name["workflowActionType"].fields
    assert {member.name for member in members} == {list(said[0])[1] for said in SAID}


def test_an_action_of_a_later_protocol_fails_the_instance() -> None:
    """Its code would wait for what nobody does."""
    response = message("WorkflowResponse", "")(instanceId="i", actions=[{"id": 3}])
    (said,) = answer_of(response, "app").actions
    assert isinstance(said, actions.Complete)
    assert (said.id, said.status, said.failure and said.failure.type) == (3, Status.FAILED, "UnknownAction")


@pytest.mark.parametrize("target", ["a" * 257, "a/b", "a.b", "a\n"])
@pytest.mark.parametrize("kind", ["scheduleTask", "createChildWorkflow", "sendEvent", "createDetachedWorkflow"])
def test_an_application_that_cannot_be_fails_the_instance(kind: str, target: str) -> None:
    """The text names the action, and the field."""
    response = message("WorkflowResponse", "")(actions=[{"id": 3, kind: {}, "router": {"targetAppID": target}}])
    (said,) = answer_of(response, "app").actions
    why = f"{kind} with id 3: router.targetAppID: {app_id_problem(target)}"
    assert said == actions.Complete(3, Status.FAILED, failure=Failure("InvalidAnswer", why, final=True))


@pytest.mark.parametrize("target", ["_shop", "café", "a" * 256])
def test_whatever_a_gateway_may_be_called_is_an_application(target: str) -> None:
    made = message("WorkflowResponse", "")
    (said,) = answer_of(made(actions=[{"scheduleTask": {}, "router": {"targetAppID": target}}]), "app").actions
    assert isinstance(said, actions.ScheduleTask)
    assert said.app == target


def test_too_many_actions_fail_the_instance() -> None:
    made = message("WorkflowResponse", "")
    (said,) = answer_of(made(actions=[{}] * 100_001), "app").actions
    assert isinstance(said, actions.Complete)
    assert said.failure == Failure(
        "InvalidAnswer", "the worker asked for 100001 things at once, and 100000 are the most", final=True
    )


@pytest.mark.parametrize(("seconds", "read"), [(2**63 - 1, LAST[0]), (-(2**63), -62135596800)])
def test_times_beyond_all_years_can_be_written_again(seconds: int, read: int) -> None:
    instance = message("CreateInstanceRequest", "")(scheduledStartTimestamp={"seconds": seconds})
    scheduled = seconds_of(instance.scheduledStartTimestamp)
    assert scheduled == read
    message("WorkflowState", "")(scheduledStartTimestamp=at(scheduled))


def test_what_a_turn_says_besides() -> None:
    made = message("WorkflowResponse", "")
    response = made(customStatus={"value": ""}, version={"name": "v2", "patches": ["a", "b"]})
    assert answer_of(response, "app") == Answer((), "", "v2", ("a", "b"))
    assert answer_of(made(version={}), "app") == Answer()


def test_what_an_activity_says() -> None:
    made = message("ActivityResponse", "")
    assert result_of(made(result={"value": ""})) == TaskResult("")
    assert result_of(made()) == TaskResult(None)
    assert result_of(made(failureDetails=FAILED)) == TaskResult(failure=FAILURE)


@pytest.mark.parametrize("kind", ["scheduleTask", "createChildWorkflow"])
def test_a_scope_of_a_later_protocol_fails_the_instance(kind: str) -> None:
    """What is called could not tell that nothing was handed on."""
    action = {"id": 3, kind: {"name": "a", "historyPropagationScope": 3}}
    (said,) = answer_of(message("WorkflowResponse", "")(instanceId="i", actions=[action]), "app").actions
    assert isinstance(said, actions.Complete)
    assert said.failure is not None
    assert (said.failure.type, said.failure.message[-7:]) == ("UnknownAction", "know: 3")
