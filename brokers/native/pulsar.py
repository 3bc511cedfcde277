"""``pubsub.pulsar``: topics of Apache Pulsar as every other program has them.

==============  ===================================================================================
ours            on Pulsar
==============  ===================================================================================
topic           ``persistent://<tenant>/<namespace>/<topic>``; its partitions are subscribed to one by one
event           a message: the payload = the envelope, the properties = the metadata
key             the message's key
group           the subscription ``consumerID``
member          a consumer without a queue of its own: it asks for as many messages as it has room for
attempt         the redelivery counter; on top, what this member handed out again itself
ack, reject     an individual acknowledgement
nack(delay)     kept by the member, and handed out again
release         a negative acknowledgement; what is left when the member goes comes again by itself
extend          nothing: a message is its consumer's for as long as that is connected
==============  ===================================================================================

Source: Dapr's documentation of the component; pulsar.apache.org (subscriptions, acknowledgement).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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
        release_counts=True,
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

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back whenever the broker answers again."""
        self._client.outage.on_back(callback)

    async def publish(self, address: Address, message: Message) -> None:
        """Send a message; the broker's receipt confirms it."""
        beside = {**message.metadata, **message.headers}
        check_size(message.body, beside, MAX_MESSAGE_BYTES)
        topic, at = self._client.settings.topic(address.label), _deliver_at(message.metadata)
        more = {"properties": beside, "partition_key": message.key, "deliver_at": at}
        try:
            await self._client.until_done(lambda: self._client.send(topic, message.body, **more))
        except PulsarException as error:
            raise self._refused(error, PublishRejectedError) from error

    def _refused(self, error: PulsarException, kind: type[BrokerError]) -> BrokerError:
        if error.error() in (Result.AuthenticationError, Result.AuthorizationError):
            return NotAdmittedError(f"Pulsar at {self._client.shown} does not let this node do it: {error}")
        return kind(f"Pulsar at {self._client.shown} refused it: {error}")

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
        member = _Member(self._client, address, options)
        try:
            try:
                await member.join()
            except PulsarException as error:
                raise self._refused(error, TopologyMismatchError) from error
            async with task_group() as tasks:
                member.tasks = tasks
                growing = tasks.create_task(member.grow(), name="pulsar-partitions")
                async with member.delays:
                    try:
                        yield member
                    finally:
                        growing.cancel()
                await member.leave()
        finally:
            await member.leave()


class _Member:
    """Takes part in a subscription."""

    def __init__(self, client: Client, address: Address, options: SubscribeOptions) -> None:
        self._client, self._address, self._group = client, address, options.group
        settings = client.settings
        self.topic = settings.topic(address.label)
        kind = options.metadata.get("subscribeType", settings.kind).lower()
        self._position = POSITIONS[options.metadata.get("subscribeInitialPosition", settings.position).lower()]
        self._kind = TYPES[kind]
        self.delays = Delays()
        self.tasks: asyncio.TaskGroup
        self._consumers: dict[str, Any] = {}
        self._asked: dict[str, int] = {}
        self._ready: deque[Taken] = deque()
        self._wake = asyncio.Event()
        self._held: set[str] = set()
        self.stopping = False

    async def join(self) -> None:
        """Subscribe to every partition; raises what the library raises."""
        names = await self._client.until_done(lambda: self._client.partitions(self.topic))
        for name in names:
            await self._subscribe(name, self._position)

    async def _subscribe(self, name: str, position: InitialPosition) -> None:
        options = {"consumer_type": self._kind, "initial_position": position}
        self._consumers[name] = await self._client.until_done(lambda: self._client.consumer(name, self._group, options))
        self._asked[name] = 0

    async def grow(self) -> None:
        """Take part in partitions that are added, from their beginning."""
        while True:
            await asyncio.sleep(PARTITIONS_SECONDS)
            with suppress(PulsarException):
                for name in await self._client.partitions(self.topic):
                    if name not in self._consumers and name != self.topic:
                        await self._subscribe(name, InitialPosition.Earliest)
                        self._wake.set()

    async def take(self, room: int) -> Sequence[Taken]:
        while not self._ready and not self.stopping:
            self._wake.clear()
            self._ask(room)
            await self._wake.wait()
        return [self._ready.popleft() for _ in range(min(room, len(self._ready)))]

    def _ask(self, room: int) -> None:
        """Ask each partition for its share, and at least for one message."""
        share = max(1, room // len(self._consumers))
        for name, asked in self._asked.items():
            for _ in range(share - asked):
                self._asked[name] += 1
                self.tasks.create_task(self._receive(name), name="pulsar-receive")

    async def _receive(self, name: str) -> None:
        consumer = self._consumers[name]
        try:
            found = await consumer.receive()
        except PulsarException as error:
            if self.stopping:
                return
            text = f"the subscription {self._group!r} to {name} ended at Pulsar at {self._client.shown}: {error}"
            raise TopologyMismatchError(text) from error
        self._asked[name] -= 1
        identity = _identity(found)
        if identity in self._held:  # It came again with another connection; whoever has it settles both.
            self._wake.set()
            return
        self._held.add(identity)
        taken = self.handed(consumer, found, identity, found.redelivery_count() + 1)
        if self.stopping:
            await taken.release()
        else:
            self.again(taken)

    def handed(self, consumer: Any, found: Any, identity: str, attempt: int) -> Taken:
        """Make a delivery."""
        settler = _Settler(self, consumer, found, identity, attempt)
        return Taken(Delivery(_message(found), self._address, attempt, settler), settler.release)

    def again(self, taken: Taken) -> None:
        """Hand out what there is."""
        self._ready.append(taken)
        self._wake.set()

    def let_go(self, identity: str) -> None:
        """Note that a message is not this member's any more."""
        self._held.discard(identity)

    async def stop(self) -> None:
        self.stopping = True
        self._wake.set()
        while self._ready:
            await self._ready.popleft().release()

    async def leave(self) -> None:
        """Close every consumer; what is unsettled goes to others, and counts no attempt."""
        self.stopping = True
        while self._consumers:
            await self._client.leave(self._consumers.popitem()[1])


class _Settler:
    """Settles one message."""

    def __init__(self, member: _Member, consumer: Any, found: Any, identity: str, attempt: int) -> None:
        self._member, self._consumer, self._found = member, consumer, found
        self._identity, self._attempt = identity, attempt

    async def ack(self) -> None:
        with suppress(PulsarException):  # Then it comes again.
            await self._consumer.acknowledge(self._found)
        self._member.let_go(self._identity)

    async def reject(self) -> None:
        await self.ack()

    async def extend(self) -> None:
        """Nothing: the broker takes nothing back from who is connected."""

    async def nack(self, delay: float) -> None:
        await self._member.delays.after(delay, self._again)

    async def _again(self) -> None:
        member = self._member
        if member.stopping:
            await self.release()
        else:
            member.again(member.handed(self._consumer, self._found, self._identity, self._attempt + 1))

    async def release(self) -> None:
        self._member.let_go(self._identity)
        with suppress(PulsarException):
            await self._consumer.negative_acknowledge(self._found)


def _identity(found: Any) -> str:
    place = found.message_id()
    return f"{place.ledger_id()}:{place.entry_id()}:{place.batch_index()}:{place.partition()}"


def _message(found: Any) -> Message:
    properties = dict(found.properties())
    return Message(properties, found.data(), found.partition_key() or None, metadata=properties)


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
