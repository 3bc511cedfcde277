"""The same work without brokermesh: bare aiohttp and bare nats-py under uvloop, one process per role.

========= ========================================================================================
role      does
========= ========================================================================================
handler   aiohttp's low-level server reads the body and answers 204, or a small JSON
publisher the same, with a nats-py JetStream publish (headers of a gateway's event) before the answer
publish   nats-py JetStream publishes alone, 32 at once
consumer  nats-py pull consumer, 64 at once posted to the application with aiohttp, then acked
consume   nats-py pull consumer and acks alone
poster    aiohttp client calls alone, 32 at once
caller    aiohttp handler that makes a nats-py request and answers with its reply
callee    nats-py subscriber that calls the application with aiohttp and responds
requester nats-py requests alone, 32 at once
responder nats-py responses alone
kv        aiohttp handler with a nats-py key/value get or put
========= ========================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import nats
import nats.errors
import orjson
import uvloop
from aiohttp import web
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from bench.app import ECHO_BODY
from bench.load import CONNECTIONS
from bench.peer import control

Options = dict[str, Any]
Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
IN_FLIGHT = 64
CALL_SECONDS = 10.0
HTTP_HEADER = "mesh-http"


@contextlib.asynccontextmanager
async def serving(handler: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> AsyncIterator[int]:
    """Serve HTTP; give the port."""
    runner = web.ServerRunner(web.Server(handler, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def idle(question: Options) -> Options:
    """Answer a peer that is told nothing."""
    return {}


def in_a_loop(call: Callable[[], Awaitable[None]]) -> Answer:
    """Make the answer of a role that works when it is told, for so many seconds."""

    async def run(question: Options) -> Options:
        latencies = array("d")
        started = time.perf_counter()
        until = started + question["seconds"]

        async def worker() -> None:
            before = time.perf_counter()
            while before < until:
                await call()
                after = time.perf_counter()
                latencies.append(after - before)
                before = after

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONNECTIONS):
                tasks.create_task(worker())
        return {"seconds": time.perf_counter() - started, "latencies": list(latencies)}

    return run


class Headers:
    """Headers like a gateway's, with ids of their own."""

    def __init__(self, given: dict[str, str]) -> None:
        self._given = given
        self._numbers = itertools.count(time.time_ns())

    def fresh(self) -> dict[str, str]:
        number = f"{next(self._numbers):024x}"
        headers = dict(self._given)
        for name in ("ce-id", "Nats-Msg-Id"):
            if name in headers:
                headers[name] = number
        return headers


async def handler(options: Options) -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        if request.raw_path.startswith("/echo"):
            if request.body_exists:
                await request.read()
            return web.Response(body=ECHO_BODY, content_type="application/json")
        await request.read()
        return web.Response(status=204)

    async with serving(handle) as port:
        await control(port, idle)


async def publisher(options: Options) -> None:
    client = await nats.connect(options["nats"])
    stream, subject, headers = client.jetstream(), options["subject"], Headers(options["headers"])

    async def handle(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        await stream.publish(subject, body, headers=headers.fresh())
        return web.Response(status=204)

    async with serving(handle) as port:
        await control(port, idle)


async def publish(options: Options) -> None:
    client = await nats.connect(options["nats"])
    stream, subject, headers = client.jetstream(), options["subject"], Headers(options["headers"])
    body = options["body"].encode()

    async def call() -> None:
        await stream.publish(subject, body, headers=headers.fresh())

    await control(0, in_a_loop(call))


async def _fetching(options: Options, take: Callable[[Msg], Awaitable[None]]) -> None:
    """Pull for as long as it lives."""
    client = await nats.connect(options["nats"])
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=-1)
    pulling = await client.jetstream().pull_subscribe(
        options["subject"], options["durable"], stream=options["stream"], config=config
    )
    while True:
        try:
            messages = await pulling.fetch(IN_FLIGHT, timeout=30)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            await take(message)


