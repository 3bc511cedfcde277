"""RabbitMQ as Dapr's component has it: an exchange per topic, a queue per group and topic.

============  ==========================================================================================
ours          on RabbitMQ
============  ==========================================================================================
topic         the exchange of its name
group         the queue ``<group>-<topic>``, bound with the routing keys that its subscription names
attempt       what this member counted; else two where it was delivered before, or a quorum queue's count
ack           ``basic.ack``; a lost one leads to redelivery
nack(delay)   kept by the member for so long, then ``basic.nack`` with requeue; release: at once
reject        ``basic.reject`` without requeue: to the queue's own dead letter exchange, if it has one
confirmation  publisher confirm; on a reconnect what waits for one is sent again
============  ==========================================================================================

Two connections: the server stops reading from one that publishes when it is short of memory or disk, and acks must get
through. A subscription has a channel of its own, and so has each declaration.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from aio_pika.abc import AbstractChannel
from aiormq import DeliveryError, spec
from aiormq.abc import DeliveredMessage

from brokers.native._rabbitmq_client import Client
from brokers.native._rabbitmq_inspection import Inspection, is_there
from brokers.native._rabbitmq_message import PREFIX, PUBLISH_METADATA, encode
from brokers.native._rabbitmq_places import NOT_FOUND, Places, check_name, waiting
from brokers.native._rabbitmq_settings import SUBSCRIBE_METADATA, Asked, RabbitMQNativeSettings
from brokers.native._rabbitmq_source import Line, Source
from brokers.native._topics import NativeTopics
from brokers.rabbitmq._config import ConfigReader, RabbitMQConfig
from brokers.rabbitmq._refusals import RefusedError
from brokers.rabbitmq._session import Reconnecting
from brokers.shared.backoff import waits
from brokers.shared.limits import check_size
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Backlog, Features, Message, SubscribeOptions
from mesh.errors import BrokerUnavailableError, PublishRejectedError
from mesh.resources.component import Component
from mesh.tasks import task_group

__all__ = ["RabbitMQTopics"]

LETTER = "mesh-dead-letter-topic"

logger = logging.getLogger("brokers.rabbitmq")

MAX_MESSAGE_BYTES = 65 * 1024 * 1024  # The largest body of a gateway, and its envelope; the server may take less.
MAX_PREFETCH = 65535
MAX_EXCHANGES = 10_000
ANSWERS_WITHIN = 2.0
MOST_REFUSALS = 6  # For some seconds: a queue may be without a leader.
AGAIN = 5  # Attempts at a publish whose exchange ends whenever it is made.


class _NotTakenError(Exception):
    """The server said that it has not stored it: a queue is full, or has lost its leader."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        super().__init__("the server has not stored it")


@dataclass(frozen=True, slots=True)
class _Made:
    """A message to publish."""

    exchange: str
    key: str
    properties: spec.Basic.Properties
    body: bytes


