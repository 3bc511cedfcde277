"""The client of HTTP/2, against the server beside it: streams both ways, and calls that end before their time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpunk.exceptions import HTTPunkError
from httpunk.h2.server import ServerRequest

from gateway.http.client import BusyError, ConnectError, NotSpokenError, ResponseError
from gateway.http2 import client as client_module
from gateway.http2 import server as server_module
from gateway.http2.client import HTTP2Client
from gateway.http2.server import PREFACE_BYTES, HTTP2Connections
from mesh.errors import BadArgumentError
from tests.support.eventually import PATIENCE, eventually
from tests.support.processes import free_port

Answer = Callable[[ServerRequest], Awaitable[None]]
WINDOW = 4 * 1024 * 1024  # More than either side gives.


class _Counted(HTTP2Connections):
    count = 0

    def add(self, connection: Any) -> None:
        self.count += 1
        super().add(connection)

    def discard(self, connection: Any) -> None:
        self.count -= 1
        super().discard(connection)


class Server:
    """Answers as told."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.port = free_port()
        self.failed: list[Exception] = []
        self.connections: _Counted

    async def _handle(self, request: ServerRequest, _peer: object) -> None:
        try:
            await self.answer(request)
        except HTTPunkError as error:
            self.failed.append(error)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.connections = connections = _Counted(self._handle, 16 * 1024)
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(connections, "127.0.0.1", self.port)
        try:
            yield
        finally:
            listening.close()
            await connections.drain(0)


@asynccontextmanager
async def pair(answer: Answer) -> AsyncIterator[tuple[HTTP2Client, Server]]:
    server = Server(answer)
    async with asyncio.timeout(PATIENCE), HTTP2Client("127.0.0.1", server.port) as client, server.running():
        yield client, server


async def echo(request: ServerRequest) -> None:
    sending = await request.send_response(
        207, headers=[("x-path", request.path or ""), ("x-a", request.headers["x-a"])]
    )
    async for part in request.aiter_bytes():
        await sending.send_data(part)
    await sending.send_trailers([("x-end", "1")])


