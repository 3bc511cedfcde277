"""A member of a group on a user's stream, to be killed: ``python -m tests.support.jetstream_member URL SETTINGS``.

Says ``ready`` once it is subscribed, then the body of each delivery; it settles none of them.
"""

from __future__ import annotations

import asyncio
import json
import sys

from brokers.native._jetstream import JetStreamSettings
from brokers.native.jetstream import JetStreamTopics
from brokers.nats import NatsConfig
from mesh import address
from mesh.broker import Delivery, SubscribeOptions


async def _main(url: str, settings: str) -> None:
    async def hold(delivery: Delivery) -> None:
        print(delivery.message.body.decode(), flush=True)
        await asyncio.Event().wait()

    async with (
        JetStreamTopics(JetStreamSettings(**json.loads(settings)), NatsConfig.from_url(url)) as broker,
        broker.subscribe(address.topic("test", "pubsub", "orders"), SubscribeOptions("shop", ack_wait=1.0), hold),
    ):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
