"""What answers on the gRPC port until the API is there: every call is UNIMPLEMENTED, with a sentence that says so.

A client would otherwise see a refused connection and look for a gateway that does not run. The answer is the same for
each call, so what is asked is not read: that takes the frames of HTTP/2, and no library.

Source: RFC 9113 sections 3.4, 4.1, 6 and 8.1; RFC 7541 sections 5.1, 5.2 and 6; gRPC over HTTP/2, "Trailers-Only".
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast
from urllib.parse import quote

from mesh.errors import ConfigError

__all__ = ["answering_grpc"]

logger = logging.getLogger(__name__)

PREFERRED_PORT = 50001
MAX_CONNECTIONS = 256
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
MAX_FRAME_BYTES = 16384
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
NO_ERROR = bytes(4)
NO_TABLE, STATUS_200, CONTENT_TYPE, NEW_NAME = b"\x20", b"\x88", b"\x0f\x10", b"\x00"
UNIMPLEMENTED = "12"


def _text(text: str) -> bytes:
    """Write a string for a header block: its length with a prefix of seven bits, and its bytes as they are."""
    data = text.encode("ascii")
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, length = len(data) - 127, bytearray([127])
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes([*length, rest]) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _header_block(message: str) -> bytes:
    """Write the headers that are an answer without a body."""
    fields = (("grpc-status", UNIMPLEMENTED), ("grpc-message", quote(message, safe=" /:;,.[]")))
    named = b"".join(NEW_NAME + _text(name) + _text(value) for name, value in fields)
    return NO_TABLE + STATUS_200 + CONTENT_TYPE + _text("application/grpc") + named


def _telling_once(http_address: str) -> Callable[[], None]:
    """Give what warns of calls, the first time that it is called: some clients only wait, and say nothing."""
    told = False

    def asked() -> None:
        nonlocal told
        if not told:
            told = True
            logger.warning("a gRPC request was refused: there is no gRPC API yet; the HTTP API is at %s", http_address)

    return asked


class _Connection(asyncio.Protocol):
    """One client. Of too many, the one that has been silent longest makes room."""

    def __init__(self, block: bytes, connections: dict[asyncio.Transport, None], asked: Callable[[], None]) -> None:
        self._block = block
        self._asked = asked
        self._connections = connections
        self._transport: asyncio.Transport
        self._data = bytearray()
        self._greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.
        if len(self._connections) >= MAX_CONNECTIONS:
            silent = next(iter(self._connections))
            del self._connections[silent]
            silent.abort()
        self._connections[self._transport] = None
        self._transport.write(_frame(SETTINGS, 0, 0))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.pop(self._transport, None)

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._transport in self._connections:  # It moves to the end.
            del self._connections[self._transport]
            self._connections[self._transport] = None
        self._data += data
        if not self._greeted:
            if not self._data.startswith(PREFACE[: len(self._data)]):
                self._transport.abort()
                return
            if len(self._data) < len(PREFACE):
                return
            self._greeted = True
            del self._data[: len(PREFACE)]
        while len(self._data) >= HEAD_BYTES and not self._transport.is_closing():
            size = int.from_bytes(self._data[:3], "big")
            if size > MAX_FRAME_BYTES:
                self._transport.abort()
                return
            end = HEAD_BYTES + size
            if len(self._data) < end:
                return
            kind, flags, stream = self._data[3], self._data[4], int.from_bytes(self._data[5:9], "big") & 0x7FFFFFFF
            self._take(kind, flags, stream, bytes(self._data[HEAD_BYTES:end]))
            del self._data[:end]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (HEADERS, CONTINUATION) and flags & END_HEADERS and stream:
            answer = _frame(HEADERS, END_HEADERS | END_STREAM, stream, self._block)
            self._transport.write(answer + _frame(RST_STREAM, 0, stream, NO_ERROR))  # What it still sends is not read.
            self._asked()
        elif kind == DATA and payload:  # Sent before it heard of that; the others share its window.
            self._transport.write(_frame(WINDOW_UPDATE, 0, 0, len(payload).to_bytes(4, "big")))
        elif kind == SETTINGS and not flags & ACK:
            self._transport.write(_frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._transport.write(_frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self._transport.close()


@asynccontextmanager
async def answering_grpc(
    hosts: Sequence[str], port: int | None, socket_path: Path | None, http_address: str
) -> AsyncIterator[int]:
    """Answer gRPC calls, the first with a warning in the log; give the port, 0 for a socket file.

    Args:
        hosts: Addresses.
        port: 0 = a free one; None = the usual one, or a free one if somebody has that.
        socket_path: A socket file instead.
        http_address: Where the HTTP API is, for the sentence.

    Raises:
        ConfigError: The port is taken.
    """
    message = f"there is no gRPC API in this version; use the HTTP API at {http_address}, see docs/compatibility.md"
    block = _header_block(message)
    asked = _telling_once(http_address)
    connections: dict[asyncio.Transport, None] = {}  # Those that have said something last stand last.
    loop = asyncio.get_running_loop()

    def make() -> _Connection:
        return _Connection(block, connections, asked)

    async def listen(number: int) -> list[asyncio.Server]:
        if socket_path is not None:
            socket_path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, before anything runs
            return [await loop.create_unix_server(make, str(socket_path))]
        servers: list[asyncio.Server] = []
        for host in hosts:
            try:
                servers.append(await loop.create_server(make, host, number))
                number = number or int(servers[0].sockets[0].getsockname()[1])
            except OSError as error:
                if error.errno != errno.EADDRINUSE and servers:
                    continue  # A machine without IPv6.
                for server in servers:
                    server.close()
                raise
        return servers

    try:
        servers = await listen(PREFERRED_PORT if port is None else port)
    except OSError as error:
        if port is not None or error.errno != errno.EADDRINUSE:
            why = f"{socket_path or port or PREFERRED_PORT}: {os.strerror(error.errno or 0)}"
            raise ConfigError(f"cannot listen on {why}; --dapr-grpc-port sets another port") from error
        servers = await listen(0)
    try:
        yield 0 if socket_path is not None else int(servers[0].sockets[0].getsockname()[1])
    finally:
        for server in servers:
            server.close()
        for transport in list(connections):
            transport.abort()
