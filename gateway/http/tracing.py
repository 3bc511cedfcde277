"""The stage of HTTP requests that makes the span of each call of the API, and tells its caller which that is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from aiohttp import web

from gateway.errors import bad_request
from gateway.http.response import Answered, Request, Response, completed
from gateway.spans.context import baggage_of, trace_context
from gateway.spans.names import failure, header_tags, of_http
from mesh.operation import Trace
from mesh.spans import Begun, SpanKind, Value
from mesh.telemetry import CURRENT, UNTOLD, Tracing, is_baggage

__all__ = ["check_baggage", "tracing_calls"]

EXCLUDED = "/v1.0/healthz"
Handler = Callable[[web.BaseRequest], Awaitable[Answered]]


def tracing_calls(tracing: Tracing) -> Callable[[Handler], Handler]:
    """Make the stage; with a sampling rate of 0 it passes trace context on as it is, and makes none."""

    def stage(handler: Handler) -> Handler:
        async def trace(request: web.BaseRequest) -> Answered:
            if not isinstance(request, Request) or request.raw_path.startswith(EXCLUDED):
                return await handler(request)
            baggage = baggage_of(request.headers)
            parent, state, *_ = trace_context(request.headers)
            if not tracing.enabled:
                request.trace = Trace(parent, state, baggage)
                return await handler(request)
            span = tracing.span(parent)
            request.trace = Trace(span, state, baggage, own=True)
            told = [("Traceparent", span), ("Tracestate", state)] if state else [("Traceparent", span)]
            request.further_fields = told
            current = CURRENT.set(span)
            try:
                with _begun(tracing, request, span, parent, state) as begun:
                    response = await handler(request)
                    if begun is not None:
                        begun.attributes["dapr.status_code"] = str(response.status)
                        begun.error = failure(response.status)
            finally:
                CURRENT.reset(current)
            if isinstance(response, Response):
                response.fields = completed(response.fields, told)  # The called application may have said them.
            return response

        return trace

    return stage


def check_baggage(request: web.BaseRequest) -> None:
    """Refuse a call whose baggage is none; who may not call at all is told that before.

    Raises:
        APIError: It is none.
    """
    trace = request.trace if isinstance(request, Request) else None
    if trace is not None and trace.baggage and not is_baggage(trace.baggage):
        raise bad_request("the header baggage is no W3C baggage")


def _begun(
    tracing: Tracing, request: Request, span: str, parent: str | None, state: str
) -> AbstractContextManager[Begun | None]:
    if not tracing.records(span):
        return UNTOLD
    path, headers = request.raw_path.partition("?")[0], request.headers
    path = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    name, tags = of_http(request.method, path, headers.get("dapr-app-id"))
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    attributes: dict[str, Value] = {
        **header_tags(headers.items()),
        "dapr.api": f"{request.method} {path}",
        "dapr.protocol": "http",
        "http.request.method": request.method,
        "url.full": f"http://{headers.get('Host', '')}{path}",
        **tags,
    }
    if isinstance(peer, tuple):
        attributes |= {"server.address": peer[0], "server.port": peer[1]}
    return tracing.begin(span, parent, name, SpanKind.CLIENT, attributes, tracestate=state)
