"""Answers of nodes that say what no application could: the client's next answer is never made of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from gateway.http.client import ResponseError
from gateway.http2.client import HTTP2Client
from mesh import address
from mesh.blocks.invocation import HTTP_HEADER
from mesh.calls.request import Request
from mesh.packing import pack
from tests.http.harness import Backbone, Node, gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
Head = tuple[int, list[tuple[str, str]]]


class Callee:
    """What stands in for a node.

    Attributes:
        node: Whose clients call it.
        head: What it answers.
        body: The body, or its parts.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.head: Head = (200, [])
        self.body: bytes | Sequence[bytes] = b""

    async def handle(self, request: Request) -> None:
        head = {HTTP_HEADER: pack(*self.head)}
        if isinstance(self.body, bytes):
            await request.reply(head, self.body)
            return
        await request.begin(head)
        for part in self.body:
            await request.write(part)
        await request.end()

    async def answers(self, verb: str = "GET") -> bytes:
        """Give all that a client reads who asks twice, and what is sound the second time."""
        asking = f"{verb} /v1.0/invoke/evil/method/x HTTP/1.1\r\nHost: x\r\n\r\n"
        asking += "GET /v1.0/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        async with asyncio.timeout(20):
            return re.sub(rb"(?m)^Traceparent: .*\r\n", b"", await self.node.raw(asking.encode()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callee(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callee]:
    backbone = Backbone(nats_url)
    async with gateway(backbone, tmp_path_factory.mktemp("home"), app_id="caller") as node:
        callee = Callee(node)
        exchange = node.gateway._runtime.parts.exchange  # What a hostile node would do.
        async with exchange.serve(address.app(backbone.namespace, "evil"), "evil", callee.handle):
            yield callee


@pytest.mark.parametrize(
    ("length", "parts", "sound"),
    [
        (5, [b"hello" + SMUGGLED], b""),
        (5, [b"hello", SMUGGLED], b"hello"),
        (500, [b"hello"], b"hello"),
        (5, [], b""),
    ],
)
async def test_a_streamed_body_is_held_to_its_length(
    callee: Callee, length: int, parts: list[bytes], sound: bytes
) -> None:
    """One that is longer or shorter breaks off: what follows would be read as the next answer, or be waited for."""
    callee.head, callee.body = (200, [("Content-Length", str(length))]), parts
    expected = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (length, sound)
    assert expected.startswith(await callee.answers())  # What is on its way may be lost where it breaks off.


async def test_over_http_2_as_well(callee: Callee) -> None:
    """A reset ends one answer; the others on its connection go on."""
    async with HTTP2Client("127.0.0.1", callee.node.gateway.port) as client:
        for parts in ([b"hello", SMUGGLED], [b"hel"]):
            callee.head, callee.body = (200, [("Content-Length", "5")]), parts
            with pytest.raises(ResponseError):
                async with client.call("GET", "/v1.0/invoke/evil/method/x", (), b"") as answer:
                    async for _ in answer.parts():
                        pass
        async with client.call("GET", "/v1.0/healthz", (), b"") as answer:
            assert answer.status == 204


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (200, [("Content-Length", "5, 500")]),
        (200, [("Content-Length", "-1")]),
        (200, [("Content-Length", "5"), ("content-length", "6")]),
        (200, [("Content-Length ", "500")]),
        (200, [("Transfer-Encoding\t", "chunked")]),
        (200, [("Transfer-Encoding: chunked\r\nX", "y")]),
        (200, [("", "x")]),
        (200, [("X", "y\r\nContent-Length: 500")]),
        (200, [("X", "y\0z")]),
        (200, [("X", "\ud800")]),
        (100, []),
        (101, [("Upgrade", "x"), ("Connection", "Upgrade")]),
    ],
)
async def test_heads_that_could_be_read_otherwise(
    callee: Callee, status: int, fields: list[tuple[str, str]], streamed: bool
) -> None:
    """They are refused before anything of them is out, and the connection goes on."""
    callee.head, callee.body = (status, fields), [b"hello"] if streamed else b"hello"
    got = await callee.answers()
    assert got.startswith(b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n"), got
    assert b'{"errorCode":"ERR_' in got
    assert got.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 204 No Content" in got


async def test_fields_of_another_connection(callee: Callee) -> None:
    """What says where a body ends is this gateway's, and what concerns one connection stays there."""
    fields = [("Transfer-Encoding", "gzip"), ("Connection", "x-hop"), ("X-Hop", "1"), ("Trailer", "x"), ("X-Own", "y")]
    callee.head, callee.body = (200, [*fields, ("Content-Length", "99")]), b"hello"
    got = await callee.answers()
    assert got.startswith(b"HTTP/1.1 200 OK\r\nX-Own: y\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 204 ")
    callee.head, callee.body = (200, fields), [b"hel", b"lo"]
    got = await callee.answers()
    assert got.startswith(
        b"HTTP/1.1 200 OK\r\nX-Own: y\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    )


@pytest.mark.parametrize(("verb", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)])
async def test_bodies_of_what_has_none(callee: Callee, verb: str, status: int) -> None:
    """They are left out, whatever is said of them."""
    for body in (SMUGGLED, [SMUGGLED]):
        callee.head, callee.body = (status, [("Content-Length", "500")]), body
        got = await callee.answers(verb)
        length = b"" if status == 204 else b"Content-Length: 500\r\n"
        assert got.partition(b"\r\n")[2].startswith(length + b"\r\nHTTP/1.1 204 No Content")
