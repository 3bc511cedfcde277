"""What a process has for a gateway that is not the whole of it: sockets that listen already, and how it is measured."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.config import GatewayConfig
from gateway.metrics.process import measure_process

__all__ = ["Given", "Passing", "socket_path"]


class Passing(Protocol):
    """Passes clients' connections to other processes of the gateway (``gateway/http/passing.py``).

    Attributes:
        replaced: Whether another process takes this one's place.
    """

    replaced: bool

    def entrance(
        self, name: str, make: Callable[[], asyncio.Protocol], alive: Callable[[], int]
    ) -> AbstractAsyncContextManager[Callable[[], asyncio.Protocol]]:
        """Give what serves new connections in place of another: one too many goes to another process.

        Args:
            name: The same in all processes.
            make: Serves those that stay, and those that are passed to this one.
            alive: Gives how many there are.
        """

    def leaving(self, name: str) -> Callable[[int], bool] | None:
        """Give what passes on a connection that is idle, by its descriptor; None = nobody takes it."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the process has for a gateway that is not the whole of it.

    Attributes:
        http: Given that listen already; empty where the gateway is to open its own, as of the next two.
        grpc: For clients of gRPC.
        metrics: For those who scrape.
        public: For those who ask for health alone.
        passing: Passes connections to other processes; None = there is none.
        process: Measures the process, or those that are one gateway.
    """

    http: Sequence[socket.socket] = ()
    grpc: Sequence[socket.socket] = ()
    metrics: Sequence[socket.socket] = ()
    public: Sequence[socket.socket] = ()
    passing: Passing | None = None
    process: Callable[[], Awaitable[Mapping[str, float]]] = measure_process


def socket_path(config: GatewayConfig, what: str) -> Path | None:
    """Give the socket file of ``http`` or ``grpc``; None = it is a port."""
    folder = config.unix_socket_dir
    return None if folder is None else folder / f"dapr-{config.app_id}-{what}.socket"
