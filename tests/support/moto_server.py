"""A server of a test's own that answers as AWS does; what it holds is gone when it ends."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.server import NotInstalledError, Server

__all__ = ["CREDENTIALS", "MotoServer"]

CREDENTIALS: Mapping[str, str] = {"region": "eu-central-1", "accessKey": "AKIATEST", "secretKey": "aws-s3cret"}


class MotoServer(Server):
    """moto's server: one for all services."""

    title = "moto's server"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        if importlib.util.find_spec("moto") is None:
            raise NotInstalledError("moto is not installed")

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Give its command line."""
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        """Ask whether it listens."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True
