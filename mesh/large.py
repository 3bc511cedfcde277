"""Events of any size: a body that is too large for a message is kept beside its topic, in parts.

The message that travels says where, how large it is and what its hash is. Whoever handles it gets the message as it was
published, so that nobody else knows of this: it is stored, handed out, settled, retried and deduplicated as any other.

Where the parts are is the broker's matter. One that has a key/value store keeps them there, each under the hash of
the body; another offers ``bodies`` itself (`BodiesProvider`). They expire a while after the topic would have dropped
the message: other groups, and groups that are yet to come, read them as well, so nobody who has read them deletes them.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import msgspec
from msgspec.structs import replace

from mesh.address import Address
from mesh.broker import (
    Broker,
    Delivery,
    Handler,
    KeyValue,
    KeyValueProvider,
    Message,
    SubscribeOptions,
    Topology,
    Write,
)
from mesh.errors import (
    BadArgumentError,
    BrokerError,
    BrokerUnavailableError,
    EventError,
    MessageTooLargeError,
    PublishRejectedError,
    StateError,
)
from mesh.inspection import Letter, Letters, Pile, Remembering
from mesh.tasks import task_group

__all__ = [
    "MAX_EVENT_BYTES",
    "PARTS_HEADER",
    "Ageing",
    "Bodies",
    "BodiesProvider",
    "bodies_name",
    "carrying",
    "whole_letters",
]

PARTS_HEADER = "mesh-in-parts"
MAX_EVENT_BYTES = 65 * 1024 * 1024  # The largest body that a gateway is made for, and its event's attributes.
PART_BYTES = 1024 * 1024
HEADER_ROOM_BYTES = 32 * 1024
MIN_PART_BYTES = 16 * 1024
IN_HAND_BYTES = 64 * 1024 * 1024
AT_ONCE = 8
READ_SECONDS = 30.0
LINGER_SECONDS = 3600.0  # Who has the message just before the topic drops it still reads its body.
_DUE_HEADER = "mesh-not-before"  # Of what is held until then.
_CLAIM = re.compile(r"([1-9]\d{0,9}) ([1-9]\d{0,4}) ([0-9a-f]{64}) ([!-~]+)")


class Bodies(Protocol):
    """Where a broker keeps what is too large for a message of a space."""

    async def put(self, name: str, parts: Sequence[memoryview]) -> str:
        """Keep a body; give its place, once the broker has confirmed all of it.

        Args:
            name: Of the body: equal ones have equal names.
            parts: Its parts; none is larger than a message may be.

        Returns:
            What `get` finds it by: printable ASCII without blanks.

        Raises:
            BrokerError: Not all of it is kept; what is expires.
        """

    async def get(self, name: str, place: str, count: int, size: int) -> Sequence[bytes] | None:
        """Read the parts of a body, in order; None when one of them is gone for good.

        Args:
            name: As it was kept.
            place: What `put` gave, or what somebody says in its place.
            count: How many parts it has.
            size: Its bytes; what has more is another body, of which no more is read, and nothing given.

        Raises:
            BrokerError: They cannot be read now.
        """


class BodiesProvider(Protocol):
    """A broker without ``Features.key_value`` that keeps large bodies."""

    async def bodies(self, space: str, seconds: float | None) -> Bodies:
        """Open what holds those of a declared space, each for some seconds at least; None for ever."""


class Ageing(Protocol):
    """A broker that removes what is old, also what a group has taken and is held back for later."""

    def max_age(self, topology: Topology) -> float | None:
        """Give the seconds after which it removes events of a space; None for never."""


class _Claim(msgspec.Struct, frozen=True):
    """What a message says of its body."""

    size: int
    count: int
    digest: str
    place: str

    def __str__(self) -> str:
        return f"{self.size} {self.count} {self.digest} {self.place}"

    @classmethod
    def read(cls, text: str) -> _Claim:
        """Read it, whoever wrote it.

        Raises:
            EventError: It is none, or of a body that is larger than any of ours.
        """
        found = _CLAIM.fullmatch(text)
        if found is None:
            raise EventError(f"the header {PARTS_HEADER} does not say where the event's body is")
        claim = cls(int(found[1]), int(found[2]), found[3], found[4])
        if claim.size > MAX_EVENT_BYTES or claim.count > claim.size // MIN_PART_BYTES + 1:
            raise EventError(
                f"the event's body would have {claim.size} bytes in {claim.count} parts: that is too large"
            )
        return claim


class _InHand:
    """Bounds the bytes that are held; who asks first has them first, and what is larger than all has them alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        async with self._turn:
            while self._taken and self._taken + size > self._limit:
                self._freed.clear()
                await self._freed.wait()
            self._taken += size

    def give_back(self, size: int) -> None:
        self._taken -= size
        self._freed.set()


