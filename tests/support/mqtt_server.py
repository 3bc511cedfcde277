"""A real MQTT server (Eclipse Mosquitto) of a test's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.certificates import Authority, Certificate
from tests.support.server import NotInstalledError, Server

__all__ = ["UNBOUNDED", "MQTTServer", "find_mosquitto", "tls_settings"]

SAVES_WITHIN = 20.0
# An MQTT 5 CONNECT without a client id, with a clean start; and how the answer begins.
CONNECT, CONNACK = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x05\x00\x00\x00", b"\x20"
# By default the server keeps 1,000 messages of a session, and drops what is more.
SETTINGS = ("max_queued_messages 0",)
# It sends all of a session at once, also before any of that is acknowledged.
UNBOUNDED = (*SETTINGS, "max_inflight_messages 0")


def tls_settings(authority: Authority, own: Certificate) -> Sequence[str]:
    """Give the lines of a listener whose clients must prove who they are."""
    files = (f"cafile {authority.path}", f"certfile {own.certificate}", f"keyfile {own.key}")
    return (*files, "require_certificate true")


def find_mosquitto() -> str | None:
    """Give the path of the server; Debian installs it where only root looks."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class MQTTServer(Server):
    """One server."""

    title = "mosquitto"

    def __init__(self, directory: Path, settings: Sequence[str] = SETTINGS) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            settings: Further lines of its configuration; those of a listener count for ours.
        """
        super().__init__(directory)
        found = find_mosquitto()
        if found is None:
            raise NotInstalledError("mosquitto is not installed")
        self._binary = found
        self._settings = settings

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"mqtt://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        lines = [
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {self.directory}/",
            *(["user root"] if os.geteuid() == 0 else []),  # It would give up the right to write there.
            f"listener {self.port} 127.0.0.1",
            *self._settings,
        ]
        file = self.directory / "mosquitto.conf"
        file.write_text("\n".join(lines) + "\n")
        return (self._binary, "-c", str(file))

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            if any("certfile" in line for line in self._settings):
                return True
            connection.sendall(CONNECT)
            return connection.recv(1) == CONNACK

    async def save(self) -> None:
        """Have it write everything to its file, which it otherwise does at intervals."""
        assert self.process is not None
        file = self.directory / "mosquitto.db"
        before = file.stat().st_mtime_ns if file.exists() else 0
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + SAVES_WITHIN
        while not file.exists() or file.stat().st_mtime_ns == before:
            if time.monotonic() > deadline:
                raise TimeoutError("mosquitto did not save")
            await asyncio.sleep(0.005)
