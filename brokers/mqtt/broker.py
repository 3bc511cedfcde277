"""The adapter class; what maps to what stands in the package's docstring."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from brokers.mqtt._config import MQTTConfig, MQTTSettings
from brokers.mqtt._member import Member
from brokers.mqtt._messages import PREFIX, properties_of, structured
from brokers.mqtt._registry import Registry
from brokers.mqtt._topics import filter_of, topic_of
from brokers.shared.adapter import Adapter
from brokers.shared.errors import map_errors
from brokers.shared.limits import check_size
from brokers.shared.settings import node_name
from mesh.address import Address
from mesh.broker import Features, Handler, Message, SubscribeOptions, Topology
from mesh.errors import BrokerError, FeatureNotSupportedError, PublishRejectedError
from mesh.frameless import Frameless
from mesh.tasks import task_group

__all__ = ["MQTTBroker", "MQTTConfig"]

MAX_MESSAGE_BYTES = 1024 * 1024
NO_SUCH_MESSAGE = map_errors({ValueError: lambda error: PublishRejectedError(f"MQTT has no such message: {error}")})


class MQTTBroker(Frameless, Adapter):
    """A connection to an MQTT server, and one more for each subscription."""

    title = "Events on topics of an MQTT server, 3.1.1 or 5."
    tested = "Mosquitto 2.0"
    configuration = MQTTConfig
    settings = MQTTSettings
    _config: MQTTConfig

    features = Features(
        name="mqtt",
        event_prefix=PREFIX,
        max_message_bytes=MAX_MESSAGE_BYTES,
        shared=True,
        ephemeral=True,
        release_counts=True,
        retention=False,
        reassigns=False,
        frames=False,
        own_wildcards=True,
    )

    def __init__(self, config: MQTTConfig) -> None:
        """Prepare; entering connects."""
        super().__init__(config)
        self.inbox = node_name()
        self._registry = Registry(config, self.inbox)
        self._client = self._registry.client

    async def _enter(self) -> None:
        """Connect."""
        stack = self._stack
        stack.callback(self._client.close)
        await self._client.open()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(tasks.create_task(self._client.supervise(), name="mqtt-supervise").cancel)
        stack.push_async_callback(self._client.outbox.flush)

    async def check(self) -> None:
        """Ask the server for a sign of life."""
        await self._client.check()

    # Messages

    async def declare(self, topology: Topology) -> None:
        """Nothing: a topic is there once somebody uses it, and what is kept is the server's to say."""

    async def publish(self, address: Address, message: Message) -> None:
        """Publish with QoS 1; the server's PUBACK confirms it."""
        await self._client.outbox.room()
        await self._post(address, message)  # Cancelled here, it may still arrive.

    def _post(self, address: Address, message: Message) -> asyncio.Future[None]:
        check_size(message.body, message.headers, MAX_MESSAGE_BYTES)
        topic = topic_of(address, self._config.prefix)
        if not self._client.dialect.has_properties:
            return self._client.post(topic, structured(message), retain=self._config.retain)
        content_type, properties = properties_of(message)
        with NO_SUCH_MESSAGE:
            return self._client.post(
                topic,
                message.body,
                retain=self._config.retain,
                content_type=content_type,
                user_properties=properties,
            )

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Publish several, in order; the server says how many at once."""
        results: list[BrokerError | None] = [None] * len(messages)
        posted: list[tuple[int, asyncio.Future[None]]] = []
        try:
            for index, message in enumerate(messages):
                await self._client.outbox.room()
                try:
                    posted.append((index, self._post(address, message)))
                except BrokerError as error:
                    results[index] = error
            for index, future in posted:
                try:
                    await future
                except BrokerError as error:
                    results[index] = error
        finally:
            for _, future in posted:
                future.cancel()
        return results

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        """Join a group: a session of its own, in the group's shared subscription."""
        if options.ordered:
            raise FeatureNotSupportedError(self.features.name, "ordered subscriptions")
        wanted = filter_of(address, options.group, self._config.prefix)
        member = Member(self._config, self._registry, wanted, address, options, handler)
        async with task_group() as keepers:
            try:
                async with task_group() as tasks:
                    try:
                        await member.start(keepers, tasks)
                        yield
                    finally:
                        member.stop()
            finally:
                await member.finish()
