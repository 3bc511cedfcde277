"""The server of an application on gRPC in a process of its own; the library's messages of its methods are bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import grpc
import grpc.aio
import uvloop

__all__ = ["serve"]


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, methods: Mapping[str, grpc.RpcMethodHandler]) -> None:
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(details.method)


def serve(methods: Mapping[str, grpc.RpcMethodHandler]) -> None:
    """Answer methods by their paths at ``APP_PORT``, until the process ends."""

    async def run() -> None:
        server = grpc.aio.server(handlers=[_Methods(methods)], options=[("grpc.so_reuseport", 0)])
        assert server.add_insecure_port(f"127.0.0.1:{os.environ['APP_PORT']}")
        await server.start()
        await server.wait_for_termination()

    uvloop.run(run())
