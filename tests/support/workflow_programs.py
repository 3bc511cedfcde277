"""Programs of workflows as values: lists of steps, the code that runs them, and what they give when nothing fails."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

from mesh.workflows.actions import Answer
from mesh.workflows.events import ChildCreated, Inherited, Retry, Started
from mesh.workflows.propagation import LINEAGE, OWN
from mesh.workflows.propagation import events_of as events_of_ancestor
from mesh.workflows.worker import TurnWork
from tests.support.workflow_replay import Again, Call, Child, First, Replay, Send, Timer, Wait

__all__ = ["EVENT", "answer", "code", "events_of", "expected", "program", "scope_of"]

EVENT = "event"  # Stands for an event without data, and for the data of any in what is expected.

Program = list[Any]
"""A list of steps: ``["task", name]``, ``["flaky", name]`` (is tried again), ``["timer", seconds]``,
``["child", program]``, ``["event", name]``, ``["send", name]`` (to itself), ``["all", leaves]``, ``["any", leaves]``,
``["renew"]`` (goes on as a new execution), ``["again", times]`` (begins as a new execution).
What goes along of the history with an activity or a child follows from its number."""


def scope_of(id: int) -> int | None:
    """Give what of the history goes along with what has a number."""
    return (None, OWN, LINEAGE)[id % 3]


def code(given: Any) -> Generator[Any, Any, Any]:
    """Run a program: one that begins is given as it is, one that goes on, with what it has come to."""
    state = given if isinstance(given, dict) else {"steps": given, "first": 0, "out": []}
    steps, out = state["steps"], state["out"]
    for place in range(state["first"], len(steps)):
        kind, *rest = steps[place]
        match kind:
            case "all":
                values = yield [_leaf(*leaf) for leaf in rest[0]]
                out.append([_outcome(leaf[0], value) for leaf, value in zip(rest[0], values, strict=True)])
            case "any":
                yield First([_leaf(*leaf) for leaf in rest[0]])
                out.append(kind)
            case "event":
                data = yield Wait(rest[0])
                out.append(EVENT if data is None else data)
            case "send":
                yield Send("", f"sent at {place}")
                yield Wait(f"sent at {place}")
                out.append(kind)
            case "renew":
                return Again({"steps": steps, "first": place + 1, "out": out})
            case "again":
                return Again(steps[:place] + ([["again", rest[0] - 1]] if rest[0] > 1 else []))
            case _:
                out.append(_outcome(kind, (yield _leaf(kind, rest[0]))))
    return out


def _leaf(kind: str, what: Any) -> Call | Timer | Child:
    if kind == "timer":
        return Timer(what)
    if kind == "child":
        return Child("program", what)
    return Call(kind, what, retry=Retry(50, first=0.3) if kind == "flaky" else None)


def _outcome(kind: str, value: Any) -> Any:
    return kind if kind == "timer" else value


def answer(work: TurnWork) -> Answer:
    """Run a turn of the program that is the instance's input."""
    _check_inherited(work)
    return Replay(code, work.ref.id, scope_of).answer(work.past, work.new)


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


# What they give


def expected(steps: Program) -> Any:
    """Give the output, where an activity gives its input with an exclamation mark."""
    return [_value(*step) for step in steps if step[0] not in ("again", "renew")]


def _value(kind: str, what: Any) -> Any:
    if kind == "child":
        return expected(what)
    if kind == "all":
        return [_value(*leaf) for leaf in what]
    return f"{what}!" if kind in ("task", "flaky") else kind


def events_of(steps: Program) -> int:
    """Give how many events the program waits for, from outside, over all its executions."""
    times = next((step[1] for step in steps if step[0] == "again"), 0)
    return (1 + times) * sum(step[0] == "event" for step in steps)


# By chance


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
        return [kind, [_chance_leaf(chance, depth) for _ in range(chance.randint(1, 5))]]
    if kind == "event":
        return [kind, "e"]
    if kind == "send":
        return [kind, "self"]
    if kind == "child" and depth < 2:
        return [kind, program(chance, depth + 1)]
    return _chance_leaf(chance, depth)


def _chance_leaf(chance: random.Random, depth: int) -> Program:
    if depth < 2 and chance.random() < 0.2:
        return ["child", program(chance, depth + 1)]
    if chance.random() < 0.3:
        return ["timer", chance.choice([0.0, 0.05, 1.0, 7.0])]
    return [chance.choice(["task", "task", "flaky"]), chance.choice("abc")]
