"""An application with a gRPC service of its own, ``test.Echo``; its messages are bytes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from tests.support.grpc_serving import serve


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


if __name__ == "__main__":
    serve(METHODS)
