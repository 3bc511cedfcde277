"""Frames between live nodes: requests, answers and broadcasts, none of them stored.

One topic exchange, ``mesh.frames.topic``, routes them. A served address is a queue for each group,
which its members share. The last to leave in good order takes it along; one whose members died
lives on for a while, so that a call waits in it for the next member. That of one node alone (an owner's)
goes with it, since nobody else comes. A request that no queue takes comes back at once (``mandatory``).
A broadcast's key is bound to a queue of every listener.

A request names the queue for its answer in ``reply_to`` and the call in ``correlation_id``, as is
the custom on RabbitMQ, so that a service without a gateway can answer. A frame to an inbox has the
inbox's token in ``correlation_id``, and in ``reply_to`` a queue and a token, with a dot between.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from contextlib import suppress

from aiormq import spec

from brokers.rabbitmq._channel import TAG, Channel, Delivered
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._message import decode
from brokers.rabbitmq._names import FRAMES, served_name, shorten
from brokers.rabbitmq._refusals import RefusedError
from brokers.rabbitmq._session import Attachment, Session
from brokers.rabbitmq._topology import FRAMES_EXCHANGE, count_on
from brokers.shared.inboxes import Inboxes
from mesh.address import Address, Kind, decode_token, encode_token
from mesh.broker import Frame, Sink
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Inbox", "Listening", "Serving", "frame_key", "inbox_target"]

LONGEST_PAUSE = 1.0
INBOX = "mesh-inbox-"
# An inbox, or the queue of a service without a gateway; never one of the mesh, which holds events, or what is served.
INBOXES = Inboxes("RabbitMQ", r"(?!mesh\.)[^\r\n]+")
UNUSED_EXPIRES_MS = 60_000
LEAVE_WAIT = 3.0  # What was routed here is to be read by then, on a busy machine as well.
NOT_FOUND = 404
KEY_LIMIT = 240


def frame_key(address: Address) -> str:
    """Give the routing key of an address."""
    return shorten(address.text, KEY_LIMIT)


def inbox_target(text: str) -> tuple[str, str, str]:
    """Give the exchange, the routing key and the token of ``<inbox>.<token>``, or of a stranger's queue."""
    name, _, token = text.partition(".")
    name = INBOXES.check(decode_token(name))
    return FRAMES if name.startswith(INBOX) else "", name, token


def inbox_name(mark: str) -> str:
    """Name a queue of this node alone; with a mark, rights by names can tell whose it is."""
    return f"{INBOX}{mark and f'{mark}:'}{secrets.token_hex(8)}"


class Inbox:
    """This node's private queue.

    Its name on the server differs from connection to connection: after a break, the server may
    hold on to the old one for a while.

    Attributes:
        name: What other nodes know it by.
        sink: What takes the frames.
    """

    def __init__(self, mark: str = "") -> None:
        self.name = name = inbox_name(mark)
        self.sink: Sink | None = None
        self._connections = 0
        self._queue = name
        self._connection: Connection

    async def open(self, connection: Connection) -> None:
        """Consume it on a new connection."""
        queue = f"{self.name}-{self._connections}" if self._connections else self.name
        self._connections += 1
        channel = await connection.open_channel(
            FRAMES_EXCHANGE,
            spec.Queue.Declare(queue=queue, exclusive=True),
            spec.Queue.Bind(queue=queue, exchange=FRAMES, routing_key=self.name),
            spec.Queue.Bind(queue=queue, exchange=FRAMES, routing_key=queue),
            spec.Basic.Consume(queue=queue, consumer_tag=TAG, no_ack=True),
            take=self._take,
        )
        channel.on_cancel = lambda: connection.abort(BrokerUnavailableError("somebody deleted this node's inbox"))
        self._connection, self._queue = connection, queue

    async def check(self) -> None:
        """Ask the server for a sign of life."""
        async with self._connection.channel():
            return

    def _take(self, delivered: Delivered) -> None:
        if self.sink is not None:
            properties = delivered.properties
            message, _ = decode(properties, delivered.body)
            self.sink(Frame(message, properties.correlation_id or "", properties.reply_to or ""))

    def own(self, reply_to: str) -> tuple[str, str]:
        """Split the address of an inbox, with the queue's present name if it is ours."""
        name, _, token = reply_to.partition(".")
        return self._queue if name == self.name else name, token

    def take_back(self, properties: spec.Basic.Properties) -> None:
        """Tell whoever sent a frame that nobody takes it."""
        _, dot, token = (properties.reply_to or "").partition(".")
        if self.sink is not None:
            self.sink(Frame(None, token if dot else properties.correlation_id or "", ""))

    def refuse(self, key: str) -> None:
        """Tell that this node may not send to an address, by its routing key."""
        if self.sink is not None:
            self.sink(Frame(None, "", "", key.lower()))


