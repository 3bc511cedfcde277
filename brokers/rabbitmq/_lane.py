"""A queue as one member of its group sees it, and how its deliveries settle.

======== ==================================================================================
ack      ``basic.ack``
nack     ``basic.reject`` with requeue, which counts as an attempt on every version
release  ``basic.nack`` with requeue, which does not count from RabbitMQ 4.3 on
delayed  competing: stored anew in a queue whose messages come back, then acked;
         keyed: kept here, so that nothing of its lane passes it
reject   ``basic.ack``: dead letters are the mesh's, before it
======== ==================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from aiormq import spec

from brokers.rabbitmq._channel import TAG, Channel, Delivered
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._session import Attachment, Session
from brokers.rabbitmq._topology import Queue
from mesh.broker import Message
from mesh.errors import BrokerError

__all__ = ["Lane", "RabbitMQSettler"]

LEAVE_WAIT = 2.0


class Member(Protocol):
    """Whose part in a group it is."""

    def take(self, lane: Lane, delivered: Delivered) -> None:
        """Take what a lane hands out."""

    def claim_soon(self) -> None:
        """Look for what came while a queue was not there."""

    def note_settled(self, settler: RabbitMQSettler) -> None:
        """Forget a delivery."""

    def note_alive(self, settler: RabbitMQSettler) -> None:
        """Begin a delivery's time anew."""

    async def store_anew(self, settler: RabbitMQSettler, delay: float) -> bool:
        """Store a delivery's message once more; tell whether it is stored."""


class Lane:
    """Consumes one queue.

    Attributes:
        queue: The queue.
        active: Whether something came from it since this member consumes it.
    """

    def __init__(self, member: Member, session: Session, queue: Queue, prefetch: int) -> None:
        self._member = member
        self._prefetch = prefetch
        self._stopping = False
        self._giving_way = False
        self._holding = False  # Something that is unsettled, on a keyed lane.
        self._idle = asyncio.Event()
        self._idle.set()
        self._delayed: asyncio.TimerHandle | None = None
        self._attachment = Attachment(session, self._open, f"the queue {queue.name}")
        self.queue = queue
        self.active = False

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to consume."""
        await self._attachment.start(tasks)

    async def _open(self, connection: Connection) -> Channel:
        await self._idle.wait()  # Not beside what began before the connection broke, or was given up.
        self._giving_way = self._holding = self.active = False
        channel = await connection.open_channel(
            self.queue.declared, *self.queue.bound, spec.Basic.Qos(prefetch_count=self._prefetch), take=self._take
        )
        channel.on_cancel = partial(self._removed, channel)
        try:
            await channel.call(spec.Basic.Consume(queue=self.queue.name, consumer_tag=TAG))
        except BaseException:
            channel.close()
            raise
        return channel

    def _removed(self, channel: Channel) -> None:
        """Begin anew with a queue that somebody deleted."""
        channel.close()
        self._member.claim_soon()

    def _take(self, delivered: Delivered) -> None:
        self._member.take(self, delivered)

    def hold(self) -> None:
        """Note that there is a delivery to settle."""
        self.active = self._holding = True

    def begin(self) -> None:
        """Note that a handler begins."""
        if self.queue.keyed:
            self._idle.clear()

    def end(self) -> None:
        """Note that it has ended."""
        self._idle.set()

    def delay(self, settler: RabbitMQSettler, delay: float) -> None:
        """Keep a delivery for a while, so that nothing of its lane passes it."""
        if self._stopping:
            self.close()
        else:
            self._delayed = asyncio.get_running_loop().call_later(delay, settler.give_back)

    def settled(self) -> None:
        """Note that a delivery is settled."""
        self._holding = False
        if self.queue.keyed and (self._stopping or self._giving_way):
            self.close()

    def give_way(self) -> None:
        """Let another member be the active consumer once nothing is unsettled here, and stand by behind it."""
        self._giving_way = True
        if not self._holding:
            self.close()

    def stop_at_once(self) -> None:
        """Open nothing anew, and close a keyed lane on which nobody works."""
        self._stopping = True
        self._attachment.stop()
        if self.queue.keyed and self._idle.is_set():
            self.close()

    async def cancel(self) -> None:
        """Take nothing more from a queue that others compete for."""
        channel = self._attachment.channel
        if channel is not None and not self.queue.keyed:
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(LEAVE_WAIT):
                    await channel.cancel()

    def close(self) -> None:
        """Leave the queue; what is unsettled goes back to it, in its old place."""
        if self._delayed is not None:
            self._delayed.cancel()
        channel = self._attachment.channel
        if channel is not None:
            channel.close() if self.queue.keyed else channel.retire()


class RabbitMQSettler:
    """Settles one delivery, on the channel that it came from or not at all.

    Attributes:
        deadline: When it is taken for abandoned, in the event loop's time.
    """

    __slots__ = (
        "_abandoned",
        "_channel",
        "_lane",
        "_member",
        "_open",
        "_stored_anew",
        "_tag",
        "attempt",
        "deadline",
        "message",
        "topic",
    )

    def __init__(
        self, member: Member, lane: Lane, delivered: Delivered, message: Message, topic: str, attempt: int
    ) -> None:
        self._member = member
        self._lane = lane
        self._channel = delivered.channel
        self._tag = delivered.tag
        self._open = True
        self._abandoned = False  # Others shall have it; they can once it is stored anew.
        self._stored_anew = False
        self.message = message
        self.topic = topic
        self.attempt = attempt
        self.deadline = 0.0

    @property
    def lane(self) -> Lane:
        """Where it came from."""
        return self._lane

    @property
    def open(self) -> bool:
        """Whether it can be settled: a lost channel's deliveries come again."""
        return self._open and self._channel.error is None

    def _settle(self, settle: Callable[[int], None]) -> None:
        self._open = False
        self._member.note_settled(self)
        settle(self._tag)
        self._lane.settled()

    async def ack(self) -> None:
        if self.open:
            self._open = False
            self._member.note_settled(self)
            await self._channel.ack(self._tag)
            self._lane.settled()

    reject = ack

    async def nack(self, delay: float) -> None:
        if not self.open:
            return
        if self._stored_anew:
            await self.ack()
        elif self._abandoned or delay <= 0:
            self.give_back()
        elif self._lane.queue.keyed:
            self._lane.delay(self, delay)
        elif await self._member.store_anew(self, delay):
            await self.ack()
        else:
            self.give_back()

    def give_back(self) -> None:
        """Hand it back as an attempt that failed."""
        if self.open:
            self._settle(self._channel.give_back)
        else:
            self._member.note_settled(self)

    async def release(self) -> None:
        """Hand it back untried."""
        self.release_now()

    def release_now(self) -> None:
        """The same, where nothing can be awaited."""
        if not self.open:
            return
        if self._lane.queue.keyed:
            self._lane.close()
        elif self._stored_anew:
            self._settle(self._channel.ack_soon)
        else:
            self._settle(self._channel.release)

    async def extend(self) -> None:
        if self.open and not self._abandoned:
            self._member.note_alive(self)

    def give_up(self, tasks: asyncio.TaskGroup) -> None:
        """Let others have it, though its handler has not ended."""
        if self._lane.queue.keyed:
            self._channel.close()
        else:
            self._abandoned = True
            tasks.create_task(self._hand_on(), name="rabbitmq-hand-on")

    async def _hand_on(self) -> None:
        self._stored_anew = await self._member.store_anew(self, 0.0)
        if not self._stored_anew:  # Until it is, the original must not be acked for any other reason than success.
            self.give_back()
