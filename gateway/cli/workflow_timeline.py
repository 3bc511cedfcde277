"""The history of a workflow as people read it: when, what, and what came of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from gateway.cli.terminal import colours_wanted, table

__all__ = ["timeline"]

_LONGEST = 60
_RED, _GREEN, _YELLOW, _DIM = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[2m"
_COLOURS: Mapping[str, str] = {
    "turn": _DIM,
    **dict.fromkeys(("completed", "childCompleted", "fired"), _GREEN),
    **dict.fromkeys(("failed", "childFailed", "terminated"), _RED),
    **dict.fromkeys(("retrying", "stalled", "suspended"), _YELLOW),
}
_SAYS: Mapping[str, str] = {
    "child": "child started",
    "childCompleted": "completed",
    "childFailed": "failed",
    "timer": "timer set",
    "raised": "event raised",
    "sent": "event sent",
    "detached": "started, apart",
}
_BEGINS = frozenset({"scheduled", "child", "timer"})
_ENDS = frozenset({"completed", "failed", "childCompleted", "childFailed", "fired"})


def timeline(told: Mapping[str, Any], *, whole: bool) -> str:
    """Write a history.

    Args:
        told: As the gateway tells it.
        whole: Whether values are written as long as they are.
    """
    events = told["events"]
    since = min((_seconds(each["at"]) for each in events), default=0.0)  # The first turn stands before the start.
    names: dict[int, str] = {}
    begun: dict[int, float] = {}
    rows, kinds = [], []
    for event in events:
        kind, at, task = event["event"], _seconds(event["at"]), event.get("task")
        if kind in _BEGINS:
            names[task], begun[task] = _name(event), at
        took = f" in {_took(at - begun[task])}" if task in begun and kind in _ENDS else ""
        subject = f"{names[task]} #{task}" if task in names else _name(event)
        match kind:
            case "ended":
                what = event["runtimeStatus"]
            case "retrying":
                what = f"attempt {event['attempt'] - 1} failed"
            case _:
                what = _SAYS.get(kind, kind) + took
        rows.append((f"+{at - since:.3f}", subject, what, _value(event, whole)))
        kinds.append({"ended": "completed" if what == "COMPLETED" else "failed"}.get(kind, kind))
    head = f"{told['workflowName']}  {told['instanceID']}  {told['runtimeStatus']}"
    lines = table([(head, "", "", "")]).splitlines()
    lines += table(rows).splitlines() if rows else []
    if not colours_wanted(os.environ, terminal=sys.stdout.isatty()):
        return "\n".join(lines)
    return "\n".join([lines[0], *map(_coloured, kinds, lines[1:])])


def _coloured(kind: str, line: str) -> str:
    colour = _COLOURS.get(kind)
    return line if colour is None else f"{colour}{line}\x1b[0m"


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _name(event: Mapping[str, Any]) -> str:
    """Say what an event is about; a timer that an application has not named is one."""
    found = event.get("activity") or event.get("workflow") or event.get("name")
    return _cut(str(found or ("timer" if event["event"] == "timer" else "")))


def _value(event: Mapping[str, Any], whole: bool) -> str:
    error = event.get("error")
    if error is not None:
        text = f"{error['type']}: {error['message']}"
    elif event["event"] == "turn":
        text = ", ".join(event.get("patches", ()))
    elif event["event"] == "inherited":
        text = ", ".join(f"{each['workflow']} {each['instanceID']}" for each in event["workflows"])
    else:
        told = ("input", "data", "result", "output", "fireAt", "why", "reason")
        found = next((event[name] for name in told if name in event), None)
        text = "" if found is None else found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return text if whole else _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
