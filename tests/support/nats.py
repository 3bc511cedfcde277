"""A real nats-server of a test's own."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.support.processes import free_port

__all__ = ["NatsServer", "find_nats_server"]

READY_WITHIN = 10.0


def find_nats_server() -> str | None:
    """Give the path of the server of our own environment, or else of PATH."""
    own = Path(sys.executable).parent / "nats-server"
    return str(own) if own.exists() else shutil.which("nats-server")


class NatsServer:
    """One server with JetStream; a restart keeps its port and its store.

    Usable from several event loops, one after the other.
    """

    def __init__(self, store: Path, binary: str | None = None, config: str = "") -> None:
        """Prepare; entering starts it.

        Args:
            store: An empty directory, or one of an earlier server.
            binary: The server's path; None looks for it.
            config: The text of its configuration file.
        """
        found = binary or find_nats_server()
        if found is None:
            raise FileNotFoundError("nats-server is not installed")
        self._binary = found
        self._store = store
        self._config = config
        self.name = f"test-{time.monotonic_ns()}"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://{self.address}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.kill()  # Nobody needs its store any more, and a kill takes no time.

    async def start(self) -> None:
        """Start it, and return when it answers."""
        own = ["-js", "-sd", str(self._store), "-a", "127.0.0.1", "-p", str(self.port), "-n", self.name]
        self._store.mkdir(parents=True, exist_ok=True)
        config = self._store / "nats.conf"
        config.touch(0o600)
        config.write_text(self._config)
        command = [self._binary, "-c", str(config), *own]
        with (self._store / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        await asyncio.to_thread(self._wait_ready)

    def _wait_ready(self) -> None:
        """Wait until this process, and no other that took the port, greets."""
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                    line = connection.makefile("rb").readline()
                if line.startswith(b"INFO ") and json.loads(line[5:])["server_name"] == self.name:
                    return
            except OSError:
                pass
            time.sleep(0.005)
        self._process.kill()
        self._process.wait()
        raise RuntimeError(f"nats-server did not start: {(self._store / 'server.log').read_text()[-2000:]}")

    async def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        await self._end(force=True)

    async def stop(self) -> None:
        """End it in good order."""
        await self._end(force=False)

    async def restart(self, *, kill: bool = False) -> None:
        """End it and start it again, on the same port and store."""
        await self._end(force=kill)
        await self.start()

    async def _end(self, *, force: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill() if force else process.terminate()
            await asyncio.to_thread(process.wait)
