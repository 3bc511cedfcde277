"""What is not HTTP, too long, too slow or nonsense: a documented answer, no crash, no leak."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.http.harness import App, Backbone, Node, gateway
from tests.support.mesh import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with App() as app, gateway(Backbone("memory:"), tmp_path_factory.mktemp("home"), app=app) as node:
        yield node


def request(line: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: x", "Connection: close", *fields, "", ""]).encode("latin-1") + body


LONG = "x" * 20_000
STATE = "/v1.0/state/statestore"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "ERR_BAD_REQUEST", id="TLS"),
        pytest.param(b"hello\r\n\r\n", 400, "ERR_BAD_REQUEST", id="no HTTP"),
        pytest.param(b"\x00" * 50, 400, "ERR_BAD_REQUEST", id="zeros"),
        pytest.param(request("GET / HTTP/9.9"), 400, "ERR_BAD_REQUEST", id="version"),
        pytest.param(request("G<T / HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="verb"),
        pytest.param(request("GET / HTTP/1.1", "no colon"), 400, "ERR_BAD_REQUEST", id="header without colon"),
        pytest.param(request("GET / HTTP/1.1", "a b: c"), 400, "ERR_BAD_REQUEST", id="header name with blank"),
        pytest.param(request("GET / HTTP/1.1", "a: b\x00c"), 400, "ERR_BAD_REQUEST", id="NUL in a header"),
        pytest.param(request("POST / HTTP/1.1", "Content-Length: x"), 400, "ERR_BAD_REQUEST", id="length"),
        pytest.param(request("POST / HTTP/1.1", "Content-Length: -1"), 400, "ERR_BAD_REQUEST", id="negative length"),
        pytest.param(
            request("POST / HTTP/1.1", "Content-Length: 1", "Content-Length: 2", body=b"xx"),
            400,
            "ERR_BAD_REQUEST",
            id="two lengths",
        ),
        pytest.param(
            request("POST / HTTP/1.1", "Content-Length: 3", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
            400,
            "ERR_BAD_REQUEST",
            id="length and chunks",
        ),
        pytest.param(request(f"GET /{LONG} HTTP/1.1"), 431, "ERR_BAD_REQUEST", id="long line"),
        pytest.param(request("GET / HTTP/1.1", f"a: {LONG}"), 431, "ERR_BAD_REQUEST", id="long header"),
        pytest.param(request("GET / HTTP/1.1", f"{LONG}: a"), 431, "ERR_BAD_REQUEST", id="long header name"),
        pytest.param(
            request("GET / HTTP/1.1", *[f"a{n}: b" for n in range(126)]), 404, "ERR_DIRECT_INVOKE", id="128 headers"
        ),
        pytest.param(
            request("GET / HTTP/1.1", *[f"a{n}: b" for n in range(127)]), 431, "ERR_BAD_REQUEST", id="many headers"
        ),
        pytest.param(
            request(f"POST {STATE} HTTP/1.1", "Transfer-Encoding: chunked", body=b"zz\r\n"),
            400,
            "ERR_BAD_REQUEST",
            id="broken chunk",
        ),
        pytest.param(
            request(f"POST {STATE} HTTP/1.1", "Content-Length: 9999999", body=b"["), None, None, id="cut body"
        ),
        pytest.param(
            request(f"POST {STATE} HTTP/1.1", "Transfer-Encoding: gzip", body=b"x"),
            400,
            "ERR_BAD_REQUEST",
            id="odd coding",
        ),
        pytest.param(request(f"GET {STATE}/\xff\xfe HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="raw bytes in the path"),
        pytest.param(request(f"GET {STATE}/%ff HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="no UTF-8"),
        pytest.param(request("GET /v1.0/state/%zz/k HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="bad escape in the store"),
        pytest.param(
            request("GET /v1.0/invoke/%zz/method/k HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="bad escape in the app id"
        ),
        pytest.param(
            request("GET /v1.0/invoke/app/method/\xff HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="raw bytes in a method"
        ),
        pytest.param(
            request("GET /v1.0/invoke/app/method/\x01 HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="control byte in a method"
        ),
        pytest.param(
            request("GET /v1.0/invoke/app/method/\x7f HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="DEL in a method"
        ),
        pytest.param(
            request("GET /v1.0/invoke/app/method/a b HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="blank in a method"
        ),
        pytest.param(request("GET /v1.0/invoke/app/method/a#b HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="fragment"),
        pytest.param(request("GET /x?a#b HTTP/1.1", "dapr-app-id: app"), 400, "ERR_BAD_REQUEST", id="late fragment"),
        pytest.param(request("CONNECT h:443 HTTP/1.1"), 405, "ERR_DIRECT_INVOKE", id="tunnel"),
        pytest.param(
            request("CONNECT /v1.0/invoke/app/method/x HTTP/1.1"), 405, "ERR_DIRECT_INVOKE", id="tunnel to a path"
        ),
        pytest.param(request("CONNECT http://h/ HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="tunnel to a URL"),
        pytest.param(request("CONNECT * HTTP/1.1"), 405, "ERR_DIRECT_INVOKE", id="tunnel to all"),
        pytest.param(request("BREW / HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="unknown verb"),
        pytest.param(request("TRACE /v1.0/healthz HTTP/1.1"), 404, "ERR_DIRECT_INVOKE", id="TRACE"),
        pytest.param(request("GET /v1.0/../../etc/passwd HTTP/1.1"), 404, "ERR_DIRECT_INVOKE", id="traversal"),
        pytest.param(
            request("GET /v1.0/%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), 404, "ERR_DIRECT_INVOKE", id="encoded traversal"
        ),
        pytest.param(
            request(f"GET {STATE}/..%2f..%2fetc%2fpasswd HTTP/1.1"), 204, None, id="a key that looks like a path"
        ),
        pytest.param(request("OPTIONS * HTTP/1.1"), 404, "ERR_DIRECT_INVOKE", id="asterisk"),
        pytest.param(request("GET http:// HTTP/1.1"), 400, "ERR_BAD_REQUEST", id="absolute form without a host"),
        pytest.param(request("GET /v1.0 HTTP/1.1"), 404, "ERR_DIRECT_INVOKE", id="version alone"),
        pytest.param(request("GET /v1.0/ HTTP/1.1"), 404, "ERR_DIRECT_INVOKE", id="version and slash"),
        pytest.param(request("GET /v1.0/invoke HTTP/1.1"), 404, "ERR_DIRECT_INVOKE", id="invoke alone"),
        pytest.param(
            request(f"GET {STATE}/k?\xff=%zz&metadata.\xff=\xfe HTTP/1.1"),
            400,
            "ERR_BAD_REQUEST",
            id="bytes in the query",
        ),
        pytest.param(
            request("POST /v1.0/publish/pubsub/t?metadata.cloudevent.id=%ff HTTP/1.1", "Content-Length: 0"),
            204,
            None,
            id="bytes in metadata",
        ),
        pytest.param(
            request("POST /v1.0/publish/pubsub/t HTTP/1.1", "Content-Length: 0", "Content-Type: \xff"),
            400,
            "ERR_BAD_REQUEST",
            id="bytes in the type",
        ),
        pytest.param(
            request(
                "POST /v1.0/publish/pubsub/t HTTP/1.1", "Content-Length: 0", "tracestate: \xff", "traceparent: \xff"
            ),
            204,
            None,
            id="bytes in trace context",
        ),
        pytest.param(
            request(f"DELETE {STATE}/k HTTP/1.1", "If-Match: \xff"), 400, "ERR_BAD_REQUEST", id="bytes in the etag"
        ),
        pytest.param(request("GET /x HTTP/1.1", "dapr-app-id: \xff"), 400, "ERR_BAD_REQUEST", id="bytes in the app id"),
        pytest.param(
            request("GET /x HTTP/1.1", "dapr-app-id: " + "a" * 15_000), 500, "ERR_DIRECT_INVOKE", id="long app id"
        ),
        pytest.param(request("GET /x HTTP/1.1", "dapr-app-id: http://["), 500, "ERR_DIRECT_INVOKE", id="odd URL"),
        pytest.param(
            request("GET /x HTTP/1.1", "dapr-app-id: http://h:99999999"), 500, "ERR_DIRECT_INVOKE", id="odd port"
        ),
        pytest.param(
            request("GET /x HTTP/1.1", "Authorization: Basic " + "=" * 50), 404, "ERR_DIRECT_INVOKE", id="odd basic"
        ),
        pytest.param(
            request("PUT /v1.0/metadata/k HTTP/1.1", "Content-Length: 1", body=b"\xff"), 204, None, id="label of bytes"
        ),
        pytest.param(
            request(f"POST {STATE} HTTP/1.1", "Content-Length: 60001", body=b"[" * 60001),
            400,
            "ERR_MALFORMED_REQUEST",
            id="deep JSON",
        ),
        pytest.param(
            request("GET /v1.0/invoke/app/method/x HTTP/1.1", "mesh-timeout: 9999999h"), None, None, id="long timeout"
        ),
        pytest.param(
            request("GET /v1.0/invoke/app/method/x HTTP/1.1", "mesh-timeout: -1s"), None, None, id="negative timeout"
        ),
    ],
)
async def test_bad_requests(
    node: Node, caplog: pytest.LogCaptureFixture, data: bytes, status: int | None, code: str | None
) -> None:
    """One shape for every refusal; none is an error of ours that would be logged."""
    caplog.set_level(logging.WARNING)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    writer.write(data)
    if status is None and b"9999999\r\n" in data:
        writer.write_eof()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    if status is not None:
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
        assert (f'{{"errorCode":"{code}","message":"'.encode() in answer) == (code is not None), answer
    else:
        assert not answer.startswith(b"HTTP/1.1 500 \r\n")
        assert b'"ERROR"' not in answer
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert (await node.get("/v1.0/healthz/outbound")).status == 204


async def test_a_slow_header_is_cut_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose header does not come to its end is closed, however it trickles; one that does is served."""
    monkeypatch.setattr("gateway.http.server.HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:

        async def trickle() -> None:
            for byte in itertools.chain(b"GET / HTTP/1.1\r\nX-Slow: ", itertools.repeat(ord("x"))):
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        trickling = tasks.create_task(trickle())
        with contextlib.suppress(ConnectionResetError):  # What it had not read when it closed.
            assert await reader.read() == b""
        trickling.cancel()
    writer.close()
    answer = await node.raw(b"GET /v1.0/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize("begun", [b"GET /v1", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["line", "field"])
async def test_a_silent_client_is_cut_off(node: Node, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    """Also one whose bytes are there before anybody waits for them, and that sends no more."""
    monkeypatch.setattr("gateway.http.server.HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    writer.write(begun)
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize(
    "before",
    [
        b"GET /v1.0/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PUT /v1.0/metadata/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        b"PUT /v1.0/metadata/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ],
    ids=["no body", "length", "chunks"],
)
async def test_a_half_header_behind_requests_is_cut_off(
    node: Node, monkeypatch: pytest.MonkeyPatch, before: bytes, requests: int
) -> None:
    """As one alone is; the requests before it are answered."""
    monkeypatch.setattr("gateway.http.server.HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    writer.write(before * requests + b"GET / HTTP/1.1\r\nHos")
    async with asyncio.timeout(30):
        assert (await reader.read()).count(b"HTTP/1.1 204 ") == requests
    writer.close()


async def test_it_is_told_that_descriptors_run_out(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a while, however many clients come."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr("gateway.http.server.FEW_DESCRIPTORS", 2**62)
    for _ in range(3):
        await node.raw(b"GET /v1.0/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert len([each for each in caplog.records if "descriptors run out" in each.getMessage()]) == 1


async def test_many_slow_clients_do_not_hinder_others(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are all closed; meanwhile others are served."""
    monkeypatch.setattr("gateway.http.server.HEADER_SECONDS", 0.5)
    connections = [await asyncio.open_connection("127.0.0.1", node.gateway.port) for _ in range(200)]
    for _, writer in connections:
        writer.write(b"GET / HTTP/1.1\r\n")
    assert (await node.get("/v1.0/healthz")).status == 204
    async with asyncio.timeout(30):
        for reader, writer in connections:
            assert await reader.read() == b""
            writer.close()


async def test_a_slow_body_is_cut_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not come within its time is answered 408."""
    monkeypatch.setattr("gateway.routes.request.BODY_SECONDS", 0.1)
    data = request(f"POST {STATE} HTTP/1.1", "Content-Length: 100", body=b"[")
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    writer.write(data)
    async with asyncio.timeout(30):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    writer.close()


@pytest.mark.costly
async def test_bad_requests_leave_memory_flat(nats: Backbone, tmp_path: Path) -> None:
    """Ten thousand of them, of many kinds, in a gateway of its own process."""
    requests = [
        b"POST /v1.0/state/nope HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]",
        b"POST /v1.0/state/statestore HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n[{]}x",
        b"POST /v1.0/publish/%d/t HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
        b"GET /v1.0/invoke/nobody%d/method/x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /unknown/%d HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1.0/publish/bulk/pubsub/t HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n[{}]",
        b"GET /v1.0/state/statestore/%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]
    broken = [request("BAD / HTTP/1.1"), request("GET / HTTP/1.1", f"a: {LONG}"), b"\x16\x03\x01nonsense\r\n\r\n"]

    async def send(port: int, numbers: range) -> None:
        for number in numbers:
            for data in (b"".join(requests), *broken):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(data.replace(b"%d", b"%d" % number))
                answer = await reader.read()
                assert len(re.findall(rb"HTTP/1.1 [45]", answer)) == (1 if data in broken else len(requests))
                writer.close()

    async def burst(port: int, first: int, count: int) -> None:
        """Send ten times so many."""
        async with asyncio.TaskGroup() as tasks:
            for part in range(20):
                tasks.create_task(send(port, range(first + part, first + count, 20)))

    environ = {"NAMESPACE": nats.namespace}
    async with GatewayProcess("app", tmp_path, backbone=nats.url, environ=environ) as process:
        memory = psutil.Process(process.pid).memory_info
        await burst(process.port, 0, 200)
        before = memory().rss
        await burst(process.port, 200, 1000)
        grown = (memory().rss - before) / 2**20
        assert process.log.stat().st_size < 200_000
    assert grown < 6, f"grew by {grown:.1f} MiB"


def _nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize("levels", [255, 1020])
@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("state/statestore", b'[{"key":"k","value":', b"}]"),
        (
            "state/statestore/transaction",
            b'{"operations":[{"operation":"upsert","request":{"key":"k","value":',
            b"}}]}",
        ),
        (
            "publish/bulk/pubsub/t",
            b'[{"entryId":"1","contentType":"application/json","event":',
            b"}]",
        ),
    ],
)
async def test_a_value_that_is_nested_too_deeply(
    node: Node, path: str, before: bytes, after: bytes, levels: int
) -> None:
    """It could be read, and not written."""
    reply = await node.post(f"/v1.0/{path}", before + _nested(levels) + after)
    assert (reply.status, "nested more than 254 levels" in reply.body.decode()) == (400, True)
    assert (await node.post(f"/v1.0/{path}", before + _nested(254) + after)).status == 204
