"""A TCP proxy that does to a connection what networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Self

__all__ = ["Proxy"]

CHUNK_BYTES = 64 * 1024
FIRST_BYTES = 4096
RESETS = struct.pack("ii", 1, 0)  # To be closed with a reset, as by a process that is killed with something unread.


class Proxy:
    """Forwards connections to a port, until told otherwise.

    Attributes:
        port: Where it listens on 127.0.0.1.
        accepted: How many connections it has had.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        """Prepare; entering listens.

        Args:
            target_port: Where it forwards to, on 127.0.0.1.
            port: Where it listens; 0 picks a free one.
        """
        self._target_port = target_port
        self.port = port
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._delay = 0.0
        self._cut_after: dict[bool, int] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        while self._connections:
            await next(iter(self._connections)).done.wait()
        await self._server.wait_closed()

    def cut(self, said: bytes = b"") -> int:
        """Reset every connection whose client said this at its beginning; new ones are accepted. Give their number."""
        cut = [connection for connection in self._connections if said in connection.said and not connection.broken]
        for connection in cut:
            connection.cut()
        return len(cut)

    def cut_after(self, size_bytes: int, *, upwards: bool = True) -> None:
        """Reset the connection that has carried so many more bytes towards the server, or towards the client."""
        self._cut_after[upwards] = size_bytes

    def stall(self) -> None:
        """Forward nothing more on the present connections, and read nothing; new ones work."""
        for connection in self._connections:
            connection.flowing.clear()

    def resume(self) -> None:
        """End a stall."""
        for connection in self._connections:
            connection.flowing.set()

    def delay(self, seconds: float) -> None:
        """Hold everything for so long, in both directions."""
        self._delay = seconds

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port, limit=CHUNK_BYTES)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection([writer, up_writer])
        if self._server is None or not self._server.is_serving():  # It was accepted just before the end.
            connection.cut()
            return
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(connection, reader, up_writer, upwards=True))
                tasks.create_task(self._pump(connection, up_reader, writer, upwards=False))
        finally:
            connection.cut()
            self._connections.discard(connection)
            connection.done.set()

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool
    ) -> None:
        with suppress(OSError):
            while not connection.broken and (data := await reader.read(CHUNK_BYTES)):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await connection.flowing.wait()
                if upwards and len(connection.said) < FIRST_BYTES:
                    connection.said += data
                left = self._cut_after.get(upwards)
                if left is not None:
                    if len(data) >= left:
                        del self._cut_after[upwards]
                        writer.write(data[:left])
                        await writer.drain()
                        break
                    self._cut_after[upwards] = left - len(data)
                writer.write(data)
                await writer.drain()
        connection.cut()


class _Connection:
    def __init__(self, writers: list[asyncio.StreamWriter]) -> None:
        self._writers = writers
        self.broken = False
        self.said = b""
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.done = asyncio.Event()

    def cut(self) -> None:
        self.broken = True
        self.flowing.set()
        for writer in self._writers:
            if not writer.transport.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
            writer.transport.abort()
