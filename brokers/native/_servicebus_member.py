"""One member's part of a queue, or of a subscription, of Azure Service Bus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Self

from azure.servicebus import ServiceBusReceivedMessage

from brokers.clients.azure_amqp import plain, texts
from brokers.clients.servicebus import BUSY_WAIT_SECONDS, WAIT_SECONDS, Receiver, properties_of, told
from brokers.native._topics import Delays, Taken
from brokers.shared.backoff import waits
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Delivery, Message
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Held", "Member"]

logger = logging.getLogger(__name__)


class Held:
    """A message that is locked, and settles its delivery.

    Attributes:
        got: The message.
        until: When its lock is renewed no more (of `time.monotonic`).
        done: Whether the service was told what came of it.
    """

    def __init__(self, got: ServiceBusReceivedMessage, receiver: Receiver, delays: Delays, lease: float) -> None:
        """Begin to hold.

        Args:
            got: The message.
            receiver: Has it locked.
            delays: Keeps it while it waits to be tried again.
            lease: Seconds without a sign of life of its handler until its lock is renewed no more.
        """
        self.got = got
        self._receiver, self._delays, self._lease = receiver, delays, lease
        self.until = time.monotonic() + lease
        self.done = asyncio.Event()
        self._settling = False

    @property
    def kept(self) -> bool:
        """Whether its lock is to hold on."""
        return not self._settling and self.until > time.monotonic()

    def taken(self, address: Address) -> Taken:
        """Make the delivery."""
        delivery = Delivery(_read(self.got), address, int(self.got.delivery_count or 0) + 1, self)
        return Taken(delivery, self.release)

    async def ack(self) -> None:
        """Have done with it."""
        await self._settle(self._receiver.complete)

    reject = ack  # Dead-lettering is the mesh's, before it.

    async def nack(self, delay: float) -> None:
        """Have it come again later; it stays locked until then."""
        if delay <= 0:
            await self.release()
            return
        self.until = float("inf")
        await self._delays.after(delay, self.release)

    async def release(self) -> None:
        """Have it come again."""
        await self._settle(self._receiver.abandon)

    async def extend(self) -> None:
        """Note a sign of life."""
        self.until = time.monotonic() + self._lease

    async def _settle(self, how: Callable[[ServiceBusReceivedMessage], Awaitable[None]]) -> None:
        self._settling = True
        try:
            await how(self.got)
        except BrokerError as error:
            logger.warning("event %s comes again when its lock is over: %s", self.got.sequence_number, error)
        finally:
            self.done.set()


class Member:
    """Takes messages under a lock, which is renewed while they are at work, or wait to be tried again."""

    def __init__(self, receiver: Receiver, address: Address, outage: Outage, *, renewal: float, lease: float) -> None:
        """Prepare; entering connects.

        Args:
            receiver: What is taken from.
            address: Of the messages.
            outage: Is told when the service is away.
            renewal: Seconds between the renewals of a lock.
            lease: Seconds without a sign of life of a handler until its lock is renewed no more.
        """
        self._receiver, self._address, self._outage = receiver, address, outage
        self._renewal, self._lease = renewal, lease
        self._stopped = asyncio.Event()
        self._held: set[Held] = set()
        self._delays = Delays()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect; raises ``BrokerError`` if what is taken from is not there."""
        self._stack.push_async_callback(self._receiver.close)
        try:
            await self._receiver.open()
            tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
            self._stack.callback(tasks.create_task(self._renew(), name="servicebus-renew").cancel)
            await self._stack.enter_async_context(self._delays)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """End; what waits for its time goes back now."""
        await self._stack.aclose()
        self._outage.forget(self)

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for messages; see ``Source`` of the layout."""
        pauses = waits()
        while not self._stopped.is_set():
            self._held = {each for each in self._held if not each.done.is_set()}
            try:
                await self._receiver.open()  # Receiving would allow its wait for connecting, too.
                got = await self._receiver.fetch(room, BUSY_WAIT_SECONDS if self._held else WAIT_SECONDS)
            except BrokerUnavailableError as error:
                self._outage.lost(error, self)
                with suppress(TimeoutError):
                    async with asyncio.timeout(next(pauses)):
                        await self._stopped.wait()
                continue
            self._outage.back(self)
            pauses = waits()
            if got:
                held = [Held(each, self._receiver, self._delays, self._lease) for each in got]
                self._held.update(held)
                return [each.taken(self._address) for each in held]
        return ()

    async def stop(self) -> None:
        """Take no more."""
        self._stopped.set()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._renewal)
            for held in tuple(self._held):
                if held.kept:
                    try:
                        await self._receiver.renew(held.got)
                    except BrokerError as error:  # One that is lost has the message come again.
                        logger.debug("%s", error)


def _read(got: ServiceBusReceivedMessage) -> Message:
    own = properties_of(got)
    metadata = {f"metadata.{name}": value for name, value in {**own, **told(got)}.items()}
    if got.content_type is not None:
        own.setdefault("content-type", str(plain(got.content_type)))
    try:
        body = texts(got.body)
    except ValueError:  # It has none.
        body = b""
    return Message(own, body, id=str(plain(got.message_id) or ""), metadata=metadata)
