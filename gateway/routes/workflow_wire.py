"""Work for workers as messages of their protocol.

A message of an event is made once: the history of an instance that is handed out again and again is a join of bytes.

Source: the messages of Dapr's worker protocol (``gateway/grpc/proto/taskhub.proto``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain
from typing import Any

from mesh.workflows import events
from mesh.workflows.events import Event, Failure, Inherited, Moment, Origin, Trace
from mesh.workflows.propagation import rendering
from mesh.workflows.stream import Known
from mesh.workflows.worker import TaskWork, TurnWork

__all__ = ["GRPCWire", "at", "failure", "text", "wire_of"]

RENDERED, INHERITED = "grpc", "grpc inherited"
OUTSIDE = -1  # The number of what no action has asked for.
# Fields of messages, as what they begin with.
PAST, NEW = b"\x1a", b"\x22"  # Of a WorkflowRequest.
WORKFLOW, TOKEN = b"\x0a", b"\x52"  # Of a WorkItem.
ORIGINS = {
    1: ("createTimer", ""),
    2: ("externalEvent", "name"),
    3: ("activityRetry", "taskExecutionId"),
    4: ("childWorkflowRetry", "instanceId"),
}

Members = dict[str, Any]
"""Of a message, by name; None is a member that is not there."""


class GRPCWire:
    """See ``mesh.workflows.stream.Wire``."""

    def __init__(self, pool: Any) -> None:
        """Use the messages of a pool of descriptors."""
        from google.protobuf.message_factory import GetMessageClass  # It is there: a message came.

        def message(name: str) -> Any:
            return GetMessageClass(pool.FindMessageTypeByName(name))

        self._event, self._item, self._request = (
            message("HistoryEvent"),
            message("WorkItem"),
            message("WorkflowRequest"),
        )
        self._history = rendering(self._events)
        self.ping = _framed(self._item(healthPing={}).SerializeToString())

    def event(self, event: Event, instance: str, app: str) -> bytes:
        """Write an event of an instance of an application; empty = workers are not told of it."""
        members = EVENTS.get(type(event))
        if members is None:
            return b""
        number, made, router = members(event, instance, app)
        written: bytes = self._event(eventId=number, timestamp=at(event.at), router=router, **made).SerializeToString()
        return written

    def _events(self, told: Iterable[Event], instance: str, app: str) -> list[bytes]:
        return [written for event in told if (written := self.event(event, instance, app))]

    def turn(self, work: TurnWork, token: str, known: Known) -> tuple[bytes, Known]:
        """Write a turn."""
        instance = work.ref.id
        past = work.rendered.setdefault(RENDERED, [])
        past.extend(self._part(PAST, event, work) for event in work.past[len(past) :])
        told = past[known.events :]
        cached = {"eventCount": known.told} if known.told else None
        head = self._request(instanceId=instance, executionId={"value": work.execution}, cachedHistory=cached)
        new = [self._part(NEW, event, work) for event in work.new]
        request = b"".join([head.SerializeToString(), *told, *new, self._inherited_part(work)])
        message = _framed(_sized(WORKFLOW, request) + _sized(TOKEN, token.encode()))
        return message, Known(len(past), known.told + len(told) - told.count(b""))

    def _part(self, tag: bytes, event: Event, work: TurnWork) -> bytes:
        written = self.event(event, work.ref.id, work.app)
        return written and _sized(tag, written)

    def _inherited_part(self, work: TurnWork) -> bytes:
        """Write what the instance has inherited: a worker is told of it at each turn, also one that remembers."""
        if work.inherited is None:
            return b""
        written = work.rendered.setdefault(INHERITED, [])
        if not written:
            head = self._request(propagatedHistory=self._inherited(work.inherited))
            written.append(head.SerializeToString())
        return written[0]

    def _inherited(self, inherited: Inherited | None) -> Members | None:
        if inherited is None:
            return None
        chunks = [
            {
                "appId": each.app,
                "instanceId": each.instance,
                "workflowName": each.workflow,
                "rawEvents": chain.from_iterable(self._history(each)),
            }
            for each in inherited.ancestors
        ]
        return {"scope": inherited.scope, "chunks": chunks}

    def task(self, work: TaskWork, token: str) -> bytes:
        """Write an activity."""
        request = {
            "name": work.name,
            "version": text(work.version),
            "input": text(work.input),
            "workflowInstance": {"instanceId": work.instance},
            "taskId": work.task,
            "parentTraceContext": trace(work.trace),
            "taskExecutionId": work.execution_id,
            "propagatedHistory": self._inherited(work.inherited),
        }
        work.inherited = None
        return _framed(self._item(activityRequest=request, completionToken=token).SerializeToString())


@cache
def wire_of(pool: Any) -> GRPCWire:
    """Give the one of a pool of descriptors, of which a process has one."""
    return GRPCWire(pool)


def _sized(tag: bytes, data: bytes) -> bytes:
    """Write a member that begins with its length."""
    size = len(data)
    if size < 0x80:
        return b"%b%c%b" % (tag, size, data)
    written = bytearray(tag)
    while size >= 0x80:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    written.append(size)
    return bytes(written) + data


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


# Members of messages that several have.


def text(value: str | None) -> Members | None:
    """Write a text that may be missing, which is not the same as an empty one."""
    return None if value is None else {"value": value}


def at(seconds: float) -> Members:
    """Write Unix time in seconds, to the microsecond."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return {"seconds": whole, "nanos": micros * 1000}


