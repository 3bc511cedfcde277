"""A real Redis server of a test's own."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.mesh import port

__all__ = ["RedisSentinel", "RedisServer", "find_redis_server"]

READY_WITHIN = 20.0
# With "everysec" a reply may precede the write while an fsync is under way, and kill -9 then loses what was confirmed.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


def find_redis_server() -> str | None:
    """Give the path of the server."""
    return shutil.which("redis-server")


class RedisServer:
    """One server; a restart keeps its port and its data.

    Usable from several event loops, one after the other.
    """

    def __init__(self, directory: Path, options: Sequence[str] = DURABLE) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            options: Of its command line.
        """
        found = find_redis_server()
        if found is None:
            raise FileNotFoundError("redis-server is not installed")
        self._binary = found
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end(force=True)

    async def start(self) -> None:
        """Start it, and return when it has read its data and answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "server.log").open("ab") as log:
            command = [self._binary, *self._arguments()]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        await asyncio.to_thread(self._wait_ready)

    def _arguments(self) -> list[str]:
        """Give those of its command line."""
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        return [*own, *self._options]

    def _wait_ready(self) -> None:
        """Wait until this process, and no other that took the port, answers."""
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                if self._answers():
                    return
            time.sleep(0.005)
        self._process.kill()
        self._process.wait()
        raise RuntimeError(f"redis-server did not start: {(self._directory / 'server.log').read_text()[-2000:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            connection.sendall(b"INFO\r\n")
            with connection.makefile("rb") as lines:
                first = lines.readline()
                if first.startswith(b"-NOAUTH"):
                    return True
                text = lines.read(int(first[1:])) if first.startswith(b"$") else b""
        found = dict(line.split(b":", 1) for line in text.split(b"\r\n") if b":" in line)
        return int(found.get(b"process_id", 0)) == self._process.pid and found.get(b"loading", b"0") == b"0"

    async def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        await self._end(force=True)

    async def stop(self) -> None:
        """End it in good order."""
        await self._end(force=False)

    async def restart(self, *, kill: bool = False) -> None:
        """End it and start it again, on the same port and data."""
        await self._end(force=kill)
        await self.start()

    async def _end(self, *, force: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill() if force else process.terminate()
            await asyncio.to_thread(process.wait)


class RedisSentinel(RedisServer):
    """A Sentinel; its options are lines of its configuration, which it goes on to write itself."""

    def _arguments(self) -> list[str]:
        config = self._directory / "sentinel.conf"
        if not config.exists():
            own = (f"port {self.port}", "bind 127.0.0.1", f"dir {self._directory}")
            config.write_text("\n".join((*own, *self._options, "")))
        return [str(config), "--sentinel"]
