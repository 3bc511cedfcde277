"""Turns: what is new in one, and what its answer makes of an instance.

Functions of values, as those of `mesh.workflows.decide`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized

from msgspec.structs import replace

from mesh.workflows import propagation
from mesh.workflows.actions import (
    Action,
    Answer,
    Complete,
    CreateChild,
    CreateDetached,
    CreateTimer,
    ScheduleTask,
    SendEvent,
    TerminateInstance,
    VersionMissing,
    Wait,
)
from mesh.workflows.events import (
    FOREVER,
    AnyEvent,
    ChildCreated,
    Completed,
    DetachedCreated,
    Event,
    EventRaised,
    EventSent,
    Failure,
    Stalled,
    Started,
    Suspended,
    TaskScheduled,
    TimerCreated,
    TurnStarted,
    bounded,
    seconds,
)
from mesh.workflows.instance import CHILD, TASK, Instance, Turn, outcome
from mesh.workflows.messages import Raise, Start, Terminate
from mesh.workflows.outgoing import Outbox, child_id, child_start, end, execution_id, seen
from mesh.workflows.state import ENDED, Sent, State, Status, Step
from mesh.workflows.waiting import awaited

__all__ = ["PATCHES_DIFFER", "TOO_LARGE", "VERSION_MISSING", "begin", "finish", "stall"]

PATCHES_DIFFER, VERSION_MISSING, TOO_LARGE = range(3)


def begin(instance: Instance, volatile: Sequence[Event], now: float, *, again: bool = False) -> Turn | None:
    """Make the turn that an instance is to have now; None = there is nothing to do, or it may have none.

    Args:
        instance: It; no turn of it is out.
        volatile: Outcomes that are not committed; those that nobody waits for are passed over.
        now: Unix time in seconds.
        again: Whether one that is stalled may have one.
    """
    state = instance.state
    if state.ended is not None or state.status == Status.SUSPENDED or (state.status == Status.STALLED and not again):
        return None
    if not instance.history and state.due is not None and now < state.due:
        return None
    new = (*state.inbox, *instance.wanted(volatile))
    if not new:
        return None
    started = TurnStarted(max(now, instance.clock))
    return Turn(state.generation, state.turns + 1, (started, *new), len(state.inbox))


def finish(instance: Instance, turn: Turn, answer: Answer, now: float, new_execution: str) -> Step | None:
    """Give what the answer to a turn makes of an instance; None = it is not out any more, and nothing comes of it.

    An answer that contradicts the history ends the instance as failed; one of code that is not the one it was begun
    with stalls it.

    Args:
        instance: It.
        turn: As ``begin`` gave it.
        answer: What came of it.
        now: Unix time in seconds.
        new_execution: Id of the execution which begins if this one continues as a new one.
    """
    state = instance.state
    if state.ended is not None or (turn.generation, turn.number) != (state.generation, state.turns + 1):
        return None
    before = tuple(instance.patches)
    if answer.patches[: len(before)] != before:
        text = f"Patch mismatch. History patches: {_list(before)}, current patches: {_list(answer.patches)}."
        return stall(instance, turn, PATCHES_DIFFER, text, now)
    if any(type(action) is VersionMissing for action in answer.actions):
        text = f"Version not available: {state.version or '(none)'} of the workflow '{state.name}'"
        return stall(instance, turn, VERSION_MISSING, text, now)
    made = _Made(instance, now)
    try:
        complete = made.take(answer)
    except _Contradiction as error:
        made = _Made(instance, now)
        failure = Failure("NonDeterminismError", str(error), final=True)
        complete = Complete(-1, Status.FAILED, failure=failure)
    new = (TurnStarted(turn.new[0].at, answer.version, answer.patches), *turn.new[1:])
    turned = replace(
        state,
        version=answer.version or state.version,
        started=state.started if state.started is not None else turn.new[0].at,
        custom_status=state.custom_status if answer.custom_status is None else answer.custom_status,
        turns=turn.number,
        updated=now,
        awaited=awaited(instance, answer.waits, turn.new, now),
    )
    if complete is None:
        return _go_on(instance, turn, turned, new, made)
    if complete.status == Status.CONTINUED_AS_NEW:
        outbox = propagation.settled(instance, made.outbox.entries, (*new, *made.events))
        return _continue(instance, turn, turned, complete, outbox, made.outbox.number, now, new_execution)
    if complete.status in ENDED:
        why = None if complete.failure is None else bounded(complete.failure)
        completed = Completed(now, complete.id, complete.status, complete.result, why)
    else:
        failure = Failure("InvalidAnswer", f"the workflow's code ended with status {complete.status}", final=True)
        completed = Completed(now, complete.id, Status.FAILED, failure=failure)
    closed = {outcome(event) for event in instance.wanted(new)}
    children = _left(instance.children, CHILD, closed) + made.children
    append = (*new, *made.events, *_meanwhile(instance, turn), completed)
    return end(instance, turned, completed, append, made.outbox, children, now)


def stall(instance: Instance, turn: Turn, reason: int, text: str, now: float) -> Step | None:
    """Have an instance wait for other workers, with all that is new in its turn kept.

    Args:
        instance: It.
        turn: That no worker can do.
        reason: As of `Stalled`.
        text: For people.
        now: Unix time in seconds.

    Returns:
        None = it is so already, or the turn is not out any more.
    """
    state = instance.state
    if state.ended is not None or (turn.generation, turn.number) != (state.generation, state.turns + 1):
        return None
    volatile = instance.wanted(turn.new[1 + turn.taken :])
    append = (Stalled(now, reason, text),) if instance.stalled != text else ()
    if not append and not volatile and state.status in (Status.STALLED, Status.SUSPENDED):
        return None
    keys = {outcome(event) for event in volatile}
    kinds = [kind for kind, _ in keys]
    suspended = state.status == Status.SUSPENDED
    return Step(
        replace(
            state,
            status=Status.SUSPENDED if suspended else Status.STALLED,
            updated=now,
            events=state.events + len(append),
            open_tasks=state.open_tasks - kinds.count(TASK),
            open_children=state.open_children - kinds.count(CHILD),
            due=instance.due(keys) if suspended else None,
            inbox=(*state.inbox, *volatile),
        ),
        append,
    )


def _go_on(instance: Instance, turn: Turn, state: State, new: tuple[Event, ...], made: _Made) -> Step:
    rest = _meanwhile(instance, turn)
    suspended = tuple(event for event in rest if type(event) is Suspended)
    append = (*new, *made.events, *suspended)
    closed = {outcome(event) for event in instance.wanted(new)}
    dues = (instance.due(closed), made.due)
    return Step(
        replace(
            state,
            status=Status.SUSPENDED if state.status == Status.SUSPENDED else Status.RUNNING,
            events=state.events + len(append),
            open_tasks=_left(instance.tasks, TASK, closed) + made.tasks,
            open_children=_left(instance.children, CHILD, closed) + made.children,
            due=min((due for due in dues if due is not None), default=None),
            inbox=tuple(event for event in rest if type(event) is not Suspended),
            outbox=made.outbox.entries,
            sent=made.outbox.number,
        ),
        append,
    )


def _meanwhile(instance: Instance, turn: Turn) -> Sequence[AnyEvent]:
    """Give what came to the inbox while a turn was out; an outcome that the turn has too is the turn's."""
    taken = {key for event in turn.new if (key := outcome(event)) is not None}
    return [event for event in instance.state.inbox[turn.taken :] if outcome(event) not in taken]


