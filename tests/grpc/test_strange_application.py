"""What says that it is an application on gRPC, and is none, or a broken one."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
import pytest
from httpunk.h2.server import ServerRequest

from gateway.grpc.application import GRPCApplication
from gateway.grpc.messages import COMMON, message
from gateway.grpc.wire import framed
from mesh.errors import AppFailedError, AppUnreachableError, HandlerFailedError, MeshError
from tests.support.eventually import PATIENCE
from tests.support.h2app import H2App

ON_INVOKE = "/dapr.proto.runtime.v1.AppCallback/OnInvoke"
ON_EVENT = "/dapr.proto.runtime.v1.AppCallback/OnTopicEvent"
ON_EVENTS = "/dapr.proto.runtime.v1.AppCallback/OnBulkTopicEvent"
ON_EVENTS_OF_BEFORE = "/dapr.proto.runtime.v1.AppCallbackAlpha/OnBulkTopicEventAlpha1"
LIST = "/dapr.proto.runtime.v1.AppCallback/ListTopicSubscriptions"
EVENT = orjson.dumps({"id": "1", "source": "s", "type": "t", "specversion": "1.0", "data": 1})
LIMIT = 1000
OK = [("grpc-status", "0")]
REFUSED_STREAM, INTERNAL_ERROR, CANCEL = 7, 2, 8
REPLY = message("InvokeResponse", COMMON)(content_type="text/plain")
REPLY.data.value = b"hello"
DATA = REPLY.SerializeToString()


@asynccontextmanager
async def application(app: H2App) -> AsyncIterator[GRPCApplication]:
    url = f"http://127.0.0.1:{app.port}"
    async with asyncio.timeout(PATIENCE), GRPCApplication(url, limit_bytes=LIMIT) as made:
        yield made


async def called(to: GRPCApplication) -> tuple[int, bytes]:
    async with to.call("POST", "/m", [], b"") as response:
        body = await response.read_up_to(LIMIT)
        assert body is not None
        return response.status, body


def says(
    body: bytes = b"",
    trailers: list[tuple[str, str]] | None = OK,
    status: int = 200,
    kind: str = "application/grpc",
    **headers: str,
) -> Callable[[ServerRequest], Awaitable[None]]:
    async def answer(request: ServerRequest) -> None:
        fields = [("content-type", kind), *((name.replace("_", "-"), value) for name, value in headers.items())]
        await request.respond(status, headers=fields, body=body, trailers=trailers)

    return answer


def resets(code: int) -> Callable[[ServerRequest], Awaitable[None]]:
    async def answer(request: ServerRequest) -> None:
        await request.reset(code)

    return answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says(framed(DATA)), (200, b"hello")),
        (says(framed(DATA), kind="application/grpc+proto"), (200, b"hello")),
        (says(b"\1" + framed(gzip.compress(DATA))[1:], grpc_encoding="gzip"), (200, b"hello")),
        (says(b"", None, grpc_status="5"), (404, b'{"code":5,"message":""}')),
        (says(framed(DATA), [("grpc-status", "5"), ("grpc-message", "a%20b")]), (404, b'{"code":5,"message":"a b"}')),
        (says(framed(DATA), [("grpc-status", "99")]), (500, b'{"code":2,"message":""}')),
        (says(framed(DATA), [("grpc-status", "x")]), (500, b'{"code":2,"message":""}')),
        (says(framed(DATA), None), (500, b'{"code":2,"message":"the answer has no grpc-status"}')),
        (says(b"", None, 404, "text/plain"), "speaks no gRPC: it answered 404, text/plain"),
        (says(b"no", None, 503, "text/html"), "speaks no gRPC: it answered 503, text/html"),
        (says(b"yes", None, 200, "application/grpc-web"), "speaks no gRPC: it answered 200, application/grpc-web"),
        (says(b""), "has no message"),
        (says(framed(DATA) * 2), "has more than one message"),
        (says(framed(DATA)[:-1]), "cannot be read: the body ends in the middle of a message"),
        (says(b"HTTP/1.1 200"), "cannot be read: the body is not made of gRPC messages"),
        (says(framed(b"\xff\xff")), "is not of the method's type"),
        (says(framed(b"x" * 100_000)), "cannot be read: a message of 100000 bytes is larger than"),
        (says(framed(DATA), grpc_encoding="snappy"), "cannot be read: unknown grpc-encoding 'snappy'"),
        (resets(INTERNAL_ERROR), "broke off: RST_STREAM"),
        (resets(CANCEL), "broke off: RST_STREAM"),
    ],
)
async def test_answers(answer: Callable[[ServerRequest], Awaitable[None]], expected: tuple[int, bytes] | str) -> None:
    async with H2App() as app, application(app) as to:
        app.answers[ON_INVOKE] = answer
        if isinstance(expected, str):
            with pytest.raises(AppFailedError, match=expected):
                await called(to)
        else:
            assert await called(to) == expected
        app.answers[ON_INVOKE] = says(framed(DATA))
        assert await called(to) == (200, b"hello")


async def test_a_refused_stream_was_not_run() -> None:
    """It is sent again; one that is refused each time reached nobody, which does not say that nobody is there."""
    async with H2App() as app, application(app) as to:
        to.watch()
        await to.until_reachable()
        app.answers[ON_INVOKE] = resets(REFUSED_STREAM)
        with pytest.raises(AppUnreachableError, match="is not reached: it takes no more calls at once"):
            await called(to)
        assert to.reachable
        assert len(app.got) > 1
        refused = 0

        async def first(request: ServerRequest) -> None:
            nonlocal refused
            refused += 1
            await (resets(REFUSED_STREAM) if refused == 1 else says(framed(DATA)))(request)

        app.answers[ON_INVOKE] = first
        assert await called(to) == (200, b"hello")


async def test_a_body_that_was_read_is_not_read_for_another() -> None:
    """An application that is away leaves a streamed body as it is; one that took some of it has failed."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(2):
            read += 1
            yield b"part"

    async def call(to: GRPCApplication, *headers: tuple[str, str]) -> None:
        async with to.call("POST", "/m", headers, body()):
            pass

    grpc = ("content-type", "application/grpc")
    async with H2App() as app, application(app) as to:
        for path in (ON_INVOKE, "/m"):
            app.answers[path] = resets(REFUSED_STREAM)
        for headers in ((), (grpc,)):
            with pytest.raises(AppFailedError, match=r"read$"):
                await call(to, *headers)
    read = 0
    async with application(app) as to:
        for headers in ((), (grpc,)):
            with pytest.raises(AppUnreachableError, match="does not accept connections"):
                await call(to, *headers)
    assert read == 0


