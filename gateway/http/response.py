"""Responses that say what they were given, and nothing more.

aiohttp's own add a content type, a date and a server name to every answer, and cost 17 µs; these
cost 4. An invocation answers with exactly the application's headers, and a gateway does not tell
strangers what it is made of. They are what aiohttp's protocol asks of a response: ``prepare``,
``write_eof`` and ``keep_alive``. ADR 6.

Source: RFC 9112 sections 6.1, 6.3, 7.1 and 9.3.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

import orjson
from aiohttp import web

from gateway.errors import APIError, unsendable
from mesh.application import Headers
from mesh.blocks.invocation import forwardable
from mesh.errors import BadArgumentError
from mesh.fields import declared_length, sendable
from mesh.operation import Trace

__all__ = [
    "Answered",
    "Fields",
    "Outlet",
    "Request",
    "Response",
    "StreamedResponse",
    "completed",
    "json_response",
    "no_content",
    "passed_on",
    "path_of",
    "render",
    "split_target",
    "stated_length",
]

LISTS = frozenset({"set-cookie", "vary"})  # A field is one member of them, or more.
_NOTHING: deque[bytes] = deque()  # An empty body has no buffer.
WITHOUT_BODY = frozenset({204, 304})
_REASONS = {status.value: status.phrase for status in HTTPStatus}
Fields = list[tuple[str, str]]


def _head(status: int, fields: Fields, connection: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}"]
    lines += [f"{name}: {value}" for name, value in fields]
    if connection:
        lines.append(connection)
    text = "\r\n".join(lines) + "\r\n\r\n"
    if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1:
        raise unsendable("a header field holds a line break")
    return text.encode("utf-8", "surrogateescape")


def _connection(request: web.BaseRequest, *, keep_alive: bool) -> str:
    if keep_alive:
        return "Connection: keep-alive" if request.version < (1, 1) else ""
    return "Connection: close"


def completed(fields: Fields, further: Sequence[tuple[str, str]]) -> Fields:
    """Add what is not said yet: of most fields there may be one, and whoever answers knows better."""
    if not fields:
        return [*further]
    given = {name.lower() for name, _ in fields}
    lacking = [
        each
        for each in further
        if (name := each[0].lower()) not in given
        or (name in LISTS and not any(was.lower() == name and value == each[1] for was, value in fields))
    ]
    return [*fields, *lacking]


def passed_on(headers: Headers) -> Fields:
    """Give the fields of another's answer that go on to the client: none of those that concern one connection.

    Raises:
        APIError: One cannot stand in an answer. What other nodes send may have any.
    """
    try:
        return [*sendable(forwardable(headers))]
    except BadArgumentError as error:
        raise unsendable(error) from None


def stated_length(headers: Headers) -> int | None:
    """Give the bytes that another's answer says its body has.

    Raises:
        APIError: That is no length, or there are two.
    """
    try:
        return declared_length(headers)
    except BadArgumentError as error:
        raise unsendable(error) from None


class Outlet(Protocol):
    """Where an answer that comes in parts goes, if that is not a connection of HTTP/1.1."""

    async def begin(self, status: int, fields: Fields, *, empty: bool) -> None:
        """Send the head; ``empty`` ends the answer with it."""

    async def write(self, data: bytes) -> None:
        """Send a part; waits for a client that reads slowly."""

    async def end(self) -> None:
        """Say that the body is complete."""


class Request(web.BaseRequest):
    """A request that knows about its answer.

    Attributes:
        begun: Whether the head of a streamed answer is out.
        further_fields: Header fields for a streamed answer, and for one that tells of a failure.
        outlet: Where a streamed answer goes; None = the connection.
        trace: The span of the call, what goes with it, and whether it is this call's own; None = it has none.
    """

    ATTRS = web.BaseRequest.ATTRS | {"begun", "further_fields", "outlet", "trace"}
    begun = False
    outlet: Outlet | None = None
    further_fields: Sequence[tuple[str, str]] = ()
    trace: Trace | None = None

    @property
    def keep_alive(self) -> bool:
        """Whether the connection takes another request after this one."""
        return not getattr(self.protocol, "ending", False) and super().keep_alive

    async def read(self) -> bytes:
        """Read the body; one that has come as a whole is taken as it lies there, which is four times as fast."""
        content, most = self.content, self._client_max_size or math.inf
        # Where others wait behind it, or its connection for that, it is read as aiohttp does: that lets them go on.
        if self._read_bytes is None and getattr(self.protocol, "alone", False) and content.is_eof():
            buffer: deque[bytes] = getattr(content, "_buffer", _NOTHING)
            if len(buffer) == 1 and content._size == len(buffer[0]) <= most and content.exception() is None:
                self._read_bytes = buffer.popleft()
                content._size = 0
        return await super().read()


def split_target(request: web.BaseRequest) -> tuple[str, str]:
    """Give path and query as they were written, also of the absolute form, which proxies use."""
    path, _, query = request.raw_path.partition("?")
    return (path if path[:1] == "/" else path_of(path)), query


def path_of(target: str) -> str:
    """Give the path of a request's target; see `split_target`."""
    path = target.partition("?")[0]
    return path if path[:1] == "/" else "/" + path.partition("://")[2].partition("/")[2]


