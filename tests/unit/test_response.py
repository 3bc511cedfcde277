"""What stands on the wire for an answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiohttp import web

from gateway.errors import APIError
from gateway.http.response import Response, StreamedResponse, completed, json_response, no_content


class Client:
    """A request, as far as a response asks; keeps what was written to its connection."""

    def __init__(self, method: str = "GET", version: tuple[int, int] = (1, 1), *, keep_alive: bool = True) -> None:
        self.method = method
        self.version = version
        self.keep_alive = keep_alive
        self.sent = b""
        self.drained = 0
        self.transport: object | None = SimpleNamespace(write=self._write)
        self.writer = SimpleNamespace(drain=self._drain)

    def _write(self, data: bytes) -> None:
        self.sent += data

    async def _drain(self) -> None:
        self.drained += 1
        await asyncio.sleep(0)


async def sent(response: Response | StreamedResponse, client: Client, *parts: bytes) -> bytes:
    request: web.BaseRequest = client  # type: ignore[assignment]
    await response.prepare(request)
    await response.prepare(request)
    for part in parts:
        assert isinstance(response, StreamedResponse)
        await response.write(part)
    await response.write_eof()
    return client.sent


@pytest.mark.parametrize(
    ("response", "client", "expected"),
    [
        (Response(200, b"hi"), Client(), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
        (Response(200), Client(), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (Response(299, b"x"), Client(), b"HTTP/1.1 299 \r\nContent-Length: 1\r\n\r\nx"),
        (Response(204, b"ignored"), Client(), b"HTTP/1.1 204 No Content\r\n\r\n"),
        (Response(304, b"", [("ETag", "1")]), Client(), b"HTTP/1.1 304 Not Modified\r\nETag: 1\r\n\r\n"),
        (Response(200, b"hi"), Client("HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
        (
            Response(200, b"", [("content-length", "9")]),
            Client("HEAD"),
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
        ),
        (Response(200), Client(keep_alive=False), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        (
            Response(200),
            Client(version=(1, 0)),
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
        ),
        (
            json_response({"a": [1, "ü"]}),
            Client(),
            'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"a":[1,"ü"]}'.encode(),
        ),
        (no_content(), Client(), b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
async def test_whole(response: Response, client: Client, expected: bytes) -> None:
    """Head and body in one piece, sent once."""
    assert await sent(response, client) == expected


@pytest.mark.parametrize(
    ("response", "client", "expected"),
    [
        (
            StreamedResponse(200, [], None),
            Client(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\n",
        ),
        (StreamedResponse(200, [], 8), Client(), b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nonethree"),
        (
            StreamedResponse(200, [], None),
            Client(version=(1, 0)),
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nonethree",
        ),
        (StreamedResponse(200, [], None), Client("HEAD"), b"HTTP/1.1 200 OK\r\n\r\n"),
        (StreamedResponse(204, [], None), Client(), b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
async def test_streamed(response: StreamedResponse, client: Client, expected: bytes) -> None:
    """In chunks, unless the length is known or the client is old."""
    assert await sent(response, client, b"one", b"", b"three") == expected


@pytest.mark.parametrize(("length", "told"), [(3, "longer than the 3 bytes"), (9, "1 bytes shorter")])
async def test_streamed_bodies_are_held_to_their_length(length: int, told: str) -> None:
    """No byte goes out that would be read as another answer."""
    client = Client()
    with pytest.raises(APIError, match=told):
        await sent(StreamedResponse(200, [], length), client, b"one", b"", b"three")
    assert client.sent in (
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\none%b" % (length, more) for more in (b"", b"three")
    )


async def test_header_bytes_survive() -> None:
    """What was no UTF-8 goes out as it came in."""
    value = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert b"X: caf\xe9\r\n" in await sent(Response(200, fields=[("X", value)]), Client())


@pytest.mark.parametrize("value", ["a\r\nInjected: 1", "a\nb", "a\rb"])
async def test_line_breaks_are_refused(value: str) -> None:
    """No header is smuggled into an answer: that says what is wrong, if nothing of another one is out."""
    refused = await sent(Response(200, fields=[("X", value)]), Client())
    assert refused.startswith(b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n")
    assert b'"ERR_INTERNAL","message":"the answer cannot be sent: a header field holds a line break"' in refused
    client = Client()
    with pytest.raises(APIError, match="line break"):
        await sent(StreamedResponse(200, [("X", value)], None), client)
    assert client.sent == b""


async def test_a_client_that_went_away() -> None:
    """Nothing is written, and the caller is told."""
    for response in (Response(200), StreamedResponse(200, [], None)):
        client = Client()
        client.transport = None
        with pytest.raises(ConnectionResetError):
            await sent(response, client)
    stream, client = StreamedResponse(200, [], None), Client()
    await stream.prepare(client)  # type: ignore[arg-type]
    client.transport = None
    with pytest.raises(ConnectionResetError):
        await stream.write(b"x")


async def test_large_answers_wait_for_the_client() -> None:
    """Memory is not filled for a slow reader."""
    client = Client()
    await sent(Response(200, b"x" * 100_000), client)
    assert client.drained == 1
    await sent(StreamedResponse(200, [], None), client := Client(), b"x", b"y")
    assert client.drained == 2


@pytest.mark.parametrize(
    ("fields", "further", "added"),
    [
        ([], [("A", "1"), ("A", "2")], [("A", "1"), ("A", "2")]),
        ([("a", "0")], [("A", "1"), ("B", "2")], [("B", "2")]),
        ([("vary", "Accept")], [("Vary", "Origin")], [("Vary", "Origin")]),
        ([("vary", "Origin")], [("Vary", "Origin")], []),
        ([("Set-Cookie", "a=1")], [("Set-Cookie", "b=2"), ("Set-Cookie", "a=1")], [("Set-Cookie", "b=2")]),
    ],
)
def test_what_is_said_already_is_not_added(
    fields: list[tuple[str, str]], further: list[tuple[str, str]], added: list[tuple[str, str]]
) -> None:
    assert completed(fields, further) == [*fields, *added]