def _moment(moment: Moment) -> Members:
    return {"seconds": moment[0], "nanos": moment[1]}


def trace(value: Trace | None) -> Members | None:
    """Write a span."""
    if value is None:
        return None
    parts = value.parent.split("-")
    span = parts[2] if len(parts) > 2 else ""
    return {"traceParent": value.parent, "spanID": span, "traceState": text(value.state or None)}


def failure(value: Failure | None) -> Members | None:
    """Write why something failed."""
    if value is None:
        return None
    return {
        "errorType": value.type,
        "errorMessage": value.message,
        "stackTrace": text(value.stack),
        "innerFailure": failure(value.inner),
        "isNonRetriable": value.final,
    }


def _of(instance: str | None) -> Members | None:
    """Write where something comes from that is run again."""
    return None if instance is None else {"instanceID": instance}


def _to(target: str | None, app: str) -> Members | None:
    """Write which application is to do something, where that is another one."""
    return None if target is None else {"sourceAppID": app, "targetAppID": target}


# What an event is as a message: its number, its members, and its applications.

Made = tuple[int, Members, Members | None]


def _started(event: events.Started, instance: str, app: str) -> Made:
    parent = event.parent
    members = {
        "name": event.name,
        "version": text(event.version),
        "input": text(event.input),
        "workflowInstance": {"instanceId": instance, "executionId": {"value": event.execution}},
        "parentInstance": None
        if parent is None
        else {
            "taskScheduledId": parent.task,
            "name": text(parent.name or None),
            "workflowInstance": {"instanceId": parent.instance, "executionId": text(parent.execution or None)},
            "appID": parent.app or None,
        },
        "scheduledStartTimestamp": None if event.scheduled is None else at(event.scheduled),
        "parentTraceContext": trace(event.trace),
        "tags": event.tags,
    }
    router = {"sourceAppID": app} if event.caller in ("", app) else {"sourceAppID": event.caller, "targetAppID": app}
    return OUTSIDE, {"executionStarted": members}, router


def _completed(event: events.Completed, instance: str, app: str) -> Made:
    members = {
        "workflowStatus": event.status,
        "result": text(event.result),
        "failureDetails": failure(event.failure),
    }
    return event.id, {"executionCompleted": members}, None


def _terminated(event: events.Terminated, instance: str, app: str) -> Made:
    return OUTSIDE, {"executionTerminated": {"input": text(event.output), "recurse": event.recursive}}, None


def _task_scheduled(event: events.TaskScheduled, instance: str, app: str) -> Made:
    members = {
        "name": event.name,
        "version": text(event.version),
        "input": text(event.input),
        "parentTraceContext": trace(event.trace),
        "taskExecutionId": event.execution_id,
        "rerunParentInstanceInfo": _of(event.rerun_of),
        "historyPropagationScope": event.propagation,
    }
    return event.id, {"taskScheduled": members}, _to(event.app, app)


def _task_completed(event: events.TaskCompleted, instance: str, app: str) -> Made:
    members = {
        "taskScheduledId": event.task,
        "result": text(event.result),
        "taskExecutionId": event.execution_id,
    }
    return OUTSIDE, {"taskCompleted": members}, None


