"""Rows of queues of Azure and Google: their vendors' emulators stand for them, one for all tests of a process."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from azure.eventhub import EventData
from azure.eventhub.aio import EventHubProducerClient
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusSender
from azure.storage.queue.aio import QueueClient

from tests.support.azure_servers import ACCOUNT, ACCOUNT_KEY, AzuriteServer, EventHubsServer, ServiceBusServer
from tests.support.bindings.queues import shared
from tests.support.bindings.rows import InputKind, OutputKind, ServedInput, ServedOutput, call, nothing
from tests.support.nodes import unique
from tests.support.pubsub_server import PubSubServer

__all__ = ["INPUTS", "OUTPUTS", "PubSub", "azure_queue", "event_hub", "pubsub", "service_bus"]


@asynccontextmanager
async def azure_queue() -> AsyncIterator[tuple[QueueClient, dict[str, str]]]:
    """Give a queue that is there, and settings of a component that uses it."""
    server = await shared("azurite-queue", lambda directory: AzuriteServer(directory, "queue"))
    name = unique("queue").lower()
    credential = {"account_name": ACCOUNT, "account_key": ACCOUNT_KEY}
    async with QueueClient(f"{server.url}/{ACCOUNT}", name, credential=credential) as client:
        await client.create_queue()
        yield client, {**server.settings, "queueName": name}


@asynccontextmanager
async def _azure_queue_out(directory: Path) -> AsyncIterator[ServedOutput]:
    async with azure_queue() as (_, settings):
        calls = (
            (call("create", b'"one"'), nothing),
            (call("create", b'{"id":1}', ttlInSeconds="60", initialVisibilityDelay="2s"), nothing),
        )
        yield ServedOutput(settings, calls, call("create", ttlInSeconds="soon"))


@asynccontextmanager
async def _azure_queue_in(directory: Path) -> AsyncIterator[ServedInput]:
    async with azure_queue() as (client, settings):

        async def emit(data: bytes) -> None:
            await client.send_message(b64encode(data).decode())

        quick = {"decodeBase64": "true", "pollingInterval": "200ms", "visibilityTimeout": "2s"}
        yield ServedInput({**settings, **quick}, emit)


@asynccontextmanager
async def service_bus() -> AsyncIterator[tuple[ServiceBusSender, dict[str, str]]]:
    """Give what sends to a queue, and settings of a component that uses it."""
    server = await shared("servicebus", ServiceBusServer)
    name = unique("queue").lower()
    async with (
        ServiceBusClient.from_connection_string(server.connection) as client,
        client.get_queue_sender(name) as sender,
    ):
        yield sender, {"connectionString": server.connection, "queueName": name}


@asynccontextmanager
async def _service_bus_out(directory: Path) -> AsyncIterator[ServedOutput]:
    async with service_bus() as (_, settings):
        calls = (
            (call("create", b'"one"'), nothing),
            (call("create", b"\x00\xff", ttlInSeconds="60", Label="new", colour="red"), nothing),
        )
        yield ServedOutput(settings, calls, call("create", ttlInSeconds="soon"))


@asynccontextmanager
async def _service_bus_in(directory: Path) -> AsyncIterator[ServedInput]:
    async with service_bus() as (sender, settings):

        async def emit(data: bytes) -> None:
            await sender.send_messages(ServiceBusMessage(data))

        yield ServedInput({**settings, "lockRenewalInSec": "1", "maxConcurrentHandlers": "5"}, emit)


@asynccontextmanager
async def event_hub(kind: str = "hub") -> AsyncIterator[tuple[EventHubProducerClient, dict[str, str]]]:
    """Give what sends to a hub of two partitions, and settings of a component that uses it."""
    server = await shared("eventhubs", EventHubsServer)
    name = unique(kind).lower()
    async with EventHubProducerClient.from_connection_string(server.connection, eventhub_name=name) as sender:
        yield sender, {"connectionString": server.connection, "eventHub": name}


@asynccontextmanager
async def _event_hub_out(directory: Path) -> AsyncIterator[ServedOutput]:
    async with event_hub() as (_, settings):
        calls = (
            (call("create", b'"one"'), nothing),
            (call("create", b"\x00\xff", partitionKey="a", contentType="image/png"), nothing),
        )
        yield ServedOutput(settings, calls, call("create", partitionKey="x" * 129))


@asynccontextmanager
async def _event_hub_in(directory: Path) -> AsyncIterator[ServedInput]:
    async with event_hub() as (sender, settings):

        async def emit(data: bytes) -> None:
            await sender.send_event(EventData(data), partition_key=data.hex()[:128])

        yield ServedInput(settings, emit)


class PubSub:
    """A client of the emulator."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, f"{url}/v1/projects/shop"

    async def put(self, path: str, body: object) -> None:
        """Make something."""
        async with self._session.put(f"{self._url}/{path}", json=body) as response:
            assert response.status == 200, await response.text()

    async def post(self, path: str, body: object) -> Any:
        """Ask for something."""
        async with self._session.post(f"{self._url}/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def publish(self, topic: str, data: bytes, **more: object) -> None:
        """Send a message."""
        message = {"data": b64encode(data).decode(), **more}
        await self.post(f"topics/{topic}:publish", {"messages": [message]})


@asynccontextmanager
async def pubsub(**more: object) -> AsyncIterator[tuple[PubSub, dict[str, str]]]:
    """Give a client, and settings of a component that uses a topic and a subscription that are there."""
    try:
        PubSubServer(Path())
    except FileNotFoundError as error:  # It is left out where there is no Go.
        pytest.skip(str(error))
    server = await shared("pubsub", PubSubServer)
    name = unique("queue")
    async with aiohttp.ClientSession() as session:
        client = PubSub(session, server.url)
        await client.put(f"topics/{name}", {})
        await client.put(f"subscriptions/{name}", {"topic": f"projects/shop/topics/{name}", **more})
        yield client, {"endpoint": server.url, "project_id": "shop", "topic": name, "subscription": name}


@asynccontextmanager
async def _pubsub_out(directory: Path) -> AsyncIterator[ServedOutput]:
    async with pubsub() as (_, settings):
        calls = (
            (call("create", b'"one"'), nothing),
            (call("create", b"\x00\xff", topic=settings["topic"], orderingKey="a"), nothing),
        )
        yield ServedOutput(settings, calls, call("create", topic="there-is-none"))


@asynccontextmanager
async def _pubsub_in(directory: Path) -> AsyncIterator[ServedInput]:
    async with pubsub() as (client, settings):

        async def emit(data: bytes) -> None:
            await client.publish(settings["topic"], data)

        yield ServedInput(settings, emit)


OUTPUTS: Mapping[str, OutputKind] = {
    "azure queue": OutputKind("bindings.azure.storagequeues", _azure_queue_out),
    "service bus": OutputKind("bindings.azure.servicebusqueues", _service_bus_out),
    "event hub": OutputKind("bindings.azure.eventhubs", _event_hub_out),
    "pubsub": OutputKind("bindings.gcp.pubsub", _pubsub_out),
}

INPUTS: Mapping[str, InputKind] = {
    "azure queue": InputKind("bindings.azure.storagequeues", _azure_queue_in),
    "service bus": InputKind("bindings.azure.servicebusqueues", _service_bus_in),
    "event hub": InputKind("bindings.azure.eventhubs", _event_hub_in),
    "pubsub": InputKind("bindings.gcp.pubsub", _pubsub_in),
}
