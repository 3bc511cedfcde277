"""How many calls an application takes at once, over all workers: ``--app-max-concurrency`` is of the whole gateway.

The parent has the permits and gives them to workers that ask. A worker keeps what it was given, so that nothing is
asked while only it is busy, until another one wants some: then it gives one back as soon as it has one to spare. Those
of a worker that is killed are free again at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

__all__ = ["Permits", "Pool"]


class Pool:
    """All permits of one application, in the parent."""

    def __init__(self, limit: int, tell: Callable[[int, str], None]) -> None:
        """Begin with all of them free.

        Args:
            limit: How many there are.
            tell: Tells a worker, by its number, ``grant`` or ``recall``.
        """
        self._free, self._tell = limit, tell
        self._granted: Counter[int] = Counter()
        self._wants: deque[int] = deque()

    def want(self, worker: int) -> None:
        """Give a worker one, now or as soon as another one gives it back."""
        self._wants.append(worker)
        self._serve()

    def give(self, worker: int) -> None:
        """Take one back."""
        self._granted[worker] -= 1
        self._free += 1
        self._serve()

    def gone(self, worker: int) -> None:
        """Take back all that a worker had."""
        self._free += self._granted.pop(worker, 0)
        self._wants = deque(each for each in self._wants if each != worker)
        self._serve()

    def _serve(self) -> None:
        while self._free and self._wants:
            worker = self._wants.popleft()
            self._free -= 1
            self._granted[worker] += 1
            self._tell(worker, "grant")
        wanting = set(self._wants)
        for holder in [each for each, held in self._granted.items() if held and wanting - {each}]:
            self._tell(holder, "recall")


class Permits:
    """Those that a worker has, in place of a semaphore."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Begin with none.

        Args:
            tell: Tells the parent ``want`` or ``give``.
        """
        self._tell = tell
        self._free = self._busy = self._recalled = self._wanted = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Take one, once there is one."""
        if self._free:
            self._free -= 1
            self._busy += 1
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        if self._wanted < len(self._waiting):  # Else one is on its way for whom a call here has made room meanwhile.
            self._wanted += 1
            self._tell("want")
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self.release()  # It was given one, and does not take it.
            else:
                self._waiting.remove(waiting)
            raise

    def release(self) -> None:
        """Give one back: to the parent if that wants it for another worker."""
        self._busy -= 1
        if self._recalled:
            self._recalled -= 1
            self._tell("give")
        else:
            self._use()

    def grant(self) -> None:
        """Take one from the parent."""
        self._wanted -= 1
        self._use()

    def _use(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                self._waiting.remove(waiting)
                self._busy += 1
                waiting.set_result(None)
                return
        self._free += 1

    def recall(self) -> None:
        """Give one back, now or when a call ends."""
        if self._free:
            self._free -= 1
            self._tell("give")
        elif self._recalled < self._busy:  # It may have been told before.
            self._recalled += 1
