"""The memory broker: one process, nothing stored on disk; the reference of the contract.

========== ======================================================================================
space      must be declared, as on every broker
topic      an ordered log per space; an entry stays until every group that matches it has acked it,
           or, without any group, until ``Topology.max_age`` has passed
group      a queue of log entries, created by its first subscriber and kept when the last one leaves
ack        the group is done with the entry
nack       back into the group's queue, at its place in the order, after the delay
order      of equal keys, one delivery at a time per group; a delayed one holds back only its key
frames     straight to the other node's sink, through the event loop
========== ======================================================================================
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from brokers.shared.handling import run_handler
from brokers.shared.limits import check_size, publish_each
from mesh.address import Address, matches
from mesh.broker import (
    Backlog,
    Delivery,
    Features,
    Frame,
    Handler,
    KeyValue,
    Message,
    Sink,
    SubscribeOptions,
    Topology,
)
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    PublishRejectedError,
    TopologyMismatchError,
)
from mesh.key_value import MemoryKeyValue
from mesh.large import MAX_EVENT_BYTES
from mesh.resources.component import Component
from mesh.tasks import task_group

__all__ = ["MemoryBroker", "MemoryHub"]

MAX_STORED_BYTES = 256 * 1024 * 1024
MAX_HEADER_BYTES = 1024 * 1024
DEDUP_WINDOW = 120.0
MAX_DEDUP_IDS = 100_000


class _Entry:
    """One stored message."""

    __slots__ = ("address", "message", "stored_at", "waiting")

    def __init__(self, address: Address, message: Message) -> None:
        self.address = address
        self.message = message
        self.stored_at = time.monotonic()
        self.waiting = 0


class _Group:
    """What one group has yet to handle."""

    def __init__(self, pattern: str, *, ordered: bool) -> None:
        self.pattern = pattern
        self.ordered = ordered
        self.ready: OrderedDict[int, _Entry] = OrderedDict()
        self.attempts: dict[int, int] = {}
        self.busy_keys: set[str] = set()
        self.changed = asyncio.Event()

    def put(self, sequence: int, entry: _Entry) -> None:
        self.ready[sequence] = entry
        self.changed.set()

    def put_back(self, sequence: int, entry: _Entry) -> None:
        self.ready[sequence] = entry
        self.ready = OrderedDict(sorted(self.ready.items()))
        self.free(entry)

    def free(self, entry: _Entry) -> None:
        if self.ordered and entry.message.key is not None:
            self.busy_keys.discard(entry.message.key)
        self.changed.set()

    def take(self) -> tuple[int, _Entry] | None:
        for sequence, entry in self.ready.items():
            key = entry.message.key if self.ordered else None
            if key is None or key not in self.busy_keys:
                del self.ready[sequence]
                if key is not None:
                    self.busy_keys.add(key)
                return sequence, entry
        return None


class _Space:
    """The log of one space."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.log: dict[int, _Entry] = {}
        self.groups: dict[tuple[str, str], _Group] = {}
        self.ids: OrderedDict[str, float] = OrderedDict()
        self.sequences = itertools.count(1)
        self.stored_bytes = 0


class MemoryHub:
    """What the memory brokers of one process share."""

    def __init__(self) -> None:
        """Start empty."""
        self.spaces: dict[str, _Space] = {}
        self.served: dict[str, dict[str, list[Sink]]] = {}
        self.listening: dict[str, list[Sink]] = {}
        self.inboxes: dict[str, MemoryBroker] = {}
        self.stores: dict[str, MemoryKeyValue] = {}
        self.numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """It has none."""


