"""An HTTP/2 client for one origin: one connection that all calls share, made anew when it has broken.

It has the interface of the HTTP/1.1 client beside it (`gateway/http/client.py`), and trailers.

Source: RFC 9113 sections 5.1.2 (concurrency), 6.8 (GOAWAY), 8.1 (trailers), 8.7 (what may be sent again).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

from httpunk import H2Connection
from httpunk._httpunk import H2Streams
from httpunk.asyncio import H2ClientProtocol
from httpunk.exceptions import ConnectionClosedError, GoAwayError, H2Reason, HTTPunkError, StreamResetError
from httpunk.h2.client import Connection
from httpunk.http import HeaderMap

from gateway.http.client import CONNECT_SECONDS, MAX_HEAD_BYTES, ConnectError, NotSpokenError, ResponseError
from gateway.http2.fields import (
    CONNECTION_WINDOW_BYTES,
    LIST_FACTOR,
    SECTION_FACTOR,
    STREAM_WINDOW_BYTES,
    Frames,
    from_wire,
    size_of,
    to_wire,
)
from gateway.http2.patience import HeldBack
from mesh.application import Headers

__all__ = ["HTTP2Client", "HTTP2Response", "NotRunError"]

MAX_FRAME_BYTES = 16 * 1024
CANCEL = int(H2Reason.CANCEL)
CLOSING_SECONDS = 1.0
NOT_RUN_ATTEMPTS = 3  # A server that ends its connections by age may end two in a row.

# Untyped members of the library, which its public interface goes through. That one loses the stream of a call that is
# cancelled before its answer has begun, and what an upload raises.
Driver = Any
Stream = Any


class NotRunError(ConnectError):
    """The other side said that it has not begun with the request, so that it may be sent again."""


@contextmanager
def _breaking(stream: Stream) -> Iterator[None]:
    try:
        yield
    except GoAwayError as error:
        if error.last_stream_id < stream.id:  # The other side has not begun with this one.
            raise NotRunError("the application is closing its connections") from error
        raise ResponseError(str(error)) from error
    except StreamResetError as error:
        if error.error_code == H2Reason.REFUSED_STREAM:
            raise NotRunError("the application takes no more calls at once") from error
        raise ResponseError(str(error)) from error
    except (HTTPunkError, OSError) as error:
        raise ResponseError(str(error) or type(error).__name__) from error


@contextmanager
def _opening() -> Iterator[None]:
    try:
        yield
    except (GoAwayError, ConnectionClosedError) as error:
        raise NotRunError("the application has closed its connections") from error
    except (HTTPunkError, OSError) as error:  # It broke while the call waited for its turn.
        raise NotRunError(f"the connection to the application broke: {error}") from error
    except ValueError as error:
        raise ResponseError(str(error)) from error


class _Driver(Connection):
    """The library's, in whose windows two streams that nobody reads would stop all others."""

    def __new__(cls, transport: object, **_: object) -> Self:
        state: Any = H2Streams  # Its stub does not tell how it is made.
        made: Self = state.__new__(
            cls,
            "client",
            initial_window_size=STREAM_WINDOW_BYTES,
            connection_window=CONNECTION_WINDOW_BYTES,
            max_frame_size=MAX_FRAME_BYTES,
            max_header_list_size=MAX_HEAD_BYTES * LIST_FACTOR,
            max_send_buf_size=STREAM_WINDOW_BYTES,
            data_frame_budget=None,
            enable_push=False,
        )
        return made


def _check_size(fields: HeaderMap | None) -> None:
    if size_of(fields) > MAX_HEAD_BYTES:
        raise ResponseError(f"its header fields are larger than {MAX_HEAD_BYTES} bytes")


class _Protocol(HeldBack, H2ClientProtocol):
    def __init__(self, authority: str, scheme: str) -> None:
        super().__init__(authority=authority, scheme=scheme)
        self._frames = Frames(MAX_HEAD_BYTES * SECTION_FACTOR)

    def data_received(self, data: bytes) -> None:
        if self._frames.take(data):
            super().data_received(data)  # type: ignore[no-untyped-call]
        elif self._transport is not None:
            self._transport.abort()

    def _make_client(self) -> H2Connection:
        made: H2Connection = super()._make_client()  # type: ignore[no-untyped-call]
        made._conn = _Driver(self, authority=self._authority, scheme=self._scheme, backend=self._backend)
        return made


