"""Puts together what answers clients of gRPC, and loads what that takes, which is 15 MB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.routes import RPCS, is_allowed
from gateway.routes.route import API
from gateway.routes.rpc import RPC

if TYPE_CHECKING:
    from gateway.http2.server import HTTP2Connections
    from gateway.metrics.endpoint import Metrics

__all__ = ["build_grpc"]

_VERSION = re.compile(r"(Alpha|Beta)(\d)\Z")


def build_grpc(
    api: API, http_port: int, rows: Sequence[RPC] = RPCS, *, metrics: Metrics | None = None
) -> HTTP2Connections:
    """Make what serves connections; clients of HTTP are told its port, 0 for a socket file."""
    from gateway.grpc.ports import HTTP_1_ANSWER, not_grpc
    from gateway.grpc.proxy import pass_on
    from gateway.grpc.service import Service
    from gateway.http2.server import HTTP2Connections

    def allowed(row: RPC, name: str) -> bool:
        found = _VERSION.search(name)
        version = "v1.0" if found is None else f"v1.0-{found[1].lower()}{found[2]}"
        return is_allowed(row.api, version, api.allowed, "grpc")

    proxy = pass_on if is_allowed("invoke", "v1.0", api.allowed, "grpc") else None
    elsewhere = not_grpc(http_port)
    handle = Service(api, rows, allowed, proxy, elsewhere.encode(), metrics=metrics).handle
    http_1 = HTTP_1_ANSWER.format(size=len(elsewhere), text=elsewhere)
    return HTTP2Connections(handle, api.config.max_header_bytes, http_1.encode())
