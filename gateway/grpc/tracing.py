"""The span of a call of the gRPC API: what `gateway/http/tracing.py` is for the other one."""

from __future__ import annotations

from httpunk.h2.server import ServerRequest

from gateway.grpc.call import Metadata
from gateway.grpc.wire import StatusError
from gateway.spans.context import trace_of
from gateway.spans.names import header_tags
from gateway.status import Code
from mesh.operation import Trace
from mesh.spans import Begun, SpanKind, Value
from mesh.telemetry import Tracing, trace_bin

__all__ = ["begin", "end", "told"]


def begin(tracing: Tracing, request: ServerRequest, metadata: Metadata) -> tuple[Trace, Begun | None]:
    """Make the span of a call, and begin it where it is recorded."""
    parent, state = trace_of(metadata)
    baggage = ",".join(value for name, value in metadata.all() if name == "baggage") if "baggage" in metadata else ""
    if not tracing.enabled:
        return Trace(parent, state, baggage), None
    span = tracing.span(parent)
    trace = Trace(span, state, baggage, own=True)
    if not tracing.records(span):
        return trace, None
    path = request.path or ""
    tags: dict[str, Value] = {**header_tags(metadata.all()), "dapr.api": path, "dapr.protocol": "grpc"}
    tags["rpc.system"] = "grpc"
    return trace, tracing.begin(span, parent, path, SpanKind.CLIENT, tags, tracestate=state)


def end(begun: Begun, failure: StatusError | None) -> None:
    """Say how a call ended."""
    code = Code.OK if failure is None else failure.code
    begun.attributes |= {"dapr.status_code": str(int(code)), "rpc.grpc.status_code": int(code)}
    if failure is not None:
        begun.error = f"{Code(code).name}: {failure.message}"


def told(trace: Trace) -> list[tuple[str, str]]:
    """Give the metadata that tell a caller which span its call was."""
    span = trace.traceparent or ""
    return [("traceparent", span), ("grpc-trace-bin", trace_bin(span))]
