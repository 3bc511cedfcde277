"""The span of an application's side of a call, whether its caller waits for it or not."""

from __future__ import annotations

from mesh.application import Headers
from mesh.spans import Begun
from mesh.telemetry import Tracing, trace_header, who_answered, within

__all__ = ["note_status", "served"]


def served(
    tracing: Tracing, app_id: str, verb: str, target: str, headers: Headers, *, later: bool = False
) -> tuple[Headers, Begun | None]:
    """Begin the span of an application's side of a call; gives header fields in which it is, and it.

    Args:
        tracing: Makes spans.
        app_id: The application's.
        verb: Of the call.
        target: Of the call.
        headers: Of the call.
        later: Whether its caller no longer waits.

    Returns:
        The header fields as they were, and None, where it is not recorded.
    """
    if tracing.sink is None or not tracing.records(parent := trace_header(headers)):
        return headers, None
    path = target.partition("?")[0].lstrip("/")
    tags = {"http.request.method": verb, "dapr.invoke_method": path, "rpc.service": "ServiceInvocation"}
    begun = tracing.served(parent, f"CallLocal/{app_id}/{path}", tags, later=later)
    return (headers, None) if begun is None else (within(headers, begun.traceparent), begun)


def note_status(begun: Begun, status: int) -> None:
    """Tell in an application's span what it answered."""
    begun.attributes["dapr.status_code"] = str(status)
    if status >= 500:
        begun.error = who_answered(status)
