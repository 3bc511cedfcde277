"""The rules of messages: what an instance becomes by one, between its turns or while one is out.

Functions of values: they read no clock, and change nothing. Each gives the step that is to be committed and then
applied (`mesh.workflows.instance.Instance.apply`), or None where there is nothing to do: it was done before, or has no
effect. ``now`` is Unix time in seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence

from msgspec.structs import replace

from mesh.errors import BadArgumentError
from mesh.workflows import propagation
from mesh.workflows.errors import WorkflowEndedError, WorkflowExistsError, WorkflowStalledError
from mesh.workflows.events import (
    AnyEvent,
    ChildCompleted,
    ChildFailed,
    Completed,
    Event,
    EventRaised,
    Failure,
    Inherited,
    Parent,
    Resumed,
    Retrying,
    Started,
    Suspended,
    TaskCompleted,
    TaskFailed,
    Terminated,
    TimerFired,
    TurnStarted,
    bounded,
)
from mesh.workflows.instance import CHILD, TASK, TIMER, Instance, Turn, outcome
from mesh.workflows.messages import ChildDone, Raise, Restore, Resume, Start, StartWithHistory, Suspend, Terminate
from mesh.workflows.outgoing import Outbox, child_start, end, seen, terminate_children
from mesh.workflows.retrying import next_attempt
from mesh.workflows.state import Sent, State, Status, Step
from mesh.workflows.worker import TaskResult

__all__ = [
    "absorb",
    "accept",
    "can_purge",
    "delivered",
    "due_events",
    "refused",
    "resolve",
    "restore",
    "start",
]

MAX_WAITING = 10_000  # Events that an instance has not been given yet: each of them is written with all others.


def start(app: str, id: str, old: State | None, message: Start, now: float) -> Step | None:
    """Begin an instance, whose id may have been that of one that has ended.

    Args:
        app: Its application.
        id: Its id.
        old: The instance that has or had the id.
        message: How.
        now: Unix time in seconds.

    Raises:
        WorkflowExistsError: An instance of this id has not ended.
        BadArgumentError: What it inherits is not as it should be.
        WorkflowTooLargeError: It is too much.
    """
    if not _is_free(id, old, message.execution, message.parent):
        return None
    scheduled = message.scheduled if message.scheduled is not None and message.scheduled > now else None
    started = Started(
        now,
        message.name,
        message.execution,
        app,
        message.version or None,
        message.input,
        message.caller,
        message.parent,
        scheduled,
        message.trace,
        message.tags,
    )
    inherited = _inherited(message, now)
    outbox = Outbox(old)
    return Step(
        State(
            _generation(old, now),
            message.execution,
            message.name,
            Status.PENDING,
            now,
            now,
            message.version or None,
            due=scheduled,
            parent=message.parent,
            inbox=(started, *inherited),
            outbox=outbox.entries,
            sent=outbox.number,
            seen=seen(old, now) if old is not None else (),
        )
    )


def restore(app: str, id: str, old: State | None, message: Restore, now: float) -> Step | None:
    """Begin an instance with a history, under an id that no instance has, ended or not; else as ``start``.

    Raises:
        WorkflowExistsError: There is an instance of this id.
        BadArgumentError: It is no history.
    """
    if not _is_free(id, old, message.execution, None):
        return None
    if old is not None:
        raise WorkflowExistsError(f"a workflow with ID '{id}' already exists")
    began = next((event for event in message.history if isinstance(event, Started)), None)
    if began is None:
        raise BadArgumentError("the history of a workflow that is to go on does not tell how it was started")
    state = State(
        _generation(None, now),
        message.execution,
        began.name,
        Status.RUNNING,
        now,
        now,
        began.version,
        started=now,
        events=len(message.history),
        turns=sum(type(event) is TurnStarted for event in message.history),
    )
    instance = Instance(id, app, state, message.history)
    outbox = Outbox()
    for child in instance.children.values():
        outbox.put(child.app or app, child.instance, child_start(instance, state, child))
    state = replace(
        state,
        open_tasks=len(instance.tasks),
        open_children=len(instance.children),
        due=instance.due(),
        outbox=outbox.entries,
        sent=outbox.number,
    )
    return Step(state, message.history)


def accept(
    instance: Instance,
    message: Raise | Suspend | Resume | Terminate | ChildDone,
    now: float,
    *,
    turn: Turn | None = None,
) -> Step | None:
    """Take a message; ``turn`` is the one that is out.

    Raises:
        WorkflowEndedError: It has ended, and takes no events.
        WorkflowStalledError: No worker can go on with it, or it has too many events that wait: it takes none now.
    """
    match message:
        case Raise():
            raised = _raised(instance, message, now)
            return _into_inbox(instance, (raised,), now) if raised is not None else None
        case _ if instance.state.ended is not None:
            return None
        case Suspend():
            return _suspend(instance, message, now, turn)
        case Resume():
            return _resume(instance, message, now, turn)
        case Terminate(parent=parent) if parent is not None and parent != instance.state.parent:
            return None
        case Terminate():
            return _terminate(instance, message, now)
        case ChildDone():
            done = _child_done(instance, message, now)
            return _into_inbox(instance, (done,), now) if done is not None else None


def absorb(instance: Instance, volatile: Sequence[Event], now: float) -> Step | None:
    """Have what came of activities, and timers that fired, survive its owner without a turn.

    Args:
        instance: That it concerns.
        volatile: Outcomes, as ``resolve`` and ``due_events`` give them, and `Retrying`, which is no matter of a turn.
        now: Unix time in seconds.
    """
    taken = instance.wanted(volatile)
    retries = tuple(event for event in volatile if type(event) is Retrying and event.task in instance.tasks)
    if not taken and not retries:
        return None
    return _into_inbox(instance, taken, now, retries)


def delivered(state: State, numbers: Collection[int]) -> State:
    """Forget messages that their instances have."""
    return replace(state, outbox=tuple(sent for sent in state.outbox if sent.number not in numbers))


def refused(instance: Instance, sent: Sent, failure: Failure, now: float) -> Step | None:
    """Forget a message that can never be delivered; where it was to start a child, the child has failed."""
    place = sent.number, sent.app, sent.instance  # What was told may have been made smaller since.
    if all((each.number, each.app, each.instance) != place for each in instance.state.outbox):
        return None
    state, message = instance.state, sent.message
    if isinstance(message, Start) and (parent := message.parent) is not None:
        failed = _child_done(instance, ChildDone(parent.execution, parent.task, sent.app, failure=failure), now)
        if failed is not None:
            state = _into_inbox(instance, (failed,), now).state
    return Step(delivered(state, {sent.number}))


def can_purge(state: State, *, force: bool) -> bool:
    """Tell whether nothing is lost but the instance: it has ended, and all that it told others is with them."""
    return force or (state.ended is not None and not state.outbox)


def due_events(instance: Instance, now: float, held: Container[int] = ()) -> Sequence[TimerFired]:
    """Give the timers whose time has come, in order, except ``held`` ones: those that were given before."""
    return [
        TimerFired(now, id, instance.timers[id].fire_at)
        for _, kind, id in instance.dues(now)
        if kind == TIMER and id not in held
    ]


def resolve(
    instance: Instance,
    generation: int,
    task: int,
    result: TaskResult,
    attempt: int,
    now: float,
    held: Container[int] = (),
) -> TaskCompleted | TaskFailed | Retrying | None:
    """Take what came of an attempt at an activity: the first result counts, of whatever attempt.

    Args:
        instance: That has asked for it.
        generation: Of the execution that has.
        task: The id of its `TaskScheduled`.
        result: What came of it.
        attempt: Its number; of older ones than ``instance.attempts`` only a success counts.
        now: Unix time in seconds.
        held: Tasks that have an outcome which is not committed yet.
    """
    scheduled = instance.tasks.get(task) if generation == instance.state.generation else None
    if scheduled is None or task in held:
        return None
    if result.failure is None:
        return TaskCompleted(now, task, scheduled.execution_id, result.result)
    if attempt < instance.attempts.get(task, 1):
        return None
    failure = bounded(result.failure)
    return next_attempt(scheduled, attempt, failure, now) or TaskFailed(now, task, scheduled.execution_id, failure)


def _is_free(id: str, old: State | None, execution: str, parent: Parent | None) -> bool:
    if old is None:
        return True
    if execution == old.execution or (parent is not None and parent == old.parent):
        return False
    if any(token == execution for _, token in old.seen):
        return False
    if old.ended is None:
        raise WorkflowExistsError(f"an active workflow with ID '{id}' already exists")
    return True


def _inherited(message: Start, now: float) -> tuple[Inherited, ...]:
    if not isinstance(message, StartWithHistory) or message.inherited is None or message.parent is None:
        return ()
    propagation.check(message.inherited, message.parent.app)
    return (replace(message.inherited, at=now),)


def _generation(old: State | None, now: float) -> int:
    return max(int(now * 1000), old.generation + 1 if old is not None else 0)


def _suspend(instance: Instance, message: Suspend, now: float, turn: Turn | None) -> Step | None:
    state = instance.state
    if state.status == Status.SUSPENDED:
        return None
    inbox = _without(Resumed, state.inbox, turn)
    append: tuple[Event, ...] = ()
    if len(inbox) == len(state.inbox):  # Else it is suspended as it was: no turn has seen that it was resumed.
        suspended = Suspended(now, message.reason)
        if turn is not None:  # Workers put aside what follows it: so it goes behind what comes of the turn.
            inbox = (*inbox, suspended)
        elif instance.history:
            append = (suspended,)
    return _step(instance, Status.SUSPENDED, inbox, now, append)


def _resume(instance: Instance, message: Resume, now: float, turn: Turn | None) -> Step | None:
    state = instance.state
    if state.status not in (Status.SUSPENDED, Status.STALLED):
        return None
    inbox = _without(Suspended, state.inbox, turn)
    if instance.suspended and not any(type(event) is Resumed for event in inbox):
        first = turn.taken if turn is not None else 0
        inbox = (*inbox[:first], Resumed(now, message.reason), *inbox[first:])
    return _step(instance, Status.PENDING if state.started is None else Status.RUNNING, inbox, now)


def _terminate(instance: Instance, message: Terminate, now: float) -> Step:
    state = instance.state
    completed = Completed(now, -1, Status.TERMINATED, message.output)
    outbox = Outbox(state)
    if message.recursive:
        terminate_children(instance, outbox, message.output)
    append = (*state.inbox, Terminated(now, message.output, message.recursive), completed)
    return end(instance, state, completed, append, outbox, len(instance.children), now)


def _raised(instance: Instance, message: Raise, now: float) -> EventRaised | None:
    if message.token and message.token in instance.tokens:
        return None
    if instance.state.ended is not None:
        raise WorkflowEndedError(f"the workflow '{instance.id}' has ended, and takes no events")
    if instance.state.status == Status.STALLED:
        raise WorkflowStalledError(f"the workflow '{instance.id}' is stalled, and takes no events")
    if len(instance.state.inbox) >= MAX_WAITING:
        text = (
            f"the workflow '{instance.id}' has {MAX_WAITING} events that wait, and takes no more before its next turn"
        )
        raise WorkflowStalledError(text)
    return EventRaised(now, message.name, message.input, message.token)


def _child_done(instance: Instance, message: ChildDone, now: float) -> ChildCompleted | ChildFailed | None:
    child, state = instance.children.get(message.task), instance.state
    if child is None or state.ended is not None or message.execution != state.execution:
        return None
    if message.app != (child.app or instance.app):
        return None
    if message.failure is not None:
        return ChildFailed(now, message.task, bounded(message.failure))
    return ChildCompleted(now, message.task, message.result)


def _without(kind: type[Event], inbox: tuple[AnyEvent, ...], turn: Turn | None) -> tuple[AnyEvent, ...]:
    """Take events of a kind out of what no turn has."""
    first = turn.taken if turn is not None else 0
    return (*inbox[:first], *(event for event in inbox[first:] if type(event) is not kind))


def _step(
    instance: Instance, status: int, inbox: tuple[AnyEvent, ...], now: float, append: tuple[Event, ...] = ()
) -> Step:
    state = instance.state
    due = instance.due() if instance.history else state.due
    return Step(
        replace(state, status=status, inbox=inbox, updated=now, due=due, events=state.events + len(append)), append
    )


def _into_inbox(
    instance: Instance, events: tuple[AnyEvent, ...], now: float, retries: tuple[Retrying, ...] = ()
) -> Step:
    """Add outcomes that are wanted, and events, to the inbox, and retries to the history."""
    state = instance.state
    keys = [key for event in events if (key := outcome(event)) is not None]
    due = state.due
    if (keys or retries) and state.status != Status.STALLED:
        gone = {*keys, *((TASK, retry.task) for retry in retries)}
        due = min(
            (at for at in (instance.due(gone), *(retry.due for retry in retries)) if at is not None), default=None
        )
    kinds = [kind for kind, _ in keys]
    return Step(
        replace(
            state,
            inbox=(*state.inbox, *events),
            updated=now,
            due=due,
            events=state.events + len(retries),
            open_tasks=state.open_tasks - kinds.count(TASK),
            open_children=state.open_children - kinds.count(CHILD),
        ),
        retries,
    )
