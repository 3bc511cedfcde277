"""What of its history a workflow hands on with an activity or a child, where it asks for that.

It is what had happened up to the event by which it asks. A history only grows, so that is the same at each attempt, and
whenever it is put together: nothing is kept of it on this side but that event. It is made when the work goes out, of
runs of events that all such work of an instance shares in memory: each is encoded once, whatever the fan-out. A child
keeps what it is given as an event of its own history.

Source: the scopes of Dapr's worker protocol (``HistoryPropagationScope``), and Dapr 1.18 for what each of them gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from mesh.errors import BadArgumentError
from mesh.workflows.errors import WorkflowNotFoundError, WorkflowTooLargeError
from mesh.workflows.events import Ancestor, ChildCreated, Event, Inherited, PlainEvent, TaskScheduled, bounded
from mesh.workflows.instance import Instance
from mesh.workflows.messages import StartWithHistory
from mesh.workflows.state import Sent

__all__ = [
    "LINEAGE",
    "MAX_BYTES",
    "MAX_SETTLED_BYTES",
    "OWN",
    "SCOPES",
    "check",
    "complete",
    "events_of",
    "handed_on",
    "rendering",
    "settled",
]

OWN, LINEAGE = 1, 2
"""The instance's own history; and what it has inherited besides."""

SCOPES: Mapping[int, str] = {OWN: "own", LINEAGE: "lineage"}
"""What they are called over HTTP, by the protocol's numbers."""

MAX_BYTES = 2**20  # Of all that goes along, as it is stored: a message to a worker has room for four times as much.
MAX_SETTLED_BYTES = 8 * 2**20  # Of all that an outbox has of it: each step writes that anew, until it is delivered.
RUN = 64  # Events; those behind the last whole run go one by one.
EVENTS, RUNS = "propagation events", "propagation runs"
KEPT_RUNS, KEPT_BYTES = 256, 64 * 1024  # How many a renderer remembers, and how large they may be.
_T = TypeVar("_T")
_events = msgspec.msgpack.Decoder(tuple[PlainEvent, ...]).decode


def handed_on(
    instance: Instance, asked: TaskScheduled | ChildCreated, rendered: dict[str, list[bytes]] | None = None
) -> Inherited | None:
    """Give what goes along with an activity or a child; None = nothing was asked for.

    Args:
        instance: That asks.
        asked: The event of its history by which it does.
        rendered: What has been made of its history so far, event by event, and is kept with it.

    Raises:
        WorkflowTooLargeError: It is more than `MAX_BYTES`.
    """
    return _handed_on(instance, instance.history, asked, {} if rendered is None else rendered)


def _handed_on(
    instance: Instance, history: Sequence[Event], asked: TaskScheduled | ChildCreated, rendered: dict[str, list[bytes]]
) -> Inherited | None:
    scope = asked.propagation
    if scope is None or scope not in SCOPES:
        return None
    events = _stored(history, asked, rendered)
    before = instance.inherited.ancestors if scope == LINEAGE and instance.inherited is not None else ()
    own = Ancestor(instance.app, instance.id, instance.state.name, events)
    inherited = Inherited(asked.at, scope, (*before, own))
    what = "activity" if isinstance(asked, TaskScheduled) else "child workflow"
    _check_size(inherited, f"the {what} '{asked.name[:200]}'")
    return inherited


def _stored(history: Sequence[Event], asked: Event, rendered: dict[str, list[bytes]]) -> tuple[bytes, ...]:
    """Give a history as it is stored, up to an event of it."""
    end = next(place for place in range(len(history), 0, -1) if history[place - 1] is asked)
    single, runs = rendered.setdefault(EVENTS, []), rendered.setdefault(RUNS, [])
    for event in history[len(single) : end]:  # What was inherited goes along by itself, if it does.
        single.append(msgspec.msgpack.encode(() if isinstance(event, Inherited) else (event,)))
    whole = end // RUN
    for start in range(len(runs) * RUN, whole * RUN, RUN):
        run = [msgspec.Raw(each[1:]) for each in single[start : start + RUN] if len(each) > 1]
        runs.append(msgspec.msgpack.encode(run))
    return (*runs[:whole], *[each for each in single[whole * RUN : end] if len(each) > 1])


def complete(
    message: StartWithHistory, instance: Instance | None, rendered: dict[str, list[bytes]]
) -> StartWithHistory:
    """Put into a message what goes along with it, of the instance that has it in its outbox.

    Raises:
        WorkflowTooLargeError: It is more than `MAX_BYTES`.
        WorkflowNotFoundError: There is no such instance any more.
    """
    parent = message.parent
    if message.inherited is not None or parent is None:
        return message
    if instance is None:
        raise WorkflowNotFoundError(parent.instance)
    if parent.execution == instance.state.execution:
        asked = instance.asked.get(parent.task)
        if isinstance(asked, ChildCreated):
            return replace(message, inherited=handed_on(instance, asked, rendered))
    for sent in instance.state.outbox:  # It has begun anew since.
        kept = sent.message
        if isinstance(kept, StartWithHistory) and kept.execution == message.execution and kept.inherited is not None:
            return kept
    much = f"more than {MAX_BYTES} bytes, or with that for others which had not begun {MAX_SETTLED_BYTES}"
    raise WorkflowTooLargeError(_too_large(f"the child workflow '{message.name[:200]}'", much))