class MemoryBroker:
    """A broker in this process."""

    title = "Events in the gateway's memory, gone with it; nobody else sees them."
    tested = "in its own process"
    settings = MemorySettings
    features = Features(
        name="memory",
        max_message_bytes=MAX_EVENT_BYTES,  # In one process nothing is written anew.
        ordering=True,
        delay=True,
        dedup=True,
        wildcard=True,
        key_value=True,
        ephemeral=True,
    )

    def __init__(self, hub: MemoryHub | None = None) -> None:
        """Join a hub.

        Args:
            hub: Brokers of one hub see each other; None for a hub of its own.
        """
        self._hub = hub or MemoryHub()
        self.inbox = f"inbox{next(self._hub.numbers)}"
        self._sink: Sink | None = None
        self._open = False

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Build for the backbone ``memory:``, a mesh of one node."""
        return cls()

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Build for ``pubsub.in-memory``, which has no settings; every gateway has its own."""
        return cls()

    async def __aenter__(self) -> Self:
        """Open it."""
        self._open = True
        self._hub.inboxes[self.inbox] = self
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        self._open = False
        self._hub.inboxes.pop(self.inbox, None)

    async def check(self) -> None:
        """Tell whether it is open."""
        if not self._open:
            raise BrokerUnavailableError("the memory broker is closed")

    async def declare(self, topology: Topology) -> None:
        """Make a space, or check that it is as wanted."""
        await self.check()
        space = self._hub.spaces.setdefault(topology.space, _Space(topology))
        if space.topology != topology:
            raise TopologyMismatchError(f"{topology.space} exists with {space.topology}, wanted {topology}")

    async def publish(self, address: Address, message: Message) -> None:
        """Store a message in every matching group's queue."""
        await self.check()
        check_size(b"", message.headers, MAX_HEADER_BYTES)
        check_size(message.body, message.headers, self.features.max_message_bytes)
        space = self._hub.spaces.get(address.space)
        if space is None:
            raise PublishRejectedError(f"{address.space} was never declared")
        now = time.monotonic()
        identity = None if message.id is None else f"{address.name} {message.id}"
        if identity is not None:
            while space.ids and (next(iter(space.ids.values())) < now - DEDUP_WINDOW or len(space.ids) > MAX_DEDUP_IDS):
                space.ids.popitem(last=False)
            if identity in space.ids:
                return
        self._make_room(space, len(message.body), now)
        if identity is not None:
            space.ids[identity] = now
        entry = _Entry(address, message)
        sequence = next(space.sequences)
        groups = [group for group in space.groups.values() if matches(group.pattern, address.name)]
        entry.waiting = len(groups)
        space.log[sequence] = entry
        space.stored_bytes += len(message.body)
        for group in groups:
            group.put(sequence, entry)

    def _make_room(self, space: _Space, size_bytes: int, now: float) -> None:
        max_age, max_bytes = space.topology.max_age, space.topology.max_bytes
        limit = MAX_STORED_BYTES if max_bytes is None else max_bytes
        if max_age is not None:
            for sequence in [s for s, e in itertools.islice(space.log.items(), 100) if e.stored_at < now - max_age]:
                self._forget(space, sequence)
                for group in space.groups.values():
                    group.ready.pop(sequence, None)
                    group.attempts.pop(sequence, None)
        if space.stored_bytes + size_bytes > limit:
            raise PublishRejectedError(f"storage is full: {limit} bytes wait to be handled")

    def _forget(self, space: _Space, sequence: int) -> None:
        entry = space.log.pop(sequence, None)
        if entry is not None:
            space.stored_bytes -= len(entry.message.body)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several, in order."""
        return await publish_each(self.publish, address, messages)

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        """Compete for the group's queue."""
        await self.check()
        space = self._hub.spaces.get(address.space)
        if space is None:
            raise BrokerError(f"{address.space} was never declared")
        group = space.groups.get((address.name, options.group))
        if group is None:
            group = space.groups[address.name, options.group] = _Group(address.name, ordered=options.ordered)
            for sequence, entry in space.log.items():
                if not options.ephemeral and matches(address.name, entry.address.name):
                    entry.waiting += 1
                    group.put(sequence, entry)
        elif group.ordered != options.ordered:
            raise TopologyMismatchError(
                f"group {options.group!r} exists with ordered={group.ordered}, wanted {options.ordered}"
            )
        taken: dict[int, _Entry] = {}  # But not begun: a task that is cancelled before its first step runs none of it.
        permits = asyncio.Semaphore(options.max_in_flight)

        async def run(sequence: int, entry: _Entry) -> None:
            del taken[sequence]
            attempt = group.attempts[sequence] = group.attempts.get(sequence, 0) + 1
            settler = _MemorySettler(self, space, group, sequence, entry)
            delivery = Delivery(entry.message, entry.address, attempt, settler)

            async def release() -> None:
                group.attempts[sequence] = attempt - 1
                settler.give_back()

            try:
                await run_handler(handler, delivery, release)
            finally:
                permits.release()

        async def fetch() -> None:
            while True:
                await permits.acquire()
                while (found := group.take()) is None:
                    group.changed.clear()
                    await group.changed.wait()
                taken[found[0]] = found[1]
                tasks.create_task(run(*found), name="memory-delivery")

        try:
            async with task_group() as tasks:
                fetching = tasks.create_task(fetch(), name="memory-fetch")
                try:
                    yield
                finally:
                    fetching.cancel()
        finally:
            for sequence, entry in taken.items():
                group.put_back(sequence, entry)
            if options.ephemeral:
                self._end_group(space, address.name, options.group)

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Count what a group has before it."""
        await self.check()
        space = self._hub.spaces.get(address.space)
        group = None if space is None else space.groups.get((address.name, options.group))
        if space is None or group is None:
            raise BrokerError(f"there is no group {options.group!r} of {address}")
        # One that was handed over has been attempted, and is not ready.
        taken = group.attempts.keys() - group.ready.keys()
        left = [space.log[sequence].stored_at for sequence in (*group.ready, *taken) if sequence in space.log]
        oldest = time.time() - (time.monotonic() - min(left)) if left else None
        return Backlog(len(group.ready), len(taken), oldest)

    def _end_group(self, space: _Space, name: str, group_name: str) -> None:
        """Forget a group; what it has not handled is no longer kept for it."""
        group = space.groups.pop((name, group_name), None)
        for sequence, entry in group.ready.items() if group is not None else ():
            entry.waiting -= 1
            if entry.waiting <= 0:
                self._forget(space, sequence)

    def on_frame(self, sink: Sink) -> None:
        """Set the inbox sink."""
        self._sink = sink

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        """Hand a frame to another node's sink."""
        await self.check()
        check_size(message.body, message.headers, self.features.max_message_bytes)
        loop = asyncio.get_running_loop()
        if isinstance(to, str):
            inbox, _, token = to.partition(".")
            node = self._hub.inboxes.get(inbox)
            if node is not None and node._sink is not None:
                loop.call_soon(node._sink, Frame(message, token, reply_to))
            return
        groups = self._hub.served.get(to.text, {})
        if not any(groups.values()):
            if reply_to and self._sink is not None:
                loop.call_soon(self._sink, Frame(None, reply_to.partition(".")[2], ""))
            return
        for sinks in groups.values():
            if sinks:
                sinks.append(sinks.pop(0))
                loop.call_soon(sinks[-1], Frame(message, "", reply_to))

    @asynccontextmanager
    async def serve(self, address: Address, group: str, sink: Sink) -> AsyncIterator[None]:
        """Compete for frames sent to an address."""
        sinks = self._hub.served.setdefault(address.text, {}).setdefault(group, [])
        sinks.append(sink)
        try:
            yield
        finally:
            sinks.remove(sink)
            await asyncio.sleep(0)  # What is in the loop's queue for this sink still runs.

    async def broadcast(self, address: Address, message: Message) -> None:
        """Hand to every listener."""
        await self.check()
        for sink in list(self._hub.listening.get(address.text, [])):
            asyncio.get_running_loop().call_soon(sink, Frame(message, "", ""))

    @asynccontextmanager
    async def listen(self, address: Address, sink: Sink) -> AsyncIterator[None]:
        """Hear what is broadcast."""
        sinks = self._hub.listening.setdefault(address.text, [])
        sinks.append(sink)
        try:
            yield
        finally:
            sinks.remove(sink)

    async def key_value(self, name: str, *, dotted: bool = False) -> KeyValue:
        """Open a store of this hub."""
        return self._hub.stores.setdefault(name, MemoryKeyValue(dotted=dotted))


class _MemorySettler:
    """Settles one delivery of the memory broker."""

    __slots__ = ("_broker", "_entry", "_group", "_sequence", "_space")

    def __init__(self, broker: MemoryBroker, space: _Space, group: _Group, sequence: int, entry: _Entry) -> None:
        self._broker = broker
        self._space = space
        self._group = group
        self._sequence = sequence
        self._entry = entry

    async def ack(self) -> None:
        self._entry.waiting -= 1
        self._group.attempts.pop(self._sequence, None)
        if self._entry.waiting <= 0:
            self._broker._forget(self._space, self._sequence)
        self._group.free(self._entry)

    reject = ack

    async def nack(self, delay: float) -> None:
        if delay > 0:
            asyncio.get_running_loop().call_later(delay, self.give_back)
        else:
            self.give_back()

    def give_back(self) -> None:
        self._group.put_back(self._sequence, self._entry)

    async def extend(self) -> None:
        """Hold on: the memory broker never takes a delivery back by itself."""