def _task_failed(event: events.TaskFailed, instance: str, app: str) -> Made:
    members = {
        "taskScheduledId": event.task,
        "failureDetails": failure(event.failure),
        "taskExecutionId": event.execution_id,
    }
    return OUTSIDE, {"taskFailed": members}, None


def _child_created(event: events.ChildCreated, instance: str, app: str) -> Made:
    members = {
        "instanceId": event.instance,
        "name": event.name,
        "version": text(event.version),
        "input": text(event.input),
        "parentTraceContext": trace(event.trace),
        "rerunParentInstanceInfo": _of(event.rerun_of),
        "historyPropagationScope": event.propagation,
        "retryParentInstanceInfo": _of(event.retry_of),
    }
    return event.id, {"childWorkflowInstanceCreated": members}, _to(event.app, app)


def _child_completed(event: events.ChildCompleted, instance: str, app: str) -> Made:
    members = {"taskScheduledId": event.task, "result": text(event.result)}
    return OUTSIDE, {"childWorkflowInstanceCompleted": members}, None


def _child_failed(event: events.ChildFailed, instance: str, app: str) -> Made:
    members = {"taskScheduledId": event.task, "failureDetails": failure(event.failure)}
    return OUTSIDE, {"childWorkflowInstanceFailed": members}, None


def _timer_created(event: events.TimerCreated, instance: str, app: str) -> Made:
    members = {
        "fireAt": _moment(event.fire_at),
        "name": event.name,
        "rerunParentInstanceInfo": _of(event.rerun_of),
        **_origin(event.origin),
    }
    return event.id, {"timerCreated": members}, None


def _origin(origin: Origin | None) -> Members:
    if origin is None or origin.kind not in ORIGINS:
        return {}
    kind, member = ORIGINS[origin.kind]
    return {kind: {member: origin.text} if member else {}}


def _timer_fired(event: events.TimerFired, instance: str, app: str) -> Made:
    return OUTSIDE, {"timerFired": {"timerId": event.timer, "fireAt": _moment(event.fire_at)}}, None


def _turn_started(event: events.TurnStarted, instance: str, app: str) -> Made:
    version = None
    if event.version is not None or event.patches:
        version = {"name": event.version, "patches": event.patches}
    return OUTSIDE, {"workflowStarted": {"version": version}}, None


def _event_sent(event: events.EventSent, instance: str, app: str) -> Made:
    members = {"instanceId": event.instance, "name": event.name, "input": text(event.input)}
    return event.id, {"eventSent": members}, _to(event.app, app)


def _event_raised(event: events.EventRaised, instance: str, app: str) -> Made:
    return OUTSIDE, {"eventRaised": {"name": event.name, "input": text(event.input)}}, None


def _suspended(event: events.Suspended, instance: str, app: str) -> Made:
    return OUTSIDE, {"executionSuspended": {"input": text(event.reason)}}, None


def _resumed(event: events.Resumed, instance: str, app: str) -> Made:
    return OUTSIDE, {"executionResumed": {"input": text(event.reason)}}, None


def _stalled(event: events.Stalled, instance: str, app: str) -> Made:
    return OUTSIDE, {"executionStalled": {"reason": event.reason, "description": event.text}}, None


def _detached_created(event: events.DetachedCreated, instance: str, app: str) -> Made:
    return event.id, {"detachedWorkflowInstanceCreated": {"instanceId": event.instance}}, _to(event.app, app)


EVENTS: dict[type[Event], Callable[[Any, str, str], Made]] = {
    events.Started: _started,
    events.Completed: _completed,
    events.Terminated: _terminated,
    events.TaskScheduled: _task_scheduled,
    events.TaskCompleted: _task_completed,
    events.TaskFailed: _task_failed,
    events.ChildCreated: _child_created,
    events.ChildCompleted: _child_completed,
    events.ChildFailed: _child_failed,
    events.TimerCreated: _timer_created,
    events.TimerFired: _timer_fired,
    events.TurnStarted: _turn_started,
    events.EventSent: _event_sent,
    events.EventRaised: _event_raised,
    events.Suspended: _suspended,
    events.Resumed: _resumed,
    events.Stalled: _stalled,
    events.DetachedCreated: _detached_created,
}
