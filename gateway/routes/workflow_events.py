"""Events of a workflow's history, as people and scripts are shown them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
import orjson

from gateway.routes.workflows import status_name, timestamp
from mesh.workflows import events
from mesh.workflows.events import Ancestor, Event, Failure, Moment, seconds
from mesh.workflows.propagation import SCOPES, events_of

__all__ = ["shown_event", "shown_text"]

# What each kind is called, and the fields that are shown under other names.
_KINDS: dict[type[Event], tuple[str, dict[str, str]]] = {
    events.Started: ("started", {"name": "workflow", "execution": "executionID", "caller": "callerAppID"}),
    events.Completed: ("ended", {"status": "runtimeStatus", "failure": "error", "id": "task"}),
    events.Terminated: ("terminated", {}),
    events.TaskScheduled: ("scheduled", {"id": "task", "name": "activity"}),
    events.TaskCompleted: ("completed", {}),
    events.TaskFailed: ("failed", {"failure": "error"}),
    events.ChildCreated: ("child", {"id": "task", "name": "workflow"}),
    events.ChildCompleted: ("childCompleted", {}),
    events.ChildFailed: ("childFailed", {"failure": "error"}),
    events.TimerCreated: ("timer", {"id": "task"}),
    events.TimerFired: ("fired", {"timer": "task"}),
    events.TurnStarted: ("turn", {}),
    events.EventSent: ("sent", {"id": "task", "input": "data"}),
    events.EventRaised: ("raised", {"input": "data"}),
    events.Suspended: ("suspended", {}),
    events.Resumed: ("resumed", {}),
    events.Stalled: ("stalled", {"text": "why"}),
    events.DetachedCreated: ("detached", {"id": "task"}),
    events.Retrying: ("retrying", {"failure": "error"}),
    events.Inherited: ("inherited", {"ancestors": "workflows"}),
}
_NAMES = {"app": "appID", "instance": "instanceID", "fire_at": "fireAt", "rerun_of": "rerunOf"}
_SCOPES = {"propagation": "propagate", "scope": "scope"}
_TEXTS = frozenset({"input", "result", "output"})
_LEFT_OUT = frozenset({"at", "trace", "token", "retry_of", "execution_id", "origin"})
_TIMES = frozenset({"scheduled", "due"})


def shown_event(event: Event) -> dict[str, object]:
    """Show an event: what it is, when it was, and all that it tells; a number of a task is that of its action."""
    kind, names = _KINDS[type(event)]
    told: dict[str, object] = {"event": kind, "at": timestamp(event.at)}
    for field in type(event).__struct_fields__:
        value = getattr(event, field)
        if field in _LEFT_OUT or value is None or value in ("", (), {}) or (field in _SCOPES and not value):
            continue
        told[names.get(field) or _NAMES.get(field) or _SCOPES.get(field, field)] = _shown(field, value)
    return told


def _shown(field: str, value: object) -> object:
    if field in _TEXTS:
        return shown_text(cast("str", value))
    if field == "status":
        return status_name(cast("int", value))
    if field in _TIMES:
        return timestamp(cast("float", value))
    if field == "fire_at":
        moment = cast("Moment", value)
        return timestamp(seconds(moment)) if moment[0] < events.FOREVER else "never"
    if field in _SCOPES:
        return SCOPES.get(cast("int", value))
    if field == "ancestors":
        return [_ancestor(each) for each in cast("Sequence[Ancestor]", value)]
    if isinstance(value, Failure):
        return _failure(value)
    return msgspec.to_builtins(_named(value)) if isinstance(value, msgspec.Struct) else value


def _ancestor(ancestor: Ancestor) -> dict[str, object]:
    """Show whose history went along, and how many events of it."""
    count = len(events_of(ancestor))
    return {
        "appID": ancestor.app,
        "instanceID": ancestor.instance,
        "workflow": ancestor.workflow,
        "events": count,
    }


def _failure(failure: Failure) -> dict[str, object]:
    told: dict[str, object] = {"type": failure.type, "message": failure.message}
    if failure.final:
        told["final"] = True
    if failure.stack:
        told["stackTrace"] = failure.stack
    if failure.inner is not None:
        told["cause"] = _failure(failure.inner)
    return told


def _named(value: msgspec.Struct) -> dict[str, object]:
    """Show a value by the names of its fields; stored, it is an array."""
    return {_NAMES.get(field, field): getattr(value, field) for field in value.__struct_fields__}


def shown_text(text: str | None) -> object:
    """Give a text of the application as the JSON that it is; another one as a text."""
    if text is None:
        return None
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return orjson.Fragment(text)
