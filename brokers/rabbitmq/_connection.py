"""One connection: its handshake, its signs of life, and its channels.

Calls are pipelined: what is written in one go is answered in order, and a caller that goes away
leaves its answers to be dropped. Nothing here reconnects; `_session` does.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self, cast

from brokers.rabbitmq import _wire as wire
from brokers.rabbitmq._channel import TAG, Channel, Delivered, RefusedError
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Connection", "Login"]

CLOSE_WAIT = 2.0
HIGH_WATER_BYTES = 1024 * 1024
MAX_FRAME_BYTES = 128 * 1024
MAX_CHANNELS = 2047
MISSED_HEARTBEATS = 2.0


@dataclass(frozen=True, slots=True)
class Login:
    """How to introduce oneself.

    Attributes:
        mechanism: ``PLAIN`` or ``EXTERNAL``.
        response: The mechanism's secret.
        vhost: The virtual host.
        heartbeat: Seconds between signs of life, whole ones.
        name: The connection's name in the server's reports.
    """

    mechanism: str
    response: bytes = field(repr=False)
    vhost: str
    heartbeat: int
    name: str


class Connection(asyncio.Protocol):
    """A connection to one server; `open` makes it.

    Attributes:
        closed: Resolved when it is over.
        error: Why; None while it is up.
        frame_max: The largest frame both sides take, head and end included.
        version: The server's, as numbers.
        blocked: Why the server takes no publishes now; empty when it does.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.error: BrokerError | None = None
        self.frame_max: int = MAX_FRAME_BYTES
        self.version: tuple[int, ...] = ()
        self.blocked = ""
        self._channel_max = MAX_CHANNELS
        self._transport: asyncio.Transport | None = None
        self._channels: dict[int, Channel] = {}
        self._rest = b""
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused: asyncio.Future[None] | None = None
        self._expected: asyncio.Future[tuple[int, bytes]] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._heard_at = self._sent_at = self._loop.time()
        self._beating: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None, login: Login) -> Self:
        """Connect and log in; the caller bounds it in time.

        Raises:
            RefusedError: The server does not let us in.
            OSError: It cannot be reached, or hung up.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, host, port, ssl=tls)
        try:
            await connection._log_in(login)
        except BaseException:
            connection.abort(BrokerUnavailableError("the connection was given up"))
            raise
        return connection

    async def _log_in(self, login: Login) -> None:
        expected = self._expect()
        self.send(wire.PROTOCOL_HEADER)
        start = await self._answer(expected, wire.CONNECTION_START)
        server, at = wire.read_table(start, 6)
        mechanisms, _ = wire.read_longstr(start, at)
        if login.mechanism.encode() not in mechanisms.split():
            offered = mechanisms.decode("ascii", "replace")
            raise RefusedError(403, f"it does not offer {login.mechanism} to log in, but {offered}")
        self.version = _version(str(server.get("version", "")))
        capabilities: dict[str, object] = {
            "authentication_failure_close": True,
            "basic.nack": True,
            "connection.blocked": True,
            "consumer_cancel_notify": True,
            "publisher_confirms": True,
        }
        client = {"product": "brokermesh", "connection_name": login.name, "capabilities": capabilities}
        expected = self._expect()
        self.send(wire.method(0, wire.start_ok(client, login.mechanism, login.response)))
        tune = await self._answer(expected, wire.CONNECTION_TUNE)
        channel_max, frame_max = int.from_bytes(tune[4:6], "big"), int.from_bytes(tune[6:10], "big")
        self._channel_max = min(channel_max or MAX_CHANNELS, MAX_CHANNELS)
        self.frame_max = min(frame_max or MAX_FRAME_BYTES, MAX_FRAME_BYTES)
        expected = self._expect()
        self.send(
            wire.method(0, wire.tune_ok(self._channel_max, self.frame_max, login.heartbeat)),
            wire.method(0, wire.connection_open(login.vhost)),
        )
        self._beat(login.heartbeat, self._loop.time())
        await self._answer(expected, wire.CONNECTION_OPEN_OK)

    def _expect(self) -> asyncio.Future[tuple[int, bytes]]:
        self._expected = self._loop.create_future()
        return self._expected

    async def _answer(self, expected: asyncio.Future[tuple[int, bytes]], wanted: int) -> bytes:
        method, payload = await expected
        if method == wire.CONNECTION_CLOSE:
            raise RefusedError(*wire.read_close(payload, 4))
        if method != wanted:
            raise ConnectionResetError(f"it answered with method {method:#x}" if method else str(self.error))
        return payload

    @asynccontextmanager
    async def channel(self, *methods: bytes) -> AsyncIterator[Channel]:
        """Open a channel for as long as it is needed, and call methods on it."""
        channel = await self.open_channel(*methods)
        try:
            yield channel
        finally:
            channel.close()

    async def open_channel(self, *methods: bytes, take: Callable[[Delivered], None] | None = None) -> Channel:
        """Open a channel and call methods on it; the caller closes it.

        Args:
            methods: What to call.
            take: Takes the deliveries for the consumer tag `TAG`.
        """
        if self.error is not None:
            raise BrokerUnavailableError(str(self.error))
        number = next((each for each in range(1, self._channel_max + 1) if each not in self._channels), 0)
        if not number:
            raise BrokerError(f"all {self._channel_max} channels of the connection are in use")
        channel = self._channels[number] = Channel(self, number)
        if take is not None:
            channel.on_deliver[TAG.encode()] = take
        try:
            await channel.call(wire.CHANNEL_OPEN, *methods)
        except BaseException:
            channel.close()
            raise
        return channel

    def forget(self, number: int) -> None:
        """Free a channel's number."""
        self._channels.pop(number, None)
        if not self._channels and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def drained(self) -> None:
        """Wait until the server takes what was sent, or the connection broke."""
        while self._paused is not None:
            await asyncio.shield(self._paused)

    @property
    def congested(self) -> bool:
        """Whether more is waiting to be sent than should."""
        return self._paused is not None

    def send(self, *parts: bytes) -> None:
        """Send frames, together with whatever else this turn of the loop sends."""
        if self.error is not None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += parts
        self._out_bytes += sum(map(len, parts))
        if self._out_bytes > HIGH_WATER_BYTES:
            self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._out_bytes = 0
        if out and self._transport is not None and self.error is None:
            self._sent_at = self._loop.time()
            self._transport.write(b"".join(out))

    async def close(self) -> None:
        """Say goodbye, and close; idempotent.

        Channels first: the server drops what a channel has yet to read when its connection is closed, acks included.
        """
        if self.error is not None:
            return
        try:
            async with asyncio.timeout(CLOSE_WAIT):
                await asyncio.sleep(max((channel.linger for channel in self._channels.values()), default=0.0))
                for channel in list(self._channels.values()):
                    channel.close()
                if self._channels:
                    self._emptied = self._loop.create_future()
                    await self._emptied
                self.send(wire.method(0, wire.connection_close()))
                await asyncio.shield(self.closed)
        except TimeoutError:
            pass  # It does not read any more.
        finally:
            self.abort(BrokerUnavailableError("the connection is closed"))

    def pause(self) -> None:
        """Read nothing more for now."""
        transport = cast("asyncio.Transport", self._transport)
        if not transport.is_closing():
            transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        transport = cast("asyncio.Transport", self._transport)
        if not transport.is_closing():
            transport.resume_reading()

    def abort(self, error: BrokerError) -> None:
        """Drop it at once."""
        if self._transport is not None:
            self._transport.abort()
        self._fail(error)

    def _fail(self, error: BrokerError) -> None:
        if self.error is not None:
            return
        self.error = error
        if self._beating is not None:
            self._beating.cancel()
        self._release()
        if self._expected is not None and not self._expected.done():
            self._expected.set_result((0, b""))
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.fail(error)
        self.closed.set_result(None)

    def _beat(self, interval: int, due: float) -> None:
        """Give a sign of life when nothing else did; leave a server that gives none."""
        now = self._loop.time()
        in_time = now - due < interval / 2  # Else it was us who did nothing, and what came is still unread.
        if in_time and now - self._heard_at > interval * MISSED_HEARTBEATS:
            self.abort(BrokerUnavailableError(f"no sign of life for {now - self._heard_at:.0f} s"))
            return
        if now - self._sent_at >= interval / 2:
            self.send(wire.HEARTBEAT_FRAME)
        self._beating = self._loop.call_later(interval / 2, self._beat, interval, now + interval / 2)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody."""
        self._fail(BrokerUnavailableError(f"the connection broke: {exc}" if exc else "the server hung up"))

    def pause_writing(self) -> None:
        """Let writers wait."""
        self._paused = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let them go on."""
        self._release()

    def _release(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Cut what came into frames."""
        self._heard_at = self._loop.time()
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        try:
            while size - at >= wire.FRAME_OVERHEAD:
                kind, number, length = wire.frame_head.unpack_from(data, at)
                end = at + 7 + length
                if end >= size:
                    if length > self.frame_max:
                        raise wire.ProtocolError(f"a frame of {length} bytes")
                    break
                if data[end] != wire.FRAME_END:
                    raise wire.ProtocolError("a frame does not end where it should")
                self._receive(kind, number, data, at + 7, end)
                at = end + 1
        except (wire.ProtocolError, IndexError, ValueError, struct.error) as error:
            self.abort(BrokerUnavailableError(f"the server sent what is not AMQP: {error}"))
            return
        self._rest = data[at:] if at else data

    def _receive(self, kind: int, number: int, data: bytes, at: int, end: int) -> None:
        if number == 0:
            if kind == wire.METHOD:
                self._receive_own(int.from_bytes(data[at : at + 4], "big"), data[at:end])
            return
        channel = self._channels.get(number)
        if channel is None:
            return
        if kind == wire.METHOD:
            channel.receive_method(data, at + 4, end, int.from_bytes(data[at : at + 4], "big"))
        elif kind == wire.HEADER:
            channel.receive_head(data, at)
        elif kind == wire.BODY:
            channel.receive_body(data[at:end])

    def _receive_own(self, method: int, payload: bytes) -> None:
        if self._expected is not None and not self._expected.done():
            self._expected.set_result((method, payload))
        elif method == wire.CONNECTION_CLOSE:
            self.send(wire.method(0, wire.CONNECTION_CLOSE_OK_METHOD))
            self._flush()
            code, text = wire.read_close(payload, 4)
            self._fail(BrokerUnavailableError(f"the server closed the connection: {code} {text}"))
            cast("asyncio.Transport", self._transport).close()
        elif method == wire.CONNECTION_CLOSE_OK:
            self.abort(BrokerUnavailableError("the connection is closed"))
        elif method == wire.CONNECTION_BLOCKED:
            self.blocked = wire.read_shortstr(payload, 4)[0] or "blocked"
        elif method == wire.CONNECTION_UNBLOCKED:
            self.blocked = ""


def _version(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in text.split("-")[0].split("+")[0].split(".") if part.isdigit()]
    return tuple(numbers)
