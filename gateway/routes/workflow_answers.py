"""Answers of workers, read from messages of their protocol: the actions of a turn, or the outcome of an activity.

Source: the messages of Dapr's worker protocol (``gateway/grpc/proto/taskhub.proto``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.address import app_id_problem
from mesh.workflows import actions
from mesh.workflows.actions import Action, Answer
from mesh.workflows.events import EventRaised, Failure, Moment, Origin, Trace
from mesh.workflows.propagation import SCOPES
from mesh.workflows.state import Status
from mesh.workflows.worker import TaskResult

__all__ = ["answer_of", "result_of", "seconds_of", "text_of", "trace_of"]

FIRST, LAST = -62135596800.0, 253402300799.0  # The years 1 to 9999, as messages have them.
KINDS = {"createTimer": 1, "externalEvent": 2, "activityRetry": 3, "childWorkflowRetry": 4}
PROPAGATING = frozenset({"scheduleTask", "createChildWorkflow"})
TEXTS = {2: "name", 3: "taskExecutionId", 4: "instanceId"}


def answer_of(response: Any, app: str) -> Answer:
    """Read what came of a turn, of an instance of an application."""
    if (count := len(response.actions)) > actions.MAX_ACTIONS:
        why = f"the worker asked for {count} things at once, and {actions.MAX_ACTIONS} are the most"
        return Answer((actions.Complete(-1, Status.FAILED, failure=Failure("InvalidAnswer", why, final=True)),))
    version = response.version if response.HasField("version") else None
    return Answer(
        tuple(_action(each, app) for each in response.actions),
        text_of(response, "customStatus"),
        (version.name or None) if version is not None else None,
        tuple(version.patches) if version is not None else (),
    )


def result_of(response: Any) -> TaskResult:
    """Read what came of an activity."""
    if response.HasField("failureDetails"):
        return TaskResult(failure=_failure(response.failureDetails))
    return TaskResult(text_of(response, "result"))


def _action(action: Any, app: str) -> Action:
    kind = action.WhichOneof("workflowActionType")
    if kind is None:  # Nothing is left out quietly: the workflow's code would wait for it.
        why = "the worker asked for something that this version does not know"
        return actions.Complete(action.id, Status.FAILED, failure=Failure("UnknownAction", why, final=True))
    said = getattr(action, kind)
    if kind in PROPAGATING and said.historyPropagationScope not in (0, *SCOPES):
        why = f"the worker hands on history by a scope that this version does not know: {said.historyPropagationScope}"
        return actions.Complete(action.id, Status.FAILED, failure=Failure("UnknownAction", why, final=True))
    target = action.router.targetAppID if action.HasField("router") else ""
    if target and (problem := app_id_problem(target)):
        why = f"{kind} with id {action.id}: router.targetAppID: {problem}"
        return actions.Complete(action.id, Status.FAILED, failure=Failure("InvalidAnswer", why, final=True))
    return ACTIONS[kind](action.id, said, None if target in ("", app) else target)


def _schedule_task(id_: int, said: Any, app: str | None) -> Action:
    return actions.ScheduleTask(
        id_,
        said.name,
        text_of(said, "input"),
        text_of(said, "version"),
        said.taskExecutionId,
        app,
        propagation=_scope(said),
    )


def _create_child(id_: int, said: Any, app: str | None) -> Action:
    return actions.CreateChild(
        id_,
        said.instanceId,
        said.name,
        text_of(said, "input"),
        text_of(said, "version"),
        app,
        said.retryParentInstanceInfo.instanceID if said.HasField("retryParentInstanceInfo") else None,
        _scope(said),
    )


def _create_timer(id_: int, said: Any, app: str | None) -> Action:
    name = said.name if said.HasField("name") else None
    return actions.CreateTimer(id_, _moment(said.fireAt), name, _origin(said))


def _send_event(id_: int, said: Any, app: str | None) -> Action:
    return actions.SendEvent(id_, said.instance.instanceId, said.name, text_of(said, "data"), app)


def _complete(id_: int, said: Any, app: str | None) -> Action:
    raised = (each for each in said.carryoverEvents if each.HasField("eventRaised"))
    return actions.Complete(
        id_,
        said.workflowStatus,
        text_of(said, "result"),
        _failure(said.failureDetails) if said.HasField("failureDetails") else None,
        tuple(
            EventRaised(seconds_of(each.timestamp), each.eventRaised.name, text_of(each.eventRaised, "input"))
            for each in raised
        ),
        text_of(said, "newVersion") or None,
    )


def _terminate(id_: int, said: Any, app: str | None) -> Action:
    return actions.TerminateInstance(id_, said.instanceId, text_of(said, "reason"), said.recurse, app)


def _version_missing(id_: int, said: Any, app: str | None) -> Action:
    return actions.VersionMissing(id_)


def _create_detached(id_: int, said: Any, app: str | None) -> Action:
    return actions.CreateDetached(
        id_,
        said.instanceId,
        said.name,
        text_of(said, "input"),
        text_of(said, "version"),
        text_of(said, "executionId") or "",
        seconds_of(said.scheduledStartTimestamp) if said.HasField("scheduledStartTimestamp") else None,
        trace_of(said),
        dict(said.tags),
        app,
    )


ACTIONS: dict[str, Callable[[int, Any, str | None], Action]] = {
    "scheduleTask": _schedule_task,
    "createChildWorkflow": _create_child,
    "createTimer": _create_timer,
    "sendEvent": _send_event,
    "completeWorkflow": _complete,
    "terminateWorkflow": _terminate,
    "workflowVersionNotAvailable": _version_missing,
    "createDetachedWorkflow": _create_detached,
}


# Members that several messages have.


def text_of(said: Any, name: str) -> str | None:
    """Read a text that may be missing, which is not the same as an empty one."""
    return getattr(said, name).value if said.HasField(name) else None


def seconds_of(timestamp: Any) -> float:
    """Read Unix time in seconds, of the years that can be told: what clients send may lie beyond them."""
    whole, nanos = _moment(timestamp)
    return min(max(whole + nanos / 1e9, FIRST), LAST)


def trace_of(said: Any) -> Trace | None:
    """Read the span that something belongs to."""
    context = said.parentTraceContext
    return Trace(context.traceParent, context.traceState.value) if context.traceParent else None


def _moment(timestamp: Any) -> Moment:
    return timestamp.seconds, timestamp.nanos


def _scope(said: Any) -> int | None:
    return said.historyPropagationScope if said.HasField("historyPropagationScope") else None


def _origin(said: Any) -> Origin | None:
    name = said.WhichOneof("origin")
    if name is None:
        return None
    kind = KINDS[name]
    return Origin(kind, getattr(getattr(said, name), TEXTS[kind]) if kind in TEXTS else "")


def _failure(said: Any) -> Failure:
    return Failure(
        said.errorType,
        said.errorMessage,
        text_of(said, "stackTrace"),
        _failure(said.innerFailure) if said.HasField("innerFailure") else None,
        said.isNonRetriable,
    )