class HTTP2Response:
    """An answer while it is read.

    Attributes:
        status: HTTP status.
        headers: As they came; names are lower-case.
    """

    __slots__ = ("_begun", "_rest", "_stream", "headers", "status")

    def __init__(self, driver: Driver, stream: Stream) -> None:
        self._stream = stream
        self._rest: AsyncIterator[bytes] = driver._aiter_body(stream)
        self._begun: list[bytes] = []
        self.status: int = stream.status
        _check_size(stream.headers)
        self.headers: Headers = from_wire(stream.headers)

    @property
    def trailers(self) -> Headers:
        """What came behind the body, once that was read."""
        return from_wire(self._stream.trailers)

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        """Read the whole body if it is small, and its length is known or all of it is here already.

        Raises:
            ResponseError: It broke off.
        """
        length = next((value for name, value in self.headers if name == "content-length"), "")
        if length.isdigit():
            return b"".join([part async for part in self.parts()]) if int(length) <= limit_bytes else None
        arrived, size = self._stream.body_recv._q, 0
        with _breaking(self._stream):
            while size <= limit_bytes and not arrived.empty():
                part = await anext(self._rest, None)
                if part is None:
                    _check_size(self._stream.trailers)
                    return b"".join(self._begun)
                self._begun.append(part)
                size += len(part)
        return None

    async def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives.

        Raises:
            ResponseError: It broke off.
        """
        for part in self._begun:
            yield part
        with _breaking(self._stream):
            async for part in self._rest:
                yield part
        _check_size(self._stream.trailers)


class _Connection:
    """A connection, and how many calls are on it."""

    __slots__ = ("_protocol", "_shared", "calls")

    def __init__(self, protocol: H2ClientProtocol, shared: H2Connection) -> None:
        self._protocol, self._shared = protocol, shared
        self.calls = 0

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls: it broke, or the other side is leaving and finishes what it has."""
        return self._shared.closed

    @property
    def driver(self) -> Driver:
        return self._shared._conn

    async def close(self) -> None:
        await _close(self._protocol)


async def _close(protocol: H2ClientProtocol) -> None:
    """Take leave, which the other side may not hear."""
    try:
        async with asyncio.timeout(CLOSING_SECONDS):
            await protocol.aclose()
    except (TimeoutError, HTTPunkError, OSError):
        transport: asyncio.Transport | None = protocol._transport
        if transport is not None:
            transport.abort()


