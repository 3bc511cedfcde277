"""What goes in one write of an instance: everything that waits for it, one step after the other."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from msgspec.structs import replace

from mesh.errors import MeshError
from mesh.workflows import decide, finishing, propagation
from mesh.workflows.actions import Complete
from mesh.workflows.errors import WorkflowNotFoundError
from mesh.workflows.instance import Instance
from mesh.workflows.memory import Asked, ChildrenOpenError, Entry, Expired, Impossible, Refused
from mesh.workflows.messages import Purge, Restore, Start, Told
from mesh.workflows.state import State, Step

__all__ = ["Batch", "compose"]

TOGETHER = 1000  # The most messages in one write.


@dataclass(slots=True)
class Batch:
    """What goes in one write.

    Attributes:
        before: What the instance was; None = there was none.
        step: What is written; None = nothing.
        told: What is answered to messages, then.
        answered: Whether a turn is over by it.
        acks: What of the outbox is forgotten by it.
    """

    before: State | None
    step: Step | None = None
    told: list[tuple[Asked, Told | Exception]] = field(default_factory=list)
    answered: bool = False
    acks: frozenset[int] = frozenset()

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
    while entry.asked and len(batch.told) < TOGETHER:
        asked = entry.asked[0]
        if isinstance(asked.message, (Purge, Expired)):
            break
        entry.asked.pop(0)
        if asked.told is not None and asked.told.done():
            continue
        try:
            step = _accept(entry, app, asked, now)
        except (MeshError, ChildrenOpenError) as error:
            batch.told.append((asked, error))
            continue
        batch.told.append((asked, Told(0 if step is None else 1)))
        if step is not None:
            _apply(entry, app, batch, step)
    if (instance := entry.instance) is None:
        return batch
    if entry.answer is not None and entry.turn is not None:
        batch.answered = True
        if isinstance(entry.answer, Impossible):
            step = finishing.stall(instance, entry.turn, finishing.TOO_LARGE, entry.answer.reason, now)
        else:
            ends = any(isinstance(action, Complete) for action in entry.answer.actions)
            new_execution = secrets.token_hex(16) if ends else ""
            step = finishing.finish(instance, entry.turn, entry.answer, now, new_execution)
        if step is not None:
            _apply(entry, app, batch, step)
        else:
            entry.turn = entry.answer = None
    absorbed = entry.retrying
    if entry.flush and entry.turn is None:
        absorbed = [*absorbed, *entry.volatile]
    if absorbed and (step := decide.absorb(instance, absorbed, now)) is not None:
        _apply(entry, app, batch, step)
    if entry.acks and (batch.step is not None or (entry.flush and instance.state.ended is None)):
        batch.acks = frozenset(entry.acks)
        _apply(entry, app, batch, Step(decide.delivered(instance.state, batch.acks)))
    entry.flush = False
    entry.retrying = []
    return batch


def _accept(entry: Entry, app: str, asked: Asked, now: float) -> Step | None:
    message, instance = asked.message, entry.instance
    old = None if instance is None else instance.state
    if isinstance(message, Start):
        step = decide.start(app, entry.ref.id, old, message, now)
        if step is not None and old is not None and old.open_children and asked.over != old.generation:
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
    return decide.accept(instance, message, now, turn=entry.turn)


def _apply(entry: Entry, app: str, batch: Batch, step: Step) -> None:
    batch.add(step)
    if entry.instance is None:
        entry.instance = Instance(entry.ref.id, app, step.state, step.append)
    else:
        entry.instance.apply(step)
