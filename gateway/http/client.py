"""An HTTP/1.1 client for one origin: a pool of connections, streams in both directions, nothing else.

No redirects, cookies, compression or retries: what it is told is what it sends. It exists because
the call into the application is half of what a delivery costs; aiohttp's client takes 65 µs for
what takes 20 here. The parser is llhttp, through httptools. ADR 6.

Source: RFC 9112 sections 6 (message body), 7.1 (chunked coding), 9.3 (persistence), 9.6 (tear-down).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self, cast

import httptools

from gateway.http.failures import BusyError, ConnectError, NotSpokenError, ResponseError
from gateway.http.opening import Opening
from mesh.application import Headers
from mesh.fields import TOKEN, declared_length, sendable

__all__ = [
    "CONNECT_SECONDS",
    "MAX_HEAD_BYTES",
    "ClientResponse",
    "BusyError",
    "ConnectError",
    "HTTPClient",
    "NotSpokenError",
    "ResponseError",
]

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 1.9  # Below what servers keep (gunicorn 2 s, Node and uvicorn 5 s), so that they never close first.
MAX_IDLE = 1024  # As many as are busy at once in a burst of reminders or jobs: to connect costs more than a call.
MAX_HEAD_BYTES = 256 * 1024
MAX_BUFFERED_BYTES = 512 * 1024
APART_BYTES = 64 * 1024  # A larger body is not copied behind its head.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_UNSAFE_TARGET = re.compile(r"[\x00-\x20\x7f\ud800-\udc7f\udd00-\udfff]")


class ClientResponse:
    """An answer while it is read; a parser's protocol."""

    __slots__ = (
        "_buffered",
        "_connection",
        "_done",
        "_error",
        "_limit_bytes",
        "_parts",
        "_waiter",
        "headers",
        "length",
        "started",
        "status",
    )

    def __init__(self, connection: _Connection, started: asyncio.Future[None]) -> None:
        self._connection = connection
        self.started = started
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.length: int | None = None
        self._parts: deque[bytes] = deque()
        self._buffered = 0
        self._limit_bytes = MAX_BUFFERED_BYTES
        self._done = False
        self._error: ResponseError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived."""
        return self._done

    @property
    def trailers(self) -> Headers:
        """There are none: a parser of HTTP/1.1 leaves them out."""
        return ()

    def note(self, *, part: bytes = b"", done: bool = False, error: ResponseError | None = None) -> None:
        """Take what the connection has read."""
        if part:
            self._parts.append(part)
            self._buffered += len(part)
            if self._buffered > self._limit_bytes:
                self._connection.pause_reading()
        if done:
            self._done = True
            self._connection.resume_reading()  # Nothing more comes of it, and another exchange may follow.
        if error is not None and not self._done and self._error is None:
            self._error = error
            if not self.started.done():
                self.started.set_exception(error)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        """Read the whole body if its length is known and small, or if it is all here already.

        Raises:
            ResponseError: It broke off.
        """
        if not self._done:
            if self.length is None or self.length > limit_bytes:
                return None
            self._limit_bytes = limit_bytes
            self._connection.resume_reading()
            while not self._done:
                if self._error is not None:
                    raise self._error
                await self._wait()
        if self._buffered > limit_bytes:
            return None
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return body

    async def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives.

        Raises:
            ResponseError: It broke off.
        """
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._buffered -= len(part)
                if self._buffered <= MAX_BUFFERED_BYTES // 2:
                    self._connection.resume_reading()
                yield part
            if self._done:
                return
            if self._error is not None:
                raise self._error
            await self._wait()