def settled(instance: Instance, outbox: Sequence[Sent], new: Sequence[Event] = ()) -> tuple[Sent, ...]:
    """Give the outbox of an execution whose history is about to be forgotten, with what goes along put into it.

    What is too large stays as it is, alone or with the others: it is refused when it is to go out.

    Args:
        instance: Before that.
        outbox: What it has for others then.
        new: What comes behind its history until then.
    """
    if not any(isinstance(sent.message, StartWithHistory) and sent.message.inherited is None for sent in outbox):
        return tuple(outbox)
    history, rendered = (*instance.history, *new), dict[str, list[bytes]]()
    asked = {event.id: event for event in history if isinstance(event, ChildCreated)}
    left = MAX_SETTLED_BYTES - sum(map(_sent_size, outbox))
    made = list[Sent]()
    for sent in outbox:
        whole = _settled(instance, history, asked, sent, rendered)
        more = _sent_size(whole) - _sent_size(sent)
        if more <= left:
            left -= more
            made.append(whole)
        else:
            made.append(sent)
    return tuple(made)


def _settled(
    instance: Instance,
    history: Sequence[Event],
    asked: Mapping[int, ChildCreated],
    sent: Sent,
    rendered: dict[str, list[bytes]],
) -> Sent:
    message = sent.message
    if not isinstance(message, StartWithHistory) or message.inherited is not None or message.parent is None:
        return sent
    child = asked.get(message.parent.task)
    if child is None or message.parent.execution != instance.state.execution:
        return sent
    try:
        return replace(sent, message=replace(message, inherited=_handed_on(instance, history, child, rendered)))
    except WorkflowTooLargeError:
        return sent


def events_of(ancestor: Ancestor) -> tuple[PlainEvent, ...]:
    """Read what had happened to an ancestor.

    Raises:
        ValueError: It was written by a newer version, or is malformed.
    """
    return tuple(chain.from_iterable(map(_events, ancestor.events)))


def rendering(render: Callable[[Sequence[PlainEvent], str, str], _T]) -> Callable[[Ancestor], list[_T]]:
    """Give what renders the history of an ancestor run by run; of a run that many are given it remembers what came.

    Args:
        render: Renders events of an instance of an application.
    """

    def anew(run: bytes, instance: str, app: str) -> _T:
        return render(_events(run), instance, app)

    kept = lru_cache(KEPT_RUNS)(anew)

    def rendered(ancestor: Ancestor) -> list[_T]:
        whose = ancestor.instance, ancestor.app
        return [(kept if len(run) <= KEPT_BYTES else anew)(run, *whose) for run in ancestor.events]

    return rendered


def check(inherited: Inherited, app: str) -> None:
    """Look over what comes from another node.

    Args:
        inherited: It.
        app: The application that hands it on.

    Raises:
        BadArgumentError: It cannot be read, or is not that application's.
        WorkflowTooLargeError: It is more than `MAX_BYTES`.
    """
    _check_size(inherited, "a workflow")
    if inherited.scope not in SCOPES:
        raise BadArgumentError(f"propagation: there is no scope {inherited.scope}; there are {OWN} and {LINEAGE}")
    if not inherited.ancestors or inherited.ancestors[-1].app != app:
        raise BadArgumentError(f"propagation: {app[:100]} hands on what is not its own history")
    for ancestor in inherited.ancestors:
        try:
            events = events_of(ancestor)
        except (ValueError, RecursionError) as error:
            raise BadArgumentError(f"propagation: the history of '{ancestor.instance[:200]}': {error}") from None
        for event in events:
            failure = getattr(event, "failure", None)
            if failure is not None and bounded(failure) is not failure:
                raise BadArgumentError(f"propagation: a failure in '{ancestor.instance[:200]}' has too many causes")


def _sent_size(sent: Sent) -> int:
    message = sent.message
    return message.inherited.size if isinstance(message, StartWithHistory) and message.inherited is not None else 0


def _check_size(inherited: Inherited, what: str) -> None:
    if (size := inherited.size) > MAX_BYTES:
        raise WorkflowTooLargeError(_too_large(what, f"{size} bytes, and {MAX_BYTES} are the most", inherited.scope))


def _too_large(what: str, much: str, scope: int = OWN) -> str:
    less = "hand on the own history alone, " if scope == LINEAGE else ""
    return (
        f"propagation: the history for {what} has {much}: {less}keep large values elsewhere, or continue as new in time"
    )
