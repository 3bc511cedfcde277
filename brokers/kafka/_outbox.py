"""Writes frames straight to the connections: at most once, so nothing is sent a second time."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.produce import ProduceRequest

from brokers.kafka._cluster import Cluster
from brokers.kafka._frames_topic import INBOXES, TOPIC, leader_of
from brokers.kafka._producer import Headers
from brokers.kafka._records import new_batch
from brokers.shared.outage import Outage
from mesh.errors import BrokerUnavailableError

__all__ = ["OutFrame", "Outbox"]

MAX_WAITING_BYTES = 4 * 1024 * 1024
MAX_HINTS_BYTES = 8 * 1024 * 1024
FRAME_OVERHEAD_BYTES = 256

OutFrame = tuple[int, bytes, bytes, Headers]  # Partition, key, body.


class Outbox:
    """What this node sends to others: it waits for the connection to take it, and is lost with it.

    It need not wait until this node's inbox is read: what comes there meanwhile is stored, and read later.

    Attributes:
        connected: Whether frames go out.
    """

    def __init__(self, cluster: Cluster, outage: Outage, reconnected: asyncio.Event) -> None:
        """Prepare.

        Args:
            cluster: Where to write.
            outage: What is told when frames do not go out.
            reconnected: Set whenever there are connections again.
        """
        self._cluster = cluster
        self._outage = outage
        self._reconnected = reconnected
        self._purpose = cluster.purpose("frames-out")
        self._waiting: list[OutFrame] = []
        self._waiting_bytes = 0
        self._written = asyncio.Event()
        self._wake = asyncio.Event()
        self.connected = False

    def put(self, partition: int, key: bytes, body: bytes, headers: Headers) -> None:
        """Let what nobody waits for be written; dropped when very much waits."""
        if self._waiting_bytes < MAX_HINTS_BYTES:
            self._add((partition, key, body, headers))

    def _add(self, frame: OutFrame) -> None:
        self._waiting.append(frame)
        self._waiting_bytes += _size(frame)
        self._wake.set()

    async def post(self, *frames: OutFrame) -> None:
        """Write frames; waits while too much waits. Without a connection none is taken, and what is taken stays."""
        self.check()
        for frame in frames:
            self._add(frame)
        while self._waiting_bytes > MAX_WAITING_BYTES:
            self._written.clear()
            await self._written.wait()

    def check(self) -> None:
        """Raise when there is no connection to some broker; it is looked for, then."""
        if not self.connected or not self._alive():
            self.look()
            raise self._cluster.unavailable("connecting anew")

    def look(self) -> None:
        """Look soon whether the connections live."""
        self._wake.set()

    async def run(self) -> None:
        """Write what waits, for ever; what was not written when a connection broke waits for the next one."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.connected and self._alive():
                try:
                    with self._cluster.errors:
                        await self._send_out()
                except BrokerUnavailableError:
                    self.connected = False
                self._written.set()
            if not self.connected or not self._alive():
                self.connected = False
                await self._cluster.drop(self._purpose)
                await self.connect()
                self._wake.set()

    def _alive(self) -> bool:
        return all(self._cluster.connected(node, self._purpose) for node in self._cluster.nodes())

    async def connect(self) -> None:
        """Connect to every broker; done when every partition is led."""
        while not self.connected:
            try:
                await self._cluster.refresh(TOPIC)
                for node in self._cluster.nodes():
                    await self._cluster.connection(node, self._purpose)
            except BrokerUnavailableError as error:
                self._outage.lost(error.__cause__ or error, self)
            else:
                self.connected = all(self._cluster.leader(TOPIC, each) is not None for each in range(1 + INBOXES))
            if not self.connected:
                await self._cluster.pause()
        self._outage.back(self)
        self._reconnected.set()

    async def _send_out(self) -> None:
        while self._waiting:
            batches: dict[int, Any] = {}
            counts: dict[int, int] = {}
            left: list[OutFrame] = []
            full: set[int] = set()
            for frame in self._waiting:
                partition, key, body, headers = frame
                batch = batches.get(partition)
                if batch is None:
                    batch = batches[partition] = new_batch()
                    counts[partition] = 0
                if partition in full or batch.append(counts[partition], None, key, body, headers) is None:
                    full.add(partition)
                    left.append(frame)
                else:
                    counts[partition] += 1
            by_leader: dict[int, list[tuple[int, Any]]] = {}
            for partition, batch in batches.items():
                by_leader.setdefault(leader_of(self._cluster, partition), []).append((partition, batch.build()))
            connections = {leader: self._connection(leader) for leader in by_leader}
            self._waiting = left  # From here on the others are not sent a second time.
            self._waiting_bytes = sum(_size(frame) for frame in left)
            for leader, parts in by_leader.items():
                request = ProduceRequest(None, 0, 10_000, [(TOPIC, parts)])
                async with asyncio.timeout(self._cluster.config.request_timeout):
                    await connections[leader].send(request, expect_response=False)

    def _connection(self, leader: int) -> AIOKafkaConnection:
        found = self._cluster.connected(leader, self._purpose)
        if found is None:
            raise self._cluster.unavailable("connecting anew")
        return found


def _size(frame: OutFrame) -> int:
    return len(frame[2]) + FRAME_OVERHEAD_BYTES
