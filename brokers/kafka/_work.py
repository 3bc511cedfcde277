"""The work in hand: what is fetched is handed out, as many as may be in flight, and settled one by one.

Fetching and committing are others' business. They are asked for by events, and find here what they
need: `Work.fetch_wanted`, `Work.commit_wanted`, `Work.commit_now`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from brokers.kafka._frames import Frames
from brokers.kafka._partition import BEGUN, DELAYED, DONE, HELD, PARKED, READY, Item, Partition, UnreadableError
from brokers.kafka._records import message_of, records
from brokers.shared.handling import run_handler
from mesh.address import Address
from mesh.broker import Delivery, Handler, SubscribeOptions

__all__ = ["FETCH_BELOW_BYTES", "Work"]

logger = logging.getLogger("brokers.kafka")

FETCH_BELOW_BYTES = 256 * 1024  # Of a partition: what is fetched and not read.
READ_AT_ONCE = 64
MAX_OPEN = 5_000  # Of a partition, with those that wait for their time.
MAX_OPEN_BYTES = 4 * 1024 * 1024
MIN_WINDOW = 512
UNREADABLE_WAIT = 5.0


class Work:
    """What one member of a group has in hand."""

    def __init__(
        self, frames: Frames, group: str, address: Address, options: SubscribeOptions, handler: Handler
    ) -> None:
        self._frames = frames
        self._group = group
        self._address = address
        self._options = options
        self._handler = handler
        self.window = max(MIN_WINDOW, 8 * options.max_in_flight)
        self.partitions: dict[int, Partition] = {}
        self._unread: deque[Partition] = deque()
        self._ready: deque[Item] = deque()
        self._keys: dict[tuple[int, str], deque[Item]] = {}
        self.begun: set[Item] = set()
        self.running = 0
        self.frozen = True
        self.stopping = False
        self.fetch_wanted = asyncio.Event()
        self._room = asyncio.Event()
        self.commit_wanted = asyncio.Event()
        self.commit_now = asyncio.Event()
        self.committing = False
        self._handlers: asyncio.TaskGroup | None = None
        self._dispatching = False
        self._reading = False

    # What is in hand

    def begin(self, handlers: asyncio.TaskGroup) -> None:
        """Begin to hand out."""
        self._handlers = handlers
        self.thaw()

    def thaw(self) -> None:
        """Hand out, now that the partitions are this member's."""
        self.frozen = False
        self.want_commit()
        self.dispatch()

    def stop(self) -> None:
        """Hand out no more."""
        self.stopping = True
        self._ready.clear()

    def want_commit(self) -> None:
        """Ask for a commit at once."""
        if not self.commit_now.is_set():
            self.commit_now.set()
            self.commit_wanted.set()

    def lose(self, partition: Partition) -> None:
        """Another member has it now; what is begun here is settled by notes."""
        partition.owned = False
        if partition.retry is not None:
            partition.retry.cancel()
        if self.partitions.get(partition.number) is partition:
            del self.partitions[partition.number]
        for item in partition.items.values():
            if item.timer is not None:
                item.timer.cancel()
        for key in [key for key in self._keys if key[0] == partition.number]:
            del self._keys[key]
        self._ready = deque(item for item in self._ready if item.partition is not partition)
        if partition in self._unread:
            self._unread.remove(partition)

    def lose_all(self) -> None:
        """Other members have everything now."""
        for partition in list(self.partitions.values()):
            self.lose(partition)

    def take(self, partition: Partition, raw: bytes) -> None:
        """Take what was fetched of a partition."""
        try:
            found, top = records(raw, partition.fetched)
        except Exception as error:  # noqa: BLE001 - it is the client's, and holds up this partition only
            self._retry_later(partition, repr(error))
            return
        partition.fetch(found, top, len(raw))
        if partition not in self._unread:
            self._unread.append(partition)

    def _retry_later(self, partition: Partition, reason: str) -> None:
        """Leave alone what cannot be read, for a while: nothing is passed over, and others are not held up."""
        place = partition.number, partition.fetched
        logger.error("%s: cannot read partition %d from offset %d on: %s", self._group, *place, reason)
        if partition.retry is None:
            partition.retry = asyncio.get_running_loop().call_later(UNREADABLE_WAIT, self._retry, partition)

    def _retry(self, partition: Partition) -> None:
        partition.retry = None
        self.fetch_wanted.set()

    def _read_on(self) -> None:
        """Read what was fetched until something is ready; the partitions take turns."""
        if self._reading:
            return  # What is read may be settled by a note at once, and what it kept waiting is handed out then.
        self._reading = True
        try:
            for _ in range(len(self._unread)):
                self._unread.rotate(-1)
                partition = self._unread[-1]
                self._read_some(partition)
                if not partition.unread:
                    self._unread.pop()
                if self._ready:
                    return
        finally:
            self._reading = False

    def _read_some(self, partition: Partition) -> None:
        while not self._ready and partition.unread:
            if len(partition.items) >= MAX_OPEN or partition.bytes >= MAX_OPEN_BYTES:
                return
            try:
                self._read(partition)
            except UnreadableError as error:
                self._retry_later(partition, str(error))
        if partition.unread_bytes < FETCH_BELOW_BYTES:
            self.fetch_wanted.set()

    def _read(self, partition: Partition) -> None:
        now = asyncio.get_running_loop().time()
        clock = time.time() - now
        ordered, ready = self._options.ordered, self._ready
        for record in partition.read(READ_AT_ONCE):
            offset = record.offset
            if partition.skip and partition.is_done(offset):
                partition.touched = offset
                continue
            item = Item(partition, offset, message_of(record))
            partition.add(item)
            waits = False
            if ordered and item.message.key is not None:
                parked = self._keys.get((partition.number, item.message.key))
                if parked is None:
                    self._keys[partition.number, item.message.key] = deque()
                else:
                    parked.append(item)
                    waits = True
            if item.state is HELD:
                self._hold(item)
            elif item.state is DELAYED:
                self._wake_later(item, item.deadline - clock - now)
            elif waits:
                item.state = PARKED
            else:
                ready.append(item)
        if partition.told:
            partition.forget_passed()

    def _hold(self, item: Item) -> None:
        note = self._frames.notes.get((self._group, item.partition.number, item.offset))
        if note is not None and note["n"] == item.attempt:
            if note["k"] == "extend":
                item.deadline = max(item.deadline, note["at"] + note["d"])
            else:
                self.hear(note)

    # Handing out

    def dispatch(self) -> None:
        """Hand out what is ready, as far as that may be."""
        if self._handlers is None:
            return
        ready, most, margin = self._ready, self._options.max_in_flight, self.window // 2
        deadline = asyncio.get_running_loop().time() + self._options.ack_wait
        while self.running < most and not self.frozen and not self.stopping:
            if not ready:
                self._read_on()
                if not ready:
                    self.fetch_wanted.set()  # The fetch need not wait for anything.
                    return
            item = ready[0]
            partition = item.partition
            if not partition.owned or item.state is not READY:
                ready.popleft()
                continue
            if item.offset >= partition.reserved:
                if not self.committing:  # Its end comes back here.
                    self.want_commit()
                return
            ready.popleft()
            item.state = BEGUN
            item.attempt += 1
            item.deadline = deadline
            if item.offset > partition.touched:
                partition.touched = item.offset
            self.begun.add(item)
            self.running += 1
            self._handlers.create_task(self._handle(item, item.attempt), name="kafka-delivery")
            if item.offset + margin >= partition.reserved and not self.committing:
                self.want_commit()

    def _dispatch_soon(self) -> None:
        """Hand out once for all handlers that end in this turn of the event loop."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._dispatching = False
        self.dispatch()

    async def _handle(self, item: Item, attempt: int) -> None:
        async def release() -> None:
            if item.attempt == attempt:
                self.give_back(item)

        try:
            delivery = Delivery(item.message, self._address, attempt, _Settler(self, item, attempt))
            await run_handler(self._handler, delivery, release)
        finally:
            self.running -= 1
            self._room.set()
            self._dispatch_soon()

    async def until_room(self) -> None:
        """Wait until another handler may run."""
        while self.running >= self._options.max_in_flight:
            self._room.clear()
            await self._room.wait()

    @property
    def is_stuck(self) -> bool:
        """Whether every place here is taken by a handler that gives no sign of life."""
        return not self.begun and self.running >= self._options.max_in_flight and not self.stopping

    # Settling

    def settle(self, item: Item, attempt: int, how: str, delay: float = 0.0) -> None:
        """Settle an item: here, or where its partition is now."""
        if item.attempt == attempt or how == "done":
            self.begun.discard(item)
        partition = item.partition
        if not partition.owned or self.frozen:
            note = self._note(item, attempt, how, delay)
            if not partition.owned:
                mine = self.partitions.get(partition.number)
                if mine is not None and item.offset in mine.items:
                    self.hear(note)
                else:
                    self._frames.tell(note)
                return
            self._frames.tell(note)  # It stands as held here in what was committed; perhaps another has it soon.
        if how == "done":
            self._done(item)
        elif item.attempt == attempt and item.state is BEGUN:
            self._again(item, delay)

    def _note(self, item: Item, attempt: int, how: str, delay: float) -> dict[str, Any]:
        return {"g": self._group, "p": item.partition.number, "o": item.offset, "k": how, "d": delay, "n": attempt}

    def extend(self, item: Item, attempt: int) -> None:
        """Note a sign of life."""
        if item.attempt != attempt or item.state is not BEGUN:
            return
        item.deadline = asyncio.get_running_loop().time() + self._options.ack_wait
        if not item.partition.owned:
            self._frames.tell(self._note(item, attempt, "extend", self._options.ack_wait))

    def _done(self, item: Item) -> None:
        if item.state is DONE:
            return
        partition = item.partition
        if item.timer is not None:
            item.timer.cancel()
        item.state = DONE
        partition.remove(item)
        self.commit_wanted.set()
        if self._options.ordered and item.message.key is not None:
            parked = self._keys.get((partition.number, item.message.key))
            if parked:
                self._make_ready(parked.popleft())
            else:
                self._keys.pop((partition.number, item.message.key), None)

    def _make_ready(self, item: Item, *, first: bool = False) -> None:
        item.state = READY
        if first:
            self._ready.appendleft(item)
        else:
            self._ready.append(item)
        self.dispatch()

    def _again(self, item: Item, delay: float) -> None:
        self.begun.discard(item)
        if delay > 0:
            item.state = DELAYED
            item.deadline = time.time() + delay
            self.commit_wanted.set()
            self._wake_later(item, delay)
        else:
            self._make_ready(item, first=self._options.ordered)

    def _wake_later(self, item: Item, delay: float) -> None:
        item.timer = asyncio.get_running_loop().call_later(max(0.0, delay), self._wake, item)

    def _wake(self, item: Item) -> None:
        item.timer = None
        if item.partition.owned and item.state is DELAYED:
            self._make_ready(item)

    def give_back(self, item: Item) -> None:
        """Release: it is as if it had not been begun."""
        if item.state is not BEGUN:
            self.begun.discard(item)
            return
        if item.partition.owned:
            item.attempt -= 1
            self._again(item, 0.0)
        else:
            self.settle(item, item.attempt, "release")

    def hear(self, note: dict[str, Any]) -> None:
        """Take what another member says of an item."""
        partition = self.partitions.get(note["p"])
        item = None if partition is None else partition.items.get(note["o"])
        if item is None or item.state is not HELD or item.attempt != note["n"]:
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

    def take_from_silent(self) -> None:
        """Hand out again what gives no sign of life."""
        now = asyncio.get_running_loop().time()
        silent = [item for item in self.begun if item.deadline < now]
        for item in silent:
            if not item.partition.owned:
                self.begun.discard(item)
            elif not self.stopping:
                logger.warning("%s: no sign of life from the handler of offset %d", self._group, item.offset)
                self._again(item, 0.0)
        held = [
            item
            for p in self.partitions.values()
            for item in p.items.values()
            if item.state is HELD and item.deadline < time.time()
        ]
        for item in held:
            self._again(item, 0.0)


class _Settler:
    """Settles one attempt."""

    __slots__ = ("_attempt", "_item", "_work")

    def __init__(self, work: Work, item: Item, attempt: int) -> None:
        self._work = work
        self._item = item
        self._attempt = attempt

    async def ack(self) -> None:
        self._work.settle(self._item, self._attempt, "done")

    reject = ack

    async def nack(self, delay: float) -> None:
        self._work.settle(self._item, self._attempt, "again", delay)

    async def extend(self) -> None:
        self._work.extend(self._item, self._attempt)
