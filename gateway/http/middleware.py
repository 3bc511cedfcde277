"""Puts requests over HTTP into the shape that middleware knows (`mesh/middleware.py`), and its answers back.

In front of the API it is a stage (`gateway/http/stages.py`). What asks for the gateway's health passes none, and
neither does who asks about it with the key of its entry in ``gateway/runs.py``: ``mesh status`` has no token of an
identity provider, nor a browser to log in with.
Towards the application it is around each call of `HTTPApplication`, whatever it is made for, but for probes of health.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.http.application import Direct
from gateway.http.response import Answered, Request, Response, StreamedResponse, split_target
from gateway.runs import KEY_HEADER
from mesh.application import AppResponse, Headers
from mesh.errors import BadArgumentError, MeshError
from mesh.middleware import Answer, MiddlewareError, Onward
from mesh.middleware import Request as Passing
from mesh.telemetry import ANSWERED_BY

__all__ = ["HEALTH", "Through", "middleware_stage", "towards_application"]

logger = logging.getLogger(__name__)

ABOUT_IT = (("GET", "/v1.0/metadata"), ("PUT", "/v1.0/metadata/appPID"))
HEALTH = ("/v1.0/healthz", "/v1.0/healthz/outbound")
OF_CONNECTION = frozenset(("connection", "content-length", "transfer-encoding", "keep-alive", "upgrade", "trailer"))
READ_BYTES = 64 * 1024
ONCE = "a middleware passes a request on once at most"

Handler = Callable[[web.BaseRequest], Any]
ReadBody = Callable[[web.BaseRequest], Awaitable[bytes]]
Through = Callable[[Onward], Onward | None]


class _Once:
    """What may be used only once."""

    used = False

    def use(self) -> None:
        if self.used:
            raise RuntimeError(ONCE)
        self.used = True


# In front of the API


class _Incoming(_Once):
    """A request of a client, on its way through; it is the body of what the middleware sees."""

    def __init__(self, request: web.BaseRequest, read: ReadBody) -> None:
        self.request = request
        self.data: bytes | None = None
        self._read = read

    async def read(self) -> bytes:
        """Read it whole; raises ``APIError`` for one over the limit."""
        if self.data is None:
            self.data = await self._read(self.request)
        return self.data


@dataclass(frozen=True, slots=True)
class _OfClient(Passing):
    incoming: _Incoming | None = None


class _Read:
    """A body that was read already, as far as routes read one."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def is_eof(self) -> bool:
        return True

    def set_read_chunk_size(self, size: int) -> None:
        """Take no notice: it is here."""

    async def readany(self) -> bytes:
        data, self._data = self._data, b""
        return data

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        while self._data:
            part, self._data = self._data[:size], self._data[size:]
            yield part


def middleware_stage(
    through: Through,
    clean: Callable[[str], str],
    read: ReadBody,
    app_id: str,
    named_by: Callable[[Passing], str | None],
    key: str,
) -> Callable[[Handler], Handler] | None:
    """Make the stage; None = there is no middleware.

    Args:
        through: Puts the middleware around what takes the requests.
        clean: Makes the path that the router goes by.
        read: Reads the body of a request, up to the limit.
        app_id: The gateway's own application.
        named_by: Gives the app id that is called because a request's header names it.
        key: Who sends it is told about the gateway past the middleware.
    """
    if through(_nowhere) is None:
        return None
    logger.info("the HTTP API passes spec.httpPipeline; that of gRPC passes no middleware, as in Dapr")

    def stage(handler: Handler) -> Handler:
        async def route(passing: Passing) -> Answer:
            incoming = cast("_OfClient", passing).incoming
            assert incoming is not None
            incoming.use()
            changed = await _changed(passing, incoming, clean)
            try:
                answered: Answered = await handler(changed)
            finally:
                if isinstance(incoming.request, Request) and isinstance(changed, Request):
                    _note_answer(incoming.request, changed)
            return _told(passing, answered)

        onward = through(route)
        assert onward is not None

        async def passed(request: web.BaseRequest) -> Answered:
            path, query = split_target(request)
            if _passes_by(request, path, key):
                return cast("Answered", await handler(request))
            incoming = _Incoming(request, read)
            passing = _OfClient(
                request.method,
                _cleaned(path, clean),
                query,
                tuple(request.headers.items()),
                incoming,
                peer=_peer(request),
                caller=app_id,
                named_by=named_by,
                incoming=incoming,
            )
            return _answered(await onward(passing))

        return passed

    return stage


