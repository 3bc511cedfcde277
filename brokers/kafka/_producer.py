"""Stores messages: batches by partition, idempotent, sent again until the broker has said what came of them.

Why not aiokafka's own producer: docs/adr/0021-kafka-client.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
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
MAX_SEQUENCE = 0x7FFFFFFF
UNKNOWN_TOPIC_WAIT = 10.0
_NEW_IDENTITY = (
    kafka.OutOfOrderSequenceNumber,
    kafka.UnknownProducerId,
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
)

Headers = list[tuple[str, bytes]]


class _Batch:
    __slots__ = ("builder", "closed", "futures", "size", "unknown_since")

    def __init__(self) -> None:
        self.builder = new_batch()
        self.size = 0
        self.closed = False
        self.futures: list[asyncio.Future[int]] = []
        self.unknown_since: float | None = None


class _Lane:
    """One partition: batches in order, and this producer's identity towards it.

    Attributes:
        sequence: The number of the first message that is not known to be stored.
    """

    __slots__ = ("batches", "identity", "partition", "sequence", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.batches: deque[_Batch] = deque()
        self.identity: tuple[int, int] | None = None
        self.sequence = 0

    def next(self, identity: tuple[int, int]) -> Any:
        """Write the first batch; a repetition is the same, unless the identity was lost."""
        if self.identity is None:
            self.identity, self.sequence = identity, 0
        batch = self.batches[0]
        batch.closed = True
        batch.builder.set_producer_state(*self.identity, self.sequence)
        return batch.builder.build()


class Producer:
    """Sends to every leader at once, one request after the other to each: meanwhile the next batch fills."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._purpose = cluster.purpose("produce")
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._waiting: dict[_Lane, None] = {}
        self._busy: set[_Lane] = set()
        self._busy_leaders: set[int | None] = set()
        self._identity: tuple[int, int] | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._bytes = 0
        self._closed = False

    def add(self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Headers) -> asyncio.Future[int]:
        """Put a message into a batch; the future tells its offset, -1 where an earlier try has stored it."""
        if self._closed:
            raise self._cluster.unavailable("closed")
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(topic, partition)
        batch = lane.batches[-1] if lane.batches else None
        now = int(time.time() * 1000)
        added = None
        if batch is not None and not batch.closed:
            added = batch.builder.append(len(batch.futures), now, key, value, headers)
        if batch is None or added is None:
            batch = _Batch()
            added = batch.builder.append(0, now, key, value, headers)
            lane.batches.append(batch)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        batch.futures.append(future)
        batch.size += added.size
        self._bytes += added.size
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
                    self._start(tasks)
        finally:
            self._closed = True
            for lane in self._lanes.values():
                while lane.batches:
                    self._settle(lane, self._cluster.unavailable("closed"))
            self._room.set()

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        by_leader: dict[int | None, list[_Lane]] = {}
        for lane in [lane for lane in self._waiting if lane not in self._busy]:
            leader = self._cluster.leader(lane.topic, lane.partition)
            if leader not in self._busy_leaders:
                by_leader.setdefault(leader, []).append(lane)
        for leader, lanes in by_leader.items():
            if leader is not None:
                self._busy_leaders.add(leader)
            self._busy.update(lanes)
            tasks.create_task(self._send(leader, lanes), name="kafka-produce")

    async def _send(self, leader: int | None, lanes: list[_Lane]) -> None:
        again = True
        if leader is not None:
            with suppress(BrokerUnavailableError):
                again = await self._request(leader, lanes)
        if again:
            await self._cluster.pause()
            with suppress(BrokerUnavailableError):
                for topic in {lane.topic for lane in lanes}:
                    await self._cluster.refresh(topic)
        self._busy_leaders.discard(leader)
        self._busy.difference_update(lanes)
        for lane in lanes:
            if not lane.batches:
                self._waiting.pop(lane, None)
        if self._waiting:
            self._wake.set()

    async def _request(self, leader: int, lanes: list[_Lane]) -> bool:
        """Send the first batch of each partition; tell whether something must be sent again."""
        if self._identity is None:
            response = await self._cluster.ask(InitProducerIdRequest(None, 60_000))
            if (failure := error_of(response.error_code)) is not None:
                raise self._cluster.unavailable(str(failure()))
            self._identity = response.producer_id, response.producer_epoch
        topics: dict[str, list[tuple[int, Any]]] = {}
        for lane in lanes:
            topics.setdefault(lane.topic, []).append((lane.partition, lane.next(self._identity)))
        timeout = int(self._cluster.config.request_timeout * 1000)
        request = ProduceRequest(None, -1, timeout, list(topics.items()))
        response = await self._cluster.call(leader, request, self._purpose)
        again = False
        for topic, partitions in response.topics:
            for partition, code, offset, *_ in partitions:
                again |= self._note(self._lanes[topic, partition], error_of(code), offset)
        return again

    def _note(self, lane: _Lane, failure: type[kafka.KafkaError] | None, offset: int) -> bool:
        """Take what came of a partition's first batch; tell whether it must be sent again."""
        batch = lane.batches[0]
        if failure is None or failure is kafka.DuplicateSequenceNumber:
            lane.sequence = lane.sequence + len(batch.futures) & MAX_SEQUENCE
            self._settle(lane, None, -1 if failure is not None else offset)
            return False
        if issubclass(failure, _NEW_IDENTITY):
            logger.warning("%s of %s-%s: sending again", failure.__name__, lane.topic, lane.partition)
            self._identity = lane.identity = None
            return True
        now = time.monotonic()
        if failure is kafka.UnknownTopicOrPartitionError and batch.unknown_since is None:
            batch.unknown_since = now
        if failure.retriable and now - (batch.unknown_since or now) < UNKNOWN_TOPIC_WAIT:
            return True
        reason = f"Kafka refused to store it: {failure.__name__} {failure.description}"
        self._settle(lane, PublishRejectedError(reason))  # Its number is free for the next one.
        return False

    def _settle(self, lane: _Lane, error: BrokerError | None, offset: int = -1) -> None:
        batch = lane.batches.popleft()
        self._bytes -= batch.size
        if self._bytes <= MAX_WAITING_BYTES:
            self._room.set()
        for index, future in enumerate(batch.futures):
            if not future.done():
                if error is None:
                    future.set_result(offset if offset < 0 else offset + index)
                else:
                    future.set_exception(error)
                    future.exception()  # Whoever waited may be gone.
