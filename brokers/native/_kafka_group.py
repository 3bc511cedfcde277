"""A member of a consumer group, on the client's own consumer.

What is committed is the lowest offset that is unsettled. When partitions are given out anew, those that stay here go on
where they are, if nobody has committed anything meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiokafka import ConsumerRebalanceListener
from aiokafka.errors import (
    IllegalGenerationError,
    IllegalStateError,
    InconsistentGroupProtocolError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

from brokers.clients.kafka import AIOKafkaConsumer
from brokers.native._lanes import Held, LaneSource, Partition, Settler
from brokers.shared.backoff import waits
from brokers.shared.errors import map_errors
from brokers.shared.outage import Outage
from mesh.broker import Delivery
from mesh.errors import BrokerError, TopologyMismatchError
from mesh.tasks import task_group

__all__ = ["REBALANCE_SECONDS", "Member", "end_consumer"]

logger = logging.getLogger("brokers.kafka")

# Another member may take a minute to finish before partitions are given out.
START_SECONDS = 90.0
LEAVE_SECONDS = 1.0
COMMIT_SECONDS = 5.0
COMMIT_EVERY, COMMIT_AGAIN = 0.05, 0.5  # As the mesh's layout does: more often, commits take a tenth of the time.
REBALANCE_SECONDS = 30.0
FINISH_SECONDS = 10.0  # For what is handed out, before its partition may be another member's.
SKEW_SECONDS = 10.0  # By which producers' clocks may be behind, or a record old that was being handled elsewhere.
POLL_MS, FULL_MS = 200, 20
RECORD_BYTES = 512  # What a record takes beside what it holds, about.
STEADY_SECONDS, LONGEST_TRUCE = 60.0, 30.0  # A consumer that ends sooner is followed by the next one ever later.
AT_ONCE = 500

# What is told of a partition that was given out anew.
NOT_OURS = (IllegalGenerationError, IllegalStateError, RebalanceInProgressError, UnknownMemberIdError)

Make = Callable[[ConsumerRebalanceListener], AIOKafkaConsumer]


async def end_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and close, whatever the client is at: its own way to do so may wait for an answer for long."""
    consumer._closed = True
    coordinator, client = consumer._coordinator, consumer._client
    tasks = [getattr(coordinator, f"_{name}_task", None) for name in ("coordination", "heartbeat", "commit_refresh")]
    running = [task for task in tasks if task is not None and not task.done()]
    for task in running:
        task.cancel()
    try:
        if running:
            await asyncio.wait(running)
        member, node = (getattr(coordinator, name, None) for name in ("member_id", "coordinator_id"))
        if member and node is not None:
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):  # On another connection: a join may be waiting on its own.
                    await client.send(node, LeaveGroupRequest(coordinator.group_id, member))
    finally:
        if consumer._fetcher is not None:
            task = consumer._fetcher._fetch_task
            pending = {task, *consumer._fetcher._pending_tasks}
            consumer._fetcher._closed = True
            for each in pending:
                each.cancel()
            await asyncio.wait(pending)
        await client.close()
        consumer.let_go()