def _told(passing: Passing, answered: Answered) -> Answer:
    """Give an answer of the API as middleware sees it."""
    if passing.told and not answered.prepared:
        answered.fields += passing.told
    whole = answered.body if isinstance(answered, Response) else None
    return Answer(answered.status, answered.fields, whole, answered)


def _passes_by(request: web.BaseRequest, path: str, key: str) -> bool:
    """Tell whether a request passes no middleware: for health, or by the gateway's user about the gateway."""
    if request.method == "GET" and path in HEALTH:
        return True
    given = request.headers.get(KEY_HEADER, "").encode("utf-8", "surrogateescape")
    return (request.method, path) in ABOUT_IT and hmac.compare_digest(given, key.encode())


def _note_answer(request: Request, changed: Request) -> None:
    """Note what whoever answers failures must know of the answer."""
    request.begun, request.further_fields = changed.begun, changed.further_fields


async def _nowhere(passing: Passing) -> Answer:
    raise AssertionError


def _cleaned(path: str, clean: Callable[[str], str]) -> str:
    return clean(path) if "//" in path or "/." in path else path


def _peer(request: web.BaseRequest) -> str:
    """Give the client's address; there is none where it came by a socket file."""
    transport = request.transport
    name = None if transport is None else getattr(transport, "peername", None) or _extra(transport)
    return str(name[0]) if isinstance(name, (tuple, list)) and name else ""


def _extra(transport: Any) -> object:
    return transport.get_extra_info("peername") if hasattr(transport, "get_extra_info") else None


async def _changed(passing: Passing, incoming: _Incoming, clean: Callable[[str], str]) -> web.BaseRequest:
    """Give the request as the middleware wants it to go on; the same one where nothing is another."""
    request = incoming.request
    path, query = split_target(request)
    same_target = (passing.path, passing.query) == (_cleaned(path, clean), query)
    given = await _body_of(passing, incoming)
    headers = tuple(request.headers.items())
    if same_target and given is None and passing.method == request.method and passing.headers == headers:
        if passing.told and isinstance(request, Request):
            request.further_fields = [*request.further_fields, *passing.told]
        return request
    fields = CIMultiDict(passing.headers)
    if passing.body is not incoming:
        for name in ("Content-Length", "Transfer-Encoding"):
            fields.popall(name, None)
        fields["Content-Length"] = str(len(given or b""))
    target = request.raw_path if same_target else f"{passing.path}?{passing.query}" if passing.query else passing.path
    made = Request(
        request._message._replace(method=passing.method, path=target, headers=CIMultiDictProxy(fields)),
        request._payload if given is None else cast("Any", _Read(given) if given else EMPTY_PAYLOAD),
        request._protocol,
        request._payload_writer,
        request._task,
        request._loop,
        client_max_size=request._client_max_size,
    )
    if isinstance(request, Request):
        made.outlet, made.trace = request.outlet, request.trace
        made.further_fields = [*request.further_fields, *passing.told]
    return made


async def _body_of(passing: Passing, incoming: _Incoming) -> bytes | None:
    """Give the body, if it is another than the client's or was read already."""
    return incoming.data if passing.body is incoming else await passing.body.read()


def _answered(answer: Answer) -> Answered:
    source = answer.source
    if isinstance(source, StreamedResponse):
        if answer.body is not None:
            raise RuntimeError("an answer that is on its way already cannot be another one")
        return source
    same = isinstance(source, Response) and answer.body is source.body and answer.status == source.status
    if same and answer.headers is cast("Response", source).fields:
        return cast("Response", source)
    fields = [(name, value) for name, value in answer.headers if name.lower() not in OF_CONNECTION]
    return Response(answer.status, answer.body or b"", fields)


# Towards the application


