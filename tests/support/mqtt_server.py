"""A real MQTT server (Eclipse Mosquitto) of a test's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.processes import free_port

__all__ = ["MQTTServer", "find_mosquitto"]

READY_WITHIN = 20.0
# An MQTT 5 CONNECT without a client id, with a clean start; and how the answer begins.
CONNECT, CONNACK = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x05\x00\x00\x00", b"\x20"
# By default the server keeps 1,000 messages of a session, and drops what is more.
SETTINGS = ("max_queued_messages 0",)


def find_mosquitto() -> str | None:
    """Give the path of the server; Debian installs it where only root looks."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class MQTTServer:
    """One server; a restart keeps its port and its data.

    Usable from several event loops, one after the other.
    """

    def __init__(self, directory: Path, settings: Sequence[str] = SETTINGS) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            settings: Further lines of its configuration; those of a listener count for ours.
        """
        found = find_mosquitto()
        if found is None:
            raise FileNotFoundError("mosquitto is not installed")
        self._binary = found
        self._directory = directory
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end(force=True)

    async def start(self) -> None:
        """Start it, and return when it has read its data and answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        lines = [
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {self._directory}/",
            *(["user root"] if os.geteuid() == 0 else []),  # It would give up the right to write there.
            f"listener {self.port} 127.0.0.1",
            *self._settings,
        ]
        file = self._directory / "mosquitto.conf"
        file.write_text("\n".join(lines) + "\n")
        with (self._directory / "server.log").open("ab") as log:
            command = [self._binary, "-c", str(file)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        await asyncio.to_thread(self._wait_ready)

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                if self._answers() and self._process.poll() is None:
                    return
            time.sleep(0.005)
        self._process.kill()
        self._process.wait()
        raise RuntimeError(f"mosquitto did not start: {(self._directory / 'server.log').read_text()[-2000:]}")

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            if any("certfile" in line for line in self._settings):
                return True
            connection.sendall(CONNECT)
            return connection.recv(1) == CONNACK

    async def save(self) -> None:
        """Have it write everything to its file, which it otherwise does at intervals."""
        assert self._process is not None
        file = self._directory / "mosquitto.db"
        before = file.stat().st_mtime_ns if file.exists() else 0
        self._process.send_signal(10)  # SIGUSR1
        deadline = time.monotonic() + READY_WITHIN
        while not file.exists() or file.stat().st_mtime_ns == before:
            if time.monotonic() > deadline:
                raise TimeoutError("mosquitto did not save")
            await asyncio.sleep(0.005)

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
