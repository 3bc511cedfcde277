"""The HTTP API over HTTP/2 without TLS, on the port of HTTP/1.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from aiohttp import web
from httpunk.h2.server import ServerConnection, ServerRequest

from gateway.config import Tokens
from gateway.http.client import ConnectError, HTTPClient, ResponseError
from gateway.http.response import Response
from gateway.http.server import Handler, HTTPServer
from gateway.http2.answering import Answering
from gateway.http2.client import HTTP2Client
from gateway.http2.fields import Frames
from gateway.http2.server import PREFACE_BYTES, HTTP2Connections
from tests.http.harness import App, Backbone, Got, Node, Reply, gateway
from tests.support.eventually import PATIENCE, eventually
from tests.support.h2frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    OPENING,
    PREFACE,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
    asking,
    frame,
    section,
    spoken,
)
from tests.support.mesh import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

STATE = "/v1.0/state/statestore"
CALL = "/v1.0/invoke/app/method"
OF_HTTP_1 = ("connection", "transfer-encoding")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app() -> AsyncIterator[App]:
    async with App() as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(app: App, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    home = tmp_path_factory.mktemp("home")
    async with gateway(Backbone("memory:"), home, app=app, allowed_origins=("http://a.example",)) as node:
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def client(node: Node) -> AsyncIterator[HTTP2Client]:
    async with HTTP2Client("127.0.0.1", node.gateway.port) as client:
        yield client


async def ask(
    client: HTTP2Client,
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | AsyncIterator[bytes] = b"",
    within: float = PATIENCE,
) -> Reply:
    async with asyncio.timeout(within), client.call(method, target, headers, body) as answer:
        return Reply(answer.status, list(answer.headers), b"".join([part async for part in answer.parts()]))


def told(reply: Reply) -> list[tuple[str, str]]:
    fields = ((name.lower(), value) for name, value in reply.fields if name.lower() not in OF_HTTP_1)
    return sorted((name, "" if name in ("date", "traceparent") else value) for name, value in fields)


async def streamed(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    for number in range(300):
        await response.write(b"%d" % number * 1000)
    return response


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        pytest.param(204, ("GET", "/v1.0/healthz"), id="health"),
        pytest.param(200, ("GET", "/v1.0/metadata"), id="metadata"),
        pytest.param(204, ("POST", STATE, [], b'[{"key":"a","value":[1]}]'), id="write"),
        pytest.param(200, ("GET", f"{STATE}/a"), id="read"),
        pytest.param(204, ("GET", f"{STATE}/none"), id="nothing there"),
        pytest.param(204, ("POST", "/v1.0/publish/pubsub/topic", [], b"hello"), id="publish"),
        pytest.param(204, ("POST", "/v1.0/publish/pubsub/topic"), id="publish nothing"),
        pytest.param(400, ("POST", STATE, [], b"[{]"), id="no JSON"),
        pytest.param(413, ("POST", STATE, [], b" " * (5 * 2**20)), id="large body"),
        pytest.param(404, ("GET", "/unknown?a=b"), id="unknown path"),
        pytest.param(404, ("HEAD", "/unknown"), id="HEAD of a failure"),
        pytest.param(400, ("GET", f"{STATE}/%zz"), id="broken escape"),
        pytest.param(404, ("GET", "//v1.0/./nothing/../x"), id="path to clean"),
        pytest.param(200, ("GET", f"{CALL}/whole?a=%20b"), id="call"),
        pytest.param(200, ("POST", f"{CALL}/whole", [("Content-Type", "a/b")], b"body"), id="call with a body"),
        pytest.param(200, ("POST", f"{CALL}/whole", [], b"body" * 100_000), id="call with a large body"),
        pytest.param(200, ("HEAD", f"{CALL}/whole"), id="HEAD of a call"),
        pytest.param(200, ("GET", f"{CALL}/streamed"), id="streamed answer"),
        pytest.param(200, ("HEAD", f"{CALL}/streamed"), id="HEAD of a streamed answer"),
        pytest.param(204, ("GET", f"{CALL}/204"), id="204"),
        pytest.param(304, ("GET", f"{CALL}/304"), id="304"),
        pytest.param(418, ("GET", f"{CALL}/418"), id="any status"),
        pytest.param(200, ("GET", "/whole", [("dapr-app-id", "app")]), id="call by header"),
        pytest.param(500, ("GET", "/v1.0/invoke/nobody/method/x"), id="call of nobody"),
        pytest.param(
            204,
            ("OPTIONS", STATE, [("Origin", "http://a.example"), ("Access-Control-Request-Method", "GET")]),
            id="preflight",
        ),
        pytest.param(200, ("GET", f"{STATE}/a", [("Origin", "http://a.example")]), id="CORS"),
        pytest.param(200, ("GET", f"{CALL}/streamed", [("Origin", "http://a.example")]), id="CORS of a stream"),
    ],
)
async def test_answers_are_those_of_http_1(
    node: Node, client: HTTP2Client, app: App, status: int, request_: tuple[Any, ...]
) -> None:
    app.answer("/whole", 200, b"answer", X_Own="1")
    app.streams["/streamed"] = streamed
    for number in (204, 304, 418):
        app.answer(f"/{number}", number)
    await ask(client, "POST", STATE, [], b'[{"key":"a","value":[1]}]')  # So that both find the same.
    first, second = await node.request(*request_), await ask(client, *request_)
    assert (first.status, second.status) == (status, status), second
    assert second.body == first.body
    assert told(second) == told(first)


async def test_an_application_is_asked_the_same(node: Node, client: HTTP2Client, app: App) -> None:
    """Also what HTTP/2 has in other places: the host, and cookies that come one by one."""
    port = node.gateway.port
    await node.request("GET", f"{CALL}/seen?q=1", {"Cookie": "a=1; b=2", "X-Own": "ü"})
    await ask(client, "GET", f"{CALL}/seen?q=1", [("Cookie", "a=1"), ("Cookie", "b=2"), ("X-Own", "ü")])
    await node.request("POST", f"{CALL}/seen", {}, b"body")
    await ask(client, "POST", f"{CALL}/seen", [("Content-Length", "4")], b"body")
    got, own, posted, own_posted = app.at("/seen")

    def of(request: Got) -> dict[str, str]:
        return {name: value for name, value in request.headers.items() if name != "traceparent"}

    assert (own.target, own.body, of(own)) == (got.target, b"", of(got))
    assert own.headers["cookie"] == "a=1; b=2"
    assert own.headers["x-forwarded-host"] == f"127.0.0.1:{port}"
    assert (own_posted.body, of(own_posted)) == (b"body", of(posted))


async def test_streams_pass_part_by_part(client: HTTP2Client, app: App) -> None:
    """A part of the request reaches the application, and its answer the client, before the next part is there."""

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for part in request.content.iter_any():
            await response.write(b"data: " + part + b"\n\n")
        return response

    app.streams["/echo"] = echo
    parts: asyncio.Queue[bytes] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        while part := await parts.get():
            yield part

    async with asyncio.timeout(PATIENCE), client.call("POST", f"{CALL}/echo", [], body()) as answer:
        received = answer.parts()
        for number in range(3):
            parts.put_nowait(b"%d" % number)
            assert await anext(received) == b"data: %d\n\n" % number
        parts.put_nowait(b"")
        assert b"".join([part async for part in received]) == b""


async def test_a_client_that_gives_up_ends_its_own_call_alone(node: Node, client: HTTP2Client, app: App) -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()
    ended: asyncio.Queue[str] = asyncio.Queue()
    go = asyncio.Event()

    async def held(request: web.BaseRequest) -> web.StreamResponse:
        begun.put_nowait(request.raw_path)
        try:
            await go.wait()
        except asyncio.CancelledError:
            ended.put_nowait(request.raw_path)
            raise
        return web.Response(text="done")

    app.streams["/held"] = app.streams["/given-up"] = held
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        kept = tasks.create_task(ask(client, "GET", f"{CALL}/held"))
        assert await begun.get() == "/held"
        dropped = tasks.create_task(ask(client, "GET", f"{CALL}/given-up"))
        assert await begun.get() == "/given-up"
        dropped.cancel()
        assert await ended.get() == "/given-up"
        _, gone = await asyncio.open_connection("127.0.0.1", node.gateway.port)
        gone.write(OPENING + asking(section(path=b"/v1.0/invoke/app/method/given-up")))
        assert await begun.get() == "/given-up"
        gone.close()
        assert await ended.get() == "/given-up"
        go.set()
        assert (await kept).body == b"done"


async def test_an_answer_that_breaks_off_does_so_visibly(client: HTTP2Client, app: App) -> None:
    async def breaking(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        assert request.transport is not None
        request.transport.abort()
        return response

    app.streams["/breaking"] = breaking
    with pytest.raises(ResponseError):
        await ask(client, "GET", f"{CALL}/breaking")
    assert (await ask(client, "GET", "/v1.0/healthz")).status == 204


async def test_fields_that_http_2_has_not_are_a_failure(client: HTTP2Client, app: App) -> None:
    app.answer("/odd", 200, b"", **{"X(odd)": "1"})
    assert (await ask(client, "GET", f"{CALL}/odd")).status == 500


async def test_many_requests_at_once(client: HTTP2Client) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask(client, "GET", "/v1.0/healthz", within=60.0)) for _ in range(2000)]
    assert {task.result().status for task in asked} == {204}


@pytest.mark.parametrize(
    ("block", "text"),
    [
        pytest.param(section(path=b"/v1.0/invoke/app/method/a b"), b"target", id="blank in the path"),
        pytest.param(section(path=b"/v1.0/invoke/app/method/a\r\nx: y"), b"target", id="line break in the path"),
        pytest.param(section(path="/ä".encode()), b"target", id="raw bytes in the path"),
        pytest.param(section(path=b"/a#b"), b"%23", id="fragment"),
        pytest.param(section(authority=b"a\r\nx: y"), b"authority", id="line break in the authority"),
        pytest.param(section(method=b"CONNECT"), b"CONNECT", id="tunnel"),
        pytest.param(section((b"a", b"x" * 17_000)), b"larger than 16384 bytes", id="large header"),
        pytest.param(section(*[(b"a", b"x" * 1000)] * 50), b"larger than 16384 bytes", id="many header fields"),
        pytest.param(section(method=b"M" * 17_000), b"larger than 16384 bytes", id="long verb"),
        pytest.param(section(*[(b"a", b"")] * 6000), b"larger than 16384 bytes", id="many empty header fields"),
    ],
)
async def test_requests_that_http_1_could_not_carry(node: Node, block: bytes, text: bytes) -> None:
    answer = await spoken(node.gateway.port, OPENING + asking(block), until=DATA)
    assert b'"errorCode":' in answer
    assert text in answer


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(OPENING + asking(section((b"a", b"x\r\ny: z"))), id="line break in a header"),
        pytest.param(OPENING + asking(section((b"A", b"x"))), id="capital in a header's name"),
        pytest.param(OPENING + asking(section(method=b"G T"))[:], id="blank in a verb"),
        pytest.param(PREFACE + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP/1.1 behind the preface"),
        pytest.param(OPENING + b"\xff" * 100, id="noise"),
        pytest.param(OPENING + asking(section((b"a", b"x" * 200_000))), id="huge header"),
        pytest.param(PREFACE + frame(SETTINGS) + asking(section((b"a", b"x" * 200_000))), id="huge header at once"),
    ],
)
async def test_nonsense_ends_the_connection_alone(node: Node, client: HTTP2Client, data: bytes) -> None:
    assert (await ask(client, "GET", "/v1.0/healthz")).status == 204
    answer = await spoken(node.gateway.port, data)
    assert b"\x89" not in answer, "nothing of it was answered with 204"
    assert (await ask(client, "GET", "/v1.0/healthz")).status == 204


async def test_incomplete_requests_are_reset(node: Node) -> None:
    for block in (section(path=b""), section((b"connection", b"close"))):
        assert frame(RESET, 0, 1, b"\0\0\0\1") in await spoken(node.gateway.port, OPENING + asking(block), until=RESET)


async def test_the_preface_may_come_in_pieces(node: Node) -> None:
    data = OPENING + asking(section())
    for at in (1, 3, 10, 23, 24, 30):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
        async with asyncio.timeout(PATIENCE):
            for piece in (data[:at], data[at:]):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            await reader.readuntil(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x89"))
        writer.close()


async def test_a_verb_that_begins_as_the_preface_does(node: Node) -> None:
    rest = b" /v1.0/publish/pubsub/t HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    for verb in (b"PUT", b"POST"):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
        writer.write(verb[:1])
        await writer.drain()
        writer.write(verb[1:] + rest)
        async with asyncio.timeout(PATIENCE):
            assert (await reader.read()).startswith(b"HTTP/1.1 204")
        writer.close()
    answer = await node.raw(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_slow_preface_is_cut_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.server.HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    writer.write(PREFACE[:20])
    async with asyncio.timeout(PATIENCE):
        assert await reader.read() == b""
    writer.close()


async def test_sections_are_measured_however_they_are_cut() -> None:
    """The verdict depends on the frames, not on the pieces they come in."""
    fine = PREFACE + frame(SETTINGS) + frame(HEADERS, 0, 1, b"x" * 30) + frame(CONTINUATION, 4, 1, b"x" * 20)
    fine += frame(DATA, 1, 1, frame(CONTINUATION) * 9) + frame(HEADERS, 4, 3, b"x" * 40)
    large = fine + frame(HEADERS, 0, 5, b"x" * 30) + frame(CONTINUATION, 4, 5, b"x" * 30)
    at_once = fine + frame(HEADERS, 4, 5, b"x" * 51)
    assert len(PREFACE) == PREFACE_BYTES
    for size in range(1, 80):
        for data, expected in ((fine, True), (large, False), (at_once, False)):
            frames = Frames(50, PREFACE_BYTES)
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            assert all(frames.take(piece) for piece in pieces) is expected, size


async def test_a_gateway_may_refuse_http_2(tmp_path: Path) -> None:
    async with gateway(Backbone("memory:"), tmp_path, h2c=False) as node:
        assert (await node.raw(OPENING + asking(section()))).startswith(b"HTTP/1.1 400")


async def test_the_token_is_asked_for(tmp_path: Path) -> None:
    async with (
        gateway(Backbone("memory:"), tmp_path, tokens=Tokens("secret")) as node,
        HTTP2Client("127.0.0.1", node.gateway.port) as client,
    ):
        assert (await ask(client, "GET", "/v1.0/metadata")).status == 401
        assert (await ask(client, "GET", "/v1.0/metadata", [("dapr-api-token", "secret")])).status == 200


async def test_open_requests_finish_when_a_server_stops() -> None:
    begun, leave, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
    port = asyncio.get_running_loop().create_future()

    async def answer(request: web.BaseRequest) -> Response:
        if request.raw_path == "/held":
            begun.set()
            await go.wait()
        return Response(200, b"done")

    def load(chain: Handler) -> HTTP2Connections:
        return HTTP2Connections(Answering(chain, 1024, 1024).answer, 1024)

    async def serve() -> None:
        server = HTTPServer(
            answer,
            max_body_bytes=1024,
            max_header_bytes=1024,
            load_http2=load,
        )
        async with server.listening(("127.0.0.1",), 0, None, lambda: PATIENCE) as number:
            port.set_result(number)
            await leave.wait()

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve())
        async with HTTP2Client("127.0.0.1", await port) as client, HTTP2Client("127.0.0.1", await port) as idle:
            assert (await ask(idle, "GET", "/")).status == 200
            asked = tasks.create_task(ask(client, "GET", "/held"))
            await begun.wait()
            leave.set()
            await eventually(lambda: _is_closed(idle))
            assert not serving.done()
            go.set()
            assert (await asked).body == b"done"
            await serving


async def test_answers_that_are_not_read_are_held_in_small_part() -> None:
    """However much a client says that it would take."""
    sent = 0
    streams, part = 200, bytes(16 * 1024)

    async def answer(request: ServerRequest, _peer: object) -> None:
        nonlocal sent
        sending = await request.send_response(200)
        for _ in range(64):
            await sending.send_data(part)
            sent += len(part)

    connections = HTTP2Connections(answer, 1024)
    server = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1], limit=1024)
    huge = (2**31 - 1).to_bytes(4, "big")
    opening = PREFACE + frame(SETTINGS, payload=b"\0\4" + huge) + frame(WINDOW_UPDATE, payload=b"\x7f\xff\0\0")
    writer.write(opening + b"".join(asking(section(), 2 * number + 1) for number in range(streams)))
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.3)
    assert 0 < sent < streams * 200 * 1024 + 16 * 1024 * 1024, sent  # What sockets hold besides is the system's.
    writer.close()
    server.close()
    await connections.drain(0)


async def test_what_cannot_be_loaded_is_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Each client tries anew, and a client of HTTP/1.1 does not notice."""
    failures = [ModuleNotFoundError("No module named 'httpunk'", name="httpunk"), RuntimeError("of another kind")]

    def load(chain: Handler) -> HTTP2Connections:
        if failures:
            raise failures.pop(0)
        return HTTP2Connections(Answering(chain, 1024, 1024).answer, 1024)

    async def answer(request: web.BaseRequest) -> Response:
        return Response(200, b"done")

    settings: dict[str, Any] = {"max_body_bytes": 1024, "max_header_bytes": 1024}
    server = HTTPServer(answer, **settings, load_http2=load)
    async with server.listening(("127.0.0.1",), 0, None, lambda: 0.0) as port:
        for said in ("pip install httpunk", "RuntimeError: of another kind"):
            assert await spoken(port, OPENING + asking(section())) == b""
            assert said in caplog.text
        async with HTTPClient("127.0.0.1", port) as http1, http1.call("GET", "/", [], b"") as reply:
            assert reply.status == 200
        async with HTTP2Client("127.0.0.1", port) as client:
            assert (await ask(client, "GET", "/")).status == 200


