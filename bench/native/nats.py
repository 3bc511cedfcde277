"""nats-py: a JetStream stream like a gateway's, a durable pull consumer, an ack for each message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy

from bench.native import IN_FLIGHT, Ack, Handle, Native, Take

WAIT = 0.2


class NatsPy(Native):
    """A task for each message."""

    title = "nats-py"

    async def __aenter__(self) -> Self:
        self._client = await nats.connect(self.url)
        self._jetstream = self._client.jetstream()
        self._subject = f"{self.topic}.t"
        await self._jetstream.add_stream(
            name=self.topic, subjects=[self._subject], discard=DiscardPolicy.NEW, duplicate_window=120
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.close()

    async def publish(self, headers: Mapping[str, str], body: bytes) -> None:
        await self._jetstream.publish(self._subject, body, headers={**headers, "Nats-Msg-Id": headers["ce-id"]})

    async def read(self, take: Take, handle: Handle) -> None:
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=-1)
        pulling = await self._jetstream.pull_subscribe(self._subject, "bench", stream=self.topic, config=config)
        self.begun.set()
        while not self.over.is_set():
            try:
                messages = await pulling.fetch(IN_FLIGHT, timeout=WAIT)
            except TimeoutError:
                continue
            for message in messages:
                await take(message.headers or {}, message.data, message.ack)
        await pulling.unsubscribe()
        await self._client.flush()


class NatsPyBare(NatsPy):
    """One message after the other, without tasks."""

    title = "nats-py, bare loop"

    async def read(self, take: Take, handle: Handle) -> None:
        async def take_alone(headers: Mapping[str, str], body: bytes, ack: Ack) -> None:
            await handle(headers, body)
            await ack()

        await super().read(take_alone, handle)