class Serving:
    """A member of a group that serves an address."""

    def __init__(self, session: Session, address: Address, group: str, sink: Sink) -> None:
        self._sink = sink
        self._queue = served_name(address, group)
        self._alone = address.kind is Kind.OWNER
        self._declared = spec.Queue.Declare(
            queue=self._queue, durable=True, auto_delete=self._alone, arguments={"x-expires": UNUSED_EXPIRES_MS}
        )
        self._consumed = spec.Basic.Consume(queue=self._queue, consumer_tag=TAG, no_ack=True)
        self._bound = spec.Queue.Bind(queue=self._queue, exchange=FRAMES, routing_key=frame_key(address))
        self._unbound = spec.Queue.Unbind(queue=self._queue, exchange=FRAMES, routing_key=frame_key(address))
        self._attachment = Attachment(session, self._open, f"serving {address}")
        self._connection: Connection

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Join."""
        await self._attachment.start(tasks)

    async def _open(self, connection: Connection) -> Channel:
        pause = 0.0
        while True:
            channel = await connection.open_channel(FRAMES_EXCHANGE, take=self._take)
            try:
                await channel.call(self._declared, self._consumed, self._bound)
            except RefusedError as error:
                if error.reply_code != NOT_FOUND:
                    raise
                # Its last member left between the two, and the queue with it; or it is on a node of a cluster that is
                # down, and comes back with that.
                await asyncio.sleep(pause)
                pause = min(max(0.05, 2 * pause), LONGEST_PAUSE)
                continue
            except asyncio.CancelledError:
                await self._leave(connection, channel)  # The server may have done it already.
                raise
            channel.on_cancel = channel.close
            self._connection = connection
            return channel

    def _take(self, delivered: Delivered) -> None:
        properties = delivered.properties
        reply_to = INBOXES.reply_to(properties.reply_to or "")
        if reply_to:
            reply_to = f"{encode_token(reply_to)}.{properties.correlation_id or ''}"
        message, _ = decode(properties, delivered.body)
        self._sink(Frame(message, "", reply_to))

    async def leave(self) -> None:
        """Leave; whatever was routed here before still reaches the sink, even if this is cancelled."""
        self._attachment.stop()
        channel = self._attachment.channel
        if channel is None:
            return
        try:
            await self._leave(self._connection, channel)
        except asyncio.CancelledError:
            await self._leave(self._connection, channel)
            raise

    async def _leave(self, connection: Connection, channel: Channel) -> None:
        try:
            await _bounded(self._drain(connection, channel))
        finally:
            channel.close()

    async def _drain(self, connection: Connection, channel: Channel) -> None:
        """Cancel; where nobody is left, take what still comes, and then the queue along.

        Others may leave, and join, at the same time. Whoever joins consumes before it binds. So if nobody consumes
        once the queue is unbound, nothing is routed to it until somebody binds it anew. A queue that has but one member
        goes with it, so what was routed to it must have come before.
        """
        if self._alone:
            await channel.call(self._unbound)
            await channel.cancel()
            return
        await channel.cancel()
        while True:
            _, members = await count_on(channel, self._queue)
            if members:
                return
            await channel.call(self._unbound)
            messages, members = await count_on(channel, self._queue)
            if members:
                await channel.call(self._bound)
                return
            if not messages:
                await channel.call(spec.Queue.Delete(queue=self._queue, if_unused=True, if_empty=True))
                return
            async with connection.channel() as draining:
                draining.on_deliver = self._take
                await draining.call(self._consumed)
                while (await count_on(draining, self._queue))[0]:
                    pass
                await draining.cancel()


class Listening:
    """A node that hears what is broadcast."""

    def __init__(self, session: Session, address: Address, sink: Sink, mark: str = "") -> None:
        self._sink = sink
        self._mark = mark
        self._key = frame_key(address)
        self._attachment = Attachment(session, self._open, f"listening to {address}")

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin."""
        await self._attachment.start(tasks)

    async def _open(self, connection: Connection) -> Channel:
        queue = inbox_name(self._mark)
        channel = await connection.open_channel(
            FRAMES_EXCHANGE,
            spec.Queue.Declare(queue=queue, exclusive=True, auto_delete=True),
            spec.Basic.Consume(queue=queue, consumer_tag=TAG, no_ack=True),
            spec.Queue.Bind(queue=queue, exchange=FRAMES, routing_key=self._key),
            take=self._take,
        )
        channel.on_cancel = channel.close
        return channel

    def _take(self, delivered: Delivered) -> None:
        message, _ = decode(delivered.properties, delivered.body)
        self._sink(Frame(message, "", ""))

    async def leave(self) -> None:
        """Hear no more."""
        self._attachment.stop()
        channel = self._attachment.channel
        if channel is not None:
            try:
                await _bounded(channel.cancel())
            finally:
                channel.close()


async def _bounded(leave: Awaitable[None]) -> None:
    """Leave in good order if the server answers."""
    with suppress(BrokerError, TimeoutError):
        async with asyncio.timeout(LEAVE_WAIT):
            await leave
