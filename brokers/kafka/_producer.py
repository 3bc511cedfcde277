"""Stores messages: batches by partition, idempotent, sent again until the broker has said what came of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from aiokafka import errors as kafka
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from brokers.kafka._cluster import Cluster, error_of
from brokers.kafka._records import new_batch
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError

__all__ = ["Headers", "Producer"]

logger = logging.getLogger("brokers.kafka")

MAX_WAITING_BYTES = 32 * 1024 * 1024
UNKNOWN_TOPIC_WAIT = 10.0
_DONE = (kafka.DuplicateSequenceNumber,)
_NEW_IDENTITY = (
    kafka.OutOfOrderSequenceNumber,
    kafka.UnknownProducerId,
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
)

Headers = list[tuple[str, bytes]]


class _Batch:
    __slots__ = ("builder", "count", "data", "futures", "size", "unknown_since")

    def __init__(self) -> None:
        self.builder = new_batch()
        self.count = 0
        self.size = 0
        self.data: Any = None
        self.futures: list[asyncio.Future[None]] = []
        self.unknown_since: float | None = None


class _Lane:
    """One partition: batches in order, and this producer's identity towards it."""

    __slots__ = ("batches", "identity", "partition", "sequence", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.batches: deque[_Batch] = deque()
        self.identity: tuple[int, int] | None = None
        self.sequence = 0


class Producer:
    """Sends to every leader at once, one request after the other to each: meanwhile the next batch fills."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._purpose = cluster.purpose("produce")
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._waiting: dict[_Lane, None] = {}
        self._busy: set[_Lane] = set()
        self._busy_leaders: set[int] = set()
        self._identity: tuple[int, int] | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._bytes = 0
        self._closed = False

    def add(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Headers
    ) -> asyncio.Future[None]:
        """Put a message into a batch; the future tells what came of it."""
        if self._closed:
            raise self._cluster.unavailable("closed")
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(topic, partition)
        batch = lane.batches[-1] if lane.batches else None
        now = int(time.time() * 1000)
        if (
            batch is None
            or batch.data is not None
            or batch.builder.append(batch.count, now, key, value, headers) is None
        ):
            batch = _Batch()
            batch.builder.append(0, now, key, value, headers)
            lane.batches.append(batch)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        batch.futures.append(future)
        batch.count += 1
        batch.size += len(value)
        self._bytes += len(value)
        if self._bytes > MAX_WAITING_BYTES:
            self._room.clear()
        if lane not in self._waiting:
            self._waiting[lane] = None
            self._wake.set()
        return future

    async def room(self) -> None:
        """Wait until there is room."""
        while not self._room.is_set() and not self._closed:
            await self._room.wait()

    async def run(self) -> None:
        """Send what waits, for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    await self._start(tasks)
        finally:
            self.close()

    def close(self) -> None:
        """Fail what waits."""
        self._closed = True
        for lane in self._lanes.values():
            for batch in lane.batches:
                self._settle(batch, self._cluster.unavailable("closed"))
            lane.batches.clear()
        self._room.set()

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        by_leader: dict[int, list[_Lane]] = {}
        for lane in [lane for lane in self._waiting if lane not in self._busy]:
            leader = self._cluster.leader(lane.topic, lane.partition)
            if leader is None:
                leader = -1
            if leader not in self._busy_leaders:
                by_leader.setdefault(leader, []).append(lane)
        for leader, lanes in by_leader.items():
            self._busy_leaders.add(leader)
            self._busy.update(lanes)
            tasks.create_task(self._send(leader, lanes), name="kafka-produce")

    async def _send(self, leader: int, lanes: list[_Lane]) -> None:
        again = True
        try:
            again = await self._request(leader, lanes)
        except BrokerUnavailableError:
            pass
        finally:
            if again:
                await self._find_leaders(lanes)
            self._busy_leaders.discard(leader)
            self._busy.difference_update(lanes)
            for lane in lanes:
                if not lane.batches:
                    self._waiting.pop(lane, None)
            if self._waiting:
                self._wake.set()

    async def _find_leaders(self, lanes: list[_Lane]) -> None:
        await self._cluster.pause()
        try:
            for topic in {lane.topic for lane in lanes}:
                await self._cluster.refresh(topic)
        except BrokerUnavailableError:
            return

    async def _new_identity(self) -> tuple[int, int]:
        response = await self._cluster.ask(InitProducerIdRequest(None, 60_000))
        if (failure := error_of(response.error_code)) is not None:
            raise self._cluster.unavailable(str(failure()))
        return response.producer_id, response.producer_epoch

    async def _request(self, leader: int, lanes: list[_Lane]) -> bool:
        """Send the first batch of each partition; tell whether something must be sent again."""
        if leader < 0:
            return True
        sent: dict[tuple[str, int], tuple[_Lane, _Batch]] = {}
        topics: dict[str, list[tuple[int, Any]]] = {}
        if self._identity is None:
            self._identity = await self._new_identity()
        for lane in lanes:
            batch = lane.batches[0]
            if lane.identity is None:
                lane.identity, lane.sequence = self._identity, 0
            if batch.data is None:
                batch.builder.set_producer_state(*lane.identity, lane.sequence)
                lane.sequence += batch.count
                batch.data = batch.builder.build()
            sent[lane.topic, lane.partition] = lane, batch
            topics.setdefault(lane.topic, []).append((lane.partition, batch.data))
        timeout = int(self._cluster.config.request_timeout * 1000)
        response = await self._cluster.call(
            leader, ProduceRequest(None, -1, timeout, list(topics.items())), self._purpose
        )
        again = False
        for topic, partitions in response.topics:
            for partition, code, *rest in partitions:
                lane, batch = sent[topic, partition]
                again |= await self._note(lane, batch, code, rest)
        return again

    async def _note(self, lane: _Lane, batch: _Batch, code: int, rest: list[Any]) -> bool:
        failure = error_of(code)
        if failure is None or issubclass(failure, _DONE):
            lane.batches.popleft()
            self._settle(batch, None)
            return False
        if issubclass(failure, _NEW_IDENTITY):
            logger.warning("%s of %s-%s: sending again", failure.__name__, lane.topic, lane.partition)
            await self._renumber(lane)
            return True
        if failure is kafka.UnknownTopicOrPartitionError:
            now = time.monotonic()
            batch.unknown_since = batch.unknown_since or now
            if now - batch.unknown_since < UNKNOWN_TOPIC_WAIT:
                return True
        elif failure.retriable:
            return True
        lane.batches.popleft()
        self._settle(
            batch, PublishRejectedError(f"Kafka refused to store it: {failure.__name__} {failure.description}")
        )
        await self._renumber(lane)  # Its sequence numbers are missing now.
        return bool(lane.batches)

    async def _renumber(self, lane: _Lane) -> None:
        """Take a new identity for a partition; what was built with the old one is built anew."""
        self._identity = None
        identity = await self._new_identity()
        lane.identity, lane.sequence = identity, 0
        for batch in lane.batches:
            if batch.data is not None:
                batch.data = _rebuilt(batch.data, identity, lane.sequence)
                lane.sequence += batch.count

    def _settle(self, batch: _Batch, error: BrokerError | None) -> None:
        self._bytes -= batch.size
        if self._bytes <= MAX_WAITING_BYTES:
            self._room.set()
        for future in batch.futures:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)
                    future.exception()  # Whoever waited may be gone.


def _rebuilt(data: Any, identity: tuple[int, int], sequence: int) -> Any:
    """Write a batch again under another identity."""
    from brokers.kafka._records import records

    builder = new_batch(len(data) + 1024)
    found, _ = records(bytes(data), 0)
    for number, record in enumerate(found):
        builder.append(number, record.timestamp, record.key, record.value, record.headers)
    builder.set_producer_state(*identity, sequence)
    return builder.build()