class HTTP2Client:
    """The connection to one origin, opened by the first call."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Prepare.

        Args:
            host: Name or address.
            port: TCP port.
            tls: For ``https`` and ``grpcs``; it is told to ask for HTTP/2.
        """
        self._host, self._port, self._tls = host, port, tls
        if tls is not None:
            tls.set_alpn_protocols(["h2"])
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._current: _Connection | None = None
        self._leaving: set[_Connection] = set()
        self._connecting = asyncio.Lock()
        self._failures = 0
        self._failure: tuple[type[ConnectError], str]
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        """Be used; the first call connects."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections."""
        self._retire(None)
        for each in tuple(self._leaving):
            self._leave(each)
        await self._tasks.__aexit__(None, None, None)

    def _retire(self, successor: _Connection | None) -> None:
        """Use another connection; the former one is closed once its last call has ended."""
        former, self._current = self._current, successor
        if former is not None:
            self._leaving.add(former)
            if not former.calls:
                self._leave(former)

    def _leave(self, connection: _Connection) -> None:
        self._leaving.discard(connection)
        self._tasks.create_task(connection.close(), name="http2-close")

    async def _connected(self) -> _Connection:
        current = self._current
        if current is not None and not current.closed:
            return current
        failures = self._failures
        async with self._connecting:
            if self._current is not None and not self._current.closed:
                return self._current
            if failures != self._failures:  # Who waited for an attempt shares it; else the last would wait for all.
                kind, text = self._failure
                raise kind(text)
            self._retire(None)
            try:
                made = await self._attempt()
            except ConnectError as error:
                self._failures += 1
                self._failure = type(error), str(error)
                raise
            self._retire(made)
            return made

    async def _attempt(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect()
        except TimeoutError:
            raise NotSpokenError(f"no connection of HTTP/2 within {CONNECT_SECONDS:g} s") from None
        except HTTPunkError as error:
            raise NotSpokenError("it does not speak HTTP/2 (--app-protocol)") from error
        except (OSError, UnicodeError) as error:
            raise ConnectError(str(error)) from error

    async def _connect(self) -> _Connection:
        scheme = "http" if self._tls is None else "https"
        _, protocol = await asyncio.get_running_loop().create_connection(
            lambda: _Protocol(self._authority, scheme), self._host, self._port, ssl=self._tls
        )
        try:
            shared: H2Connection = await protocol.ready()  # type: ignore[assignment]  # of this protocol it is that
            return _Connection(protocol, shared)
        except BaseException:
            self._tasks.create_task(_close(protocol), name="http2-close")
            raise

    async def connect(self) -> None:
        """Be connected, before a body is read that cannot be read again.

        Raises:
            ConnectError: It is not.
        """
        await self._connected()

    @asynccontextmanager
    async def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AsyncIterator[HTTP2Response]:
        """Send a request and give its answer once its head is here; the body is sent meanwhile.

        Args:
            method: The verb.
            target: Path and raw query.
            headers: Those of HTTP/1.1 alone are left out.
            body: The bytes, or a stream.

        Raises:
            ConnectError: Nothing was sent, or the other side said that it ran nothing.
            ResponseError: The other side broke off.
        """
        with _opening():
            fields = HeaderMap(to_wire(headers))
        for attempt in range(NOT_RUN_ATTEMPTS):
            exchange = self._exchange(await self._connected(), method, target, fields, body)
            try:
                response = await exchange.__aenter__()
            except NotRunError:
                if attempt == NOT_RUN_ATTEMPTS - 1:
                    raise
                continue
            try:
                yield response
            except BaseException as error:
                await exchange.__aexit__(type(error), error, error.__traceback__)
                raise
            await exchange.__aexit__(None, None, None)
            return

    @asynccontextmanager
    async def _exchange(
        self,
        connection: _Connection,
        method: str,
        target: str,
        fields: HeaderMap,
        body: bytes | AsyncIterator[bytes],
    ) -> AsyncIterator[HTTP2Response]:
        driver, whole = connection.driver, isinstance(body, bytes)
        connection.calls += 1
        stream: Stream = None
        uploading: asyncio.Task[None] | None = None
        try:
            with _opening():
                stream = await driver._open_stream(
                    method, target, fields, end_stream=whole and not body, is_head=method == "HEAD"
                )
            if not isinstance(body, bytes):
                uploading = self._tasks.create_task(_upload(driver, stream, body), name="http2-upload")
            elif body:
                driver._send_body_background(stream, body)
            await stream.headers_evt.wait()
            if stream.status is None:
                try:
                    with _breaking(stream):
                        raise driver._stopped_error(stream, stream.stop)
                except NotRunError as error:
                    if whole:
                        raise
                    raise ResponseError(f"{error}, and the body was read") from error
            yield HTTP2Response(driver, stream)
        finally:
            if uploading is not None and not uploading.done():
                uploading.cancel()
                driver._reset(stream, CANCEL)  # Also when the answer is complete: nobody reads the rest.
            if stream is not None:
                driver._aclose_body(stream)
            connection.calls -= 1
            if not connection.calls and connection in self._leaving:
                self._leave(connection)


async def _upload(driver: Driver, stream: Stream, body: AsyncIterator[bytes]) -> None:
    """Send a streamed body while the answer may come already."""
    try:
        async for part in body:
            if part:
                await driver._send_data(stream, part, False)
        await driver._send_data(stream, b"", True)
    except HTTPunkError:
        return  # The answer, or its absence, tells the caller.
    except Exception:  # noqa: BLE001 - the body is another's code: whatever it raises ends this exchange only
        driver._reset(stream, CANCEL)
