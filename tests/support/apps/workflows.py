"""A worker over HTTP, on the example's few lines: an activity's effect is a line `effect <instance>/<task> <pid>`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from flow import activity, all_of, event, serve, timer, workflow  # type: ignore[import-not-found]  # An example's.

RECORDS = os.open(os.environ["APP_RECORDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def order(given: int) -> Iterator[Any]:
    """Have one of everything: an activity, a timer, three at once, a child, an event."""
    first = yield activity("step", given)
    yield timer("50ms")
    many = yield all_of(*(activity("step", given + each) for each in range(3)))
    child = yield workflow("leg", given)
    told = yield event("go")
    return [first, sum(many), child, told, (yield activity("step", 1))]


def leg(given: int) -> Iterator[Any]:
    """Be the child."""
    return (yield activity("step", 2 * given))


def step(given: int, headers: Mapping[str, str]) -> int:
    """Have an effect."""
    line = f"effect {headers['mesh-workflow-instance']}/{headers['mesh-workflow-task']} {os.getpid()}\n"
    os.write(RECORDS, line.encode())
    return given + 1


serve({"order": order, "leg": leg}, {"step": step})
