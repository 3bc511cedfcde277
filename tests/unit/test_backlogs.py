"""What subscriptions have before them: asked once for a moment, and without those that give no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from mesh.blocks.block import Serving
from mesh.broker import Backlog
from mesh.errors import BrokerUnavailableError
from mesh.node.backlogs import Backlogs

Ask = Callable[[], Awaitable[Backlog]]


class Service:
    """Has five subscriptions, of which one broker answers for each in its way."""

    def __init__(self) -> None:
        self.asked = 0

    def backlogs(self) -> list[tuple[str, str, Ask]]:
        return [
            ("b", "t", self.ten),
            ("a", "t", self.ten),
            ("c", "t", self.away),
            ("d", "t", self.silent),
            ("e", "t", self.breaks),
        ]

    async def ten(self) -> Backlog:
        self.asked += 1
        return Backlog(10)

    async def away(self) -> Backlog:
        raise BrokerUnavailableError("gone")

    async def breaks(self) -> Backlog:
        raise ZeroDivisionError

    async def silent(self) -> Backlog:
        await asyncio.Event().wait()
        raise AssertionError


async def test_who_gives_no_answer_is_left_out() -> None:
    """And all who ask within a moment get the same answer."""
    service = Service()
    backlogs = Backlogs({"pubsub": cast("Serving", service), "state": cast("Serving", object())})
    async with asyncio.timeout(30):
        told = await backlogs.look()
        assert await backlogs.look() is told
    assert [(each.component, each.topic, each.backlog, each.oldest_seconds) for each in told] == [
        ("a", "t", Backlog(10), None),
        ("b", "t", Backlog(10), None),
    ]
    assert service.asked == 2