async def test_a_connection_that_cannot_be_drained_is_cut_off_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others finish what they have begun."""
    begun: list[str] = []
    go = asyncio.Event()
    graceful = ServerConnection.graceful_shutdown
    failing = iter((True,))

    async def breaking(self: ServerConnection) -> None:
        if next(failing, False):
            raise RuntimeError("as a defect would")
        await graceful(self)

    async def answer(request: web.BaseRequest) -> Response:
        begun.append(request.raw_path)
        await (go if request.raw_path == "/held" else asyncio.Event()).wait()
        return Response(200, b"done")

    monkeypatch.setattr(ServerConnection, "graceful_shutdown", breaking)
    connections = HTTP2Connections(Answering(answer, 1024, 1024).answer, 1024)
    server = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        asyncio.timeout(PATIENCE),
        HTTP2Client("127.0.0.1", port) as broken,
        HTTP2Client("127.0.0.1", port) as well,
        asyncio.TaskGroup() as tasks,
    ):
        lost = tasks.create_task(_broken_off(broken, "/stuck"))
        await eventually(lambda: _is(begun == ["/stuck"]))
        asked = tasks.create_task(ask(well, "GET", "/held"))
        await eventually(lambda: _is(begun == ["/stuck", "/held"]))
        server.close()
        draining = tasks.create_task(connections.drain(PATIENCE))
        await eventually(lambda: _is("cut off" in caplog.text))
        go.set()
        assert (await asked).body == b"done"
        await draining
        await lost


async def _broken_off(client: HTTP2Client, path: str) -> None:
    with pytest.raises(ResponseError):
        await ask(client, "GET", path)


def _is(true: bool) -> None:
    assert true


async def _is_closed(client: HTTP2Client) -> None:
    """Another call would need another connection, which nobody takes."""
    try:
        await ask(client, "GET", "/")
    except ConnectError:
        return
    except ResponseError:  # It came just then.
        pass
    raise AssertionError("it was still open")


@pytest.mark.parametrize(
    ("option", "version"),
    [pytest.param("--http2-prior-knowledge", "2", id="HTTP/2"), pytest.param("--http2", "1.1", id="ignored offer")],
)
async def test_curl(node: Node, option: str, version: str) -> None:
    words = ("-sS", option, "--max-time", "30", "-w", "%{http_version} %{http_code}", f"{node.url}/v1.0/healthz")
    process = await asyncio.create_subprocess_exec("curl", *words, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode() == f"{version} 204"


@pytest.mark.costly
async def test_clients_that_come_and_go_leave_nothing(tmp_path: Path) -> None:
    """Neither memory nor open files: in a gateway of its own process."""
    reset = frame(RESET, 0, 3, b"\0\0\0\x08")
    requests = OPENING + asking(section()) + asking(section(path=b"/unknown"), 3) + reset

    async def visit(process: GatewayProcess, count: int) -> None:
        for number in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
            writer.write(PREFACE[: number % 24] if number % 3 == 0 else requests)
            if number % 3 == 1:
                await reader.readuntil(b"\x89")
            writer.close()

    async def burst(process: GatewayProcess, count: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(visit(process, count))

    async with GatewayProcess("app", tmp_path, backbone="memory:") as process:
        seen = psutil.Process(process.pid)
        await burst(process, 20)
        before, files = seen.memory_info().rss, seen.num_fds()
        await burst(process, 100)

        async def closed() -> None:
            assert seen.num_fds() <= files + 5

        await eventually(closed)
        grown = (seen.memory_info().rss - before) / 2**20
    assert grown < 6, f"grew by {grown:.1f} MiB"
