"""Statuses of gRPC, and what they are over HTTP: two tables of Dapr's, which are not the reverse of each other.

Source: gRPC status codes; gRPC, HTTP to gRPC status code mapping; Dapr 1.18, status mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

__all__ = ["BY_HTTP_STATUS", "CODE_NAMES", "HTTP_STATUS", "OF_STRANGERS", "Code"]


class Code(IntEnum):
    """The status of a call."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CODE_NAMES: Mapping[int, str] = {
    **{code: code.name.title().replace("_", "") for code in Code},
    Code.OK: "OK",
    Code.CANCELLED: "Canceled",
}
"""Names as programs in Go write them, and so the reference's metrics."""

HTTP_STATUS: Mapping[Code, int] = {
    Code.OK: 200,
    Code.CANCELLED: 408,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""What a status is over HTTP. Source: Dapr's table, which is not that of the other direction."""

BY_HTTP_STATUS: Mapping[int, Code] = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    408: Code.CANCELLED,
    409: Code.ALREADY_EXISTS,
    429: Code.RESOURCE_EXHAUSTED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
"""What an answer over HTTP is for a client on gRPC; every other failure is UNKNOWN. Source: Dapr's table."""

OF_STRANGERS: Mapping[int, Code] = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
"""What the answer of somebody who speaks no gRPC means; everything else is UNKNOWN. Source: gRPC's table."""
