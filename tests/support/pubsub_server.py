"""A server that answers as Google's Pub/Sub does: its own fake, by gRPC and REST (tests/support/pubsub)."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server

__all__ = ["PubSubServer"]


class PubSubServer(Server):
    """What it had is gone when it ends.

    Attributes:
        grpc_port: Where it speaks gRPC.
    """

    title = "the server of Pub/Sub"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        cache = Path(os.environ.get("BROKERMESH_SDKS") or Path.home() / ".cache/brokermesh-tests/sdks")
        built = max(cache.glob("pubsub-*/pubsub"), key=lambda path: path.stat().st_mtime, default=None)
        if built is None:
            raise NotInstalledError(f"{self.title} is not installed: tests/provision/pubsub.sh")
        self._binary = built
        self.grpc_port = free_port()

    @property
    def url(self) -> str:
        """Where it answers by REST."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Give its command line."""
        return (str(self._binary), str(self.port), str(self.grpc_port))

    def answers(self) -> bool:
        """Ask whether it listens."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True
