"""Waiting for a connection: one asks, for however many wait."""

from __future__ import annotations

import asyncio
import time

from mesh.calls.comeback import PAUSES, Comeback
from mesh.errors import BrokerUnavailableError
from tests.support.eventually import eventually


class Broker:
    def __init__(self) -> None:
        self.up = False
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        if not self.up:
            raise BrokerUnavailableError("away")


async def test_one_asks_for_all_who_wait() -> None:
    broker = Broker()
    comeback = Comeback(broker.check)
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(comeback.look())
        waiting = [tasks.create_task(comeback.by(time.time() + 30)) for _ in range(1000)]
        await eventually(lambda: _assert(broker.checks >= 3))
        broker.up = True
        assert all([await each for each in waiting])
        checks = broker.checks
        assert await comeback.by(time.time() + 30), "the next outage is asked about as well"
        looking.cancel()
    assert 4 <= checks <= len(PAUSES) + 1
    assert broker.checks == checks + 1


async def test_nobody_is_asked_while_nobody_waits_and_a_deadline_holds() -> None:
    broker = Broker()
    comeback = Comeback(broker.check)
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(comeback.look())
        for _ in range(3):
            await asyncio.sleep(0)
        assert broker.checks == 0
        started = time.monotonic()
        assert not await comeback.by(time.time() + 0.2)
        assert time.monotonic() - started < 5
        assert not await comeback.by(time.time() - 1)
        looking.cancel()


def _assert(holds: bool) -> None:
    assert holds