async def consumer(options: Options) -> None:
    free = asyncio.Semaphore(IN_FLIGHT)
    url = f"http://127.0.0.1:{options['app_port']}{options['path']}"
    headers = {"Content-Type": "application/cloudevents+json", "pubsubName": "pubsub", "mesh-attempt": "1"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as tasks:

        async def deliver(message: Msg) -> None:
            async with session.post(url, data=message.data, headers=headers) as response:
                await response.read()
                if response.status == 200:
                    await message.ack()
            free.release()

        async def take(message: Msg) -> None:
            await free.acquire()
            tasks.create_task(deliver(message))

        fetching = tasks.create_task(_fetching(options, take))
        await control(0, idle)
        fetching.cancel()


async def consume(options: Options) -> None:
    acked = 0
    changed = asyncio.Event()
    going = asyncio.Event()

    async def take(message: Msg) -> None:
        nonlocal acked
        await going.wait()
        await message.ack()
        acked += 1
        changed.set()

    async def run(question: Options) -> Options:
        nonlocal acked
        acked = 0
        started = time.perf_counter()
        going.set()
        while acked < question["count"]:
            changed.clear()
            await changed.wait()
        going.clear()
        return {"seconds": time.perf_counter() - started}

    async with asyncio.TaskGroup() as tasks:
        fetching = tasks.create_task(_fetching(options, take))
        await control(0, run)
        fetching.cancel()


class AppClient:
    """Calls the application with aiohttp."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._base = f"http://127.0.0.1:{port}"

    async def call(self, verb: str, target: str, headers: Any, body: bytes) -> tuple[int, bytes]:
        request = self._session.request(verb, self._base + target, headers=headers, data=body or None)
        async with request as response:
            return response.status, await response.read()


async def poster(options: Options) -> None:
    calls = itertools.cycle([(verb, body.encode()) for verb, body in options["calls"]])
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = AppClient(session, options["app_port"])

        async def call() -> None:
            verb, body = next(calls)
            status, _ = await client.call(verb, options["path"], options["headers"], body)
            if status != 200:
                raise RuntimeError(f"the application answered {status}")

        await control(0, in_a_loop(call))


async def caller(options: Options) -> None:
    client = await nats.connect(options["nats"])
    headers = Headers(options["headers"])

    async def handle(request: web.BaseRequest) -> web.Response:
        body = await request.read() if request.body_exists else b""
        sent = headers.fresh()
        sent[HTTP_HEADER] = orjson.dumps((request.method, request.raw_path, list(request.headers.items()))).decode()
        reply = await client.request("bench.callee", body, timeout=CALL_SECONDS, headers=sent)
        status, fields = orjson.loads(reply.headers[HTTP_HEADER])
        return web.Response(status=status, body=reply.data, headers=dict(fields))

    async with serving(handle) as port:
        await control(port, idle)


async def callee(options: Options) -> None:
    client = await nats.connect(options["nats"])
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as tasks:
        app = AppClient(session, options["app_port"])

        async def answer(message: Msg) -> None:
            verb, target, fields = orjson.loads(message.headers[HTTP_HEADER])
            kept = {name: value for name, value in fields if name.lower() not in ("host", "content-length")}
            status, body = await app.call(verb, target, kept, message.data)
            packed = orjson.dumps((status, [("Content-Type", "application/json")])).decode()
            await client.publish(message.reply, body, headers={HTTP_HEADER: packed})

        async def receive(message: Msg) -> None:
            tasks.create_task(answer(message))

        await client.subscribe("bench.callee", queue="callee", cb=receive)
        await client.flush()
        await control(0, idle)


async def requester(options: Options) -> None:
    client = await nats.connect(options["nats"])
    headers = Headers(options["headers"])
    bodies = itertools.cycle([b"", options["body"].encode()])

    async def call() -> None:
        await client.request("bench.responder", next(bodies), timeout=CALL_SECONDS, headers=headers.fresh())

    await control(0, in_a_loop(call))


async def responder(options: Options) -> None:
    client = await nats.connect(options["nats"])

    async def answer(message: Msg) -> None:
        await client.publish(message.reply, ECHO_BODY, headers=options["headers"])

    await client.subscribe("bench.responder", queue="responder", cb=answer)
    await client.flush()
    await control(0, idle)


async def kv(options: Options) -> None:
    client = await nats.connect(options["nats"])
    bucket = await client.jetstream().create_key_value(bucket="bench", direct=True)

    async def handle(request: web.BaseRequest) -> web.Response:
        if request.method == "GET":
            entry = await bucket.get(request.raw_path.rpartition("/")[2])
            return web.Response(
                body=entry.value, content_type="application/json", headers={"ETag": str(entry.revision)}
            )
        for item in orjson.loads(await request.read()):
            await bucket.put(item["key"], orjson.dumps(item["value"]))
        return web.Response(status=204)

    async with serving(handle) as port:
        await control(port, idle)


ROLES = {
    role.__name__: role
    for role in (
        handler, publisher, publish, consumer, consume, poster, caller, callee, requester, responder, kv
    )
}  # fmt: skip

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(ROLES[sys.argv[1]](json.loads(sys.argv[2])))
