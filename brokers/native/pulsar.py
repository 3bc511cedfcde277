"""``pubsub.pulsar``: topics of Apache Pulsar as every other program has them.

==============  ===================================================================================
ours            on Pulsar
==============  ===================================================================================
topic           ``persistent://<tenant>/<namespace>/<topic>``; its partitions are subscribed to one by one
event           a message: the payload = the envelope, the properties = the metadata; batches are read message by
                message
key             the message's key
group           the subscription ``consumerID``
member          a consumer of each partition, with a short queue
attempt         the redelivery counter; on top, what this member handed out again itself
ack, reject     an individual acknowledgement
nack(delay)     kept by the member, and handed out again
release         nothing: a consumer that is closed leaves what it has not acknowledged to others
extend          nothing: a message is its consumer's for as long as that is connected
==============  ===================================================================================

Source: Dapr's documentation of the component; pulsar.apache.org (subscriptions, acknowledgement).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from pulsar import InitialPosition, Result
from pulsar.asyncio import PulsarException

from brokers.native._pulsar_client import Client
from brokers.native._pulsar_settings import POSITIONS, TYPES, PulsarSettings
from brokers.native._topics import Delays, NativeTopics, Source, Taken
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.limits import check_size
from mesh.address import Address
from mesh.broker import Delivery, Features, Message, SubscribeOptions
from mesh.errors import BrokerError, FeatureNotSupportedError, PublishRejectedError, TopologyMismatchError
from mesh.resources.component import Component
from mesh.tasks import task_group
from mesh.values import parse_duration

__all__ = ["PulsarTopics"]

MAX_MESSAGE_BYTES = 5 * 1024 * 1024 - 10 * 1024  # What a broker takes by default, less what it adds.
MAX_TOLD = 600  # Characters of what the broker says; it repeats whole schemas.
SAID_OTHERWISE = frozenset(("deliverAfter", "deliverAt", "partitionKey"))  # Of the metadata: they are no properties.
PARTITIONS_SECONDS = 60.0  # Between two looks for new partitions.


class PulsarTopics(NativeTopics):
    """Topics of an Apache Pulsar cluster."""

    title = "Events in topics of Apache Pulsar, as other programs write and read them."
    tested = "Apache Pulsar 4.0, standalone"
    settings: ClassVar[type[PulsarSettings]] = PulsarSettings
    features = Features(
        name="pulsar",
        event_prefix="ce_",
        max_message_bytes=MAX_MESSAGE_BYTES,
        durable=True,
        shared=True,
        delay=True,
        release_counts=False,
        retention=False,
        attempts=False,
        reassigns=False,
        frames=False,
        layout="native",
        publish_metadata=("*",),
        subscribe_metadata=("subscribeType", "processMode", "subscribeInitialPosition"),
    )

    def __init__(self, client: Client) -> None:
        """Prepare; entering connects."""
        super().__init__(client.settings)
        self._client = client

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = cls(Client.from_component(component))
        made._component = component
        return made

    async def _enter(self) -> None:
        await self._stack.enter_async_context(self._client.connected())

    async def check(self) -> None:
        """Ask the broker for a topic's partitions."""
        try:
            await self._client.ask()
        except PulsarException as error:
            raise unavailable(f"Pulsar at {self._client.shown}", error) from error

    async def publish(self, address: Address, message: Message) -> None:
        """Send a message; the broker's receipt confirms it."""
        beside = {**message.metadata, **message.headers}
        check_size(message.body, beside, MAX_MESSAGE_BYTES)
        topic, at = self._client.settings.topic(address.label), _deliver_at(message.metadata)
        properties = {name: text for name, text in beside.items() if name not in SAID_OTHERWISE}
        more = {"properties": properties, "partition_key": message.key, "deliver_at": at}
        body = self._client.written(topic, message.body)
        try:
            await self._client.until_done(lambda: self._client.send(topic, body, **more))
        except PulsarException as error:
            raise self._refused(error, PublishRejectedError) from error

    def _refused(self, error: PulsarException, kind: type[BrokerError]) -> BrokerError:
        text = " ".join(str(error).split())[:MAX_TOLD]
        if error.error() in (Result.AuthenticationError, Result.AuthorizationError):
            return NotAdmittedError(f"Pulsar at {self._client.shown} does not let this node do it: {text}")
        return kind(f"Pulsar at {self._client.shown} refused it: {text}")

    def _check(self, address: Address, options: SubscribeOptions) -> None:
        for asked, what in (
            (options.ordered, "ordered subscriptions; subscribeType key_shared with processMode sync keeps order"),
            (options.ephemeral, "subscriptions that end with their instance"),
            (address.is_pattern, f"the pattern {address.label!r}"),
        ):
            if asked:
                raise FeatureNotSupportedError(self.features.name, what)
        for name, known in (
            ("subscribeType", TYPES),
            ("processMode", ("async", "sync")),
            ("subscribeInitialPosition", POSITIONS),
        ):
            if (value := options.metadata.get(name)) and value.lower() not in known:
                text = f"the metadata {name} of the subscription to {address.label} is {' or '.join(known)}"
                raise TopologyMismatchError(f"{text}, not {value[:40]!r}")

    def _limit(self, options: SubscribeOptions) -> int:
        settings = self._client.settings
        if options.metadata.get("processMode", settings.process_mode).lower() == "sync":
            return 1
        return min(options.max_in_flight, settings.concurrency)

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Source]:
        member = _Member(self._client, address, options, self._limit(options))
        try:
            async with task_group() as tasks:
                try:
                    await member.join(tasks)
                except PulsarException as error:
                    raise self._refused(error, TopologyMismatchError) from error
                growing = tasks.create_task(member.grow(), name="pulsar-partitions")
                try:
                    async with member.delays:
                        yield member
                finally:
                    growing.cancel()
                    await member.leave()
        finally:
            await member.leave()


