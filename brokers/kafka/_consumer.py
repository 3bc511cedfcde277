"""A subscription: a member of a group that has a share of the partitions, and gives it up in time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from brokers.kafka._background import Start
from brokers.kafka._cluster import EARLIEST, Cluster
from brokers.kafka._fetcher import Fetcher
from brokers.kafka._frames import Frames
from brokers.kafka._group import Lost, Membership, NewRound, Solo
from brokers.kafka._partition import READY, Partition
from brokers.kafka._work import Work
from mesh.address import Address
from mesh.broker import Handler, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Consumer"]

logger = logging.getLogger("brokers.kafka")

COMMIT_WAIT = 0.05
LEAVE_WITHIN = 2.0


class Consumer:
    """This node's member of a group."""

    def __init__(
        self,
        cluster: Cluster,
        frames: Frames,
        topic: str,
        group: str,
        address: Address,
        options: SubscribeOptions,
        handler: Handler,
    ) -> None:
        self._cluster = cluster
        self._frames = frames
        self._topic = topic
        self._group = group
        self._ack_wait = options.ack_wait
        self._member = Solo(cluster, topic) if options.ephemeral else Membership(cluster, group, topic)
        self._work = Work(frames, group, address, options, handler)
        self._fetcher = Fetcher(cluster, topic, group, self._work)
        self._node = frames.node
        self._committing = asyncio.Lock()

    # Start and end

    async def start(self, start: Start) -> None:
        """Join the group; returns when the member is part of it."""
        self._fetcher.start(start)
        self._frames.hear.setdefault(self._group, set()).add(self._hear)
        self._frames.tell({"g": self._group, "k": "join"})
        while True:
            try:
                await self._assign(await self._member.join(()))
                break
            except (BrokerUnavailableError, NewRound):
                await self._cluster.pause()
            except Lost:
                continue
        for work, name in ((self._stay, "member"), (self._commit_wanted, "commit"), (self._watch, "watch")):
            start(work(), f"kafka-{name}")

    def deliver(self, handlers: asyncio.TaskGroup) -> None:
        """Begin to hand out."""
        self._work.begin(handlers)

    async def stop(self) -> None:
        """Hand out no more; what is not begun goes to others at once, if there are any."""
        self._work.stop()
        if self._work.begun and self._member.alone and self._member.joined:
            return  # Nobody else could take it; if somebody comes, `_stay` makes room.
        await self._hand_over()

    async def _hand_over(self) -> None:
        """Commit, with what is in flight here, and leave the group."""
        if not self._member.known:
            return
        self._work.frozen = True
        with suppress(BrokerError, NewRound, Lost, TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN):
                with suppress(NewRound, Lost):
                    if self._member.joined:
                        await self._commit(final=True)
                await self._member.leave()
        self._work.lose_all()

    async def finish(self) -> None:
        """Release what handlers left unsettled, commit, leave, and end."""
        for item in list(self._work.begun):  # Their tasks were cancelled, perhaps before the first step.
            self._work.give_back(item)
        self._work.stopping = True
        try:
            await self._hand_over()
        finally:
            hearing = self._frames.hear.get(self._group, set())
            hearing.discard(self._hear)
            if not hearing:
                self._frames.hear.pop(self._group, None)
            self._work.lose_all()
            with suppress(BrokerError):
                await self._member.close()
                await self._fetcher.close()

    # The group

    async def _stay(self) -> None:
        """Be a member until the end."""
        anew = False
        while self._member.joined or not self._work.stopping:
            try:
                if anew or not self._member.joined:
                    self._frames.tell({"g": self._group, "k": "join"})
                    await self._assign(await self._member.join(self._work.partitions))
                    anew = False
                    self._work.thaw()
                await self._member.stay()
                if self._work.is_stuck:
                    await self._step_aside()
            except NewRound:
                if self._work.stopping:
                    break
                if self._work.is_stuck:
                    await self._step_aside()
                    continue
                self._work.frozen = anew = True
                with suppress(BrokerUnavailableError, Lost, NewRound):
                    await self._commit(final=True)
            except Lost:
                anew = True
                self._work.lose_all()
            except BrokerUnavailableError:
                await self._cluster.pause()
        await self._hand_over()

    async def _step_aside(self) -> None:
        """Let others have the partitions until there is room here."""
        logger.warning("%s: all %d handlers are silent; others take over", self._group, self._work.running)
        await self._hand_over()
        await self._work.until_room()

    async def _assign(self, numbers: set[int]) -> None:
        for number in self._work.partitions.keys() - numbers:
            self._work.lose(self._work.partitions[number])
        gained = numbers - self._work.partitions.keys()
        if gained:
            committed = await self._member.committed(gained)
            missing = gained - committed.keys()
            if missing:
                earliest = await self._cluster.offsets(self._topic, dict.fromkeys(missing, EARLIEST))
                committed |= {number: (offset, "") for number, offset in earliest.items()}
            for number in gained:
                self._work.partitions[number] = Partition(number, *committed[number])
        self._fetcher.fetch_from_leaders()
        self._work.fetch_wanted.set()

    # What is done, and what may be begun next

    async def _commit_wanted(self) -> None:
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
                await self._commit()
            except BrokerUnavailableError:
                await self._cluster.pause()
                self._work.want_commit()
            except (NewRound, Lost):
                self._member.poke()

    async def _commit(self, *, final: bool = False) -> None:
        """Commit what changed; `final` when nothing more will be begun here."""
        async with self._committing:
            self._work.committing = True
            try:
                await self._commit_changes(final=final)
            finally:
                self._work.committing = False
            self._work.dispatch()

    async def _commit_changes(self, *, final: bool) -> None:
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

    # Signs of life

    def _hear(self, note: dict[str, Any]) -> None:
        """Take what another member says."""
        if note["k"] != "join":
            self._work.hear(note)
        elif self._member.joined:
            self._member.poke()

    async def _watch(self) -> None:
        """Look for handlers that give no sign of life."""
        while True:
            await asyncio.sleep(min(1.0, max(0.02, self._ack_wait / 10)))
            self._work.take_from_silent()
            if self._work.is_stuck and not self._member.alone:
                self._member.interrupt()
