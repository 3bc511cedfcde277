"""Programs come to what they should, whatever is lost, late, told twice, suspended or reloaded on the way.

This is the core alone: a step that is made is committed, or is as if it had never been made.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.workflows import decide, propagation, retrying, turns
from mesh.workflows.actions import Answer
from mesh.workflows.events import EventRaised, Failure, Inherited
from mesh.workflows.instance import TIMER, Turn, outcome
from mesh.workflows.messages import Raise, Resume, Start, StartWithHistory, Suspend, Terminate
from mesh.workflows.state import Sent, Status, Step
from tests.support.workflow_programs import EVENT, Program, code, expected, scope_of
from tests.support.workflow_replay import Replay
from tests.support.workflow_rules import Flow

TASK = st.sampled_from("abcdefgh").map(lambda name: ["task", name])
SIMPLE = st.one_of(
    TASK,
    st.sampled_from("abcdefgh").map(lambda name: ["flaky", name]),
    st.lists(TASK, max_size=3).map(lambda tasks: ["all", tasks]),
    TASK.map(lambda task: ["any", [task, ["timer", 1.0]]]),
    st.sampled_from([["timer", 2.0], ["event", "go"], ["event", "go"], ["renew"], ["renew"]]),
)
PROGRAMS = st.lists(
    st.one_of(SIMPLE, st.lists(SIMPLE, max_size=3).map(lambda steps: ["child", steps])), min_size=2, max_size=6
)
KINDS = (
    "begin answer meanwhile meanwhile lose late discard work work fire absorb reload suspend resume raise twice send"
)
MOVES = st.lists(st.tuples(st.sampled_from(KINDS.split()), st.integers(0, 5)), min_size=20, max_size=60)
ROOT = "o-1"


class World:
    """A root and its children, each with what is in memory about it alone."""

    def __init__(self, steps: Program, *, whole: bool) -> None:
        self.flows: dict[str, Flow] = {ROOT: Flow(Start("program", "e-1", input=json.dumps(steps)))}
        self.out: dict[str, tuple[Turn, Answer]] = {}
        self.late: list[tuple[str, Turn, Answer]] = []
        self.raised: Counter[str] = Counter()
        self.handed: dict[str, Inherited | None] = {}
        self.whole = whole
        self.now = self.flows[ROOT].now

    def move(self, what: str, number: int) -> None:
        ids = sorted(self.flows)
        id = ids[number % len(ids)]
        flow = self.flows[id]
        flow.now = self.now
        match what:
            case "begin":
                self.begin(id)
            case "answer":
                self.answer(id)
            case "meanwhile":
                self.begin(id)
                for move in ("work", "absorb", ("raise", "suspend", "twice", "raise", "work", "send")[number]):
                    self.move(move, ids.index(id))
                self.answer(id)
            case "lose":
                self.lose(id)
            case "late" if self.late:
                self.answer_late(*self.late[number % len(self.late)])
            case "discard" if id in self.out:
                turn, answer = self.out[id]
                turns.finish(flow.instance, turn, answer, self.now, "unused")
            case "work":
                self.work(id, number)
            case "fire":
                flow.fire()
                self.now += number / 2
            case "absorb":
                flow.absorb()
            case "reload":
                self.lose(id)
                flow.reload()
            case "suspend":
                flow.tell(Suspend(), turn=self.turn(id))
            case "resume":
                flow.tell(Resume(), turn=self.turn(id))
            case "raise" if flow.state.ended is None:
                self.raise_next(id)
            case "twice" if self.raised[id] and flow.state.ended is None:
                last = self.raised[id]
                flow.tell(Raise("go", str(last), f"{id}-{last}"), turn=self.turn(id))
            case "send" if flow.state.outbox:
                self.deliver(id, flow.state.outbox[0], acknowledged=number % 2 == 0)
            case _:
                pass

    def turn(self, id: str) -> Turn | None:
        return self.out[id][0] if id in self.out else None

    def begin(self, id: str) -> bool:
        flow = self.flows[id]
        if id in self.out or (turn := turns.begin(flow.instance, flow.volatile, self.now)) is None:
            return False
        self.out[id] = turn, Replay(code, scope_of=scope_of).answer(flow.instance.history, turn.new, whole=self.whole)
        return True

    def answer(self, id: str) -> bool:
        if id not in self.out:
            return False
        turn, answer = self.out.pop(id)
        flow = self.flows[id]
        step = turns.finish(flow.instance, turn, answer, self.now, f"{flow.state.execution}+")
        if step is not None:
            flow.commit(step)
        self.late.append((id, turn, answer))
        return True

    def lose(self, id: str) -> None:
        if id in self.out:
            self.late.append((id, *self.out.pop(id)))

    def answer_late(self, id: str, turn: Turn, answer: Answer) -> None:
        state = self.flows[id].state
        if (turn.generation, turn.number) != (state.generation, state.turns + 1) or state.ended is not None:
            assert turns.finish(self.flows[id].instance, turn, answer, self.now, "unused") is None

    def work(self, id: str, number: int) -> bool:
        flow = self.flows[id]
        held = {key[1] for event in flow.volatile if (key := outcome(event)) is not None and key[0] != TIMER}
        waiting = retrying.waiting(flow.instance, self.now)
        ready = [task for task in sorted(flow.instance.tasks) if task not in held and task not in waiting]
        if not ready:
            return False
        task = flow.instance.tasks[ready[number % len(ready)]]
        self.hand(task.execution_id, propagation.handed_on(flow.instance, task))
        attempt = flow.instance.attempts.get(task.id, 1)
        broken = Failure("Broken", "once more") if task.retry is not None and attempt < 3 else None
        flow.resolve(task.id, json.dumps(json.loads(task.input or "") + "!"), broken, attempt=attempt)
        if broken is not None:
            flow.absorb()
        return True

    def raise_next(self, id: str) -> None:
        flow = self.flows[id]
        self.raised[id] += 1
        number = self.raised[id]
        flow.tell(Raise("go", str(number), f"{id}-{number}"), turn=self.turn(id))

    def deliver(self, id: str, sent: Sent, *, acknowledged: bool) -> None:
        target, start = self.flows.get(sent.instance), sent.message
        if isinstance(start, StartWithHistory):
            start = propagation.complete(start, self.flows[id].instance, {})
            self.hand(start.execution, start.inherited)
        if isinstance(start, Start):
            step = decide.start("shop", sent.instance, target and target.state, start, self.now)
            if target is None:
                self.flows[sent.instance] = Flow(start, id=sent.instance)
            elif step is not None:
                self.lose(sent.instance)
                target.commit(step)
        elif target is not None:
            target.now = self.now
            target.tell(sent.message, turn=self.turn(sent.instance))
        if acknowledged:
            flow = self.flows[id]
            flow.commit(Step(decide.delivered(flow.state, {sent.number})))

    def hand(self, execution: str, inherited: Inherited | None) -> None:
        """Require that what goes along is the same each time, and all that had happened."""
        assert self.handed.setdefault(execution, inherited) == inherited
        if inherited is not None:
            asked = propagation.events_of(inherited.ancestors[-1])[-1]
            assert inherited.scope == scope_of(asked.id)

    def settle(self) -> None:
        """Let everything come to its end."""
        for _ in range(500):
            moved = [self.advance(id) for id in sorted(self.flows)]
            if not any(moved):
                if all(flow.state.ended is not None for flow in self.flows.values()):
                    return
                self.nudge()
        raise AssertionError(f"it does not end: {[(flow.id, flow.status, flow.kinds) for flow in self.flows.values()]}")

    def advance(self, id: str) -> bool:
        flow = self.flows[id]
        flow.now = self.now
        moved = flow.tell(Resume(), turn=self.turn(id)) is not None
        for sent in flow.state.outbox:
            self.deliver(id, sent, acknowledged=True)
            moved = True
        while self.work(id, 0):
            moved = True
        return self.begin(id) | self.answer(id) | moved

    def nudge(self) -> None:
        """Raise the events that are waited for, or have time pass."""
        for id, flow in self.flows.items():
            replay = Replay(code, scope_of=scope_of)
            replay.answer(flow.instance.history, ())
            if flow.state.ended is None and replay.missing:
                self.raise_next(id)
        self.now += 1
        for flow in self.flows.values():
            flow.now = self.now
            flow.fire()

    def check(self) -> None:
        for flow in self.flows.values():
            assert flow.state.outbox == ()
            history = flow.instance.history
            outcomes = Counter(key for event in history if (key := outcome(event)) is not None)
            assert all(count == 1 for count in outcomes.values())
            tokens = Counter(event.token for event in history if isinstance(event, EventRaised) and event.token)
            assert all(count == 1 for count in tokens.values())
            assert flow.kinds.count("Completed") == 1
            parent = flow.state.parent
            scope = None if parent is None else scope_of(parent.task)
            assert (None if flow.instance.inherited is None else flow.instance.inherited.scope) == scope
            if parent is not None and flow.instance.inherited is not None:
                self.check_inherited(flow, self.flows[parent.instance], flow.instance.inherited)

    def check_inherited(self, flow: Flow, parent: Flow, inherited: Inherited) -> None:
        assert [each.instance for each in inherited.ancestors] == [parent.id]
        told = propagation.events_of(inherited.ancestors[0])
        if flow.state.parent.execution == parent.state.execution:
            assert told == tuple(parent.instance.history[: len(told)])


def numbers(wanted: Any, given: Any) -> list[int]:
    """Compare what came out with what should; gives the numbers of the events, in order."""
    if wanted == EVENT:
        assert isinstance(given, int)
        return [given]
    if isinstance(wanted, list):
        assert len(wanted) == len(given)
        return [number for pair in zip(wanted, given, strict=True) for number in numbers(*pair)]
    assert wanted == given
    return []


@settings(max_examples=120, deadline=None)
@given(PROGRAMS, MOVES, st.booleans())
@example([["renew"], ["event", "go"], ["event", "go"]], [("raise", 0), ("meanwhile", 0)], False)  # Before, and in it.
@example([["renew"], ["event", "go"]], [("meanwhile", 0)], False)  # Raised while a turn is out that begins anew.
@example(
    [["renew"], ["event", "go"], ["event", "go"]],
    [("meanwhile", 0), ("twice", 0), ("meanwhile", 2), ("twice", 0)],
    False,
)
def test_every_program_comes_to_its_end_once(steps: Program, moves: list[tuple[str, int]], whole: bool) -> None:
    world = World(steps, whole=whole)
    for what, number in moves:
        world.move(what, number)
    world.settle()
    world.check()
    root = world.flows[ROOT]

    assert root.status == Status.COMPLETED
    out, wanted = json.loads(root.instance.history[-1].result), expected(steps)
    numbers(wanted, out)
    own = [number for step, number in zip(wanted, out, strict=True) if step == EVENT]
    assert own == list(range(1, len(own) + 1))  # Each event once, in order, over all executions.


@settings(max_examples=60, deadline=None)
@given(PROGRAMS, MOVES, st.booleans())
def test_terminated_at_any_time_it_has_ended_with_all_its_children(
    steps: Program, moves: list[tuple[str, int]], whole: bool
) -> None:
    world = World(steps, whole=whole)
    for what, number in moves:
        world.move(what, number)
    root = world.flows[ROOT]
    if root.state.ended is None:
        root.tell(Terminate(recursive=True), turn=world.turn(ROOT))
        assert root.status == Status.TERMINATED
    world.settle()
    world.check()
