"""Small workflow programs, and a worker that runs them by replaying their history, as those of applications do.

A program is a list of steps:

    ["task"]            an activity, which gives its own input
    ["tasks", 3]        some at once
    ["retried"]         an activity that the engine tries again
    ["race"]            an activity against a timer
    ["timer"]           a timer
    ["wait"]            an event, whose input is a number
    ["child", [steps]]  a program as a child
    ["renew"]           continue as new

What goes along of the history with an activity or a child follows from its number (`scope_of`).
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from typing import Any

from msgspec.structs import replace

from mesh.workflows.actions import Action, Answer, Complete, CreateChild, CreateTimer, ScheduleTask, Wait
from mesh.workflows.events import (
    ChildCompleted,
    ChildFailed,
    Event,
    EventRaised,
    Resumed,
    Retry,
    Started,
    Suspended,
    TaskCompleted,
    TaskFailed,
    TimerFired,
    TurnStarted,
)
from mesh.workflows.propagation import LINEAGE, OWN
from mesh.workflows.state import Status

Steps = list[list[Any]]

SCOPES = None, OWN, LINEAGE
EVENT = "event"  # Stands for an event's number in what is expected.


def scope_of(id: int) -> int | None:
    """What of the history goes along with what has a number."""
    return SCOPES[id % 3]


def expected(steps: Steps) -> list[Any]:
    """What a program gives, with ``EVENT`` for the number of each event."""
    out: list[Any] = []
    for number, (kind, *rest) in enumerate(steps):
        match kind:
            case "task" | "retried":
                out.append(number)
            case "tasks":
                out.append([number] * rest[0])
            case "wait":
                out.append(EVENT)
            case "child":
                out.append(expected(rest[0]))
            case _:
                pass
    return out


def program_input(steps: Steps, first: int = 0, out: list[Any] | None = None) -> str:
    """The input that a program begins with, or goes on with as a new execution."""
    return json.dumps({"steps": steps, "first": first, "out": out or []})


class Code:
    """One replay."""

    def __init__(self) -> None:
        self.asked: list[Action] = []
        self.complete: Complete | None = None
        self.wants_event = False
        self._now = 0.0
        self._results: dict[int, Any] = {}
        self._events: list[EventRaised] = []
        self._generator: Generator[list[int] | None, None, list[Any]] | None = None
        self._waits: list[int] | None = []
        self._aside: list[Event] | None = None

    def run(self, past: Iterable[Event], new: Iterable[Event], *, whole: bool) -> Answer:
        """Give the answer to a turn."""
        for event in past:
            self._feed(event)
        done = 0 if whole else len(self.asked)
        for event in new:
            self._feed(event)
        actions = self.asked[done:]
        if self.complete is not None:
            unused = tuple(self._events) if self.complete.status == Status.CONTINUED_AS_NEW else ()
            actions.append(replace(self.complete, carryover=unused))
        return Answer(tuple(actions), whole=whole)

    def _feed(self, event: Event) -> None:
        if self._aside is not None and not isinstance(event, Resumed):
            self._aside.append(event)
            return
        match event:
            case Suspended():
                self._aside = []
            case Resumed() if self._aside is not None:
                aside, self._aside = self._aside, None
                for earlier in aside:
                    self._feed(earlier)
            case TurnStarted():
                assert event.at >= self._now
                self._now = event.at
            case Started():
                self._generator = self._program(json.loads(event.input or ""))
                self._go_on()
            case TaskCompleted():
                self._resolve(event.task, json.loads(event.result or "null"))
            case TaskFailed() | ChildFailed():
                self._resolve(event.task, event.failure.type)
            case ChildCompleted():
                self._resolve(event.task, json.loads(event.result or "null"))
            case TimerFired():
                self._resolve(event.timer, None)
            case EventRaised():
                self._events.append(event)
                self._go_on()

    def _resolve(self, id: int, value: Any) -> None:
        assert id not in self._results, "an outcome came twice"
        self._results[id] = value
        self._go_on()

    def _go_on(self) -> None:
        while self._generator is not None and self.complete is None:
            if self._waits is None and not self._events:
                return
            if self._waits and not any(id in self._results for id in self._waits):
                return
            try:
                self._waits = next(self._generator)
            except StopIteration as stop:
                self.complete = Complete(len(self.asked), Status.COMPLETED, json.dumps(stop.value))
            self.wants_event = self._waits is None and self.complete is None

    def _ask(self, kind: type[Any], *args: Any, **named: Any) -> int:
        id = len(self.asked)
        self.asked.append(kind(id, *args, **named))
        return id

    def _program(self, given: dict[str, Any]) -> Generator[list[int] | None, None, list[Any]]:
        """Yields ids of which one must have an outcome to go on, or None for an event."""
        steps, out = given["steps"], given["out"]
        for number in range(given["first"], len(steps)):
            kind, *rest = steps[number]
            match kind:
                case "task" | "retried":
                    retry = Retry(3, 1) if kind == "retried" else None
                    scope = scope_of(len(self.asked))
                    id = self._ask(ScheduleTask, kind, json.dumps(number), retry=retry, propagation=scope)
                    yield [id]
                    out.append(self._results[id])
                case "tasks":
                    ids = [self._ask(ScheduleTask, kind, json.dumps(number)) for _ in range(rest[0])]
                    for id in ids:
                        yield [id]
                    out.append([self._results[id] for id in ids])
                case "race":
                    task = self._ask(ScheduleTask, kind, json.dumps(number))
                    yield [task, self._ask(CreateTimer, (int(self._now) + 1, 0))]
                case "timer":
                    yield [self._ask(CreateTimer, (int(self._now) + 2, 0))]
                case "wait":
                    self._ask(Wait, "go")
                    yield None
                    out.append(json.loads(self._events.pop(0).input or ""))
                case "child":
                    scope = scope_of(len(self.asked))
                    id = self._ask(CreateChild, "", "program", program_input(rest[0]), propagation=scope)
                    yield [id]
                    out.append(self._results[id])
                case "renew":
                    going_on = program_input(steps, number + 1, out)
                    self.complete = Complete(len(self.asked), Status.CONTINUED_AS_NEW, going_on)
                    yield []
        return out
