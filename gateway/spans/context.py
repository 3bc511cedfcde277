"""Trace context of requests: of HTTP by its header fields, of gRPC by metadata, which may have a binary form."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from multidict import MultiMapping

from mesh.telemetry import is_traceparent, is_tracestate

__all__ = ["baggage_of", "trace_context", "trace_of", "traceparent_of"]

TRACE_BYTES = 29


def trace_context(fields: Mapping[str, str]) -> tuple[str | None, str]:
    """Give ``traceparent`` and ``tracestate``; what cannot be one is left out, as W3C Trace Context asks."""
    parent, state = fields.get("traceparent"), fields.get("tracestate", "")
    if parent is None or not is_traceparent(parent):
        return None, ""  # A state without its trace means nothing.
    return parent, state if is_tracestate(state) else ""


def baggage_of(fields: MultiMapping[str]) -> str:
    """Give the ``baggage``, of several fields together; empty when there is none."""
    found = fields.get("baggage")
    return "" if found is None else ",".join(fields.getall("baggage"))


def traceparent_of(binary: str) -> str | None:
    """Read the span that the metadata ``grpc-trace-bin`` name; None = that is none.

    Source: OpenCensus, BinaryEncoding: version, and then each field behind its number.
    """
    try:
        data = base64.b64decode(binary + "=" * (-len(binary) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(data) != TRACE_BYTES or (data[0], data[1], data[18], data[27]) != (0, 0, 1, 2):
        return None
    parent = f"00-{data[2:18].hex()}-{data[19:27].hex()}-{data[28]:02x}"
    return parent if is_traceparent(parent) else None


def trace_of(metadata: Mapping[str, str]) -> tuple[str | None, str]:
    """Give ``traceparent`` and ``tracestate`` of a call of gRPC, which may have the binary form alone."""
    parent, state = trace_context(metadata)
    if parent is None and (binary := metadata.get("grpc-trace-bin")) is not None:
        parent = traceparent_of(binary)
    return parent, state
