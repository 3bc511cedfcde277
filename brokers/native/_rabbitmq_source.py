"""What a member of a group takes from: a queue, over one channel after another.

Once half of what a channel may hand out is kept for later, the queue is consumed over another one, so that what fails
does not hold up the rest. The former is closed when all that came over it is settled.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, Self, cast

import aiormq
from aio_pika.abc import AbstractChannel
from aiormq.abc import DeliveredMessage

from brokers.native._rabbitmq_client import Client
from brokers.native._rabbitmq_message import decode, identity_of, times_delivered
from brokers.native._topics import Delays, Taken
from brokers.rabbitmq._refusals import ERRORS
from brokers.shared.backoff import waits
from mesh.address import Address
from mesh.broker import Delivery
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Line", "Source"]

logger = logging.getLogger("brokers.rabbitmq")

MAX_COUNTED = 10_000
LONGEST_DELAY = 600.0  # RabbitMQ closes a channel that has had a delivery for 30 minutes.
MAX_LINES = 20
LINGER = 0.25


class Settle(Protocol):
    """A channel's way to settle by tag."""

    def __call__(self, delivery_tag: int, *, wait: bool) -> Coroutine[None, None, None]:
        """Send it; without ``wait``, not until it is written."""


class Source:
    """What one member takes from: a queue, over one channel after another."""

    def __init__(
        self,
        address: Address,
        live: Callable[[], Awaitable[Client]],
        open_line: Callable[[Source, Client], Awaitable[Line]],
        tasks: asyncio.TaskGroup,
        *,
        tell: bool,
    ) -> None:
        self.address, self.tell, self.tasks = address, tell, tasks
        self.delays = Delays()
        self.counted: OrderedDict[int, int] = OrderedDict()
        self._live, self._open_line = live, open_line
        self._opening: asyncio.Task[None] | None = None
        self._taken: deque[tuple[Line, Taken]] = deque()
        self._changed = asyncio.Event()
        self._stopped = False
        self._line: Line
        self._lines: set[Line] = set()

    async def begin(self) -> None:
        """Open the first channel, through lost connections.

        Raises:
            BrokerError: The server refuses, or there will be no connection any more.
        """
        for wait in waits():
            client = await self._live()
            with suppress(BrokerUnavailableError):
                await self._next(client)
                return
            await asyncio.sleep(wait)

    async def _next(self, client: Client) -> None:
        self._line = line = await self._open_line(self, client)
        self._lines.add(line)

    def add(self, line: Line, taken: Taken) -> None:
        """Note a delivery."""
        self._taken.append((line, taken))
        self._changed.set()

    def wake(self) -> None:
        """Look again at what there is."""
        self._changed.set()

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for deliveries; see to it that there is a channel that they come over."""
        while not self._stopped:
            if self._line.is_over or (self._line.is_clogged and len(self._lines) < MAX_LINES):
                await self._go_on()
            elif self._taken:
                return [self._taken.popleft()[1] for _ in range(min(room, len(self._taken)))]
            else:
                self._changed.clear()
                await self._changed.wait()
        return ()

    async def _go_on(self) -> None:
        """Go on over another channel, unless stopped meanwhile."""
        await self._retire(self._line)
        self._opening = self.tasks.create_task(self._open_next(), name="rabbitmq-open")
        await asyncio.wait([self._opening])
        if not self._opening.cancelled():
            self._opening.result()

    async def _open_next(self) -> None:
        told = ""
        for wait in waits():
            client = await self._live()
            try:
                await self._next(client)
                return
            except BrokerUnavailableError:
                pass
            except BrokerError as error:
                if str(error) != told:
                    told = str(error)
                    logger.warning("cannot go on with %s: %s", self.address.label, error)
            await asyncio.sleep(wait)

    async def _retire(self, line: Line) -> None:
        """Have no more come over a channel, and close it once all is settled that did."""
        await line.end()
        if line.is_lost:  # What nobody has begun comes again.
            stale, self._taken = self._taken, deque(each for each in self._taken if each[0] is not line)
            for owner, taken in stale:
                if owner is line:
                    await taken.release()
        self.tasks.create_task(self._close(line), name="rabbitmq-line")

    async def _close(self, line: Line) -> None:
        await line.settled()
        await line.close()
        self._lines.discard(line)

    async def stop(self) -> None:
        """Ask for no more, and give back what nobody has begun."""
        self._stopped = True
        self._changed.set()
        if self._opening is not None:
            self._opening.cancel()
        if self._lines:
            await self._line.end()
        while self._taken:
            await self._taken.popleft()[1].release()

    async def close(self) -> None:
        """Close every channel; all is settled."""
        while self._taken:
            await self._taken.popleft()[1].release()
        for line in list(self._lines):
            await line.close()
        self._lines.clear()


class Line:
    """A channel that a queue's messages come over."""

    def __init__(
        self, source: Source, client: Client, channel: AbstractChannel, raw: aiormq.Channel, prefetch: int
    ) -> None:
        self._source, self._client, self._channel, self._prefetch = source, client, channel, prefetch
        self._raw = raw
        self._tag = ""
        self.ack: Settle = raw.basic_ack
        self.nack: Settle = raw.basic_nack  # With requeue.
        self.reject: Settle = partial(raw.basic_reject, requeue=False)
        self._ended = False
        self._unsettled = self._kept = 0
        self._all_settled = asyncio.Event()
        self._all_settled.set()
        self._settled_at = 0.0

    @classmethod
    async def open(cls, source: Source, client: Client, queue: str, prefetch: int) -> Self:
        """Consume from a queue."""
        channel = await client.open_channel()
        try:
            raw = cast("aiormq.Channel", await channel.get_underlay_channel())
            line = cls(source, client, channel, raw, prefetch)
            channel.close_callbacks.add(lambda *_: source.wake())
            await client.ask(channel.set_qos(prefetch_count=prefetch))
            line._tag = f"{queue}-{secrets.token_hex(8)}"
            raw.on_consumer_cancel_callbacks.add(lambda _: line._cancelled())
            await client.ask(raw.basic_consume(queue, line._receive, consumer_tag=line._tag))
        except BaseException:
            await client.close_channel(channel)
            raise
        return line

    def _cancelled(self) -> None:
        self._ended = True  # By the server: the queue was deleted, or its node is down.
        self._source.wake()

    @property
    def is_lost(self) -> bool:
        """Whether nothing of it can be settled any more."""
        return self._channel.is_closed or self._client.is_lost

    @property
    def is_over(self) -> bool:
        """Whether nothing comes over it any more."""
        return self._ended or self.is_lost

    @property
    def is_clogged(self) -> bool:
        """Whether what is kept for later takes up half of what it may hand out."""
        return self._kept * 2 >= self._prefetch

    async def end(self) -> None:
        """Have nothing more come."""
        if not self.is_over:
            self._ended = True
            with suppress(BrokerError):
                await self._client.ask(self._raw.basic_cancel(self._tag))

    async def settled(self) -> None:
        """Wait until all that came is settled, or can not be any more."""
        await self._all_settled.wait()

    async def close(self) -> None:
        """Close the channel; what is unsettled goes back to the queue."""
        self._all_settled.set()
        since = asyncio.get_running_loop().time() - self._settled_at
        if not self._channel.is_closed and since < LINGER:
            await asyncio.sleep(LINGER - since)  # The server drops settlements that a closed channel still keeps.
        await self._client.close_channel(self._channel)

    async def _receive(self, found: DeliveredMessage) -> None:
        source, tag = self._source, cast("int", found.delivery_tag)
        attempt = times_delivered(found)
        if found.redelivered:
            attempt = max(attempt, source.counted.get(identity_of(found), 0) + 1)
        delivery = Delivery(decode(found, tell=source.tell), source.address, attempt, _Settler(self, found, attempt))
        self._unsettled += 1
        self._all_settled.clear()
        source.add(self, Taken(delivery, lambda: self.settle(self.nack, tag)))

    async def settle(self, how: Settle, tag: int) -> None:
        """Settle a delivery; nothing happens once the channel is lost, and it comes again."""
        try:
            if not self.is_lost:
                self._settled_at = asyncio.get_running_loop().time()
                sending = how(tag, wait=False)
                with suppress(BrokerError), ERRORS:
                    await (self._client.ask(sending) if self._raw.write_queue.full() else sending)
        finally:
            self._unsettled -= 1
            if not self._unsettled:
                self._all_settled.set()

    def forget(self, found: DeliveredMessage) -> None:
        """Count no further attempts."""
        self._source.counted.pop(identity_of(found), None)

    async def keep(self, found: DeliveredMessage, attempt: int, delay: float) -> None:
        """Give a delivery back after some seconds."""
        counted, tag = self._source.counted, cast("int", found.delivery_tag)
        counted[identity_of(found)] = attempt
        if len(counted) > MAX_COUNTED:
            counted.popitem(last=False)
        if delay <= 0:
            await self.settle(self.nack, tag)
            return

        async def give_back() -> None:
            self._kept -= 1
            await self.settle(self.nack, tag)

        self._kept += 1
        if self.is_clogged:
            self._source.wake()
        await self._source.delays.after(min(delay, LONGEST_DELAY), give_back)


class _Settler:
    """Settles one delivery."""

    __slots__ = ("_attempt", "_found", "_line", "_tag")

    def __init__(self, line: Line, found: DeliveredMessage, attempt: int) -> None:
        self._line, self._found, self._attempt = line, found, attempt
        self._tag = cast("int", found.delivery_tag)

    async def ack(self) -> None:
        """Done with."""
        if self._attempt > 1:
            self._line.forget(self._found)
        await self._line.settle(self._line.ack, self._tag)

    async def nack(self, delay: float) -> None:
        """Again, after some seconds, which the member keeps."""
        await self._line.keep(self._found, self._attempt, delay)

    async def reject(self) -> None:
        """Never again: to the queue's dead letter exchange, if it has one."""
        await self._line.settle(self._line.reject, self._tag)

    async def extend(self) -> None:
        """Nothing: the server waits for half an hour, and can not be told more."""
