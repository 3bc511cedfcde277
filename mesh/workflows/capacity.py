"""How much a node has out at its workers, and at other nodes; whom it leaves alone for a while."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

from mesh.workflows.fair_queue import FairQueue
from mesh.workflows.settings import Limits
from mesh.workflows.worker import Worker

__all__ = ["AWAY_PAUSE", "FIRST_AWAY", "MAX_AWAY", "PAUSE", "Attached", "Away", "Lane", "Level", "Pause", "Room", "now"]

PAUSE = 0.2, 30.0  # Seconds that a worker is left alone with a name: at first, and at most.
AWAY_PAUSE = 0.5, 60.0  # Likewise an application that is not there.
FIRST_AWAY, MAX_AWAY = 32, 1000  # What is asked of nodes of one application at once: at first, and at most.


def now() -> float:
    """Give the time by which pauses are counted, in seconds."""
    return asyncio.get_running_loop().time()


class Level(IntEnum):
    """Who is given a name that several workers run: those of the lowest number."""

    OPERATIONS = 0  # The mesh itself.
    DECLARED = 1  # Over HTTP, by names that the application has told.
    ANY = 2  # Over a stream, whatever comes.


class Pause:
    """Seconds to leave somebody alone, which double until it is there again."""

    __slots__ = ("_longest", "_next", "_seconds", "until")

    def __init__(self, bounds: tuple[float, float]) -> None:
        """Have none yet; the shortest and the longest, in seconds."""
        self._seconds, self._longest = bounds
        self._next, self.until = self._seconds, 0.0

    def shortest(self) -> float:
        """Begin one that says nothing of how long the next is; gives its seconds."""
        self.until = now() + self._seconds
        return self._seconds

    def longer(self) -> float:
        """Begin another one; gives its seconds."""
        seconds, self._next = self._next, min(self._next * 2, self._longest)
        self.until = now() + seconds
        return seconds

    def end(self, until: float) -> None:
        """Have none any more, if it is the one until then: a timer may be early by a hair."""
        if self.until == until:
            self.until = 0.0

    def over(self) -> None:
        """Have none, and begin anew with the shortest."""
        self._next, self.until = self._seconds, 0.0


class Room:
    """How much may be out at once.

    Attributes:
        out: How much is.
    """

    __slots__ = ("_gateways", "_limits", "_named", "_total", "out")

    def __init__(self, limits: Limits) -> None:
        """Have nothing out, on the only gateway that there is."""
        self._named: Counter[str] = Counter()
        self.out = 0
        self.limit(limits, 1)

    def limit(self, limits: Limits, gateways: int) -> None:
        """Have other limits, or share them with others; what is out stays out."""
        self._limits, self._gateways = limits, gateways
        self._total = limits.total(gateways)

    @property
    def full(self) -> bool:
        """Tell whether nothing more may go out, whatever its name is."""
        return self._total is not None and self.out >= self._total

    def has(self, name: str) -> bool:
        """Tell whether one more of a name may go out."""
        if self.full:
            return False
        if not self._limits.names:
            return True
        limit = self._limits.of_name(name, self._gateways)
        return limit is None or self._named[name] < limit

    def enter(self, name: str) -> None:
        """Count one."""
        self.out += 1
        self._named[name] += 1

    def leave(self, name: str) -> None:
        """Count one less."""
        self.out -= 1
        self._named[name] -= 1
        if not self._named[name]:
            del self._named[name]


class Lane:
    """Turns, or activities.

    Attributes:
        queue: What waits.
        room: What the node lets out.
        index: Which of a worker's counts is meant.
    """

    __slots__ = ("index", "queue", "room")

    def __init__(self, index: int, room: Room) -> None:
        """Have nothing wait."""
        self.queue, self.room, self.index = FairQueue(), room, index


@dataclass(slots=True, eq=False)
class Attached:
    """A worker.

    Attributes:
        out: How many turns and activities it has.
        most: How many it takes.
        given: When it was given something last, by a count.
        pauses: By the index of a lane, and a name.
        running: What waits for it.
    """

    worker: Worker
    level: Level
    out: list[int] = field(default_factory=lambda: [0, 0])
    given: int = 0
    pauses: dict[tuple[int, str], Pause] = field(default_factory=dict)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def runs(self, index: int, name: str) -> bool:
        """Tell whether it may have something of that name."""
        worker = self.worker
        return not worker.ended.is_set() and (worker.runs_activity(name) if index else worker.runs_workflow(name))

    def has_room(self, index: int, name: str) -> bool:
        """Tell whether it may have one more now."""
        if self.out[index] >= (self.worker.max_tasks if index else self.worker.max_turns):
            return False
        pause = self.pauses.get((index, name)) if self.pauses else None
        return pause is None or pause.until <= now()


@dataclass(slots=True, eq=False)
class Away:
    """An application's other nodes.

    Attributes:
        queue: What waits for them alone.
        out: What they are asked for.
        most: What they may be asked for: as much as they have taken, and then more and more.
        growing: Whether that is about to grow.
        found: Whether there was one when it was looked last: until then nothing is taken from what waits.
        seeking: Whether it is being looked.
        pause: While nobody is there.
    """

    app: str
    queue: FairQueue = field(default_factory=FairQueue)
    out: int = 0
    most: int = FIRST_AWAY
    growing: bool = False
    found: bool = False
    seeking: bool = False
    pause: Pause = field(default_factory=lambda: Pause(AWAY_PAUSE))

    @property
    def open(self) -> bool:
        """Tell whether they may be asked for one more now."""
        return self.found and self.out < self.most and self.pause.until <= now()

    @property
    def may_grow(self) -> bool:
        """Tell whether it would help to ask for more, after a while in which nobody refused."""
        return self.found and self.most <= self.out < MAX_AWAY and not self.growing

    def grow(self) -> None:
        """Ask for more from now on."""
        self.growing, self.most = False, min(2 * self.most, MAX_AWAY)

    def refused(self) -> None:
        """Ask for no more than what they have."""
        self.most = max(1, self.out)
