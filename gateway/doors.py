"""Where a gateway listens: its HTTP API, its gRPC API, and its metrics.

A gateway by itself opens what its configuration names. One of several workers is given sockets that are open already,
and one of several applications on one port has that port's dispatch in place of a socket (``gateway/shared_port.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Protocol

from gateway.config import GatewayConfig
from gateway.given import Given, socket_path
from gateway.grpc.build import build_grpc
from gateway.grpc.listener import listening_for_grpc
from gateway.http.loading import Connections
from gateway.http.public import Health, listening_in_public
from gateway.http.scraping import listening_for_metrics
from gateway.http.server import Handler, HTTPServer
from gateway.metrics.endpoint import Scraped
from gateway.metrics.exposition import Told
from gateway.routes.route import API

if TYPE_CHECKING:
    from gateway.metrics.endpoint import Metrics

__all__ = ["Doors", "Grace", "Listening", "load_http2"]

logger = logging.getLogger(__name__)

Grace = Callable[[], float]


class Doors(Protocol):
    """How the outside comes to one gateway; each is entered once, and leaving lets what is open finish."""

    def http(self, handler: Handler, grace: Grace) -> AbstractAsyncContextManager[int]:
        """Answer clients of HTTP; gives the port, 0 or less of a socket file."""

    def grpc(self, api: API, http_port: int, metrics: Metrics | None, grace: Grace) -> AbstractAsyncContextManager[int]:
        """Answer clients of gRPC; gives the port, 0 of a socket file."""

    def metrics(self, told: Callable[[], Awaitable[Told]]) -> AbstractAsyncContextManager[int]:
        """Answer who asks for metrics; gives the port."""

    def public(self, health: Health) -> AbstractAsyncContextManager[None]:
        """Answer who asks for health alone, where that is wanted."""


class Listening:
    """What a gateway opens for itself, or was given open."""

    def __init__(self, config: GatewayConfig, given: Given | None = None) -> None:
        """Prepare.

        Args:
            config: The gateway's.
            given: In place of what it would open; None = it opens that.
        """
        self._config, self._given = config, given or Given()
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
        return server.listening(config.listen, port, path, grace, self._given.http, self._given.passing)

    def grpc(self, api: API, http_port: int, metrics: Metrics | None, grace: Grace) -> AbstractAsyncContextManager[int]:
        """Answer clients of gRPC; gives the port."""
        config = self._config
        path = socket_path(config, "grpc")
        load = partial(build_grpc, api, 0 if path else http_port, metrics=metrics)
        return listening_for_grpc(
            load, config.listen, config.grpc_port, path, grace, self._given.grpc, self._note, self._given.passing
        )

    def _note(self, port: int) -> None:
        self._grpc_port = port

    def metrics(self, told: Callable[[], Awaitable[Told]]) -> AbstractAsyncContextManager[int]:
        """Answer who asks for metrics; gives the port."""
        scraped = Scraped(self._given.process)
        scraped.sources[self._config.app_id] = told
        return listening_for_metrics(self._config, scraped.text, self._given.metrics)

    def public(self, health: Health) -> AbstractAsyncContextManager[None]:
        """Answer who asks for health alone, where that is wanted."""
        return listening_in_public(self._config, health, self._given.public)


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
