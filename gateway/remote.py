"""What this gateway answers other nodes (``mesh/node/remote.py``): some of its routes, asked without a socket.

Which ones is a list, and whoever asks has a router of these alone: no way to write a path leads to another route. What
is a view without values needs the right to see what passes, all else that to manage (``mesh/access.py``). Never
answered so: shutdown, secrets, crypto, configuration, locks, conversations, the tap, and calls out of the mesh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any, cast

from aiohttp import HttpVersion
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.errors import APIError, answer, bad_request
from gateway.http.response import Answered, Fields, Request, Response, render
from gateway.http.stages import answering_errors, staged
from gateway.http.tracing import tracing_calls
from gateway.routes import ROUTES, build_router
from gateway.routes.invocation import header_target
from gateway.routes.route import API, Asked, Route
from mesh.access import TapRights
from mesh.errors import DeadlineExceededError, MeshError, NoResponderError
from mesh.node.remote import MAX_BODY_BYTES, Answer, Question
from mesh.operation import Caller

__all__ = ["RemoteAnswers", "as_api_error", "for_management", "for_sights"]

logger = logging.getLogger(__name__)

VERSION = HttpVersion(2, 0)  # There is no connection whose state an answer could tell of.
NO_URL = URL()
MAX_HEADER_BYTES = 64 * 1024
_SIGHTS = frozenset(
    {
        "healthz",
        "healthz/outbound",
        "mesh/actors",
        "mesh/actors/{type}/{id}",
        "mesh/components",
        "mesh/jobs",
        "mesh/jobs/{name}",
        "mesh/node",
        "mesh/reminders/{type}",
        "mesh/topics",
        "mesh/topics/{component}/{topic}",
        "mesh/workflows",
        "mesh/workflows/{id}",
        "metadata",
    }
)
_MANAGED = frozenset({"actors", "bindings", "invoke", "jobs", "metadata", "publish", "state", "workflows"})
_MANAGED_BELOW_MESH = frozenset(
    {"actors", "components", "invocations", "jobs", "logs", "reminders", "resources", "state", "topics", "workflows"}
)
# Of one connection, or of one gateway: no application is told them, and they would say whom else to call.
_LEFT_OUT = frozenset(
    {
        "connection",
        "content-length",
        "cookie",
        "dapr-api-token",
        "dapr-app-id",
        "dashboard-token",
        "expect",
        "host",
        "keep-alive",
        "mesh-key",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def for_sights(route: Route) -> bool:
    """Tell whether a route is a view that needs no more than the right to see what passes."""
    return route.path in _SIGHTS and route.methods == {"GET"}


def for_management(route: Route) -> bool:
    """Tell whether a route is answered to who may manage this node."""
    first, _, rest = route.path.partition("/")
    if first == "mesh":
        return for_sights(route) or rest.partition("/")[0] in _MANAGED_BELOW_MESH
    return for_sights(route) or first in _MANAGED


async def _unknown(asked: Asked) -> Answered:
    raise APIError(404, "ERR_NODE_ROUTE", f"nodes are not asked for {asked.segments[0][:200]}, see docs/node-views.md")


class RemoteAnswers:
    """Answers the requests of other nodes."""

    def __init__(
        self, api: API, rights: Callable[[Caller], TapRights], note: Callable[[APIError], None] | None = None
    ) -> None:
        """Prepare.

        Args:
            api: What the routes of this gateway are given.
            rights: Tells what a caller may.
            note: Is told of each failure; None = nobody.
        """
        self._rights, self._max_body_bytes = rights, api.config.max_body_bytes
        around = [tracing_calls(api.tracing), answering_errors(note)]
        views = [route for route in ROUTES if for_sights(route)]
        managed = [route for route in ROUTES if for_management(route)]
        api = replace(api, remote=True)
        self._seen = build_router(replace(api, values=False), views, _unknown)
        self._managed = build_router(api, managed, _unknown)
        self._answer_seen, self._answer_managed = staged(self._seen, around), staged(self._managed, around)

    async def answer(self, caller: Caller, asked: Question) -> Answer:
        """Answer what another node asks; a refusal is an answer, too."""
        told = await self._told(caller, asked)
        if asked.verb != "GET" or told.status == HTTPStatus.FORBIDDEN:
            path = asked.path[:200].encode("utf-8", "backslashreplace").decode()
            logger.info("%s asks this node for %s %r: %d", caller.app_id, asked.verb[:20], path, told.status)
        return told

    async def _told(self, caller: Caller, asked: Question) -> Answer:
        if refused := _malformed(asked):
            return _as_answer(render(refused))
        rights = self._rights(caller)
        handler = self._answer_managed
        if not rights.manage:
            seen = rights.sights and self._seen.route(asked.verb, asked.path) is not None
            if not seen and self._managed.route(asked.verb, asked.path) is not None:
                who = f"application {caller.app_id!r}" + ("" if caller.proven else " (not proven)")
                text = f"{who} may not ask this node for {asked.verb} {asked.path[:200]}: {rights.why}"
                return _as_answer(render(APIError(403, "ERR_PERMISSION_DENIED", text)))
            handler = self._answer_seen
        sink = _Sink()
        request = self._request(asked, sink)
        try:
            answered = await handler(request)
            if isinstance(answered, Response):
                return _as_answer(answered, asked.verb)
            await answered.prepare(request)
            await answered.write_eof()
        except ConnectionError:  # A part was gathered already when it failed, or it became too much.
            sink.abort()
        return sink.answer

    def _request(self, asked: Question, sink: _Sink) -> Request:
        headers = CIMultiDict((name, value) for name, value in asked.headers if name.lower() not in _LEFT_OUT)
        if header_target(headers.get) is not None:
            headers.popall("Authorization", None)
        target = f"{asked.path}?{asked.query}" if asked.query else asked.path
        if asked.body:
            headers["Content-Length"] = str(len(asked.body))
        message = RawRequestMessage(
            asked.verb, target, VERSION, CIMultiDictProxy(headers), (), False, None, False, False, NO_URL
        )
        request = Request(
            message,
            cast("Any", _Body(asked.body) if asked.body else EMPTY_PAYLOAD),
            cast("Any", sink),
            cast("Any", sink),
            cast("asyncio.Task[None]", asyncio.current_task()),
            asyncio.get_running_loop(),
            client_max_size=self._max_body_bytes,
        )
        request.outlet = sink
        return request


def _malformed(asked: Question) -> APIError | None:
    """Say what the parser of HTTP/1.1 would not have taken."""
    if not (asked.verb.isascii() and asked.verb.isupper() and asked.verb.isalpha()) or asked.verb == "CONNECT":
        return bad_request(f"the verb {asked.verb[:20]!a} is none")
    if asked.path[:1] != "/":
        return bad_request("a path begins with a slash")
    for text in (asked.path, asked.query):
        if any(each <= " " or each == "\x7f" for each in text) or "#" in text:
            return bad_request(f"{text[:200]!a} cannot stand in a request line")
    if "?" in asked.path:
        return bad_request("the query is apart from the path")
    for name, value in asked.headers:
        if not name or any(each <= " " or each in ':\x7f"' for each in name) or any(each in "\r\n\0" for each in value):
            return bad_request(f"the header field {name[:100]!a} cannot stand in a request")
    if sum(len(name) + len(value) for name, value in asked.headers) + len(asked.path) > MAX_HEADER_BYTES:
        return APIError(431, "ERR_BAD_REQUEST", f"the header section is larger than {MAX_HEADER_BYTES} bytes")
    return None


def as_api_error(error: MeshError) -> APIError:
    """Say what clients are told when another node could not be asked."""
    if isinstance(error, DeadlineExceededError):
        return APIError(504, "ERR_NODE_SILENT", str(error))
    if isinstance(error, NoResponderError):
        return APIError(404, "ERR_NODE_AWAY", str(error))
    return answer(error)


def _too_large() -> APIError:
    return APIError(413, "ERR_NODE_ANSWER", f"the answer is larger than {MAX_BODY_BYTES} bytes; ask for less")


def _text(value: str) -> str:
    """Write what may be no UTF-8 as text that can be sent."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _as_answer(response: Response, verb: str = "GET") -> Answer:
    if len(response.body) > MAX_BODY_BYTES:
        return _as_answer(render(_too_large()))
    fields, body = response.told(verb)
    return Answer(response.status, _written(fields), body)


