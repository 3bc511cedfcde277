"""A channel: aiormq's, with what the adapter needs beyond it.

aiormq speaks the protocol; its methods are values here (``aiormq.spec``), so that a queue knows
what declares it. What this adds:

- A caller that goes away leaves the answer to be dropped: a cancelled call of aiormq's closes
  its channel, for everybody.
- A lost channel is an event (``lost``) with one error, and never a ``CancelledError`` for those
  who wait for a confirmation.
- What is published waits for room, in order.
- Closing, settling and publishing frames do not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from aiormq import Channel as Client
from aiormq import ChannelInvalidStateError, DeliveryError, spec
from aiormq.abc import DeliveredMessage

from brokers.rabbitmq._refusals import ERRORS, again, reason_of
from mesh.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from pamqp.base import Frame

__all__ = ["LOST", "REFUSED", "STORED", "TAG", "UNROUTABLE", "Channel", "Delivered", "Publish", "cancels"]

STORED, REFUSED, UNROUTABLE, LOST = range(4)
LINGER = 0.25
SUCCESS = 200
WINDOW_BYTES = 4 * 1024 * 1024
TAG = "mesh"  # Every consumer has a channel of its own.
FRAME_BYTES = 256  # What a publish takes beside its body and its headers, roughly.


class Delivered:
    """A message as the server handed it out."""

    __slots__ = ("body", "channel", "key", "properties", "tag")

    def __init__(self, channel: Channel, message: DeliveredMessage) -> None:
        self.channel = channel
        self.tag = cast("int", message.delivery_tag)
        self.key = message.routing_key or ""
        self.properties = message.header.properties
        self.body = message.body


class Publish:
    """A message to publish.

    Attributes:
        size: What it takes of the room for what is unconfirmed, in bytes.
    """

    __slots__ = ("body", "exchange", "key", "mandatory", "properties", "size")

    def __init__(
        self,
        exchange: str,
        key: str,
        properties: spec.Basic.Properties,
        body: bytes,
        headers_size: int = 0,
        *,
        mandatory: bool = True,
    ) -> None:
        self.exchange = exchange
        self.key = key
        self.properties = properties
        self.body = body
        self.mandatory = mandatory
        self.size = len(body) + headers_size + FRAME_BYTES


class Channel:
    """One channel; `Connection.open_channel` opens it.

    Attributes:
        lost: Resolved when it is closed, for whatever reason.
        error: Why; None while it is open.
        settled_at: When something was settled last, in the event loop's time.
        on_deliver: Takes what the server hands out.
        on_cancel: Called when the server ends a consumer, for example since its queue was deleted.
        on_return: Called with the properties of a posted message that no queue took.
    """

    def __init__(self, raw: Client, drained: Callable[[], Awaitable[None]]) -> None:
        """Take over a channel that is open.

        Args:
            raw: The client's.
            drained: Waits until its connection has room for more.
        """
        self._raw = raw
        self._drained = drained
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.error: BrokerError | None = None
        self.settled_at = 0.0
        self.on_deliver: Callable[[Delivered], None] = _ignore
        self.on_cancel: Callable[[], None] = lambda: None
        self.on_return: Callable[[spec.Basic.Properties], None] = _ignore
        self._unconfirmed_bytes = 0
        self._room = asyncio.Event()
        self._queue = asyncio.Lock()  # First come, first served.
        self._ids: dict[str, asyncio.Event] = {}
        raw.closing.add_done_callback(self._note_closed)
        raw.on_consumer_cancel_callbacks.add(lambda _: self.on_cancel())

    async def call(self, *methods: Frame) -> Frame:
        """Call methods in one go, and give the answer to the last; the others are sent without asking for one.

        Raises:
            RefusedError: The server closed the channel instead.
            BrokerUnavailableError: The connection broke.
        """
        for method in methods[:-1]:
            await self._call(_without_answer(method))
        return await self._call(methods[-1])

    async def _call(self, method: Frame) -> Frame:
        if self.error is not None:
            raise again(self.error)
        answer: Awaitable[object]
        if isinstance(method, spec.Basic.Consume):
            answer = self._raw.basic_consume(
                method.queue,
                self._deliver,
                no_ack=method.no_ack,
                arguments=method.arguments,
                consumer_tag=method.consumer_tag,
            )
        else:
            answer = self._raw.rpc(method)
        before = cancels()
        try:
            answering = asyncio.ensure_future(answer)
            answering.add_done_callback(_retrieve)  # Whoever asked may have gone.
            return cast("Frame", await asyncio.shield(answering))
        except asyncio.CancelledError as error:
            if cancels() > before:
                raise
            raise self._reason(error) from error
        except Exception as error:  # aiormq ends calls with whatever ended the channel.
            if not self._is_lost(error):
                raise
            raise self._reason(error) from error

    def _is_lost(self, error: Exception) -> bool:
        return self._raw.is_closed or ERRORS.translate(error) is not None

    def _reason(self, error: BaseException) -> BrokerError:
        return reason_of(error) if self.error is None else again(self.error)

    async def cancel(self) -> None:
        """End the consumer; what the server had handed out before has come when this returns.

        Without an answer to the cancel, since aiormq drops what comes after one. The first call after it says that
        the queue knows; what it had handed out until then comes before the answer to the second.
        """
        await self.call(spec.Basic.Cancel(consumer_tag=TAG, nowait=True), spec.Basic.Qos(), spec.Basic.Qos())

    async def _deliver(self, message: DeliveredMessage) -> None:
        if self.error is None:
            self.on_deliver(Delivered(self, message))

    # Settlements: aiormq puts them into a queue without a limit, so that nothing here waits.

    async def ack(self, tag: int) -> None:
        """Say that a delivery is done with; nothing happens once the channel is lost."""
        if self._may_settle():
            await self._settle(self._raw.basic_ack, tag)

    def ack_soon(self, tag: int) -> None:
        """Ack, where nothing can be awaited."""
        if self._may_settle():
            self._raw.create_task(self._settle(self._raw.basic_ack, tag))

    def give_back(self, tag: int) -> None:
        """Hand a delivery back as one that failed."""
        if self._may_settle():
            self._raw.create_task(self._settle(self._raw.basic_reject, tag))

    def release(self, tag: int) -> None:
        """Hand a delivery back untried."""
        if self._may_settle():
            self._raw.create_task(self._settle(self._raw.basic_nack, tag))

    async def _settle(self, settle: Callable[..., Awaitable[None]], tag: int) -> None:
        with suppress(ChannelInvalidStateError):  # It was lost just now.
            await settle(tag, wait=False)

    def _may_settle(self) -> bool:
        if self.error is not None or self._raw.is_closed:
            return False
        self.settled_at = self._loop.time()
        return True

    # Publishing; the channel must confirm

    async def room(self) -> None:
        """Wait, in order, until what was published before leaves room; what follows must not await before it."""
        async with self._queue:
            while self._unconfirmed_bytes > WINDOW_BYTES and self.error is None:
                self._room.clear()
                await self._room.wait()
            if self.error is None:
                await self._drained()

    async def publish(self, message: Publish) -> int:
        """Publish, and give one of STORED, REFUSED, UNROUTABLE and LOST once it is known."""
        identity = cast("str", message.properties.message_id)
        while (earlier := self._ids.get(identity)) is not None:
            await earlier.wait()  # aiormq knows what is returned by its message id.
        self._ids[identity] = over = asyncio.Event()
        try:
            self._unconfirmed_bytes += message.size
            return await self._publish(message)
        finally:
            del self._ids[identity]
            over.set()

    def post(self, message: Publish) -> None:
        """Publish, and forget; what is returned goes to ``on_return``."""
        if self.error is None:
            self._unconfirmed_bytes += message.size
            self._raw.create_task(self._post(message))

    async def _post(self, message: Publish) -> None:
        if await self._publish(message) == UNROUTABLE:
            self.on_return(message.properties)

    async def _publish(self, message: Publish) -> int:
        before = cancels()
        try:
            answer: object = await self._raw.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.key,
                properties=message.properties,
                mandatory=message.mandatory,
                wait=False,
            )
        except DeliveryError:
            return REFUSED
        except asyncio.CancelledError:
            if cancels() > before:
                raise
            return LOST
        except Exception as error:  # aiormq ends what waits with whatever ended the channel.
            if not self._is_lost(error):
                raise
            return LOST
        finally:
            self._unconfirmed_bytes -= message.size
            self._room.set()
        return UNROUTABLE if isinstance(answer, DeliveredMessage) else STORED

    # The end

    @property
    def linger(self) -> float:
        """How many seconds its last settlements may still be on their way within the server.

        A channel keeps settlements back while a quorum queue is busy with earlier ones, and drops them when it is
        closed; what was settled would then be delivered again.
        """
        return max(0.0, self.settled_at + LINGER - self._loop.time())

    def retire(self) -> None:
        """Close it once nothing is on its way any more. Does not wait."""
        if self.error is None:
            self._loop.call_later(self.linger, self.close)

    def close(self) -> None:
        """Close it; what is unsettled goes back to its queue. Does not wait."""
        if self.error is None:
            self._raw.connection.create_task(self._close())
            self.fail(BrokerUnavailableError("the channel is closed"))

    async def _close(self) -> None:
        """Say that it is closed, and wait for the answer, which ends this call as it ends all others.

        aiormq's own way to close says it once more after a heartbeat. A server that is behind, but has closed the
        channel by then, takes that for an error of the whole connection.
        """
        with suppress(Exception):  # Whatever ends the channel ends this.
            await self._raw.rpc(spec.Channel.Close(SUCCESS, "", 0, 0))

    def fail(self, error: BrokerError) -> None:
        """Note that it is lost, and tell everybody who waits."""
        if self.error is None:
            self.error = error
            self._room.set()
            self.lost.set_result(None)

    def _note_closed(self, closing: asyncio.Future[object]) -> None:
        self.fail(reason_of(None if closing.cancelled() else closing.exception()))


def _without_answer(method: Frame) -> Frame:
    if not hasattr(method, "nowait") or isinstance(method, spec.Basic.Consume):
        return method  # aiormq's way to consume knows no other way.
    method = copy(method)
    method.nowait = True
    return method


def cancels() -> int:
    """Count the requests to cancel this task: aiormq raises CancelledError without one, too."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _retrieve(answering: asyncio.Future[Any]) -> None:
    if not answering.cancelled():
        answering.exception()


def _ignore(_: object) -> None:
    """Expect nothing."""
