"""A subscription: fetches ahead, hands out as many as may be in flight, and settles one by one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import Any

from aiokafka import errors as kafka

from brokers.kafka._background import Background
from brokers.kafka._cluster import EARLIEST, RETRY_WAIT, Cluster, error_of
from brokers.kafka._frames import Frames
from brokers.kafka._group import Lost, Membership, NewRound, Solo
from brokers.kafka._partition import Item, Partition, State
from brokers.kafka._records import fetch_request, fetched, records
from mesh.address import Address
from mesh.broker import Delivery, Handler, Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["ID", "Consumer"]

logger = logging.getLogger("brokers.kafka")

ID = ":id"  # The header of `Message.id`; no header of a message holds a colon.
FETCH_WAIT = 0.25
FETCH_WAIT_BUSY = 0.01
MAX_AHEAD = 500
MAX_OPEN = 5_000  # With those that wait for their time.
MAX_AHEAD_BYTES = 4 * 1024 * 1024
COMMIT_WAIT = 0.05
LEAVE_WITHIN = 2.0
MIN_WINDOW = 512


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
        self._address = address
        self._options = options
        self._handler = handler
        self._member = Solo(cluster, topic) if options.ephemeral else Membership(cluster, group, topic)
        self._purpose = cluster.purpose("fetch")
        self._window = max(MIN_WINDOW, 8 * options.max_in_flight)
        self._partitions: dict[int, Partition] = {}
        self._ready: deque[Item] = deque()
        self._keys: dict[tuple[int, str], deque[Item]] = {}
        self._begun: set[Item] = set()
        self._running = 0
        self._frozen = True
        self._stopping = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._commit_wanted = asyncio.Event()
        self._commit_now = asyncio.Event()
        self._committing = asyncio.Lock()
        self._fetching: set[int] = set()
        self._tasks: Background | None = None
        self._handlers: asyncio.TaskGroup | None = None

    # Start and end

    async def start(self, tasks: Background) -> None:
        """Join the group; returns when the member is part of it."""
        self._tasks = tasks
        self._frames.hear.setdefault(self._group, set()).add(self._hear)
        self._frames.tell({"g": self._group, "k": "join"})
        while True:
            try:
                await self._assign(await self._member.join(()))
                break
            except (BrokerUnavailableError, NewRound):
                await asyncio.sleep(RETRY_WAIT)
            except Lost:
                continue
        for work, name in ((self._stay, "member"), (self._commit_often, "commit"), (self._watch, "watch")):
            tasks.create_task(work(), name=f"kafka-{name}")

    def deliver(self, handlers: asyncio.TaskGroup) -> None:
        """Begin to hand out."""
        self._handlers = handlers
        self._thaw()

    async def stop(self) -> None:
        """Hand out no more; what is not begun goes to others at once, if there are any."""
        self._stopping = True
        self._ready.clear()
        if self._begun and self._member.alone and self._member.joined:
            return  # Nobody else could take it; if somebody comes, `_stay` makes room.
        await self._hand_over()

    async def _hand_over(self) -> None:
        """Commit, with what is in flight here, and leave the group."""
        if not self._member.known:
            return
        self._frozen = True
        with suppress(BrokerError, NewRound, Lost, TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN):
                with suppress(NewRound, Lost):
                    if self._member.joined:
                        await self._commit(final=True)
                await self._member.leave()
        self._lose_all()

    async def finish(self) -> None:
        """Release what handlers left unsettled, commit, leave, and end."""
        for item in list(self._begun):  # Their tasks were cancelled, perhaps before the first step.
            self._give_back(item)
        self._stopping = True
        try:
            await self._hand_over()
        finally:
            hearing = self._frames.hear.get(self._group, set())
            hearing.discard(self._hear)
            if not hearing:
                self._frames.hear.pop(self._group, None)
            self._lose_all()
            with suppress(BrokerError):
                await self._member.close()
                await self._cluster.drop(self._purpose)

    # The group

    async def _stay(self) -> None:
        """Be a member until the end."""
        anew = False
        while self._member.joined or not self._stopping:
            try:
                if anew or not self._member.joined:
                    self._frames.tell({"g": self._group, "k": "join"})
                    await self._assign(await self._member.join(self._partitions))
                    anew = False
                    self._thaw()
                await self._member.stay()
                if self._is_stuck:
                    await self._step_aside()
            except NewRound:
                if self._stopping:
                    break
                if self._is_stuck:
                    await self._step_aside()
                    continue
                self._frozen = anew = True
                with suppress(BrokerUnavailableError, Lost, NewRound):
                    await self._commit(final=True)
            except Lost:
                anew = True
                self._lose_all()
            except BrokerUnavailableError:
                await asyncio.sleep(RETRY_WAIT)
        await self._hand_over()

    def _thaw(self) -> None:
        self._frozen = False
        self._want_commit()
        self._dispatch()

    def _want_commit(self) -> None:
        self._commit_now.set()
        self._commit_wanted.set()

    async def _step_aside(self) -> None:
        """Let others have the partitions until there is room here."""
        logger.warning("%s: all %d handlers are silent; others take over", self._group, self._running)
        await self._hand_over()
        while self._running >= self._options.max_in_flight:
            self._room.clear()
            await self._room.wait()

    async def _assign(self, numbers: set[int]) -> None:
        for number in self._partitions.keys() - numbers:
            self._lose(self._partitions[number])
        gained = numbers - self._partitions.keys()
        if gained:
            committed = await self._member.committed(gained)
            missing = gained - committed.keys()
            if missing:
                earliest = await self._cluster.offsets(self._topic, dict.fromkeys(missing, EARLIEST))
                committed |= {number: (offset, "") for number, offset in earliest.items()}
            for number in gained:
                self._partitions[number] = Partition(number, *committed[number])
        self._fetch_from_leaders()
        self._changed.set()

    def _lose(self, partition: Partition) -> None:
        """Another member has it now; what is begun here is settled by notes."""
        partition.owned = False
        if self._partitions.get(partition.number) is partition:
            del self._partitions[partition.number]
        for item in partition.items.values():
            if item.timer is not None:
                item.timer.cancel()
        for key in [key for key in self._keys if key[0] == partition.number]:
            del self._keys[key]
        self._ready = deque(item for item in self._ready if item.partition is not partition)

    def _lose_all(self) -> None:
        for partition in list(self._partitions.values()):
            self._lose(partition)

    # Fetching

    def _fetch_from_leaders(self) -> None:
        assert self._tasks is not None
        for number in range(self._cluster.partitions(self._topic)):
            leader = self._cluster.leader(self._topic, number)
            if leader is not None and leader not in self._fetching:
                self._fetching.add(leader)
                self._tasks.create_task(self._fetch(leader), name="kafka-fetch")

    async def _fetch(self, leader: int) -> None:
        while True:
            mine = [p for p in self._partitions.values() if self._cluster.leader(self._topic, p.number) == leader]
            wanted = [p for p in mine if p.ready < MAX_AHEAD and p.bytes < MAX_AHEAD_BYTES and len(p.items) < MAX_OPEN]
            if not wanted or self._stopping:
                await self._wait_for_work()
                continue
            wait = FETCH_WAIT if len(wanted) == len(mine) else FETCH_WAIT_BUSY
            request = fetch_request([(self._topic, [(p.number, p.top) for p in wanted])], wait)
            asked = {p.number: p for p in wanted}
            try:
                response = await self._cluster.call(leader, request, self._purpose, wait=wait)
                for _, number, code, raw in fetched(response):
                    if (failure := error_of(code)) is not None:
                        await self._recover(asked[number], failure)
                    elif raw and self._partitions.get(number) is asked[number] and not self._stopping:
                        self._take(asked[number], raw)
                self._dispatch()
                if not self._all_led:
                    await self._find_leaders()
            except BrokerUnavailableError:
                await self._find_leaders()

    async def _wait_for_work(self) -> None:
        """Wait until there is something to fetch, or until it is known again who leads a partition."""
        self._changed.clear()
        if self._all_led:
            await self._changed.wait()
        else:
            await self._find_leaders()

    @property
    def _all_led(self) -> bool:
        return all(self._cluster.leader(self._topic, number) is not None for number in self._partitions)

    async def _find_leaders(self) -> None:
        await asyncio.sleep(RETRY_WAIT)
        with suppress(BrokerUnavailableError):
            await self._cluster.refresh(self._topic)
        self._fetch_from_leaders()
        self._changed.set()

    async def _recover(self, partition: Partition, failure: type[kafka.KafkaError]) -> None:
        if failure is kafka.OffsetOutOfRangeError:
            earliest = await self._cluster.offsets(self._topic, {partition.number: EARLIEST})
            logger.warning(
                "%s: what followed offset %d of partition %d is deleted; going on with %d",
                self._group,
                partition.top,
                partition.number,
                earliest[partition.number],
            )
            partition.top = earliest[partition.number]
        else:
            await asyncio.sleep(RETRY_WAIT)
            await self._cluster.refresh(self._topic)
            self._fetch_from_leaders()

    def _take(self, partition: Partition, raw: bytes) -> None:
        found, top = records(raw, partition.top)
        now = asyncio.get_running_loop().time()
        clock = time.time() - now
        ordered = self._options.ordered
        for record in found:
            offset = record.offset
            partition.top = offset + 1
            if partition.skip and partition.is_done(offset):
                partition.touched = offset
                continue
            item = Item(partition, offset, *_message(record))
            partition.add(item)
            waits = False
            if ordered and item.key is not None:
                parked = self._keys.get((partition.number, item.key))
                if parked is None:
                    self._keys[partition.number, item.key] = deque()
                else:
                    parked.append(item)
                    waits = True
            if item.state is State.HELD:
                self._hold(item, clock)
            elif item.state is State.DELAYED:
                self._wake_later(item, item.deadline - clock - now)
            elif waits:
                item.state = State.PARKED
            else:
                self._ready.append(item)
        partition.top = top
        partition.skip = [each for each in partition.skip if each[1] > top]

    def _hold(self, item: Item, clock: float) -> None:
        note = self._frames.notes.get((self._group, item.partition.number, item.offset))
        if note is not None and note["n"] == item.attempt and note["k"] != "extend":
            self._hear(note)

    # Handing out

    def _dispatch(self) -> None:
        if self._handlers is None or not self._ready:
            return
        ready = self._ready
        loop, ack_wait = asyncio.get_running_loop(), self._options.ack_wait
        while ready and not self._frozen and not self._stopping and self._running < self._options.max_in_flight:
            item = ready[0]
            partition = item.partition
            if not partition.owned or item.state is not State.READY:
                ready.popleft()
                continue
            if item.offset >= partition.reserved:
                self._want_commit()
                return
            ready.popleft()
            partition.ready -= 1
            item.state = State.BEGUN
            item.attempt += 1
            item.deadline = loop.time() + ack_wait
            partition.touched = max(partition.touched, item.offset)
            self._begun.add(item)
            self._running += 1
            self._handlers.create_task(self._handle(item, item.attempt), name="kafka-delivery")
            if partition.ready == MAX_AHEAD // 2:
                self._changed.set()
            if item.offset + self._window // 2 >= partition.reserved:
                self._want_commit()
        if not ready:
            self._changed.set()  # The fetch need not wait for anything.

    async def _handle(self, item: Item, attempt: int) -> None:
        delivery = Delivery(item.message, self._address, attempt, _Settler(self, item, attempt))
        try:
            try:
                await self._handler(delivery)
            except Exception:  # The handler's failure is this delivery's alone.
                logger.exception("handler failed on %s", self._address)
            if delivery.settled is None:
                await delivery.nack()
        except asyncio.CancelledError:
            if delivery.settled is None and item.attempt == attempt:
                self._give_back(item)
            raise
        finally:
            self._running -= 1
            self._room.set()
            self._dispatch()

    # Settling

    def settle(self, item: Item, attempt: int, how: str, delay: float = 0.0) -> None:
        """Settle an item: here, or where its partition is now."""
        if item.attempt == attempt or how == "done":
            self._begun.discard(item)
        number, offset = item.partition.number, item.offset
        note = {"g": self._group, "p": number, "o": offset, "k": how, "d": delay, "n": attempt}
        if not item.partition.owned:
            mine = self._partitions.get(number)
            if mine is not None and offset in mine.items:
                self._hear(note)
            else:
                self._frames.tell(note)
            return
        if self._frozen:
            self._frames.tell(note)  # It stands as held here in what was committed; perhaps another has it soon.
        if how == "done":
            self._done(item)
        elif item.attempt == attempt and item.state is State.BEGUN:
            self._again(item, delay)

    def extend(self, item: Item, attempt: int) -> None:
        """Note a sign of life."""
        if item.attempt != attempt or item.state is not State.BEGUN:
            return
        item.deadline = asyncio.get_running_loop().time() + self._options.ack_wait
        if not item.partition.owned:
            self._frames.tell(
                {
                    "g": self._group,
                    "p": item.partition.number,
                    "o": item.offset,
                    "k": "extend",
                    "d": self._options.ack_wait,
                    "n": attempt,
                }
            )

    def _done(self, item: Item) -> None:
        if item.state is State.DONE:
            return
        partition = item.partition
        if item.timer is not None:
            item.timer.cancel()
        if item.state is State.READY:
            partition.ready -= 1
        item.state = State.DONE
        partition.remove(item)
        self._commit_wanted.set()
        if self._options.ordered and item.key is not None:
            parked = self._keys.get((partition.number, item.key))
            if parked:
                self._make_ready(parked.popleft())
            else:
                self._keys.pop((partition.number, item.key), None)

    def _make_ready(self, item: Item, *, first: bool = False) -> None:
        if item.state is not State.PARKED:
            item.partition.ready += 1
        item.state = State.READY
        if first:
            self._ready.appendleft(item)
        else:
            self._ready.append(item)
        self._dispatch()

    def _again(self, item: Item, delay: float) -> None:
        self._begun.discard(item)
        if delay > 0:
            item.state = State.DELAYED
            item.deadline = time.time() + delay
            self._commit_wanted.set()
            self._wake_later(item, delay)
        else:
            self._make_ready(item, first=self._options.ordered)

    def _wake_later(self, item: Item, delay: float) -> None:
        item.timer = asyncio.get_running_loop().call_later(max(0.0, delay), self._wake, item)

    def _wake(self, item: Item) -> None:
        item.timer = None
        if item.partition.owned and item.state is State.DELAYED:
            self._make_ready(item)

    def _give_back(self, item: Item) -> None:
        """Release: it is as if it had not been begun."""
        if item.state is not State.BEGUN:
            self._begun.discard(item)
            return
        if item.partition.owned:
            item.attempt -= 1
            self._again(item, 0.0)
        else:
            self.settle(item, item.attempt, "release")

    def _hear(self, note: dict[str, Any]) -> None:
        """Take what another member says."""
        if note["k"] == "join":
            if self._member.joined:
                self._member.poke()
            return
        partition = self._partitions.get(note["p"])
        item = None if partition is None else partition.items.get(note["o"])
        if item is None or item.state is not State.HELD or item.attempt != note["n"]:
            return
        how = note["k"]
        if how == "done":
            self._done(item)
        elif how == "extend":
            item.deadline = time.time() + note["d"]
        else:
            if how == "release":
                item.attempt -= 1
            self._again(item, note["d"])

    # What happens by itself

    async def _watch(self) -> None:
        """Hand out again what gives no sign of life."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, max(0.02, self._options.ack_wait / 10)))
            now = loop.time()
            silent = [item for item in self._begun if item.deadline < now]
            for item in silent:
                if not item.partition.owned:
                    self._begun.discard(item)
                elif not self._stopping:
                    logger.warning("%s: no sign of life from the handler of offset %d", self._group, item.offset)
                    self._again(item, 0.0)
            held = [
                item
                for p in self._partitions.values()
                for item in p.items.values()
                if item.state is State.HELD and item.deadline < time.time()
            ]
            for item in held:
                self._again(item, 0.0)
            if self._is_stuck and not self._member.alone:
                self._member.interrupt()

    @property
    def _is_stuck(self) -> bool:
        """Whether every place here is taken by a handler that gives no sign of life."""
        return not self._begun and self._running >= self._options.max_in_flight and not self._stopping

    async def _commit_often(self) -> None:
        while True:
            await self._commit_wanted.wait()
            if not self._commit_now.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(COMMIT_WAIT):
                        await self._commit_now.wait()
            self._commit_wanted.clear()
            self._commit_now.clear()
            if not self._member.joined or self._frozen:
                continue
            try:
                await self._commit()
            except BrokerUnavailableError:
                await asyncio.sleep(RETRY_WAIT)
                self._want_commit()
            except (NewRound, Lost):
                self._member.poke()

    async def _commit(self, *, final: bool = False) -> None:
        async with self._committing:
            changed: dict[int, tuple[int, str]] = {}
            reserved: dict[Partition, int] = {}
            for number, partition in self._partitions.items():
                if final:
                    note = partition.note(self._frames.node, None)
                else:
                    low = partition.low
                    upto = max(partition.reserved, low + self._window)
                    first = next((i for i in partition.items.values() if i.state is State.READY), None)
                    if first is not None:
                        upto = max(upto, first.offset + self._window)
                    if partition.top == low and not partition.items and partition.committed is not None:
                        upto = partition.reserved
                    before, partition.reserved = partition.reserved, upto
                    note = partition.note(self._frames.node, upto - low)
                    partition.reserved = before
                    reserved[partition] = upto
                if note != partition.committed:
                    changed[number] = note
            if changed:
                await self._member.commit(changed)
                for number, note in changed.items():
                    if number in self._partitions:
                        self._partitions[number].committed = note
            for partition, upto in reserved.items():
                partition.reserved = upto
            if final:
                for partition in self._partitions.values():
                    partition.reserved = partition.low
            self._dispatch()


class _Settler:
    """Settles one attempt."""

    __slots__ = ("_attempt", "_consumer", "_item")

    def __init__(self, consumer: Consumer, item: Item, attempt: int) -> None:
        self._consumer = consumer
        self._item = item
        self._attempt = attempt

    async def ack(self) -> None:
        self._consumer.settle(self._item, self._attempt, "done")

    reject = ack

    async def nack(self, delay: float) -> None:
        self._consumer.settle(self._item, self._attempt, "again", delay)

    async def extend(self) -> None:
        self._consumer.extend(self._item, self._attempt)


def _message(record: Any) -> tuple[Message, str | None]:
    headers: dict[str, str] = {}
    identity: str | None = None
    for name, value in record.headers:
        if name == ID:
            identity = value.decode()
        else:
            headers[name] = value.decode("utf-8", "replace") if value is not None else ""
    key = record.key.decode("utf-8", "replace") if record.key is not None else None
    return Message(headers, record.value or b"", key=key, id=identity), key
