"""Real RabbitMQ servers of a test's own."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server, Servers

__all__ = ["RabbitMQCluster", "RabbitMQServer", "find_rabbitmq_server"]

EPMD_WITHIN = 30.0
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


def find_rabbitmq_server() -> Path | None:
    """Give the path of the server's own script."""
    if DEBIAN.exists():
        return DEBIAN
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class RabbitMQServer(Server):
    """One server with a name mapper (epmd) of its own."""

    title = "RabbitMQ"

    def __init__(self, directory: Path, config: str = "") -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            config: Further lines for ``rabbitmq.conf``.
        """
        super().__init__(directory)
        found = find_rabbitmq_server()
        if found is None:
            raise NotInstalledError("rabbitmq-server is not installed")
        self._binary = found
        self._config = config
        self._epmd: subprocess.Popen[bytes] | None = None
        self._node = f"mesh{self.port}@localhost"
        self._cluster = f"mesh{self.port}@".encode()
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))},
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_ALLOW_INPUT": "true",  # The script becomes the server, instead of being its parent.
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_PLUGINS_DIR": str(directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-noinput -kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
            ),
        }

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}"

    def environ(self) -> Mapping[str, str]:
        return self._environ

    def command(self) -> Sequence[str]:
        (self.directory / "rabbitmq.conf").write_text(CONFIG.format(port=self.port) + self._config)
        (self.directory / "enabled_plugins").write_text("[].\n")
        self._offer_no_plugins()
        self._map_names()
        return (str(self._binary),)

    def _map_names(self) -> None:
        if self._epmd is None:
            number = self._environ["ERL_EPMD_PORT"]
            self._epmd = self.run((shutil.which("epmd") or "epmd", "-port", number, "-address", "127.0.0.1"))
            _wait_for_port(int(number))

    def _offer_no_plugins(self) -> None:
        """Leave only the server's own parts where it looks for plugins: it reads them all, at each start."""
        plugins = self.directory / "plugins"
        plugins.mkdir(exist_ok=True)
        for part in (self._binary.resolve().parents[1] / "plugins").glob("rabbit[-_][c0-9]*"):
            (plugins / part.name).unlink(missing_ok=True)
            (plugins / part.name).symlink_to(part)

    def control(self, *words: str) -> None:
        """Run ``rabbitmqctl`` on it."""
        tool = self._binary.with_name("rabbitmqctl")
        subprocess.run((tool, "-q", *words), env={**self._environ}, check=True, capture_output=True, timeout=120)

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            connection.sendall(GREETING)
            if self._cluster not in connection.recv(4096):  # connection.start names its cluster.
                return False
        # That of TLS is opened after the other one.
        for number in re.findall(r"^listeners\.ssl\.1 = 127\.0\.0\.1:(\d+)$", self._config, re.MULTILINE):
            socket.create_connection(
                ("127.0.0.1", int(number)), timeout=5.0
            ).close()  # It is opened after the other one.
        return True

    async def close(self) -> None:
        await super().close()
        await asyncio.to_thread(self._end_epmd)

    def end(self) -> None:
        super().end()
        self._end_epmd()

    def _end_epmd(self) -> None:
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            epmd.kill()
            epmd.wait()


class _Member(RabbitMQServer):
    """One of a cluster, whose names the first one maps."""

    def join(self, cluster: RabbitMQServer, first: RabbitMQServer) -> None:
        """Have it join the first one, when it starts for the first time."""
        self._environ["ERL_EPMD_PORT"] = cluster._environ["ERL_EPMD_PORT"]
        self._cluster = f"cluster_{cluster.port}".encode()
        self._config += f"cluster_name = {self._cluster.decode()}\n"
        if self is not first:
            for number, node in enumerate((first, self), 1):
                self._config += f"cluster_formation.classic_config.nodes.{number} = {node._node}\n"

    def _map_names(self) -> None:
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text("OFTESTS")


class RabbitMQCluster(Servers, RabbitMQServer):
    """Servers that share their queues; one may be killed, and what is in quorum queues goes on."""

    servers: Sequence[_Member]

    def __init__(self, directory: Path, nodes: int = 3, config: str = "") -> None:
        """Prepare; entering starts them.

        Args:
            directory: An empty directory.
            nodes: How many.
            config: Further lines for each ``rabbitmq.conf``.
        """
        super().__init__(directory)
        self.servers = [_Member(directory / f"node{number}", config) for number in range(1, nodes + 1)]
        self._formed = False
        for server in self.servers:
            server.join(self, self.servers[0])

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._map_names)
        if not self._formed:
            for server in self.servers:  # Two that join at a time wait for each other's lock, for seconds.
                await server.start()
            self._formed = True
            return
        # After an orderly end each waits for those that ended after it.
        await super().start()


def _wait_for_port(number: int) -> None:
    deadline = time.monotonic() + EPMD_WITHIN
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", number), timeout=1.0):
            return
        time.sleep(0.01)
    raise RuntimeError(f"nobody listens on port {number}")
