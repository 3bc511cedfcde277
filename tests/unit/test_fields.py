"""What another node sends as header fields says nothing of where a message to the application ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

import pytest

from gateway.http.client import HTTPClient, ResponseError
from mesh.application import Headers
from mesh.errors import BadArgumentError
from mesh.fields import CONNECTION_FIELDS

SMUGGLED = b"0\r\n\r\nDELETE /secret HTTP/1.1\r\n\r\n"


class Raw:
    """A server that keeps the bytes of each connection, and answers once a blank line has come."""

    def __init__(self) -> None:
        self.connections: list[bytearray] = []
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(got := bytearray())
        answered = False
        with suppress(ConnectionError), closing(writer):
            while part := await reader.read(65536):
                got += part
                if not answered and b"\r\n\r\n" in got:
                    answered = True
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[HTTPClient]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            async with HTTPClient("127.0.0.1", self.port) as client:
                yield client


async def parts(*given: bytes) -> AsyncIterator[bytes]:
    for part in given:
        yield part


async def call(client: HTTPClient, headers: Headers, body: bytes | AsyncIterator[bytes]) -> int:
    async with client.call("POST", "/x", headers, body) as response:
        await response.read_up_to(100)
        return response.status


@pytest.mark.parametrize("name", sorted(CONNECTION_FIELDS))
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_fields_of_a_connection_stay_behind(name: str, *, streamed: bool) -> None:
    """In whatever case they come; the client says itself how long the body is."""
    raw = Raw()
    value = str(len(SMUGGLED)) if name == "content-length" else "chunked"
    async with raw.client() as client:
        body = parts(SMUGGLED) if streamed else SMUGGLED
        await call(client, [(name.title(), value), (name, value), ("X-Kept", "1")], body)
    head = bytes(raw.connections[0]).partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")[1:]
    said = [line.partition(":")[0] for line in head]
    chunked = streamed and name != "content-length"
    assert sorted(said) == sorted(["host", "x-kept", "transfer-encoding" if chunked else "content-length"])


@pytest.mark.parametrize(
    "field",
    [
        ("transfer-encoding: chunked, x", "1"),
        ("transfer-encoding ", "chunked"),
        ("a\r\nb", "1"),
        ("", "1"),
        ("ä", "1"),
        ("x", "a\r\nTransfer-Encoding: chunked"),
        ("x", "a\0b"),
        ("x", "\x7f"),
        ("x", "\ud800"),
    ],
)
async def test_what_is_no_field_is_refused(field: tuple[str, str]) -> None:
    """Before anything is sent; it says nothing of the application."""
    raw = Raw()
    async with raw.client() as client:
        for body in (b"x", parts(b"x")):
            with pytest.raises(BadArgumentError):
                await call(client, [field], body)
    assert raw.connections == []


async def test_values_may_hold_what_a_field_may() -> None:
    """Tabs, other bytes than UTF-8, other letters."""
    raw = Raw()
    async with raw.client() as client:
        assert await call(client, [("X-A", "a\tb"), ("X-B", "\udcff"), ("X-C", "ä")], b"") == 200
    assert b"X-A: a\tb\r\nX-B: \xff\r\nX-C: \xc3\xa4\r\n" in raw.connections[0]


@pytest.mark.parametrize("lengths", [("-1",), ("1_0",), ("5", "6"), ("٣",), ("",), ("9" * 19,)])
async def test_a_length_that_is_none(lengths: tuple[str, ...]) -> None:
    async with Raw().client() as client:
        with pytest.raises(BadArgumentError, match="Content-Length is no length"):
            await call(client, [("content-length", each) for each in lengths], parts(b"12345"))


@pytest.mark.parametrize(
    ("given", "sent", "problem"),
    [((b"123", SMUGGLED), b"123", "longer than the 5 bytes"), ((b"123",), b"123", "2 bytes shorter")],
    ids=["longer", "shorter"],
)
async def test_a_body_is_held_to_its_length(given: tuple[bytes, ...], sent: bytes, problem: str) -> None:
    """No byte beyond it is sent, and the connection carries no other call."""
    got, asked = bytearray(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError), closing(writer):
            while part := await reader.read(65536):
                got.extend(part)
        asked.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, HTTPClient("127.0.0.1", server.sockets[0].getsockname()[1]) as client:
        with pytest.raises(ResponseError, match=problem):
            await call(client, [("Content-Length", "5")], parts(*given))
        await asked.wait()
        assert not client._idle
    assert sent.startswith(bytes(got).partition(b"\r\n\r\n")[2])


async def test_a_body_of_its_length_is_sent() -> None:
    raw = Raw()
    async with raw.client() as client:
        assert await call(client, [("Content-Length", "5")], parts(b"123", b"", b"45")) == 200
        assert len(client._idle) <= 1
    assert bytes(raw.connections[0]).endswith(b"Content-Length: 5\r\n\r\n12345")


async def test_a_connection_that_is_given_back_after_the_end_is_closed() -> None:
    """Its user may leave its call last."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        closed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, HTTPClient("127.0.0.1", server.sockets[0].getsockname()[1]) as client:
        await call(client, [], b"")
        last = client.call("POST", "/x", [], b"")
        response = await last.__aenter__()
        await response.read_up_to(100)
        await client.__aexit__(None, None, None)
        await last.__aexit__(None, None, None)
        async with asyncio.timeout(30.0):
            await closed.wait()