class _KeyValueBodies:
    """Bodies in a key/value store; equal ones are kept once, by whoever was the last to store them."""

    def __init__(self, store: KeyValue, seconds: float | None) -> None:
        self._store = store
        self._seconds = seconds
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def put(self, name: str, parts: Sequence[memoryview]) -> str:
        async def write(index: int, part: memoryview) -> None:
            async with self._at_once:
                key = _part_key(name, len(parts), index)
                await self._store.apply([Write(key, bytes(part), ttl=self._seconds)])

        try:
            async with task_group() as tasks:
                for index, part in enumerate(parts):
                    tasks.create_task(write(index, part), name="large-put")
        except StateError as error:
            raise PublishRejectedError(f"the event's body cannot be kept: {error}") from error
        return "kv"

    async def get(self, name: str, place: str, count: int, size: int) -> Sequence[bytes] | None:
        found: list[bytes | None] = [None] * count
        left = size

        async def read(index: int) -> None:
            nonlocal left
            async with self._at_once:
                if left < 0:
                    return
                key = _part_key(name, count, index)
                # A follower may not have what was just written.
                entry = await self._store.get(key) or await self._store.get(key, strong=True)
                if entry is not None:
                    found[index] = entry.value
                    left -= len(entry.value)

        try:
            async with task_group() as tasks:
                for index in range(count):
                    tasks.create_task(read(index), name="large-get")
        except StateError as error:
            raise BrokerError(f"the event's body cannot be read: {error}") from error
        if left < 0:
            return []
        return None if None in found else cast("list[bytes]", found)


def _part_key(name: str, count: int, index: int) -> str:
    return f"{name}.{count}.{index}"


def bodies_name(space: str) -> str:
    """Name the key/value store of a space's large bodies."""
    return f"{space}.bodies"


class _Whole(Delivery):
    """A delivery whose body is read when it is asked for, and let go when its handler is done with it."""

    __slots__ = ("_carrier", "_held")

    def __init__(self, delivery: Delivery, carrier: _Carrier) -> None:
        super().__init__(delivery.message, delivery.address, delivery.attempt, delivery)
        self._carrier = carrier
        self._held = 0

    async def complete(self) -> None:
        if self._held:
            return
        claim = _Claim.read(self.message.headers[PARTS_HEADER])
        await self._carrier.in_hand.take(claim.size)
        self._held = claim.size
        try:
            self.message = await self._carrier.whole(self.address.space, self.message, claim)
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        self._carrier.in_hand.give_back(self._held)
        self._held = 0


class _Carrier:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.features = broker.features  # They are fixed once it is entered.
        self.in_hand = _InHand(IN_HAND_BYTES)
        self._room = broker.features.max_message_bytes - HEADER_ROOM_BYTES
        self._removes = getattr(broker, "max_age", None) is not None
        self._declared: dict[str, Topology] = {}
        self._opened: dict[str, Bodies] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def declare(self, topology: Topology) -> None:
        await self._broker.declare(topology)
        self._declared[topology.space] = topology

    async def publish(self, address: Address, message: Message) -> None:
        if _DUE_HEADER in message.headers:
            self._check_due(address, message)
        if len(message.body) > self._room:
            message = await self._kept(address, message)
        await self._broker.publish(address, message)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        if not any(_DUE_HEADER in each.headers or len(each.body) > self._room for each in messages):
            return await self._broker.publish_many(address, messages)
        results: list[BrokerError | None] = [None] * len(messages)
        ready: dict[int, Message] = {}
        for index, message in enumerate(messages):
            try:
                if _DUE_HEADER in message.headers:
                    self._check_due(address, message)
                ready[index] = await self._kept(address, message) if len(message.body) > self._room else message
            except BadArgumentError as error:
                results[index] = BrokerError(str(error))
            except BrokerError as error:
                results[index] = error
        for index, result in zip(ready, await self._broker.publish_many(address, list(ready.values())), strict=True):
            results[index] = result
        return results

    def subscribe(
        self, address: Address, options: SubscribeOptions, handler: Handler
    ) -> AbstractAsyncContextManager[None]:
        def handle(delivery: Delivery) -> Awaitable[None]:
            if PARTS_HEADER in delivery.message.headers:
                return self._handle(_Whole(delivery, self), handler)
            return handler(delivery)

        return self._broker.subscribe(address, options, handle)

    async def _handle(self, delivery: _Whole, handler: Handler) -> None:
        try:
            await handler(delivery)
        finally:
            delivery.let_go()

    def _age(self, space: str) -> float | None:
        topology = self._declared.get(space) or Topology(space)
        return cast("Ageing", self._broker).max_age(topology) if self._removes else topology.max_age

    def _check_due(self, address: Address, message: Message) -> None:
        """Refuse what is to be delivered when it is there no more.

        Raises:
            BadArgumentError: It is.
        """
        from mesh.delivery import seconds_until  # Who only names what is here needs none of it.

        large = len(message.body) > self._room
        due, age = seconds_until(message.headers[_DUE_HEADER]), self._age(address.space)
        if age is not None and due > age and (large or self._removes):
            what = "its body, which is too large for a message," if large else "it"
            raise BadArgumentError(f"the event is to be delivered at {_at(due)}, and {what} is kept until {_at(age)}")

    async def _bodies(self, space: str) -> Bodies:
        found = self._opened.get(space)
        if found is None:
            age = self._age(space)
            seconds = None if age is None else age + LINGER_SECONDS
            if self.features.key_value:
                store = await cast("KeyValueProvider", self._broker).key_value(bodies_name(space))
                found = _KeyValueBodies(store, seconds)
            else:
                found = await cast("BodiesProvider", self._broker).bodies(space, seconds)
            self._opened[space] = found
        return found

    async def _kept(self, address: Address, message: Message) -> Message:
        """Keep the body of a message, and give what travels in its place."""
        size = len(message.body)
        if size > MAX_EVENT_BYTES:
            raise MessageTooLargeError(size, MAX_EVENT_BYTES)
        digest = await _hashed(message.body)
        whole, step = memoryview(message.body), min(PART_BYTES, self._room)
        parts = [whole[start : start + step] for start in range(0, size, step)]
        bodies = await self._bodies(address.space)
        try:
            place = await bodies.put(digest, parts)
        except BaseException:  # Perhaps somebody deleted what they are kept in: the next one has it made again.
            self._opened.pop(address.space, None)
            raise
        claim = _Claim(size, len(parts), digest, place)
        return replace(message, headers={**message.headers, PARTS_HEADER: str(claim)}, body=b"")

    async def whole(self, space: str, message: Message, claim: _Claim) -> Message:
        """Give a message as it was published.

        Raises:
            EventError: Its body is gone, or is another one.
            BrokerError: It cannot be read now.
        """
        try:
            async with asyncio.timeout(READ_SECONDS):
                parts = await (await self._bodies(space)).get(claim.digest, claim.place, claim.count, claim.size)
        except TimeoutError:
            text = f"the event's body of {claim.size} bytes cannot be read: no answer within {READ_SECONDS:g} s"
            raise BrokerUnavailableError(text) from None
        if parts is None:
            text = f"the event's body of {claim.size} bytes is gone: it is kept as long as its topic keeps events"
            raise EventError(text)
        body = b"".join(parts)
        del parts
        if len(body) != claim.size or await _hashed(body) != claim.digest:
            raise EventError(f"the event's body is not the one that was published, of {claim.size} bytes")
        headers = {name: value for name, value in message.headers.items() if name != PARTS_HEADER}
        return replace(message, headers=headers, body=body)


