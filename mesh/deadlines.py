"""The one way to bound an operation in time.

``asyncio.timeout`` costs about 5 µs, which is a lot for something that hardly ever strikes. Long limits, as
every operation has one, are watched together instead: a sweep a few times a second looks for those that have
passed, and runs only while something is in flight. Short ones, as policies and clients set them, are exact.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mesh.errors import DeadlineExceededError

__all__ = ["NO_ANSWER", "SWEEP_INTERVAL", "Deadlines"]

NO_ANSWER = "no answer within the deadline"

SWEEP_INTERVAL = 0.25
EXACT_BELOW = 5.0
_T = TypeVar("_T")


class _Watched:
    __slots__ = ("struck", "task", "until")

    def __init__(self, task: asyncio.Task[object], until: float) -> None:
        self.task = task
        self.until = until
        self.struck = False


class Deadlines:
    """Bounds calls in time, for one event loop."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._watched: set[_Watched] = set()
        self._sweeping = False

    async def within(
        self, seconds: float, call: Callable[..., Awaitable[_T]], *arguments: object, text: str = ""
    ) -> _T:
        """Make a call; cancel it when its time is over.

        Args:
            seconds: How long it may take, perhaps without an end; one of at least 5 s may strike up to 0.25 s late.
            call: What to bound.
            *arguments: What it is called with.
            text: Of the error; empty = one that says how long it was.

        Raises:
            DeadlineExceededError: It took longer; its outcome is unknown.
        """
        if seconds < EXACT_BELOW:
            return await self._exactly(seconds, text, call, *arguments)
        if seconds == math.inf:
            return await call(*arguments)
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        before = task.cancelling()
        watched = _Watched(task, loop.time() + seconds)
        self._watched.add(watched)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_INTERVAL, self._sweep)
        try:
            return await call(*arguments)
        except asyncio.CancelledError:
            # Somebody else may have cancelled as well; then it is theirs.
            if watched.struck and task.cancelling() <= before + 1:
                raise _late(seconds, text) from None
            raise
        finally:
            self._watched.discard(watched)
            if watched.struck:
                task.uncancel()

    async def _exactly(self, seconds: float, text: str, call: Callable[..., Awaitable[_T]], *arguments: object) -> _T:
        if seconds <= 0:
            raise _late(0.0, text)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await call(*arguments)
        except TimeoutError:
            if not limit.expired():
                raise
            raise _late(seconds, text) from None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for watched in self._watched:
            if watched.until <= now and not watched.struck:
                watched.struck = True
                watched.task.cancel()
        self._sweeping = bool(self._watched)
        if self._sweeping:
            loop.call_later(SWEEP_INTERVAL, self._sweep)


def _late(seconds: float, text: str) -> DeadlineExceededError:
    return DeadlineExceededError(text or f"no answer within {round(seconds, 3):g} s")
