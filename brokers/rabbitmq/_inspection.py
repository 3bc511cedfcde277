"""What is on RabbitMQ for a topic, and the messages that lie there for nobody, one after the other.

A topic has no messages of its own: each group has a queue. What is published before any group asks for it lies in its
space's queue ``…:unclaimed``, as dead letters do that nobody subscribed to; those are gone through here. A group's own
queue is its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import blake2s

from aiormq import spec

from brokers.rabbitmq._channel import TAG, Channel, Delivered
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._message import decode
from brokers.rabbitmq._names import exchange_name
from brokers.rabbitmq._refusals import ERRORS, RefusedError
from brokers.rabbitmq._session import Session
from brokers.rabbitmq._topology import NOT_FOUND, PRECONDITION_FAILED, Space, count_on, exists, group_queues
from brokers.rabbitmq._unclaimed import MAX_BYTES, SILENCE_LIMIT, dialled, topic_of
from mesh.address import Address
from mesh.broker import SubscribeOptions, Topology
from mesh.errors import BrokerError, BrokerUnavailableError
from mesh.inspection import Letter, Pile, Standing

__all__ = ["Inspection", "Tags"]

BACK_WAIT = 0.02
SETTLE_WITHIN = 5.0


class Inspection:
    """The part of the adapter that looks on."""

    _session: Session

    def _space(self, topology: Topology) -> Space:
        raise NotImplementedError

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Look at a space's exchange, and at the queue of a group; see ``Inspectable``."""
        connection, exchange = self._session.current(), exchange_name(address.space)
        place, there, differs, refused = f"exchange {exchange}", None, "", list[str]()
        with ERRORS:
            try:
                found = await exists(connection, spec.Exchange.Declare(exchange=exchange, passive=True))
                if options is not None:
                    there, differs = await self._group(connection, address, options)
            except RefusedError as error:
                found = False
                refused.append(str(error))
        return Standing(place, exists=found, group=there, differs=differs, refused=tuple(refused))

    async def _group(self, connection: Connection, address: Address, options: SubscribeOptions) -> tuple[bool, str]:
        """Look for a group's queue; one that is there is declared once more, which the server refuses if it differs."""
        queue = group_queues(self._space(Topology(address.space)), address, options)[0]
        if not await exists(connection, spec.Queue.Declare(queue=queue.name, passive=True)):
            return False, ""
        try:
            async with connection.channel(queue.declared):
                return True, ""
        except RefusedError as error:
            if error.reply_code != PRECONDITION_FAILED:
                raise
            return True, error.text

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        """Go through what no group asked for; what is removed is acknowledged, the rest goes back to its place."""
        unclaimed = Space(Topology(address.space)).unclaimed
        async with dialled(self._session, f"{exchange_name(address.space)}:lock") as connection:
            pile = _Unclaimed(connection, unclaimed, address.name)
            try:
                yield pile
            except BaseException:
                with suppress(BrokerError):  # What came first is told.
                    await pile.settled()
                raise
            await pile.settled()


class Tags:
    """Delivery tags of letters that are held, by ids that each has alone: several messages may have one id."""

    def __init__(self) -> None:
        """Hold none."""
        self._tags: dict[str, int | None] = {}
        self._same: Counter[str] = Counter()

    def add(self, identity: str | None, body: bytes, tag: int) -> str:
        """Give the id of one more letter: its own, or of its body; the second of these is ``id#2``."""
        found = identity or blake2s(body, digest_size=12).hexdigest()
        self._same[found] += 1
        name = found if self._same[found] == 1 else f"{found}#{self._same[found]}"
        while name in self._tags:  # Another one has that as its own id.
            self._same[found] += 1
            name = f"{found}#{self._same[found]}"
        self._tags[name] = tag
        return name

    def take(self, identity: str) -> int | None:
        """Give a letter's tag, once."""
        tag = self._tags.get(identity)
        if tag is not None:
            self._tags[identity] = None
        return tag

    def clear(self) -> None:
        """Hold none any more."""
        self._tags.clear()
        self._same.clear()


