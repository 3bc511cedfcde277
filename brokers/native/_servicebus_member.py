"""One member's part of a queue, or of a subscription, of Azure Service Bus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Self

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusReceiver

from brokers.clients.azure_amqp import plain, texts
from brokers.clients.servicebus import BUSY_WAIT_SECONDS, WAIT_SECONDS, closed, properties_of, told
from brokers.native._topics import Delays, Taken
from brokers.shared.backoff import waits
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Delivery, Message
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Member"]

logger = logging.getLogger(__name__)


class Member:
    """Takes messages under a lock, which is renewed while they are at work, or wait to be tried again."""

    def __init__(
        self,
        receiver: ServiceBusReceiver,
        failures: Callable[[], Any],
        address: Address,
        outage: Outage,
        *,
        seconds: int,
        renewal: int,
        lease: float,
    ) -> None:
        """Prepare; entering connects.

        Args:
            receiver: The library's.
            failures: Turns its errors into ours.
            address: Of the messages.
            outage: Is told when the service is away.
            seconds: How many a request may take.
            renewal: Seconds between the renewals of a lock.
            lease: Seconds without a sign of life of a handler until its lock is renewed no more.
        """
        self._receiver, self._failures, self._address, self._outage = receiver, failures, address, outage
        self._seconds, self._renewal, self._lease = seconds, renewal, lease
        self._one = asyncio.Lock()  # The library connects again for each that finds it broken, all at once.
        self._stopped = asyncio.Event()
        self._held: set[_Held] = set()
        self._delays = Delays()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect; raises ``BrokerError`` if what is taken from is not there."""
        self._stack.push_async_callback(closed, self._receiver)
        try:
            await self.asked(self._receiver.__aenter__)
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

    async def asked(self, request: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Ask for something, one at a time."""
        with self._failures():
            async with self._one, asyncio.timeout(self._seconds):
                return await request(*arguments, **named)

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for messages; see ``Source`` of the layout."""
        pauses = waits()
        while not self._stopped.is_set():
            try:
                await self.asked(self._receiver.__aenter__)  # Receiving would allow its wait for connecting, too.
                wait = BUSY_WAIT_SECONDS if self._held else WAIT_SECONDS
                got = await self.asked(self._receiver.receive_messages, max_message_count=room, max_wait_time=wait)
            except BrokerUnavailableError as error:
                self._outage.lost(error, self)
                with suppress(TimeoutError):
                    async with asyncio.timeout(next(pauses)):
                        await self._stopped.wait()
                continue
            self._outage.back(self)
            pauses = waits()
            if got:
                return [self._taken(each) for each in got]
        return ()

    async def stop(self) -> None:
        """Take no more."""
        self._stopped.set()

    def _taken(self, got: ServiceBusReceivedMessage) -> Taken:
        held = _Held(self, got, time.monotonic() + self._lease)
        self._held.add(held)
        delivery = Delivery(_read(got), self._address, int(got.delivery_count or 0) + 1, held)
        return Taken(delivery, partial(held.nack, 0.0))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._renewal)
            for held in tuple(self._held):
                if held.until > time.monotonic():
                    await self.renew(held)

    async def renew(self, held: _Held) -> None:
        """Renew a lock; one that is lost has the message come again."""
        if held not in self._held:  # It was settled meanwhile.
            return
        try:
            await self.asked(self._receiver.renew_message_lock, held.got)
        except BrokerError as error:
            logger.debug("%s", error)

    def signed(self, held: _Held) -> None:
        """Note a sign of life."""
        held.until = time.monotonic() + self._lease

    async def settle(self, held: _Held, how: Callable[..., Any]) -> None:
        """Have done with a message, or give it back."""
        self._held.discard(held)
        try:
            await self.asked(how, held.got)
        except BrokerError as error:
            logger.warning("an event of %r comes again when its lock is over: %s", self._address.label, error)

    async def ack(self, held: _Held) -> None:
        """Have done with a message."""
        await self.settle(held, self._receiver.complete_message)

    async def again(self, held: _Held, delay: float) -> None:
        """Have a message come again later; it stays locked until then."""
        back = partial(self.settle, held, self._receiver.abandon_message)
        if delay <= 0:
            await back()
            return
        held.until = float("inf")
        await self._delays.after(delay, back)


class _Held:
    """Settles one delivery.

    Attributes:
        got: The message.
        until: When its lock is renewed no more.
    """

    def __init__(self, member: Member, got: ServiceBusReceivedMessage, until: float) -> None:
        self._member, self.got, self.until = member, got, until

    async def ack(self) -> None:
        await self._member.ack(self)

    reject = ack  # Dead-lettering is the mesh's, before it.

    async def nack(self, delay: float) -> None:
        await self._member.again(self, delay)

    async def extend(self) -> None:
        self._member.signed(self)


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
