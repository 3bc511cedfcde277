"""Streams through invocation: events flushed one by one, large bodies, and both sides breaking off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from tests.http.harness import App, Backbone, Node, gateway
from tests.support.eventually import eventually
from tests.support.mesh import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")
INVOKE = "/v1.0/invoke/callee/method"
HUNDRED_MEGABYTES = 100 * 1024 * 1024
PART = b"x" * 256 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[App, dict[str, Node]]]:
    backbone, home = Backbone(nats_url), tmp_path_factory.mktemp("home")
    async with (
        App() as app,
        gateway(backbone, home, app=app, app_id="callee") as callee,
        gateway(backbone, home, app_id="caller", allowed_origins=("*",)) as caller,
    ):
        yield app, {"remote": caller, "local": callee}


@pytest.fixture
def app(nodes: tuple[App, dict[str, Node]]) -> App:
    return nodes[0]


@pytest.fixture(params=["remote", "local"])
def node(request: pytest.FixtureRequest, nodes: tuple[App, dict[str, Node]]) -> Node:
    return nodes[1][request.param]


async def test_events_are_flushed(app: App, node: Node) -> None:
    """Each event of a stream arrives before the next is sent, with the application's headers."""
    go_on = asyncio.Event()

    async def events(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        for number in range(3):
            await response.write(b"data: %d\n\n" % number)
            await go_on.wait()
            go_on.clear()
        return response

    app.streams["/sse"] = events
    async with node.open("GET", f"{INVOKE}/sse", {"Accept": "text/event-stream"}) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-cache"
        assert "Content-Length" not in response.headers
        for number in range(3):
            assert await response.content.readany() == b"data: %d\n\n" % number
            go_on.set()
        assert await response.content.readany() == b""


async def test_cors_of_a_stream(app: App, nodes: tuple[App, dict[str, Node]]) -> None:
    """A streamed answer tells the browser as any other does."""

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        return response

    app.streams["/cors"] = stream
    reply = await nodes[1]["remote"].get(f"{INVOKE}/cors", Origin="http://page")
    assert reply.headers["access-control-allow-origin"] == "*"


async def test_both_directions_at_once(app: App, node: Node) -> None:
    """What the caller sends arrives while it is sent, and is answered before it has ended."""

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for part in request.content.iter_any():
            await response.write(part.upper())
        return response

    app.streams["/echo"] = echo
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        assert await heard.get() == b"ONE"
        yield b"two"
        assert await heard.get() == b"TWO"

    async with node.open("POST", f"{INVOKE}/echo", None, body()) as response:
        for expected in (b"ONE", b"TWO"):
            part = await response.content.readany()
            assert part == expected
            heard.put_nowait(part)
        assert await response.content.read() == b""


async def test_a_caller_that_leaves_ends_the_call(app: App, node: Node) -> None:
    """The application sees its connection closed in the middle of its answer."""
    ended = asyncio.Event()

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 1000)
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    app.streams["/endless"] = endless
    async with node.open("GET", f"{INVOKE}/endless") as response:
        assert await response.content.readany()
        response.close()
    async with asyncio.timeout(30):
        await ended.wait()


