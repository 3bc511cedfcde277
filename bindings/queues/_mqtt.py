"""MQTT 3.1.1, as much of it as a binding needs: one connection, which is not made again when it breaks.

Source: OASIS MQTT 3.1.1.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from mesh.blocks.binding_contract import BindingError
from mesh.tasks import task_group

__all__ = ["Message", "Server", "Wire", "connect"]

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x40, 0x82, 0x90
PING, DISCONNECT = b"\xc0\x00", b"\xe0\x00"
QOS1 = 0x02
REFUSED = {
    1: "it does not know MQTT 3.1.1",
    2: "it does not take the client id",
    3: "it is not available",
    4: "wrong user or password",
    5: "not authorized",
}
NOT_SUBSCRIBED = 0x80
LEVEL = 4
KEEP_ALIVE = 30
PING_SECONDS = 10.0
SILENT_SECONDS = 25.0
ANSWER_SECONDS = 4.0
MAX_UNIT = 64 * 1024 * 1024
LARGEST_ID = 65535


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and who we are to it."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came.

    Attributes:
        topic: Where it was published.
        data: Its bytes.
        number: By which it is acknowledged; 0 = it is not.
    """

    topic: str
    data: bytes
    number: int


class Wire(asyncio.Protocol):
    """A connection.

    Attributes:
        closed: Done with the reason once it is over.
    """

    def __init__(self, on_message: Callable[[Message], None]) -> None:
        """Prepare; `connect` does the rest."""
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._heard = self._loop.time()
        self._paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._beat: asyncio.TimerHandle | None = None
        self._answers: dict[tuple[int, int], asyncio.Future[bytes]] = {}
        self._numbers = 0
        self.closed: asyncio.Future[str] = self._loop.create_future()

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._beat = self._loop.call_later(PING_SECONDS, self._ping)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        self._end(str(error) if error else "the server has closed the connection")

    def _end(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self._writable.set()
        if self._beat is not None:
            self._beat.cancel()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(BindingError(f"the connection was lost: {reason}", retryable=True))
                answer.exception()  # Whoever asked may have gone.

    def abort(self, reason: str) -> None:
        """End it now."""
        self._end(reason)
        self._transport.abort()

    def leave(self) -> None:
        """Say goodbye; the server keeps the session."""
        self.send(DISCONNECT)
        self._transport.close()

    def _ping(self) -> None:
        if not self._paused and self._loop.time() - self._heard > SILENT_SECONDS:
            self.abort("no sign of life")
            return
        self.send(PING)
        self._beat = self._loop.call_later(PING_SECONDS, self._ping)

    def pause(self) -> None:
        """Read nothing more for now."""
        self._paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self.closed.done():
            self._paused, self._heard = False, self._loop.time()
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """Have publishes wait: the server reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let them go on."""
        self._writable.set()

    # Units

    def send(self, data: bytes) -> None:
        """Write, unless it is over."""
        if not self.closed.done():
            self._transport.write(data)

    async def ask(self, data: bytes, answer: int, number: int = 0) -> bytes:
        """Write, and wait for the answer; raises BindingError when the connection is lost."""
        self._check()
        waiting: asyncio.Future[bytes] = self._loop.create_future()
        self._answers[answer, number] = waiting
        try:
            self.send(data)
            return await waiting
        finally:
            del self._answers[answer, number]

    def _check(self) -> None:
        if self.closed.done():
            raise BindingError(f"the connection was lost: {self.closed.result()}", retryable=True)

    def number(self, answer: int) -> int:
        """Give a number that no unit has which waits for such an answer."""
        while True:
            self._numbers = self._numbers % LARGEST_ID + 1
            if (answer, self._numbers) not in self._answers:
                return self._numbers

    def data_received(self, data: bytes) -> None:
        """Cut units from the stream."""
        self._heard = self._loop.time()
        self._buffer += data
        try:
            while not self.closed.done() and (found := _cut(self._buffer)) is not None:
                self._take(*found)
        except (IndexError, ValueError) as error:
            self.abort(f"the server sent what is not MQTT: {error}")

    def _take(self, first: int, body: bytes) -> None:
        kind = first & 0xF0
        if kind == PUBLISH:
            end = 2 + int.from_bytes(body[:2])
            topic = body[2:end].decode()
            number = int.from_bytes(body[end : end + 2]) if first & 0x06 else 0
            self._on_message(Message(topic, body[end + 2 if number else end :], number))
        elif kind in (CONNACK, SUBACK, PUBACK):
            number = 0 if kind == CONNACK else int.from_bytes(body[:2])
            answer = self._answers.get((kind, number))
            if answer is not None and not answer.done():
                answer.set_result(body)

    # What is asked

    def acknowledge(self, number: int) -> None:
        """Say that a message is done with."""
        self.send(unit(PUBACK, number.to_bytes(2)))

    async def subscribe(self, topic: str) -> None:
        """Subscribe with QoS 1, while messages may come already.

        Raises:
            BindingError: It is not let, or the connection is lost.
            TimeoutError: Nothing is heard for some seconds, although it is read.
        """
        number = self.number(SUBACK)
        asked = unit(SUBSCRIBE, number.to_bytes(2) + text(topic) + b"\x01")
        async with task_group() as tasks:
            asking = tasks.create_task(self.ask(asked, SUBACK, number), name="mqtt-subscribe")
            while not asking.done():
                await asyncio.wait([asking], timeout=ANSWER_SECONDS)
                if not (asking.done() or self._paused) and self._loop.time() - self._heard >= ANSWER_SECONDS:
                    raise TimeoutError
        body = asking.result()
        if body[2] == NOT_SUBSCRIBED:
            raise BindingError(f"the server does not let us subscribe to {topic}")

    async def publish(self, topic: str, data: bytes, *, retain: bool, confirmed: bool) -> None:
        """Publish; with QoS 1 the server has the message then."""
        await self._writable.wait()
        first = PUBLISH | (QOS1 if confirmed else 0) | retain
        if not confirmed:
            self._check()
            self.send(unit(first, text(topic) + data))
            return
        number = self.number(PUBACK)
        await self.ask(unit(first, text(topic) + number.to_bytes(2) + data), PUBACK, number)


async def connect(server: Server, client_id: str, on_message: Callable[[Message], None], *, clean: bool) -> Wire:
    """Connect; the caller bounds it in time.

    Raises:
        BindingError: The server does not let us in.
        OSError: It is not reachable.
    """
    wire = Wire(on_message)
    name = server.host if server.tls is not None else None
    await asyncio.get_running_loop().create_connection(
        lambda: wire, server.host, server.port, ssl=server.tls, server_hostname=name
    )
    try:
        login = [None if each is None else text(each) for each in (server.username, server.password)]
        flags = (login[0] is not None) << 7 | (login[1] is not None) << 6 | clean << 1
        head = text("MQTT") + bytes([LEVEL, flags]) + KEEP_ALIVE.to_bytes(2) + text(client_id)
        answer = await wire.ask(unit(CONNECT, head + b"".join(each for each in login if each is not None)), CONNACK)
        if code := answer[1]:
            reason = REFUSED.get(code, f"code {code}")
            raise BindingError(f"the server does not let us in: {reason}", retryable=code == 3)
    except BaseException:
        wire.abort("given up")
        raise
    return wire


def unit(first: int, body: bytes) -> bytes:
    """Write a unit, one message of the protocol; raises BindingError where it is too large."""
    size, digits = len(body), bytearray()
    if size > MAX_UNIT:
        raise BindingError(f"a message of {size} bytes is too large for MQTT")
    while True:
        size, digit = divmod(size, 128)
        digits.append(digit | (0x80 if size else 0))
        if not size:
            return bytes([first]) + bytes(digits) + body


def text(value: str) -> bytes:
    """Write a text; raises BindingError where it is too long."""
    data = value.encode()
    if len(data) > LARGEST_ID:
        raise BindingError("a text of MQTT has 65,535 bytes at most")
    return len(data).to_bytes(2) + data


def _cut(buffer: bytearray) -> tuple[int, bytes] | None:
    """Take the first unit; None = not all of it is there. Raises ValueError where it is none."""
    size = 0
    for index in range(1, 6):
        if index == 5:
            raise ValueError("a length is malformed")
        if len(buffer) <= index:
            return None
        size |= (buffer[index] & 0x7F) << 7 * (index - 1)
        if not buffer[index] & 0x80:
            break
    if size > MAX_UNIT:
        raise ValueError(f"a unit of {size} bytes")
    begin = index + 1
    if len(buffer) < begin + size:
        return None
    found = buffer[0], bytes(buffer[begin : begin + size])
    del buffer[: begin + size]
    return found
