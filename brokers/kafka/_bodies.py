"""Large bodies as records of one topic beside a space's topics; what is published names their offsets.

The topic deletes by age alone, a whole segment at a time, so a body is there for at least as long as it is to be kept.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from aiokafka import errors as kafka

from brokers.kafka._cluster import Cluster, error_of
from brokers.kafka._names import topic_name
from brokers.kafka._producer import Producer
from brokers.kafka._records import fetch_request, fetched, records
from brokers.kafka._space import Space
from mesh.errors import BrokerUnavailableError

__all__ = ["KafkaBodies", "bodies_topic"]

FETCH_WAIT = 0.25
MAX_PARTS = 10_000
SEGMENT_BYTES = 128 * 1024 * 1024
PURPOSE = "bodies"
_PLACE = re.compile(r"(\d{1,9}):(\d{1,18}(?:-\d{1,18})?(?:,\d{1,18}(?:-\d{1,18})?)*)")


def bodies_topic(space: str) -> str:
    """Name the topic of a space's large bodies; no topic of an address has this name."""
    return f"{topic_name(space)}.__bodies"


class KafkaBodies:
    """The bodies of one space."""

    def __init__(self, cluster: Cluster, producer: Producer, space: Space, seconds: float | None) -> None:
        self._cluster = cluster
        self._producer = producer
        self._space = space
        self._name = bodies_topic(space.topology.space)
        self._settings = {
            "retention.ms": "-1" if seconds is None else str(int(seconds * 1000)),
            "retention.bytes": "-1",
            "segment.bytes": str(SEGMENT_BYTES),
            "cleanup.policy": "delete",
        }

    async def _topic(self) -> str:
        """Give the topic, made if it is missing; through broken connections, too."""
        cluster = self._cluster
        while True:
            try:
                await cluster.create(
                    self._name, cluster.config.partitions, self._settings, self._space.topology.replicas
                )
                return self._name
            except BrokerUnavailableError:
                if cluster.closed:
                    raise
            await cluster.pause()

    async def put(self, name: str, parts: Sequence[memoryview]) -> str:
        """Store the parts as records of one partition."""
        topic = await self._topic()
        await self._space.make_room(sum(map(len, parts)))
        partition = random.randrange(self._cluster.partitions(topic))  # noqa: S311 - it spreads load
        offsets: dict[int, int] = {}
        while missing := [index for index in range(len(parts)) if offsets.get(index, -1) < 0]:
            offsets.update(await self._store(topic, partition, {index: parts[index] for index in missing}))
        return f"{partition}:{','.join(_ranges([offsets[index] for index in range(len(parts))]))}"

    async def _store(self, topic: str, partition: int, parts: dict[int, memoryview]) -> dict[int, int]:
        """Give the offset of each, -1 where an earlier try has stored it and only the broker knows where."""
        futures: dict[int, asyncio.Future[int]] = {}
        try:
            for index, part in parts.items():
                await self._producer.room()
                futures[index] = self._producer.add(topic, partition, None, bytes(part), [])
            return {index: await future for index, future in futures.items()}
        finally:
            for future in futures.values():
                future.cancel()

    async def get(self, name: str, place: str, count: int, size: int) -> Sequence[bytes] | None:
        """Fetch the records from their partition's leader."""
        topic = await self._topic()
        partition, offsets = _read(place)
        if len(offsets) != count or partition >= self._cluster.partitions(topic):
            return None
        wanted, found = set(offsets), dict[int, bytes]()
        for offset in offsets:
            while offset not in found:
                raw = await self._fetch(topic, partition, offset)
                if raw is None:
                    return None
                with self._cluster.errors:
                    read, top = records(raw, offset)
                    found.update({each.offset: each.value or b"" for each in read if each.offset in wanted})
                if top > offset and offset not in found:
                    return None
                if sum(map(len, found.values())) > size:
                    return []
        return [found[offset] for offset in offsets]

    async def _fetch(self, topic: str, partition: int, offset: int) -> bytes | None:
        """Give what follows an offset, perhaps nothing yet; None when what was there is deleted."""
        leader = self._cluster.leader(topic, partition)
        if leader is not None:
            request = fetch_request([(topic, [(partition, offset)])], FETCH_WAIT)
            response = await self._cluster.call(leader, request, PURPOSE, wait=FETCH_WAIT)
            for _, _, code, raw in fetched(response):
                failure = error_of(code)
                if failure is kafka.OffsetOutOfRangeError:
                    return None
                if failure is None and raw:
                    return raw
        await self._cluster.pause()
        await self._cluster.refresh(topic)
        return b""


def _ranges(offsets: list[int]) -> Iterator[str]:
    """Write ascending offsets, those that follow each other as the first and the last; others one by one."""
    ends = [index for index, (one, other) in enumerate(pairwise(offsets)) if other != one + 1]
    for start, end in zip([0, *(each + 1 for each in ends)], [*ends, len(offsets) - 1], strict=True):
        yield str(offsets[start]) if start == end else f"{offsets[start]}-{offsets[end]}"


def _read(place: str) -> tuple[int, list[int]]:
    """Read a partition and its offsets; no offsets where it is no place, or holds more than a body has parts."""
    found = _PLACE.fullmatch(place)
    offsets: list[int] = []
    for each in found[2].split(",") if found else ():
        first, _, last = each.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if len(offsets) + len(numbers) > MAX_PARTS:
            return 0, []
        offsets += numbers
    return (int(found[1]) if found else 0), offsets
