"""A worker on the Python SDK: what each activity does is a line `effect <instance>/<task> <pid>`."""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dapr.ext.workflow as wf

RECORDS = os.open(os.environ["APP_RECORDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
runtime = wf.WorkflowRuntime()


@runtime.workflow
def order(context: wf.DaprWorkflowContext, given: int) -> Iterator[Any]:
    """Have one of everything: an activity, a timer, three at once, a child, an event."""
    first = yield context.call_activity(step, input=given)
    yield context.create_timer(timedelta(milliseconds=50))
    many = yield wf.when_all([context.call_activity(step, input=given + each) for each in range(3)])
    child = yield context.call_child_workflow(leg, input=given)
    told = yield context.wait_for_external_event("go")
    return [first, sum(many), child, told, (yield context.call_activity(step, input=1))]


@runtime.workflow
def leg(context: wf.DaprWorkflowContext, given: int) -> Iterator[Any]:
    """Be the child."""
    return (yield context.call_activity(step, input=2 * given))


@runtime.activity
def step(context: wf.WorkflowActivityContext, given: int) -> int:
    """Have an effect."""
    os.write(RECORDS, f"effect {context.workflow_id}/{context.task_id} {os.getpid()}\n".encode())
    return given + 1


runtime.start()
signal.sigwait([signal.SIGTERM])
runtime.shutdown()
