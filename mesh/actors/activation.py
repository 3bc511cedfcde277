"""An actor that is active on this node, and the one clock that finds those which idle."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.actors.settings import TypeSettings
from mesh.actors.turns import Room, Turns

if TYPE_CHECKING:
    from mesh.actors.state import ActorState
    from mesh.actors.timers import ActorTimer, ActorTimers

__all__ = ["MAX_WAITING", "Activation", "Idling"]

MAX_WAITING = 4096  # Calls that wait for one actor.


class Activation:
    """An actor from its first turn here until it is deactivated, under one epoch of its partition.

    Attributes:
        id: The actor's.
        partition: That it is in.
        epoch: Of the partition, under which it runs.
        settings: Of its type.
        turns: Who runs, and who waits.
        running: The tasks of turns that run.
        state: What it keeps; None = it has not asked for any yet.
        timers: In memory; None = it has none.
        used_at: When it last did something, by the loop's clock.
        ended: Whether nothing begins any more, but what a running turn needs.
        why: Why it ends, for people.
        cut: Whether turns that still run are not waited for.
        replaced: Whether another activation, elsewhere, keeps its state now.
    """

    __slots__ = (
        "_gone",
        "_waiting",
        "cut",
        "ended",
        "epoch",
        "id",
        "partition",
        "replaced",
        "running",
        "settings",
        "state",
        "timers",
        "turns",
        "used_at",
        "why",
    )

    def __init__(self, id_: str, partition: int, epoch: int, settings: TypeSettings, room: Room) -> None:
        self.id = id_
        self.partition = partition
        self.epoch = epoch
        self.settings = settings
        self.turns = Turns(settings.max_depth, MAX_WAITING, room)
        self.running: set[asyncio.Task[object]] = set()
        self.state: ActorState | None = None
        self.timers: ActorTimers | None = None
        self.used_at = 0.0
        self.ended = False
        self.why = ""
        self.cut = False
        self.replaced = False
        self._gone = False
        self._waiting: asyncio.Event | None = None

    def has_timer(self, timer: ActorTimer) -> bool:
        """Tell whether a timer is still what it was: not set anew or deleted since."""
        return self.timers is not None and timer in self.timers

    def close(self) -> None:
        """Let nothing begin any more; who waits is told, and ran nothing."""
        self.ended = True
        self.turns.close()
        if self.timers is not None:
            self.timers.cancel()
            self.timers = None

    def gone(self) -> None:
        """Say that the application has let go of it: from now on there may be another activation of this actor."""
        self.state = None
        self._gone = True
        if self._waiting is not None:
            self._waiting.set()

    async def until_gone(self) -> None:
        """Wait until the application has let go of it."""
        if not self._gone:
            self._waiting = self._waiting or asyncio.Event()
            await self._waiting.wait()


class Idling:
    """Finds what has idled for long enough; one timer of the loop for all, and no task."""

    def __init__(self, end: Callable[[Activation], None]) -> None:
        """Watch nothing yet; ``end`` is told what has idled."""
        self._end = end
        self._heap: list[tuple[float, int, Activation]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, activation: Activation) -> None:
        """Watch an activation until it has ended."""
        self._push(activation, activation.used_at + activation.settings.idle_seconds)
        self._arm()

    def trim(self, active: int) -> None:
        """Let go of what has ended, where that is most; so many activations have not."""
        if len(self._heap) > 2 * active:
            self._heap = [each for each in self._heap if not each[2].ended]
            heapq.heapify(self._heap)

    def stop(self) -> None:
        """Watch nothing any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _push(self, activation: Activation, due: float) -> None:
        heapq.heappush(self._heap, (due, next(self._numbers), activation))

    def _arm(self) -> None:
        due = self._heap[0][0]
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            _, _, activation = heapq.heappop(self._heap)
            if activation.ended:
                continue
            # It was put here when it was last looked at; what it did since then moves it on.
            due = (now if activation.turns.running else activation.used_at) + activation.settings.idle_seconds
            if due > now:
                self._push(activation, due)
            else:
                self._end(activation)
        if self._heap:
            self._arm()
