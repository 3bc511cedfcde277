"""The port where Prometheus asks for metrics."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from gateway.config import METRICS_PORTS, GatewayConfig
from gateway.errors import APIError
from gateway.http.response import Response, render
from gateway.http.server import HTTPServer
from gateway.metrics.exposition import CONTENT_TYPE
from gateway.socket_file import bound, port_of
from mesh.errors import ConfigError

__all__ = ["listening_for_metrics"]

logger = logging.getLogger(__name__)

CLOSING_SECONDS = 1.0
MAX_CONNECTIONS = 32
MAX_HEADER_BYTES = 16 * 1024


@asynccontextmanager
async def listening_for_metrics(
    config: GatewayConfig, text: Callable[[bool], Awaitable[bytes]], sockets: Sequence[socket.socket] = ()
) -> AsyncIterator[int]:
    """Answer whoever asks, by any path; give the port.

    Args:
        config: The gateway's.
        text: Gives the metrics as Prometheus reads them; given True, by gzip.
        sockets: Listen already, in place of a port; they are closed here at the end.

    Raises:
        ConfigError: The port that was asked for is taken, or there is no such address.
    """

    async def answer(request: web.BaseRequest) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405, fields=[("Allow", "GET, HEAD")])
        packed = _takes_gzip(request.headers.getall("Accept-Encoding", ()))
        fields = [("Content-Type", CONTENT_TYPE), ("Vary", "Accept-Encoding")]
        try:
            told = await text(packed)
        except APIError as error:
            return render(error)
        return Response(200, told, [*fields, ("Content-Encoding", "gzip")] if packed else fields)

    server = HTTPServer(answer, max_body_bytes=1, max_header_bytes=MAX_HEADER_BYTES, max_connections=MAX_CONNECTIONS)
    runner = web.ServerRunner(server.connections(), shutdown_timeout=CLOSING_SECONDS)
    await runner.setup()
    try:
        for each in sockets:
            await web.SockSite(runner, each).start()
        yield port_of(sockets[0]) if sockets else await _listen(config, runner)
    finally:
        await runner.cleanup()


def _takes_gzip(accepted: Iterable[str]) -> bool:
    """Tell whether who asks names gzip, and not as what it does not take (RFC 9110 section 12.5.3)."""
    for each in ",".join(accepted).lower().split(","):
        coding, *parameters = (part.strip() for part in each.split(";"))
        if coding == "gzip":
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", each) for each in parameters)
    return False


async def _listen(config: GatewayConfig, runner: web.ServerRunner) -> int:
    host, asked = config.metrics_listen, config.metrics_port
    ports = (asked,) if asked is not None else (*METRICS_PORTS, 0)
    for port in ports:
        try:
            await _listen_at(runner, host, port)
        except OSError as error:
            if asked is None and error.errno == errno.EADDRINUSE:
                continue
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
            text = f"cannot listen on {host}, port {port}, for metrics: {why}; --metrics-port sets another"
            raise ConfigError(text) from error
        found = int(runner.addresses[0][1])
        if asked is None and found != METRICS_PORTS[0]:
            logger.info("metrics are on port %d: %d is taken", found, METRICS_PORTS[0])
        return found
    raise AssertionError


async def _listen_at(runner: web.ServerRunner, host: str, port: int) -> None:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, where = found[0]
    await web.SockSite(runner, bound(family, where)).start()
