"""A channel: calls that are answered in order, publishes that are confirmed, deliveries."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from brokers.rabbitmq import _wire as wire
from mesh.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from brokers.rabbitmq._connection import Connection

__all__ = ["LOST", "REFUSED", "STORED", "TAG", "UNROUTABLE", "Channel", "Delivered", "RefusedError"]

logger = logging.getLogger("brokers.rabbitmq")

STORED, REFUSED, UNROUTABLE, LOST = range(4)
LINGER = 0.25
TAG = "mesh"  # Every consumer has a channel of its own.


class RefusedError(BrokerError):
    """The server closed a channel or a connection since it did not like what it was asked.

    ``reply_code`` is AMQP's reply code: 403 access refused, 404 not found, 405 locked, 406 precondition failed…
    """

    def __init__(self, code: int, text: str) -> None:
        self.reply_code = code
        self.text = text
        super().__init__(f"RabbitMQ refused it: {text}")


class Delivered:
    """A message as the server handed it out."""

    __slots__ = ("body", "channel", "exchange", "key", "properties", "redelivered", "tag")

    def __init__(
        self,
        channel: Channel,
        tag: int,
        redelivered: bool,
        exchange: str,
        key: str,
        properties: wire.Properties,
        body: bytes,
    ) -> None:
        self.channel = channel
        self.tag = tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.key = key
        self.properties = properties
        self.body = body


class Channel:
    """One channel; `Connection.channel` opens it.

    Attributes:
        lost: Resolved when it is closed, for whatever reason.
        error: Why; None while it is open.
        settled_at: When something was settled last, in the event loop's time.
        on_deliver: What takes the deliveries of each consumer tag.
        on_cancel: Called when the server ends a consumer, for example since its queue was deleted.
        on_return: Called with the properties of an unconfirmed message that no queue took.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self.number = number
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.error: BrokerError | None = None
        self.on_deliver: dict[bytes, Callable[[Delivered], None]] = {}
        self.on_cancel: Callable[[], None] = _ignore
        self.on_return: Callable[[wire.Properties], None] = _ignore_return
        self.settled_at = 0.0
        self._calls: deque[_Call] = deque()
        self._published = 0
        self._unconfirmed: dict[int, tuple[asyncio.Future[int], str]] = {}
        self._content: _Content | None = None

    async def call(self, *methods: bytes) -> list[bytes]:
        """Send methods in one go, and give the answer to each.

        Raises:
            RefusedError: The server closed the channel instead.
            BrokerUnavailableError: The connection broke.
        """
        if self.error is not None:
            raise _again(self.error)
        call = _Call(len(methods), self._loop.create_future())
        self._calls.append(call)
        self._connection.send(*[wire.method(self.number, each) for each in methods])
        await call.done
        if call.error is not None:
            raise _again(call.error)
        return call.answers

    def settle(self, frame: bytes) -> None:
        """Send a settlement; nothing happens once the channel is lost."""
        if self.error is None:
            self.settled_at = self._loop.time()
            self._connection.send(frame)

    def publish(
        self, exchange: str, key: str, properties: bytes, body: bytes, *, mandatory: bool = True
    ) -> asyncio.Future[int]:
        """Publish; the future gives one of STORED, REFUSED, UNROUTABLE and LOST. The channel must confirm."""
        future: asyncio.Future[int] = self._loop.create_future()
        if self.error is not None:
            future.set_result(LOST)
            return future
        self._published += 1
        self._unconfirmed[self._published] = future, key
        self.post(exchange, key, properties, body, mandatory=mandatory)
        return future

    def post(self, exchange: str, key: str, properties: bytes, body: bytes, *, mandatory: bool = False) -> None:
        """Publish without a confirmation."""
        head = wire.publish_method(self.number, exchange, key, mandatory=mandatory)
        self._connection.send(head, *wire.content(self.number, properties, body, self._connection.frame_max))

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
            self._connection.send(wire.method(self.number, wire.CHANNEL_CLOSE_METHOD))
            self.fail(BrokerUnavailableError("the channel is closed"))

    def fail(self, error: BrokerError) -> None:
        """Note that it is lost, and tell everybody who waits."""
        if self.error is not None:
            return
        self.error = error
        calls, self._calls = self._calls, deque()
        for call in calls:
            call.fail(error)
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for future, _ in unconfirmed.values():
            if not future.done():
                future.set_result(LOST)
        self.lost.set_result(None)

    # What the server sends

    def receive_method(self, data: bytes, at: int, end: int, method: int) -> None:
        """Take a method; ``at`` is behind its number."""
        if method == wire.BASIC_DELIVER or method == wire.BASIC_RETURN:
            self._content = _Content(method, data[at:end])
        elif method == wire.BASIC_ACK:
            self._confirm(*wire.read_confirm(data, at), STORED)
        elif method == wire.BASIC_NACK:
            self._confirm(*wire.read_confirm(data, at), REFUSED)
        elif method == wire.BASIC_CANCEL:
            self.on_cancel()
        elif method == wire.CHANNEL_CLOSE:
            code, text = wire.read_close(data, at)
            self._connection.send(wire.method(self.number, wire.CHANNEL_CLOSE_OK_METHOD))
            self._connection.forget(self.number)
            self.fail(RefusedError(code, text))
        elif method == wire.CHANNEL_CLOSE_OK:
            self._connection.forget(self.number)
        elif self._calls:
            call = self._calls[0]
            if call.answer(data[at - 4 : end]):
                self._calls.popleft()

    def receive_head(self, data: bytes, at: int) -> None:
        """Take a content header."""
        content = cast("_Content", self._content)
        content.missing, flags, at = wire.read_content_head(data, at)
        content.properties = wire.read_properties(data, at, flags)
        if not content.missing:
            self._complete(content, b"")

    def receive_body(self, body: bytes) -> None:
        """Take a part of a body."""
        content = cast("_Content", self._content)
        content.missing -= len(body)
        if content.missing > 0:
            content.parts.append(body)
        elif content.parts:
            content.parts.append(body)
            self._complete(content, b"".join(content.parts))
        else:
            self._complete(content, body)

    def _complete(self, content: _Content, body: bytes) -> None:
        self._content = None
        payload = content.payload
        if content.method == wire.BASIC_RETURN:
            _, at = wire.read_shortstr(payload, 2)
            _, at = wire.read_shortstr(payload, at)
            key, _ = wire.read_shortstr(payload, at)
            self._note_return(key)
            self.on_return(content.properties)
            return
        at = 1 + payload[0]
        take = self.on_deliver.get(payload[1:at])
        if take is not None and self.error is None:
            exchange, end = wire.read_shortstr(payload, at + 9)
            key, _ = wire.read_shortstr(payload, end)
            tag = int.from_bytes(payload[at : at + 8], "big")
            self._pass_on(take, Delivered(self, tag, payload[at + 8] != 0, exchange, key, content.properties, body))

    def _pass_on(self, take: Callable[[Delivered], None], delivered: Delivered) -> None:
        try:
            take(delivered)
        except Exception:  # What takes it must not end the connection.
            logger.exception("a message was dropped")

    def _note_return(self, key: str) -> None:
        """Find the publish that comes back: the server says only what it was, and returns in order."""
        for future, unconfirmed in self._unconfirmed.values():
            if unconfirmed == key and not future.done():
                future.set_result(UNROUTABLE)
                return

    def _confirm(self, tag: int, multiple: bool, outcome: int) -> None:
        if not multiple:
            found = self._unconfirmed.pop(tag, None)
            if found is not None and not found[0].done():
                found[0].set_result(outcome)
            return
        for each in list(self._unconfirmed):
            if each > tag:
                return
            self._confirm(each, False, outcome)


def _again(error: BrokerError) -> BrokerError:
    """Make an error anew for each who gets it: one that is raised often collects tracebacks."""
    return RefusedError(error.reply_code, error.text) if isinstance(error, RefusedError) else type(error)(str(error))


def _ignore() -> None:
    """Expect nothing to be cancelled."""


def _ignore_return(properties: wire.Properties) -> None:
    """Expect nothing to come back."""


class _Call:
    """Methods that wait for their answers."""

    __slots__ = ("_count", "answers", "done", "error")

    def __init__(self, count: int, done: asyncio.Future[None]) -> None:
        self._count = count
        self.done = done
        self.answers: list[bytes] = []
        self.error: BrokerError | None = None

    def answer(self, payload: bytes) -> bool:
        self.answers.append(payload)
        if len(self.answers) < self._count:
            return False
        self._resolve()
        return True

    def fail(self, error: BrokerError) -> None:
        self.error = error
        self._resolve()

    def _resolve(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class _Content:
    """A message of which parts are still to come."""

    __slots__ = ("method", "missing", "parts", "payload", "properties")

    def __init__(self, method: int, payload: bytes) -> None:
        self.method = method
        self.payload = payload
        self.missing = 0
        self.parts: list[bytes] = []
        self.properties: wire.Properties
