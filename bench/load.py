"""The load generator: HTTP/1.1 over kept connections, at saturation or at a fixed rate.

It is our own and not wrk, so that every request is counted and every answer checked, and so that a
fixed rate is honest: a call's latency counts from the time it was due, not from the time a free
connection was found for it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import re
import threading
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = ["BenchError", "Client", "Load", "get", "percentile", "post"]

CONNECTIONS = 32
ANSWER_SECONDS = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class BenchError(Exception):
    """The run is broken, so it has no figures."""


def get(path: str) -> bytes:
    """Make the bytes of a request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    """Make the bytes of a request with JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that so many are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]


@dataclass
class Load:
    """What one run of load gave.

    Attributes:
        seconds: From the first request to the last answer.
        latencies: Of every call, in seconds.
        lag: How late each call of a fixed rate was begun, in seconds.
    """

    seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    lag: array[float] = field(default_factory=lambda: array("d"))

    @property
    def count(self) -> int:
        return len(self.latencies)


class _Connection(asyncio.Protocol):
    """One call at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.WriteTransport
        self._buffer = b""
        self._since = 0.0
        self._expected = b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._client.closing:
            self._client.fail(f"a connection was closed: {exc}")

    def call(self, request: bytes, expected: bytes, since: float) -> None:
        self.busy = True
        self._since = since
        self._expected = expected
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return
        found = _LENGTH.search(data, 0, end + 2)
        body_from = end + 4
        body_to = body_from + (int(found[1]) if found is not None else 0)
        if len(data) < body_to:
            self._buffer = data
            return
        self._buffer = b""
        if not self.busy or len(data) > body_to or data[9:12] != self._expected:
            self._client.fail(f"expected {self._expected.decode()}, got {data[:600]!r}")
            return
        body = self._client.expected_body
        if body is not None and found is not None and data[body_from:body_to] != body:
            self._client.fail(f"another body than expected: {data[:600]!r}")
            return
        self.busy = False
        self._client.answered(self, time.perf_counter() - self._since)

    def close(self) -> None:
        self._transport.abort()


class Client:
    """Keeps connections to one server and calls over them."""

    def __init__(
        self,
        port: int,
        requests: Sequence[bytes] | Iterator[bytes],
        expected: Sequence[int],
        expected_body: bytes | None = None,
    ) -> None:
        """Prepare; ``connected`` opens.

        Args:
            port: Of the server.
            requests: Sent in turn, over and over if it is a sequence.
            expected: The status of each.
            expected_body: The body of every answer that has one; None does not look.
        """
        self._port = port
        made = requests if isinstance(requests, Iterator) else itertools.cycle(requests)
        statuses = itertools.cycle([str(status).encode() for status in expected])
        self._requests: Iterator[tuple[bytes, bytes]] = zip(made, statuses, strict=True)
        self.expected_body = expected_body
        self.closing = False
        self._connections: list[_Connection] = []
        self._load = Load()
        self._until = 0.0
        self._idle: deque[_Connection] = deque()
        self._due: deque[float] = deque()
        self._remaining = 0
        self._done: asyncio.Future[None]

    @asynccontextmanager
    async def connected(self, connections: int = CONNECTIONS) -> AsyncIterator[Client]:
        """Open the connections."""
        loop = asyncio.get_running_loop()
        try:
            for _ in range(connections):
                _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
                self._connections.append(connection)
            yield self
        finally:
            self.closing = True
            for connection in self._connections:
                connection.close()

    def fail(self, reason: str) -> None:
        """End the run."""
        if not self._done.done():
            self._done.set_exception(BenchError(reason))

    async def saturate(self, seconds: float) -> Load:
        """Call over every connection, again as soon as it is answered; what was begun is finished."""
        self._done = asyncio.get_running_loop().create_future()
        load = self._load = Load()
        self._due.clear()
        started = time.perf_counter()
        self._until = started + seconds
        self._remaining = len(self._connections)
        for connection in self._connections:
            request, status = next(self._requests)
            connection.call(request, status, time.perf_counter())
        await self._finished(seconds)
        load.seconds = time.perf_counter() - started
        return load

    async def at_rate(self, rate: float, seconds: float) -> Load:
        """Begin calls at fixed times, whatever becomes of those before."""
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        load = self._load = Load()
        self._until = 0.0
        self._idle = deque(self._connections)
        total = self._remaining = int(rate * seconds)
        started = time.perf_counter() + 0.02
        stopped = threading.Event()

        def pace() -> None:  # A thread, since event loops round their timers to milliseconds.
            for number in range(total):
                due = started + number / rate
                wait = due - time.perf_counter()
                if wait > 0:
                    time.sleep(wait)
                if stopped.is_set():
                    return
                loop.call_soon_threadsafe(self._begin, due)

        pacer = threading.Thread(target=pace, daemon=True)
        pacer.start()
        try:
            await self._finished(seconds)
        finally:
            stopped.set()
        load.seconds = time.perf_counter() - started
        return load

    async def _finished(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds + ANSWER_SECONDS):
                await self._done
        except TimeoutError:
            raise BenchError(f"no answer within {ANSWER_SECONDS:g} s on some connection") from None

    def _begin(self, due: float) -> None:
        if not self._idle:
            self._due.append(due)
            return
        self._call(self._idle.popleft(), due)

    def _call(self, connection: _Connection, due: float) -> None:
        self._load.lag.append(time.perf_counter() - due)
        request, status = next(self._requests)
        connection.call(request, status, due)

    def answered(self, connection: _Connection, latency: float) -> None:
        """Take an answer, and go on."""
        self._load.latencies.append(latency)
        if self._until:
            now = time.perf_counter()
            if now < self._until:
                request, status = next(self._requests)
                connection.call(request, status, now)
                return
            self._remaining -= 1
        else:
            self._remaining -= 1
            if self._due:
                self._call(connection, self._due.popleft())
            else:
                self._idle.append(connection)
        if self._remaining == 0:
            with contextlib.suppress(asyncio.InvalidStateError):
                self._done.set_result(None)
