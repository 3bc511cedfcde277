"""A real Redis server of a test's own."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.server import Server

__all__ = ["RedisSentinel", "RedisServer", "find_redis_server"]

# With "everysec" a reply may precede the write while an fsync is under way, and kill -9 then loses what was confirmed.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


def find_redis_server() -> str | None:
    """Give the path of the server."""
    return shutil.which("redis-server")


class RedisServer(Server):
    """One server."""

    title = "redis-server"

    def __init__(self, directory: Path, options: Sequence[str] = DURABLE) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            options: Of its command line.
        """
        super().__init__(directory)
        found = find_redis_server()
        if found is None:
            raise FileNotFoundError("redis-server is not installed")
        self._binary = found
        self._options = options

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return (self._binary, *self._arguments())

    def _arguments(self) -> list[str]:
        """Give those of its command line."""
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        return [*own, *self._options]

    def answers(self) -> bool:
        assert self.process is not None
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            connection.sendall(b"INFO\r\n")
            with connection.makefile("rb") as lines:
                first = lines.readline()
                if first.startswith(b"-NOAUTH"):
                    return True
                text = lines.read(int(first[1:])) if first.startswith(b"$") else b""
        found = dict(line.split(b":", 1) for line in text.split(b"\r\n") if b":" in line)
        return int(found.get(b"process_id", 0)) == self.process.pid and found.get(b"loading", b"0") == b"0"


class RedisSentinel(RedisServer):
    """A Sentinel; its options are lines of its configuration, which it goes on to write itself."""

    def _arguments(self) -> list[str]:
        config = self.directory / "sentinel.conf"
        if not config.exists():
            own = (f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}")
            config.write_text("\n".join((*own, *self._options, "")))
        return [str(config), "--sentinel"]
