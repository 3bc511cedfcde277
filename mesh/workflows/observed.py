"""Metrics and spans of workflows: counts and times, told by the engine and by whoever hands out work.

Spans are called as the reference calls them. That of an execution lasts over many turns, and perhaps over several
owners: its id is made of the execution's, so that each owner finds it, and it is told of once, when the execution ends.

Source: Dapr 1.18, its metrics and traces of workflows as they are seen.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import AbstractContextManager
from functools import lru_cache
from types import TracebackType
from typing import Self

from mesh.passing import Part, Passing
from mesh.spans import Begun, SpanKind, Value
from mesh.telemetry import (
    UNTOLD,
    WORKFLOW_ACCESS,
    WORKFLOW_ACTIVITIES,
    WORKFLOW_ACTIVITY_RUNS,
    WORKFLOW_BEGINNINGS,
    WORKFLOW_EXECUTIONS,
    WORKFLOW_TURNS,
    Observer,
    Tracing,
    child_span,
    is_traceparent,
)
from mesh.workflows.actions import Answer
from mesh.workflows.events import Trace
from mesh.workflows.state import State, Status
from mesh.workflows.worker import TaskResult, TaskWork, TurnWork

__all__ = [
    "FAILED",
    "RECOVERABLE",
    "SUCCESS",
    "RunningTask",
    "accessed",
    "began",
    "below",
    "creating",
    "ended",
    "noted",
    "span_of",
    "tasking",
    "turned",
    "turning",
]

SUCCESS, FAILED, RECOVERABLE = "success", "failed", "recoverable"
"""What metrics tell of executions and activities; what is recoverable is done again."""
_NANOSECONDS = 1e9
MAX_TYPE = 200


def creating(
    tracing: Tracing, traceparent: str | None, name: str, instance: str
) -> tuple[AbstractContextManager[object], Trace | None]:
    """Give what tells of a start while it is entered, and the span that the instance is to belong to (`Start.trace`).

    Args:
        tracing: The node's.
        traceparent: Of whoever asks; None = there is none.
        name: The workflow's.
        instance: Its id.
    """
    own = tracing.span(traceparent)
    if not own:
        return UNTOLD, None
    if not tracing.records(own):
        return UNTOLD, Trace(own)
    tags = _tags("orchestration", name, instance)
    return tracing.begin(own, traceparent, f"create_orchestration||{name}", SpanKind.CLIENT, tags), Trace(own)


@lru_cache(1024)  # All activities of an execution ask for it.
def span_of(trace: Trace | None, execution: str) -> str:
    """Give the ``traceparent`` of an execution, below which its activities and children are; empty for none."""
    if trace is None or not is_traceparent(trace.parent):
        return ""
    made = hashlib.blake2b(execution.encode(errors="replace"), digest_size=8).hexdigest()
    return f"00{trace.parent[2:36]}{made}-{trace.parent[53:55]}"


def below(trace: Trace | None, execution: str) -> Trace | None:
    """Give the span of an execution as what is below it is told of it; None for none."""
    own = span_of(trace, execution)
    return Trace(own, trace.state) if own and trace is not None else None


def began(observer: Observer, state: State, scheduled: float | None) -> None:
    """Tell that an instance has its first turn (``state.started``): how long it waited for that since it was due."""
    if state.started is not None:
        due = state.created if scheduled is None else max(state.created, scheduled)
        observer(WORKFLOW_BEGINNINGS, (state.name,), 1, max(0.0, state.started - due))


def turned(observer: Observer, name: str, outcome: str, seconds: float) -> None:
    """Tell of a turn that a worker had: ``SUCCESS``, or ``RECOVERABLE`` where it is to be handed out again."""
    observer(WORKFLOW_TURNS, (name, outcome), 1, seconds)


def turning(work: TurnWork) -> Passing:
    """Begin with what a tap is told of a turn."""
    passing = Passing("step", "workflows", "turn", f"{work.name}/{work.ref.id}", work.caller or work.app)
    passing.details |= {"workflow": work.name, "instance": work.ref.id, "turn": work.number}
    passing.request = Part(value=[{type(each).__name__: each} for each in work.new])
    return passing


def tasking(work: TaskWork) -> Passing:
    """Begin with what a tap is told of an activity."""
    passing = Passing("step", "workflows", "activity", f"{work.workflow}/{work.instance}", work.owner)
    passing.traceparent = "" if work.trace is None else work.trace.parent
    passing.details |= {
        "workflow": work.workflow,
        "instance": work.instance,
        "activity": work.name,
        "attempt": work.attempt,
    }
    passing.request = Part(content_type="application/json", body=(work.input or "").encode("utf-8", "replace"))
    return passing


def noted(passing: Passing, came: Answer | TaskResult) -> None:
    """Note for a tap what a worker gave."""
    if isinstance(came, Answer):
        passing.details["actions"] = len(came.actions)
        passing.reply = Part(value=[{type(each).__name__: each} for each in came.actions])
        passing.outcome = SUCCESS
    elif came.failure is not None:
        passing.reply = Part(value=came.failure)
        passing.outcome, passing.details["reason"] = FAILED, came.failure.type[:MAX_TYPE]
    else:
        passing.reply = Part(content_type="application/json", body=(came.result or "").encode("utf-8", "replace"))
        passing.outcome = SUCCESS


def ended(observer: Observer, tracing: Tracing, instance: str, state: State, trace: Trace | None) -> None:
    """Tell of an execution that has ended, or goes on as a new one: once, after that was stored.

    Args:
        observer: The node's.
        tracing: The node's.
        instance: The id.
        state: With which it ended.
        trace: As it was started with.
    """
    since = state.created if state.started is None else state.started
    until = state.updated if state.ended is None else state.ended
    good = state.status in (Status.COMPLETED, Status.CONTINUED_AS_NEW)
    observer(WORKFLOW_EXECUTIONS, (state.name, SUCCESS if good else FAILED), 1, max(0.0, until - since))
    own = span_of(trace, state.execution)
    if trace is None or not tracing.records(own) or tracing.sink is None:
        return
    status = Status(state.status).name
    tags = {**_tags("orchestration", state.name, instance), "durabletask.runtime_status": status}
    span = Begun(
        tracing.sink,
        own,
        trace.parent,
        f"orchestration||{state.name}",
        SpanKind.SERVER,
        tags,
        tracestate=trace.state,
        started=int(since * _NANOSECONDS),
    )
    span.error = "" if good else status
    span.end()


class RunningTask:
    """An activity while a worker has it; entered and left around that. Left without a result, it is done again.

    Attributes:
        trace: What the worker is to be told of the span; None = there is none.
    """

    __slots__ = ("_begun", "_observer", "_outcome", "_since", "_work", "trace")

    def __init__(self, observer: Observer, tracing: Tracing, work: TaskWork) -> None:
        """Begin.

        Args:
            observer: The node's.
            tracing: The node's.
            work: The activity; its ``trace`` is what it is below.
        """
        self._observer, self._work, self._outcome = observer, work, RECOVERABLE
        self._since = time.perf_counter()
        self._begun: Begun | None = None
        self.trace = work.trace
        parent = None if work.trace is None else work.trace.parent
        if parent is None or not is_traceparent(parent) or not tracing.enabled:
            return
        own = child_span(parent)
        self.trace = Trace(own, "" if work.trace is None else work.trace.state)
        if tracing.records(own):
            tags = {**_tags("activity", work.name, work.instance), "durabletask.task.task_id": work.task}
            self._begun = tracing.begin(
                own, parent, f"activity||{work.name}", SpanKind.SERVER, tags, tracestate=self.trace.state
            )

    def __enter__(self) -> Self:
        """Go on."""
        return self

    def came(self, result: TaskResult) -> None:
        """Note what came of it."""
        self._outcome = SUCCESS if result.failure is None else FAILED
        if self._begun is not None and result.failure is not None:
            self._begun.error = result.failure.type

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell of it: how long the worker had it, and how long it took since it was asked for."""
        labels = self._work.name, self._outcome
        self._observer(WORKFLOW_ACTIVITY_RUNS, labels, 1, time.perf_counter() - self._since)
        if self._outcome is not RECOVERABLE:
            self._observer(WORKFLOW_ACTIVITIES, labels, 1, max(0.0, time.time() - self._work.since))
        if self._begun is not None:
            self._begun.__exit__(kind, error, trace)


def accessed(observer: Observer, *, allowed: bool, caller: str, kind: str, operation: str) -> None:
    """Tell what policies said to another application; ``kind`` and ``operation`` as `Rules.allows` has them."""
    observer(WORKFLOW_ACCESS, ("allowed" if allowed else "denied", caller, operation, kind))


def _tags(type_: str, name: str, instance: str) -> dict[str, Value]:
    return {"durabletask.type": type_, "durabletask.task.name": name, "durabletask.task.instance_id": instance}
