"""An HTTP/2 client for one origin: a connection that all calls share, made anew when it has broken.

The other side says how many calls a connection takes at once. While all are full there is a further one, up to a limit,
so that streams that stay open hold up nothing else; one that is not needed any more is closed after a while.

It has the interface of the HTTP/1.1 client beside it (`gateway/http/client.py`), and trailers.

Source: RFC 9113 sections 5.1.2 (concurrency), 6.8 (GOAWAY), 8.1 (trailers), 8.7 (what may be sent again).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Self

from httpunk import H2Connection
from httpunk.exceptions import ConnectionClosedError, GoAwayError, H2Reason, HTTPunkError, StreamResetError
from httpunk.http import HeaderMap

from gateway.http.client import CONNECT_SECONDS, MAX_HEAD_BYTES, BusyError, ConnectError, NotSpokenError, ResponseError
from gateway.http2.connection import Connection, Protocol, close
from gateway.http2.fields import from_wire, size_of, to_wire
from mesh.application import Headers
from mesh.fields import declared_length, sendable

__all__ = ["HTTP2Client", "HTTP2Response", "NotRunError"]

CANCEL = int(H2Reason.CANCEL)
NOT_RUN_ATTEMPTS = 3  # A server that ends its connections by age may end two in a row.
REFUSED_SECONDS = 0.1  # Before a call that was refused is sent again.
MAX_CONNECTIONS = 8
IDLE_SECONDS = 30.0
ROOM_SECONDS = 5.0  # How long a call waits while all connections are full.

# Untyped members of the library, which its public interface goes through. That one loses the stream of a call that is
# cancelled before its answer has begun, and what an upload raises.
Driver = Any
Stream = Any


class NotRunError(ConnectError):
    """The other side said that it has not begun with the request, so that it may be sent again."""


class RefusedError(NotRunError, BusyError):
    """It did so by refusing this one, while it goes on with others."""


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
            raise RefusedError("it takes no more calls at once") from error
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


def _check_size(fields: HeaderMap | None) -> None:
    if size_of(fields) > MAX_HEAD_BYTES:
        raise ResponseError(f"its header fields are larger than {MAX_HEAD_BYTES} bytes")


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


class HTTP2Client:
    """The connections to one origin; the first call opens one."""

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
        self._open: list[Connection] = []
        self._leaving: set[Connection] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._adding: asyncio.Task[None] | None = None
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
        if self._adding is not None:
            self._adding.cancel()
        for each in tuple(self._open):
            self._retire(each)
        for each in tuple(self._leaving):
            self._leave(each)
        await self._tasks.__aexit__(None, None, None)

    def _retire(self, connection: Connection) -> None:
        """Use it no more; it is closed once its last call has ended."""
        self._open.remove(connection)
        self._leaving.add(connection)
        if connection.closing is not None:
            connection.closing.cancel()
        if not connection.calls:
            self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        self._leaving.discard(connection)
        self._tasks.create_task(connection.close(), name="http2-close")

    def _retire_closed(self) -> None:
        for each in [each for each in self._open if each.closed]:
            self._retire(each)

    def _unused(self, connection: Connection) -> None:
        """Close one that is not the first: if it is to leave at once, else when it has had no call for a while."""
        if connection in self._leaving:
            self._leave(connection)
            return
        self._retire_closed()
        if connection in self._open[1:]:
            loop = asyncio.get_running_loop()
            connection.unused = loop.time()
            if connection.closing is None:
                connection.closing = loop.call_later(IDLE_SECONDS, self._rested, connection)

    def _rested(self, connection: Connection) -> None:
        connection.closing = None
        if connection.calls or connection not in self._open[1:]:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= connection.unused + IDLE_SECONDS:
            self._retire(connection)
        else:
            connection.closing = loop.call_at(connection.unused + IDLE_SECONDS, self._rested, connection)

    def _free(self) -> Connection | None:
        """Give one that takes a call: the first, so that those behind it come to rest."""
        for each in self._open:
            if each.free:
                return each
        return None

    async def _connected(self) -> Connection:
        return self._free() or await self._room()

    async def _room(self) -> Connection:
        """Wait until a connection takes a call, or there is a further one."""
        deadline = asyncio.get_running_loop().time() + ROOM_SECONDS
        waited = False
        try:
            while True:
                self._retire_closed()
                if (found := self._free()) is not None:
                    return found
                if not self._open:
                    await self._first()
                    continue
                if len(self._open) < MAX_CONNECTIONS and self._adding is None:
                    self._adding = self._tasks.create_task(self._add(), name="http2-connect")
                async with asyncio.timeout_at(deadline):
                    await self._turn(again=waited)
                waited = True
        except TimeoutError:
            text = f"it takes no more calls at once: {len(self._open)} connections are full, for {ROOM_SECONDS:g} s"
            raise BusyError(text) from None
        finally:
            if waited:  # There may be room for more than one, or the one is left to another.
                self._freed()

    async def _turn(self, *, again: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._freed()
            else:
                with suppress(ValueError):  # Who gave a turn meanwhile has passed over this one.
                    self._waiting.remove(turn)
            raise

    def _freed(self) -> None:
        """Let the call that has waited longest look for room."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def _add(self) -> None:
        """Have a further connection; while there is none those of now go on."""
        try:
            self._open.append(await self._attempt())
        except ConnectError:
            return
        finally:
            self._adding = None
        self._freed()

    async def _first(self) -> None:
        failures = self._failures
        async with self._connecting:
            if self._open:
                return
            if failures != self._failures:  # Who waited for an attempt shares it; else the last would wait for all.
                kind, text = self._failure
                raise kind(text)
            try:
                self._open.append(await self._attempt())
            except ConnectError as error:
                self._failures += 1
                self._failure = type(error), str(error)
                raise

    async def _attempt(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect()
        except TimeoutError:
            raise NotSpokenError(f"no connection of HTTP/2 within {CONNECT_SECONDS:g} s") from None
        except HTTPunkError as error:
            raise NotSpokenError("it does not speak HTTP/2 (--app-protocol)") from error
        except (OSError, UnicodeError) as error:
            raise ConnectError(str(error)) from error

    async def _connect(self) -> Connection:
        protocol = Protocol(self._authority, "http" if self._tls is None else "https", self._freed)
        try:  # Who is cancelled here may have a connection already that the library has begun to speak on.
            await asyncio.get_running_loop().create_connection(lambda: protocol, self._host, self._port, ssl=self._tls)
            shared: H2Connection = await protocol.ready()  # type: ignore[assignment]  # of this protocol it is that
            return Connection(protocol, shared)
        except BaseException:
            self._tasks.create_task(close(protocol), name="http2-close")
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
            headers: Those of HTTP/1.1 alone are left out; a streamed body is held to ``Content-Length``.
            body: The bytes, or a stream.

        Raises:
            BadArgumentError: A header cannot be sent; nothing was.
            ConnectError: Nothing was sent, or the other side said that it ran nothing.
            BusyError: All connections are full, or it refused the call.
            ResponseError: The other side broke off.
        """
        length = declared_length(headers)
        with _opening():
            fields = HeaderMap(_sent(headers, length, body))
        for attempt in range(NOT_RUN_ATTEMPTS):
            exchange = self._exchange(await self._connected(), method, target, fields, body, length)
            try:
                response = await exchange.__aenter__()
            except NotRunError as error:
                if attempt == NOT_RUN_ATTEMPTS - 1:
                    raise
                if isinstance(error, RefusedError):
                    await asyncio.sleep(REFUSED_SECONDS)
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
        connection: Connection,
        method: str,
        target: str,
        fields: HeaderMap,
        body: bytes | AsyncIterator[bytes],
        length: int | None,
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
                uploading = self._tasks.create_task(_upload(driver, stream, body, length), name="http2-upload")
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
            if not connection.calls and (not self._open or connection is not self._open[0]):
                self._unused(connection)


def _sent(headers: Headers, length: int | None, body: bytes | AsyncIterator[bytes]) -> list[tuple[str, bytes]]:
    """Give the fields of a request; of those of a connection HTTP/2 knows that trailers are wanted, and a length."""
    fields = to_wire(sendable(headers))
    if any(name.lower() == "te" and value == "trailers" for name, value in headers):
        fields.append(("te", b"trailers"))
    if length is not None:
        fields.append(("content-length", b"%d" % (len(body) if isinstance(body, bytes) else length)))
    return fields


async def _upload(driver: Driver, stream: Stream, body: AsyncIterator[bytes], length: int | None) -> None:
    """Send a streamed body while the answer may come already; one that is not as long as it says ends the exchange."""
    left = length
    try:
        async for part in body:
            if not part:
                continue
            if left is not None and (left := left - len(part)) < 0:
                break
            await driver._send_data(stream, part, False)
        if left:
            driver._reset(stream, CANCEL)
        else:
            await driver._send_data(stream, b"", True)
    except HTTPunkError:
        return  # The answer, or its absence, tells the caller.
    except Exception:  # noqa: BLE001 - the body is another's code: whatever it raises ends this exchange only
        driver._reset(stream, CANCEL)