def _left(waiting: Sized, kind: int, closed: Iterable[tuple[int, int]]) -> int:
    """Count what waits still, of what waited before some outcomes."""
    return len(waiting) - sum([each == kind for each, _ in closed])


def _continue(
    instance: Instance,
    turn: Turn,
    state: State,
    complete: Complete,
    outbox: tuple[Sent, ...],
    sent: int,
    now: float,
    execution: str,
) -> Step:
    """Begin anew: what was asked for is forgotten, what was inherited, or raised and not used, is not."""
    old = instance.started
    version = complete.version or (old.version if old is not None else None)
    started = Started(
        now,
        state.name,
        execution,
        instance.app,
        version,
        complete.result,
        old.caller if old is not None else "",
        state.parent,
        trace=old.trace if old is not None else None,
        tags=old.tags if old is not None else {},
    )
    inherited = () if instance.inherited is None else (instance.inherited,)
    raised = (event for event in state.inbox[turn.taken :] if type(event) is EventRaised)
    return Step(
        replace(
            state,
            generation=state.generation + 1,
            execution=execution,
            status=Status.SUSPENDED if state.status == Status.SUSPENDED else Status.RUNNING,
            version=version,
            events=0,
            open_tasks=0,
            open_children=0,
            due=None,
            inbox=(started, *inherited, *_as_they_came(instance, turn, complete.carryover), *raised),
            outbox=outbox,
            sent=sent,
            turns=0,
            seen=seen(state, now, instance),
            awaited=(),
        )
    )


