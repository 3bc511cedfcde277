"""aio-pika: a quorum queue, publisher confirms, an ack for each message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from bench.native import IN_FLIGHT, Handle, Native, Take


class AioPika(Native):
    """Persistent messages; a callback, which is a task, for each, with a prefetch of 64."""

    title = "aio-pika"

    async def __aenter__(self) -> Self:
        self._connection = await aio_pika.connect(self.url)
        self._publishing = await self._connection.channel(publisher_confirms=True)
        self._consuming = await self._connection.channel()
        await self._consuming.set_qos(IN_FLIGHT)
        self._queue = await self._consuming.declare_queue(
            self.topic, durable=True, arguments={"x-queue-type": "quorum"}
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._connection.close()

    async def publish(self, headers: Mapping[str, str], body: bytes) -> None:
        message = aio_pika.Message(
            body, headers=dict(headers), delivery_mode=aio_pika.DeliveryMode.PERSISTENT, message_id=headers["ce-id"]
        )
        await self._publishing.default_exchange.publish(message, self.topic)

    async def read(self, take: Take, handle: Handle) -> None:
        async def receive(message: AbstractIncomingMessage) -> None:
            await handle(message.headers, message.body)  # type: ignore[arg-type]  # all of ours are text
            await message.ack()

        tag = await self._queue.consume(receive)
        self.begun.set()
        await self.over.wait()
        await self._queue.cancel(tag)
