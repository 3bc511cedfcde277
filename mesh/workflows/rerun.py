"""Running an instance again, from one of its events, as another instance.

What had an outcome when the event was asked for is taken over with it. The event, and what had none then, are asked for
anew, under their ids: so the code replays as far as that, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from mesh.errors import BadArgumentError
from mesh.workflows.errors import WorkflowEventNotFoundError, WorkflowNotEndedError
from mesh.workflows.events import (
    AnyEvent,
    ChildCreated,
    DetachedCreated,
    Event,
    EventRaised,
    EventSent,
    Inherited,
    Started,
    TaskScheduled,
    TimerCreated,
    TurnStarted,
)
from mesh.workflows.instance import CHILD, TASK, TIMER, Outcome, outcome
from mesh.workflows.messages import Restore
from mesh.workflows.outgoing import child_id, execution_id
from mesh.workflows.state import State

__all__ = ["make"]

_ASKED = TaskScheduled | TimerCreated | ChildCreated | EventSent | DetachedCreated
_KEPT = Started | Inherited | TurnStarted | EventRaised | Outcome | _ASKED


def make(
    source: str,
    state: State,
    history: Sequence[Event],
    event: int | None,
    new_id: str,
    execution: str,
    now: float,
    *,
    input: str | None = None,
    overwrite: bool = False,
    new_child_id: str | None = None,
) -> Restore:
    """Make what begins the new instance.

    Args:
        source: Id of the instance which is run again.
        state: What it is.
        history: Its history, of its last execution.
        event: The id of an activity, a timer or a child that it has asked for; None = that of the first one.
        new_id: Of the new instance.
        execution: Id of the new execution.
        now: Unix time in seconds.
        input: In place of that of the activity or child, where ``overwrite`` says so.
        overwrite: Whether it does.
        new_child_id: Of the child, where the event is one: it needs another id than it had; None = one is made.

    Raises:
        WorkflowNotEndedError: The source has not ended.
        WorkflowEventNotFoundError: It has asked for no activity, timer or child of this id.
        BadArgumentError: What was asked makes no sense of this event.
    """
    if state.ended is None:
        raise WorkflowNotEndedError(f"the workflow '{source}' has not ended, so it cannot be run again")
    if new_id == source:
        raise BadArgumentError(f"the workflow '{source}' cannot be run again under its own id")
    event, place = _find(source, history, event)
    target = history[place]
    if isinstance(target, TimerCreated) and overwrite:
        raise BadArgumentError(f"event {event} of the workflow '{source}' is a timer, which has no input")
    if new_child_id and not isinstance(target, ChildCreated):
        raise BadArgumentError(f"event {event} of the workflow '{source}' is no child, which a new id is for")
    if overwrite and isinstance(target, TaskScheduled | ChildCreated):
        target = replace(target, input=input)
    if isinstance(target, ChildCreated):
        target = replace(target, instance=new_child_id or child_id(new_id, target.id))
    whole = (*history[:place], target, *history[place + 1 :])
    return Restore(execution, tuple(_taken_over(source, whole, place, new_id, execution, now)))


def _taken_over(
    source: str, history: Sequence[Event], place: int, new_id: str, execution: str, now: float
) -> Iterator[AnyEvent]:
    done = {key for earlier in history[:place] if (key := outcome(earlier)) is not None}
    for index, old in enumerate(history[: _turn_end(history, place)]):
        if not isinstance(old, _ASKED if index > place else _KEPT):
            continue  # Nothing that happened later: the code is to be where it was.
        match old:
            case Started():
                yield replace(old, execution=execution, parent=None, scheduled=None, caller="", rerun_of=source)
            case TaskScheduled() if (TASK, old.id) not in done:
                yield replace(old, at=now, execution_id=execution_id(execution, old.id), rerun_of=source)
            case TimerCreated() if (TIMER, old.id) not in done:
                yield replace(old, at=now, rerun_of=source)
            case ChildCreated() if (CHILD, old.id) not in done:
                id = old.instance if index == place else child_id(new_id, old.id)
                yield replace(old, at=now, instance=id, rerun_of=source)
            case _:
                yield old


def _find(source: str, history: Sequence[Event], event: int | None) -> tuple[int, int]:
    """Give the event's id and place."""
    places = {
        each.id: place
        for place, each in enumerate(history)
        if isinstance(each, TaskScheduled | TimerCreated | ChildCreated)
    }
    first = min(places, default=None)  # SDKs count from 0 or from 1.
    wanted = first if event is None else event
    if wanted is not None and wanted in places:
        return wanted, places[wanted]
    which = "" if event is None else f" with id {event}"
    other = "" if first is None else f"; its first has id {first}"
    raise WorkflowEventNotFoundError(f"the workflow '{source}' has no activity, timer or child{which}{other}")


def _turn_end(history: Sequence[Event], place: int) -> int:
    """Give where the turn ends that has asked for something: what it asked for besides is asked for, too."""
    for end in range(place, len(history)):
        if isinstance(history[end], TurnStarted):
            return end
    return len(history)
