"""What holds for an application on HTTP/1.1 holds for one on HTTP/2 without TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from httpunk.h2.server import ServerRequest

from gateway.config import HealthCheck, Tokens
from tests.http.harness import DEFAULTS, Backbone, gateway, yaml
from tests.support.eventually import eventually
from tests.support.h2app import H2App

INVOKE = "/v1.0/invoke/app/method"
HEALTH = HealthCheck(interval=0.05, timeout=2.0, threshold=2)
EVENTS = DEFAULTS + yaml("Subscription", "s", {"pubsubname": "pubsub", "topic": "t", "route": "/t"})


def on(app: H2App, **settings: Any) -> dict[str, Any]:
    return {"app": app.port, "app_protocol": "h2c", **settings}  # type: ignore[dict-item]


async def test_calls(memory: Backbone, tmp_path: Path) -> None:
    """Verb, path, query, fields and body arrive as they are, and the answer comes back."""
    async with H2App() as app, gateway(memory, tmp_path, **on(app, tokens=Tokens(app="secret"))) as node:
        app.answer("/p%20q", 418, b"tea", x_answer="yes", content_type="text/plain")
        headers = {"X-One": "1", "Content-Type": "text/x", "Connection": "X-Hop", "X-Hop": "gone"}
        reply = await node.request("PUT", f"{INVOKE}/p%20q?x=%20", headers, b"body")
        assert (reply.status, reply.body, reply.headers["x-answer"]) == (418, b"tea", "yes")
        (got,) = app.at("/p%20q")
        assert (got.method, got.target, got.body) == ("PUT", "/p%20q?x=%20", b"body")
        assert {"x-one": "1", "content-type": "text/x", "dapr-api-token": "secret"}.items() <= got.headers.items()
        assert not {"connection", "x-hop", "host"} & set(got.headers)
        head = await node.request("HEAD", f"{INVOKE}/p%20q")
        assert (head.status, head.body, head.headers["content-type"]) == (418, b"", "text/plain")
        told = (await node.get("/v1.0/metadata")).json["appConnectionProperties"]
        assert told == {"port": app.port, "protocol": "h2c", "channelAddress": "127.0.0.1"}


async def test_streams(nats: Backbone, tmp_path: Path) -> None:
    """In both directions at once, to another gateway's application as well."""

    async def echo(request: ServerRequest) -> None:
        sending = await request.send_response(200, headers=[("content-type", "text/event-stream")])
        async for part in request.aiter_bytes():
            await sending.send_data(part)
        await sending.send_data(b"", end_stream=True)

    echo.reads = True  # type: ignore[attr-defined]
    back: asyncio.Queue[None] = asyncio.Queue()

    async def parts() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number
            await back.get()

    async with (
        H2App() as app,
        gateway(nats, tmp_path, **on(app)) as node,
        gateway(nats, tmp_path, app_id="caller") as caller,
    ):
        app.answers["/echo"] = echo
        for each in (node, caller):
            got = b""
            async with each.open("POST", f"{INVOKE}/echo", None, parts()) as response:
                async for data in response.content.iter_any():
                    got += data
                    back.put_nowait(None)
            assert got == b"012"
        large = b"x" * 3_000_000
        reply = await caller.post(f"{INVOKE}/echo", large)
        assert reply.body == large


async def test_events(backbone: Backbone, tmp_path: Path) -> None:
    """Asked for by a path, and delivered there."""
    async with H2App() as app:
        wanted = [{"pubsubname": "pubsub", "topic": "asked", "route": "asked"}]
        app.answer("/dapr/subscribe", 200, orjson.dumps(wanted))
        async with gateway(backbone, tmp_path, resources=EVENTS, **on(app)) as node:
            await node.publish("t", "one")
            await node.publish("asked", "two")
            (first,), (second,) = await app.until("/t"), await app.until("/asked")
            assert (first.json["data"], second.json["data"]) == ("one", "two")
            assert first.headers["content-type"] == "application/cloudevents+json"


async def test_health_and_restart(memory: Backbone, tmp_path: Path) -> None:
    app = H2App()
    app.answer("/healthz", 503)
    await app.start()
    async with gateway(memory, tmp_path, resources=EVENTS, ready=False, **on(app, app_health=HEALTH)) as node:
        await app.until("/healthz", 2)
        assert node.gateway.not_ready == ("app",)
        app.answer("/healthz", 204)
        await node.until_ready()
        await app.stop()

        def away() -> None:
            assert node.gateway.not_ready == ("app",)

        await eventually(away)
        await node.publish("t", "meanwhile")
        await app.start()
        assert (await app.until("/t"))[0].json["data"] == "meanwhile"
        await app.stop()


async def test_an_application_that_leaves(memory: Backbone, tmp_path: Path) -> None:
    """A call that it has begun with is answered, whoever asks meanwhile gets another connection."""
    go = asyncio.Event()

    async def slow(request: ServerRequest) -> None:
        await go.wait()
        await request.respond(200, body=b"late")

    app, successor = H2App(), H2App()
    app.answers["/slow"] = slow
    await app.start()
    async with gateway(memory, tmp_path, **on(app)) as node, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(node.post(f"{INVOKE}/slow", b""))
        await app.until("/slow")
        leaving = tasks.create_task(app.stop(30))
        successor.port = app.port
        successor.answer("/next", 200, b"next")
        await successor.start()
        assert (await node.post(f"{INVOKE}/next", b"")).body == b"next"
        go.set()
        await leaving
        assert (await call).body == b"late"
    await successor.stop()


async def test_concurrency_is_limited(memory: Backbone, tmp_path: Path) -> None:
    running, most, go = 0, 0, asyncio.Event()

    async def slow(request: ServerRequest) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        await request.respond(200)

    async with H2App() as app, gateway(memory, tmp_path, **on(app, app_max_concurrency=2)) as node:
        app.answers["/slow"] = slow
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(node.post(f"{INVOKE}/slow", b"")) for _ in range(6)]
            await app.until("/slow", 2)
            go.set()
    assert most == 2
    assert {call.result().status for call in calls} == {200}
