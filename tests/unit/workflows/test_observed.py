"""What is told of workflows: counts, times and spans, under the reference's names.

Source: reference/observed-layouts.md 5 and 6; reference/dapr-surface.md 7.
"""

from __future__ import annotations

import pytest

from gateway.metrics.exposition import Told, exposed
from gateway.metrics.recording import Recorder
from gateway.metrics.settings import Rules
from gateway.metrics.table import METRICS
from mesh.errors import AppUnreachableError
from mesh.spans import Span, SpanKind
from mesh.telemetry import UNTOLD, Tracing
from mesh.workflows.events import Failure, Trace
from mesh.workflows.observed import RECOVERABLE, RunningTask, accessed, began, creating, ended, span_of, turned
from mesh.workflows.state import State, Status
from mesh.workflows.worker import TaskResult, TaskWork

AT = 1_800_000_000.0
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATE = State(1, "e1", "order", Status.COMPLETED, AT, AT + 3, started=AT + 1, ended=AT + 3)


def work(trace: Trace | None = None) -> TaskWork:
    return TaskWork("shop", "o-1", "order", 1, 4, 1, "charge", "x", "shop", AT, trace=trace)


def exposed_of(recorder: Recorder) -> dict[str, float]:
    """Give what is counted, by name and labels."""
    text = exposed(Told(recorder.measured(), "shop", "ns", Rules(), raw=True, rows=METRICS)).decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#") and "_bucket" not in line]
    return {name: float(value) for name, _, value in lines}


def test_metrics() -> None:
    recorder = Recorder()
    tracing = Tracing(0.0)
    began(recorder, STATE, None)
    began(recorder, STATE, AT + 0.5)
    turned(recorder, "order", RECOVERABLE, 0.25)
    ended(recorder, tracing, "o-1", STATE, None)
    accessed(recorder, allowed=False, caller="till", kind="workflow", operation="purge")
    with RunningTask(recorder, tracing, work()) as running:
        running.came(TaskResult(failure=Failure("E", "m")))
    with pytest.raises(AppUnreachableError), RunningTask(recorder, tracing, work()):
        raise AppUnreachableError("away")
    recorder("operations", ("workflows", "start", "shop", "ok"), 1, 0.001)
    told = exposed_of(recorder)
    of = 'app_id="shop",namespace="ns"'

    def value(name: str, labels: str) -> float:
        wanted = set(labels.split(","))
        (found,) = [
            each
            for key, each in told.items()
            if key.startswith(f"{name}{{") and set(key[len(name) + 1 : -1].split(",")) == wanted
        ]
        return found

    assert value("dapr_runtime_workflow_scheduling_latency_sum", f'{of},workflow_name="order"') == 1500
    assert value("dapr_runtime_workflow_execution_count", f'{of},workflow_name="order",status="success"') == 1
    assert value("dapr_runtime_workflow_execution_latency_sum", f'{of},workflow_name="order",status="success"') == 2000
    activity = f'{of},activity_name="charge",status='
    assert value("dapr_runtime_workflow_activity_operation_count", f'{activity}"failed"') == 1
    assert value("dapr_runtime_workflow_activity_execution_count", f'{activity}"recoverable"') == 1
    assert value("dapr_runtime_workflow_operation_count", f'{of},operation="create_workflow",status="success"') == 1
    denied = 'app_id="shop",src_app_id="till",operation="purge",type="workflow"'
    assert value("dapr_runtime_workflow_acl_action_denied_total", denied) == 1
    assert value("mesh_workflow_turns_total", 'app_id="shop",workflow_name="order",outcome="recoverable"') == 1


def test_spans() -> None:
    """A start, the execution below it, and an activity below that; all of one trace."""
    spans: list[Span] = []
    tracing = Tracing(1.0, spans.append)
    told, trace = creating(tracing, PARENT, "order", "o-1")
    with told:
        pass
    assert trace is not None
    execution = span_of(trace, "e1")
    assert execution == span_of(trace, "e1") != span_of(trace, "e2")  # Whichever owner asks.
    with RunningTask(Recorder(), tracing, work(Trace(execution))) as running:
        running.came(TaskResult(failure=Failure("Refused", "m")))
    ended(Recorder(), tracing, "o-1", STATE, trace)
    create, activity, order = spans
    assert [(each.name, each.kind) for each in spans] == [
        ("create_orchestration||order", SpanKind.CLIENT),
        ("activity||charge", SpanKind.SERVER),
        ("orchestration||order", SpanKind.SERVER),
    ]
    assert {each.trace_id for each in spans} == {PARENT[3:35]}
    assert (create.parent_id, order.parent_id, activity.parent_id) == (PARENT[36:52], create.span_id, order.span_id)
    assert (order.started, order.error, activity.error) == (int((AT + 1) * 1e9), "", "Refused")
    assert running.trace is not None
    assert running.trace.parent[36:52] == activity.span_id
    assert order.attributes == {
        "durabletask.type": "orchestration",
        "durabletask.task.name": "order",
        "durabletask.task.instance_id": "o-1",
        "durabletask.runtime_status": "COMPLETED",
    }
    assert activity.attributes["durabletask.task.task_id"] == 4


def test_without_tracing() -> None:
    """What the caller's span is goes on; nothing is made and nothing told."""
    tracing = Tracing(0.0)
    assert creating(tracing, None, "order", "o-1") == (UNTOLD, None)
    assert creating(tracing, PARENT, "order", "o-1") == (UNTOLD, Trace(PARENT))
    assert span_of(None, "e1") == span_of(Trace("no span"), "e1") == ""
    assert RunningTask(Recorder(), tracing, work(Trace(PARENT))).trace == Trace(PARENT)
