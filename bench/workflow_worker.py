"""A worker on the official Python SDK, run by an interpreter that has it: activities that give back what they are given."""

from __future__ import annotations

import sys

import dapr.ext.workflow as wf

runtime = wf.WorkflowRuntime(host="127.0.0.1", port=sys.argv[1])


@runtime.activity
def echo(_context: wf.WorkflowActivityContext, given: int) -> int:
    """Give it back."""
    return given


@runtime.workflow
def chain(context: wf.DaprWorkflowContext, given: int):  # A generator of the SDK's tasks.
    """Call one activity after the other."""
    for number in range(given):
        yield context.call_activity(echo, input=number)
    return given


@runtime.workflow
def fan(context: wf.DaprWorkflowContext, given: int):
    """Call all activities at once."""
    yield wf.when_all([context.call_activity(echo, input=number) for number in range(given)])
    return given


@runtime.workflow
def wait(context: wf.DaprWorkflowContext, given: int):
    """Wait for an event."""
    yield context.wait_for_external_event("go")
    return given


runtime.start()
sys.stdin.read()
runtime.shutdown()