@pytest.mark.parametrize("body", ["none", "whole", "endless"])
@pytest.mark.parametrize("target", [INVOKE, "/v1.0/invoke/http://127.0.0.1:{port}/method"], ids=["application", "URL"])
async def test_a_caller_that_leaves_before_the_answer(app: App, node: Node, target: str, body: str) -> None:
    """The application's connection is closed as soon as nobody waits any more, long before the deadline."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return web.Response()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    app.streams["/wait"] = slow
    given = {"none": None, "whole": b"x", "endless": endless()}[body]
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
        calling = tasks.create_task(node.request("POST", f"{target.format(port=app.port)}/wait", None, given))
        await begun.wait()
        calling.cancel()
        await ended.wait()


@pytest.mark.parametrize("with_length", [True, False])
async def test_an_application_that_dies_breaks_the_body(app: App, node: Node, with_length: bool) -> None:
    """Half an answer never looks like a whole one."""

    async def dies(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000000"} if with_length else None)
        await response.prepare(request)
        await response.write(b"x" * 400_000)
        assert request.transport is not None
        request.transport.close()
        return response

    app.streams["/dies"] = dies
    with pytest.raises(aiohttp.ClientPayloadError):
        await node.get(f"{INVOKE}/dies")
    assert (await node.get(f"{INVOKE}/after")).status == 200


async def test_an_upload_that_breaks_off(app: App, node: Node) -> None:
    """The application never takes half a request for a whole one."""
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    begun = asyncio.Event()

    async def take(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        try:
            await request.content.read()
            seen.set_result("whole")
        except BaseException as error:
            seen.set_result(type(error).__name__)
            raise
        return web.Response()

    app.streams["/take"] = take
    _, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    writer.write(f"POST {INVOKE}/take HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".encode())
    async with asyncio.timeout(30):
        await begun.wait()
        writer.transport.abort()
        assert await seen != "whole"


async def test_an_early_answer_to_a_large_upload(app: App, node: Node) -> None:
    """The caller gets the application's refusal without having sent everything."""

    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=413, body=b"no")

    app.streams["/refuse"] = refuse
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += len(PART)
            yield PART

    async with node.open("POST", f"{INVOKE}/refuse", None, body()) as response:
        assert response.status == 413
        assert await response.content.readany() == b"no"
    assert sent < HUNDRED_MEGABYTES


async def test_a_slow_reader_holds_the_application_back(app: App, node: Node) -> None:
    """What nobody reads is not produced."""
    written = 0

    async def produce(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(PART)
            written += len(PART)

    app.streams["/produce"] = produce
    async with node.open("GET", f"{INVOKE}/produce") as response:
        assert await response.content.readany()
        seen: list[int] = []

        def steady() -> None:
            seen.append(written)
            assert len(seen) > 20
            assert len(set(seen[-20:])) == 1

        await eventually(steady)
        response.close()
    assert written < 40 * 1024 * 1024


@pytest.mark.costly
async def test_hundred_megabytes_in_bounded_memory(nats: Backbone, tmp_path: Path) -> None:
    """Both directions, through two gateways of their own processes."""

    async def take(request: web.BaseRequest) -> web.StreamResponse:
        size = 0
        async for part in request.content.iter_any():
            size += len(part)
        return web.Response(body=str(size).encode())

    async def give(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(HUNDRED_MEGABYTES)})
        await response.prepare(request)
        for _ in range(HUNDRED_MEGABYTES // len(PART)):
            await response.write(PART)
        return response

    async def body() -> AsyncIterator[bytes]:
        for _ in range(HUNDRED_MEGABYTES // len(PART)):
            yield PART

    async with App() as app:
        app.streams |= {"/take": take, "/give": give}
        environ = {"NAMESPACE": nats.namespace}
        async with (
            GatewayProcess("callee", tmp_path, app=app.port, backbone=nats.url, environ=environ) as callee,
            GatewayProcess("caller", tmp_path, backbone=nats.url, environ=environ) as caller,
            aiohttp.ClientSession() as session,
        ):
            processes = [psutil.Process(each.pid) for each in (callee, caller)]
            before = [process.memory_info().rss for process in processes]
            most = list(before)

            def sample() -> None:
                for index, process in enumerate(processes):
                    most[index] = max(most[index], process.memory_info().rss)

            url = f"{caller.url}{INVOKE}"
            async with session.post(f"{url}/take", data=body()) as response:
                sample()
                assert await response.text() == str(HUNDRED_MEGABYTES)
            size = 0
            async with session.get(f"{url}/give") as response:
                assert response.headers["Content-Length"] == str(HUNDRED_MEGABYTES)
                async for part in response.content.iter_chunked(1024 * 1024):
                    size += len(part)
                    sample()
            assert size == HUNDRED_MEGABYTES
    grown = [(now - then) // 2**20 for now, then in zip(most, before, strict=True)]
    assert max(grown) < 40, f"grew by {grown} MiB"
