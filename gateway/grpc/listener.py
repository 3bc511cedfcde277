"""The gRPC port: it listens from the start, and what answers is loaded when the first client connects.

So a gateway that nobody speaks gRPC to costs nothing for it (docs/adr/0031-http2.md).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mesh.errors import ConfigError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from gateway.http2.server import HTTP2Connections

__all__ = ["listening_for_grpc"]

logger = logging.getLogger(__name__)

PREFERRED_PORT = 50001
BACKLOG = 2048

Load = Callable[[], "HTTP2Connections"]


class _Loading:
    """What answers, once it is loaded; that is done in a thread, since it takes some ten milliseconds."""

    def __init__(self, load: Load, tasks: asyncio.TaskGroup) -> None:
        self.loaded: HTTP2Connections | None = None
        self._load, self._tasks = load, tasks
        self._loading: asyncio.Task[None] | None = None
        self._waiting: list[_Waiting] = []

    def __call__(self) -> asyncio.Protocol:
        return _Waiting(self) if self.loaded is None else self.loaded()

    def take(self, waiting: _Waiting) -> None:
        """Serve a connection as soon as that can be done."""
        self._waiting.append(waiting)
        if self._loading is None:
            self._loading = self._tasks.create_task(self._run(), name="grpc-load")

    async def _run(self) -> None:
        self.loaded = await asyncio.to_thread(self._load)
        for each in self._waiting:
            each.go_on(self.loaded())
        self._waiting.clear()


class _Waiting(asyncio.Protocol):
    def __init__(self, loading: _Loading) -> None:
        self._loading = loading
        self._data = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.
        self._transport.pause_reading()
        self._loading.take(self)

    def data_received(self, data: bytes) -> None:
        self._data += data  # uvloop delivers what was there before the pause.

    def go_on(self, protocol: asyncio.Protocol) -> None:
        """Hand over to what answers."""
        if self._transport.is_closing():
            return
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._data:
            protocol.data_received(self._data)
        self._transport.resume_reading()


@asynccontextmanager
async def listening_for_grpc(
    load: Load, hosts: Sequence[str], port: int | None, socket_path: Path | None, drain: Callable[[], float]
) -> AsyncIterator[int]:
    """Accept clients of gRPC; give the port, 0 for a socket file.

    Leaving accepts no more and lets open calls finish.

    Args:
        load: Loads what answers; called in a thread.
        hosts: Addresses.
        port: 0 = a free one; None = the usual one, or a free one if somebody has that.
        socket_path: A socket file instead.
        drain: Gives the seconds that open calls may take at the end.

    Raises:
        ConfigError: The port is taken.
    """
    async with task_group() as tasks:
        loading = _Loading(load, tasks)
        try:
            servers = await _listen(loading, hosts, PREFERRED_PORT if port is None else port, socket_path)
        except OSError as error:
            if port is not None or error.errno != errno.EADDRINUSE:
                why = f"{socket_path or port or PREFERRED_PORT}: {os.strerror(error.errno or 0)}"
                raise ConfigError(f"cannot listen on {why}; --dapr-grpc-port sets another port") from error
            servers = await _listen(loading, hosts, 0, None)
        try:
            yield 0 if socket_path is not None else int(servers[0].sockets[0].getsockname()[1])
        finally:
            for server in servers:
                server.close()
            if loading.loaded is not None:
                await loading.loaded.drain(drain())


async def _listen(
    make: Callable[[], asyncio.Protocol], hosts: Sequence[str], port: int, socket_path: Path | None
) -> list[asyncio.Server]:
    loop = asyncio.get_running_loop()
    if socket_path is not None:
        socket_path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, before anything runs
        return [await loop.create_unix_server(make, str(socket_path), backlog=BACKLOG)]
    servers: list[asyncio.Server] = []
    for host in hosts:
        try:
            servers.append(await loop.create_server(make, host, port, backlog=BACKLOG))
            port = port or int(servers[0].sockets[0].getsockname()[1])
        except OSError as error:
            if error.errno != errno.EADDRINUSE and servers:
                continue  # A machine without IPv6.
            for server in servers:
                server.close()
            raise
    return servers