def _written(fields: Fields) -> tuple[tuple[str, str], ...]:
    return tuple((name, _text(value)) for name, value in fields)


class _Sink:
    """What a request of another node has in place of a connection; its streamed answer is gathered here."""

    ssl_context = sockname = None
    peername = "another node"

    def __init__(self) -> None:
        self._status, self._fields, self._body, self._broken = 0, list[tuple[str, str]](), bytearray(), False
        self._full = False

    @property
    def transport(self) -> _Sink:
        return self

    def get_extra_info(self, name: str) -> object:
        return self.peername if name == "peername" else None

    def abort(self) -> None:
        """Break off visibly."""
        self._broken = True

    @property
    def answer(self) -> Answer:
        if self._full:
            return _as_answer(render(_too_large()))
        if self._broken:
            return _as_answer(render(APIError(500, "ERR_INTERNAL", "the answer broke off")))
        return Answer(self._status, _written(self._fields), bytes(self._body))

    async def begin(self, status: int, fields: Fields, *, empty: bool) -> None:
        """Begin; ``empty`` ends the answer with it."""
        self._status, self._fields = status, fields

    async def write(self, data: bytes) -> None:
        if len(self._body) + len(data) > MAX_BODY_BYTES:
            self._full = True
            raise ConnectionResetError("another node takes no more")
        self._body += data

    async def end(self) -> None:
        """Do nothing: who asked gets all of it together."""


class _Body:
    """The body of a request that has come as a whole."""

    def __init__(self, body: bytes) -> None:
        self._left, self.total_bytes = body, len(body)

    def is_eof(self) -> bool:
        return False

    def set_read_chunk_size(self, size: int) -> None:
        """Take no notice: there is one part."""

    async def readany(self) -> bytes:
        """Give it; an empty one at the end."""
        left, self._left = self._left, b""
        return left

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Iterate over the parts."""
        while self._left:
            part, self._left = self._left[:size], self._left[size:]
            yield part
