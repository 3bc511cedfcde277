"""Composing one write of an instance: the steps of everything that waits for it, one after the other."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from mesh.errors import MeshError
from mesh.workflows import decide, propagation, turns
from mesh.workflows.actions import Complete
from mesh.workflows.entry import Entry, Impossible
from mesh.workflows.errors import WorkflowNotFoundError
from mesh.workflows.instance import Instance
from mesh.workflows.mailbox import ChildrenOpenError, Expired, Refused, Request
from mesh.workflows.messages import Purge, Restore, Start, Told
from mesh.workflows.state import State, Step
from mesh.workflows.worker import Ref

__all__ = ["Batch", "Observer", "compose"]

TOGETHER = 1000  # The most messages in one write.


class Observer(Protocol):
    """Told of every write that was done."""

    def __call__(self, ref: Ref, before: State | None, step: Step, instance: Instance) -> None:
        """Take note; must not fail or block.

        Args:
            ref: The instance.
            before: What it was; None = it is new.
            step: What was written.
            instance: What it is now.
        """


@dataclass(slots=True)
class Batch:
    """One write.

    Attributes:
        before: What the instance was; None = there was none.
        step: What is written; None = nothing.
        told: What is answered to messages, then.
        answered: Whether a turn is over by it.
        delivered: What of the outbox is forgotten by it.
    """

    before: State | None
    step: Step | None = None
    told: list[tuple[Request, Told | Exception]] = field(default_factory=list)
    answered: bool = False
    delivered: frozenset[int] = frozenset()

    def add(self, step: Step) -> None:
        """Have one more step in it."""
        if self.step is None or self.step.state.generation != step.state.generation:
            self.step = step
        else:
            self.step = Step(step.state, (*self.step.append, *step.append))


def compose(entry: Entry, app: str, now: float) -> Batch:
    """Put together what is to be written, and apply it in memory."""
    instance = entry.instance
    batch = Batch(None if instance is None else instance.state)
    while len(batch.told) < TOGETHER and (request := entry.mailbox.take()) is not None:
        try:
            step = _accept(entry, app, request, now)
        except (MeshError, ChildrenOpenError) as error:
            batch.told.append((request, error))
            continue
        batch.told.append((request, Told(0 if step is None else 1)))
        if step is not None:
            _apply(entry, app, batch, step)
    if (instance := entry.instance) is None:
        return batch
    turn, unwritten = entry.turn, entry.unwritten
    if (answer := turn.answer) is not None and turn.open is not None:
        batch.answered = True
        if isinstance(answer, Impossible):
            step = turns.stall(instance, turn.open, turns.TOO_LARGE, answer.reason, now)
        else:
            ends = any(isinstance(action, Complete) for action in answer.actions)
            new_execution = secrets.token_hex(16) if ends else ""
            step = turns.finish(instance, turn.open, answer, now, new_execution)
        if step is not None:
            _apply(entry, app, batch, step)
        else:
            turn.clear()
    flush = unwritten.flush
    events = unwritten.take(turn_open=turn.open is not None)
    if events and (step := decide.absorb(instance, events, now)) is not None:
        _apply(entry, app, batch, step)
    if unwritten.delivered and (batch.step is not None or (flush and instance.state.ended is None)):
        batch.delivered = frozenset(unwritten.delivered)
        _apply(entry, app, batch, Step(decide.delivered(instance.state, batch.delivered)))
    return batch


def _accept(entry: Entry, app: str, request: Request, now: float) -> Step | None:
    message, instance = request.message, entry.instance
    old = None if instance is None else instance.state
    if isinstance(message, Start):
        step = decide.start(app, entry.ref.id, old, message, now)
        if step is not None and old is not None and old.open_children and request.over != old.generation:
            assert instance is not None
            raise ChildrenOpenError(instance)
        if step is not None and instance is not None and step.state.outbox:
            outbox = propagation.settled(instance, step.state.outbox)
            step = replace(step, state=replace(step.state, outbox=outbox))
        return step
    if isinstance(message, Restore):
        return decide.restore(app, entry.ref.id, old, message, now)
    assert not isinstance(message, (Purge, Expired))
    if instance is None:
        raise WorkflowNotFoundError(entry.ref.id)
    if isinstance(message, Refused):
        return decide.refused(instance, message.sent, message.failure, now)
    return decide.accept(instance, message, now, turn=entry.turn.open)


def _apply(entry: Entry, app: str, batch: Batch, step: Step) -> None:
    batch.add(step)
    if entry.instance is None:
        entry.create(app, step)
    else:
        entry.instance.apply(step)
