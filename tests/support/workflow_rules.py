"""An instance of a workflow without an engine: told, run and committed by hand, and looked over after each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mesh.workflows import decide, turns
from mesh.workflows.actions import Action, Answer
from mesh.workflows.events import Event, Failure
from mesh.workflows.instance import Instance, Turn
from mesh.workflows.messages import ChildDone, Raise, Restore, Resume, Start, Suspend, Terminate
from mesh.workflows.state import State, Status, Step
from mesh.workflows.worker import TaskResult

NOW = 1_000_000.0


class Flow:
    """One instance, at a time that is set by hand."""

    def __init__(self, start: Start | Restore | None = None, *, id: str = "o-1", app: str = "shop") -> None:
        self.now = NOW
        self.id, self.app = id, app
        self.volatile: list[Event] = []
        begin = decide.restore if isinstance(start, Restore) else decide.start
        step = begin(app, id, None, start or Start("order", "e-1", input='"in"'), self.now)
        assert step is not None
        self.instance = Instance(id, app, step.state, step.append)
        check(self.instance)

    @property
    def state(self) -> State:
        """What the instance is."""
        return self.instance.state

    @property
    def status(self) -> Status:
        """Its status."""
        return Status(self.state.status)

    @property
    def kinds(self) -> list[str]:
        """The names of the events in its history."""
        return [type(event).__name__ for event in self.instance.history]

    @property
    def waiting(self) -> list[str]:
        """The names of the events in its inbox."""
        return [type(event).__name__ for event in self.state.inbox]

    def commit(self, step: Step | None) -> Step:
        """Apply a step."""
        assert step is not None
        self.instance.apply(step)
        check(self.instance)
        self.volatile = [event for event in self.volatile if self.instance.wants(event)]
        return step

    def tell(
        self, message: Raise | Suspend | Resume | Terminate | ChildDone, *, turn: Turn | None = None
    ) -> Step | None:
        """Tell it something; None = it had no effect."""
        step = decide.accept(self.instance, message, self.now, turn=turn)
        return self.commit(step) if step is not None else None

    def begin(self, *, again: bool = False) -> Turn:
        """Begin a turn."""
        turn = turns.begin(self.instance, self.volatile, self.now, again=again)
        assert turn is not None
        return turn

    def idle(self) -> bool:
        """Tell whether it is to have no turn."""
        return turns.begin(self.instance, self.volatile, self.now) is None

    def finish(
        self,
        turn: Turn,
        *actions: Action,
        whole: bool = False,
        patches: Iterable[str] = (),
        waits: Sequence[str] | None = None,
    ) -> Step:
        """Answer a turn."""
        said = None if waits is None else tuple(waits)
        answer = Answer(actions, whole=whole, patches=tuple(patches), waits=said)
        return self.commit(turns.finish(self.instance, turn, answer, self.now, f"{self.state.execution}+"))

    def turn(
        self,
        *actions: Action,
        whole: bool = False,
        patches: Iterable[str] = (),
        waits: Sequence[str] | None = None,
    ) -> Step:
        """Have a turn."""
        return self.finish(self.begin(), *actions, whole=whole, patches=patches, waits=waits)

    def resolve(
        self, task: int, result: str | None = '"ok"', failure: Failure | None = None, *, attempt: int = 1
    ) -> Event | None:
        """Have an activity come to something, which is held in memory where it is wanted."""
        made = decide.resolve(
            self.instance, self.state.generation, task, TaskResult(result, failure), attempt, self.now
        )
        if made is not None:
            self.volatile.append(made)
        return made

    def fire(self) -> None:
        """Have the timers fire that are due."""
        held = {event.timer for event in self.volatile if hasattr(event, "timer")}
        self.volatile += decide.due_events(self.instance, self.now, held)

    def absorb(self) -> Step | None:
        """Have what is in memory stored."""
        step = decide.absorb(self.instance, self.volatile, self.now)
        return self.commit(step) if step is not None else None

    def reload(self) -> None:
        """Forget what is only in memory."""
        self.volatile = []
        self.instance = Instance(self.id, self.app, self.state, self.instance.history)


def check(instance: Instance) -> None:
    """Require that an instance is what its stored form makes of it, and that its state counts right."""
    state = instance.state
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=State)
    assert stored == state
    again = Instance(instance.id, instance.app, stored, instance.history)
    for name in Instance.__slots__:
        assert getattr(again, name) == getattr(instance, name), name
    assert state.events == len(instance.history)
    assert state.open_tasks == len(instance.tasks)
    assert state.open_children == len(instance.children)
    assert [sent.number for sent in state.outbox] == sorted({sent.number for sent in state.outbox})
    assert all(sent.number <= state.sent for sent in state.outbox)
    if state.ended is not None:
        assert not state.inbox
        assert not instance.tasks
        assert state.due is None
    elif state.status != Status.STALLED and instance.history:
        assert state.due == instance.due()
