"""History that workflows on the official Python SDK hand on, within an application and to another one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from dapr.ext.workflow import (
    DaprWorkflowClient,
    DaprWorkflowContext,
    PropagatedHistory,
    PropagationNotFoundError,
    PropagationScope,
    RetryPolicy,
    WorkflowActivityContext,
    WorkflowRuntime,
)

SHOP, BILLING = os.environ["SHOP_GRPC_PORT"], os.environ["BILLING_GRPC_PORT"]
PATIENCE = 120
OWN, LINEAGE = PropagationScope.OWN_HISTORY, PropagationScope.LINEAGE
QUICKLY = RetryPolicy(first_retry_interval=timedelta(milliseconds=1), max_number_of_attempts=3)
Steps = Iterator[Any]

shop = WorkflowRuntime(host="127.0.0.1", port=SHOP)
billing = WorkflowRuntime(host="127.0.0.1", port=BILLING)
client = DaprWorkflowClient(host="127.0.0.1", port=SHOP)
tries: Counter[str] = Counter()


def told(history: PropagatedHistory | None) -> Any:
    """Say what is known of those before: the scope, whose history it is, and what the first of them has validated."""
    if history is None:
        return None
    whose = [[each.app_id, each.instance_id, each.name] for each in history.get_workflows()]
    try:
        found = history.get_last_workflow_by_name("checkout").get_last_activity_by_name("validate")
        validated: object = [found.input, found.output, found.completed]
    except PropagationNotFoundError:
        validated = "unknown"
    return [history.scope.name, whose, history.get_app_ids(), validated]


@shop.activity
def validate(_context: WorkflowActivityContext, total: int) -> str:
    """Give what is checked further down."""
    return f"{total} is good"


@shop.activity
def large(_context: WorkflowActivityContext, size: int) -> str:
    """Give much."""
    return "x" * size


@billing.activity
def look(context: WorkflowActivityContext, _given: object) -> Any:
    """Tell what is known."""
    return told(context.get_propagated_history())


@shop.activity
def look_twice(context: WorkflowActivityContext, name: str) -> Any:
    """Tell what is known at the second attempt."""
    tries[name] += 1
    history = context.get_propagated_history()
    if tries[name] == 1:
        raise ValueError(f"{len(history.events)} events")
    return [told(history), len(history.events)]


@shop.workflow
def checkout(context: DaprWorkflowContext, total: int) -> Steps:
    """Validate, pay by a child, and look by another one that is told nothing."""
    yield context.call_activity(validate, input=total)
    paid = yield context.call_child_workflow(pay, propagation=LINEAGE)
    plain = yield context.call_child_workflow(knows)
    again = yield context.call_activity(
        look_twice, input=context.instance_id, retry_policy=QUICKLY, propagation=PropagationScope.OWN_HISTORY
    )
    return [told(context.get_propagated_history()), plain, paid, again]


@shop.workflow
def pay(context: DaprWorkflowContext) -> Steps:
    """Have the other application look, and audit."""
    own = yield context.call_activity("look", app_id="billing", propagation=OWN)
    lineage = yield context.call_activity("look", app_id="billing", propagation=LINEAGE)
    nothing = yield context.call_activity("look", app_id="billing", propagation=PropagationScope.NONE)
    audited = yield context.call_child_workflow("audit", input=2, app_id="billing", propagation=LINEAGE)
    trusted = yield context.call_child_workflow(knows, propagation=OWN)
    return {"own": own, "lineage": lineage, "nothing": nothing, "audited": audited, "trusted": trusted}


@billing.workflow
def audit(context: DaprWorkflowContext, times: int) -> Steps:
    """Begin anew, and know the same then; hand on what is known."""
    if times:
        context.continue_as_new(times - 1)
        return None
    below = yield context.call_activity(look, propagation=LINEAGE)
    return [told(context.get_propagated_history()), below[1]]


@shop.workflow
def knows(context: DaprWorkflowContext) -> Any:
    """Tell what is known."""
    return told(context.get_propagated_history())


@shop.workflow
def much(context: DaprWorkflowContext, size: int) -> Steps:
    """Hand on more than can go along, and do without."""
    yield context.call_activity(large, input=size)
    found = []
    for ask in (
        lambda: context.call_activity("look", app_id="billing", propagation=OWN),
        lambda: context.call_child_workflow(knows, propagation=LINEAGE),
        lambda: context.call_child_workflow(knows),
    ):
        try:
            found.append((yield ask()))
        except Exception as error:  # noqa: BLE001  # Whatever the SDK makes of it.
            found.append(str(error))
    return found


def ended(name: str) -> list[Any]:
    """Wait for its end; give its status, and its output."""
    state = client.wait_for_workflow_completion(name, timeout_in_seconds=PATIENCE)
    assert state is not None
    return [state.runtime_status.name, json.loads(state.serialized_output or "null")]


def run() -> dict[str, Any]:
    """Run all."""
    client.schedule_new_workflow(checkout, input=7, instance_id="c-1")
    client.schedule_new_workflow(much, input=700_000, instance_id="fits")
    client.schedule_new_workflow(much, input=1_100_000, instance_id="too-much")
    found = {name: ended(name) for name in ("c-1", "fits", "too-much")}
    first = next(event for event in client.get_workflow_history("c-1") if event.name == "validate")
    client.rerun_workflow_from_event("c-1", first.event_id, new_instance_id="c-2", input=8)
    found["c-2"] = ended("c-2")
    return found


shop.start()
billing.start()
try:
    seen = run()
finally:
    shop.shutdown()
    billing.shutdown()
print(json.dumps(seen))
