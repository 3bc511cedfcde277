"""Writes records, by the client's own producer."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence, Set
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from aiokafka import TopicPartition
from aiokafka import errors as kafka
from aiokafka.conn import CloseReason
from aiokafka.protocol.metadata import MetadataRequest

from brokers.clients.kafka import AIOKafkaProducer
from brokers.kafka._cluster import Cluster, error_of
from brokers.kafka._config import KafkaConfig
from brokers.native._kafka_settings import NativeKafkaSettings
from brokers.shared.limits import AT_ONCE, check_size, refusal
from brokers.shared.outage import Outage
from mesh.broker import Message
from mesh.errors import (
    BadArgumentError,
    BrokerError,
    BrokerUnavailableError,
    MeshError,
    MessageTooLargeError,
    PublishRejectedError,
)
from mesh.values import parse_whole

__all__ = ["BYTES", "Producer", "asked", "client_options", "find_topic", "partition_of"]

TOPIC_SECONDS = 3.0  # In which brokers that make topics have made one.
STOP_SECONDS = 2.0
BATCH_BYTES = 128 * 1024  # What waits while a request is under way goes with the next one.
BYTES = "surrogateescape"  # How a key that is no text is kept in one, so that its record goes on with the same.
NO_LEADER = -1  # As the client says it.
LETTER = "mesh-dead-letter-topic"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")


def asked(message: Message, name: str) -> str | None:
    """Give what a publisher asks; of a dead letter nobody does, as its metadata is what was told of the event."""
    return None if LETTER in message.headers else message.metadata.get(name)


def client_options(config: KafkaConfig) -> dict[str, Any]:
    """Give the client's options of all its connections."""
    hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in config.brokers]
    timeout = {"request_timeout_ms": int(config.request_timeout * 1000)}
    return config.connection_options() | timeout | {"bootstrap_servers": hosts}


def partition_of(key: bytes, count: int) -> int:
    """Choose the partition of a key as Dapr does, so that the records of both follow each other.

    Source: FNV-1a of 32 bits, read as a signed number; its remainder's amount.
    """
    value = 0x811C9DC5
    for byte in key:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return (value if value < 1 << 31 else (1 << 32) - value) % count


async def find_topic(cluster: Cluster, topic: str) -> None:
    """Return once a topic is there: to ask for it has brokers make it that do so.

    Raises:
        PublishRejectedError: It is not, or not for us.
        BrokerUnavailableError: Nobody answers.
    """
    if not _NAME.match(topic) or topic in (".", ".."):
        raise PublishRejectedError(f"Kafka has no topics like {topic[:80]!r}: letters, digits, '.', '_' and '-'")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TOPIC_SECONDS
    while True:
        try:
            response = await cluster.ask(MetadataRequest([topic], allow_auto_topic_creation=True))
        except BrokerUnavailableError:  # A broker ends connections whose token has ended; another one is made.
            if loop.time() > deadline:
                raise
            await cluster.pause()
            continue
        error = next((error_of(code) for code, name, *_ in response.topics if name == topic), None)
        if error is None:
            return
        if not error.retriable or loop.time() > deadline:
            missing = error is kafka.UnknownTopicOrPartitionError
            why = "there is none, and the brokers make none" if missing else error.__name__
            raise PublishRejectedError(f"Kafka at {cluster.shown}: topic {topic!r}: {why}")
        await asyncio.sleep(0.05)


class _Record(NamedTuple):
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


