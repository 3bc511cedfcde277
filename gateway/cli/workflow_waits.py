"""What a workflow waits for as people read it: a line for each thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LISTS", "waits"]

LISTS = ("tasks", "timers", "waitsForEvents", "children", "raised")
"""The members that ``waits`` tells in its own words."""


def waits(told: Mapping[str, Any], own: str) -> list[tuple[str, str]]:
    """Say what an instance waits for, and what it has not taken.

    Args:
        told: As the gateway tells it.
        own: The application that it belongs to.

    Returns:
        Rows of two columns, the first of them empty where it is that of the row before.
    """
    counts, found = told.get("waitingFor", {}), list[str]()
    for name, count, line in (
        ("tasks", "activities", _task),
        ("waitsForEvents", "", _event),
        ("timers", "timers", _timer),
        ("children", "children", _child),
    ):
        listed = told.get(name, ())
        found += [line(each, own) for each in listed]
        if listed and (more := counts.get(count, 0) - len(listed)) > 0:
            found.append(f"… and {more} more {count}")
    raised = [f"{each['name']}, at {each['at']}" for each in told.get("raised", ())]
    if raised and (more := counts.get("raised", 0) - len(raised)) > 0:
        raised.append(f"… and {more} more")
    return [*_rows("waitsFor", found), *_rows("notTaken", raised)]


def _rows(name: str, lines: list[str]) -> list[tuple[str, str]]:
    return [("" if number else name, line) for number, line in enumerate(lines)]


def _of(each: Mapping[str, Any], own: str) -> str:
    return "" if each["appID"] == own else f" of {each['appID']}"


def _task(task: Mapping[str, Any], own: str) -> str:
    attempt = "" if task["attempt"] == 1 else f", attempt {task['attempt']}"
    if task["running"]:
        worker = f" ({task['worker']})" if "worker" in task else ""
        how = f"runs at {task['node']}{worker}"
    else:
        how = f"is tried again at {task['due']}" if "due" in task else "waits for a worker"
    return f"activity {task['activity']} #{task['task']}{_of(task, own)}{attempt}, since {task['since']}: {how}"


def _event(event: Mapping[str, Any], _: str) -> str:
    times = f", {event['count']} times" if "count" in event else ""
    return f"event {event['name']}{times}, since {event['since']}"


def _timer(timer: Mapping[str, Any], _: str) -> str:
    limit = f": the limit of event {timer['event']}" if "event" in timer else ""
    return f"timer #{timer['task']}, due {timer['due']}{limit or (': a retry' if 'retries' in timer else '')}"


def _child(child: Mapping[str, Any], own: str) -> str:
    return f"child {child['instanceID']} #{child['task']}{_of(child, own)}: {child['workflow']}, since {child['since']}"
