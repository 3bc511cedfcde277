"""An application with a gRPC service of its own, ``test.Echo``; its messages are bytes."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import uvloop


async def unary(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return message


async def hang(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await asyncio.Event().wait()
    return b""


async def ticks(message: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    for number in itertools.count():
        yield b"%d" % number
        await asyncio.sleep(0.05)


async def talk(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message


METHODS = {
    "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
    "/test.Echo/Hang": grpc.unary_unary_rpc_method_handler(hang),
    "/test.Echo/Ticks": grpc.unary_stream_rpc_method_handler(ticks),
    "/test.Echo/Talk": grpc.stream_stream_rpc_method_handler(talk),
}


class Handler(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return METHODS.get(details.method)


async def main() -> None:
    server = grpc.aio.server(handlers=[Handler()], options=[("grpc.so_reuseport", 0)])
    assert server.add_insecure_port(f"127.0.0.1:{os.environ['APP_PORT']}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
