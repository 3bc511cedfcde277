"""A real RabbitMQ server of a test's own."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

__all__ = ["RabbitMQServer", "find_rabbitmq_server"]

READY_WITHIN = 90.0
STOPS_WITHIN = 30.0
GREETING = b"AMQP\0\0\x09\x01"
DEBIAN = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # The one on PATH changes the user.
CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users.guest = true
disk_free_limit.absolute = 10MB
log.file.level = info
log.console = false
raft.wal_max_size_bytes = 64000000
"""


def _free_port() -> int:
    """Give a port that no outgoing connection takes while the server is restarted."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return int(probe.getsockname()[1])


def find_rabbitmq_server() -> Path | None:
    """Give the path of the server's own script."""
    if DEBIAN.exists():
        return DEBIAN
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class RabbitMQServer:
    """One server with a name mapper (epmd) of its own; a restart keeps its ports and its data.

    Usable from several event loops, one after the other.
    """

    def __init__(self, directory: Path, config: str = "") -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            config: Further lines for ``rabbitmq.conf``.
        """
        found = find_rabbitmq_server()
        if found is None:
            raise FileNotFoundError("rabbitmq-server is not installed")
        self._binary = found
        self._directory = directory
        self._config = config
        self._epmd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self._node = f"mesh{self.port}@localhost"
        self._cluster = f"mesh{self.port}@".encode()
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))},
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(_free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_ALLOW_INPUT": "true",  # The script becomes the server, instead of being its parent.
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-noinput -kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
            ),
        }

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._end_all()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end_all()

    async def _end_all(self) -> None:
        await self._end(force=True)
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            epmd.kill()
            await asyncio.to_thread(epmd.wait)

    async def start(self) -> None:
        """Start it, and return when it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "rabbitmq.conf").write_text(CONFIG.format(port=self.port) + self._config)
        (self._directory / "enabled_plugins").write_text("[].\n")
        if self._epmd is None:
            port = self._environ["ERL_EPMD_PORT"]
            epmd = shutil.which("epmd") or "epmd"
            self._epmd = self._run([epmd, "-port", port, "-address", "127.0.0.1"])
            await asyncio.to_thread(_wait_for_port, int(port))
        self._process = self._run([str(self._binary)])
        await asyncio.to_thread(self._wait_ready)

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._directory / "output.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=self._environ,
                start_new_session=True,
            )

    def _wait_ready(self) -> None:
        """Wait until this node, and no other that took the port, greets."""
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
                connection.sendall(GREETING)
                if self._cluster in connection.recv(4096):  # connection.start names its cluster.
                    return
            time.sleep(0.05)
        output = "\n".join(path.read_text()[-3000:] for path in sorted(self._directory.glob("**/*.log")))
        raise RuntimeError(f"RabbitMQ did not start: {output}")

    async def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        await self._end(force=True)

    async def stop(self) -> None:
        """End it in good order."""
        await self._end(force=False)

    async def restart(self, *, kill: bool = False) -> None:
        """End it and start it again, on the same ports and data."""
        await self._end(force=kill)
        await self.start()

    async def _end(self, *, force: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill() if force else process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOPS_WITHIN)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # Its helpers (os_mon, erl_child_setup).


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.01)
    raise RuntimeError(f"nobody listens on port {port}")
