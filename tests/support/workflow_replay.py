"""Workflows in Python, in the process of a test: generators that yield what they wait for, replayed event by event."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from mesh.workflows import actions
from mesh.workflows.actions import Action, Answer, Complete, CreateChild, CreateTimer, ScheduleTask, SendEvent
from mesh.workflows.events import (
    ChildCompleted,
    ChildFailed,
    Event,
    EventRaised,
    Failure,
    Resumed,
    Retry,
    Started,
    Suspended,
    TaskCompleted,
    TaskFailed,
    TimerFired,
    TurnStarted,
)
from mesh.workflows.state import Status

__all__ = ["Again", "Call", "Child", "Code", "Failed", "First", "Replay", "Send", "Timer", "Wait"]

Code: TypeAlias = Callable[[Any], Generator[Any, Any, Any]]
"""Is given the input; yields one of what is below, or a list, of which all is waited for; gives the output."""


@dataclass(frozen=True)
class Call:
    """An activity."""

    name: str
    input: object = None
    app: str | None = None
    retry: Retry | None = None


@dataclass(frozen=True)
class Timer:
    """So many seconds from the turn on that asks for it."""

    seconds: float


@dataclass(frozen=True)
class Child:
    """A child."""

    name: str
    input: object = None
    id: str = ""
    app: str | None = None


@dataclass(frozen=True)
class Send:
    """An event of another instance, or of its own where ``to`` is empty; nothing is waited for."""

    to: str
    name: str
    data: object = None


@dataclass(frozen=True)
class Wait:
    """An event of its own; gives its data."""

    name: str


@dataclass(frozen=True)
class First:
    """Several, of which one is enough; gives its outcome."""

    of: list[Call | Timer | Child]


@dataclass(frozen=True)
class Again:
    """What a workflow returns to begin anew, with the events that it did not use."""

    input: object


class Failed(Exception):
    """What is thrown into the code for an activity, or a child, that failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.type, failure.message)
        self.failure = failure


class Replay:
    """One run of the code along a history.

    Attributes:
        missing: The events that the code waits for now, by name.
    """

    def __init__(
        self, code: Code, instance: str = "", scope_of: Callable[[int], int | None] = lambda number: None
    ) -> None:
        self.missing: Counter[str] = Counter()
        self._code, self._instance, self._scope_of = code, instance, scope_of
        self._asked: list[Action] = []
        self._complete: Complete | None = None
        self._outcomes: dict[int, Any] = {}
        self._events: list[EventRaised] = []
        self._aside: list[Event] | None = None  # What comes while it is suspended.
        self._now = 0.0
        self._running: Generator[Any, Any, Any] | None = None
        self._wanted: object = None
        self._places: list[int | str | None] = []  # An action's id, an event's name, or nothing to wait for.

    def answer(self, past: Iterable[Event], new: Iterable[Event], *, whole: bool = False) -> Answer:
        """Run a turn."""
        for event in past:
            self._feed(event)
        done = 0 if whole else len(self._asked)
        for event in new:
            self._feed(event)
        asked = self._asked[done:]
        if self._complete is not None:
            unused = tuple(self._events) if self._complete.status == Status.CONTINUED_AS_NEW else ()
            ends = self._complete
            asked.append(Complete(ends.id, ends.status, ends.result, ends.failure, carryover=unused))
        return Answer(tuple(asked), whole=whole)

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
                self._running = self._code(_value(event.input))
                self._go_on(None)
            case TaskCompleted() | ChildCompleted():
                self._resolve(event.task, _value(event.result))
            case TaskFailed() | ChildFailed():
                self._resolve(event.task, Failed(event.failure))
            case TimerFired():
                self._resolve(event.timer, None)
            case EventRaised():
                self._events.append(event)
                self._take()

    def _resolve(self, id: int, outcome: object) -> None:
        assert 0 < id <= len(self._asked), f"{self._instance}: an outcome of {id}, which was not asked for"
        assert id not in self._outcomes, f"{self._instance}: two outcomes of {id}"
        self._outcomes[id] = outcome
        self._take()

    def _take(self) -> None:
        """Go on with what is waited for, if it is there."""
        if self._running is None or self._complete is not None:
            return
        ids = [each for each in self._places if isinstance(each, int)]
        if isinstance(self._wanted, First):
            came = next((id for id in ids if id in self._outcomes), None)
            if came is not None:
                self._go_on(self._outcomes[came])
            return
        self.missing = Counter(each for each in self._places if isinstance(each, str))
        self.missing -= Counter(event.name for event in self._events)
        if self.missing or not all(id in self._outcomes for id in ids):
            return
        found = [self._outcome(each) for each in self._places]
        failed = next((each for each in found if isinstance(each, Failed)), None)
        self._go_on(failed or (found if isinstance(self._wanted, list) else found[0]))

    def _outcome(self, place: int | str | None) -> object:
        if not isinstance(place, str):
            return None if place is None else self._outcomes[place]
        event = next(each for each in self._events if each.name == place)
        self._events.remove(event)
        return _value(event.input)

    def _go_on(self, outcome: object) -> None:
        assert self._running is not None
        number = len(self._asked) + 1
        try:
            if isinstance(outcome, Failed):
                self._wanted = self._running.throw(outcome)
            else:
                self._wanted = self._running.send(outcome)
        except StopIteration as stop:
            if isinstance(stop.value, Again):
                self._complete = Complete(number, Status.CONTINUED_AS_NEW, json.dumps(stop.value.input))
            else:
                self._complete = Complete(number, Status.COMPLETED, json.dumps(stop.value))
            return
        except Failed as error:
            self._complete = Complete(number, Status.FAILED, failure=error.failure)
            return
        wanted = self._wanted
        every = wanted.of if isinstance(wanted, First) else wanted if isinstance(wanted, list) else [wanted]
        self._places = [self._ask(each) for each in every]
        self._take()

    def _ask(self, wanted: object) -> int | str | None:
        number = len(self._asked) + 1
        scope = self._scope_of(number)
        match wanted:
            case Call(name=name, input=given, app=app, retry=retry):
                self._asked.append(
                    ScheduleTask(number, name, json.dumps(given), app=app, retry=retry, propagation=scope)
                )
            case Timer(seconds=after):
                whole, rest = divmod(self._now + after, 1)
                self._asked.append(CreateTimer(number, (int(whole), int(rest * 1e9))))
            case Child(name=name, input=given, id=id, app=app):
                self._asked.append(CreateChild(number, id, name, json.dumps(given), app=app, propagation=scope))
            case Send(to=to, name=name, data=data):
                self._asked.append(SendEvent(number, to or self._instance, name, json.dumps(data)))
                return None
            case Wait(name=name):
                self._asked.append(actions.Wait(number, name))
                return name
            case _:
                raise AssertionError(wanted)
        return number


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)
