"""A worker of workflows on the official Python SDK; ends when its input does."""

from __future__ import annotations

import sys
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import dapr.ext.workflow as wf  # type: ignore[import-not-found]

runtime = wf.WorkflowRuntime(host="127.0.0.1", port=sys.argv[1])

Code = Generator[Any, Any, Any]


@runtime.activity
def double(_context: Any, number: int) -> int:
    """Double a number; odd ones above a hundred are refused."""
    if number > 100 and number % 2:
        raise ValueError(f"{number} is odd")
    return number * 2


@runtime.workflow
def sequence(context: Any, number: int) -> Code:
    """Double it three times."""
    for _ in range(3):
        number = yield context.call_activity(double, input=number)
    return number


@runtime.workflow
def fan_out(context: Any, count: int) -> Code:
    """Double many at once."""
    doubled = yield wf.when_all([context.call_activity(double, input=number) for number in range(count)])
    return sum(doubled)


@runtime.workflow
def timer(context: Any, milliseconds: int) -> Code:
    """Wait for a time."""
    yield context.create_timer(timedelta(milliseconds=milliseconds))
    return "fired"


@runtime.workflow
def event(context: Any, _: Any) -> Code:
    """Wait for an event, however long that takes."""
    context.set_custom_status("waiting")
    given = yield context.wait_for_external_event("go")
    return {"given": given}


@runtime.workflow
def failing(context: Any, number: int) -> Code:
    """Fail with an activity."""
    return (yield context.call_activity(double, input=number))


runtime.start()
sys.stdin.read()
runtime.shutdown()