class _Connection(asyncio.Protocol):
    """One connection; carries one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.heard = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: ClientResponse | None = None
        self._interim = False
        self._head_only = False
        self._reading_paused = False
        self._keep_alive = True
        self._fields: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._writable = asyncio.Event()
        self._writable.set()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._response is None:  # Nothing was asked: a server that speaks out of turn is not to be trusted.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(ResponseError("the application switched protocols"))
        except httptools.HttpParserError as error:
            self.fail(ResponseError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._keep_alive = False
        self._writable.set()
        response = self._response
        if response is None or response.complete:
            return
        until_close = response.started.done() and response.length is None and not self._is_chunked() and exc is None
        if until_close:
            response.note(done=True)
        else:
            response.note(error=ResponseError("the connection was closed in the middle of an answer"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.fail(ResponseError(f"the header of the answer is over {MAX_HEAD_BYTES} bytes"))
            return
        self._fields.append((name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        response = self._response
        status = self._parser.get_status_code()
        fields, self._fields, self._head_bytes = self._fields, [], 0
        self._interim = status < 200
        if response is None or self._interim:
            return
        self._keep_alive = self._parser.should_keep_alive()
        response.status = status
        response.headers = fields
        for name, value in fields:
            lowered = name.lower()
            if lowered == "content-length" and value.isascii() and value.isdigit():
                response.length = int(value)
            elif lowered == "transfer-encoding" and value.strip().lower() != "chunked":  # It would not be undone.
                self.fail(ResponseError(f"the Transfer-Encoding {value[:100]!r} of the answer is not known"))
                return
        if not response.started.done():
            response.started.set_result(None)
        if self._head_only:
            # llhttp would wait for a body that never comes.
            self._keep_alive = False
            response.note(done=True)

    def on_body(self, body: bytes) -> None:
        if self._response is not None and not self._head_only:
            self._response.note(part=body)

    def on_message_complete(self) -> None:
        if self._response is not None and not self._interim:
            self._response.note(done=True)

    # The exchange

    def _is_chunked(self) -> bool:
        assert self._response is not None
        return any(name.lower() == "transfer-encoding" for name, _ in self._response.headers)

    def fail(self, error: ResponseError) -> None:
        if self._response is not None:
            self._response.note(error=error)
        self.close()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    @property
    def usable(self) -> bool:
        """Whether another exchange may follow."""
        return self._keep_alive and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        self._keep_alive = False
        if self._transport is not None:
            self._transport.abort()

    def begin(self, data: Sequence[bytes], *, head_only: bool) -> ClientResponse:
        """Send a request's head, and its body if it is whole; give the answer to come."""
        self.heard = False
        self._head_only = head_only
        response = self._response = ClientResponse(self, asyncio.get_running_loop().create_future())
        if self._transport is None:
            raise ResponseError("the connection was closed")
        for each in data:
            self._transport.write(each)
        return response

    def end(self) -> None:
        self._response = None

    async def write(self, data: bytes) -> None:
        if self._transport is None:
            raise ResponseError("the connection was closed while the request was sent")
        self._transport.write(data)
        await self._writable.wait()


