"""What an adapter is measured against: the broker's own client, doing the same.

Each broker has one module here, so that a run needs no other client than its own. All keep the same promise as the
adapter: published is what the broker has confirmed, and a message that is not acked comes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from typing import Protocol, Self

__all__ = ["ADAPTER", "CLIENTS", "IN_FLIGHT", "Ack", "Client", "Handle", "Native", "Take", "client_of"]

IN_FLIGHT = 64  # As a subscription of the gateway.
ADAPTER = "bench.native.adapter:Adapter"
# The first of each is what the goals compare with; the other does no more than to read and ack.
CLIENTS = {
    "nats": ("bench.native.nats:NatsPy", "bench.native.nats:NatsPyBare"),
    "redis": ("bench.native.redis:RedisPy", "bench.native.redis:RedisPyBare"),
    "kafka": ("bench.native.kafka:AIOKafka", "bench.native.kafka:AIOKafkaBare"),
    "rabbitmq": ("bench.native.rabbitmq:AioPika",),
}

Handle = Callable[[Mapping[str, str], bytes], Awaitable[None]]
Ack = Callable[[], Awaitable[object]]
Take = Callable[[Mapping[str, str], bytes, Ack], Awaitable[None]]


class Client(Protocol):
    """A connection that publishes to one topic, and consumes it as one durable group.

    Attributes:
        title: As in the table.
    """

    title: str

    def __init__(self, url: str, topic: str) -> None:
        """Prepare; entering connects and makes the topic."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def publish(self, headers: Mapping[str, str], body: bytes) -> None:
        """Store one message; returns when the broker has confirmed it."""

    def consuming(self, handle: Handle) -> AbstractAsyncContextManager[None]:
        """Hand every message to ``handle``, at most ``IN_FLIGHT`` at once, and ack it when that returns.

        Entered, it is active on the broker. Leaving waits for what was begun.
        """


def client_of(path: str) -> type[Client]:
    """Load a client by its path."""
    module, _, name = path.partition(":")
    found: type[Client] = getattr(import_module(module), name)
    return found


class Native:
    """What the native clients have in common.

    Attributes:
        begun: What is there now is being read.
        over: Nothing more is to be read.
    """

    def __init__(self, url: str, topic: str) -> None:
        self.url = url
        self.topic = topic
        self.begun = asyncio.Event()
        self.over = asyncio.Event()

    async def read(self, take: Take, handle: Handle) -> None:
        """Set ``begun``, and read until it is over.

        Args:
            take: Runs the handler in a task of its own, once there is room, and acks then.
            handle: The handler itself, for those that do without.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def consuming(self, handle: Handle) -> AsyncIterator[None]:
        """Read; what was begun is finished at the end."""
        self.begun.clear()
        self.over.clear()
        free = asyncio.Semaphore(IN_FLIGHT)
        async with asyncio.TaskGroup() as tasks:

            async def run(headers: Mapping[str, str], body: bytes, ack: Ack) -> None:
                await handle(headers, body)
                await ack()
                free.release()

            async def take(headers: Mapping[str, str], body: bytes, ack: Ack) -> None:
                await free.acquire()
                tasks.create_task(run(headers, body, ack))

            tasks.create_task(self.read(take, handle))
            try:
                await self.begun.wait()
                yield
            finally:
                self.over.set()