async def streamed(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("body", [b"", b"whole", b"x" * WINDOW], ids=["none", "whole", "large"])
@pytest.mark.parametrize("streams", [False, True])
async def test_bodies_and_fields(body: bytes, streams: bool) -> None:
    """What is sent comes back, with what stands behind it; fields of HTTP/1.1 stay here."""
    headers = [("X-A", "ü"), ("Host", "elsewhere"), ("Connection", "close"), ("TE", "gzip")]
    async with pair(echo) as (client, server):
        sent = streamed(body[: len(body) // 2], body[len(body) // 2 :]) if streams else body
        async with client.call("POST", "/p?q=%20", headers, sent) as response:
            assert response.status == 207
            fields = dict(response.headers)
            assert (fields["x-path"], fields["x-a"]) == ("/p?q=%20", "ü")
            assert await response.read_up_to(10) in (None, body)  # Its length is not known; all may be here already.
            assert b"".join([part async for part in response.parts()]) == body
            assert response.trailers == [("x-end", "1")]
        assert server.failed == []


async def test_both_sides_at_once() -> None:
    """Each part is sent once the one before has come back."""
    back: asyncio.Queue[None] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        for number in range(5):
            yield b"%d" % number
            await back.get()

    async with pair(echo) as (client, _), client.call("POST", "/", [("x-a", "")], body()) as response:
        got = []
        async for part in response.parts():
            got.append(part)
            back.put_nowait(None)
    assert got == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_call_that_is_cancelled() -> None:
    """The server hears of it, before the answer has begun and after."""
    begun, gone = asyncio.Event(), asyncio.Event()

    async def wait(request: ServerRequest) -> None:
        if request.path == "/begins":
            await request.send_response(200)
        begun.set()
        await request.reset_received()
        gone.set()

    async with pair(wait) as (client, _):

        async def call(path: str) -> None:
            async with client.call("POST", path, [], b"x") as response:
                async for _part in response.parts():
                    pass

        for path in ("/waits", "/begins"):
            begun.clear()
            gone.clear()
            task = asyncio.ensure_future(call(path))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()


@pytest.mark.parametrize("after", range(12))
async def test_a_call_that_is_cancelled_while_it_connects(after: int) -> None:
    """Wherever that strikes, nothing is left of the connection: a task that nobody ends fails the test."""
    async with pair(echo) as (client, _):
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(client.connect())
            for _ in range(after):
                await asyncio.sleep(0)
            connecting.cancel()
        del connecting
    gc.collect()


async def test_an_upload_that_fails() -> None:
    """It ends its own call, and no other."""

    async def read(request: ServerRequest) -> None:
        await request.read()
        await request.respond(200)

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("of the body")

    async with pair(read) as (client, server):
        with pytest.raises(ResponseError):
            async with client.call("POST", "/", [], body()):
                pass
        async with client.call("POST", "/", [], b"a") as response:
            assert response.status == 200
        assert len(server.failed) == 1


async def test_an_answer_before_the_upload_ends() -> None:
    """The rest is not sent, and what sent it ends."""
    ended = asyncio.Event()

    async def refuse(request: ServerRequest) -> None:
        await request.respond(413, headers=[("content-length", "2")], body=b"no")

    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            ended.set()

    async with pair(refuse) as (client, _):
        async with client.call("POST", "/", [], body()) as response:
            assert (response.status, await response.read_up_to(10)) == (413, b"no")
        await ended.wait()


async def test_who_reads_nothing_is_sent_a_window_at_most() -> None:
    """On both sides."""
    release = asyncio.Event()
    sent = {"there": 0, "back": 0}

    async def flood(request: ServerRequest) -> None:
        sending = await request.send_response(200)
        while not release.is_set():
            await sending.send_data(b"x" * 65536)
            sent["back"] += 65536
        await sending.send_data(b"", end_stream=True)

    async def body() -> AsyncIterator[bytes]:
        while not release.is_set():
            yield b"x" * 65536
            sent["there"] += 65536

    async with pair(flood) as (client, _), client.call("POST", "/", [], body()) as response:
        before = {"there": -1}
        while sent != before or 0 in sent.values():  # Until nothing moves any more.
            before = dict(sent)
            await asyncio.sleep(0.1)
        assert all(0 < size < WINDOW for size in sent.values()), sent
        release.set()
        async for _part in response.parts():
            pass


async def test_a_server_that_restarts() -> None:
    """The next call opens another connection; while there is none, nothing was sent."""

    async def say(request: ServerRequest) -> None:
        await request.respond(204)

    server = Server(say)
    async with asyncio.timeout(PATIENCE), HTTP2Client("127.0.0.1", server.port) as client:
        for _ in range(2):
            async with server.running(), client.call("GET", "/", [], b"") as response:
                assert response.status == 204
            with pytest.raises(ConnectError):
                async with client.call("GET", "/", [], b""):
                    pass


async def test_what_is_no_http2() -> None:
    """The connection does not stay open."""
    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()
        closed.set()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listening, HTTP2Client("127.0.0.1", listening.sockets[0].getsockname()[1]) as client:
        with pytest.raises(ConnectError):
            async with client.call("GET", "/", [], b""):
                pass
        await closed.wait()


@pytest.mark.parametrize("behind", [False, True])
async def test_large_fields(behind: bool) -> None:
    """They are all there up to 256 KiB, before a body and behind it; more fail the call, and the next one works."""

    async def answer(request: ServerRequest) -> None:
        large = [("x-large", b"x" * int(request.headers["x-size"])), ("x-last", b"1")]
        await request.respond(200, headers=[] if behind else large, body=b"body", trailers=large if behind else None)

    async def fields(client: HTTP2Client, size: int) -> dict[str, str]:
        async with client.call("GET", "/", [("x-size", str(size))], b"") as response:
            assert b"".join([part async for part in response.parts()]) == b"body"
            return dict([*response.headers, *response.trailers])

    async with pair(answer) as (client, _):
        for size, error in ((300_000, "larger than 262144 bytes"), (3_000_000, "connection")):
            with pytest.raises(ResponseError, match=error):
                await fields(client, size)
            assert (await fields(client, 200_000))["x-last"] == "1"


async def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that wait for one attempt to connect are told of its failure: none waits for another attempt."""
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.1)
    attempts = 0

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with listening, HTTP2Client("127.0.0.1", listening.sockets[0].getsockname()[1]) as client:

        async def call() -> None:
            with pytest.raises(NotSpokenError, match=r"no connection of HTTP/2 within 0.1 s"):
                async with client.call("GET", "/", [], b""):
                    pass

        for each in (1, 2):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(20):
                    tasks.create_task(call())
            assert attempts == each


async def test_a_connection_that_breaks_before_a_call_has_its_turn() -> None:
    """Of what waited nothing was sent; what was sent may have run."""

    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)) + bytes((0, 3, 0, 0, 0, 1)))  # SETTINGS: one stream at a time.
        await reader.readexactly(PREFACE_BYTES)
        head = b""
        while head[3:4] != b"\1":  # HEADERS.
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
        writer.write(bytes((0, 0, 1, 0, 0, 0, 0, 0, 0, 0)))  # DATA of no stream.
        await reader.read()
        writer.close()
        closed.set()

    async def error_of(client: HTTP2Client, target: str) -> Exception | None:
        try:
            async with client.call("GET", target, [], b""):
                return None
        except (ConnectError, ResponseError) as error:
            return error

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, asyncio.timeout(PATIENCE):
        async with HTTP2Client("127.0.0.1", port) as client, asyncio.TaskGroup() as tasks:
            await client.connect()
            first = tasks.create_task(error_of(client, "/first"))
            second = tasks.create_task(error_of(client, "/second"))
            listening.close()
        await closed.wait()
    assert (type(first.result()), type(second.result())) == (ResponseError, ConnectError)


async def test_what_cannot_be_sent() -> None:
    async with pair(echo) as (client, _):
        with pytest.raises(ResponseError):
            async with client.call("G T", "/", [], b""):
                pass
        for field in (("x", "a\nb"), ("transfer-encoding ", "chunked"), ("x", "\ud800"), ("content-length", "-1")):
            with pytest.raises(BadArgumentError):
                async with client.call("GET", "/", [field], streamed()):
                    pass


@pytest.mark.parametrize("parts", [(b"123",), (b"123", b"456")], ids=["shorter", "longer"])
async def test_a_body_is_held_to_its_length(parts: tuple[bytes, ...]) -> None:
    async with pair(echo) as (client, _):
        with pytest.raises(ResponseError):
            async with client.call("POST", "/", [("Content-Length", "5"), ("x-a", "")], streamed(*parts)) as response:
                async for _part in response.parts():
                    pass


class Held:
    """Calls that stay open until they are told to end."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Semaphore(0)

    async def answer(self, request: ServerRequest) -> None:
        if request.path == "/quick":
            await request.respond(204)
            return
        self.begun += 1
        await self.go.acquire()
        await request.respond(200)

    async def until_begun(self, count: int) -> None:
        def check() -> None:
            assert self.begun == count

        await eventually(check)


async def call(client: HTTP2Client, target: str) -> int:
    async with client.call("GET", target, [], b"") as response:
        return response.status


async def test_a_full_connection_holds_up_no_other_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are further connections while all are full, and no more than needed afterwards."""
    monkeypatch.setattr(server_module, "MAX_STREAMS", 2)
    monkeypatch.setattr(client_module, "IDLE_SECONDS", 0.1)
    held = Held()
    async with pair(held.answer) as (client, server), asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(call(client, "/held")) for _ in range(7)]
        await held.until_begun(7)
        assert await call(client, "/quick") == 204
        assert server.connections.count == 4
        held.go.release()
        for _ in calls[1:]:
            held.go.release()
        assert {await each for each in calls} == {200}

        def one_is_left() -> None:
            assert server.connections.count == 1

        await eventually(one_is_left)
        assert await call(client, "/quick") == 204
        assert server.connections.count == 1


async def test_all_connections_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits for room in its turn, and not for ever; what it waited for is said."""
    monkeypatch.setattr(server_module, "MAX_STREAMS", 1)
    monkeypatch.setattr(client_module, "MAX_CONNECTIONS", 3)
    held = Held()
    async with pair(held.answer) as (client, server), asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(call(client, "/held")) for _ in range(3)]
        await held.until_begun(3)
        with monkeypatch.context() as short:
            short.setattr(client_module, "ROOM_SECONDS", 0.05)
            with pytest.raises(BusyError, match=r"no more calls at once: 3 connections are full, for 0.05 s"):
                await call(client, "/quick")
        calls += [tasks.create_task(call(client, "/held")) for _ in range(9)]
        given_up = tasks.create_task(call(client, "/held"))
        await asyncio.sleep(0)
        given_up.cancel()
        for count in range(4, 13):
            held.go.release()
            await held.until_begun(count)
        for _ in range(3):
            held.go.release()
        assert [await each for each in calls] == [200] * 12
        assert (held.begun, server.connections.count) == (12, 3)


async def test_calls_that_wait_while_the_server_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told, or reach the one that comes; none waits for a connection that is no more."""
    monkeypatch.setattr(server_module, "MAX_STREAMS", 1)
    monkeypatch.setattr(client_module, "MAX_CONNECTIONS", 1)
    held = Held()
    server = Server(held.answer)
    async with asyncio.timeout(PATIENCE), HTTP2Client("127.0.0.1", server.port) as client:
        async with server.running(), asyncio.TaskGroup() as tasks:
            broken = tasks.create_task(outcome(client, "/held"))
            await held.until_begun(1)
            waiting = [tasks.create_task(outcome(client, "/quick")) for _ in range(5)]
            await asyncio.sleep(0)
            tasks.create_task(server.connections.drain(0))
        assert isinstance(await broken, ResponseError)
        outcomes = [await each for each in waiting]
        # One that was sent as the connection ended cannot know whether it ran, and is told just that.
        assert all(each == 204 or isinstance(each, (ConnectError, ResponseError)) for each in outcomes), outcomes
        async with server.running():
            assert await call(client, "/quick") == 204


async def outcome(client: HTTP2Client, target: str) -> int | Exception:
    try:
        return await call(client, target)
    except (ConnectError, ResponseError) as error:
        return error