class _Outgoing(_Once):
    """A call of the application, on its way through; it is the body of what the middleware sees."""

    def __init__(self, body: bytes | AsyncIterator[bytes], limit: int, stack: AsyncExitStack) -> None:
        self.body = body
        self.stack = stack
        self.failure: BaseException | None = None
        self._limit = limit

    async def read(self) -> bytes:
        """Read it whole; raises ``BadArgumentError`` for one over the limit."""
        if not isinstance(self.body, bytes):
            parts, size = [], 0
            async for part in self.body:
                size += len(part)
                if size > self._limit:
                    raise BadArgumentError(f"a middleware reads the body, which is larger than {self._limit} bytes")
                parts.append(part)
            self.body = b"".join(parts)
        return self.body


@dataclass(frozen=True, slots=True)
class _OfGateway(Passing):
    direct: Direct | None = None
    outgoing: _Outgoing | None = None


class _AppAnswer:
    """An application's answer with another head, or one that a middleware has made."""

    __slots__ = ("_body", "_source", "headers", "status")

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.headers: Headers = answer.headers
        self._body = answer.body
        self._source = cast("AppResponse", answer.source)

    @property
    def trailers(self) -> Headers:
        """What came behind the body."""
        return self._source.trailers if self._body is None else ()

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        """Read the whole body if it is here and small."""
        if self._body is None:
            return await self._source.read_up_to(limit_bytes)
        return self._body if len(self._body) <= limit_bytes else None

    async def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives."""
        if self._body is not None:
            for start in range(0, len(self._body), READ_BYTES):
                yield self._body[start : start + READ_BYTES]
            return
        async for part in self._source.parts():
            yield part


def towards_application(through: Through, app_id: str, limit: int) -> Callable[[Direct], Direct] | None:
    """Make what is around calls of the application; None = there is no middleware.

    Args:
        through: Puts the middleware around what takes the requests.
        app_id: The gateway's own application, who is taken for the caller of whatever is no invocation.
        limit: Largest body that a middleware may read.
    """
    onward = through(_call)
    if onward is None:
        return None

    def around(direct: Direct) -> Direct:
        @asynccontextmanager
        async def call(
            method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
        ) -> AsyncIterator[AppResponse]:
            async with AsyncExitStack() as stack:
                outgoing = _Outgoing(body, limit, stack)
                path, _, query = target.partition("?")
                of_call = next((value for name, value in headers if name.lower() == "dapr-caller-app-id"), app_id)
                passing = _OfGateway(
                    *(method, path, query, tuple(headers), outgoing),
                    caller=of_call,
                    direct=direct,
                    outgoing=outgoing,
                )
                ANSWERED_BY.set("")
                try:
                    answer = await onward(passing)
                except MeshError:  # Of a middleware it is no failure of the application, and no reason to try again.
                    raise
                except Exception as error:
                    if error is outgoing.failure:
                        raise
                    logger.exception("a middleware towards the application failed")
                    raise MiddlewareError("a middleware failed; the gateway's log says why") from error
                ANSWERED_BY.set(answer.by)
                if answer.body is not None or answer.source is None:
                    body = answer.body or b""
                    fields = [each for each in answer.headers if each[0].lower() not in OF_CONNECTION]
                    answer = Answer(answer.status, [*fields, ("Content-Length", str(len(body)))], body)
                yield _AppAnswer(answer)

        return call

    return around


async def _call(passing: Passing) -> Answer:
    """Call the application, which is held open until the answer has been read."""
    of_gateway = cast("_OfGateway", passing)
    outgoing, direct = of_gateway.outgoing, of_gateway.direct
    assert outgoing is not None
    assert direct is not None
    outgoing.use()
    headers: Headers = passing.headers
    body = outgoing.body
    if passing.body is not outgoing:
        body = await passing.body.read()
        headers = [each for each in headers if each[0].lower() not in ("content-length", "transfer-encoding")]
    target = f"{passing.path}?{passing.query}" if passing.query else passing.path
    try:
        response = await outgoing.stack.enter_async_context(direct(passing.method, target, headers, body))
    except Exception as error:
        outgoing.failure = error
        raise
    return Answer(response.status, (*response.headers, *passing.told), None, response)
