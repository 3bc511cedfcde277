"""A pub/sub component's topics: declared by a topic without messages, limited in bytes by measuring."""

from __future__ import annotations

import time
from typing import ClassVar, TypeAlias

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Int64, Schema, String

from brokers.kafka._cluster import Cluster
from brokers.kafka._names import topic_name
from mesh.broker import Topology
from mesh.errors import PublishRejectedError, TopologyMismatchError

__all__ = ["Space"]

MEASURE_EVERY = 1.0
MEASURE_AGAIN = 0.05
RECORD_OVERHEAD_BYTES = 100


class Space:
    """One declared space."""

    def __init__(self, cluster: Cluster, topology: Topology) -> None:
        self._cluster = cluster
        self.topology = topology
        self.topics: set[str] = set()
        self._measured = 0
        self._measured_at = float("-inf")
        self._added = 0

    @property
    def settings(self) -> dict[str, str]:
        """The settings of its topics."""
        max_age = self.topology.max_age
        return {"retention.ms": "-1" if max_age is None else str(int(max_age * 1000)), "cleanup.policy": "delete"}

    @property
    def _declared(self) -> dict[str, str]:
        max_bytes = self.topology.max_bytes
        # It holds no messages, so that its limit deletes nothing: it is how the other nodes know it.
        return {**self.settings, "retention.bytes": "-1" if max_bytes is None else str(max_bytes)}

    async def declare(self) -> None:
        """Create what is missing, or compare."""
        name = topic_name(self.topology.space)
        wanted = self._declared
        if await self._cluster.create(name, 1, wanted, self.topology.replicas):
            return
        found = await self._cluster.settings(name, list(wanted))
        ours = {"retention.ms": "max_age (retention.ms)", "retention.bytes": "max_bytes (retention.bytes)"}
        different = [
            f"{ours.get(key, key)} is {found.get(key)} and should be {value}"
            for key, value in wanted.items()
            if found.get(key) != value
        ]
        if self._cluster.replicas(name) != self.topology.replicas:
            different.append(f"replicas is {self._cluster.replicas(name)} and should be {self.topology.replicas}")
        if different:
            raise TopologyMismatchError(
                f"topic {name} on Kafka at {self._cluster.shown} differs: {', '.join(different)}; "
                "change it there, or the component's settings here"
            )

    @classmethod
    async def find(cls, cluster: Cluster, space: str) -> Space | None:
        """Read how another node declared it; None when nobody has."""
        name = topic_name(space)
        if not await cluster.find(name):
            return None
        found = await cluster.settings(name, ["retention.ms", "retention.bytes"])
        age, size = int(found["retention.ms"]), int(found["retention.bytes"])
        topology = Topology(space, None if age < 0 else age / 1000, None if size < 0 else size, cluster.replicas(name))
        return cls(cluster, topology)

    async def topic(self, text: str) -> str:
        """Give the topic of an address, made if it is missing."""
        name = topic_name(text)
        if name not in self.topics:
            partitions = self._cluster.config.partitions
            await self._cluster.create(name, partitions, self.settings, self.topology.replicas)
            self.topics.add(name)
        return name

    async def make_room(self, size_bytes: int) -> None:
        """Refuse what does not fit any more.

        The size is measured once a second; what this node adds meanwhile is counted here, what
        others add is not.
        """
        limit = self.topology.max_bytes
        if limit is None:
            return
        size_bytes += RECORD_OVERHEAD_BYTES
        age = time.monotonic() - self._measured_at
        full = self._measured + self._added + size_bytes > limit
        if age > (MEASURE_AGAIN if full else MEASURE_EVERY):
            await self._measure()
            full = self._measured + self._added + size_bytes > limit
        if full:
            raise PublishRejectedError(f"storage is full: {limit} bytes are kept in {self.topology.space}")
        self._added += size_bytes

    async def _measure(self) -> None:
        self._measured_at = time.monotonic()
        added = self._added
        prefix = topic_name(self.topology.space) + "."
        total = 0
        for node in self._cluster.nodes():
            response = await self._cluster.call(node, DescribeLogDirsRequest())
            for _, _, topics in response.results:
                for topic, partitions in topics:
                    if topic.startswith(prefix):
                        total += sum(size for _, size, _, _ in partitions)
        self._measured = total // max(1, self.topology.replicas)
        self._added -= added


_PARTITIONS = Array(("partition", Int32), ("size", Int64), ("offset_lag", Int64), ("is_future", Boolean))
_TOPICS = Array(("name", String("utf-8")), ("partitions", _PARTITIONS))
_RESULTS = Array(("error_code", Int16), ("log_dir", String("utf-8")), ("topics", _TOPICS))


class _DescribeLogDirsResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 35
    API_VERSION = 1
    SCHEMA = Schema(("throttle_time_ms", Int32), ("results", _RESULTS))


class _DescribeLogDirsRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 35
    API_VERSION = 1
    RESPONSE_TYPE: ClassVar[type[Response]] = _DescribeLogDirsResponse
    SCHEMA = Schema(("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))))


_Struct: TypeAlias = _DescribeLogDirsRequest


class DescribeLogDirsRequest(Request[_Struct]):  # type: ignore[misc]
    """Asks how large every partition is; aiokafka has no such request."""

    API_KEY = 35

    def build(self, request_struct_class: type[_DescribeLogDirsRequest]) -> _DescribeLogDirsRequest:
        """Write it for a version of the protocol."""
        return request_struct_class(None)
