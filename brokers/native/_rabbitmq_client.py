"""aio-pika's connection, as somebody who must not lose anything can use it.

aio-pika is used as it is, without its robust connections: these know one host, declare from memory what they restore,
and what the server refuses then ends all of it (docs/adr/0060-rabbitmq-native-client.md). What is added here is small:

- The end of a connection ends whoever waits for it, with one error: the library lets some of them wait for ever.
- Whoever is cancelled leaves an answer to come: the library closes a channel when a call on it is cancelled.
- The library raises ``CancelledError`` of its own accord, too; that becomes an error of ours.

What there is much of, messages and settlements, goes through the channel beneath aio-pika's, which is aiormq's: objects
for each message take as long as all the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar, cast

import aio_pika
from aio_pika.abc import AbstractChannel
from aiormq import DeliveryError
from yarl import URL

from brokers.rabbitmq._channel import cancels
from brokers.rabbitmq._config import RabbitMQConfig
from brokers.rabbitmq._connection import CLOSE_WAIT, Connected, connected, logging_in, properties_of, url_of
from brokers.rabbitmq._refusals import again, is_foreign, reason_of
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Client"]

ANSWER_SECONDS = 30.0

_Answer = TypeVar("_Answer")


class Client:
    """One connection.

    Attributes:
        closed: Resolved when it is over.
        error: Why; None while it is up.
        exchanges: The channel that publishes to each that is known to be there, or is about to be.
    """

    def __init__(self, raw: aio_pika.Connection, writer: asyncio.StreamWriter) -> None:
        """Take over a connection that is open."""
        self._raw = raw
        self._writer = writer
        self._asked: set[asyncio.Future[Any]] = set()
        self._sending: set[asyncio.Task[Any]] = set()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BrokerError | None = None
        self._publisher: AbstractChannel | None = None
        self._opening, self._room = asyncio.Lock(), asyncio.Lock()
        self.exchanges: dict[str, asyncio.Future[AbstractChannel]] = {}
        raw.close_callbacks.add(self._note_closed)
        transport = raw.transport
        assert transport is not None
        self.frame_max: int = transport.connection.connection_tune.frame_max
        if transport.connection.is_closed:  # Since it was opened.
            self.fail(BrokerUnavailableError("the connection broke"))

    @classmethod
    async def open(cls, host: str, port: int, config: RabbitMQConfig, purpose: str) -> Self:
        """Connect and log in; the caller bounds it in time.

        Raises:
            RefusedError: The server does not let us in.
            OSError: It cannot be reached, or hung up.
        """
        reader, writer = await connected(host, port, config)
        raw = aio_pika.Connection(URL(url_of(host, port, config)), client_properties=properties_of(config, purpose))
        raw.kwargs["transport_factory"] = Connected(reader, writer)
        try:
            with logging_in(writer, config):
                await raw.connect()
        except BaseException:
            await raw.close()  # Nothing is sent: else the library would do it once it is forgotten.
            raise
        return cls(raw, writer)

    @property
    def is_lost(self) -> bool:
        """Whether it is over."""
        return self.error is not None

    def _note_closed(self, _: object, error: BaseException | None) -> None:
        self.fail(reason_of(error))

    def fail(self, error: BrokerError) -> None:
        """Note that it is lost, and end whoever waits."""
        if self.error is None:
            self.error = error
            self._writer.transport.abort()
            for each in (*self._asked, *self._sending):
                each.cancel()
            self.closed.set_result(None)

    abort = fail

    async def close(self) -> None:
        """Say goodbye, and close; idempotent."""
        with suppress(Exception):  # Whatever it says, it is closed.
            async with asyncio.timeout(CLOSE_WAIT):
                await self._raw.close()
        self.fail(BrokerUnavailableError("the connection is closed"))

    async def drained(self) -> None:
        """Wait until the server takes what was sent, or the connection broke: one after the other, in order."""
        async with self._room:
            with suppress(OSError):
                await self._writer.drain()

    async def send(self, sending: Coroutine[Any, Any, object]) -> object:
        """Await what the library gives up if its caller is cancelled, without harm: a publish; give its confirmation.

        Raises:
            RefusedError: The server closed the channel instead.
            BrokerUnavailableError: The connection broke, or the channel was closed before.
            DeliveryError: The server did not take it.
        """
        task, before = cast("asyncio.Task[Any]", asyncio.current_task()), cancels()
        if self.error is not None:
            sending.close()
            raise again(self.error)
        self._sending.add(task)
        try:
            return await sending
        except asyncio.CancelledError as error:
            if (task.uncancel() if self.is_lost else task.cancelling()) > before:  # Not by `fail` alone.
                raise
            raise self._reason() from error
        except Exception as error:
            if not is_foreign(error) or isinstance(error, DeliveryError):
                raise
            raise reason_of(error) from error
        finally:
            self._sending.discard(task)

    async def ask(self, answer: Awaitable[_Answer]) -> _Answer:
        """Await an answer of the library's, which is left to come if the caller is cancelled.

        Raises:
            RefusedError: The server closed the channel instead.
            BrokerUnavailableError: The connection broke, or the channel was closed before, or there is no answer.
        """
        if self.error is not None:
            if asyncio.iscoroutine(answer):
                answer.close()
            raise again(self.error)
        answering = asyncio.ensure_future(answer)
        self._asked.add(answering)
        answering.add_done_callback(self._forget)
        before = cancels()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.shield(answering)
        except TimeoutError:
            raise BrokerUnavailableError("the server does not answer") from None
        except asyncio.CancelledError as error:
            if cancels() > before:
                raise
            raise self._reason() from error
        except Exception as error:
            if not is_foreign(error):
                raise
            raise reason_of(error) from error

    def _reason(self) -> BrokerError:
        return reason_of(None) if self.error is None else again(self.error)

    def _forget(self, answering: asyncio.Future[Any]) -> None:
        self._asked.discard(answering)
        if not answering.cancelled():
            answering.exception()  # Whoever asked may have gone.

    async def open_channel(self, *, confirms: bool = False) -> AbstractChannel:
        """Open a channel; the caller closes it."""
        if self.error is not None:
            raise again(self.error)
        channel = self._raw.channel(publisher_confirms=confirms)
        opening = asyncio.ensure_future(channel.initialize())
        try:
            await self.ask(opening)
        except asyncio.CancelledError:
            closing = asyncio.ensure_future(_close_opened(channel, opening))
            self._asked.add(closing)
            closing.add_done_callback(self._forget)
            raise
        return channel

    async def publisher(self) -> AbstractChannel:
        """Give the channel that publishes, with confirmation; another one if the server closed it."""
        async with self._opening:
            if self._publisher is None or self._publisher.is_closed:
                self._publisher = await self.open_channel(confirms=True)
            return self._publisher

    async def close_channel(self, channel: AbstractChannel) -> None:
        """Close a channel; does not raise."""
        if not channel.is_closed:
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(CLOSE_WAIT):
                    await self.ask(channel.close())

    @asynccontextmanager
    async def channel(self, *, confirms: bool = False) -> AsyncIterator[AbstractChannel]:
        """Open a channel for as long as it is needed: what the server refuses ends it, and nothing else."""
        channel = await self.open_channel(confirms=confirms)
        try:
            yield channel
        finally:
            await self.close_channel(channel)


async def _close_opened(channel: AbstractChannel, opening: asyncio.Future[None]) -> None:
    """Close a channel once it is open: whoever wanted it has gone."""
    await asyncio.wait([opening])
    if not channel.is_closed:
        await channel.close()
