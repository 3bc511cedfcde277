"""The outbox of an instance: its messages to others, ids of its children, and what it tells when it ends."""

from __future__ import annotations

from msgspec.structs import replace

from mesh.workflows.events import ChildCreated, Completed, Event, Failure, Parent
from mesh.workflows.instance import Instance
from mesh.workflows.messages import AnyMessage, ChildDone, Start, StartWithHistory, Terminate
from mesh.workflows.observed import below
from mesh.workflows.propagation import SCOPES
from mesh.workflows.state import Sent, State, Status, Step

__all__ = ["Outbox", "child_id", "child_start", "end", "execution_id", "parent_of", "seen", "terminate_children"]

SEEN_SECONDS = 300.0
MAX_SEEN = 128


class Outbox:
    """The messages of a step, numbered behind those of the state before."""

    __slots__ = ("_entries", "number")

    def __init__(self, state: State | None = None) -> None:
        self._entries = list(state.outbox) if state is not None else []
        self.number = state.sent if state is not None else 0

    @property
    def entries(self) -> tuple[Sent, ...]:
        """All that are not delivered."""
        return tuple(self._entries)

    def put(self, app: str, instance: str, message: AnyMessage) -> None:
        """Add one."""
        self.number += 1
        self._entries.append(Sent(self.number, app, instance, message))


def child_id(instance: str, action: int) -> str:
    """Make the id of a child: a worker that replays expects the same."""
    return f"{instance}:{action:04x}"


def execution_id(execution: str, action: int) -> str:
    """Make the execution id of what an action asks for: whoever asks once more, asks for the same."""
    return f"{execution}-{action}"


def parent_of(app: str, id: str, state: State, child: ChildCreated) -> Parent:
    """Give what a child knows of its parent: of one that is another instance's, it is not that."""
    return Parent(app, id, child.id, state.name, state.execution)


def child_start(instance: Instance, state: State, child: ChildCreated) -> Start:
    """Make the message that starts a child; what goes along of the history is put in when it goes out."""
    kind = StartWithHistory if child.propagation in SCOPES else Start
    return kind(
        child.name,
        execution_id(state.execution, child.id),
        child.version,
        child.input,
        parent_of(instance.app, instance.id, state, child),
        trace=None if instance.started is None else below(instance.started.trace, state.execution),
        caller=instance.app if child.app is not None else "",
    )


def _child_done(app: str, state: State, completed: Completed, parent: Parent) -> ChildDone:
    if completed.status == Status.COMPLETED:
        return ChildDone(parent.execution, parent.task, app, completed.result)
    failure = completed.failure
    if failure is None:
        how = Status(completed.status).name.lower()
        was = how if completed.status == Status.FAILED else f"was {how}"
        failure = Failure(f"Workflow{how.capitalize()}", f"the workflow '{state.name}' {was}")
    return ChildDone(parent.execution, parent.task, app, failure=failure)


def terminate_children(instance: Instance, outbox: Outbox, output: str | None) -> None:
    """Tell all children that are not known to have ended to end."""
    for child in instance.children.values():
        parent = parent_of(instance.app, instance.id, instance.state, child)
        outbox.put(child.app or instance.app, child.instance, Terminate(output, recursive=True, parent=parent))


def end(
    instance: Instance,
    state: State,
    completed: Completed,
    append: tuple[Event, ...],
    outbox: Outbox,
    open_children: int,
    now: float,
) -> Step:
    """Make the step that ends an instance: its parent is told, and what it waited for is forgotten.

    Args:
        instance: It.
        state: What it is but for that.
        completed: How it ends.
        append: What its history gets; the last of it is ``completed``.
        outbox: What it tells others besides.
        open_children: How many of its children are not known to have ended.
        now: Unix time in seconds.
    """
    if state.parent is not None:
        outbox.put(state.parent.app, state.parent.instance, _child_done(instance.app, state, completed, state.parent))
    return Step(
        replace(
            state,
            status=completed.status,
            updated=now,
            ended=now,
            events=state.events + len(append),
            open_tasks=0,
            open_children=open_children,
            due=None,
            inbox=(),
            outbox=outbox.entries,
            sent=outbox.number,
            awaited=(),
        ),
        append,
    )


def seen(state: State, now: float, instance: Instance | None = None) -> tuple[tuple[float, str], ...]:
    """Give what is to be remembered of an execution that another one follows, the latest last.

    Args:
        state: Of the one before.
        now: Unix time in seconds.
        instance: The instance, where it goes on; else only the execution's id counts.
    """
    known = dict(instance.tokens) if instance is not None else {token: at for at, token in state.seen}
    known[state.execution] = now
    lately = [(at, token) for token, at in known.items() if at > now - SEEN_SECONDS]
    return tuple(sorted(lately)[-MAX_SEEN:])
