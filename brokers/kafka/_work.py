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
from brokers.kafka._partition import Item, Partition, State
from brokers.kafka._records import message_of
from mesh.address import Address
from mesh.broker import Delivery, Handler, SubscribeOptions

__all__ = ["MAX_AHEAD", "Work"]

logger = logging.getLogger("brokers.kafka")

MAX_AHEAD = 500
MIN_WINDOW = 512


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
        self._handlers: asyncio.TaskGroup | None = None

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
        self.commit_now.set()
        self.commit_wanted.set()

    def lose(self, partition: Partition) -> None:
        """Another member has it now; what is begun here is settled by notes."""
        partition.owned = False
        if self.partitions.get(partition.number) is partition:
            del self.partitions[partition.number]
        for item in partition.items.values():
            if item.timer is not None:
                item.timer.cancel()
        for key in [key for key in self._keys if key[0] == partition.number]:
            del self._keys[key]
        self._ready = deque(item for item in self._ready if item.partition is not partition)

    def lose_all(self) -> None:
        """Other members have everything now."""
        for partition in list(self.partitions.values()):
            self.lose(partition)

    def take(self, partition: Partition, found: list[Any], top: int) -> None:
        """Take what was fetched of a partition, up to `top`."""
        now = asyncio.get_running_loop().time()
        clock = time.time() - now
        ordered = self._options.ordered
        for record in found:
            offset = record.offset
            partition.top = offset + 1
            if partition.skip and partition.is_done(offset):
                partition.touched = offset
                continue
            item = Item(partition, offset, *message_of(record))
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
            self.hear(note)

    # Handing out

    def dispatch(self) -> None:
        """Hand out what is ready, as far as that may be."""
        if self._handlers is None or not self._ready:
            return
        ready = self._ready
        loop, ack_wait = asyncio.get_running_loop(), self._options.ack_wait
        while ready and not self.frozen and not self.stopping and self.running < self._options.max_in_flight:
            item = ready[0]
            partition = item.partition
            if not partition.owned or item.state is not State.READY:
                ready.popleft()
                continue
            if item.offset >= partition.reserved:
                self.want_commit()
                return
            ready.popleft()
            partition.ready -= 1
            item.state = State.BEGUN
            item.attempt += 1
            item.deadline = loop.time() + ack_wait
            partition.touched = max(partition.touched, item.offset)
            self.begun.add(item)
            self.running += 1
            self._handlers.create_task(self._handle(item, item.attempt), name="kafka-delivery")
            if partition.ready == MAX_AHEAD // 2:
                self.fetch_wanted.set()
            if item.offset + self.window // 2 >= partition.reserved:
                self.want_commit()
        if not ready:
            self.fetch_wanted.set()  # The fetch need not wait for anything.

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
                self.give_back(item)
            raise
        finally:
            self.running -= 1
            self._room.set()
            self.dispatch()

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
        number, offset = item.partition.number, item.offset
        note = {"g": self._group, "p": number, "o": offset, "k": how, "d": delay, "n": attempt}
        if not item.partition.owned:
            mine = self.partitions.get(number)
            if mine is not None and offset in mine.items:
                self.hear(note)
            else:
                self._frames.tell(note)
            return
        if self.frozen:
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
        self.commit_wanted.set()
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
        self.dispatch()

    def _again(self, item: Item, delay: float) -> None:
        self.begun.discard(item)
        if delay > 0:
            item.state = State.DELAYED
            item.deadline = time.time() + delay
            self.commit_wanted.set()
            self._wake_later(item, delay)
        else:
            self._make_ready(item, first=self._options.ordered)

    def _wake_later(self, item: Item, delay: float) -> None:
        item.timer = asyncio.get_running_loop().call_later(max(0.0, delay), self._wake, item)

    def _wake(self, item: Item) -> None:
        item.timer = None
        if item.partition.owned and item.state is State.DELAYED:
            self._make_ready(item)

    def give_back(self, item: Item) -> None:
        """Release: it is as if it had not been begun."""
        if item.state is not State.BEGUN:
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
            if item.state is State.HELD and item.deadline < time.time()
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
