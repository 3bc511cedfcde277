"""Turns as JSON, for workers over HTTP: a history, and what a worker answers to it (docs/workflow-http.md).

Texts of applications stand in it as they are: they are JSON already. One that is none, as an event that was raised with
any text, stands there as a string. Each event of the history is one entry, so that their indexes are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from mesh.workflows.events import (
    FOREVER,
    ChildCompleted,
    ChildCreated,
    ChildFailed,
    Completed,
    DetachedCreated,
    Event,
    EventRaised,
    EventSent,
    Failure,
    Inherited,
    Resumed,
    Retrying,
    Stalled,
    Started,
    Suspended,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    Terminated,
    TimerCreated,
    TimerFired,
    TurnStarted,
    seconds,
)
from mesh.workflows.propagation import SCOPES, rendering
from mesh.workflows.state import Status
from mesh.workflows.worker import TaskWork, TurnWork

__all__ = ["event_json", "task_json", "turn_json"]

FORM = "json"
FIRST = -62135596800  # The year 1.
_Render = Callable[[Any], bytes]


def turn_json(work: TurnWork, kept: int = 0) -> bytes:
    """Render a turn.

    Args:
        work: The turn.
        kept: How many events of the past the worker still has.
    """
    past = work.rendered.setdefault(FORM, [])
    for event in work.past[len(past) :]:
        past.append(event_json(event))
    opened = work.new[0]
    head: dict[str, object] = {
        "instance": work.ref.id,
        "workflow": work.name,
        "execution": work.execution,
        "turn": work.number,
        "now": _time(opened.at),
        "new": len(past),
        "from": kept,
    }
    if not kept:
        head |= _beginning(work)
    entries = [*(past[kept:] if kept else past), *map(event_json, work.new)]
    return b'%b,"history":[%b]}' % (orjson.dumps(head)[:-1], b",".join(entries))


def _beginning(work: TurnWork) -> dict[str, object]:
    """Give what the worker needs of the event that the execution began with."""
    events: Sequence[Event]
    for events in (work.past, work.new):
        for event in events:
            if isinstance(event, Started):
                return {"version": event.version, "input": orjson.Fragment(_value(event.input))}
    return {"version": None, "input": None}


def event_json(event: Event) -> bytes:
    """Render an event of a history."""
    render = _RENDERS.get(type(event))
    return b'{"event":"unknown"}' if render is None else render(event)


def task_json(work: TaskWork) -> bytes:
    """Render an activity: its input as it is, and with what has happened in the workflow where that goes along."""
    if work.inherited is None:
        return b"" if work.input is None else work.input.encode()
    return b'{"input":%b,"inherited":%b}' % (_value(work.input), _inherited(work.inherited))


def _inherited(inherited: Inherited) -> bytes:
    workflows = [
        b'%b,"history":[%b]}'
        % (
            orjson.dumps({"app": each.app, "instance": each.instance, "workflow": each.workflow})[:-1],
            b",".join(filter(None, _history(each))),
        )
        for each in inherited.ancestors
    ]
    scope = orjson.dumps(SCOPES.get(inherited.scope))
    return b'{"scope":%b,"workflows":[%b]}' % (scope, b",".join(workflows))


def _with_input(event: Event) -> bytes:
    """Render an event for another one's code, which has not made the input itself."""
    rendered = event_json(event)
    if not isinstance(event, Started | TaskScheduled | ChildCreated):
        return rendered
    return b'%b,"input":%b}' % (rendered[:-1], _value(event.input))


_history = rendering(lambda events, _instance, _app: b",".join(map(_with_input, events)))


def _value(text: str | None) -> bytes:
    """Give a text of an application as a value of JSON."""
    if text is None:
        return b"null"
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return orjson.dumps(text)
    return text.encode()


@lru_cache(256)  # That of a turn stands in it three times, soon after each other.
def _time(at: float) -> str:
    part, whole = math.modf(min(max(at, FIRST), FOREVER))  # A timer of an SDK may lie beyond all years.
    more, microseconds = divmod(round(part * 1e6), 1_000_000)
    return f"{_second(int(whole) + more)}.{microseconds // 1000:03d}Z"


@lru_cache(64)  # Many turns begin in the same one.
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()[:19]


def _failure(failure: Failure) -> dict[str, object]:
    told: dict[str, object] = {"type": failure.type, "message": failure.message, "final": failure.final}
    if failure.stack:
        told["stack"] = failure.stack
    if failure.inner is not None:
        told["cause"] = _failure(failure.inner)
    return told


def _entry(kind: str, **members: object) -> bytes:
    return orjson.dumps({"event": kind, **members})


def _turn(event: TurnStarted) -> bytes:
    members: dict[str, object] = {"now": _time(event.at)}
    if event.version is not None:
        members["version"] = event.version
    if event.patches:
        members["patches"] = event.patches
    return _entry("turn", **members)


def _completed(event: TaskCompleted | ChildCompleted) -> bytes:
    return b'{"event":"completed","task":%d,"result":%b}' % (event.task, _value(event.result))


def _failed(event: TaskFailed | ChildFailed) -> bytes:
    return _entry("failed", task=event.task, error=_failure(event.failure))


def _retrying(event: Retrying) -> bytes:
    return _entry("retrying", task=event.task, attempt=event.attempt, error=_failure(event.failure))


def _timer(event: TimerCreated) -> bytes:
    return _entry("timer", task=event.id, fireAt=_time(seconds(event.fire_at)))


def _raised(event: EventRaised) -> bytes:
    return _entry("raised", name=event.name, data=orjson.Fragment(_value(event.input)))


def _ended(event: Completed) -> bytes:
    failure = None if event.failure is None else _failure(event.failure)
    return _entry(
        "ended", status=Status(event.status).name, result=orjson.Fragment(_value(event.result)), error=failure
    )


_RENDERS: dict[type[Event], _Render] = {
    Started: lambda event: _entry("started", workflow=event.name),
    Inherited: lambda event: b'{"event":"inherited",%b' % _inherited(event)[1:],
    TurnStarted: _turn,
    TaskScheduled: lambda event: _entry("scheduled", task=event.id, activity=event.name),
    TaskCompleted: _completed,
    TaskFailed: _failed,
    Retrying: _retrying,
    ChildCreated: lambda event: _entry("child", task=event.id, workflow=event.name, instance=event.instance),
    ChildCompleted: _completed,
    ChildFailed: _failed,
    TimerCreated: _timer,
    TimerFired: lambda event: _entry("fired", task=event.timer),
    EventRaised: _raised,
    EventSent: lambda event: _entry("sent", task=event.id, name=event.name, to=event.instance),
    DetachedCreated: lambda event: _entry("detached", task=event.id, instance=event.instance),
    Suspended: lambda event: _entry("suspended", reason=event.reason),
    Resumed: lambda event: _entry("resumed", reason=event.reason),
    Terminated: lambda event: _entry("terminated", output=orjson.Fragment(_value(event.output))),
    Stalled: lambda event: _entry("stalled", reason=event.text),
    Completed: _ended,
}