class Member(LaneSource, ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """One member, for one subscription: a ``Source``."""

    def __init__(
        self,
        make: Make,
        deliver: Callable[[Any, int, Settler], Awaitable[Delivery | None]],
        errors: map_errors,
        outage: Outage,
        differs: str,
        *,
        ordered: bool,
        keeps: bool,
        latest: bool,
        joins: bool,
    ) -> None:
        """Prepare; `joined` takes part.

        Args:
            make: Makes a consumer that is subscribed with a listener, and not started.
            deliver: Makes a delivery of a record, its attempt and what settles it; None = it cannot be made now.
            errors: What becomes of what the client raises.
            outage: Tells of lost connections.
            differs: What it is when the group's other members give partitions out in another way.
            ordered: Whether records of equal keys follow each other.
            keeps: Whether the group's positions are committed.
            latest: Whether a new group begins with the newest record.
            joins: Whether others are in the group already.
        """
        super().__init__()
        self._make, self._deliver, self._errors, self._outage = make, deliver, errors, outage
        self._differs, self._ordered, self._keeps = differs, ordered, keeps
        self._latest, self._joins, self._began = latest, joins, time.time()
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions: dict[Any, Partition] = {}
        self._known: dict[str, int] | None = None
        self._given: set[Any] | None = None
        self._round = 0
        self._slow, self._held_up = set[Any](), set[Any]()  # Partitions with what the client cannot read.
        self._out = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._committing = asyncio.Lock()

    @property
    def consumer(self) -> AIOKafkaConsumer:
        """The consumer of now."""
        assert self._consumer is not None
        return self._consumer

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[Member]:
        """Take part; left, all that was settled is committed, and the rest is given back."""
        try:
            await self._start()
            async with task_group() as tasks:
                working = [tasks.create_task(each, name="kafka-member") for each in (self._keep(), self._commits())]
                try:
                    yield self
                finally:
                    for task in working:
                        task.cancel()
            await self._commit()
        finally:
            for partition in self._partitions.values():
                partition.forget()
            if self._consumer is not None:
                await end_consumer(self._consumer)

    async def _start(self) -> None:
        consumer = self._make(self)
        try:
            with self._errors:
                async with asyncio.timeout(START_SECONDS):
                    await consumer.start()
                    self._consumer = consumer
                    while not await self._hold():  # noqa: ASYNC110 - the client's listener need not have been called
                        await asyncio.sleep(COMMIT_EVERY)
        except BaseException as error:
            self._consumer = None
            await end_consumer(consumer)
            if isinstance(error.__cause__, InconsistentGroupProtocolError):
                raise TopologyMismatchError(self._differs) from error
            raise

    async def _keep(self) -> None:
        """Fetch; with another consumer, where one cannot go on."""
        loop, pauses = asyncio.get_running_loop(), waits(LONGEST_TRUCE)
        while True:
            began = loop.time()
            error = await self._poll()
            if loop.time() - began >= STEADY_SECONDS:
                pauses = waits(LONGEST_TRUCE)
            self._outage.lost(error, self)
            self._freeze()
            failed, self._consumer = self._consumer, None
            if failed is not None:
                await end_consumer(failed)
            await asyncio.sleep(next(pauses))
            for wait in waits():
                with suppress(BrokerError):
                    await self._start()
                    break
                await asyncio.sleep(wait)
            self._outage.back(self)

    # Partitions are given out

    def _freeze(self) -> None:
        """Hand out nothing more of what may go to others."""
        self._round += 1
        self._began = time.time()
        self._given = None
        for _, held in self._ready:
            held.waits = True
        self._ready.clear()
        for partition in self._partitions.values():
            partition.live = False

    async def on_partitions_revoked(self, revoked: object) -> None:
        """Finish what is handed out, if that does not take long, and commit it."""
        self._freeze()
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS):
                await self._idle.wait()
        await self._commit()

    async def on_partitions_assigned(self, assigned: set[Any]) -> None:
        """Note what is given; to wait here for anything would keep the group waiting."""
        self._given = set(assigned)

    async def _hold(self) -> bool:
        """Take over what is given; tell whether that is done, and holds.

        Where nothing is committed, the position is: else a restart would skip what comes meanwhile. A partition that
        is added to a topic that is read already is read from its beginning.
        """
        given, number = self._given, self._round
        if given is None:
            return False
        try:
            async with self._committing:
                partitions = {at: await self._take_over(at) for at in sorted(given)}
        except NOT_OURS:
            return False  # It is given out anew.
        except KafkaError as error:
            if not error.retriable:
                raise
            await asyncio.sleep(COMMIT_AGAIN)
            return False
        if number != self._round:
            return False
        self._given = None
        self._know(self.consumer)
        for at, partition in self._partitions.items():
            if partitions.get(at) is not partition:
                partition.forget()
        self._partitions = partitions
        self._slow.intersection_update(partitions)
        self._held_up.intersection_update(partitions)
        for partition in partitions.values():
            partition.live = True
            for head in partition.heads():
                self._queue(partition, head)
        self._dirty.set()
        return True

    async def _take_over(self, at: Any) -> Partition:
        consumer, held = self.consumer, self._partitions.get(at)
        committed = await consumer.committed(at) if self._keeps else None
        await consumer.position(at)  # What the client looks up itself would come after what is said here.
        if held is not None and held.goes_on_from(committed):
            consumer.seek(at, held.next)
            return held
        if committed is None and self._known is not None and at.partition >= self._known.get(at.topic, 0):
            await consumer.seek_to_beginning(at)
        elif committed is None and self._keeps and self._latest:
            since = None
            if self._known is not None or self._joins:
                # Somebody else had it, and has handled nothing: what came since this round began is nobody's.
                since = (await consumer.offsets_for_times({at: int((self._began - SKEW_SECONDS) * 1000)}))[at]
            if since is None:
                await consumer.seek_to_end(at)
            else:
                consumer.seek(at, since.offset)
        position = await consumer.position(at)
        if committed is None and self._keeps:
            await self._put({at: position})
            committed = position
        return Partition(at, position, committed, self._room, ordered=self._ordered)

    def _know(self, consumer: AIOKafkaConsumer) -> None:
        """Note how many partitions there were at first; later ones are added."""
        if self._known is None:
            topics = consumer.subscription()
            self._known = {topic: len(consumer.partitions_for_topic(topic) or ()) for topic in topics}

    # Records

    async def _poll(self) -> BaseException:
        """Fetch until that cannot go on; give why."""
        consumer = self.consumer
        try:
            while True:
                if self._given is not None and not await self._hold():
                    await asyncio.sleep(COMMIT_EVERY)
                    continue
                # What is fetched of a full partition stays with the client, which would drop it if it were paused.
                readable = [at for at in self._partitions if at not in self._held_up]
                roomy = [at for at in readable if not self._partitions[at].full]
                wait = FULL_MS if len(roomy) < len(readable) else POLL_MS
                if self._partitions and not roomy:
                    await asyncio.sleep(wait / 1000)
                    continue
                most = 1 if self._slow else self._room.records(AT_ONCE)
                try:
                    found = await consumer.getmany(*roomy, timeout_ms=wait, max_records=most)
                except UnicodeDecodeError as error:
                    self._meet_unreadable(consumer, error)
                    continue
                for at, records in found.items():
                    fetched = self._partitions.get(at)
                    if self._given is None and fetched is not None and fetched.live:
                        for held in fetched.admit(records, [_size(record) for record in records]):
                            self._queue(fetched, held)
                        continue
                    with suppress(IllegalStateError):  # It was given out anew meanwhile: this is read again.
                        consumer.seek(at, records[0].offset)
        except (KafkaError, OSError) as error:
            return error

    def _meet_unreadable(self, consumer: AIOKafkaConsumer, error: UnicodeDecodeError) -> None:
        """Read those before a header whose name is no UTF-8 one by one, then hold their partition up.

        The client reads no record behind it in its batch either, so nothing is passed over.
        """
        for at, found in consumer._fetcher._records.items():
            records = getattr(found, "_partition_records", None)
            if records is None or records._records_iterator.gi_frame is not None:  # It has not ended by an error.
                continue
            found._partition_records = None  # Said once; the client asks for it again, unless it is held up.
            if at not in self._slow:
                self._slow.add(at)
                continue
            self._slow.discard(at)
            self._held_up.add(at)
            text = (
                "topic %s, partition %d: a record at offset %d or soon after has a header whose name is no UTF-8 (%s); "
                "the partition waits until the record is gone"
            )
            logger.error(text, *at, records.next_fetch_offset, error)
        for at, partition in self._partitions.items():
            if self._given is None and partition.live and at not in self._held_up:
                with suppress(IllegalStateError):  # It was given out anew meanwhile.
                    consumer.seek(at, partition.next)  # What the client had taken of it went with the error.

    async def _delivery(self, held: Held, settler: Settler) -> Delivery | None:
        self._out += 1
        self._idle.clear()
        return await self._deliver(held.record, held.attempt, settler)

    def _came_back(self) -> None:
        self._out -= 1
        if self._out == 0:
            self._idle.set()

    def settle(self, partition: Partition, held: Held) -> None:
        """Be done with a record."""
        super().settle(partition, held)
        self._came_back()

    def again(self, partition: Partition, held: Held, delay: float) -> None:
        """Hand a record out again, some seconds later; its lane waits for it."""
        super().again(partition, held, delay)
        self._came_back()

    # Positions

    async def _commits(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._commit()
            await asyncio.sleep(COMMIT_EVERY)

    async def _commit(self) -> None:
        """Commit what is settled; if that fails, it is tried again, or another member's now."""
        async with self._committing:
            every = self._partitions.values()
            lows = {each.at: each.low for each in every if each.committed is not None and each.low > each.committed}
            if not lows or self._consumer is None:
                return
            try:
                async with asyncio.timeout(COMMIT_SECONDS):
                    await self._put(lows)
            except NOT_OURS as error:
                logger.debug("not committed, as partitions are given out anew: %r", error)
            except (KafkaError, OSError, TimeoutError) as error:
                logger.debug("not committed: %r", error)
                asyncio.get_running_loop().call_later(COMMIT_AGAIN, self._dirty.set)
            else:
                for at, low in lows.items():
                    if at in self._partitions:
                        self._partitions[at].committed = low

    async def _put(self, offsets: Mapping[Any, int]) -> None:
        """Commit; by the client's inner function, as what it offers forgets a commit that was cancelled."""
        consumer = self.consumer
        assignment = consumer._subscription.subscription.assignment
        if assignment is None or not offsets.keys() <= assignment.tps:
            raise IllegalStateError("the partition is another member's")
        await consumer._coordinator.ensure_coordinator_known()
        told = {at: OffsetAndMetadata(offset, "") for at, offset in offsets.items()}
        await consumer._coordinator._do_commit_offsets(assignment, told)


def _size(record: Any) -> int:
    named = sum([len(name) + len(value or b"") for name, value in record.headers])
    return RECORD_BYTES + len(record.value or b"") + len(record.key or b"") + named