def _at(seconds: float) -> str:
    """Write the time in some seconds."""
    with suppress(OverflowError, ValueError):
        return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat(timespec="seconds")
    return "a time beyond all calendars"


async def _hashed(body: bytes) -> str:
    """Hash in a thread: it takes as long as some hundred operations."""
    return (await asyncio.to_thread(hashlib.sha256, body)).hexdigest()


def carrying(broker: Broker) -> Broker:
    """Give an entered broker that takes and hands out events of any size, up to ``MAX_EVENT_BYTES``.

    One that has no place for large bodies, or whose messages are read by programs that know nothing of this, stays as
    it is, and refuses what is too large for it.
    """
    features = broker.features
    has_place = features.key_value or getattr(broker, "bodies", None) is not None
    ours = getattr(features, "layout", "mesh") == "mesh"
    if not has_place or not ours or features.max_message_bytes >= MAX_EVENT_BYTES:
        return broker
    return cast("Broker", _Carrier(broker))


class _WholePile:
    """A topic's messages with their bodies; see ``Pile``."""

    def __init__(self, pile: Pile, carrier: _Carrier, space: str) -> None:
        self._carrier, self._space, self._pile = carrier, space, pile
        self.count, self.remove = pile.count, pile.remove

    async def check(self, letters: Sequence[Letter]) -> Sequence[Letter]:
        return await self._pile.check(letters) if isinstance(self._pile, Remembering) else letters

    async def __aiter__(self) -> AsyncIterator[Letter]:
        async for letter in self._pile:
            if (claim := letter.message.headers.get(PARTS_HEADER)) is not None:
                with suppress(EventError):  # Its body is gone; its header stays, and says that it had one.
                    whole = await self._carrier.whole(self._space, letter.message, _Claim.read(claim))
                    letter = replace(letter, message=whole)
            yield letter


class _WholeLetters:
    def __init__(self, broker: Letters, carrier: _Carrier) -> None:
        self._broker, self._carrier = broker, carrier

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        async with self._broker.letters(address) as pile:
            yield _WholePile(pile, self._carrier, address.space)


def whole_letters(broker: Letters) -> Letters:
    """Give what goes through topics of an entered broker, with each body whole; one at a time is in memory.

    A message whose body is gone is as it lies there: without one, and with ``PARTS_HEADER``.
    """
    carried = carrying(cast("Broker", broker))
    return _WholeLetters(broker, carried) if isinstance(carried, _Carrier) else broker
