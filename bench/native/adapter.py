"""The adapter of whatever broker a URL names, as a gateway uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self

from bench.native import IN_FLIGHT, Handle
from mesh import address
from mesh.broker import Broker, Delivery, Message, SubscribeOptions, Topology
from mesh.registry import Registry


class Adapter:
    """Publishes with an id, so that a repetition is stored once where the broker can do that."""

    title = "adapter"

    def __init__(self, url: str, topic: str) -> None:
        adapter = Registry().load(f"backbone.{url.partition(':')[0]}")
        self._broker: Broker = adapter.from_url(url)  # type: ignore[attr-defined]
        self._address = address.topic("bench", "pubsub", topic)

    async def __aenter__(self) -> Self:
        await self._broker.__aenter__()
        await self._broker.declare(Topology(self._address.space))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._broker.__aexit__(*exc_info)

    async def publish(self, headers: Mapping[str, str], body: bytes) -> None:
        await self._broker.publish(self._address, Message(headers, body, id=headers["ce-id"]))

    @asynccontextmanager
    async def consuming(self, handle: Handle) -> AsyncIterator[None]:
        async def settle(delivery: Delivery) -> None:
            await handle(delivery.message.headers, delivery.message.body)
            await delivery.ack()

        async with self._broker.subscribe(self._address, SubscribeOptions("bench", IN_FLIGHT), settle):
            yield
