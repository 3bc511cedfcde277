"""The port that is not for clients: whoever starts and ends the gateway asks there how it is, and has it drain.

A kubelet reaches no loopback address of a pod. All that others learn there is whether the gateway works.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from gateway.config import GatewayConfig
from gateway.errors import APIError
from gateway.http.response import Answered, no_content, render
from gateway.http.server import HTTPServer
from mesh.errors import ConfigError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

__all__ = ["ALIVE", "DRAIN", "DRAIN_KEY_HEADER", "Health", "listening_in_public"]

ALIVE = "/v1.0/healthz/alive"
DRAIN = "/v1.0/mesh/drain"
DRAIN_KEY_HEADER = "mesh-drain-key"
CLOSING_SECONDS = 1.0
MAX_CONNECTIONS = 32
MAX_HEADER_BYTES = 16 * 1024


class Health(Protocol):
    """What is told of a gateway."""

    @property
    def outbound_ready(self) -> bool:
        """Whether calls out of the application work."""

    @property
    def not_ready(self) -> Sequence[str]:
        """What is missing until everything works."""

    async def drain_all(self) -> None:
        """Take nothing more for the application; returns once nothing is in flight."""


@asynccontextmanager
async def listening_in_public(
    config: GatewayConfig, health: Health, sockets: Sequence[socket.socket] = ()
) -> AsyncIterator[None]:
    """Answer on the public port, if there is one.

    Args:
        config: Of the gateway.
        health: What is told of it.
        sockets: Listen already, in place of the port; they are closed here at the end.

    Raises:
        ConfigError: It is taken, or there is no such address.
    """
    if config.public_port is None:
        yield
        return

    async def answer(request: web.BaseRequest) -> Answered:
        try:
            return await _answer(request, config, health)
        except APIError as error:
            return render(error)

    server = HTTPServer(answer, max_body_bytes=1, max_header_bytes=MAX_HEADER_BYTES, max_connections=MAX_CONNECTIONS)
    runner = web.ServerRunner(server.connections(), shutdown_timeout=CLOSING_SECONDS)
    await runner.setup()
    host, port = config.public_listen, config.public_port
    try:
        try:
            if not sockets:
                await web.TCPSite(runner, host, port).start()
            for each in sockets:
                await web.SockSite(runner, each).start()
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
            text = f"cannot listen on {host}, port {port}, for probes: {why}; --dapr-public-port sets another"
            raise ConfigError(text) from error
        yield
    finally:
        await runner.cleanup()


async def _answer(request: web.BaseRequest, config: GatewayConfig, health: Health) -> Answered:
    path = request.raw_path.partition("?")[0]
    if request.method != "GET":
        raise APIError(405, "ERR_HEALTH_PORT", "this port answers to GET alone")
    if path == DRAIN:
        given = request.headers.get(DRAIN_KEY_HEADER, "").encode("utf-8", "surrogateescape")
        if config.drain_key is None or not hmac.compare_digest(given, config.drain_key.encode()):
            raise APIError(401, "ERR_DRAIN_KEY", f"the header {DRAIN_KEY_HEADER} is not what MESH_DRAIN_KEY says")
        await health.drain_all()
    elif path == "/v1.0/healthz":
        if missing := health.not_ready:
            raise APIError(500, "ERR_HEALTH_NOT_READY", f"dapr is not ready: [{' '.join(missing)}]")
    elif path == "/v1.0/healthz/outbound":
        if not health.outbound_ready:
            raise APIError(500, "ERR_OUTBOUND_HEALTH_NOT_READY", "dapr outbound is not ready")
    elif path != ALIVE:
        raise APIError(
            404, "ERR_HEALTH_PORT", f"this port answers for health alone; the API is on port {config.http_port}"
        )
    return no_content()
