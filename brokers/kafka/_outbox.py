"""Writes frames straight to the connections: at most once, so nothing is sent a second time."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import errors as kafka
from aiokafka.protocol.produce import ProduceRequest

from brokers.kafka._cluster import RETRY_WAIT, Cluster
from brokers.kafka._frames_topic import TOPIC, leader_of
from brokers.kafka._producer import Headers
from brokers.kafka._records import new_batch
from mesh.errors import BrokerUnavailableError

__all__ = ["Outbox"]

MAX_WAITING_BYTES = 4 * 1024 * 1024


class Outbox:
    """What this node sends to others: it waits for the connection to take it, and is lost with it."""

    def __init__(self, cluster: Cluster, reconnected: asyncio.Event) -> None:
        """Prepare; `reconnected` is set whenever there are connections again."""
        self._cluster = cluster
        self._reconnected = reconnected
        self._purpose = cluster.purpose("frames-out")
        self._waiting: list[tuple[int, bytes, bytes, Headers]] = []
        self._waiting_bytes = 0
        self._written = asyncio.Event()
        self._wake = asyncio.Event()
        self.connected = False

    async def connect(self) -> None:
        """Connect to every broker."""
        for leader in self._cluster.nodes():
            await self._cluster.connection(leader, self._purpose)
        self.connected = True

    def put(self, partition: int, key: bytes, body: bytes, headers: Headers) -> None:
        """Let a frame wait to be written."""
        self._waiting.append((partition, key, body, headers))
        self._waiting_bytes += len(body)
        self._wake.set()

    async def post(self, partition: int, key: bytes, body: bytes, headers: Headers) -> None:
        """Write a frame; waits while too much waits."""
        self.check()
        self.put(partition, key, body, headers)
        while self._waiting_bytes > MAX_WAITING_BYTES:
            self._written.clear()
            await self._written.wait()

    def check(self) -> None:
        """Raise when there is no connection to some broker; it is looked for, then."""
        if not self.connected or not self._alive():
            self.look()
            raise self._cluster.unavailable()

    def look(self) -> None:
        """Look soon whether the connections live."""
        self._wake.set()

    async def run(self) -> None:
        """Write what waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            waiting, self._waiting = self._waiting, []
            size, self._waiting_bytes = self._waiting_bytes, 0
            try:
                if waiting:
                    await self._send_out(waiting)
                elif not self._alive():
                    raise self._cluster.unavailable()
            except (BrokerUnavailableError, OSError, kafka.KafkaError, TimeoutError):
                self.connected = False
                await self._cluster.drop(self._purpose)
                await self._reconnect()
            if size:
                self._written.set()

    def _alive(self) -> bool:
        return all(self._cluster.connected(node, self._purpose) for node in self._cluster.nodes())

    async def _reconnect(self) -> None:
        while True:
            try:
                await self._cluster.refresh(TOPIC)
                await self.connect()
            except BrokerUnavailableError:
                await asyncio.sleep(RETRY_WAIT)
            else:
                self._reconnected.set()
                return

    async def _send_out(self, waiting: list[tuple[int, bytes, bytes, Headers]]) -> None:
        while waiting:
            batches: dict[int, Any] = {}
            counts: dict[int, int] = {}
            left: list[tuple[int, bytes, bytes, Headers]] = []
            full: set[int] = set()
            for item in waiting:
                partition, key, body, headers = item
                batch = batches.get(partition)
                if batch is None:
                    batch = batches[partition] = new_batch()
                    counts[partition] = 0
                if partition in full or batch.append(counts[partition], None, key, body, headers) is None:
                    full.add(partition)
                    left.append(item)
                else:
                    counts[partition] += 1
            waiting = left
            by_leader: dict[int, list[tuple[int, Any]]] = {}
            for partition, batch in batches.items():
                by_leader.setdefault(leader_of(self._cluster, partition), []).append((partition, batch.build()))
            for leader, parts in by_leader.items():
                connection = self._cluster.connected(leader, self._purpose)
                if connection is None:
                    raise self._cluster.unavailable()
                try:
                    async with asyncio.timeout(self._cluster.config.request_timeout):
                        await connection.send(ProduceRequest(None, 0, 10_000, [(TOPIC, parts)]), expect_response=False)
                except RuntimeError as error:  # What uvloop says to a write just after a reset.
                    raise self._cluster.unavailable(error) from error
