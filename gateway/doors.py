"""Where a gateway listens: its HTTP API, its gRPC API, and its metrics.

A gateway by itself opens what its configuration names. One of several workers is given sockets that are open already,
and one of several applications on one port has that port's dispatch in place of a socket (``gateway/shared_port.py``).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gateway.config import GatewayConfig
from gateway.grpc.build import build_grpc
from gateway.grpc.listener import listening_for_grpc
from gateway.http.loading import Connections
from gateway.http.scraping import listening_for_metrics
from gateway.http.server import Handler, HTTPServer
from gateway.routes.route import API

if TYPE_CHECKING:
    from gateway.metrics.endpoint import Metrics

__all__ = ["Doors", "Grace", "Listening", "Sockets", "load_http2", "socket_path"]

logger = logging.getLogger(__name__)

Grace = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Sockets:
    """Sockets that listen already; empty where the gateway is to open its own."""

    http: Sequence[socket.socket] = ()
    grpc: Sequence[socket.socket] = ()
    metrics: Sequence[socket.socket] = ()


class Doors(Protocol):
    """How the outside comes to one gateway; each is entered once, and leaving lets what is open finish."""

    def http(self, handler: Handler, grace: Grace) -> AbstractAsyncContextManager[int]:
        """Answer clients of HTTP; gives the port, 0 or less of a socket file."""

    def grpc(self, api: API, http_port: int, metrics: Metrics | None, grace: Grace) -> AbstractAsyncContextManager[int]:
        """Answer clients of gRPC; gives the port, 0 of a socket file."""

    def metrics(self, text: Callable[[bool], Awaitable[bytes]]) -> AbstractAsyncContextManager[int]:
        """Answer who asks for metrics; gives the port."""


class Listening:
    """What a gateway opens for itself, or was given open."""

    def __init__(self, config: GatewayConfig, sockets: Sockets | None = None) -> None:
        """Prepare.

        Args:
            config: The gateway's.
            sockets: In place of the ports that it names; None = it opens these.
        """
        self._config, self._sockets = config, sockets or Sockets()
        self._grpc_port = 0

    def http(self, handler: Handler, grace: Grace) -> AbstractAsyncContextManager[int]:
        """Answer clients of HTTP; gives the port."""
        config = self._config
        server = HTTPServer(
            handler,
            max_body_bytes=config.max_body_bytes,
            max_header_bytes=config.max_header_bytes,
            load_http2=partial(load_http2, config=config, grpc_port=lambda: self._grpc_port) if config.h2c else None,
        )
        own = config.dashboard
        port = own.port() if own is not None and own.port is not None else config.http_port
        path = socket_path(config, "http")
        if path is not None:
            _warn_of_ports(config)
        return server.listening(config.listen, port, path, grace, self._sockets.http)

    def grpc(self, api: API, http_port: int, metrics: Metrics | None, grace: Grace) -> AbstractAsyncContextManager[int]:
        """Answer clients of gRPC; gives the port."""
        config = self._config
        path = socket_path(config, "grpc")
        load = partial(build_grpc, api, 0 if path else http_port, metrics=metrics)
        return listening_for_grpc(load, config.listen, config.grpc_port, path, grace, self._sockets.grpc, self._note)

    def _note(self, port: int) -> None:
        self._grpc_port = port

    def metrics(self, text: Callable[[bool], Awaitable[bytes]]) -> AbstractAsyncContextManager[int]:
        """Answer who asks for metrics; gives the port."""
        return listening_for_metrics(self._config, text, self._sockets.metrics)


def socket_path(config: GatewayConfig, what: str) -> Path | None:
    """Give the socket file of ``http`` or ``grpc``; None = it is a port."""
    folder = config.unix_socket_dir
    return None if folder is None else folder / f"dapr-{config.app_id}-{what}.socket"


def _warn_of_ports(config: GatewayConfig) -> None:
    """Say which ports that were given have no effect beside a socket file."""
    usual = GatewayConfig(config.app_id, config.home).http_port  # Which one that was given cannot be told from.
    ports = {"--dapr-http-port": config.http_port, "--dapr-grpc-port": config.grpc_port}
    given = [f"{name} {port}" for name, port in ports.items() if port and (name, port) != ("--dapr-http-port", usual)]
    if given:
        logger.warning("%s without effect: with --unix-domain-socket the API has no port", " and ".join(given))


def load_http2(handler: Handler, *, config: GatewayConfig, grpc_port: Callable[[], int]) -> Connections:
    """Load what serves the HTTP API over HTTP/2."""
    from gateway.grpc.ports import without_grpc
    from gateway.http2.answering import Answering  # Takes some milliseconds, for clients of HTTP/2 alone.
    from gateway.http2.server import HTTP2Connections

    answering = Answering(handler, config.max_body_bytes, config.max_header_bytes)
    return HTTP2Connections(without_grpc(answering.answer, grpc_port), config.max_header_bytes)
