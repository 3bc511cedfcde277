"""Writes records, by the client's own producer."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote_plus

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


def _choose(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    if key is None:
        return random.choice(available or partitions)  # noqa: S311 - it spreads load
    return partition_of(key, len(partitions))


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
                partitioner=_choose,
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

    async def _knowing(self, topic: str) -> AIOKafkaProducer:
        """Give the client, which knows the topic then; through an outage that waits."""
        ready = self._client
        known = ready is not None and ready.client.cluster.partitions_for_topic(topic) is not None
        if ready is not None and known and not ready._sender.sender_task.done():
            return ready
        while True:
            try:
                client = await self.connected()
                if client.client.cluster.partitions_for_topic(topic) is None:
                    await find_topic(self._cluster, topic)
                    await self._learn(client, topic)
                return client
            except BrokerUnavailableError as error:
                if self._closed:
                    raise
                self._outage.lost(error.__cause__ or error)
                await self._cluster.pause()

    async def _learn(self, client: AIOKafkaProducer, topic: str) -> None:
        try:
            with self._cluster.errors:
                await client.partitions_for(topic)
        except BrokerUnavailableError:
            for connection in client.client._conns.values():  # One may be silent, and is asked again and again.
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise

    async def send(self, topic: str, message: Message, usual: float | None = None) -> asyncio.Future[Any]:
        """Have a record sent, in the order of calls; what it gives is the brokers' word.

        Args:
            topic: Where.
            message: What.
            usual: Which partition it goes to if it has no key, as a share of all; None = any.

        Raises:
            BadArgumentError: There is no such partition.
            BrokerError: It cannot be sent.
        """
        headers = {name: text for name, text in message.metadata.items() if not self._excludes(name)}
        if self._settings.escape:
            headers = {name: quote_plus(text) for name, text in headers.items()}
        headers |= message.headers
        body = message.body
        check_size(body, headers, self._config.max_message_bytes)
        pairs = [(name, text.encode()) for name, text in headers.items()]
        key = None if message.key is None else message.key.encode(errors=BYTES)
        number = asked(message, "partitionNumber")
        while True:
            client = await self._knowing(topic)
            partition = None if number is None else _partition(client, topic, number)
            if partition is None and key is None and usual is not None:
                partition = int(usual * len(client.client.cluster.partitions_for_topic(topic) or (0,)))
            with self._cluster.errors, suppress(kafka.KafkaTimeoutError):  # It has no room, and waits on.
                sent: asyncio.Future[Any] = await client.send(topic, body, key=key, partition=partition, headers=pairs)
                return sent

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
            sent: list[asyncio.Future[Any] | BrokerError] = []
            try:
                for message in some:
                    sent.append(await self._try_send(topic, message, usual))  # noqa: PERF401 - those sent are kept anyhow
                for message, each in zip(some, sent, strict=True):
                    results.append(each if isinstance(each, BrokerError) else await self._outcome(each, message))
            finally:
                for each in sent:
                    if not isinstance(each, BrokerError):
                        each.cancel()  # Nobody asks for those that are left.
        return results

    async def _try_send(self, topic: str, message: Message, usual: float) -> asyncio.Future[Any] | BrokerError:
        try:
            return await self.send(topic, message, usual)
        except MeshError as error:
            return refusal(error)

    async def _outcome(self, sent: asyncio.Future[Any], message: Message) -> BrokerError | None:
        try:
            await self.confirmed(sent, message)
        except BrokerError as error:
            return error
        return None


def _partition(client: AIOKafkaProducer, topic: str, text: str) -> int:
    try:
        number = parse_whole(text)
    except ValueError as error:
        raise BadArgumentError(f"partitionNumber is {error}") from None
    if number not in (client.client.cluster.partitions_for_topic(topic) or ()):
        raise BadArgumentError(f"partitionNumber: {topic} has no partition {number}")
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
