"""A million timers of an idle owner: memory, and what it does meanwhile; ``python -m bench.timers COUNT SECONDS``.

The store makes its records as they are read, so that this process holds what an owner holds, and nothing of a store.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence

import psutil
import uvloop

from mesh.ownership.table import PARTITIONS
from mesh.schedules import Timing
from mesh.store import StateStore, Stored
from mesh.timers import FailurePolicy, Outcome, Timer, Timers
from mesh.timers.record import Record

KIND = "actors.bench"
LATER = 86400.0
POLL_SECONDS = 0.05


class _Made(StateStore):
    """Records that are the same but for their keys, equally many in each partition."""

    def __init__(self, count: int) -> None:
        self.asked = 0
        self._count, self._each = count, -(-count // PARTITIONS)
        due = time.time() + LATER
        timer = Timer("", "", Timing(due, "@every 10s"), FailurePolicy(), b"x" * 100)
        self._stored = Stored(Record(timer, due, 1).encode(), "1")

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Stored]]:
        self.asked += 1
        first = int(after.split(".")[3].removeprefix("order-")) + 1 if after else 0
        numbers = range(first, min(self._count, first + limit))
        return [(f"{prefix}{number // self._each:03d}.order-{number:07d}.again", self._stored) for number in numbers]


async def _fire(_: Timer) -> Outcome:
    raise AssertionError("none is due")


async def main(count: int, seconds: float) -> None:
    """Own them all, idle, and print what that took."""
    process, store = psutil.Process(), _Made(count)
    before = process.memory_info().rss
    timers = Timers(KIND, store, _fire, lambda _: True)
    async with timers.run():
        for partition in range(PARTITIONS):
            timers.take(partition, 1)
        while timers.known < count:
            await asyncio.sleep(POLL_SECONDS)
        asked, cpu = store.asked, time.process_time()
        await asyncio.sleep(seconds)
        told = {
            "mb": (process.memory_info().rss - before) / 2**20,
            "asked": store.asked - asked,
            "cpu_percent": 100 * (time.process_time() - cpu) / seconds,
        }
    print(json.dumps(told))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), float(sys.argv[2])))
