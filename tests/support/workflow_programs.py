"""Programs of workflows, as values; what runs them turn by turn; and what they give when nothing fails."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

from mesh.workflows.actions import Action, Answer, Complete, CreateChild, CreateTimer, ScheduleTask, SendEvent
from mesh.workflows.events import (
    ChildCompleted,
    ChildCreated,
    ChildFailed,
    EventRaised,
    EventSent,
    Inherited,
    Retry,
    Started,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCreated,
    TimerFired,
    TurnStarted,
)
from mesh.workflows.propagation import LINEAGE, OWN
from mesh.workflows.propagation import events_of as events_of_ancestor
from mesh.workflows.state import Status
from mesh.workflows.worker import TurnWork

__all__ = ["answer", "events_of", "expected", "program", "scope_of"]

Program = list[Any]
"""A list of steps: ``["task", name]``, ``["flaky", name]`` (fails once), ``["timer", seconds]``,
``["child", program]``, ``["event", name]``, ``["send", name]`` (to itself), ``["all", leaves]``, ``["any", leaves]``,
``["again", times]``. What goes along of the history with an activity or a child follows from its number."""


def scope_of(id: int) -> int | None:
    """Give what of the history goes along with what has a number."""
    return (None, OWN, LINEAGE)[id % 3]


def program(chance: random.Random, depth: int = 0) -> Program:
    """Make one."""
    again = depth == 0 and chance.random() < 0.3
    # An execution has children of the same ids as the one before, some of which may not have ended: it has none here.
    steps = [_step(chance, depth, 2 if again else depth) for _ in range(chance.randint(1, 4))]
    if again:
        steps.append(["again", chance.randint(1, 3)])
    return steps


def _step(chance: random.Random, level: int, depth: int) -> Program:
    kind = chance.choice(["task", "task", "flaky", "timer", "child", "send", "all", "any", "event"][: 8 + (level == 0)])
    if kind in ("all", "any"):
        return [kind, [_leaf(chance, depth) for _ in range(chance.randint(1, 5))]]
    if kind == "event":
        return [kind, "e"]
    if kind == "send":
        return [kind, "self"]
    if kind == "child" and depth < 2:
        return [kind, program(chance, depth + 1)]
    return _leaf(chance, depth)


def _leaf(chance: random.Random, depth: int) -> Program:
    if depth < 2 and chance.random() < 0.2:
        return ["child", program(chance, depth + 1)]
    if chance.random() < 0.3:
        return ["timer", chance.choice([0.0, 0.05, 1.0, 7.0])]
    return [chance.choice(["task", "task", "flaky"]), chance.choice("abc")]


def expected(steps: Program) -> Any:
    """Give the output."""
    return [_value(step) for step in steps if step[0] != "again"]


def _value(step: Program) -> Any:
    kind, what = step
    if kind == "child":
        return expected(what)
    if kind == "all":
        return [_value(leaf) for leaf in what]
    return f"{what}!" if kind in ("task", "flaky") else kind


def events_of(steps: Program) -> int:
    """Give how many events the program waits for, from outside, over all its executions."""
    times = next((what for kind, what in steps if kind == "again"), 0)
    return (1 + times) * sum(kind == "event" for kind, _ in steps)


class _BlockedError(Exception):
    pass


class _Run:
    def __init__(self, work: TurnWork) -> None:
        events = [*work.past, *work.new]
        self.id = work.ref.id
        self.asked = {
            event.id for event in events if isinstance(event, (TaskScheduled, TimerCreated, ChildCreated, EventSent))
        }
        self.outcomes: dict[int, tuple[int, Any]] = {}
        self.raised: dict[str, list[EventRaised]] = defaultdict(list)
        self.now = 0.0
        for place, event in enumerate(events):
            match event:
                case TurnStarted():
                    self.now = event.at
                case TaskCompleted() | ChildCompleted():
                    self._come(event.task, place, json.loads(event.result or "null"))
                case TaskFailed() | ChildFailed():
                    self._come(event.task, place, f"failed: {event.failure.message}")
                case TimerFired():
                    self._come(event.timer, place, "timer")
                case EventRaised():
                    self.raised[event.name].append(event)
                case _:
                    pass
        self.actions: list[Action] = []
        self.number = 0
        started = next(event for event in events if isinstance(event, Started))
        self.steps: Program = json.loads(started.input or "[]")

    def _come(self, id: int, place: int, value: Any) -> None:
        assert id in self.asked, f"{self.id}: an outcome of {id}, which was not asked for"
        assert id not in self.outcomes, f"{self.id}: two outcomes of {id}"
        self.outcomes[id] = place, value

    def run(self) -> None:
        output: list[Any] = []
        again = 0
        try:
            for kind, what in self.steps:
                if kind == "again":
                    again = what
                else:
                    output.append(self._step(kind, what))
        except _BlockedError:
            return
        self.number += 1
        if again:
            steps = [step for step in self.steps if step[0] != "again"]
            steps += [["again", again - 1]] if again > 1 else []
            left = tuple(event for events in self.raised.values() for event in events)
            self._ask(Complete(self.number, Status.CONTINUED_AS_NEW, json.dumps(steps), carryover=left))
        else:
            self._ask(Complete(self.number, Status.COMPLETED, json.dumps(output)))

    def _step(self, kind: str, what: Any) -> Any:
        if kind in ("event", "send"):
            self.number += 1
            name = "e"
            if kind == "send":
                name = f"s{self.number}"
                self._ask(SendEvent(self.number, self.id, name))
            if not self.raised[name]:
                raise _BlockedError
            self.raised[name].pop(0)
            return kind
        if kind not in ("all", "any"):
            return self._wait(self._leaf(kind, what))
        ids = [self._leaf(*leaf) for leaf in what]
        if kind == "all":
            return [self._wait(id) for id in ids]
        if not any(id in self.outcomes for id in ids):
            raise _BlockedError
        return "any"

    def _leaf(self, kind: str, what: Any) -> int:
        self.number += 1
        id = self.number
        if kind == "timer":
            at = self.now + what
            self._ask(CreateTimer(id, (int(at), int(at % 1 * 1e9))))
        elif kind == "child":
            self._ask(CreateChild(id, "", "program", json.dumps(what), propagation=scope_of(id)))
        else:
            retry = Retry(50, first=0.3) if kind == "flaky" else None
            self._ask(ScheduleTask(id, kind, json.dumps(what), retry=retry, propagation=scope_of(id)))
        return id

    def _wait(self, id: int) -> Any:
        if id not in self.outcomes:
            raise _BlockedError
        return self.outcomes[id][1]

    def _ask(self, action: Action) -> None:
        if action.id not in self.asked:
            self.actions.append(action)


def answer(work: TurnWork) -> Answer:
    """Run a turn of the program that is the instance's input."""
    assert isinstance(work.new[0], TurnStarted)
    run = _Run(work)
    _check_inherited(work)
    run.run()
    return Answer(tuple(run.actions))


def _check_inherited(work: TurnWork) -> None:
    """Require that a child knows what its parent has handed on, over all its executions."""
    events = [*work.past, *work.new]
    parent = next(event.parent for event in events if isinstance(event, Started))
    found = [event for event in events if isinstance(event, Inherited)]
    assert found == [work.inherited] * (work.inherited is not None)
    assert [each.scope for each in found] == [scope for scope in (parent and scope_of(parent.task),) if scope]
    for each in found:
        assert parent is not None
        assert each.ancestors[-1].instance == parent.instance
        asked = events_of_ancestor(each.ancestors[-1])[-1]
        assert isinstance(asked, ChildCreated)
        assert asked.instance == work.ref.id
