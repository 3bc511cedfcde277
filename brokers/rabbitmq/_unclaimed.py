"""Events that were published before any group asked for them, and how a new group gets them.

An exchange hands what none of its bindings takes to its alternate exchange, so such an event lies
in its space's queue ``…:unclaimed``, and nowhere else. Whoever subscribes moves what fits from
there into its group's queue: one mover at a time, each event stored anew before it is acked, so
that nothing is lost whenever it dies. What does not fit goes back to its place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiormq import spec

from brokers.rabbitmq._channel import TAG, Channel, Delivered
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._message import TOPIC, decode, encode
from brokers.rabbitmq._publisher import Publisher
from brokers.rabbitmq._refusals import RefusedError
from brokers.rabbitmq._session import Session
from brokers.rabbitmq._topology import Queue, Space, count_on
from mesh.address import matches
from mesh.errors import BrokerUnavailableError, MessageTooLargeError, PublishRejectedError
from mesh.tasks import task_group

__all__ = ["MAX_BYTES", "SILENCE_LIMIT", "claim", "dialled", "topic_of"]

LOCKED = 405
LOCK_WAIT = 0.02
DIAL_WAIT = 10.0
BATCH = 256
MAX_BYTES = 4 * 1024 * 1024
SILENCE_LIMIT = 2.0


async def claim(session: Session, publisher: Publisher, space: Space, pattern: str, queues: Sequence[Queue]) -> int:
    """Move what fits a pattern into a group's queues, and count what stays; what they are too full for does.

    Raises:
        BrokerUnavailableError: The connection broke; it can be done again.
    """
    async with dialled(session, f"{space.exchange}:lock") as connection:
        return await _Mover(connection, publisher, pattern, queues).run(space)


@asynccontextmanager
async def dialled(session: Session, lock: str) -> AsyncIterator[Connection]:
    """Give a connection of one's own, whose owner is the only one who looks into a space's unclaimed events.

    Raises:
        BrokerUnavailableError: There is none.
    """
    try:
        async with asyncio.timeout(DIAL_WAIT):
            connection = await session.dial()
    except (OSError, RefusedError) as error:
        raise BrokerUnavailableError(f"cannot look for events that no group has: {error}") from error
    try:
        await _lock(connection, lock)
        yield connection
    finally:
        await connection.close()


async def _lock(connection: Connection, name: str) -> None:
    """Become the only one who moves: an exclusive queue is that of one connection, and goes with it."""
    while True:
        try:
            await connection.open_channel(spec.Queue.Declare(queue=name, exclusive=True))
            return
        except RefusedError as error:
            if error.reply_code != LOCKED:
                raise
        await asyncio.sleep(LOCK_WAIT)


class _Mover:
    """Moves the events of one pattern."""

    def __init__(self, connection: Connection, publisher: Publisher, pattern: str, queues: Sequence[Queue]) -> None:
        self._connection = connection
        self._publisher = publisher
        self._pattern = pattern
        self._queues = {queue.lane: queue.name for queue in queues}
        self._found: deque[tuple[Delivered, str]] = deque()
        self._found_bytes = 0
        self._seen = 0
        self._staying = 0
        self._changed = asyncio.Event()
        self._channel: Channel

    async def run(self, space: Space) -> int:
        self._channel = await self._connection.open_channel(take=self._take)
        count, _ = await count_on(self._channel, space.unclaimed)
        await self._channel.call(spec.Basic.Consume(queue=space.unclaimed, consumer_tag=TAG))
        await self._move_all(count)
        # That the cancel is answered says that earlier acks are stored, but for those that the channel kept back
        # meanwhile; the second one, of another consumer, says it of them. It must not be sent before that consumer
        # is there: the channel would crash, and take the connection along.
        second = TAG + "-2"
        await self._channel.call(spec.Basic.Cancel(consumer_tag=TAG))
        await self._channel.call(spec.Basic.Consume(queue=space.unclaimed, consumer_tag=second))
        await self._channel.call(spec.Basic.Cancel(consumer_tag=second))
        self._channel.settled_at = 0.0
        return self._staying  # Not what came at the end, and was seen too late to be moved: the next time finds that.

    async def _move_all(self, count: int) -> None:
        while self._found or self._seen < count:
            self._changed.clear()
            if not self._found:
                try:
                    async with asyncio.timeout(SILENCE_LIMIT):
                        await self._changed.wait()
                except TimeoutError:
                    return  # The rest is gone: it expired, or somebody removed it.
            async with task_group() as tasks:
                for _ in range(min(BATCH, len(self._found))):
                    delivered, topic = self._found.popleft()
                    self._found_bytes -= len(delivered.body)
                    tasks.create_task(self._move(delivered, topic), name="rabbitmq-claim")
            if self._found_bytes < MAX_BYTES:
                self._connection.resume()

    def _take(self, delivered: Delivered) -> None:
        """Keep what fits; the rest stays unsettled, and goes back in order when the connection closes."""
        self._seen += 1
        self._changed.set()
        topic = topic_of(delivered)
        if matches(self._pattern, topic):
            self._found.append((delivered, topic))
            self._found_bytes += len(delivered.body)
            if self._found_bytes >= MAX_BYTES:
                self._connection.pause()
        else:
            self._staying += 1

    async def _move(self, delivered: Delivered, topic: str) -> None:
        lane = delivered.key.partition(".")[0]
        queue = self._queues.get("*") or self._queues.get(lane)
        if queue is None:
            self._staying += 1  # It has no lane of ours.
            return
        message, _ = decode(delivered.properties, delivered.body)
        try:
            properties = encode(message, stored=True, extra={TOPIC: topic})
            await self._publisher.store("", queue, properties, message.body, refusals=0)
        except (PublishRejectedError, MessageTooLargeError):  # Full, or an event of others that does not fit.
            self._staying += 1
            return
        await self._channel.ack(delivered.tag)


def topic_of(delivered: Delivered) -> str:
    """Give the topic of a stored message, as tokens."""
    topic = (delivered.properties.headers or {}).get(TOPIC)
    return topic if isinstance(topic, str) else delivered.key.partition(".")[2]
