"""The gRPC port: it listens from the start, and what answers is loaded when the first client connects.

So a gateway that nobody speaks gRPC to costs nothing for it (docs/adr/0031-http2.md).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gateway.config import GRPC_PORT
from gateway.http.loading import Connections, Loading
from gateway.socket_file import BACKLOG, bound, listen_at, place_of, port_of, serve_at
from mesh.errors import ConfigError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from gateway.given import Passing

__all__ = ["listening_for_grpc"]

logger = logging.getLogger(__name__)


@asynccontextmanager
async def listening_for_grpc(
    load: Callable[[], Connections],
    hosts: Sequence[str],
    port: int | None,
    socket_path: Path | None,
    drain: Callable[[], float],
    sockets: Sequence[socket.socket] = (),
    note: Callable[[int], None] = lambda _: None,
    passing: Passing | None = None,
) -> AsyncIterator[int]:
    """Accept clients of gRPC; give the port, 0 for a socket file.

    Leaving accepts no more and lets open calls finish.

    Args:
        load: Loads what answers; called in a thread.
        hosts: Addresses.
        port: 0 = a free one; None = the usual one, or a free one if somebody has that.
        socket_path: A socket file instead.
        drain: Gives the seconds that open calls may take at the end.
        sockets: Listen already, in place of all that; they are closed here at the end.
        note: Is told the port.
        passing: Passes new connections to other processes; None = there is none.

    Raises:
        ConfigError: The port or the socket file is taken.
    """
    async with AsyncExitStack() as passed, task_group() as tasks:
        loading = Loading(load, tasks)
        if sockets:
            port, make = port_of(sockets[0]), cast("Callable[[], asyncio.Protocol]", loading)
            if passing is not None:
                name = f"grpc {place_of(sockets[0])}"
                make = await passed.enter_async_context(passing.entrance(name, loading, loading.alive))
            ends = [await serve_at(each, make) for each in sockets]
        elif socket_path is not None:
            port, ends = 0, [await listen_at(socket_path, loading)]
        else:
            port, ends = await _listen_at_any(loading, hosts, port)
        note(port)
        try:
            yield port
        finally:
            for end in ends:
                end()
            await loading.drain(drain())


async def _listen_at_any(
    make: Callable[[], asyncio.Protocol], hosts: Sequence[str], port: int | None
) -> tuple[int, list[Callable[[], None]]]:
    """Listen at a port; give it, and what ends that."""
    try:
        return await _listen(make, hosts, GRPC_PORT if port is None else port)
    except OSError as error:
        if port is not None or error.errno != errno.EADDRINUSE:
            why = f"{port or GRPC_PORT}: {os.strerror(error.errno or 0)}"
            raise ConfigError(f"cannot listen on {why}; --dapr-grpc-port sets another port") from error
        return await _listen(make, hosts, 0)


async def _listen(
    make: Callable[[], asyncio.Protocol], hosts: Sequence[str], port: int
) -> tuple[int, list[Callable[[], None]]]:
    loop = asyncio.get_running_loop()
    servers: list[asyncio.Server] = []
    for host in hosts:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, *_, where in dict.fromkeys(found):
                listening = bound(family, (where[0], port, *where[2:]))
                servers.append(await loop.create_server(make, sock=listening, backlog=BACKLOG))
                port = port or int(listening.getsockname()[1])
        except OSError as error:
            if error.errno != errno.EADDRINUSE and servers:
                continue  # A machine without IPv6.
            for server in servers:
                server.close()
            raise
    return port, [server.close for server in servers]
