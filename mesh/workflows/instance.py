"""An instance in memory: its state and history, and what follows from them, kept up to date step by step."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Container, Iterable
from typing import TypeAlias, overload

import msgspec

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
    Inherited,
    Resumed,
    Retrying,
    Stalled,
    Started,
    Suspended,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCreated,
    TimerFired,
    TurnStarted,
    seconds,
)
from mesh.workflows.state import State, Step

__all__ = ["CHILD", "TASK", "TIMER", "Instance", "Outcome", "Turn", "outcome"]

TASK, TIMER, CHILD = range(3)

Outcome: TypeAlias = TaskCompleted | TaskFailed | TimerFired | ChildCompleted | ChildFailed


class Turn(msgspec.Struct, frozen=True):
    """A turn that is out, or is to be.

    Attributes:
        generation: Of the execution.
        number: Of the turn in it, from 1 on.
        new: What is new in it; begins with `TurnStarted`.
        taken: How many events of the inbox are in ``new``: its first ones.
    """

    generation: int
    number: int
    new: tuple[Event, ...]
    taken: int


@overload
def outcome(event: Outcome) -> tuple[int, int]: ...


@overload
def outcome(event: Event) -> tuple[int, int] | None: ...


def outcome(event: Event) -> tuple[int, int] | None:
    """Tell what an event is the outcome of, as a kind and the id of the action; None = it is no outcome.

    There is one outcome of each: the first to come counts.
    """
    match event:
        case TaskCompleted() | TaskFailed():
            return TASK, event.task
        case TimerFired():
            return TIMER, event.timer
        case ChildCompleted() | ChildFailed():
            return CHILD, event.task
        case _:
            return None


class Instance:
    """An instance; nothing here changes but by ``apply``, except that its owner may raise ``attempts``.

    Attributes:
        id: Its id.
        app: The application that it belongs to.
        state: What it is.
        history: What has happened to it, as committed. It grows in place; a new execution has a new list.
        started: How the execution began, or is to begin.
        inherited: What its parent has handed on to it.
        asked: What the code has asked for in this execution, by the id of the action.
        tasks: The activities that wait for an outcome, by id: none once it has ended.
        children: The children likewise; these stay when it has ended.
        timers: The timers likewise.
        retries: Of each of ``tasks`` that the engine itself tries again: the last that was decided.
        attempts: The number of the current attempt of each of ``tasks``, where that is not the first.
        raised: How often each event stands in the history.
        tokens: Of the events that were raised, with when.
        patches: That the code has asked for, in order.
        suspended: Whether the history says so, which what has not been in a turn yet may be about to change.
        stalled: By what text it is stalled, and was not run since.
        clock: The time of the last turn, which the next one is not to be before.
    """

    __slots__ = (
        "_dues",
        "app",
        "asked",
        "attempts",
        "children",
        "clock",
        "history",
        "id",
        "inherited",
        "patches",
        "raised",
        "retries",
        "stalled",
        "started",
        "state",
        "suspended",
        "tasks",
        "timers",
        "tokens",
    )

    def __init__(self, id: str, app: str, state: State, history: Iterable[Event] = ()) -> None:
        """Build it of what is stored."""
        self.id = id
        self.app = app
        self.state = state
        self._build(history)

    def apply(self, step: Step) -> None:
        """Take a step that has been committed."""
        before, self.state = self.state, step.state
        if step.state.generation != before.generation:
            self._build(step.append)
            return
        if step.append:
            self.history.extend(step.append)
            for event in step.append:
                self._record(event)
        # An outcome is only ever added at the end: what was there before is known, wherever it stands now.
        for event in step.state.inbox[len(before.inbox) :]:
            self._arrive(event)

    def wants(self, event: Event) -> bool:
        """Tell whether something waits for an outcome."""
        if self.state.ended is not None or (key := outcome(event)) is None:
            return False
        kind, id = key
        return id in (self.tasks if kind == TASK else self.timers if kind == TIMER else self.children)

    def wanted(self, events: Iterable[Event]) -> tuple[Outcome, ...]:
        """Give those outcomes that something waits for, of each action the first."""
        first: dict[tuple[int, int], Outcome] = {}
        for event in events:
            if isinstance(event, Outcome) and self.wants(event):
                first.setdefault(outcome(event), event)
        return tuple(first.values())

    def due(self, without: Container[tuple[int, int]] = ()) -> float | None:
        """Tell when the first timer or retry is due, Unix time in seconds; ``without`` some, by kind and id."""
        return next((due for due, kind, id in self._dues if (kind, id) not in without), None)

    def next_due(self, after: float) -> float | None:
        """Tell when the first timer or retry is due that is so only after a time; Unix time in seconds."""
        place = bisect_right(self._dues, (after, CHILD, 0))
        return self._dues[place][0] if place < len(self._dues) else None

    def dues(self, until: float) -> list[tuple[float, int, int]]:
        """Give what is due, in order: when, `TIMER` or `TASK` for a retry, and the id of the action."""
        return self._dues[: bisect_right(self._dues, (until, CHILD, 0))]

    def _build(self, history: Iterable[Event]) -> None:
        self.history: list[Event] = []
        self.started: Started | None = None
        self.inherited: Inherited | None = None
        self.asked: dict[int, Event] = {}
        self.tasks: dict[int, TaskScheduled] = {}
        self.children: dict[int, ChildCreated] = {}
        self.timers: dict[int, TimerCreated] = {}
        self.retries: dict[int, Retrying] = {}
        self.attempts: dict[int, int] = {}
        self.raised: dict[str, int] = {}
        self.tokens: dict[str, float] = {token: at for at, token in self.state.seen}
        self.patches: dict[str, None] = {}
        self.suspended = False
        self.stalled: str | None = None
        self.clock = 0.0
        self._dues: list[tuple[float, int, int]] = []
        self.history.extend(history)
        for event in self.history:
            self._record(event)
        for event in self.state.inbox:
            self._arrive(event)

    def _record(self, event: Event) -> None:
        """Take what stands in the history."""
        match event:
            case TurnStarted():
                self.clock = max(self.clock, event.at)
                self.patches.update(dict.fromkeys(event.patches))
                self.stalled = None
            case TaskScheduled():
                self.asked[event.id] = self.tasks[event.id] = event
            case TimerCreated():
                self.asked[event.id] = self.timers[event.id] = event
                if event.fire_at[0] < FOREVER:
                    insort(self._dues, (seconds(event.fire_at), TIMER, event.id))
            case ChildCreated():
                self.asked[event.id] = self.children[event.id] = event
            case EventSent() | DetachedCreated():
                self.asked[event.id] = event
            case Retrying():
                self._retry(event)
            case Suspended():
                self.suspended = True
            case Resumed():
                self.suspended = False
            case Stalled():
                self.stalled = event.text
            case EventRaised():
                self.raised[event.name] = self.raised.get(event.name, 0) + 1
                self._arrive(event)
            case Completed():
                self.tasks.clear()
                self.timers.clear()
                self.retries.clear()
                self.attempts.clear()
                self._dues.clear()
            case _:
                self._arrive(event)

    def _arrive(self, event: Event) -> None:
        """Take what may stand in the history or the inbox."""
        match event:
            case TaskCompleted() | TaskFailed():
                if self.tasks.pop(event.task, None) is not None:
                    self.attempts.pop(event.task, None)
                    if (retry := self.retries.pop(event.task, None)) is not None:
                        self._forget((retry.due, TASK, retry.task))
            case TimerFired():
                if (timer := self.timers.pop(event.timer, None)) is not None:
                    self._forget((seconds(timer.fire_at), TIMER, timer.id))
            case ChildCompleted() | ChildFailed():
                self.children.pop(event.task, None)
            case EventRaised():
                if event.token:
                    self.tokens[event.token] = event.at
            case Started():
                self.started = event
            case Inherited():
                self.inherited = event
            case _:
                pass

    def _retry(self, event: Retrying) -> None:
        if event.task not in self.tasks:
            return
        if (retry := self.retries.get(event.task)) is not None:
            self._forget((retry.due, TASK, retry.task))
        self.retries[event.task] = event
        self.attempts[event.task] = max(event.attempt, self.attempts.get(event.task, 1))
        insort(self._dues, (event.due, TASK, event.task))

    def _forget(self, due: tuple[float, int, int]) -> None:
        place = bisect_left(self._dues, due)
        if self._dues[place : place + 1] == [due]:
            del self._dues[place]
