"""What an instance waits for, as its owner tells it: of each kind the first ones, and how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import inf

import msgspec

from mesh.workflows.events import Event, EventRaised, TimerCreated, TimerFired, seconds
from mesh.workflows.instance import TIMER, Instance
from mesh.workflows.state import Awaited

__all__ = [
    "MAX_AWAITED",
    "MAX_LISTED",
    "Child",
    "Raised",
    "Task",
    "Timer",
    "Waiting",
    "awaited",
    "waiting_of",
]

MAX_LISTED = 100  # Of each kind.
MAX_AWAITED = 50  # Names: they are written with every turn.
NAME = 100  # Characters of each.
FOR_EVENT, FOR_RETRIES = 2, (3, 4)  # Of `mesh.workflows.events.Origin`.


class Task(msgspec.Struct, frozen=True, array_like=True):
    """An activity without an outcome.

    Attributes:
        id: Of the action.
        name: The activity's.
        app: Whose worker it is for.
        since: When it was asked for, Unix time in seconds, as the others.
        attempt: Which one it is, or is to be.
        running: Whether a worker has it.
        node: The node whose worker that is; empty = the owner.
        worker: Its title, where the owner knows it.
        due: When the next attempt begins, where that is in the future.
    """

    id: int
    name: str
    app: str
    since: float
    attempt: int
    running: bool
    node: str = ""
    worker: str = ""
    due: float | None = None


class Timer(msgspec.Struct, frozen=True, array_like=True):
    """A timer that is to fire.

    Attributes:
        id: Of the action.
        since: When it was asked for.
        due: When it fires.
        event: The event that the code waits for until then, where its worker says so.
        retries: What it is a pause before, likewise: the activity's execution id, or the child's instance id.
    """

    id: int
    since: float
    due: float
    event: str = ""
    retries: str = ""


class Child(msgspec.Struct, frozen=True, array_like=True):
    """A child that is not known to have ended: its workflow, whose it is, its id, and since when."""

    id: int
    name: str
    app: str
    instance: str
    since: float


class Raised(msgspec.Struct, frozen=True, array_like=True):
    """An event that came, and that the code has not taken; ``at`` is when."""

    name: str
    at: float


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """What an instance waits for.

    Attributes:
        tasks: Activities, up to ``MAX_LISTED``, as of the others.
        timers: The next ones.
        events: Names, as far as workers say them.
        children: Those that have not ended.
        raised: The oldest events that have not been taken: those that came since the last turn, and of those before
            it the ones of which the worker says so.
        all_timers: How many there are; of activities and children the state tells it.
        all_raised: How many there are.
    """

    tasks: tuple[Task, ...] = ()
    timers: tuple[Timer, ...] = ()
    events: tuple[Awaited, ...] = ()
    children: tuple[Child, ...] = ()
    raised: tuple[Raised, ...] = ()
    all_timers: int = 0
    all_raised: int = 0


def awaited(instance: Instance, waits: Sequence[str] | None, new: Iterable[Event], now: float) -> tuple[Awaited, ...]:
    """Compare the events that the code has waited for with those that came: what is waited for comes first.

    Args:
        instance: As it was before a turn.
        waits: The names that the code has waited for since it began, each as often; None = its worker does not say.
        new: What was new in that turn.
        now: Unix time in seconds.
    """
    if waits is None:
        return ()
    raised = [event.name for event in new if type(event) is EventRaised]
    if not (waits or raised or instance.raised):
        return ()
    left = Counter(waits)
    left.subtract(instance.raised)
    left.subtract(raised)
    before = {each.name: each for each in instance.state.awaited}
    found: list[Awaited] = []
    for name, count in left.items():
        if count:
            last = before.get(name[:NAME])
            same = last is not None and (last.count > 0) == (count > 0) and name not in raised
            found.append(Awaited(name[:NAME], count, last.since if last is not None and same else now))
    return tuple(sorted(found, key=lambda each: each.count < 0)[:MAX_AWAITED])


def waiting_of(instance: Instance, tasks: Iterable[Task], is_settled: Callable[[int], bool]) -> Waiting:
    """Tell what an instance waits for.

    Args:
        instance: It, in memory.
        tasks: Its activities.
        is_settled: Tells of a timer whether it has fired, and that is not committed.
    """
    if instance.state.ended is not None:
        return Waiting()
    timers = [instance.timers[id] for _, kind, id in instance.dues(inf) if kind == TIMER and not is_settled(id)]
    raised = _not_taken(instance)
    return Waiting(
        tuple(islice(tasks, MAX_LISTED)),
        tuple(_timer(each) for each in timers[:MAX_LISTED]),
        tuple([*(each for each in instance.state.awaited if each.count > 0), *_by_timers(instance)][:MAX_LISTED]),
        tuple(
            Child(each.id, each.name, each.app or instance.app, each.instance, each.at)
            for each in islice(instance.children.values(), MAX_LISTED)
        ),
        tuple(Raised(each.name, each.at) for each in raised[:MAX_LISTED]),
        len(timers),
        len(raised),
    )


def _timer(timer: TimerCreated) -> Timer:
    kind, text = (0, "") if timer.origin is None else (timer.origin.kind, timer.origin.text)
    return Timer(
        timer.id,
        timer.at,
        seconds(timer.fire_at),
        text if kind == FOR_EVENT else "",
        text if kind in FOR_RETRIES else "",
    )


def _by_timers(instance: Instance) -> list[Awaited]:
    """Give the events that are waited for by what SDKs say of timers: some have one for each wait.

    The first wait takes an event, whatever the case of its name is; one whose timer has fired waits no more.
    """
    if not any(_is_wait(each) for each in instance.timers.values()):
        return []
    waits: dict[str, list[TimerCreated]] = {}
    for event in instance.history:
        if isinstance(event, TimerCreated) and _is_wait(event):
            waits.setdefault(_folded(event), []).append(event)
        elif isinstance(event, EventRaised) and (found := waits.get(event.name.casefold())):
            del found[0]
        elif isinstance(event, TimerFired):
            fired = instance.asked.get(event.timer)
            if isinstance(fired, TimerCreated) and fired in (found := waits.get(_folded(fired), [])):
                found.remove(fired)
    return [Awaited(_event(each[0]), len(each), each[0].at) for each in waits.values() if each]


def _is_wait(timer: TimerCreated) -> bool:
    return timer.origin is not None and timer.origin.kind == FOR_EVENT


def _event(timer: TimerCreated) -> str:
    return "" if timer.origin is None else timer.origin.text


def _folded(timer: TimerCreated) -> str:
    return _event(timer).casefold()


def _not_taken(instance: Instance) -> list[EventRaised]:
    """Give the events that the code has not taken, the oldest first."""
    left = {each.name: -each.count for each in instance.state.awaited if each.count < 0}
    found: list[EventRaised] = []
    for event in reversed(instance.history) if left else ():
        if isinstance(event, EventRaised) and (name := event.name[:NAME]) in left:
            found.append(event)
            left[name] -= 1
            if not left[name]:
                del left[name]
            if not left:
                break
    return [*reversed(found), *(event for event in instance.state.inbox if isinstance(event, EventRaised))]
