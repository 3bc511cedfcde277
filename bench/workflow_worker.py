"""A worker on the official Python SDK, which the interpreter that runs it has: it gives back what it is given.

It says what it has done when a line comes in, and ends when no more can.
"""

from __future__ import annotations

import itertools
import json
import sys

import dapr.ext.workflow as wf

runtime = wf.WorkflowRuntime(host="127.0.0.1", port=sys.argv[1])
tasks, turns, ends = itertools.count(), itertools.count(), itertools.count()  # Threads share them.


@runtime.activity
def echo(_context: wf.WorkflowActivityContext, given: int) -> int:
    """Give it back."""
    next(tasks)
    return given


@runtime.workflow
def chain(context: wf.DaprWorkflowContext, given: int):
    """Call one activity after the other."""
    next(turns)
    for number in range(given):
        yield context.call_activity(echo, input=number)
    next(ends)
    return given


@runtime.workflow
def fan(context: wf.DaprWorkflowContext, given: int):
    """Call all activities at once."""
    next(turns)
    yield wf.when_all([context.call_activity(echo, input=number) for number in range(given)])
    next(ends)
    return given


def count(counter: itertools.count) -> int:
    """See how far it is."""
    return counter.__reduce__()[1][0]


runtime.start()
print(json.dumps({"port": 0}), flush=True)
for _ in sys.stdin:
    print(json.dumps({"tasks": count(tasks), "turns": count(turns), "ended": count(ends)}), flush=True)
runtime.shutdown()
