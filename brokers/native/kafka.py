"""``pubsub.kafka`` on topics as every program on the cluster has them, by the client's own producer and consumers.

=============  ====================================================================================
ours           on Kafka
=============  ====================================================================================
topic          the topic of its name, made by the brokers where they make topics (`auto.create.topics.enable`)
message        a record: the body is its value, ``partitionKey`` or ``__key`` its key
metadata       a record header for each
partition      ``partitionNumber``; or by the key, as Dapr does (FNV-1a); or any
confirmation   acks=all, idempotent
group          the consumer group of its name, one member per subscription; assignor ``range``
ack            the lowest offset that is unsettled is committed, at once or nearly so
nack(delay)    held by the member; records of its key wait, and no more than a window of others goes on
ephemeral      a group of its own that commits nothing
=============  ====================================================================================

Sources: Dapr 1.18, the Kafka component; kafka.apache.org/protocol; aiokafka 0.14.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import quote_plus

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.protocol.admin import DeleteGroupsRequest, DescribeGroupsRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from msgspec.structs import replace as changed

from brokers.clients.kafka import AIOKafkaConsumer
from brokers.kafka._cluster import Cluster
from brokers.kafka._config import KafkaConfig
from brokers.native._kafka_group import REBALANCE_SECONDS, Member, end_consumer
from brokers.native._kafka_inspection import Inspection
from brokers.native._kafka_producer import BYTES, Producer, asked, client_options, find_topic
from brokers.native._kafka_settings import NativeKafkaSettings, read
from brokers.native._topics import NativeTopics
from brokers.shared.limits import refusal
from brokers.shared.outage import Outage
from mesh.address import Address, encode_token
from mesh.broker import Backlog, Delivery, Features, Message, Settler, SubscribeOptions
from mesh.errors import BadArgumentError, BrokerError, BrokerUnavailableError, FeatureNotSupportedError, MeshError
from mesh.registry import needs
from mesh.resources.component import Component
from mesh.values import parse_bool

if TYPE_CHECKING:
    from brokers.native._avro import Avro

__all__ = ["KafkaTopics"]

logger = logging.getLogger("brokers.kafka")

LOOK_SECONDS = 2.0
DELETE_SECONDS = 2.0
NEW_TOPICS_SECONDS = 3.0  # How late a pattern finds a topic; it reads that from its beginning.
NO_LIMIT_MS = 24 * 3600 * 1000  # Between two polls: how long an application takes is its own affair.
STRATEGIES = {
    "range": RangePartitionAssignor,
    "roundrobin": RoundRobinPartitionAssignor,
    "sticky": StickyPartitionAssignor,
}
# The client tells of each failure several times a second; that a connection is lost, and back, is said once, here.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class KafkaTopics(Inspection, NativeTopics):
    """Topics of a Kafka cluster."""

    title = "Events in topics of Apache Kafka."
    tested = "Apache Kafka 3.9"
    settings: ClassVar[type[Any]] = NativeKafkaSettings
    group_settings = ("consumerGroup", "consumerID")
    layouts: ClassVar[Mapping[str, str]] = {"mesh": "brokers.kafka:KafkaBroker"}
    features = Features(
        name="kafka",
        event_prefix="ce_",
        durable=True,
        shared=True,
        ordering=True,
        delay=True,
        wildcard=True,
        ephemeral=True,
        attempts=False,
        retention=False,
        reassigns=False,
        frames=False,
        layout="native",
        publish_metadata=("*",),
        subscribe_metadata=("ordered", "valueSchemaType"),
    )

    def __init__(self, settings: NativeKafkaSettings, config: KafkaConfig) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._config = config
        self.features = replace(
            self.features, max_message_bytes=config.max_message_bytes, retention=settings.initial == "oldest"
        )
        self._cluster = Cluster(config)
        self._outage = Outage(logger, "Kafka", config.shown)
        self._producer: Producer | None = None
        self._avro: Avro | None = None

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = cls(*read(component))
        made._component = component
        return made

    async def _enter(self) -> None:
        settings: NativeKafkaSettings = self._settings
        if settings.registry:
            self._avro = _avro(settings)
        if not self._config.brokers:
            raise BrokerUnavailableError("no Kafka broker is named")
        self._cluster = Cluster(self._config)
        self._stack.push_async_callback(self._cluster.close)
        await self._cluster.open()
        await self.check()  # Over a connection that stays.
        producer = Producer(self._settings, self._config, self._cluster, self._outage)
        self._stack.push_async_callback(producer.close)
        await producer.connected()
        self._producer = producer
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        watching = tasks.create_task(self._watch(), name="kafka-watch")
        self._stack.callback(watching.cancel)

    async def check(self) -> None:
        """Ask some broker who else there is."""
        await self._cluster.refresh()

    async def _watch(self) -> None:
        """Tell of connections that are lost, and back: the client keeps that to itself."""
        while True:
            try:
                await self.check()
            except BrokerError as error:
                self._outage.lost(error.__cause__ or error)
            else:
                self._outage.back()
            await asyncio.sleep(LOOK_SECONDS)

    async def publish(self, address: Address, message: Message) -> None:
        """Store a record; return once all replicas in sync have it."""
        producer = self._sure()
        message = await self._in_avro(address.label, message)
        await producer.confirmed(await producer.send(address.label, message), message)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several, in order."""
        made: list[Message | BrokerError] = []
        for message in messages:
            try:
                made.append(await self._in_avro(address.label, message))
            except MeshError as error:
                made.append(refusal(error))
        sent = await self._sure().send_many(address.label, [each for each in made if isinstance(each, Message)])
        rest = iter(sent)
        return [each if isinstance(each, BrokerError) else next(rest) for each in made]

    async def _in_avro(self, topic: str, message: Message) -> Message:
        kind = asked(message, "valueSchemaType")
        avro = None if kind is None else self._avro_of(kind)
        return message if avro is None else changed(message, body=await avro.encode(topic, message.body))

    def _avro_of(self, kind: str | None) -> Avro | None:
        """Give what reads and writes values of a kind; None for those that are as they are."""
        if kind is None or kind.strip().lower() in ("", "none"):
            return None
        if kind.strip().lower() != "avro":
            raise BadArgumentError(f"valueSchemaType is Avro or None, not {kind[:40]!r}")
        if self._avro is None:
            raise BadArgumentError("valueSchemaType: Avro needs the component's setting schemaRegistryURL")
        return self._avro

    def _sure(self) -> Producer:
        if self._producer is None:
            raise BrokerUnavailableError("not connected to Kafka")
        return self._producer

    # In

    def _joined(self, address: Address, options: SubscribeOptions) -> AbstractAsyncContextManager[Member]:
        return self._member(address, options)

    @asynccontextmanager
    async def _member(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Member]:
        settings: NativeKafkaSettings = self._settings
        metadata = {name.lower(): text for name, text in options.metadata.items()}
        ordered = options.ordered or parse_bool(metadata.get("ordered", "true"))
        if not address.is_pattern:
            await find_topic(self._cluster, address.label)
        if options.dead_letters is not None:
            await find_topic(self._cluster, options.dead_letters.label)
        addresses: dict[str, Address] = {}

        avro = self._avro_of(metadata.get("valueschematype"))

        async def deliver(record: Any, attempt: int, settler: Settler) -> Delivery | None:
            body: bytes = record.value or b""
            if avro is not None:
                try:
                    body = await avro.decode(body)
                except BrokerUnavailableError as error:
                    logger.warning("records of %s wait for their schema: %s", record.topic, error)
                    return None
            where = addresses.get(record.topic)
            if where is None:
                where = addresses[record.topic] = _address_of(address, record.topic)
            return Delivery(_message_of(record, body, escape=settings.escape), where, attempt, settler)

        def make(listener: ConsumerRebalanceListener) -> AIOKafkaConsumer:
            return self._consumer(address, options, listener)

        other = f"group {options.group!r} has members that do not give out partitions by {settings.strategy!r}"
        differs = f"{other}, as consumerGroupRebalanceStrategy says here"
        member = Member(
            *(make, deliver, self._cluster.errors, self._outage, differs),
            ordered=ordered,
            keeps=not options.ephemeral,
            latest=settings.initial == "newest",
            joins=not options.ephemeral and await self._has_members(options.group),
        )
        try:
            async with member.joined():
                yield member
        finally:
            if options.ephemeral:
                await self._delete(options.group)

    async def _has_members(self, group: str) -> bool:
        found = await self._cluster.ask(FindCoordinatorRequest(group, 0))
        if found.error_code != 0:  # There are no groups at all yet.
            return False
        response = await self._cluster.call(found.coordinator_id, DescribeGroupsRequest([group]))
        return response.groups[0][2] not in ("", "Dead", "Empty")

    async def _delete(self, group: str) -> None:
        """Delete a group without members; where that fails, brokers do it after a while, as nothing is committed."""
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(DELETE_SECONDS):
                found = await self._cluster.ask(FindCoordinatorRequest(group, 0))
                await self._cluster.call(found.coordinator_id, DeleteGroupsRequest([group]))

    def _consumer(
        self, address: Address, options: SubscribeOptions, listener: ConsumerRebalanceListener
    ) -> AIOKafkaConsumer:
        settings: NativeKafkaSettings = self._settings
        session = self._config.session_timeout
        consumer = AIOKafkaConsumer(
            **client_options(self._config),
            group_id=options.group,
            enable_auto_commit=False,
            # Also where it goes on when what it has committed was let go of; `Member` sees where a group begins.
            auto_offset_reset="latest" if options.ephemeral else "earliest",
            isolation_level="read_committed",
            session_timeout_ms=int(session * 1000),
            heartbeat_interval_ms=int(min(settings.heartbeat, session / 3) * 1000),
            rebalance_timeout_ms=int(REBALANCE_SECONDS * 1000),
            max_poll_interval_ms=NO_LIMIT_MS,
            metadata_max_age_ms=int((NEW_TOPICS_SECONDS if address.is_pattern else 60.0) * 1000),
            partition_assignment_strategy=(STRATEGIES[settings.strategy],),
        )
        if address.is_pattern:
            consumer.subscribe(pattern=_expression(address.label), listener=listener)
        else:
            consumer.subscribe([address.label], listener=listener)
        return consumer

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Compare what the group has committed with the ends of the topic's partitions."""
        if address.is_pattern:
            raise FeatureNotSupportedError("kafka", "to measure what a pattern has before it")
        topic, cluster = address.label, self._cluster
        await cluster.refresh(topic)
        consumer = AIOKafkaConsumer(**client_options(self._config), group_id=options.group, enable_auto_commit=False)
        try:
            with cluster.errors:
                async with asyncio.timeout(self._config.request_timeout):
                    await consumer.start()
                    parts = [TopicPartition(topic, number) for number in range(cluster.partitions(topic))]
                    ends = await consumer.end_offsets(parts)
                    begins = {at: await consumer.committed(at) for at in parts}
        finally:
            await end_consumer(consumer)
        return Backlog(sum(max(0, ends[at] - begin) for at, begin in begins.items() if begin is not None))


