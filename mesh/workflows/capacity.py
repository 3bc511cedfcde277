"""Capacity: the workers that are attached, what each of them has out, and how much a node hands out at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

from mesh.workflows.fair_queue import FairQueue
from mesh.workflows.settings import Limits
from mesh.workflows.worker import Worker

__all__ = ["TASK", "TURN", "Attachment", "Backoff", "Priority", "Slots", "WorkQueue", "now"]

TURN, TASK = range(2)  # Kinds of work: each worker has so many of either.


def now() -> float:
    """Give the time by which pauses are counted, in seconds."""
    return asyncio.get_running_loop().time()


class Priority(IntEnum):
    """Of a worker: of several that run a name, those of the lowest number are given it."""

    OPERATIONS = 0  # The mesh itself.
    DECLARED = 1  # Over HTTP, by names that the application has told.
    ANY = 2  # Over a stream, whatever comes.


class Backoff:
    """Seconds to leave somebody alone, which double until it is there again.

    Attributes:
        until: When that is over, by `now`.
    """

    __slots__ = ("_longest", "_next", "_shortest", "until")

    def __init__(self, bounds: tuple[float, float]) -> None:
        """Leave nobody alone yet; the shortest and the longest, in seconds."""
        self._shortest, self._longest = bounds
        self._next, self.until = self._shortest, 0.0

    def shortest(self) -> float:
        """Begin one that says nothing of how long the next is; gives its seconds."""
        self.until = now() + self._shortest
        return self._shortest

    def longer(self) -> float:
        """Begin another one; gives its seconds."""
        seconds, self._next = self._next, min(self._next * 2, self._longest)
        self.until = now() + seconds
        return seconds

    def end(self, until: float) -> None:
        """End the one that lasts until then, if it is that: a timer may be early by a hair."""
        if self.until == until:
            self.until = 0.0

    def reset(self) -> None:
        """End it, and begin the next time with the shortest."""
        self._next, self.until = self._shortest, 0.0


class Slots:
    """How much of one kind may be out at once: in all, and of each name."""

    __slots__ = ("_gateways", "_limits", "_named", "_out", "_total")

    def __init__(self, limits: Limits) -> None:
        """Have nothing out, on the only gateway that there is."""
        self._named: Counter[str] = Counter()
        self._out = 0
        self.limit(limits, 1)

    def limit(self, limits: Limits, gateways: int) -> None:
        """Have other limits, or share them with others; what is out stays out."""
        self._limits, self._gateways = limits, gateways
        self._total = limits.total(gateways)

    def free(self, name: str) -> bool:
        """Tell whether one more of a name may go out."""
        if self._total is not None and self._out >= self._total:
            return False
        if not self._limits.names:
            return True
        limit = self._limits.of_name(name, self._gateways)
        return limit is None or self._named[name] < limit

    def take(self, name: str) -> None:
        """Count one that goes out."""
        self._out += 1
        self._named[name] += 1

    def give_back(self, name: str) -> None:
        """Count one that has come back."""
        self._out -= 1
        self._named[name] -= 1
        if not self._named[name]:
            del self._named[name]


class WorkQueue:
    """The work of one kind that this node's workers are to be given.

    Attributes:
        kind: `TURN` or `TASK`.
        waiting: What waits.
        slots: How much may be out.
    """

    __slots__ = ("kind", "slots", "waiting")

    def __init__(self, kind: int) -> None:
        """Have nothing wait, and no limit."""
        self.kind, self.waiting, self.slots = kind, FairQueue(), Slots(Limits())


@dataclass(slots=True, eq=False)
class Attachment:
    """A worker that is attached, and what it has been given.

    Attributes:
        out: How many turns, and how many activities, it has.
        given: When it was given something last, by a count.
        backoffs: While it is given nothing of a kind and a name, which it has not taken.
        running: The tasks that wait for it.
    """

    worker: Worker
    priority: Priority
    out: list[int] = field(default_factory=lambda: [0, 0])
    given: int = 0
    backoffs: dict[tuple[int, str], Backoff] = field(default_factory=dict)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def runs(self, kind: int, name: str) -> bool:
        """Tell whether it may have something of that name."""
        worker = self.worker
        return not worker.ended.is_set() and (
            worker.runs_activity(name) if kind == TASK else worker.runs_workflow(name)
        )

    def has_slot(self, kind: int, name: str) -> bool:
        """Tell whether it may have one more now."""
        if self.out[kind] >= (self.worker.max_tasks if kind == TASK else self.worker.max_turns):
            return False
        backoff = self.backoffs.get((kind, name)) if self.backoffs else None
        return backoff is None or backoff.until <= now()