class _Unclaimed:
    """The messages of a topic in the queue of what nobody asked for."""

    def __init__(self, connection: Connection, queue: str, topic: str) -> None:
        self._connection, self._queue, self._topic = connection, queue, topic
        self._found: deque[Delivered] = deque()
        self._bytes = 0
        self._seen = self._removed = 0
        self._changed = asyncio.Event()
        self._tags = Tags()
        self._channel: Channel | None = None

    async def _waiting(self) -> int:
        try:
            async with self._connection.channel() as channel:
                return (await count_on(channel, self._queue))[0]
        except RefusedError as error:
            if error.reply_code != NOT_FOUND:
                raise
            return 0

    async def count(self) -> int:
        """Count by going through them: others lie in the same queue."""
        found = 0
        async for _ in self:
            found += 1
        await self._close()
        return found

    async def __aiter__(self) -> AsyncIterator[Letter]:
        await self._close()
        if not (waiting := await self._waiting()):
            return
        self._channel = await self._connection.open_channel(take=self._take)
        await self._channel.call(spec.Basic.Consume(queue=self._queue, consumer_tag=TAG))
        while self._found or self._seen < waiting:
            self._changed.clear()
            if not self._found:
                try:
                    async with asyncio.timeout(SILENCE_LIMIT):
                        await self._changed.wait()
                except TimeoutError:
                    return  # The rest is gone: it expired, or somebody removed it.
                continue
            delivered = self._found.popleft()
            self._bytes -= len(delivered.body)
            if self._bytes < MAX_BYTES:
                self._connection.resume()
            message, _ = decode(delivered.properties, delivered.body)
            identity = self._tags.add(message.id, delivered.body, delivered.tag)
            sent = delivered.properties.timestamp
            yield Letter(identity, message, None if sent is None else sent.timestamp())

    def _take(self, delivered: Delivered) -> None:
        self._seen += 1
        self._changed.set()
        if topic_of(delivered) == self._topic:
            self._found.append(delivered)
            self._bytes += len(delivered.body)
            if self._bytes >= MAX_BYTES:
                self._connection.pause()

    async def remove(self, letters: Sequence[Letter]) -> None:
        for each in letters:
            tag = self._tags.take(each.id)
            if self._channel is None or self._channel.error is not None or tag is None:
                raise BrokerError(f"the letter {each.id} is not held any more, and goes back to its queue")
            await self._channel.ack(tag)
            self._removed += 1

    async def settled(self) -> None:
        """Return once the server has stored what was removed; see ``_unclaimed``.

        Raises:
            BrokerError: It is not known whether it has.
        """
        channel = self._channel
        if channel is None or channel.error is not None:
            return
        self._connection.resume()
        second = TAG + "-2"
        try:
            async with asyncio.timeout(SETTLE_WITHIN):
                await channel.call(spec.Basic.Cancel(consumer_tag=TAG))
                await channel.call(spec.Basic.Consume(queue=self._queue, consumer_tag=second))
                await channel.call(spec.Basic.Cancel(consumer_tag=second))
        except TimeoutError:
            told = f"RabbitMQ did not say within {SETTLE_WITHIN:g} s that what was removed is gone: it may be back"
            raise BrokerUnavailableError(told) from None
        channel.settled_at = 0.0

    async def _close(self) -> None:
        """Begin anew: all that is unsettled goes back."""
        if self._channel is not None:
            await self.settled()
            self._channel.close()
            with suppress(TimeoutError):  # Until it is there again, but for what others have taken meanwhile.
                async with asyncio.timeout(SILENCE_LIMIT):
                    while True:
                        if await self._waiting() >= self._seen - self._removed:
                            break
                        await asyncio.sleep(BACK_WAIT)
        self._channel, self._seen, self._removed, self._bytes = None, 0, 0, 0
        self._found.clear()
        self._tags.clear()
