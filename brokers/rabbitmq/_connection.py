"""One connection: aiormq's, over a socket of our own, which can be dropped at once.

Nothing here reconnects; `_session` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote

import aiormq

from brokers.rabbitmq._channel import Channel, Delivered, cancels
from brokers.rabbitmq._config import RabbitMQConfig
from brokers.rabbitmq._refusals import RefusedError, is_foreign, reason_of
from mesh.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from pamqp.base import Frame
    from pamqp.common import FieldTable

__all__ = ["CLOSE_WAIT", "Connected", "Connection", "connected", "logging_in", "properties_of", "url_of"]

CLOSE_WAIT = 2.0
HIGH_WATER_BYTES = 1024 * 1024
FRAMES_AHEAD = 64
NOT_ALLOWED, ACCESS_REFUSED = 530, 403

_library = logging.getLogger("aiormq.connection")


def _is_news(record: logging.LogRecord) -> bool:
    """Pass over what the library says of the end of a connection, in several lines: the session says it in one."""
    return "blocked" in (record.funcName or "") or _library.isEnabledFor(logging.DEBUG)


_library.addFilter(_is_news)


class Connected(aiormq.TransportFactory):
    """Hands over a socket that is connected already."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams = reader, writer

    async def create(self, url: object, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return self._streams


class _Client(aiormq.Connection):
    """Leaves a server that misses two signs of life, and never lets a settlement wait for the writer.

    What is published waits before it gets here (`Channel.room`), so the queue to the writer stays short.
    """

    HEARTBEAT_GRACE_MULTIPLIER = 2
    FRAME_BUFFER_SIZE = 0


async def connected(host: str, port: int, config: RabbitMQConfig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a socket, which nobody has logged in on.

    Raises:
        OSError: The server cannot be reached.
    """
    goodbye = None if config.tls is None else CLOSE_WAIT
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=config.tls, ssl_shutdown_timeout=goodbye)
    except UnicodeError as error:  # It cannot be the name of a host.
        raise OSError(str(error)) from error
    writer.transport.set_write_buffer_limits(HIGH_WATER_BYTES)
    return reader, writer


def properties_of(config: RabbitMQConfig, purpose: str) -> FieldTable:
    """Give what the server's reports say of a connection."""
    return {"product": "brokermesh", "connection_name": f"{config.name} ({purpose})"}


@contextmanager
def logging_in(writer: asyncio.StreamWriter, config: RabbitMQConfig) -> Iterator[None]:
    """Drop the socket when a client cannot log in on it, and say why in our words.

    Raises:
        RefusedError: The server does not let us in.
        OSError: It hung up.
    """
    try:
        yield
    except BaseException as error:
        writer.transport.abort()
        if isinstance(error, aiormq.AuthenticationError | aiormq.ProbableAuthenticationError):
            raise RefusedError(ACCESS_REFUSED, str(error)) from error
        if isinstance(error, aiormq.InvalidFrameError):  # It answers ``connection.open`` with ``connection.close``.
            raise RefusedError(NOT_ALLOWED, f"the virtual host {config.vhost!r} cannot be used") from error
        if isinstance(error, StopAsyncIteration):  # It was closed while the client's reader began to read.
            raise ConnectionResetError("the server closed the connection") from error
        if is_foreign(error) and not isinstance(error, OSError):
            raise ConnectionResetError(str(error)) from error
        raise


class Connection:
    """A connection to one server; `open` makes it.

    Attributes:
        closed: Resolved when it is over.
        error: Why; None while it is up.
        frame_max: The largest frame both sides take, head and end included.
    """

    def __init__(self, raw: aiormq.Connection, writer: asyncio.StreamWriter) -> None:
        self._raw = raw
        self._writer = writer
        self._transport = cast("asyncio.Transport", writer.transport)
        self._channels: set[Channel] = set()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BrokerError | None = None
        self.frame_max: int = raw.connection_tune.frame_max
        raw.closing.add_done_callback(self._note_closed)

    @classmethod
    async def open(cls, host: str, port: int, config: RabbitMQConfig, purpose: str) -> Self:
        """Connect and log in; the caller bounds it in time.

        Raises:
            RefusedError: The server does not let us in.
            OSError: It cannot be reached, or hung up.
        """
        reader, writer = await connected(host, port, config)
        with logging_in(writer, config):
            raw = _Client(
                url_of(host, port, config),
                transport_factory=Connected(reader, writer),
                client_properties=properties_of(config, purpose),
            )
            raw.vhost = config.vhost  # The library's own reading of a URL leaves some characters encoded.
            await raw.connect()
        return cls(raw, writer)

    @asynccontextmanager
    async def channel(self, *methods: Frame) -> AsyncIterator[Channel]:
        """Open a channel for as long as it is needed, and call methods on it."""
        channel = await self.open_channel(*methods)
        try:
            yield channel
        finally:
            channel.close()

    async def open_channel(
        self, *methods: Frame, confirms: bool = False, take: Callable[[Delivered], None] | None = None
    ) -> Channel:
        """Open a channel and call methods on it; the caller closes it.

        Args:
            methods: What to call.
            confirms: Whether publishes are confirmed on it.
            take: Takes the deliveries.
        """
        if self.error is not None:
            raise BrokerUnavailableError(str(self.error))
        limit = self._raw.connection_tune.channel_max
        number = next((each for each in range(1, limit + 1) if each not in self._raw.channels), 0)
        if not number:
            raise BrokerError(f"all {limit} channels of the connection are in use")
        before = cancels()
        try:
            opening = self._raw.channel(
                number, publisher_confirms=confirms, frame_buffer_size=FRAMES_AHEAD, on_return_raises=False
            )
            raw = cast("aiormq.Channel", await opening)
        except (Exception, asyncio.CancelledError) as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            if (cancels() > before) if cancelled else (not is_foreign(error)):
                raise
            reason = reason_of(error)
            if self._raw.is_closed:  # Known from now on: else who asks again gets this one again, without a pause.
                self._fail(reason)
            raise reason from error
        channel = Channel(raw, self._drained)
        self._channels.add(channel)
        channel.lost.add_done_callback(lambda _: self._channels.discard(channel))
        if take is not None:
            channel.on_deliver = take
        try:
            if methods:
                await channel.call(*methods)
        except BaseException:
            channel.close()
            raise
        return channel

    async def _drained(self) -> None:
        """Wait until the server takes what was sent, or the connection broke."""
        with suppress(OSError):
            await self._writer.drain()

    async def blocked(self) -> bool:
        """Tell whether the server takes no publishes now, since it is short of memory or disk."""
        try:
            async with asyncio.timeout(0):
                await self._raw.ready()
        except TimeoutError:
            return True
        return False

    async def close(self) -> None:
        """Say goodbye, and close; idempotent.

        Channels first: the server drops what a channel has yet to read when its connection is closed, acks included.
        """
        if self.error is not None:
            return
        try:
            async with asyncio.timeout(CLOSE_WAIT):
                channels = [channel for channel in self._channels if channel.error is None]
                await asyncio.sleep(max((channel.linger for channel in channels), default=0.0))
                for channel in channels:
                    channel.close()
                closing = [raw.closing for raw in self._raw.channels.values() if raw is not None]  # Earlier ones, too.
                if closing:
                    await asyncio.wait(closing)
                await self._raw.close(aiormq.ConnectionClosed(0, "closed"))
        except TimeoutError:
            pass  # It does not read any more.
        finally:
            self.abort(BrokerUnavailableError("the connection is closed"))

    def pause(self) -> None:
        """Read nothing more for now."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self, error: BrokerError) -> None:
        """Drop it at once."""
        self._transport.abort()
        self._fail(error)

    def _note_closed(self, closing: asyncio.Future[object]) -> None:
        self._transport.abort()
        self._fail(reason_of(None if closing.cancelled() else closing.exception()))

    def _fail(self, error: BrokerError) -> None:
        if self.error is None:
            self.error = error
            for channel in list(self._channels):
                channel.fail(error)
            self.closed.set_result(None)


def url_of(host: str, port: int, config: RabbitMQConfig) -> str:
    """Write the URL that aiormq reads settings from."""
    login = f"{quote(config.user, safe='')}:{quote(config.password, safe='')}"
    place = f"[{host}]" if ":" in host else host
    mechanism = "external" if config.external else "plain"
    vhost = quote(config.vhost, safe="")
    return f"amqp://{login}@{place}:{port}/{vhost}?heartbeat={config.heartbeat}&auth={mechanism}"