class Producer:
    """Writes records; what was under way when a connection broke is sent again, and stored once."""

    def __init__(self, settings: NativeKafkaSettings, config: KafkaConfig, cluster: Cluster, outage: Outage) -> None:
        """Prepare; `connected` connects."""
        self._settings, self._config, self._cluster, self._outage = settings, config, cluster, outage
        self._starting, self._closed = asyncio.Lock(), False
        self._client: AIOKafkaProducer | None = None

    async def connected(self) -> AIOKafkaProducer:
        """Give the client; another one, once one cannot go on.

        Raises:
            BrokerUnavailableError: Nobody lets it in.
        """
        async with self._starting:
            if self._closed:
                raise BrokerUnavailableError(f"the connection to Kafka at {self._config.shown} is closed")
            if self._client is not None and not self._client._sender.sender_task.done():
                return self._client
            await self._end()
            compression = self._settings.compression
            made = AIOKafkaProducer(
                **client_options(self._config),
                acks="all",
                enable_idempotence=True,
                max_batch_size=BATCH_BYTES,
                compression_type=None if compression == "none" else compression,
                max_request_size=2 * self._config.max_message_bytes + 64 * 1024,  # We count otherwise, and before.
            )
            try:
                with self._cluster.errors:
                    async with asyncio.timeout(self._config.connect_wait):
                        await made.start()
            except BaseException:
                await _end(made)
                raise
            self._client = made
            return made

    async def close(self) -> None:
        """Close."""
        self._closed = True
        await self._end()

    async def _end(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _end(client)

    async def _knowing(self, topic: str) -> tuple[AIOKafkaProducer, Set[int]]:
        """Give the client, which knows the topic then, and its partitions; through an outage that waits."""
        ready = self._client
        if ready is not None and not ready._sender.sender_task.done():
            partitions = ready.client.cluster.partitions_for_topic(topic)
            if partitions is not None:
                return ready, partitions
        while True:
            try:
                client = await self.connected()
                partitions = client.client.cluster.partitions_for_topic(topic)
                if partitions is None:
                    await find_topic(self._cluster, topic)
                    partitions = await self._learn(client, topic)
                return client, partitions
            except BrokerUnavailableError as error:
                if self._closed:
                    raise
                self._outage.lost(error.__cause__ or error)
                await self._cluster.pause()

    async def _learn(self, client: AIOKafkaProducer, topic: str) -> Set[int]:
        try:
            with self._cluster.errors:
                found: Set[int] = await client.partitions_for(topic)
                return found
        except BrokerUnavailableError:
            for connection in client.client._conns.values():  # One may be silent, and is asked again and again.
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise

    async def send(self, topic: str, message: Message) -> asyncio.Future[Any]:
        """Have a record sent, in the order of calls; what it gives is the brokers' word.

        Raises:
            BadArgumentError: There is no such partition.
            BrokerError: It cannot be sent.
        """
        record = self._record(message)
        while True:
            client, partitions = await self._knowing(topic)
            number = _partition(client, topic, partitions, message, record.key)
            with self._cluster.errors, suppress(kafka.KafkaTimeoutError):  # It has no room, and waits on.
                sent: asyncio.Future[Any] = await client.send(
                    topic, record.value, key=record.key, partition=number, headers=record.headers
                )
                return sent

    def _record(self, message: Message) -> _Record:
        """Make a record.

        Raises:
            MessageTooLargeError: It would be.
        """
        headers = {name: text for name, text in message.metadata.items() if not self._excludes(name)}
        if self._settings.escape:
            headers = {name: quote_plus(text) for name, text in headers.items()}
        headers |= message.headers
        check_size(message.body, headers, self._config.max_message_bytes)
        pairs = [(name, text.encode()) for name, text in headers.items()]
        return _Record(None if message.key is None else message.key.encode(errors=BYTES), message.body, pairs)

    def _excludes(self, name: str) -> bool:
        excluded = self._settings.excluded
        return excluded is not None and excluded.search(name) is not None

    async def confirmed(self, sent: asyncio.Future[Any], message: Message) -> None:
        """Wait until all replicas in sync have a record.

        Raises:
            BrokerError: They do not.
        """
        try:
            with self._cluster.errors:
                await sent
        except BrokerUnavailableError as error:
            cause = error.__cause__
            if isinstance(cause, kafka.MessageSizeTooLargeError | kafka.RecordListTooLargeError):
                raise MessageTooLargeError(len(message.body), self._config.max_message_bytes) from cause
            if isinstance(cause, kafka.BrokerResponseError) and not cause.retriable:
                raise PublishRejectedError(f"Kafka at {self._config.shown} does not take it: {cause!r}") from cause
            raise

    async def send_many(self, topic: str, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Write several, in order, also those without a key; give an error or None for each."""
        usual = random.random()  # noqa: S311 - it spreads load
        results: list[BrokerError | None] = []
        for begin in range(0, len(messages), AT_ONCE):
            some = messages[begin : begin + AT_ONCE]
            sent: list[Any] = [None] * len(some)  # Futures, of which those of one batch have one, or errors of ours.
            try:
                await self._send_some(topic, some, usual, sent)
                for message, each in zip(some, sent, strict=True):
                    results.append(each if isinstance(each, BrokerError) else await self._outcome(each, message))
            finally:
                for each in sent:
                    if asyncio.isfuture(each) and not each.cancel() and not each.cancelled():
                        each.exception()  # Nobody asks for those that are left.
        return results

    async def _send_some(self, topic: str, messages: Sequence[Message], usual: float, sent: list[Any]) -> None:
        """Have records sent in batches of ours: what the client does for each by itself takes three times as long."""
        open_: dict[int, tuple[Any, list[int]]] = {}  # A batch of each partition, and whose records it has.
        for index, message in enumerate(messages):
            try:
                record = self._record(message)
                client, partitions = await self._knowing(topic)
                number = _partition(client, topic, partitions, message, record.key, usual)
            except MeshError as error:
                sent[index] = refusal(error)
                continue
            values = {"timestamp": None, "key": record.key, "value": record.value, "headers": record.headers}
            batch, indices = open_.get(number, (None, []))
            if batch is None or batch.append(**values) is None:
                if batch is not None:  # It is full.
                    await self._submit(topic, number, batch, indices, sent)
                batch, indices = open_[number] = client.create_batch(), []
                batch.append(**values)  # The first is taken however large it is.
            indices.append(index)
        for number, (batch, indices) in open_.items():
            await self._submit(topic, number, batch, indices, sent)

    async def _submit(self, topic: str, number: int, batch: Any, indices: list[int], sent: list[Any]) -> None:
        outcome: asyncio.Future[Any] | BrokerError | None = None
        while outcome is None:
            try:
                client, _ = await self._knowing(topic)
                with self._cluster.errors, suppress(kafka.KafkaTimeoutError):  # There is no room, and it waits on.
                    outcome = await client.send_batch(batch, topic, partition=number)
            except BrokerError as error:
                outcome = error
        for index in indices:
            sent[index] = outcome

    async def _outcome(self, sent: asyncio.Future[Any], message: Message) -> BrokerError | None:
        try:
            await self.confirmed(sent, message)
        except BrokerError as error:
            return error
        return None


def _partition(
    client: AIOKafkaProducer, topic: str, partitions: Set[int], message: Message, key: bytes | None, usual: float = -1.0
) -> int:
    """Choose a record's partition.

    Args:
        client: That knows the topic.
        topic: Where to.
        partitions: The topic's.
        message: Whose publisher may ask for one.
        key: Of the record.
        usual: Which one it is without a key, as a share of all; negative = any that can take it now.

    Raises:
        BadArgumentError: There is none like the one asked for.
    """
    text = asked(message, "partitionNumber")
    if text is not None:
        try:
            number = parse_whole(text)
        except ValueError as error:
            raise BadArgumentError(f"partitionNumber is {error}") from None
        if number not in partitions:
            raise BadArgumentError(f"partitionNumber: {topic} has no partition {number}")
        return number
    if key is not None:
        return partition_of(key, len(partitions))
    if usual >= 0:
        return int(usual * len(partitions))
    number = int(random.random() * len(partitions))  # noqa: S311 - it spreads load
    if client.client.cluster.leader_for_partition(TopicPartition(topic, number)) == NO_LEADER:
        available = client.client.cluster.available_partitions_for_topic(topic)
        number = random.choice([*(available or partitions)])  # noqa: S311
    return number


async def _end(client: AIOKafkaProducer) -> None:
    """Close; without an answer, what nobody waits for any more is given up."""
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await client.stop()
    except (kafka.KafkaError, OSError, TimeoutError):
        client._message_accumulator.fail_all(kafka.ProducerClosed())
        await client.client.close()
        with suppress(kafka.KafkaError):
            await client._sender.close()
