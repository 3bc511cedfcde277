"""Due times: one for each instance that has something to do without being told, those out of memory too."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator

from mesh.workflows.worker import Ref

__all__ = ["Alarm", "Dues"]

LOOK_SECONDS = 5.0  # The clock may be set, and the machine sleeps: no wait is longer.
STALE = 1000  # So many more in the heap than twice what counts, then it is made anew.


class Dues:
    """Due times, Unix time in seconds, in a heap; what was set anew or taken back since is passed over there."""

    __slots__ = ("_heap", "_times")

    def __init__(self) -> None:
        """Begin with none."""
        self._times: dict[Ref, float] = {}  # What counts.
        self._heap: list[tuple[float, Ref]] = []

    def __len__(self) -> int:
        return len(self._times)

    def get(self, ref: Ref) -> float | None:
        """Give the time of an instance."""
        return self._times.get(ref)

    def set(self, ref: Ref, due: float | None) -> None:
        """Have one time for an instance, instead of the one before; None = none."""
        if due is None:
            self._times.pop(ref, None)
        elif self._times.get(ref) != due:
            self._times[ref] = due
            heapq.heappush(self._heap, (due, ref))
            if len(self._heap) > 2 * len(self._times) + STALE:
                self._heap = [(at, each) for each, at in self._times.items()]
                heapq.heapify(self._heap)

    def drop(self, partition: int) -> None:
        """Forget a partition."""
        self._times = {ref: due for ref, due in self._times.items() if ref.partition != partition}

    @property
    def first(self) -> float | None:
        """The time of the next one."""
        heap = self._heap
        while heap and self._times.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: float) -> Iterator[Ref]:
        """Take those whose time has come, the earliest first."""
        while (first := self.first) is not None and first <= now:
            _, ref = heapq.heappop(self._heap)
            del self._times[ref]
            yield ref


class Alarm:
    """Calls a function at a Unix time or soon after, never before; it takes no task."""

    __slots__ = ("_at", "_clock", "_handle", "_ring")

    def __init__(self, clock: Callable[[], float], ring: Callable[[], None]) -> None:
        """Prepare; ``ring`` sets it anew, if there is more to wait for."""
        self._clock = clock
        self._ring = ring
        self._at = float("inf")
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Ring at a Unix time, unless it rings before that anyway."""
        if at >= self._at:
            return
        self._at = at
        if self._handle is not None:
            self._handle.cancel()
        seconds = min(max(0.0, at - self._clock()), LOOK_SECONDS)
        self._handle = asyncio.get_running_loop().call_later(seconds, self._rings)

    def stop(self) -> None:
        """Ring no more."""
        if self._handle is not None:
            self._handle.cancel()
        self._at, self._handle = float("inf"), None

    def _rings(self) -> None:
        at, self._at, self._handle = self._at, float("inf"), None
        if self._clock() >= at:
            self._ring()
        else:
            self.set(at)
