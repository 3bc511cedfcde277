"""Answers the calls of clients: finds the row of a method, reads its message, and tells of failures.

Whatever is no method of the API is a call to another application, if its metadata name one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message_factory import GetMessageClass
from httpunk.exceptions import HTTPunkError
from httpunk.h2.server import ServerRequest

from gateway.api_tokens import Admitted
from gateway.errors import APIError, bad_request, unexpected
from gateway.grpc.call import Call, Metadata
from gateway.grpc.messages import service, status
from gateway.grpc.tracing import begin, end, told
from gateway.grpc.wire import StatusError, deadline_of, is_type
from gateway.http2.fields import writable
from gateway.http2.server import Peer
from gateway.metrics.sources import GRPC_SERVED
from gateway.routes.route import API
from gateway.routes.rpc import DAPR, RPC, Called
from gateway.routes.unanswered import missing
from gateway.spans.names import of_proxied, of_rpc
from gateway.status import CODE_NAMES, Code
from mesh.errors import MeshError
from mesh.spans import Begun
from mesh.telemetry import CURRENT, OTHER, UNTOLD, Tracing, is_baggage

if TYPE_CHECKING:
    from gateway.metrics.endpoint import Metrics

__all__ = ["TARGETS", "Service"]

logger = logging.getLogger(__name__)
api_logger = logging.getLogger("gateway.api")

TOKEN = "dapr-api-token"
# Calls that carry work or its outcome have no span of their own: workflows and activities have one.
UNTOLD_CALLS = Tracing(0)
TARGETS = ("dapr-app-id", "dapr-callee-app-id")
NOT_ALLOWED = "requested endpoint is not available: the Configuration's spec.api"
PROTOCOL_ERROR = 1
UNSUPPORTED_MEDIA_TYPE = 415

Proxy = Callable[[API, ServerRequest, Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Method:
    row: RPC
    takes: Callable[[bytes], Any]
    gives: Callable[..., Any]
    client_streams: bool
    server_streams: bool


class Service:
    """The API for clients of gRPC."""

    def __init__(
        self,
        api: API,
        rows: Sequence[RPC],
        is_allowed: Callable[[RPC, str], bool],
        proxy: Proxy | None,
        not_grpc: bytes = b"",
        *,
        metrics: Metrics | None = None,
    ) -> None:
        """Prepare.

        Args:
            api: What rows are given.
            rows: The table.
            is_allowed: Tells whether a Configuration allows a row under one of its names.
            proxy: Passes on what is no method of the API and names an application; None = that is not allowed.
            not_grpc: Told to who speaks HTTP/2, but not gRPC.
            metrics: Is told of each call; None = nothing is.
        """
        self._record = None if metrics is None else metrics.recorder
        self._note_error = None if metrics is None else metrics.note_error
        self._not_grpc = not_grpc
        self._api, self._proxy = api, proxy
        self._admitted = Admitted(api.config.tokens) if api.config.tokens.guarded else None
        names = {DAPR, *(row.service for row in rows)}
        services = {name: service(name) if name == DAPR else service(name, "") for name in names}
        self._prefixes = tuple(f"/{each.full_name}/" for each in services.values())
        self._denied: set[str] = set()
        self._methods: dict[str, _Method] = {}
        for row in rows:
            described = services[row.service]
            for name in (row.name, *row.aliases):
                of, path = described.methods_by_name[name], f"/{described.full_name}/{name}"
                takes, gives = GetMessageClass(of.input_type), GetMessageClass(of.output_type)
                made = _Method(row, takes.FromString, gives, of.client_streaming, of.server_streaming)
                if is_allowed(row, name):
                    self._methods[path] = made
                else:
                    self._denied.add(path)

    async def handle(self, request: ServerRequest, connection: Peer) -> None:
        """Answer a call that came over a connection, or pass it on."""
        if not (request.path and request.method and request.scheme):
            await request.reset(PROTOCOL_ERROR)
            return
        kind = request.headers.get("content-type", b"").decode("utf-8", "replace")
        if request.method != "POST" or not is_type(kind):
            await request.respond(
                UNSUPPORTED_MEDIA_TYPE, headers=[("content-type", "text/plain")], body=self._not_grpc or None
            )
            return
        started = time.monotonic()
        outcome: StatusError | None = StatusError(Code.CANCELLED, "the call was cancelled")
        try:
            outcome = await self._answer(request, connection)
        except (HTTPunkError, OSError):
            outcome = StatusError(Code.CANCELLED, "the client is gone")
        finally:
            code, seconds = Code.OK if outcome is None else outcome.code, time.monotonic() - started
            if self._record is not None:
                unknown = code in (Code.UNAUTHENTICATED, Code.UNIMPLEMENTED)  # Of these there is no end of paths.
                path = OTHER if unknown and request.path not in self._methods else request.path or ""
                self._record(GRPC_SERVED, (path, CODE_NAMES[code]), 1, seconds)
            if self._api.api_log.enabled:
                _log(request, code, seconds)

    async def _answer(self, request: ServerRequest, connection: Peer) -> StatusError | None:
        """Answer; give what went wrong, which was told."""
        call = Call(request, self._api.config.max_body_bytes, connection)
        method = self._methods.get(request.path or "")
        tracing = self._api.tracing if method is None or method.row.service == DAPR else UNTOLD_CALLS
        trace, begun = begin(tracing, request, call.metadata)
        call.trace = trace
        current = CURRENT.set(trace.traceparent or "") if trace.own else None
        try:
            with begun or UNTOLD:
                failure: StatusError | None = StatusError(Code.CANCELLED, "the client has cancelled it, or is gone")
                try:
                    failure = await self._answered(request, call, begun)
                finally:
                    if begun is not None:
                        end(begun, failure)
                return failure
        finally:
            if current is not None:
                CURRENT.reset(current)

    async def _answered(self, request: ServerRequest, call: Call, begun: Begun | None) -> StatusError | None:
        try:
            if self._admitted is not None:
                self._check_token(self._admitted, call.metadata)
            if call.trace.baggage and not is_baggage(call.trace.baggage):
                raise bad_request("the metadata baggage are no W3C baggage")
            call.deadline = deadline_of(call.metadata)
            if call.deadline is not None and call.deadline <= time.time():
                raise StatusError(Code.DEADLINE_EXCEEDED, "the deadline had passed before the call began")
            with call:
                await self._run(request, call, begun)
            return None
        except StatusError as error:
            failure = error
        except (APIError, MeshError) as error:
            failure = self._failure(error if isinstance(error, APIError) else unexpected(error))
        except (HTTPunkError, OSError):
            raise
        except Exception as error:  # The outermost place where a call's failure can end.
            logger.exception("call failed: %s", request.path)
            failure = self._failure(unexpected(error))
        try:
            if call.deadline is not None and time.time() >= call.deadline:
                failure = StatusError(Code.DEADLINE_EXCEEDED, failure.message)  # Details have a status of their own.
            await call.end(failure)
            return failure
        finally:
            del failure  # Its traceback has this frame: they would keep each other, and the message.

    async def _run(self, request: ServerRequest, call: Call, begun: Begun | None) -> None:
        path = request.path or ""
        method = self._methods.get(path)
        if method is None:
            if not writable(path) or "#" in path:
                raise bad_request(f"the path {path[:200]!a} cannot stand in a request")
            if path.startswith(self._prefixes) or not any(call.metadata.get(name) for name in TARGETS):
                raise self._unknown(path)
            if self._proxy is None:
                raise StatusError(Code.UNIMPLEMENTED, NOT_ALLOWED)
            if begun is not None:
                begun.name, tags = of_proxied(
                    next(call.metadata[name] for name in TARGETS if call.metadata.get(name)), path
                )
                begun.attributes |= tags
            await self._proxy(self._api, request, call)
            return
        call.takes(method.takes)
        message = None if method.client_streams else await call.message()
        if begun is not None:
            begun.name, tags = of_rpc(path, method.row.api, message)
            begun.attributes |= tags
        if call.trace.own and method.row.api != "invoke":  # There the application says what it wants to.
            call.headers += told(call.trace)
        called = Called(
            self._api,
            message,
            call.metadata,
            call.metadata.all,
            method.gives,
            call,
            call.deadline,
            call.trailers,
            call.headers,
            call.trace,
        )
        answer = await method.row.answer(called)
        if method.server_streams:
            await call.end()
        else:
            await call.reply(answer)

    def _check_token(self, admitted: Admitted, metadata: Metadata) -> None:
        """Admit clients that know the token; keep it from what comes after.

        Raises:
            StatusError: One does not.
        """
        given = metadata.fields.get(TOKEN, b"")
        if not admitted.admits(given):
            raise StatusError(Code.UNAUTHENTICATED, "invalid api token")
        del metadata.fields[TOKEN]

    def _failure(self, error: APIError) -> StatusError:
        """Make the status of a failure."""
        if self._note_error is not None:
            self._note_error(error)
        code = Code[error.grpc]
        details = status(code, error.message, error.details) if error.details else b""
        return StatusError(code, error.message, details)

    def _unknown(self, path: str) -> StatusError:
        """Say why there is no answer to a method."""
        if path in self._denied:
            return StatusError(Code.UNIMPLEMENTED, NOT_ALLOWED)
        own = path.startswith(self._prefixes)
        return StatusError(Code.UNIMPLEMENTED, missing(path.rpartition("/")[2] if own else path))


def _log(request: ServerRequest, code: int, seconds: float) -> None:
    path = request.path or ""
    fields = {
        "method": path if writable(path) else ascii(path),
        "code": Code(code).name,
        "duration": round(seconds * 1000, 3),
        "useragent": request.headers.get("user-agent", b"").decode("utf-8", "replace"),
    }
    api_logger.info("gRPC API Called", extra={"fields": fields})
