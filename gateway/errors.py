"""The only place where a failure becomes an HTTP answer.

Every failure is one JSON object with ``errorCode`` and ``message``; those of pub/sub and state also
carry ``details``. Codes, statuses and texts are Dapr's, so that its clients read them.

Source: Dapr's error tables; docs/errors.md lists every code with its meaning and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.http.response import Response, json_response
from mesh.errors import (
    BrokerError,
    ConflictError,
    DeadlineExceededError,
    EventError,
    InvalidEtagError,
    InvocationError,
    MeshError,
    PermissionDeniedError,
)

__all__ = [
    "APIError",
    "bad_request",
    "header_too_large",
    "invocation_failed",
    "malformed",
    "publish_failed",
    "render",
    "rich",
    "state_failed",
    "unexpected",
]

ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
RESOURCE_INFO = "type.googleapis.com/google.rpc.ResourceInfo"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
MAX_TEXT = 4096


class APIError(Exception):
    """An answer that is a failure."""

    def __init__(self, status: int, code: str, message: str, details: list[object] | None = None) -> None:
        self.status = status
        self.code = code
        self.message = message[:MAX_TEXT].encode("utf-8", "replace").decode()
        self.details = details
        super().__init__(message)


def render(error: APIError) -> Response:
    """Make the HTTP answer."""
    body: dict[str, object] = {"errorCode": error.code, "message": error.message}
    if error.details is not None:
        body["details"] = error.details
    return json_response(body, error.status)


def rich(
    status: int,
    code: str,
    reason: str,
    message: str,
    *,
    metadata: Mapping[str, str] | None = None,
    resource: tuple[str, str] | None = None,
    field: tuple[str, str] | None = None,
) -> APIError:
    """Make a failure with details.

    Args:
        status: HTTP status.
        code: ``errorCode``.
        reason: Of the ``ErrorInfo``.
        message: The text.
        metadata: Of the ``ErrorInfo``.
        resource: Type and name of the component, unless it was not found.
        field: The offending field and what is wrong with it.
    """
    details: list[object] = []
    if resource is not None:
        kind, name = resource
        description = message if kind == "pubsub" else ""
        details.append(
            {
                "@type": RESOURCE_INFO,
                "resource_type": kind,
                "resource_name": name,
                "owner": "",
                "description": description,
            }
        )
    if field is not None:
        name, description = field
        details.append({"@type": BAD_REQUEST, "field_violations": [{"field": name, "description": description}]})
    details.append({"@type": ERROR_INFO, "reason": reason, "domain": "dapr.io", "metadata": dict(metadata or {})})
    return APIError(status, code, message, details)


def malformed(reason: object) -> APIError:
    """The body is not the JSON it should be."""
    return APIError(400, "ERR_MALFORMED_REQUEST", f"failed deserializing HTTP body: {reason}")


def bad_request(reason: object) -> APIError:
    """Something about the request is wrong."""
    return APIError(400, "ERR_BAD_REQUEST", f"invalid request: {reason}")


def too_large(limit_bytes: int) -> APIError:
    """The body is above what the gateway holds in memory."""
    return APIError(413, "ERR_BODY_READ", f"the body is larger than {limit_bytes} bytes (--max-body-size)")


def header_too_large(limit_bytes: int) -> APIError:
    """A line of the header is above the limit."""
    return APIError(431, "ERR_BAD_REQUEST", f"invalid request: a header field is larger than {limit_bytes} bytes")


def too_slow(seconds: float) -> APIError:
    """The body did not arrive in time."""
    return APIError(408, "ERR_BODY_READ", f"the body did not arrive within {seconds:g} s")


def publish_failed(pubsub: str, topic: str, app_id: str, error: MeshError) -> APIError:
    """An event was not published."""
    context = {"appID": app_id, "topic": topic}
    resource = ("pubsub", pubsub)
    if isinstance(error, PermissionDeniedError):
        return rich(
            403, "ERR_PUBSUB_FORBIDDEN", "DAPR_PUBSUB_FORBIDDEN", str(error), metadata=context, resource=resource
        )
    if isinstance(error, EventError):
        return rich(
            500,
            "ERR_PUBSUB_CLOUD_EVENTS_SER",
            "DAPR_PUBSUB_CLOUD_EVENT_CREATION",
            str(error),
            metadata=context,
            resource=resource,
        )
    outcome = "; whether it was stored is unknown" if isinstance(error, DeadlineExceededError) else ""
    message = f"error when publishing to topic {topic} in pubsub {pubsub}: {error}{outcome}"
    return rich(
        500,
        "ERR_PUBSUB_PUBLISH_MESSAGE",
        "DAPR_PUBSUB_PUBLISH_MESSAGE",
        message,
        metadata={**context, "error": str(error)},
        resource=resource,
    )


def state_failed(code: str, message: str, error: MeshError) -> APIError:
    """A state operation failed; etags decide between 409, 400 and 500."""
    if isinstance(error, ConflictError):
        return APIError(409, code, f"{message}: possible etag mismatch. error from state store: {error}")
    if isinstance(error, InvalidEtagError):
        return APIError(400, code, f"{message}: {error}")
    return APIError(500, code, f"{message}: {error}")


def invocation_failed(error: InvocationError) -> APIError:
    """An application could not be called."""
    return APIError(500, "ERR_DIRECT_INVOKE", str(error))


def unexpected(error: Exception) -> APIError:
    """A failure nobody foresaw where it happened."""
    if isinstance(error, BrokerError):
        return APIError(503, "ERR_BROKER", str(error))
    return APIError(500, "ERROR", f"internal error: {type(error).__name__}")
