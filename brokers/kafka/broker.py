"""The adapter class; what maps to what stands in the package's docstring."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from aiokafka.partitioner import murmur2
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from brokers.kafka._background import background
from brokers.kafka._bodies import KafkaBodies
from brokers.kafka._cluster import EARLIEST, LATEST, Cluster, error_of
from brokers.kafka._config import KafkaConfig, KafkaSettings
from brokers.kafka._consumer import Consumer
from brokers.kafka._frames import Frames
from brokers.kafka._group import Lost, Membership, NewRound
from brokers.kafka._inspection import NO_GROUP, Inspection
from brokers.kafka._names import group_name, topic_name
from brokers.kafka._producer import Headers, Producer
from brokers.kafka._records import ID
from brokers.kafka._space import Space
from brokers.shared.adapter import Adapter
from brokers.shared.limits import measure
from mesh.address import Address, Kind
from mesh.broker import Backlog, Features, Handler, Message, Sink, SubscribeOptions, Topology
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    FeatureNotSupportedError,
    MessageTooLargeError,
    PublishRejectedError,
    TopologyMismatchError,
)
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.large import Bodies
    from mesh.rights import Rights

__all__ = ["KafkaBroker"]

TAKE_PART_WITHIN = 10.0  # The first node of a cluster makes a topic.
STAY_FOR_MESSAGES = 512
ROUND_SECONDS = 1.0
NO_SUCH_GROUP = 69


class _Sticky:
    """Where this node's messages without a key go for a moment: one partition, so that many fit in a batch.

    A round of all partitions takes about a second at most, or one message for each: if only full batches
    ended a stay, a slow publisher would leave most owners without work for minutes.
    """

    __slots__ = ("count", "partition", "since")

    def __init__(self, partitions: int) -> None:
        self.partition = random.randrange(partitions)  # noqa: S311 - it spreads load
        self.count = 0
        self.since = time.monotonic()

    def next(self, partitions: int, count: int) -> int:
        now = time.monotonic()
        if self.count >= STAY_FOR_MESSAGES or now - self.since >= ROUND_SECONDS / partitions:
            self.partition = (self.partition + 1) % partitions
            self.count = 0
            self.since = now
        self.count += count
        return self.partition


class KafkaBroker(Inspection, Adapter):
    """A node on a Kafka cluster."""

    title = "Events in topics of Apache Kafka."
    tested = "Apache Kafka 3.9"
    configuration = KafkaConfig
    settings = KafkaSettings
    group_settings = ("consumerGroup", "consumerID")
    _config: KafkaConfig

    features = Features(
        name="kafka",
        event_prefix="ce_",
        durable=True,
        shared=True,
        ordering=True,
        delay=True,
        ephemeral=True,
        release_counts=True,
    )

    def __init__(self, config: KafkaConfig) -> None:
        """Prepare; entering connects."""
        super().__init__(config)
        self.features = replace(self.features, max_message_bytes=config.max_message_bytes)
        self._cluster = Cluster(config)
        self._producer: Producer | None = None
        self._frames: Frames | None = None
        self._sink: Sink | None = None
        self._spaces: dict[str, Space] = {}
        self._sticky: dict[str, _Sticky] = {}
        self.inbox = ""

    @staticmethod
    def permissions(rights: Rights) -> str:
        """Write what a user of the cluster has to be allowed."""
        from brokers.kafka._permissions import permissions

        return permissions(rights)

    async def _enter(self) -> None:
        """Connect, and start to receive frames."""
        if not self._config.brokers:
            raise BrokerUnavailableError("no Kafka broker is named")
        cluster, stack = Cluster(self._config), self._stack
        self._cluster = cluster
        stack.push_async_callback(cluster.close)
        await cluster.open()
        producing = await stack.enter_async_context(background())
        producer = self._producer = Producer(cluster)
        producing(producer.run(), "kafka-producer")
        frames = self._frames = Frames(cluster, producer)
        frames.sink = self._sink
        reading = await stack.enter_async_context(background())
        try:
            async with asyncio.timeout(TAKE_PART_WITHIN):
                await frames.open(reading)
        except TimeoutError as error:
            raise cluster.unavailable(f"it does not answer for {frames.waits_for}") from error
        stack.push_async_callback(frames.close)
        self.inbox = frames.inbox

    async def __aexit__(self, *exc_info: object) -> None:
        """Flush and close."""
        await super().__aexit__(*exc_info)
        self._cluster.closed = True

    async def check(self) -> None:
        """Ask a broker for a sign of life."""
        if self._cluster.closed or self._producer is None:
            raise self._cluster.unavailable("not connected")
        await self._cluster.ask(MetadataRequest([], allow_auto_topic_creation=False))

    # Stored messages

    async def declare(self, topology: Topology) -> None:
        """Create a space, or check that it is as wanted."""
        copies = self._config.replicas
        space = Space(self._cluster, topology if copies is None else replace(topology, replicas=copies))
        await space.declare()
        self._spaces.setdefault(topology.space, space)

    def max_age(self, topology: Topology) -> float | None:
        """Give the seconds after which brokers remove events of a space, whoever has them; None for never."""
        return topology.max_age

    async def _space(self, name: str) -> Space:
        found = self._spaces.get(name)
        if found is None:
            found = await Space.find(self._cluster, name)
            if found is None:
                raise PublishRejectedError(f"{name} was never declared on Kafka at {self._config.shown}")
            found = self._spaces.setdefault(name, found)
        return found

    def _limit(self, message: Message) -> int:
        size = measure(message.body, message.headers)
        if size > self.features.max_message_bytes:
            raise MessageTooLargeError(size, self.features.max_message_bytes)
        return size

    def _open(self) -> Producer:
        if self._producer is None or self._cluster.closed:
            raise self._cluster.unavailable("not connected")
        return self._producer

    async def _topic(self, address: Address) -> tuple[Space, str]:
        """Find where an address is stored, through broken connections, too."""
        while True:
            self._open()
            try:
                space = await self._space(address.space)
                return space, await space.topic(address.text)
            except BrokerUnavailableError:
                if self._cluster.closed:
                    raise
            await self._cluster.pause()

    async def publish(self, address: Address, message: Message) -> None:
        """Store a message; every in-sync replica confirms it."""
        try:
            await (await self._add(address, message))
        except PublishRejectedError:
            if (space := self._spaces.get(address.space)) is not None:  # Perhaps somebody deleted its topic;
                space.topics.discard(topic_name(address.text))  # the next publish makes it again.
            raise

    def _partition(self, topic: str, key: str | None, count: int) -> int:
        partitions = self._cluster.partitions(topic) or self._config.partitions
        if key is not None:
            hashed: int = murmur2(key.encode())
            return (hashed & 0x7FFFFFFF) % partitions  # As every other client of Kafka does.
        sticky = self._sticky.get(topic)
        if sticky is None:
            sticky = self._sticky[topic] = _Sticky(partitions)
        return sticky.next(partitions, count)

    async def _add(self, address: Address, message: Message, unkeyed: int | None = None) -> asyncio.Future[int]:
        """Hand a message to the producer; one without a key goes to a partition that is given, or chosen now."""
        size = self._limit(message)
        producer = self._open()
        space = self._spaces.get(address.space)
        topic = topic_name(address.text)
        if space is None or topic not in space.topics:
            space, topic = await self._topic(address)
        if space.topology.max_bytes is not None:
            await space.make_room(size)
        await producer.room()
        headers: Headers = [(name, value.encode()) for name, value in message.headers.items()]
        if message.id is not None:
            headers.append((ID, message.id.encode()))
        key = None if message.key is None else message.key.encode()
        partition = unkeyed if key is None and unkeyed is not None else self._partition(topic, message.key, 1)
        return producer.add(topic, partition, key, message.body, headers)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several: in as few batches as they fit in."""
        results: list[BrokerError | None] = [None] * len(messages)
        futures: dict[int, asyncio.Future[int]] = {}
        if not messages:
            return results
        try:
            _, topic = await self._topic(address)
        except PublishRejectedError as error:
            return [error] * len(messages)
        unkeyed = self._partition(topic, None, len(messages))
        try:
            for index, message in enumerate(messages):
                try:
                    futures[index] = await self._add(address, message, unkeyed)
                except BrokerError as error:
                    results[index] = error
            for index, future in futures.items():
                try:
                    await future
                except BrokerError as error:
                    results[index] = error
        finally:
            for future in futures.values():
                future.cancel()
        return results

    async def bodies(self, space: str, seconds: float | None) -> Bodies:
        """Keep large bodies in a topic beside those of a space."""
        return KafkaBodies(self._cluster, self._open(), await self._space(space), seconds)

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        """Join the consumer group of a group and a topic."""
        if address.is_pattern:
            raise FeatureNotSupportedError("kafka", "wildcards in a subscription's topic")
        self._open()
        assert self._frames is not None
        _, topic = await self._topic(address)
        if not options.ephemeral:
            await self._check_order(address, options)
        group = group_name(address, options.group, ordered=options.ordered)
        consumer = Consumer(self._cluster, self._frames, topic, group, address, options, handler)
        async with background() as start:
            try:
                await consumer.start(start)
                async with task_group() as handlers:
                    consumer.deliver(handlers)
                    try:
                        yield
                    finally:
                        await consumer.stop()
            finally:
                await consumer.finish()

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Compare what the group has settled with the ends of its partitions."""
        topic = topic_name(address.text)
        await self._cluster.refresh(topic)
        partitions = range(self._cluster.partitions(topic))
        group = Membership(self._cluster, group_name(address, options.group, ordered=options.ordered), topic)
        try:
            settled = await group.committed(partitions)
        except (Lost, NewRound) as error:
            raise self._cluster.unavailable(f"the group {options.group!r} is being shared out anew") from error
        finally:
            await group.close()
        ends = await self._cluster.offsets(topic, dict.fromkeys(partitions, LATEST))
        unknown = dict.fromkeys(ends.keys() - settled.keys(), EARLIEST)
        begins = await self._cluster.offsets(topic, unknown) | {number: each for number, (each, _) in settled.items()}
        return Backlog(sum(max(0, end - begins[number]) for number, end in ends.items()))

    async def _check_order(self, address: Address, options: SubscribeOptions) -> None:
        """Refuse a group that exists with the other order: it would get everything stored a second time."""
        other = group_name(address, options.group, ordered=not options.ordered)
        while (state := await self._state_of(other)) is None:
            await self._cluster.pause()
        if state != NO_GROUP:
            raise TopologyMismatchError(
                f"group {options.group!r} of {address} exists with ordered={not options.ordered}, wanted "
                f"{options.ordered}; delete consumer group {other} to change that"
            )

    async def _state_of(self, group: str) -> str | None:
        """Ask for a group's state; None when its coordinator is not ready yet."""
        found = await self._cluster.ask(FindCoordinatorRequest(group, 0))
        if found.error_code != 0:
            return None
        response = await self._cluster.call(found.coordinator_id, DescribeGroupsRequest([group]))
        code, _, state, *_ = response.groups[0]
        if error_of(code) is None:
            return str(state)
        return NO_GROUP if code == NO_SUCH_GROUP else None

    # Frames

    def on_frame(self, sink: Sink) -> None:
        """Set the inbox sink."""
        self._sink = sink
        if self._frames is not None:
            self._frames.sink = sink

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back whenever frames are read and written again."""
        self._live().outage.on_back(callback)

    def _live(self) -> Frames:
        if self._frames is None or self._cluster.closed:
            raise self._cluster.unavailable("not connected")
        return self._frames

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        """Send to a node's inbox, or to one member of each group that serves an address."""
        self._limit(message)
        frames = self._live()
        if isinstance(to, str):
            inbox, _, token = frames.inboxes.check(to).partition(".")
            await frames.send(inbox, token, message, reply_to)
        else:
            await frames.send_to_served(to.text, message, reply_to, sure=to.kind is Kind.OWNER)

    @asynccontextmanager
    async def serve(self, address: Address, group: str, sink: Sink) -> AsyncIterator[None]:
        """Say that this node serves an address, and take what comes."""
        async with self._live().serve(address.text, group, sink):
            yield

    async def broadcast(self, address: Address, message: Message) -> None:
        """Send to every node that listens."""
        self._limit(message)
        await self._live().broadcast(address.text, message)

    @asynccontextmanager
    async def listen(self, address: Address, sink: Sink) -> AsyncIterator[None]:
        """Take what is broadcast."""
        async with self._live().listen(address.text, sink):
            yield
