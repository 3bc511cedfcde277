"""Keyed lanes shared out among the members of an ordered group.

Whoever consumes a lane first is its active consumer, and RabbitMQ keeps it so; a second member
would stand by for ever. So a member that gets more than its share gives some lanes up: it leaves
their queues, and joins again behind the others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from brokers.rabbitmq._lane import Lane
from brokers.rabbitmq._session import Session
from brokers.rabbitmq._topology import count
from mesh.errors import BrokerError

__all__ = ["balance"]

INTERVAL = 5.0


async def balance(session: Session, lanes: Sequence[Lane], interval: float = INTERVAL) -> None:
    """Keep to this member's share, until cancelled."""
    keyed = [lane for lane in lanes if lane.queue.keyed]
    shared = next(lane.queue.name for lane in lanes if not lane.queue.keyed)  # It counts those that stand by, too.
    while True:
        await asyncio.sleep(random.uniform(interval / 2, interval))  # noqa: S311 - so that members take turns
        busy = [lane for lane in keyed if lane.active]
        connection = session.connection
        if not busy or connection is None:
            continue
        try:
            _, members = await count(connection, shared)
        except BrokerError:
            continue  # The next turn will tell.
        share = -(-len(keyed) // max(1, members))
        for lane in random.sample(busy, max(0, len(busy) - share)):
            lane.give_way()
