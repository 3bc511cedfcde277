"""A real nats-server of a test's own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.server import NotInstalledError, Server

__all__ = ["NatsServer", "find_nats_cli", "find_nats_server"]


def find_nats_server() -> str | None:
    """Give the path of the server of our own environment, or else of PATH."""
    own = Path(sys.executable).parent / "nats-server"
    return str(own) if own.exists() else shutil.which("nats-server")


def find_nats_cli() -> str | None:
    """Give the path of the command line client; `tests/provision/nats-cli.sh` puts it there."""
    cache = Path(os.environ.get("BROKERMESH_SDKS") or Path.home() / ".cache/brokermesh-tests/sdks")
    return next((str(path) for path in sorted(cache.glob("nats-cli-*/nats"))), None) or shutil.which("nats")


class NatsServer(Server):
    """One server with JetStream."""

    title = "nats-server"

    def __init__(self, store: Path, binary: str | None = None, config: str = "") -> None:
        """Prepare; entering starts it.

        Args:
            store: An empty directory, or one of an earlier server.
            binary: The server's path; None looks for it.
            config: The text of its configuration file.
        """
        super().__init__(store)
        found = binary or find_nats_server()
        if found is None:
            raise NotInstalledError("nats-server is not installed")
        self._binary = found
        self._config = config
        self.name = f"test-{time.monotonic_ns()}"

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://{self.address}"

    def command(self) -> Sequence[str]:
        config = self.directory / "nats.conf"
        config.touch(0o600)
        config.write_text(self._config)
        own = ("-js", "-sd", str(self.directory), "-a", "127.0.0.1", "-p", str(self.port), "-n", self.name)
        return (self._binary, "-c", str(config), *own)

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            line = connection.makefile("rb").readline()
        return line.startswith(b"INFO ") and json.loads(line[5:])["server_name"] == self.name

    async def forget_index(self) -> None:
        """Kill it, and start it with only those files that it cannot do without."""
        await self.kill()
        for index in self.directory.glob("**/index.db"):
            index.unlink()
        await self.start()
