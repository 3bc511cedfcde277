"""The gateway's side of its application: is it there, how many calls at once, what every call carries."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from gateway.config import HealthCheck
from gateway.http.application import ANSWER_LIMIT_BYTES, HTTPApplication, outside_service
from mesh.errors import AppFailedError, AppUnreachableError, BadArgumentError
from tests.http.harness import App
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.processes import free_port

HEALTH = HealthCheck(path="/hz", interval=0.02, timeout=2.0, threshold=2)


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with App() as app:
        yield app


def at(app: App, **settings: object) -> HTTPApplication:
    return HTTPApplication(f"http://127.0.0.1:{app.port}", **settings)  # type: ignore[arg-type]


async def test_post_and_get(app: App) -> None:
    """Status and body of small answers; headers as they are."""
    app.answer("/p", 207, b"done")
    async with at(app) as application:
        assert await application.post("/p?q=%20", [("X-A", "1"), ("X-A", "2")], b"body") == (207, b"done")
        assert await application.get("/p", [("dapr-app-id", "app")]) == (207, b"done")
    posted, got = app.at("/p")
    assert (posted.method, posted.target, posted.body, posted.all("x-a")) == ("POST", "/p?q=%20", b"body", ["1", "2"])
    assert (got.method, got.body, got.headers["dapr-app-id"]) == ("GET", b"", "app")


async def test_a_base_path(app: App) -> None:
    """It stands before every target."""
    async with HTTPApplication(f"http://127.0.0.1:{app.port}/base/") as application:
        await application.get("/x", [])
    assert app.got[0].target == "/base/x"


async def test_fixed_headers_replace_the_caller_s(app: App) -> None:
    """Whatever the case of their names."""
    async with at(app, token="secret", headers=[("X-Fixed", "f")]) as application:
        await application.post("/p", [("x-FIXED", "mine"), ("Dapr-Api-Token", "theirs"), ("X-Other", "o")], b"")
    got = app.at("/p")[0]
    assert (got.all("x-fixed"), got.all("dapr-api-token"), got.all("x-other")) == (["f"], ["secret"], ["o"])


async def test_an_answer_that_is_too_long_counts_as_none(app: App) -> None:
    """Whether its length was said or not."""

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(40):
            await response.write(b"x" * 64 * 1024)
        return response

    async def long_enough(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a" * 100_000)
        await response.write(b"b")
        return response

    app.streams |= {"/endless": endless, "/chunked": long_enough}
    app.answer("/long", 200, b"x" * (ANSWER_LIMIT_BYTES + 1))
    async with at(app) as application:
        assert await application.post("/endless", [], b"") == (200, b"")
        assert await application.post("/long", [], b"") == (200, b"")
        assert await application.post("/chunked", [], b"") == (200, b"a" * 100_000 + b"b")


async def test_name_that_cannot_be_looked_up() -> None:
    """No exception of the resolver's gets out; somebody asks for such an address in the path of a call."""
    async with HTTPApplication("http://a..b") as application:
        with pytest.raises(AppUnreachableError, match="does not accept connections"):
            await application.get("/", [])


async def test_nobody_listens() -> None:
    """Nothing reached it, and it is known to be away."""
    async with HTTPApplication(f"http://127.0.0.1:{free_port()}") as application:
        with pytest.raises(AppUnreachableError, match="does not accept connections"):
            await application.get("/", [])
        assert not application.reachable
        await application.until_unreachable()


async def test_an_application_that_breaks_off(app: App) -> None:
    """It may have run."""

    async def broken(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"x")
        assert request.transport is not None
        request.transport.close()
        return response

    app.streams |= {"/broken": broken, "/half": half}
    async with at(app) as application:
        for path in ("/broken", "/half"):
            with pytest.raises(AppFailedError, match="the application broke off"):
                await application.post(path, [], b"x")
        with pytest.raises(AppFailedError):
            await application.get("/a b", [])
        with pytest.raises(BadArgumentError):
            await application.get("/", [("X", "a\r\nb")])


async def test_it_is_watched(app: App) -> None:
    """An open port is enough; a refused call makes it look again."""
    async with at(app) as application:
        application.watch()
        async with asyncio.timeout(5):
            await application.until_reachable()
            await app.stop()
            with pytest.raises((AppUnreachableError, AppFailedError)):
                while True:
                    await application.get("/", [])
            with pytest.raises(AppUnreachableError):
                await application.get("/", [])
            await application.until_unreachable()
            await app.start()
            await application.until_reachable()


