"""Puts together what answers clients of gRPC, and loads what that takes, which is 15 MB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.routes import RPCS, is_allowed
from gateway.routes.route import API
from gateway.routes.rpc import RPC

if TYPE_CHECKING:
    from gateway.http2.server import Handler, HTTP2Connections
    from gateway.metrics.endpoint import Metrics

__all__ = ["build_grpc", "elsewhere", "handling"]

_VERSION = re.compile(r"(Alpha|Beta)(\d)\Z")


def build_grpc(
    api: API, http_port: int, rows: Sequence[RPC] = RPCS, *, metrics: Metrics | None = None
) -> HTTP2Connections:
    """Make what serves connections; clients of HTTP are told its port, 0 for a socket file."""
    from gateway.http2.server import HTTP2Connections

    text, http_1 = elsewhere(http_port)
    return HTTP2Connections(handling(api, text, rows, metrics=metrics), api.config.max_header_bytes, http_1)


def handling(api: API, text: bytes, rows: Sequence[RPC] = RPCS, *, metrics: Metrics | None = None) -> Handler:
    """Make what answers calls; clients of HTTP/2 that speak no gRPC are told the text."""
    from gateway.grpc.proxy import pass_on
    from gateway.grpc.service import Service

    def allowed(row: RPC, name: str) -> bool:
        found = _VERSION.search(name)
        version = "v1.0" if found is None else f"v1.0-{found[1].lower()}{found[2]}"
        return is_allowed(row.api, version, api.allowed, "grpc")

    proxy = pass_on if is_allowed("invoke", "v1.0", api.allowed, "grpc") else None
    return Service(api, rows, allowed, proxy, text, metrics=metrics).handle


def elsewhere(http_port: int) -> tuple[bytes, bytes]:
    """Give what clients of HTTP are told, and that as an answer of HTTP/1.1."""
    from gateway.grpc.ports import HTTP_1_ANSWER, not_grpc

    text = not_grpc(http_port)
    return text.encode(), HTTP_1_ANSWER.format(size=len(text), text=text).encode()