def _as_they_came(instance: Instance, turn: Turn, carried: Sequence[EventRaised]) -> Sequence[EventRaised]:
    """Put events in the order in which they were raised: the SDK for Java carries them over in that of a hash table."""
    if len(carried) < 2:
        return carried
    raised = (event for event in (*instance.history, *turn.new) if type(event) is EventRaised)
    places: dict[tuple[str, str | None], int] = {}
    for place, event in enumerate(raised):
        places.setdefault((event.name, event.input), place)
    return sorted(carried, key=lambda event: places.get((event.name, event.input), len(places)))


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"


class _Contradiction(Exception):
    """The code asks for something else than it did when it ran before."""


_TITLES: dict[type, str] = {
    ScheduleTask: "activity",
    TaskScheduled: "activity",
    CreateTimer: "timer",
    TimerCreated: "timer",
    CreateChild: "child workflow",
    ChildCreated: "child workflow",
    SendEvent: "event",
    EventSent: "event",
    CreateDetached: "detached workflow",
    DetachedCreated: "detached workflow",
    TerminateInstance: "termination",
    Wait: "wait",
}

_UNNAMED = frozenset({CreateTimer, CreateDetached})


class _Made:
    """What actions make: events and messages, and what is open by them.

    Attributes:
        events: For the history, in order.
        outbox: The messages, behind those that are not delivered.
        tasks: How many activities were asked for.
        children: How many children likewise.
        due: When the first timer is due, Unix time in seconds.
    """

    __slots__ = ("_asked", "_instance", "_now", "children", "due", "events", "outbox", "tasks")

    def __init__(self, instance: Instance, now: float) -> None:
        self._instance = instance
        self._now = now
        self._asked: dict[int, Action] = {}
        self.events: list[Event] = []
        self.outbox = Outbox(instance.state)
        self.tasks = 0
        self.children = 0
        self.due: float | None = None

    def take(self, answer: Answer) -> Complete | None:
        """Take the actions, up to the one that ends the execution, which is given.

        Raises:
            _Contradiction: They are not those of the history.
        """
        for action in answer.actions:
            if isinstance(action, Complete):
                complete = action
                break
            if self._is_new(action):
                self._add(action)
        else:
            complete = None
        if answer.whole:
            self._require_all(answer)
        if complete is not None:  # Nobody would wait for these.
            self.events = [event for event in self.events if not isinstance(event, TaskScheduled | TimerCreated)]
        return complete

    def _is_new(self, action: Action) -> bool:
        """Tell whether something has not been asked for before."""
        before = self._instance.asked.get(action.id) or self._asked.get(action.id)
        if before is None or (_is_endless(before) and type(action) is not Wait and not _is_endless(action)):
            if type(action) is not Wait:
                self._asked[action.id] = action
            return True
        kind, name = type(action), getattr(action, "name", None)
        if _TITLES[type(before)] == _TITLES[kind] and (kind in _UNNAMED or getattr(before, "name", None) == name):
            return False
        had, asks = _title(before), _title(action)
        raise _Contradiction(
            f"history has {had} with id {action.id}, and the workflow's code now asks for {asks} there"
        )

    def _require_all(self, answer: Answer) -> None:
        ids = {action.id for action in answer.actions if not isinstance(action, Complete)}  # The end has the next one.
        for id, event in self._instance.asked.items():
            if id not in ids:
                raise _Contradiction(
                    f"history has {_title(event)} with id {id}, and the workflow's code does not ask for it any more"
                )

    def _add(self, action: Action) -> None:
        """Have an activity or a timer."""
        now = self._now
        match action:
            case ScheduleTask():
                self.tasks += 1
                self.events.append(
                    TaskScheduled(
                        now,
                        action.id,
                        action.name,
                        action.execution_id or execution_id(self._instance.state.execution, action.id),
                        action.input,
                        action.version or None,
                        action.app if action.app and action.app != self._instance.app else None,
                        action.retry,
                        propagation=action.propagation,
                    )
                )
            case CreateTimer():
                self.events.append(TimerCreated(now, action.id, action.fire_at, action.name, action.origin))
                if action.fire_at[0] < FOREVER:
                    due = seconds(action.fire_at)
                    self.due = due if self.due is None else min(due, self.due)
            case CreateChild() | SendEvent() | TerminateInstance() | CreateDetached():
                self._send(action)
            case Wait() | Complete() | VersionMissing():
                pass

    def _send(self, action: CreateChild | SendEvent | TerminateInstance | CreateDetached) -> None:
        """Have something told to another instance."""
        own, state, now = self._instance.app, self._instance.state, self._now
        app = action.app or own
        other = app if app != own else None
        match action:
            case CreateChild():
                self.children += 1
                child = ChildCreated(
                    now,
                    action.id,
                    action.instance or child_id(self._instance.id, action.id),
                    action.name,
                    action.version or None,
                    action.input,
                    other,
                    retry_of=action.retry_of,
                    propagation=action.propagation,
                )
                self.events.append(child)
                self.outbox.put(app, child.instance, child_start(self._instance, state, child))
            case SendEvent():
                self.events.append(EventSent(now, action.id, action.instance, action.name, action.input, other))
                token = f"{own}/{self._instance.id}#{state.generation}#{self.outbox.number + 1}"
                self.outbox.put(app, action.instance, Raise(action.name, action.input, token))
            case TerminateInstance():
                self.outbox.put(app, action.instance, Terminate(action.output, action.recursive))
            case CreateDetached():
                instance = action.instance or child_id(self._instance.id, action.id)
                self.events.append(DetachedCreated(now, action.id, instance, other))
                start = Start(
                    action.name,
                    action.execution or execution_id(state.execution, action.id),
                    action.version or None,
                    action.input,
                    scheduled=action.scheduled,
                    trace=action.trace,
                    tags=action.tags,
                    caller=own if other is not None else "",
                )
                self.outbox.put(app, instance, start)


def _is_endless(what: Action | Event) -> bool:
    """Tell whether it is a timer that never fires.

    SDKs have one for each wait for an event without a limit. Where code that was changed has something else in its
    place, they forget it: nothing has come of it.
    """
    return isinstance(what, CreateTimer | TimerCreated) and what.fire_at[0] >= FOREVER


def _title(what: Action | Event) -> str:
    name = None if type(what) in _UNNAMED or isinstance(what, TimerCreated) else getattr(what, "name", None)
    return f"{_TITLES[type(what)]} '{name}'" if name is not None else _TITLES[type(what)]
