"""The adapter class; what maps to what stands in the package's docstring."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from brokers.rabbitmq._bodies import RabbitMQBodies
from brokers.rabbitmq._config import RabbitMQConfig, RabbitMQSettings
from brokers.rabbitmq._consumer import Subscription
from brokers.rabbitmq._frames import Inbox, Listening, Serving, frame_key, inbox_target
from brokers.rabbitmq._inspection import Inspection
from brokers.rabbitmq._message import PREFIX, TOPIC, encode
from brokers.rabbitmq._names import FRAMES, exchange_name, lane_of, routing_key
from brokers.rabbitmq._publisher import Publisher
from brokers.rabbitmq._refusals import ERRORS
from brokers.rabbitmq._session import Session
from brokers.rabbitmq._topology import Space, count, group_queues
from brokers.shared.adapter import Adapter
from brokers.shared.limits import check_size, publish_each
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Backlog, Features, Handler, Message, Sink, SubscribeOptions, Topology
from mesh.errors import BrokerError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.large import Bodies
    from mesh.rights import Rights

__all__ = ["RabbitMQBroker"]

logger = logging.getLogger("brokers.rabbitmq")

MAX_MESSAGE_BYTES = 4 * 1024 * 1024


class RabbitMQBroker(Inspection, Adapter):
    """Two connections to RabbitMQ: one publishes, one consumes."""

    title = "Events in queues of RabbitMQ."
    tested = "RabbitMQ 3.10"
    configuration = RabbitMQConfig
    settings = RabbitMQSettings
    _config: RabbitMQConfig

    features = Features(
        name="rabbitmq",
        event_prefix=PREFIX,
        max_message_bytes=MAX_MESSAGE_BYTES,
        durable=True,
        shared=True,
        ordering=True,
        delay=True,
        wildcard=True,
        ephemeral=True,
        release_counts=True,
    )

    def __init__(self, config: RabbitMQConfig) -> None:
        """Prepare; entering connects."""
        super().__init__(config)
        self._inbox = Inbox(config.inbox)
        outage = self._outage = Outage(logger, "RabbitMQ", config.shown)
        self._publisher = Publisher(config, self._inbox.take_back, self._inbox.refuse, outage)
        self._session = Session(config, "consuming", self._inbox.open, outage)
        self.inbox = self._inbox.name

    async def _enter(self) -> None:
        """Connect."""
        for session in (self._publisher.session, self._session):
            self._stack.push_async_callback(session.close)
            await session.open()
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        for session in (self._publisher.session, self._session):
            self._stack.callback(tasks.create_task(session.keep(), name="rabbitmq-keep").cancel)

    @staticmethod
    def permissions(rights: Rights) -> str:
        """Write what a user of the server has to be allowed."""
        from brokers.rabbitmq._permissions import permissions

        return permissions(rights)

    async def check(self) -> None:
        """Ask the server for a sign of life, on both connections."""
        self._session.current()
        await self._publisher.check()
        await self._inbox.check()

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back whenever both connections are back; who listens is about to open its channel anew."""
        self._outage.on_back(callback)

    # Stored messages

    async def declare(self, topology: Topology) -> None:
        """Create a space's exchanges and queues, or check that they are as wanted."""
        await self._publisher.declare(self._space(topology))

    def _space(self, topology: Topology) -> Space:
        config = self._config
        ages = [age for age in (topology.max_age, config.max_age) if age is not None]
        sizes = [size for size in (topology.max_bytes, config.max_bytes) if size is not None]
        wanted = replace(topology, max_age=min(ages, default=None), max_bytes=min(sizes, default=None))
        return Space(wanted, config.max_events)

    async def publish(self, address: Address, message: Message) -> None:
        """Store a message in a queue of each group, or where the first group will find it."""
        check_size(message.body, message.headers, MAX_MESSAGE_BYTES)
        key, reversible = routing_key(address.name, lane_of(message.key))
        extra = None if reversible else {TOPIC: address.name}
        properties = encode(message, stored=True, extra=extra)
        await self._publisher.store(exchange_name(address.space), key, properties, message.body)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several: sent in order, confirmed as the server gets to them."""
        return await publish_each(self.publish, address, messages)

    async def bodies(self, space: str, seconds: float | None) -> Bodies:
        """Keep large bodies in a stream beside a space's queues."""
        return RabbitMQBodies(self._session, self._publisher, space, seconds)

    async def _declared(self, name: str) -> Space:
        """Give a space that was declared here, or elsewhere and as usual."""
        if name not in self._publisher.spaces:
            await self._publisher.see(exchange_name(name))
            await self.declare(Topology(name))
        return self._publisher.spaces[name]

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        """Consume the group's queue (17 of them when ordered)."""
        space = await self._declared(address.space)
        if self._config.max_in_flight is not None:
            options = replace(options, max_in_flight=min(options.max_in_flight, self._config.max_in_flight))
        subscription = Subscription(self._session, self._publisher, space, address, options, handler)
        try:
            async with task_group() as tasks:
                try:
                    await subscription.start(tasks)
                    yield
                finally:
                    await subscription.stop()
        finally:
            subscription.close()
            if options.ephemeral:
                await subscription.remove()

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Ask for the length of the group's queues, on a channel of its own: what waits for its delay is not there."""
        queues = group_queues(await self._declared(address.space), address, options)
        connection = self._session.current()
        with ERRORS:
            return Backlog(sum([(await count(connection, each.name))[0] for each in queues]))

    # Frames

    def on_frame(self, sink: Sink) -> None:
        """Set the inbox sink."""
        self._inbox.sink = sink

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        """Publish without confirmation; with ``reply_to``, what nobody takes comes back."""
        check_size(message.body, message.headers, MAX_MESSAGE_BYTES)
        if reply_to:
            self._session.current()  # An answer could not be received yet.
        queue, token = self._inbox.own(reply_to) if reply_to else ("", "")
        if isinstance(to, str):
            exchange, key, correlation_id = inbox_target(to)
            answer = f"{queue}.{token}" if queue else None
        else:
            exchange, key, correlation_id = FRAMES, frame_key(to), token
            answer = queue or None
        properties = encode(message, correlation_id=correlation_id or None, reply_to=answer)
        await self._publisher.post(exchange, key, properties, message.body, mandatory=bool(queue))

    @asynccontextmanager
    async def serve(self, address: Address, group: str, sink: Sink) -> AsyncIterator[None]:
        """Share a queue with the other members of the group."""
        serving = Serving(self._session, address, group, sink)
        async with task_group() as tasks:
            try:
                await serving.start(tasks)
                yield
            finally:
                await serving.leave()

    async def broadcast(self, address: Address, message: Message) -> None:
        """Publish to the queue of each listener."""
        check_size(message.body, message.headers, MAX_MESSAGE_BYTES)
        await self._publisher.post(FRAMES, frame_key(address), encode(message), message.body, mandatory=False)

    @asynccontextmanager
    async def listen(self, address: Address, sink: Sink) -> AsyncIterator[None]:
        """Bind a queue of one's own."""
        listening = Listening(self._session, address, sink, self._config.inbox)
        async with task_group() as tasks:
            try:
                await listening.start(tasks)
                yield
            finally:
                await listening.leave()