class Response:
    """A whole answer."""

    __slots__ = ("body", "fields", "keep_alive", "prepared", "status")

    def __init__(self, status: int, body: bytes = b"", fields: Fields | None = None) -> None:
        """Make an answer.

        Args:
            status: HTTP status.
            body: The body.
            fields: Header fields; the length is added, unless one is there already (for HEAD).
        """
        self.status = status
        self.body = body
        self.fields: Fields = fields if fields is not None else []
        self.keep_alive: bool | None = None
        self.prepared = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send it."""
        if self.prepared:
            return
        self.prepared = True
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away")
        keep_alive = self.keep_alive = request.keep_alive
        fields, body = self.told(request.method)
        connection = _connection(request, keep_alive=keep_alive)
        try:
            head = _head(self.status, fields, connection)
        except APIError as error:
            failure = render(error)
            self.status = failure.status
            fields, body = failure.told(request.method)
            head = _head(failure.status, fields, connection)
        transport.write(head + body)
        if len(body) > 65536:
            await request.writer.drain()

    def told(self, method: str) -> tuple[Fields, bytes]:
        """Give header fields and body for a verb."""
        fields, body = self.fields, self.body
        if self.status < 200 or self.status in WITHOUT_BODY:
            return fields, b""
        if method != "HEAD":
            return [*fields, ("Content-Length", str(len(body)))], body
        if not any(name.lower() == "content-length" for name, _ in fields):
            fields = [*fields, ("Content-Length", str(len(body)))]
        return fields, b""

    async def write_eof(self) -> None:
        """Do nothing more: it was sent whole."""


class StreamedResponse:
    """An answer whose body comes in parts: ``prepare``, ``write``…, ``write_eof``."""

    __slots__ = (
        "_chunked",
        "_empty",
        "_left",
        "_length",
        "_outlet",
        "_request",
        "fields",
        "keep_alive",
        "prepared",
        "sent",
        "status",
    )

    def __init__(self, status: int, fields: Fields, length: int | None) -> None:
        """Make an answer.

        Args:
            status: HTTP status.
            fields: Header fields without the length.
            length: ``Content-Length`` in bytes, which the body is held to; None sends chunks, or closes at the end for
                HTTP/1.0.
        """
        self.status = status
        self.fields = [*fields, ("Content-Length", str(length))] if length is not None else fields
        self.keep_alive: bool | None = None
        self.prepared = False
        self.sent = 0
        self._length = self._left = length
        self._chunked = length is None
        self._empty = False
        self._outlet: Outlet | None = None
        self._request: web.BaseRequest | None = None

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send the head."""
        if self.prepared:
            return
        self.prepared = True
        self._request = request
        keep_alive = request.keep_alive
        self._empty = request.method == "HEAD" or self.status < 200 or self.status in WITHOUT_BODY
        fields = self.fields
        if isinstance(request, Request):
            fields = completed(fields, request.further_fields)
            self._outlet = request.outlet
        if self._outlet is not None:
            self._chunked = False
            await self._outlet.begin(self.status, fields, empty=self._empty)
            self._begun(request)
            return
        if self._empty:
            self._chunked = False
        elif self._chunked and request.version < (1, 1):
            self._chunked = keep_alive = False
        elif self._chunked:
            fields = [*fields, ("Transfer-Encoding", "chunked")]
        self.keep_alive = keep_alive
        self._send(_head(self.status, fields, _connection(request, keep_alive=keep_alive)))
        self._begun(request)

    @staticmethod
    def _begun(request: web.BaseRequest) -> None:
        """Note that a part of it is out: what fails before can be told."""
        if isinstance(request, Request):
            request.begun = True

    def _send(self, data: bytes) -> None:
        transport = None if self._request is None else self._request.transport
        if transport is None:
            raise ConnectionResetError("the client went away")
        transport.write(data)

    async def write(self, data: bytes) -> None:
        """Send a part; waits for a client that reads slowly.

        Raises:
            APIError: The body is longer than it says; what is too much would be read as the next answer.
        """
        if self._empty or not data:
            return
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise unsendable(f"its body is longer than the {self._length} bytes that it says")
        self.sent += len(data)
        if self._outlet is not None:
            await self._outlet.write(data)
            return
        assert self._request is not None
        self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        await self._request.writer.drain()

    async def write_eof(self) -> None:
        """Say that the body is complete.

        Raises:
            APIError: It is shorter than it says; the client would wait for the rest, or take the next answer for it.
        """
        if self._left and not self._empty:
            raise unsendable(f"its body is {self._left} bytes shorter than it says")
        if self._outlet is not None:
            outlet, self._outlet = self._outlet, None
            if not self._empty:
                await outlet.end()
        elif self._chunked:
            self._chunked = False
            self._send(b"0\r\n\r\n")

    def break_off(self) -> None:
        """End it visibly before it is complete: once its head is out, there is no other honest answer."""
        self._left, self._outlet, self._chunked = None, None, False
        if self._request is not None and self._request.transport is not None:
            self._request.transport.abort()


Answered = Response | StreamedResponse


def json_response(value: object, status: int = 200, fields: Fields | None = None) -> Response:
    """Answer with compact JSON."""
    return Response(status, orjson.dumps(value), [("Content-Type", "application/json"), *(fields or [])])


def no_content() -> Response:
    """Answer that there is nothing to return."""
    return Response(204)


def render(error: APIError) -> Response:
    """Make the answer that tells of a failure."""
    body: dict[str, object] = {"errorCode": error.code, "message": error.message}
    if error.details is not None:
        body["details"] = error.details
    return json_response(body, error.status)
