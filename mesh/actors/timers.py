"""Timers of an active actor: in memory, and gone with its activation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh.actors.errors import ActorError
from mesh.schedules import Timing

__all__ = ["ActorTimer", "ActorTimers"]

MAX_TIMERS = 1000  # Of one actor.
AGAIN_SECONDS = 0.5  # Until one is tried again that could not have its turn.


@dataclass(slots=True, eq=False)
class ActorTimer:
    """A timer as it was set.

    Attributes:
        name: Its name.
        timing: When it fires next, and after that.
        due_time: As the application wrote it.
        period: As the application wrote it.
        callback: Told to the application.
        data: JSON; empty for none.
        handle: What wakes it; None while it fires.
    """

    name: str
    timing: Timing
    due_time: str = ""
    period: str = ""
    callback: str = ""
    data: bytes = b""
    handle: asyncio.TimerHandle | None = None


class ActorTimers:
    """The timers of one activation."""

    __slots__ = ("_clock", "_fire", "_firing", "_timers")

    def __init__(
        self, fire: Callable[[ActorTimer], Awaitable[bool | None]], clock: Callable[[], float] = time.time
    ) -> None:
        """Have none.

        Args:
            fire: Has the actor take its turn; gives whether the timer is over, None = it had none.
            clock: Unix time.
        """
        self._fire = fire
        self._clock = clock
        self._timers: dict[str, ActorTimer] = {}
        self._firing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._timers)

    def __contains__(self, timer: ActorTimer) -> bool:
        return self._timers.get(timer.name) is timer

    def set(self, timer: ActorTimer) -> None:
        """Have a timer, in place of one of its name.

        Raises:
            ActorError: The actor has too many.
        """
        if timer.name not in self._timers and len(self._timers) >= MAX_TIMERS:
            raise ActorError(f"the actor has {MAX_TIMERS} timers already")
        self.delete(timer.name)
        self._timers[timer.name] = timer
        self._arm(timer)

    def delete(self, name: str) -> None:
        """Have it no more; what it has begun goes on."""
        timer = self._timers.pop(name, None)
        if timer is not None and timer.handle is not None:
            timer.handle.cancel()

    def cancel(self) -> None:
        """Have none any more."""
        for name in list(self._timers):
            self.delete(name)

    def _arm(self, timer: ActorTimer, least: float = 0.0) -> None:
        wait = max(least, timer.timing.first - self._clock())
        timer.handle = asyncio.get_running_loop().call_later(wait, self._due, timer)

    def _due(self, timer: ActorTimer) -> None:
        timer.handle = None
        if timer.timing.first > self._clock():  # The clocks differ: never early.
            self._arm(timer)
            return
        task = asyncio.get_running_loop().create_task(self._run(timer), name="actor-timer")
        self._firing.add(task)
        task.add_done_callback(self._firing.discard)

    async def _run(self, timer: ActorTimer) -> None:
        over = await self._fire(timer)
        if self._timers.get(timer.name) is not timer:
            return  # Deleted or set anew meanwhile, perhaps by its own turn.
        if over is None:
            self._arm(timer, AGAIN_SECONDS)
            return
        following = None if over else timer.timing.after(timer.timing.first, self._clock())
        if following is None:
            del self._timers[timer.name]
        else:
            timer.timing = following
            self._arm(timer)
