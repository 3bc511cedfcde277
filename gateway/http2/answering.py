"""Requests of the HTTP API over HTTP/2: in the shape that the routes know, and their answers.

Source: RFC 9113 sections 8.1.1 (malformed messages), 8.2.3 (cookies), 8.3.1 (pseudo-header fields).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from aiohttp import HttpVersion
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from httpunk.exceptions import H2Reason, HTTPunkError
from httpunk.h2.server import SendStream, ServerRequest
from httpunk.http import HeaderMap
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.errors import APIError, bad_request, header_too_large, unsendable
from gateway.http.response import Fields, Request, Response, render
from gateway.http.server import Handler
from gateway.http2.fields import from_wire, size_of, to_wire, writable
from gateway.http2.server import Peer
from gateway.http2.watch import Watch

__all__ = ["Answering"]

VERSION = HttpVersion(2, 0)
NO_URL = URL()  # Routes read the target as it was written.
LINGER_SECONDS = 1.0


class Answering:
    """Answers requests of HTTP/2 with what answers those of HTTP/1.1."""

    def __init__(self, handler: Handler, max_body_bytes: int, max_header_bytes: int) -> None:
        """Prepare.

        Args:
            handler: The whole chain.
            max_body_bytes: Largest body that ``request.read`` takes.
            max_header_bytes: Largest header section.
        """
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._max_header_bytes = max_header_bytes

    async def answer(self, incoming: ServerRequest, peer: Peer) -> None:
        """Answer a peer's request; ends with the task's cancellation when the client gives up."""
        tunnel = incoming.method == "CONNECT"
        target = incoming.path or ("*" if tunnel else "")
        if not (incoming.method and target and (incoming.scheme or tunnel)):
            await incoming.reset(int(H2Reason.PROTOCOL_ERROR))
            return
        exchange = _Exchange(incoming, peer.name)
        try:
            if refused := self._refused(incoming, target):
                await exchange.send(render(refused), incoming.method)
                return
            request = self._request(incoming, target, exchange)
            with Watch(incoming):
                answered = await self._handler(request)
                if isinstance(answered, Response):
                    await exchange.send(answered, incoming.method)
                else:
                    await answered.prepare(request)
                    await answered.write_eof()
        except (HTTPunkError, ConnectionError):
            return  # The client is gone, or was told by a reset that the answer broke off.

    def _refused(self, incoming: ServerRequest, target: str) -> APIError | None:
        """Say what the parser of HTTP/1.1 would not have taken."""
        for what, text in (("target", target), ("authority", incoming.authority or "")):
            if not writable(text):
                return bad_request(f"the {what} {text[:200]!a} cannot stand in a request")
        named = len(incoming.method) + len(target) + len(incoming.authority or "")
        size = named + size_of(incoming.headers)
        if size > self._max_header_bytes:
            return header_too_large(f"the header section is larger than {self._max_header_bytes} bytes")
        return None

    def _request(self, incoming: ServerRequest, target: str, exchange: _Exchange) -> Request:
        headers = CIMultiDict(from_wire(incoming.headers))
        if incoming.authority is not None:
            headers["Host"] = incoming.authority
        if len(cookies := headers.getall("Cookie", [])) > 1:
            headers["Cookie"] = "; ".join(cookies)
        message = RawRequestMessage(
            incoming.method, target, VERSION, CIMultiDictProxy(headers), (), False, None, False, False, NO_URL
        )
        request = Request(
            message,
            cast("Any", EMPTY_PAYLOAD if exchange.complete else _Body(incoming)),
            cast("Any", exchange),
            cast("Any", exchange),
            cast("asyncio.Task[None]", asyncio.current_task()),
            asyncio.get_running_loop(),
            client_max_size=self._max_body_bytes,
        )
        request.outlet = exchange
        return request


@contextmanager
def _breaking() -> Iterator[None]:
    try:
        yield
    except HTTPunkError as error:
        raise ConnectionResetError(str(error) or type(error).__name__) from error


class _Body:
    """The body of a request, as far as routes read one."""

    def __init__(self, incoming: ServerRequest) -> None:
        self._parts = incoming.aiter_bytes()
        self.total_bytes = 0

    def is_eof(self) -> bool:
        return False

    def set_read_chunk_size(self, size: int) -> None:
        """Take no notice: parts are as large as the client's frames."""

    async def readany(self) -> bytes:
        """Give the next part; an empty one at the end."""
        with _breaking():
            async for part in self._parts:
                if part:
                    self.total_bytes += len(part)
                    return part
        return b""

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Iterate over the parts, which are smaller than any size that routes ask for."""
        while part := await self.readany():
            yield part


class _Exchange:
    """What a request of HTTP/2 has in place of a connection and its transport: one stream of many."""

    ssl_context = sockname = None

    def __init__(self, incoming: ServerRequest, peer: object) -> None:
        self._incoming = incoming
        self.peername = peer
        self._sending: SendStream
        # Untyped members of the library; its public interface has no such thing.
        self._connection: Any = cast("Any", incoming)._conn
        self._stream: Any = cast("Any", incoming)._stream

    @property
    def complete(self) -> bool:
        """Whether the request has no body, or none that was not read."""
        number = self._stream.id
        return self._connection.is_recv_end_stream(number) and not self._connection.stream_recv_unreleased(number)

    @property
    def transport(self) -> _Exchange:
        return self

    def abort(self) -> None:
        """Break off visibly."""
        self._connection._reset(self._stream, int(H2Reason.INTERNAL_ERROR))

    async def send(self, answer: Response, method: str) -> None:
        """Send a whole answer."""
        fields, body = answer.told(method)
        try:
            headers = HeaderMap(to_wire(fields))
        except ValueError as error:  # Of an application, with fields that HTTP/2 does not have.
            await self.send(render(unsendable(error)), method)
            return
        if self.complete:
            await self._incoming.respond(answer.status, headers=headers, body=body or None)
            return
        # The end of the answer resets the rest of the request, and some clients then lose the answer.
        sending = await self._incoming.send_response(answer.status, headers=headers)
        if body:
            await sending.send_data(body)
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                async for _ in self._incoming.aiter_bytes():
                    pass
        await sending.send_data(b"", end_stream=True)

    async def begin(self, status: int, fields: Fields, *, empty: bool) -> None:
        with _breaking():
            self._sending = await self._incoming.send_response(
                status, headers=HeaderMap(to_wire(fields)), end_stream=empty
            )

    async def write(self, data: bytes) -> None:
        with _breaking():
            await self._sending.send_data(data)

    async def end(self) -> None:
        with _breaking():
            await self._sending.send_data(b"", end_stream=True)