async def test_events_say_why_they_failed() -> None:
    async with H2App() as app, application(app) as to:
        app.answers[ON_EVENT] = says(b"", None, grpc_status="5", grpc_message="no%20such order")
        with pytest.raises(HandlerFailedError, match="answered NOT_FOUND: no such order") as caught:
            await to.post("/", [], EVENT, "event")
        assert caught.value.status == 5
        app.answers[ON_EVENT] = says(b"<html>", None, 200, "text/html")
        with pytest.raises(AppFailedError, match="speaks no gRPC"):
            await to.post("/", [], EVENT, "event")
        assert await to.post("/configuration/c/k", [], b"{}", "change") == (501, b"")


def entry(identity: str, event: object) -> dict[str, object]:
    return {"entryId": identity, "event": event, "contentType": "application/json", "metadata": {}}


def batch(*entries: dict[str, object]) -> bytes:
    rest = {"id": "b", "metadata": {}, "topic": "t", "pubsubname": "p", "type": "x"}
    return orjson.dumps({**rest, "entries": entries})


NOT_FOUND, UNIMPLEMENTED = says(b"", None, 404, "text/plain"), says(b"", None, grpc_status="12")
TAKEN_BATCH = message("TopicEventBulkResponse")()
TAKEN_BATCH.statuses.add(entry_id="a")
TAKEN = says(framed(TAKEN_BATCH.SerializeToString()))


