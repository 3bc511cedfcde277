"""The stages that every HTTP request passes on its way to the router, outermost first: the one list of them.

==========  ==========================================  ==============================
stage       what it does                                there is one
==========  ==========================================  ==============================
metrics     measures each request                       when there are metrics
trace       makes the call's span                       always
CORS        answers and marks calls of web pages        when origins are allowed
API token   refuses who does not know it                when there is a token
API log     a line for each call                        when it is asked for
errors      checks baggage; answers what was raised     always
middleware  what `spec.httpPipeline` names              when it names any
==========  ==========================================  ==============================

It is put together once at start: what is not configured costs nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Container, Sequence
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.api_tokens import Admitted
from gateway.config import GatewayConfig, Tokens
from gateway.errors import APIError, bad_request, unexpected
from gateway.http.middleware import HEALTH
from gateway.http.response import Answered, Request, Response, completed, path_of, render
from gateway.http.tracing import check_baggage, tracing_calls
from gateway.metrics.recording import MAX_KEYS, MAX_LABEL, Recorder, Series
from gateway.metrics.sources import HTTP_RECEIVED, HTTP_SENT, HTTP_SERVED
from mesh.errors import MeshError
from mesh.resources.configuration import APILogging
from mesh.telemetry import NOT_TRACED, OTHER, Tracing

if TYPE_CHECKING:
    from gateway.metrics.endpoint import Metrics

__all__ = ["Handler", "Stage", "answering_errors", "endpoint", "staged", "stages"]

logger = logging.getLogger(__name__)
api_logger = logging.getLogger("gateway.api")

CLIENT_GONE = 499
NO_LOG = APILogging()
CORS_METHODS = "HEAD, GET, POST, PUT, PATCH, DELETE"

Handler = Callable[[web.BaseRequest], Awaitable[Answered]]
Stage = Callable[[Handler], Handler]


def stages(
    config: GatewayConfig,
    *,
    metrics: Metrics | None = None,
    tracing: Tracing = NOT_TRACED,
    api_log: APILogging = NO_LOG,
    names: Container[str] = (),
    middleware: Stage | None = None,
) -> list[Stage]:
    """Give those that a gateway is configured to have, outermost first.

    Args:
        config: The gateway's.
        metrics: What measures; None = nothing.
        tracing: Makes spans.
        api_log: Whether calls are logged, and what is told of them.
        names: What the API's paths begin with, behind the version.
        middleware: The way through its middleware (`gateway/http/middleware.py`); None = there is none.
    """
    return [
        *([_measuring(metrics.recorder, guarded=config.tokens.guarded)] if metrics is not None else []),
        tracing_calls(tracing),
        *([_cors(config.allowed_origins)] if config.allowed_origins else []),
        *([_checking_token(config.tokens)] if config.tokens.guarded else []),
        *([_logging(api_log, names)] if api_log.enabled else []),
        answering_errors(None if metrics is None else metrics.note_error),
        *([middleware] if middleware is not None else []),
    ]


def staged(handler: Handler, around: Sequence[Stage]) -> Handler:
    """Put stages, outermost first, around a handler."""
    for stage in reversed(around):
        handler = stage(handler)
    return handler


def answering_errors(note: Callable[[APIError], None] | None) -> Stage:
    """Make the stage that checks baggage, and answers what was raised; ``note`` is told of each failure."""
    return partial(_answering, note)


def _measuring(recorder: Recorder, *, guarded: bool) -> Stage:
    clock = time.perf_counter
    received, sent = recorder.series(HTTP_RECEIVED).measure, recorder.series(HTTP_SENT).measure
    known: dict[tuple[str, str, int], Series] = {}

    def find(verb: str, target: str, status: int) -> Series:
        # Whoever does not know the token is not to fill the series of those who do.
        path = OTHER if guarded and status == 401 else path_of(target)
        series = recorder.series(HTTP_SERVED, (verb, path, str(status)))
        # Else clients choose what is kept, without a bound to it: over HTTP/2 verbs as well.
        if path == target and len(verb) + len(path) <= MAX_LABEL:
            if len(known) >= MAX_KEYS:
                known.clear()
            known[verb, target, status] = series
        return series

    def stage(handler: Handler) -> Handler:
        async def measure(request: web.BaseRequest) -> Answered:
            started, status, size = clock(), CLIENT_GONE, 0
            try:
                response = await handler(request)
                status = response.status
                size = len(response.body) if isinstance(response, Response) else response.sent
            finally:
                key = request.method, request.raw_path, status
                series = known[key] if key in known else find(*key)
                series.measure((clock() - started) * 1000)
                received(request.content.total_bytes)
                sent(size)
            return response

        return measure

    return stage


def _answering(note: Callable[[APIError], None] | None, handler: Handler) -> Handler:
    async def answer(request: web.BaseRequest) -> Answered:
        # No failure is kept in a variable: its traceback has this frame, so that the request and its body would be
        # there until the collector looks.
        try:
            check_baggage(request)
            return await handler(request)
        except APIError as error:
            return _failed(request, error, note)
        except MeshError as error:
            return _failed(request, unexpected(error), note)
        except (ConnectionError, web.RequestPayloadError) as error:
            return _failed(request, bad_request(f"the body broke off: {error}"), note)
        except Exception as error:  # The outermost place where a request's failure can end.
            logger.exception("request failed: %s %s", request.method, request.raw_path.partition("?")[0])
            return _failed(request, unexpected(error), note)

    return answer


def _failed(request: web.BaseRequest, failure: APIError, note: Callable[[APIError], None] | None) -> Response:
    """Answer with a failure; raises ``ConnectionResetError`` where a part of another answer is out."""
    if note is not None:
        note(failure)
    if isinstance(request, Request) and request.begun:
        # The only honest thing left is to break off visibly.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the answer broke off")
    response = render(failure)
    if isinstance(request, Request):
        response.fields = completed(response.fields, request.further_fields)
    return response


def _checking_token(tokens: Tokens) -> Stage:
    admits = Admitted(tokens).admits

    def stage(handler: Handler) -> Handler:
        async def check(request: web.BaseRequest) -> Answered:
            given = request.headers.get("dapr-api-token", "").encode("utf-8", "surrogateescape")
            if not admits(given):
                path = request.raw_path.partition("?")[0]
                if not (request.method == "GET" and path in HEALTH):
                    return Response(401, b"invalid api token", [("Content-Type", "text/plain; charset=utf-8")])
            return await handler(request)

        return check

    return stage


def _logging(api_log: APILogging, names: Container[str]) -> Stage:
    def stage(handler: Handler) -> Handler:
        async def log(request: web.BaseRequest) -> Answered:
            path = request.raw_path.partition("?")[0]
            if api_log.omit_health_checks and path.startswith("/v1.0/healthz"):
                return await handler(request)
            started = time.monotonic()
            response = await handler(request)
            told = endpoint(path, names) if api_log.obfuscate_urls else path
            api_logger.info(
                "HTTP API Called",
                extra={
                    "fields": {
                        "method": f"{request.method} {told}",
                        "code": response.status,
                        "duration": round((time.monotonic() - started) * 1000, 3),
                        "size": len(response.body) if isinstance(response, Response) else -1,
                        "useragent": request.headers.get("User-Agent", ""),
                    }
                },
            )
            return response

        return log

    return stage


def endpoint(path: str, names: Container[str]) -> str:
    """Give the part of a path that is the API's own: what follows may say who was asked for what."""
    _, version, name, *_ = (*path.split("/", 3), "", "")
    return f"/{version}/{name}" if version.startswith("v1.0") and name in names else "invoke"


def _cors(origins: Sequence[str]) -> Stage:
    everyone = "*" in origins

    def stage(handler: Handler) -> Handler:
        async def cors(request: web.BaseRequest) -> Answered:
            origin = request.headers.get("Origin")
            if origin is None or not (everyone or origin in origins):
                return await handler(request)
            told = [("Access-Control-Allow-Origin", "*" if everyone else origin), ("Vary", "Origin")]
            asked = request.headers.get("Access-Control-Request-Method")
            if request.method == "OPTIONS" and asked is not None:
                wanted = request.headers.get("Access-Control-Request-Headers")
                allowed = [("Access-Control-Allow-Headers", wanted)] if wanted else []
                return Response(204, fields=[("Access-Control-Allow-Methods", CORS_METHODS), *allowed, *told])
            if isinstance(request, Request):
                request.further_fields = [*request.further_fields, *told]
            response = await handler(request)
            if not response.prepared:
                response.fields = completed(response.fields, told)
            return response

        return cors

    return stage
