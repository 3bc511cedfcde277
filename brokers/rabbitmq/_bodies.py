"""Large bodies in one stream beside a space's queues: everybody may read what is in it, from an offset on.

The server confirms what is stored without saying where that is. So a mark is stored first, and whoever stores it reads
it back: what is published names the mark's offset, and the parts follow it, with those that others store meanwhile.

Source: www.rabbitmq.com/docs/streams: consumers with ``x-stream-offset`` and acknowledgements, retention by segments.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from aiormq import spec

from brokers.rabbitmq._channel import TAG, Delivered
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._message import encode
from brokers.rabbitmq._names import exchange_name
from brokers.rabbitmq._publisher import Publisher
from brokers.rabbitmq._refusals import RefusedError
from brokers.rabbitmq._session import Session
from brokers.rabbitmq._topology import NOT_FOUND, PRECONDITION_FAILED, queue
from brokers.shared.backoff import CONNECT_WAIT
from mesh.broker import Message
from mesh.errors import BrokerUnavailableError, PublishRejectedError, TopologyMismatchError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from aiormq.abc import ArgumentsType

__all__ = ["RabbitMQBodies"]

AHEAD = 8  # Parts that are on their way at once, in either direction.
SEGMENT_BYTES = 128 * 1024 * 1024
MARK_SECONDS = 10.0
AGAIN_SECONDS = 0.25
MAX_DIGITS = 18  # Of an offset, which has 63 bits.
BODY, PART, MARK = "body", "part", "mark"
OFFSET = "x-stream-offset"

Take = Callable[[int, Delivered], bool]  # Tells whether no more is wanted, by the offset and what is there.


class RabbitMQBodies:
    """The bodies of one space."""

    def __init__(self, session: Session, publisher: Publisher, space: str, seconds: float | None) -> None:
        self._session = session
        self._publisher = publisher
        self._name = f"{exchange_name(space)}:bodies"
        self._declared = False
        self._arguments: ArgumentsType = {
            "x-queue-type": "stream",
            "x-stream-max-segment-size-bytes": SEGMENT_BYTES,
        }
        if seconds is not None:
            self._arguments["x-max-age"] = f"{int(seconds)}s"

    async def put(self, name: str, parts: Sequence[memoryview]) -> str:
        """Store a mark, find where it is, and store the parts behind it."""
        identity, permits = secrets.token_hex(12), asyncio.Semaphore(AHEAD)

        async def store(index: int, part: memoryview) -> None:
            async with permits:
                await self._store(identity, str(index), bytes(part))

        try:
            offset = await self._begin(identity)
            async with task_group() as tasks:
                for index, part in enumerate(parts):
                    tasks.create_task(store(index, part), name="rabbitmq-body")
        except (PublishRejectedError, RefusedError):
            self._declared = False  # Perhaps somebody deleted it; the next one makes it again.
            raise
        return f"{offset}:{identity}"

    async def _begin(self, identity: str) -> int:
        """Store a mark, through broken connections, too; give its offset."""
        while True:
            connection = await self._session.live()
            try:
                if not self._declared:
                    await self._declare(connection)
                return await self._mark(identity)
            except BrokerUnavailableError:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _declare(self, connection: Connection) -> None:
        try:
            async with connection.channel(queue(self._name, self._arguments)):
                self._declared = True
        except RefusedError as error:
            if error.reply_code != PRECONDITION_FAILED:
                raise
            raise TopologyMismatchError(
                f"the stream {self._name} exists on RabbitMQ with other settings than {self._arguments}: {error}; "
                "change them, or delete it there"
            ) from error

    async def _store(self, identity: str, part: str, body: bytes) -> None:
        properties = encode(Message({BODY: identity, PART: part}, b""), stored=True)
        await self._publisher.store("", self._name, properties, body)

    async def _mark(self, identity: str) -> int:
        """Store a mark, and give its offset."""
        found: list[int] = []

        def take(offset: int, delivered: Delivered) -> bool:
            if _told(delivered) == (identity, MARK):
                found.append(offset)
            return bool(found)

        try:
            async with asyncio.timeout(MARK_SECONDS), self._reading("next", take) as over:
                await self._store(identity, MARK, b"")
                await over
        except TimeoutError:
            raise BrokerUnavailableError(f"RabbitMQ does not hand out what the stream {self._name} stores") from None
        return found[0]

    async def get(self, name: str, place: str, count: int, size: int) -> Sequence[bytes] | None:
        """Read on from the mark until all parts are there."""
        text, _, identity = place.partition(":")
        if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
            return None
        first, wanted = int(text), {str(index) for index in range(count)}
        found: dict[str, bytes] = {}
        begun = gone = False
        left = size

        def take(offset: int, delivered: Delivered) -> bool:
            nonlocal begun, gone, left
            body, part = _told(delivered)
            if not begun:  # What is kept no longer is passed over.
                begun, gone = True, (offset, body, part) != (first, identity, MARK)
            elif body == identity and part in wanted and part not in found:
                found[part] = delivered.body
                left -= len(delivered.body)
            return gone or left < 0 or len(found) == count

        try:
            async with self._reading(first, take) as over:
                await over
        except RefusedError as error:
            if error.reply_code != NOT_FOUND:
                raise
            return None
        if left < 0:
            return []
        # Taken out: the connection, which is a circle, would keep them until somebody collects it.
        return None if gone else [found.pop(str(index)) for index in range(count)]

    @asynccontextmanager
    async def _reading(self, offset: int | str, take: Take) -> AsyncIterator[asyncio.Future[None]]:
        """Read from an offset on, until ``take`` wants no more: then the future is done, or once it cannot be read."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def handle(delivered: Delivered) -> None:
            if over.done():
                return
            headers = delivered.properties.headers or {}
            if take(cast("int", headers.get(OFFSET, -1)), delivered):
                over.set_result(None)
            else:
                delivered.channel.ack_soon(delivered.tag)
                delivered.channel.settled_at = 0.0  # It asks for more, and settles nothing that closing would wait for.

        def lost(_: asyncio.Future[None]) -> None:
            if not over.done():
                over.set_exception(channel.error or BrokerUnavailableError("the channel is closed"))
                over.exception()  # Nobody may wait for it yet.

        connection = await self._dial()
        try:
            channel = await connection.open_channel(take=handle)
            channel.lost.add_done_callback(lost)
            channel.on_cancel = channel.close  # Somebody deleted the stream.
            await channel.call(
                spec.Basic.Qos(prefetch_count=AHEAD),
                spec.Basic.Consume(queue=self._name, consumer_tag=TAG, arguments={OFFSET: offset}),
            )
            yield over
        except RefusedError as error:
            if error.reply_code != PRECONDITION_FAILED:
                raise
            raise BrokerUnavailableError(f"RabbitMQ has started, and not the stream yet: {error.text}") from error
        finally:
            over.cancel()
            await connection.close()

    async def _dial(self) -> Connection:
        """Connect for one reader: a server that is about to start its streams ends whoever asks for one, and all else.

        Raises:
            BrokerUnavailableError: It cannot be reached, or lets nobody in.
        """
        try:
            async with asyncio.timeout(CONNECT_WAIT):
                return await self._session.dial()
        except (OSError, RefusedError) as error:
            raise BrokerUnavailableError(f"cannot read large events: {error}") from error


def _told(delivered: Delivered) -> tuple[object, object]:
    headers = delivered.properties.headers or {}
    return headers.get(BODY), headers.get(PART)
