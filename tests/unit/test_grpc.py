"""What a gRPC client is told: frames written by hand here; ``tests/sdk`` has a real client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import pytest

from gateway.grpc import MAX_CONNECTIONS, PREFERRED_PORT, answering_grpc
from mesh.errors import ConfigError
from tests.support.eventually import PATIENCE
from tests.support.processes import free_port

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ACK = 1
Frame = tuple[int, int, int, bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@asynccontextmanager
async def connected(
    greeting: bytes = PREFACE + frame(4, 0, 0),
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with (
        answering_grpc(("127.0.0.1", "::1"), 0, None, "http://127.0.0.1:3500") as port,
        asyncio.timeout(PATIENCE),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(greeting)
        yield reader, writer
        writer.close()


async def read(reader: asyncio.StreamReader) -> Frame:
    head = await reader.readexactly(9)
    return head[3], head[4], int.from_bytes(head[5:], "big"), await reader.readexactly(int.from_bytes(head[:3], "big"))


async def test_calls_are_unimplemented(caplog: pytest.LogCaptureFixture) -> None:
    """Each gets headers that end its stream, one or many, in however many frames; the log says so once."""
    async with connected() as (reader, writer):
        assert await read(reader) == (4, 0, 0, b"")
        assert await read(reader) == (4, ACK, 0, b"")
        writer.write(frame(1, 4, 1, b"\x82") + frame(0, 1, 1, b"12345"))
        writer.write(frame(1, 0, 3, b"\x82") + frame(9, 0, 3, b"x") + frame(9, 4, 3, b"y"))
        kind, flags, stream, block = await read(reader)
        assert (kind, flags, stream) == (1, 5, 1)
        assert b"\x0bgrpc-status\x0212" in block
        told = unquote(block.decode("latin-1"))
        assert "use the HTTP API at http://127.0.0.1:3500, see docs/compatibility.md" in told
        assert await read(reader) == (3, 0, 1, bytes(4))
        assert await read(reader) == (8, 0, 0, (5).to_bytes(4, "big"))
        assert (await read(reader))[:3] == (1, 5, 3)
    told = "a gRPC request was refused: there is no gRPC API yet; the HTTP API is at http://127.0.0.1:3500"
    assert caplog.messages.count(told) == 1


async def test_pings_are_answered_byte_by_byte() -> None:
    """A client that looks whether the connection lives finds that it does."""
    async with connected(b"") as (reader, writer):
        for byte in PREFACE + frame(6, 0, 0, b"12345678") + frame(6, ACK, 0, b"another.") + frame(99, 0, 0, b"x"):
            writer.write(bytes([byte]))
            await writer.drain()
        assert [await read(reader) for _ in range(2)] == [(4, 0, 0, b""), (6, ACK, 0, b"12345678")]
        writer.write(frame(7, 0, 0, bytes(8)))
        assert await reader.read() == b""


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01", PREFACE[:-1] + b"x", PREFACE + b"\xff" * 20],
    ids=["HTTP/1.1", "TLS", "almost", "large frame"],
)
async def test_what_is_not_http_2_is_closed(data: bytes) -> None:
    """Nothing is kept of it."""
    async with connected(data) as (reader, _):
        with suppress(ConnectionResetError):
            assert await reader.read() in (b"", frame(4, 0, 0))


async def test_connections_are_bounded() -> None:
    """One too many is admitted, and the one that has been silent longest is closed: silent ones shut nobody out."""
    async with connected() as (reader, writer):
        port = writer.get_extra_info("peername")[1]
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS - 1)]
        for each, _ in others:
            assert await each.readexactly(9) == frame(4, 0, 0)
        assert [await read(reader) for _ in range(2)] == [(4, 0, 0, b""), (4, ACK, 0, b"")]
        writer.write(frame(6, 0, 0, b"12345678"))
        assert await read(reader) == (6, ACK, 0, b"12345678")
        late, closing = await asyncio.open_connection("127.0.0.1", port)
        assert await late.readexactly(9) == frame(4, 0, 0)
        with suppress(ConnectionResetError):
            assert await others[0][0].read() == b""
        writer.write(frame(6, 0, 0, b"12345678"))
        assert await read(reader) == (6, ACK, 0, b"12345678")
        assert not others[1][0].at_eof()
        for each in (closing, *(writing for _, writing in others)):
            each.close()


async def test_ports(tmp_path: Path) -> None:
    """The one that was given, or an error that names it; without one the usual, or a free one if that is taken."""
    wanted = free_port()
    async with answering_grpc(("127.0.0.1",), wanted, None, "x") as port:
        assert port == wanted
        with pytest.raises(ConfigError, match=f"on {wanted}: Address already in use; --dapr-grpc-port"):
            async with answering_grpc(("127.0.0.1",), wanted, None, "x"):
                pass
    async with (
        answering_grpc(("127.0.0.1",), None, None, "x") as first,
        answering_grpc(("127.0.0.1",), None, None, "x") as second,
    ):
        assert first != second
        assert second != PREFERRED_PORT
    path = tmp_path / "grpc.socket"
    async with answering_grpc(("127.0.0.1",), 0, path, "x") as port:
        assert port == 0
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await reader.readexactly(9) == frame(4, 0, 0)
        writer.close()
