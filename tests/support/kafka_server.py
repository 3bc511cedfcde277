"""A real Apache Kafka of a test's own: one process, broker and controller in one (KRaft)."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.processes import free_port
from tests.support.server import Server

__all__ = ["KafkaServer", "find_kafka"]

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
# A JVM that lives for a test needs no optimizing compiler, and nobody to check the classes.
JAVA = (
    "-Xmx768m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-BytecodeVerificationRemote",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"
_formatted: dict[str, bytes] = {}


def find_kafka() -> Path | None:
    """Give the directory of Kafka's jars; `tests/provision/kafka.sh` puts them there."""
    libs = Path(os.environ.get("BROKERMESH_KAFKA") or Path.home() / ".cache/brokermesh-tests/kafka") / "libs"
    return libs if shutil.which("java") and list(libs.glob("kafka_*.jar")) else None


def archive_of(libs: Path) -> Path:
    """Give where the classes are that a server loads, as a JVM maps them into its memory: nearly half of a start."""
    return libs.parent / "classes.jsa"


class KafkaServer(Server):
    """One server.

    Attributes:
        more: Options of its JVM, besides those of all.
        proxied_port: Where it listens for what comes through a proxy.
        proxy_port: Where that proxy must listen: whoever comes through it is told to come there again.
        listeners: The ports of further listeners, by name.
    """

    title = "Kafka"

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
        super().__init__(directory)
        found = find_kafka()
        if found is None:
            raise FileNotFoundError("Kafka is not installed")
        self._libs = found
        archive = archive_of(found)
        self.more: tuple[str, ...] = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        self._config = config
        self._controller = free_port()
        self.proxied_port = free_port()
        self.proxy_port = free_port()
        self._protocols = dict(listeners or {})
        self._scram = dict(scram or {})
        self.listeners = {name: free_port() for name in self._protocols}

    @property
    def url(self) -> str:
        """Where it listens; few partitions make topics quickly."""
        return f"kafka://127.0.0.1:{self.port}?partitions=4"

    def command(self) -> Sequence[str]:
        properties = self.directory / "server.properties"
        properties.write_text(
            CONFIG.format(
                port=self.port,
                proxied=self.proxied_port,
                proxy=self.proxy_port,
                controller=self._controller,
                directory=self.directory,
                more="".join(f",{name}://127.0.0.1:{number}" for name, number in self.listeners.items()),
                protocols="".join(f",{name}:{protocol}" for name, protocol in self._protocols.items()),
            )
            + self._config
        )
        java = ("java", *JAVA, *self.more, "-cp", f"{self._libs}/*")
        if not (self.directory / "data" / "meta.properties").exists():
            self._format(java, properties)
        return (*java, "kafka.Kafka", str(properties))

    def _format(self, java: Sequence[str], properties: Path) -> None:
        """Have a new directory for data; one without users is a copy of the first, since the tool takes a second."""
        data = self.directory / "data"
        if _formatted and not self._scram:
            data.mkdir()
            for name, content in _formatted.items():
                (data / name).write_bytes(content)
            return
        users = [
            f"--add-scram={mechanism}=[name={name},password={password}]"
            for name, password in self._scram.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ]
        tool = ("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties))
        if self.run((*java, *tool, *users)).wait(self.ready_within) != 0:
            raise RuntimeError(f"Kafka's storage was not formatted: {self.output()}")
        if not self._scram:
            _formatted.update({path.name: path.read_bytes() for path in data.iterdir()})

    def answers(self) -> bool:
        request = struct.pack(">hhih", 18, 0, 7, -1)  # ApiVersions, version 0, from a client without a name.
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return connection.recv(8)[4:] == struct.pack(">i", 7)


async def _make_archive(libs: Path) -> None:
    """Have a server write down which classes it has loaded; `tests/provision/kafka.sh` calls this once."""
    with tempfile.TemporaryDirectory(dir=libs.parent) as directory:
        server = KafkaServer(Path(directory) / "server")
        made = Path(directory) / "classes.jsa"
        server.more = (f"-XX:ArchiveClassesAtExit={made}",)
        async with server:
            await server.stop()
        made.replace(archive_of(libs))


if __name__ == "__main__":
    found = find_kafka()
    assert found is not None
    asyncio.run(_make_archive(found))
