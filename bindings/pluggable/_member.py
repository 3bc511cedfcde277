"""One subscription to a pluggable component: a stream on which messages come and acknowledgements go.

The protocol has no "again, later": a component that is told of an error may drop the message. So what is to be tried
again is tried again from here, and acknowledged when it is done with; what is not acknowledged when the stream ends is
the component's to give to another.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import grpc.aio

from bindings.pluggable._connection import Connection, Failed, is_leaving
from bindings.pluggable._events import message_of
from bindings.pluggable._messages import Message as Told
from bindings.pluggable._messages import message
from bindings.pluggable._stream import Stream
from mesh.address import Address
from mesh.broker import Delivery, Handler

__all__ = ["Member"]

logger = logging.getLogger(__name__)

AGAIN = (0.1, 2.0)
LEAVE_WAIT = 2.0


class _Settler:
    """Settles one delivery.

    Attributes:
        again: Seconds until another attempt; None = there is to be none.
    """

    def __init__(self, stream: Stream, told: Told) -> None:
        self._stream = stream
        self._told = told
        self.again: float | None = None

    async def ack(self) -> None:
        """Say that it is done with."""
        await self._stream.write(ack_message_id=self._told.id)

    async def nack(self, delay: float) -> None:
        """Have it tried again from here."""
        self.again = delay

    async def reject(self) -> None:
        """Say that it is done with: of an error the component might make another attempt."""
        await self.ack()

    async def extend(self) -> None:
        """Do nothing: the protocol has no sign of life."""


class Member:
    """Takes the messages of one subscription."""

    def __init__(self, connection: Connection, topic: str, address: Address, limit: int, handler: Handler) -> None:
        """Prepare.

        Args:
            connection: To the component's instance for the group.
            topic: As the component calls it.
            address: As the mesh does.
            limit: Most messages at work.
            handler: Takes each delivery.
        """
        self._connection = connection
        self._topic = topic
        self._address = address
        self._handler = handler
        self._slots = asyncio.Semaphore(limit)
        self._stopped = asyncio.Event()
        self._stream: Stream | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._pulling: asyncio.Task[None] | None = None

    async def start(self, keepers: asyncio.TaskGroup, tasks: asyncio.TaskGroup) -> None:
        """Be subscribed.

        Args:
            keepers: Holds the stream, until the last handler is done.
            tasks: Runs handlers.

        Raises:
            Failed: It cannot be.
        """
        self._tasks = tasks
        self._stream = await self._open()
        self._pulling = keepers.create_task(self._pull(), name="pluggable-pull")

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped.set()
        if self._stream is not None:
            self._stream.left.set()

    async def finish(self) -> None:
        """End the stream in good order: acknowledgements on the way count."""
        if self._stream is not None and self._pulling is not None:
            await self._stream.finish(self._pulling, LEAVE_WAIT)

    async def _open(self) -> Stream:
        stream = Stream(await self._connection.stream("PubSub", "PullMessages"), "PullMessagesRequest")
        try:
            if not await stream.write(topic={"name": self._topic}):
                raise Failed(f"the stream of {self._topic} ended at once")
            # Nothing says that a subscription has begun. What is asked behind it has mostly to wait for it.
            await self._connection.call("PubSub", "Ping", message("PingRequest")())
        except BaseException:
            stream.call.cancel()
            raise
        return stream

    async def _pull(self) -> None:
        wait, told = AGAIN[0], False
        while True:
            why = "the component has ended it"
            try:
                stream = cast("Stream", self._stream)
                while (found := await stream.call.read()) is not grpc.aio.EOF and found is not None:
                    await self._take(stream, found)
                    wait, told = AGAIN[0], False
            except grpc.aio.AioRpcError as error:
                why = f"{self._connection.shown(error.details() or 'failed')} ({error.code().name})"
            except asyncio.CancelledError:
                if is_leaving():
                    raise
                why = "it took no acknowledgement in time, or the connection was closed"
            if self._stopped.is_set():
                return
            if not told:
                logger.warning("the subscription to %s broke off, and is made again: %s", self._topic, why)
                told = True
            await self._again(wait)
            wait = min(wait * 2, AGAIN[1])

    async def _again(self, wait: float) -> None:
        while not self._stopped.is_set():
            if await _within(self._stopped, wait):
                return
            try:
                self._stream = await self._open()
            except Failed as failed:
                logger.debug("cannot subscribe to %s: %s", self._topic, failed)
                wait = min(wait * 2, AGAIN[1])
            else:
                return

    async def _take(self, stream: Stream, told: Told) -> None:
        await self._slots.acquire()
        if stream.left.is_set():  # It stays with the component.
            self._slots.release()
            return
        cast("asyncio.TaskGroup", self._tasks).create_task(self._handle(stream, told), name="pluggable-delivery")

    async def _handle(self, stream: Stream, told: Told) -> None:
        try:
            read, attempt = message_of(told), 0
            while not stream.left.is_set():
                attempt += 1
                settler = _Settler(stream, told)
                delivery = Delivery(read, self._address, attempt, settler)
                try:
                    await self._handler(delivery)
                except Exception:  # The handler's failure is this delivery's alone.
                    logger.exception("handler failed on %s", delivery.address)
                if delivery.settled is None:
                    await delivery.nack()
                if settler.again is None or await _within(stream.left, settler.again):
                    return
        finally:
            self._slots.release()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; tells whether it came in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
