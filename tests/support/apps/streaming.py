"""An application that takes its events by a stream, and opens another one whenever that ends.

Each event is recorded under its topic before it is answered. The stream is that of the gateway at ``DAPR_GRPC_PORT``,
the topic is ``APP_TOPIC``. It listens only to say that it is there.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress

import grpc.aio
import uvloop
from aiohttp import web

from tests.grpc.harness import Client
from tests.grpc.streaming import Subscriber

RECORDS = os.open(os.environ["APP_RECORDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
TOPIC = os.environ["APP_TOPIC"]
AGAIN_SECONDS = 0.05


async def take(client: Client) -> None:
    """Take events until the stream ends."""
    stream = Subscriber(client)
    try:
        await stream.begin(TOPIC)
        while True:
            event = await stream.event(within=3600.0)
            os.write(RECORDS, f"{TOPIC} {json.loads(event.data)['id']} {os.getpid()}\n".encode())
            await stream.answer(event)
    finally:
        stream.call.cancel()


async def main() -> None:
    async def ready(request: web.BaseRequest) -> web.Response:
        return web.Response()

    runner = web.ServerRunner(web.Server(ready))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["APP_PORT"])).start()
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{os.environ['DAPR_GRPC_PORT']}", options=options) as channel:
        while True:
            with suppress(grpc.aio.AioRpcError, EOFError, TimeoutError, asyncio.InvalidStateError):
                await take(Client(channel))
            await asyncio.sleep(AGAIN_SECONDS)


uvloop.run(main())
