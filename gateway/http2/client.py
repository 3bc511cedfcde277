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
from httpunk.asyncio import H2ClientProtocol
from httpunk.exceptions import ConnectionClosedError, GoAwayError, H2Reason, HTTPunkError
from httpunk.http import HeaderMap

from gateway.http.client import CONNECT_SECONDS, ConnectError, ResponseError
from gateway.http2.fields import from_wire, to_wire
from mesh.application import Headers

__all__ = ["HTTP2Client", "HTTP2Response"]

CANCEL = int(H2Reason.CANCEL)

# Untyped members of the library, which its public interface goes through. That one loses the stream of a call that is
# cancelled before its answer has begun, and what an upload raises.
Driver = Any
Stream = Any


@contextmanager
def _breaking() -> Iterator[None]:
    try:
        yield
    except GoAwayError as error:  # Of a stream that the other side has not begun with.
        raise ConnectError("the application is closing its connections") from error
    except (HTTPunkError, OSError) as error:
        raise ResponseError(str(error) or type(error).__name__) from error


@contextmanager
def _opening() -> Iterator[None]:
    try:
        yield
    except (GoAwayError, ConnectionClosedError) as error:
        raise ConnectError("the application has closed its connections") from error
    except ValueError as error:
        raise ResponseError(str(error)) from error


class HTTP2Response:
    """An answer while it is read.

    Attributes:
        status: HTTP status.
        headers: As they came; names are lower-case.
    """

    __slots__ = ("_driver", "_stream", "headers", "status")

    def __init__(self, driver: Driver, stream: Stream) -> None:
        self._driver, self._stream = driver, stream
        self.status: int = stream.status
        self.headers: Headers = from_wire(stream.headers)

    @property
    def trailers(self) -> Headers:
        """What came behind the body, once that was read."""
        return from_wire(self._stream.trailers)

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        """Read the whole body if its length is known and small.

        Raises:
            ResponseError: It broke off.
        """
        length = next((value for name, value in self.headers if name == "content-length"), "")
        if not length.isdigit() or int(length) > limit_bytes:
            return None
        return b"".join([part async for part in self.parts()])

    async def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives.

        Raises:
            ResponseError: It broke off.
        """
        with _breaking():
            async for part in self._driver._aiter_body(self._stream):
                yield part


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
        self._protocol: H2ClientProtocol | None = None
        self._connection: H2Connection | None = None
        self._connecting = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        """Be used; the first call connects."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connection."""
        await self._tasks.__aexit__(None, None, None)
        await self._close()

    async def _close(self) -> None:
        protocol, self._protocol, self._connection = self._protocol, None, None
        if protocol is not None:
            await protocol.aclose()

    async def _connected(self) -> H2Connection:
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        async with self._connecting:
            if self._connection is not None and not self._connection.closed:
                return self._connection
            await self._close()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    self._connection = await self._connect()
            except TimeoutError:
                await self._close()
                raise ConnectError(f"no connection within {CONNECT_SECONDS:g} s") from None
            except (HTTPunkError, OSError, UnicodeError) as error:
                await self._close()
                raise ConnectError(str(error)) from error
            return self._connection

    async def _connect(self) -> H2Connection:
        scheme = "http" if self._tls is None else "https"
        _, self._protocol = await asyncio.get_running_loop().create_connection(
            lambda: H2ClientProtocol(authority=self._authority, scheme=scheme), self._host, self._port, ssl=self._tls
        )
        return await self._protocol.ready()  # type: ignore[return-value]  # of this protocol it is that

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
        driver: Driver = (await self._connected())._conn
        with _opening():
            fields, empty = HeaderMap(to_wire(headers)), body == b""
            stream = await driver._open_stream(method, target, fields, end_stream=empty, is_head=method == "HEAD")
        uploading: asyncio.Task[None] | None = None
        try:
            if not isinstance(body, bytes):
                uploading = self._tasks.create_task(_upload(driver, stream, body), name="http2-upload")
            elif body:
                driver._send_body_background(stream, body)
            await stream.headers_evt.wait()
            if stream.status is None:
                with _breaking():
                    raise driver._stopped_error(stream, stream.stop)
            yield HTTP2Response(driver, stream)
        finally:
            if uploading is not None and not uploading.done():
                uploading.cancel()
                driver._reset(stream, CANCEL)  # Also when the answer is complete: nobody reads the rest.
            driver._aclose_body(stream)


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