def _avro(settings: NativeKafkaSettings) -> Avro:
    try:
        from brokers.native._avro import Avro
    except ModuleNotFoundError as error:
        raise needs("schemaRegistryURL", error.name or "") from error
    auth = (settings.registry_key, settings.registry_secret) if settings.registry_key else None
    return Avro(
        settings.registry,
        auth,
        keeps=settings.caching,
        latest_for=settings.latest_for,
        typed=settings.avro_json,
    )


def _expression(pattern: str) -> str:
    """Write a pattern of dotted tokens as a regular expression."""
    tokens = {"*": "[^.]*", ">": ".*"}
    return r"\.".join(tokens.get(token) or re.escape(token) for token in pattern.split(".")) + r"\Z"


def _address_of(address: Address, topic: str) -> Address:
    if not address.is_pattern:
        return address
    return replace(address, name=".".join(map(encode_token, topic.split("."))), label=topic)


def _message_of(record: Any, body: bytes, *, escape: bool) -> Message:
    headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    told = {
        "__topic": record.topic,
        "__partition": str(record.partition),
        "__offset": str(record.offset),
        "__timestamp": str(record.timestamp),
    }
    key = None
    if record.key is not None:
        key, told["__key"] = record.key.decode(errors=BYTES), record.key.decode(errors="replace")
    told |= {name: quote_plus(text) for name, text in headers.items()} if escape else headers
    identity = f"{record.topic}/{record.partition}/{record.offset}"
    return Message(headers, body, key, identity, told)