async def test_what_is_not_found_chooses_a_method() -> None:
    """Servers of HTTP that speak gRPC besides answer 404 where others say UNIMPLEMENTED."""
    async with H2App() as app, application(app) as to:
        app.answers |= {ON_EVENTS: NOT_FOUND, LIST: NOT_FOUND, ON_EVENTS_OF_BEFORE: TAKEN}
        assert await to.subscriptions("app") == ()
        for _ in range(2):
            status, answer = await to.post("/", [], batch(entry("a", orjson.loads(EVENT))), "events")
            assert (status, orjson.loads(answer)) == (200, {"statuses": [{"entryId": "a", "status": "SUCCESS"}]})
        assert len(app.at(ON_EVENTS)) == 1


async def test_what_is_not_found_settles_no_event() -> None:
    """It may come of what stands before the application, or is there in its place; gRPC says that it means it."""
    async with H2App() as app, application(app) as to:
        app.answers[ON_EVENT] = NOT_FOUND
        with pytest.raises(AppFailedError, match="speaks no gRPC: it answered 404"):
            await to.post("/", [], EVENT, "event")
        app.answers[ON_EVENT] = UNIMPLEMENTED
        assert await to.post("/", [], EVENT, "event") == (200, b'{"status":"SUCCESS"}')
        events = batch(entry("a", orjson.loads(EVENT)))
        for first, second in ((NOT_FOUND, NOT_FOUND), (NOT_FOUND, UNIMPLEMENTED), (UNIMPLEMENTED, NOT_FOUND)):
            app.answers |= {ON_EVENTS: first, ON_EVENTS_OF_BEFORE: second}
            with pytest.raises(AppFailedError, match="speaks no gRPC: it answered 404"):
                await to.post("/", [], events, "events")
        app.answers[ON_EVENTS] = TAKEN
        assert (await to.post("/", [], events, "events"))[0] == 200


async def test_calls_of_grpc_pass_as_they_are() -> None:
    """In both directions at once, with what stands behind."""
    back: asyncio.Queue[None] = asyncio.Queue()

    async def echo(request: ServerRequest) -> None:
        sending = await request.send_response(200, headers=[("content-type", "application/grpc"), ("x-a", "1")])
        async for part in request.aiter_bytes():
            await sending.send_data(part)
        await sending.send_trailers([("grpc-status", "0"), ("x-end-bin", "AAE")])

    echo.reads = True  # type: ignore[attr-defined]

    async def body() -> AsyncIterator[bytes]:
        for part in (b"a", b"b"):
            yield part
            await back.get()

    headers = [("content-type", "application/grpc+proto"), ("te", "trailers"), ("x-b-bin", "AAE")]
    async with H2App() as app, application(app) as to:
        app.answers["/own.Service/Method"] = echo
        async with to.call("POST", "/own.Service/Method", headers, body()) as response:
            parts = []
            async for part in response.parts():
                parts.append(part)
                back.put_nowait(None)
            assert (response.status, dict(response.headers)["x-a"], parts) == (200, "1", [b"a", b"b"])
            assert response.trailers == [("grpc-status", "0"), ("x-end-bin", "AAE")]
        assert app.got[0].headers.items() >= dict(headers).items()


SETTINGS = bytes.fromhex("000000040000000000")


@pytest.mark.parametrize(
    ("says_first", "error", "text"),
    [
        (b"", AppUnreachableError, r"it does not speak HTTP/2 \(--app-protocol\)"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", AppUnreachableError, r"it does not speak HTTP/2 \(--app-protocol\)"),
        (SETTINGS + b"HTTP/1.1 400 Bad Request\r\n\r\n", MeshError, "the application"),  # Perhaps it was sent.
    ],
)
async def test_what_speaks_no_http2(says_first: bytes, error: type[MeshError], text: str) -> None:
    """Nothing was sent to it, and it is said what is wrong."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says_first)
        await reader.read(100)
        writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening, asyncio.timeout(PATIENCE), GRPCApplication(url, limit_bytes=LIMIT) as to:
        with pytest.raises(error, match=text):
            await called(to)
