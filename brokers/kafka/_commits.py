"""Commits what a member is done with, and reserves what it may begin next."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from brokers.kafka._cluster import Cluster
from brokers.kafka._group import Lost, Membership, NewRound, Solo
from brokers.kafka._partition import READY, Partition
from brokers.kafka._work import Work
from mesh.errors import BrokerUnavailableError

__all__ = ["Commits"]

COMMIT_WAIT = 0.05


class Commits:
    """The commits of one member of a group."""

    def __init__(self, cluster: Cluster, member: Membership | Solo, work: Work, node: str) -> None:
        self._cluster = cluster
        self._member = member
        self._work = work
        self._node = node
        self._committing = asyncio.Lock()

    async def run(self) -> None:
        """Commit when that is wanted, for ever."""
        while True:
            await self._work.commit_wanted.wait()
            if not self._work.commit_now.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(COMMIT_WAIT):
                        await self._work.commit_now.wait()
            self._work.commit_wanted.clear()
            self._work.commit_now.clear()
            if not self._member.joined or self._work.frozen:
                continue
            try:
                await self.commit()
            except BrokerUnavailableError:
                await self._cluster.pause()
                self._work.want_commit()
            except (NewRound, Lost):
                self._member.poke()

    async def commit(self, *, final: bool = False) -> None:
        """Commit what changed; `final` when nothing more will be begun here."""
        async with self._committing:
            self._work.committing = True
            try:
                await self._commit(final=final)
            finally:
                self._work.committing = False
            self._work.dispatch()

    async def _commit(self, *, final: bool) -> None:
        changed: dict[int, tuple[int, str]] = {}
        reserved: dict[Partition, int] = {}
        for number, partition in self._work.partitions.items():
            if final:
                note = partition.note(self._node, None)
            else:
                low = partition.low
                upto = max(partition.reserved, low + self._work.window)
                first = next((i for i in partition.items.values() if i.state is READY), None)
                if first is not None:
                    upto = max(upto, first.offset + self._work.window)
                if not partition.items and not partition.unread and partition.committed is not None:
                    upto = partition.reserved
                before, partition.reserved = partition.reserved, upto
                note = partition.note(self._node, upto - low)
                partition.reserved = before
                reserved[partition] = upto
            if note != partition.committed:
                changed[number] = note
        if changed:
            await self._member.commit(changed)
            for number, note in changed.items():
                if number in self._work.partitions:
                    self._work.partitions[number].committed = note
        for partition, upto in reserved.items():
            partition.reserved = upto
        if final:
            for partition in self._work.partitions.values():
                partition.reserved = partition.low
