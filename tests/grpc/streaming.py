"""A client that holds a stream of events open, and answers them as it is told; and a gateway that drains beneath it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import orjson

from tests.grpc.harness import Client
from tests.http.harness import Backbone, Node, gateway
from tests.support.eventually import PATIENCE

__all__ = ["DROP", "METHOD", "RETRY", "SUCCESS", "Subscriber", "leaving", "subscribed"]

SUCCESS, RETRY, DROP = 0, 1, 2
METHOD = "SubscribeTopicEventsAlpha1"
OPEN_SECONDS = 60.0


class Subscriber:
    """One stream."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.call = client.open(METHOD, timeout=OPEN_SECONDS)

    async def send(self, **fields: Any) -> None:
        await self.call.write(self._client.request(METHOD, **fields))

    async def begin(self, topic: str = "t", pubsub: str = "pubsub", **fields: Any) -> None:
        """Subscribe, and wait until that is done."""
        await self.send(initial_request={"pubsub_name": pubsub, "topic": topic, **fields})
        assert (await self.read()).WhichOneof("subscribe_topic_events_response_type") == "initial_response"

    async def read(self, within: float = PATIENCE) -> Any:
        """Read the next message; raises ``AioRpcError`` when the stream ends with a failure."""
        async with asyncio.timeout(within):
            message = await self.call.read()
        if message is grpc.aio.EOF:
            raise EOFError(await self.call.code())
        return message

    async def event(self, within: float = PATIENCE) -> Any:
        """Take the next event, and do not answer it yet."""
        return (await self.read(within)).event_message

    async def answer(self, event: Any, status: int = SUCCESS) -> None:
        await self.send(
            event_processed={"id": event if isinstance(event, str) else event.id, "status": {"status": status}}
        )

    async def take(self, status: int = SUCCESS) -> Any:
        """Take the next event and answer it; give its data."""
        event = await self.event()
        await self.answer(event, status)
        return orjson.loads(event.data)

    async def ends(self) -> tuple[str, str]:
        """Read to the end; give status and text."""
        try:
            async with asyncio.timeout(PATIENCE):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
                code, text = await self.call.code(), await self.call.details()
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details()
        return code.name, text or ""


@asynccontextmanager
async def subscribed(
    client: Client, topic: str = "t", metadata: Mapping[str, str] | None = None, **fields: Any
) -> AsyncIterator[Subscriber]:
    """Hold a stream open; it is given up at the end, if it has not ended."""
    subscriber = Subscriber(client)
    try:
        await subscriber.begin(topic, metadata=dict(metadata or {}), **fields)
        yield subscriber
    finally:
        subscriber.call.cancel()


@asynccontextmanager
async def leaving(
    backbone: Backbone, home: Path, **settings: Any
) -> AsyncIterator[tuple[Node, asyncio.Event, asyncio.Task[None]]]:
    """Run a gateway that drains when the event is set, and until the task ends."""
    started: asyncio.Future[Node] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def run() -> None:
        async with gateway(backbone, home, **settings) as node:
            started.set_result(node)
            await stop.wait()

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run())
        try:
            yield await started, stop, running
        finally:
            stop.set()