class _Member:
    """Takes part in a subscription."""

    def __init__(self, client: Client, address: Address, options: SubscribeOptions, limit: int) -> None:
        self._client, self._address, self._group, self._limit = client, address, options.group, limit
        settings = client.settings
        self._topic = settings.topic(address.label)
        self._kind = TYPES[options.metadata.get("subscribeType", settings.kind).lower()]
        self._position = POSITIONS[options.metadata.get("subscribeInitialPosition", settings.position).lower()]
        self.delays = Delays()
        self._tasks: asyncio.TaskGroup
        self._readers: dict[str, tuple[Any, asyncio.Task[None]]] = {}
        self._room = asyncio.Event()
        self._ready: deque[Taken] = deque()
        self._filled = asyncio.Event()
        self._wanted = 0
        self._held: set[str] = set()
        self._stopping = False

    async def join(self, tasks: asyncio.TaskGroup) -> None:
        """Subscribe to every partition; raises what the library raises."""
        self._tasks = tasks
        names = await self._client.until_done(lambda: self._client.partitions(self._topic))
        # What lies in a queue here nobody else can take. Without queues the library loses parts of batches.
        ahead = max(1, min(self._client.settings.ahead, self._limit) // len(names))
        for name in names:
            await self._subscribe(name, ahead, self._position)

    async def _subscribe(self, name: str, ahead: int, position: InitialPosition) -> None:
        options = {"consumer_type": self._kind, "initial_position": position, "receiver_queue_size": ahead}
        consumer = await self._client.until_done(
            lambda: self._client.consumer(name, self._topic, self._group, options),
        )
        reader = self._tasks.create_task(self._read(name, consumer), name="pulsar-read")
        self._readers[name] = consumer, reader

    async def grow(self) -> None:
        """Take part in partitions that are added, from their beginning."""
        while True:
            await asyncio.sleep(PARTITIONS_SECONDS)
            with suppress(PulsarException):
                for name in await self._client.partitions(self._topic):
                    if name not in self._readers and name != self._topic:
                        await self._subscribe(name, 1, InitialPosition.Earliest)

    async def take(self, room: int) -> Sequence[Taken]:
        self._wanted = room
        self._room.set()
        while not self._ready and not self._stopping:
            self._filled.clear()
            await self._filled.wait()
        self._room.clear()
        return [self._ready.popleft() for _ in range(min(room, len(self._ready)))]

    async def _read(self, name: str, consumer: Any) -> None:
        """Hand out a partition's messages while there is room."""
        while True:
            await self._room.wait()
            try:
                found = await consumer.receive()
            except PulsarException as error:
                text = f"the subscription {self._group!r} to {name} ended at Pulsar at {self._client.shown}: {error}"
                raise TopologyMismatchError(text) from error
            identity = _identity(found)
            if identity not in self._held:  # Else it came again with another connection; whoever has it settles both.
                self._held.add(identity)
                message = _message(found, await self._client.body(self._topic, found))
                self.hand_out(consumer, found, message, found.redelivery_count() + 1)
                if len(self._ready) >= self._wanted:  # Before who takes them can say so: another member has the next.
                    self._room.clear()

    def hand_out(self, consumer: Any, found: Any, message: Message, attempt: int) -> None:
        """Hand a message out; nothing after `stop`."""
        if not self._stopping:
            settler = _Settler(self, consumer, found, message, attempt)
            self._ready.append(Taken(Delivery(message, self._address, attempt, settler), _leave))
            self._filled.set()

    async def settle(self, consumer: Any, found: Any) -> None:
        """Acknowledge a message."""
        with suppress(PulsarException):  # Then it comes again.
            await consumer.acknowledge(found)
        self._held.discard(_identity(found))

    async def after(self, delay: float, work: Callable[[], Awaitable[None]]) -> None:
        """Have something done later, though not before ``redeliveryDelay``."""
        await self.delays.after(max(delay, self._client.settings.redelivery or 0.0), work)

    async def stop(self) -> None:
        self._stopping = True
        self._filled.set()

    async def leave(self) -> None:
        """Close every consumer; what is unsettled goes to others, and counts no attempt."""
        self._stopping = True
        while self._readers:
            consumer, reader = self._readers.popitem()[1]
            reader.cancel()
            await self._client.leave(consumer)


async def _leave() -> None:
    """Release a message: nothing, for that is asked of members that leave, and with their consumer all comes free."""


class _Settler:
    """Settles one message."""

    def __init__(self, member: _Member, consumer: Any, found: Any, message: Message, attempt: int) -> None:
        self._member, self._consumer, self._found = member, consumer, found
        self._message, self._attempt = message, attempt

    async def ack(self) -> None:
        await self._member.settle(self._consumer, self._found)

    async def reject(self) -> None:
        await self.ack()

    async def extend(self) -> None:
        """Nothing: the broker takes nothing back from who is connected."""

    async def nack(self, delay: float) -> None:
        await self._member.after(delay, self._again)

    async def _again(self) -> None:
        self._member.hand_out(self._consumer, self._found, self._message, self._attempt + 1)


def _identity(found: Any) -> str:
    place = found.message_id()
    return f"{place.ledger_id()}:{place.entry_id()}:{place.batch_index()}:{place.partition()}"


def _message(found: Any, body: bytes) -> Message:
    properties = dict(found.properties())
    return Message(properties, body, found.partition_key() or None, metadata=properties)


def _deliver_at(metadata: Mapping[str, str]) -> int | None:
    """Read when an event is to be delivered, in milliseconds since 1970.

    Raises:
        PublishRejectedError: It is no time.
    """
    try:
        if text := metadata.get("deliverAt"):
            at = datetime.fromisoformat(text)
            return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
        if text := metadata.get("deliverAfter"):
            return int((time.time() + parse_duration(text)) * 1000)
    except ValueError:
        text = "the metadata deliverAt is a time such as 2021-09-01T10:00:00Z, and deliverAfter a duration such as 4h5m"
        raise PublishRejectedError(text) from None
    return None
