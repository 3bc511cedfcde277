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

from gateway.http.loading import Connections, Loading
from mesh.errors import ConfigError
from mesh.tasks import task_group

__all__ = ["listening_for_grpc"]

logger = logging.getLogger(__name__)

PREFERRED_PORT = 50001
BACKLOG = 2048


@asynccontextmanager
async def listening_for_grpc(
    load: Callable[[], Connections],
    hosts: Sequence[str],
    port: int | None,
    socket_path: Path | None,
    drain: Callable[[], float],
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
        loading = Loading(load, tasks)
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
            await loading.drain(drain())


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