class _Exchange(AbstractAsyncContextManager[ClientResponse]):
    """A request and its answer; a generator for it takes longer."""

    __slots__ = ("_client", "_response", "body", "connection", "headers", "method", "target", "uploading")

    def __init__(
        self, client: HTTPClient, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> None:
        self._client = client
        self.method, self.target, self.headers, self.body = method, target, headers, body
        self.connection: _Connection | None = None
        self.uploading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ClientResponse:
        try:
            self._response = await self._client.begin(self)
        except BaseException:
            self._client.end(self, finished=False)
            raise
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.end(self, finished=error is None and self._response.complete)


class HTTPClient:
    """A pool of connections to one origin."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Prepare; connections are opened as calls need them.

        Args:
            host: Name or address.
            port: TCP port.
            tls: For ``https``.
        """
        self._opening = Opening(host, port, tls)
        default = 443 if tls is not None else 80
        name = f"[{host}]" if ":" in host else host
        self._host_field = f"Host: {name}" if port == default else f"Host: {name}:{port}"
        self._idle: deque[_Connection] = deque()  # The one that idles longest first.
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False
        self._in_use = 0  # Connections on which an answer is waited for, or read.
        self._tasks = asyncio.TaskGroup()
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        """Open the pool."""
        self._loop = asyncio.get_running_loop()  # To ask for it each time costs a system call up to Python 3.11.
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close what is idle; what is in use is closed once its user gives it back."""
        self._closed = True
        await self._tasks.__aexit__(None, None, None)
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._idle:
            self._idle.pop().close()

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._opening.connect(_Connection)
        except TimeoutError:
            if self._in_use:  # Somebody is there, and may only stand still: its queue is full soon.
                text = f"no connection within {CONNECT_SECONDS:g} s, while {self._in_use} are in use"
                raise BusyError(text) from None
            raise ConnectError(f"no connection within {CONNECT_SECONDS:g} s") from None
        except (OSError, UnicodeError) as error:  # The latter for what cannot be the name of a host.
            raise ConnectError(str(error)) from error

    def _pooled(self) -> _Connection | None:
        limit = self._loop.time() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > limit:
                return connection
            connection.close()
        return None

    def _give_back(self, connection: _Connection) -> None:
        connection.end()
        if self._closed or not connection.usable or len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(IDLE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close what has idled for too long: a burst leaves no more open than are used."""
        loop, idle = self._loop, self._idle
        while idle and idle[0].idle_since <= loop.time() - IDLE_SECONDS:
            idle.popleft().close()
        self._sweeping = loop.call_at(idle[0].idle_since + IDLE_SECONDS, self._sweep) if idle else None

    def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[ClientResponse]:
        """Send a request and give its answer once its head is here.

        Args:
            method: The verb.
            target: Path and raw query.
            headers: Without those that concern the connection alone; ``Content-Length`` only counts for a streamed
                body, which is held to it.
            body: The bytes, or a stream, which goes in chunks unless its length is given.

        Raises:
            BadArgumentError: A header cannot be sent; nothing was.
            ConnectError: Nothing was sent.
            ResponseError: The other side broke off.
        """
        return _Exchange(self, method, target, headers, body)

    async def begin(self, exchange: _Exchange) -> ClientResponse:
        """Send the request of an exchange; it has its connection from then on."""
        method, body = exchange.method, exchange.body
        whole = body if isinstance(body, bytes) else None
        length = declared_length(exchange.headers) if whole is None else len(whole)
        data = self._head(method, exchange.target, exchange.headers, whole, length)
        pooled = self._pooled()
        connection = exchange.connection = pooled or await self._connect()
        self._in_use += 1
        response = connection.begin(data, head_only=method == "HEAD")
        if whole is None:
            assert not isinstance(body, bytes)
            exchange.uploading = self._tasks.create_task(_upload(connection, body, length), name="http-upload")
        try:
            await response.started
        except ResponseError:
            if pooled is None or connection.heard or whole is None or method not in IDEMPOTENT:
                raise
            # The server closed an idle connection as it was taken from the pool; this may be sent again.
            connection.close()
            connection = exchange.connection = await self._connect()
            response = connection.begin(data, head_only=method == "HEAD")
            await response.started
        return response

    def end(self, exchange: _Exchange, *, finished: bool) -> None:
        """End an exchange: its connection goes back if its answer was read to the end."""
        uploading, connection = exchange.uploading, exchange.connection
        if uploading is not None:
            finished = finished and uploading.done()
            uploading.cancel()
        if connection is None:
            return
        self._in_use -= 1
        if finished:
            self._give_back(connection)
        else:
            connection.end()
            connection.close()

    def _head(
        self, method: str, target: str, headers: Headers, whole: bytes | None, length: int | None
    ) -> Sequence[bytes]:
        if _UNSAFE_TARGET.search(target) or TOKEN.fullmatch(method) is None:
            raise ResponseError(f"not a request target: {method[:20]!r} {target!r}")
        lines = [f"{method} {target} HTTP/1.1", self._host_field]
        lines += [f"{name}: {value}" for name, value in sendable(headers)]
        if length is None:
            lines.append("Transfer-Encoding: chunked")
        elif length or whole is None or method not in ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE"):
            lines.append(f"Content-Length: {length}")
        head = "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"
        if whole is not None and len(whole) > APART_BYTES:
            return head, whole
        return (head + (whole or b""),)


async def _upload(connection: _Connection, body: AsyncIterator[bytes], length: int | None) -> None:
    """Send a streamed body while the answer may come already; one that is not as long as it says ends the exchange."""
    left = length
    try:
        async for part in body:
            if not part:
                continue
            if left is None:
                await connection.write(b"%x\r\n%b\r\n" % (len(part), part))
            elif len(part) <= left:
                left -= len(part)
                await connection.write(part)
            else:
                connection.fail(ResponseError(f"the request body is longer than the {length} bytes that it says"))
                return
        if left is None:
            await connection.write(b"0\r\n\r\n")
        elif left:
            connection.fail(ResponseError(f"the request body is {left} bytes shorter than it says"))
    except ResponseError:
        return  # The answer, or its absence, tells the caller.
    except Exception as error:  # noqa: BLE001 - the body is another's code: whatever it raises ends this exchange only
        connection.fail(ResponseError(f"the request body broke off: {error}"))
