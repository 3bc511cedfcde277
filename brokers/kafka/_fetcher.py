"""Fetches what the partitions of a member hold: one request after the other to each broker that leads some."""

from __future__ import annotations

import logging
from contextlib import suppress

from aiokafka import errors as kafka

from brokers.kafka._background import Start
from brokers.kafka._cluster import EARLIEST, Cluster, error_of
from brokers.kafka._partition import Partition
from brokers.kafka._records import fetch_request, fetched
from brokers.kafka._work import FETCH_BELOW_BYTES, Work
from mesh.errors import BrokerUnavailableError

__all__ = ["Fetcher"]

logger = logging.getLogger("brokers.kafka")

FETCH_WAIT = 0.25
FETCH_WAIT_BUSY = 0.01


class Fetcher:
    """Keeps one member's work supplied."""

    def __init__(self, cluster: Cluster, topic: str, group: str, work: Work) -> None:
        self._cluster = cluster
        self._topic = topic
        self._group = group
        self._work = work
        self._purpose = cluster.purpose("fetch")
        self._fetching: set[int] = set()
        self._start: Start | None = None

    def start(self, start: Start) -> None:
        """Say where to run; `fetch_from_leaders` begins."""
        self._start = start

    async def close(self) -> None:
        """Close the connections."""
        await self._cluster.drop(self._purpose)

    def fetch_from_leaders(self) -> None:
        """Fetch from every broker that leads a partition."""
        assert self._start is not None
        for number in range(self._cluster.partitions(self._topic)):
            leader = self._cluster.leader(self._topic, number)
            if leader is not None and leader not in self._fetching:
                self._fetching.add(leader)
                self._start(self._fetch(leader), "kafka-fetch")

    async def _fetch(self, leader: int) -> None:
        while True:
            mine = [
                p
                for p in self._work.partitions.values()
                if self._cluster.leader(self._topic, p.number) == leader and p.retry is None
            ]
            wanted = [p for p in mine if p.unread_bytes < FETCH_BELOW_BYTES]
            if not wanted or self._work.stopping:
                await self._wait_for_work()
                continue
            wait = FETCH_WAIT if len(wanted) == len(mine) else FETCH_WAIT_BUSY
            request = fetch_request([(self._topic, [(p.number, p.fetched) for p in wanted])], wait)
            asked = {p.number: (p, p.fetched) for p in wanted}
            try:
                response = await self._cluster.call(leader, request, self._purpose, wait=wait)
                for _, number, code, raw in fetched(response):
                    partition, offset = asked[number]
                    if self._work.partitions.get(number) is not partition or partition.fetched != offset:
                        continue  # It is lost, or what was fetched before is to be fetched again.
                    if (failure := error_of(code)) is not None:
                        await self._recover(partition, failure)
                    elif raw and not self._work.stopping:
                        self._work.take(partition, raw)
                self._work.dispatch()
                if not self._all_led:
                    await self._find_leaders()
            except BrokerUnavailableError:
                await self._find_leaders()

    async def _wait_for_work(self) -> None:
        """Wait until there is something to fetch, or until it is known again who leads a partition."""
        self._work.fetch_wanted.clear()
        if self._all_led:
            await self._work.fetch_wanted.wait()
        else:
            await self._find_leaders()

    @property
    def _all_led(self) -> bool:
        return all(self._cluster.leader(self._topic, number) is not None for number in self._work.partitions)

    async def _find_leaders(self) -> None:
        await self._cluster.pause()
        with suppress(BrokerUnavailableError):
            await self._cluster.refresh(self._topic)
        self.fetch_from_leaders()
        self._work.fetch_wanted.set()

    async def _recover(self, partition: Partition, failure: type[kafka.KafkaError]) -> None:
        if failure is kafka.OffsetOutOfRangeError:
            earliest = await self._cluster.offsets(self._topic, {partition.number: EARLIEST})
            logger.warning(
                "%s: what followed offset %d of partition %d is deleted; going on with %d",
                self._group,
                partition.fetched,
                partition.number,
                earliest[partition.number],
            )
            partition.go_on_from(earliest[partition.number])
        else:
            await self._cluster.pause()
            await self._cluster.refresh(self._topic)
            self.fetch_from_leaders()
