"""aiokafka: an idempotent producer with acks=all, a consumer group that commits its positions."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Self
from urllib.parse import parse_qs, urlsplit

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError

from bench.native import IN_FLIGHT, Handle, Native, Take

WAIT_MS = 200
COMMIT_EVERY = 1.0


class AIOKafka(Native):
    """A task for each record; once a second, what lies below the first record that is not done is committed."""

    title = "aiokafka"

    async def __aenter__(self) -> Self:
        url = urlsplit(self.url)
        self._servers = url.netloc
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        try:
            partitions = int(parse_qs(url.query)["partitions"][0])
            found = await admin.create_topics([NewTopic(self.topic, partitions, 1)])
            for _, code, _ in found.topic_errors:
                if code not in (0, TopicAlreadyExistsError.errno):
                    raise RuntimeError(f"Kafka refused to make {self.topic}: error {code}")
        finally:
            await admin.close()
        self._producer = AIOKafkaProducer(bootstrap_servers=self._servers, acks="all", enable_idempotence=True)
        await self._producer.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._producer.stop()

    async def publish(self, headers: Mapping[str, str], body: bytes) -> None:
        pairs = [(name, value.encode()) for name, value in headers.items()]
        await self._producer.send_and_wait(self.topic, body, headers=pairs)

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            self.topic,
            bootstrap_servers=self._servers,
            group_id=self.topic,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            while not consumer.assignment():
                await asyncio.sleep(0.005)
            self.begun.set()
            yield consumer
        finally:
            await consumer.stop()

    async def read(self, take: Take, handle: Handle) -> None:
        open_records: defaultdict[TopicPartition, dict[int, None]] = defaultdict(dict)  # In the order of offsets.
        read_up_to: dict[TopicPartition, int] = {}

        def done_up_to() -> dict[TopicPartition, int]:
            return {each: next(iter(open_records[each]), top) for each, top in read_up_to.items()}

        async def done(partition: TopicPartition, offset: int) -> None:
            del open_records[partition][offset]

        async with self._consumer() as consumer:
            committed = time.monotonic()
            while not self.over.is_set():
                found = await consumer.getmany(timeout_ms=WAIT_MS, max_records=IN_FLIGHT)
                for partition, records in found.items():
                    for record in records:
                        offset = record.offset
                        open_records[partition][offset] = None
                        headers = {name: value.decode() for name, value in record.headers}
                        await take(headers, record.value, partial(done, partition, offset))
                        read_up_to[partition] = offset + 1
                if read_up_to and time.monotonic() - committed > COMMIT_EVERY:
                    await consumer.commit(done_up_to())
                    committed = time.monotonic()
            while any(open_records.values()):
                await asyncio.sleep(0.005)
            await consumer.commit(done_up_to())


class AIOKafkaBare(AIOKafka):
    """One record after the other, headers not looked at, from batches of any size."""

    title = "aiokafka, bare getmany"

    async def read(self, take: Take, handle: Handle) -> None:
        async with self._consumer() as consumer:
            committed = time.monotonic()
            while not self.over.is_set():
                for records in (await consumer.getmany(timeout_ms=WAIT_MS)).values():
                    for record in records:
                        await handle({}, record.value)
                if time.monotonic() - committed > COMMIT_EVERY:
                    await consumer.commit()
                    committed = time.monotonic()
            await consumer.commit()
