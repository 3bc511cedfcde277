"""The one way to bound an operation in time.

``asyncio.timeout`` costs about 5 µs, which is a lot for something that hardly ever strikes. Long limits, as
every operation has one, are watched together instead: a sweep a few times a second looks for those that have
passed, and runs only while something is in flight. Short ones, as policies and clients set them, are exact.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

from mesh.errors import DeadlineExceededError

__all__ = ["NO_ANSWER", "SWEEP_INTERVAL", "Deadlines", "Limit"]

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

    def strike(self) -> None:
        """Cancel the task."""
        if not self.struck:
            self.struck = True
            self.task.cancel()


class Limit(_Watched):
    """Bounds in time what its task does while it is entered, as ``Deadlines.limit`` says."""

    __slots__ = ("_before", "_deadlines", "_exact", "_loop", "_seconds")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._loop = deadlines.loop
        task = asyncio.current_task(self._loop)
        assert task is not None
        super().__init__(task, math.inf)
        self._deadlines, self._seconds = deadlines, seconds
        self._before = task.cancelling()
        self._exact: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Begin."""
        self.put_off(waits=False)
        return self

    def put_off(self, waits: bool) -> None:
        """Stop the time while something is waited for that does not count, or begin anew with all of it."""
        if self._exact is not None:
            self._exact.cancel()
            self._exact = None
        self.until = math.inf if waits else self._loop.time() + self._seconds
        if self.until == math.inf:
            return
        if self._seconds < EXACT_BELOW:
            self._exact = self._loop.call_at(self.until, self.strike)
        else:
            self._deadlines.watch(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End; raise ``TimeoutError`` where the time was over, and nobody else has cancelled the task."""
        if self._exact is not None:
            self._exact.cancel()
        self._deadlines.forget(self)
        if self.struck and self.task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error


class Deadlines:
    """Bounds calls in time, for one event loop."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._watched: set[_Watched] = set()
        self._sweeping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The one that runs: asked once, since each time costs a system call up to Python 3.11."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

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
        loop = self.loop
        task = asyncio.current_task(loop)
        assert task is not None
        before = task.cancelling()
        watched = _Watched(task, loop.time() + seconds)
        self.watch(watched)
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

    def limit(self, seconds: float | None) -> Limit:
        """Make what bounds the current task while it is entered, and may be put off; None = no limit.

        It costs no timer either, unless it is shorter than 5 s. What is longer may strike up to 0.25 s late.
        """
        return Limit(self, math.inf if seconds is None else seconds)

    def watch(self, watched: _Watched) -> None:
        """Strike when its time is over, from now on."""
        self._watched.add(watched)
        if not self._sweeping:
            self._sweeping = True
            self.loop.call_later(SWEEP_INTERVAL, self._sweep)

    def forget(self, watched: _Watched) -> None:
        """Strike it no more."""
        self._watched.discard(watched)

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
        loop = self.loop
        now = loop.time()
        for watched in self._watched:
            if watched.until <= now:
                watched.strike()
        self._sweeping = bool(self._watched)
        if self._sweeping:
            loop.call_later(SWEEP_INTERVAL, self._sweep)


def _late(seconds: float, text: str) -> DeadlineExceededError:
    return DeadlineExceededError(text or f"no answer within {round(seconds, 3):g} s")
