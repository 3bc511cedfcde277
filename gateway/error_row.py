"""A row of the table of errors (``gateway/errors.py``)."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Row"]


class Row(NamedTuple):
    """What clients are told of a failure.

    The texts are formatted with ``error``, ``target`` (of the operation), ``arguments`` (of it),
    ``app_id`` and ``namespace`` (of the caller).

    Attributes:
        status: HTTP status.
        grpc: gRPC status.
        code: ``errorCode``.
        text: The message.
        reason: Of the ``ErrorInfo``; empty = the failure has no details.
        resource: Type of the component in the ``ResourceInfo``; empty = there is none.
        metadata: Of the ``ErrorInfo``, names and texts.
        asked: Whether the metadata of the request are there too.
        field: Name of the offending field in the ``BadRequest``; empty = there is none.
    """

    status: int
    grpc: str
    code: str
    text: str = "{error}"
    reason: str = ""
    resource: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    field: str = ""
    asked: bool = False
