"""A real Apache Kafka of a test's own: one process, broker and controller in one (KRaft)."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.mesh import port

__all__ = ["KafkaServer", "find_kafka"]

READY_WITHIN = 60.0
STOPS_WITHIN = 15.0
CONFIG = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}{more}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy}{more}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT{protocols}
controller.listener.names=CONTROLLER
log.dirs={directory}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
broker.session.timeout.ms=1000
log.index.size.max.bytes=65536
"""
# A JVM that lives for a test needs no optimizing compiler.
JAVA = ("-Xmx768m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"


def find_kafka() -> Path | None:
    """Give the directory of Kafka's jars; `tests/provision/kafka.sh` puts them there."""
    libs = Path(os.environ.get("BROKERMESH_KAFKA") or Path.home() / ".cache/brokermesh-tests/kafka") / "libs"
    return libs if shutil.which("java") and list(libs.glob("kafka_*.jar")) else None


class KafkaServer:
    """One server; a restart keeps its ports and its data.

    Usable from several event loops, one after the other.

    Attributes:
        port: Where it listens.
        proxied_port: Where it listens for what comes through a proxy.
        proxy_port: Where that proxy must listen: whoever comes through it is told to come there again.
        listeners: The ports of further listeners, by name.
    """

    def __init__(
        self,
        directory: Path,
        config: str = "",
        listeners: Mapping[str, str] | None = None,
        scram: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            config: Further lines for ``server.properties``.
            listeners: The protocols of further listeners, by name.
            scram: Passwords of users that log in by SCRAM.
        """
        found = find_kafka()
        if found is None:
            raise FileNotFoundError("Kafka is not installed")
        self._libs = found
        self._directory = directory
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._controller = port()
        self.port = port()
        self.proxied_port = port()
        self.proxy_port = port()
        self._protocols = dict(listeners or {})
        self._scram = dict(scram or {})
        self.listeners = {name: port() for name in self._protocols}

    @property
    def url(self) -> str:
        """Where it listens; few partitions make topics quickly."""
        return f"kafka://127.0.0.1:{self.port}?partitions=4"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._end(force=True)
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end(force=True)

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._directory / "output.log").open("ab") as log:
            return subprocess.Popen(
                ["java", *JAVA, "-cp", f"{self._libs}/*", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )

    async def start(self) -> None:
        """Start it, and return when it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        properties = self._directory / "server.properties"
        properties.write_text(
            CONFIG.format(
                port=self.port,
                proxied=self.proxied_port,
                proxy=self.proxy_port,
                controller=self._controller,
                directory=self._directory,
                more="".join(f",{name}://127.0.0.1:{number}" for name, number in self.listeners.items()),
                protocols="".join(f",{name}:{protocol}" for name, protocol in self._protocols.items()),
            )
            + self._config
        )
        if not (self._directory / "data" / "meta.properties").exists():
            users = [
                f"--add-scram={mechanism}=[name={name},password={password}]"
                for name, password in self._scram.items()
                for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            ]
            tool = ("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties))
            formatting = self._run(*tool, *users)
            await asyncio.to_thread(formatting.wait)
        self._process = self._run("kafka.Kafka", str(properties))
        await asyncio.to_thread(self._wait_ready)

    def _wait_ready(self) -> None:
        """Wait until it answers a request for its versions."""
        assert self._process is not None
        request = struct.pack(">hhih", 18, 0, 7, -1)  # ApiVersions, version 0, from a client without a name.
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
                connection.sendall(struct.pack(">i", len(request)) + request)
                if connection.recv(8)[4:] == struct.pack(">i", 7):
                    return
            time.sleep(0.02)
        raise RuntimeError(f"Kafka did not start: {(self._directory / 'output.log').read_text()[-3000:]}")

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
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