class RabbitMQTopics(Inspection, NativeTopics):
    """Topics on RabbitMQ."""

    title = "Topics on RabbitMQ: an exchange each, and a queue for each group."
    tested = "RabbitMQ 3.10"
    settings = RabbitMQNativeSettings
    told_group = True  # Whose queue dead letters lie in.
    layouts: ClassVar = {"mesh": "brokers.rabbitmq:RabbitMQBroker"}
    _settings: RabbitMQNativeSettings
    features = Features(
        name="rabbitmq",
        layout="native",
        event_prefix=PREFIX,
        max_message_bytes=MAX_MESSAGE_BYTES,
        durable=True,
        shared=True,
        delay=True,
        release_counts=True,
        retention=False,
        reassigns=False,
        frames=False,
        expires=True,
        publish_metadata=PUBLISH_METADATA,
        subscribe_metadata=SUBSCRIBE_METADATA,
    )

    def __init__(self, settings: RabbitMQNativeSettings, config: RabbitMQConfig) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self.features = replace(self.features, rejects=settings.dead_letter and not settings.requeue)
        self._shown = config.shown
        self._outage = Outage(logger, "RabbitMQ", config.shown)
        self._publishing = Reconnecting(Client.open, config, "publishing", Client.publisher, self._outage)
        self._consuming = Reconnecting(Client.open, config, "consuming", _as_it_is, self._outage)
        self._places = Places(settings)
        self._onlooker = False
        self._alone = asyncio.Lock()

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        reader = ConfigReader(component, cls.settings)
        made = cls(reader.found, reader.config())
        made._component = component
        return made

    def as_onlooker(self) -> None:
        """Make no exchange, and take no message as published that no queue takes; see ``Onlooking``."""
        self._onlooker = True

    async def _enter(self) -> None:
        """Connect."""
        for session in (self._publishing, self._consuming):
            self._stack.push_async_callback(session.close)
            await session.open()
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        for session in (self._publishing, self._consuming):
            self._stack.callback(tasks.create_task(session.keep(), name="rabbitmq-keep").cancel)

    async def check(self) -> None:
        """Ask the server for a sign of life, on both connections."""
        for session in (self._publishing, self._consuming):
            client = session.current()
            try:
                async with asyncio.timeout(ANSWERS_WITHIN), client.channel():
                    pass
            except TimeoutError:
                text = f"RabbitMQ at {self._shown} does not answer, or takes no publishes"
                raise BrokerUnavailableError(text) from None

    # Publishing

    async def publish(self, address: Address, message: Message) -> None:
        """Publish to the topic's exchange, which is made if it is not there; return once the server has it."""
        topic = address.label
        check_name(topic)
        check_size(message.body, message.headers, MAX_MESSAGE_BYTES)
        alone, refusals, shared = False, 0, None
        for wait in waits():
            client = await self._publishing.live()
            key, said = encode(message, self._settings, client.frame_max)
            made = _Made(topic, key, said, message.body)
            try:
                await (self._publish_alone if alone else self._publish)(client, made)
            except _NotTakenError as error:
                refusals += 1
                if refusals > MOST_REFUSALS:
                    raise PublishRejectedError(f"RabbitMQ at {self._shown} did not take it: a queue is full") from error
                alone, shared = True, shared if alone else error.channel
            except RefusedError:  # Of this one or of another one's: all share a channel.
                alone = True
            except BrokerUnavailableError:
                pass
            else:
                if shared is not None:  # It is at fault: it goes on refusing after the death of a queue's leader.
                    await client.close_channel(shared)
                return
            await asyncio.sleep(wait)

    async def _publish(self, client: Client, made: _Made) -> None:
        topic = made.exchange
        found = client.exchanges.get(topic)
        if found is None or (found.done() and (found.exception() is not None or found.result().is_closed)):
            if len(client.exchanges) >= MAX_EXCHANGES:
                client.exchanges.clear()
            found = client.exchanges[topic] = asyncio.ensure_future(client.ask(self._exchange(client, topic)))
            found.add_done_callback(_retrieve)
        await self._send(client, await asyncio.shield(found), made)

    async def _exchange(self, client: Client, topic: str) -> AbstractChannel:
        """Make an exchange, and give the channel that publishes to it."""
        await self._ready(client, topic)
        return await client.publisher()

    async def _ready(self, client: Client, topic: str) -> None:
        if not self._onlooker:
            await self._places.exchange(client, topic)
        elif not await is_there(client, topic):
            raise PublishRejectedError(f"RabbitMQ at {self._shown} has no exchange {topic!r}, so nobody would get it")

    async def _send(self, client: Client, channel: AbstractChannel, made: _Made) -> None:
        raw = await channel.get_underlay_channel()
        await client.drained()
        publishing = raw.basic_publish(
            made.body,
            exchange=made.exchange,
            routing_key=made.key,
            properties=made.properties,
            # The original of a dead letter is settled once this is confirmed: then a queue must have it.
            mandatory=self._onlooker or LETTER in (made.properties.headers or {}),
            wait=False,  # type: ignore[call-arg]  # Until it is written: else each would be written by itself.
        )
        try:
            if isinstance(await client.send(publishing), DeliveredMessage):  # It was returned.
                bound = f"with the routing key {made.key!r}" if made.key else "without a routing key"
                told = f"no queue takes from the exchange {made.exchange!r} what is published {bound}"
                raise PublishRejectedError(f"RabbitMQ at {self._shown} did not take it: {told}")
        except DeliveryError as error:
            raise _NotTakenError(channel) from error
        except (TypeError, ValueError) as error:
            raise PublishRejectedError(f"RabbitMQ cannot carry it: {error}") from error

    async def _publish_alone(self, client: Client, made: _Made) -> None:
        """Publish over a channel of its own: what the common one has to do with it is not known.

        Raises:
            PublishRejectedError: It was for this one.
        """
        async with self._alone:
            for left in reversed(range(AGAIN)):
                try:
                    await self._ready(client, made.exchange)  # It may have ended, with its last queue.
                    async with client.channel(confirms=True) as channel:
                        await self._send(client, channel, made)
                    return
                except RefusedError as error:
                    if error.reply_code != NOT_FOUND or not left:
                        text = f"RabbitMQ at {self._shown} did not take it: {error.text}"
                        raise PublishRejectedError(text) from error

    # Subscriptions

    def _limit(self, options: SubscribeOptions) -> int:
        """Give the most deliveries at once."""
        return 1 if self._settings.concurrency == "single" else options.max_in_flight

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Source]:
        """Consume from the group's queue."""
        settings = self._settings
        asked = Asked.read(address.label, options, settings)
        prefetch = min(settings.prefetch or self._limit(options), MAX_PREFETCH)

        async def open_line(source: Source, client: Client) -> Line:
            await self._places.subscription(client, address.label, asked, options)
            return await Line.open(source, client, asked.queue, prefetch)

        async with task_group() as tasks:
            source = Source(address, self._consuming.live, open_line, tasks, tell=settings.tell)
            try:
                async with source.delays:
                    await source.begin()
                    yield source
            finally:
                await source.close()

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Ask for the length of the group's queue."""
        asked = Asked.read(address.label, options, self._settings)
        return Backlog(await waiting(self._consuming.current(), asked.queue))


async def _as_it_is(_: Client) -> None:
    """Need nothing before a connection is used."""


def _retrieve(answering: asyncio.Future[AbstractChannel]) -> None:
    if not answering.cancelled():
        answering.exception()