async def test_a_port_that_opens_to_nothing() -> None:
    """An application that speaks no TLS, as its port is tried again and again, but not without a pause."""
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, HTTPApplication(f"https://127.0.0.1:{port}") as application:
        application.watch()
        calls = 0
        try:
            async with asyncio.timeout(1.0):
                while True:
                    await application.until_reachable()
                    with pytest.raises(AppUnreachableError):
                        await application.get("/", [])
                    calls += 1
        except TimeoutError:
            pass
    assert 1 <= calls <= 10
    assert connections <= 25


async def test_health(app: App) -> None:
    """Unhealthy at first; so many failures in a row make it so again, and then it is not called."""
    statuses = [503, 200, 500, 200, 500, 500, 204]
    now = [503]
    app.answers["/hz"] = lambda got, request: web.Response(status=now[0])
    async with at(app, health=HEALTH, token="secret") as application:
        with pytest.raises(AppUnreachableError, match="not in a healthy state"):
            await application.get("/", [])
        application.watch()
        for status in statuses:
            now[0] = status
            count = len(app.at("/hz"))
            await app.until("/hz", count + (1 if status in (200, 204) else 3))
            if status in (200, 204):
                await eventually(lambda: _is(application.reachable))
            elif status == 503:
                assert not application.reachable
        assert await application.get("/x", []) == (200, b"")
    assert all("dapr-api-token" not in probe.headers for probe in app.at("/hz"))


def _is(true: bool) -> None:
    assert true


@pytest.mark.parametrize("answer", ["hangs", "redirects"])
async def test_unhealthy_answers(app: App, answer: str) -> None:
    """Silence and redirects are no health."""

    asked = 0

    async def probed(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if answer == "hangs":
            await asyncio.sleep(30)
        return web.Response(status=302, headers={"Location": "/fine"})

    app.streams["/hz"] = probed
    async with at(app, health=HealthCheck(path="/hz", interval=0.02, timeout=0.02)) as application:
        application.watch()
        await eventually(lambda: _is(asked >= 3))
        assert not application.reachable
        assert not app.at("/fine")


async def test_concurrency_is_limited(app: App) -> None:
    """A call that waits for its turn is not sent; one that is cancelled gives its turn back."""
    running, most = 0, 0

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.02)
        finally:
            running -= 1
        return web.Response()

    app.streams["/slow"] = slow
    async with at(app, permits=asyncio.Semaphore(2)) as application, asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(application.get("/slow", [])) for _ in range(8)]
        await asyncio.sleep(0)
        calls[0].cancel()
        calls[7].cancel()
    assert most == 2
    assert [call.result() for call in calls[1:7]] == [(200, b"")] * 6


def test_outside_services_share_one_trust(tmp_path: Path) -> None:
    """The machine's authorities are read once in a process, and not in the loop, and hold for a call."""
    authority = Authority(tmp_path)
    proof = authority.issue("server")
    script = """
import asyncio, gc, ssl, sys
from contextlib import AsyncExitStack
from gateway.http.application import outside_service

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi")

async def main():
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(*sys.argv[1:])
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=ours)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    turns = []
    def turn():
        turns.append(1)
        loop.call_later(0, turn)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        loop.call_soon(turn)
        async with asyncio.TaskGroup() as tasks:
            entering = [tasks.create_task(stack.enter_async_context(outside_service(url))) for _ in range(20)]
        services = [each.result() for each in entering]
        assert len(turns) > 1, "the loop stood still"
        assert [await each.get("/", []) for each in services] == [(200, b"hi")] * 20
        print(sum(isinstance(each, ssl.SSLContext) for each in gc.get_objects()))

asyncio.run(main())
"""
    environment = {**os.environ, "SSL_CERT_FILE": str(authority.path)}
    words = [sys.executable, "-c", script, str(proof.certificate), str(proof.key)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr  # The server's, and ours.


@pytest.mark.parametrize("url", ["http://[", "http://h:99999999", "http://h:x"])
def test_outside_services_that_are_no_url(url: str) -> None:
    """They are refused."""
    with pytest.raises(BadArgumentError):
        outside_service(url)
