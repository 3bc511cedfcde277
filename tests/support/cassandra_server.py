"""A Cassandra of a test's own: one node."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import Cluster

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server

__all__ = ["CassandraServer"]

HOME = Path(os.environ.get("BROKERMESH_CASSANDRA", Path.home() / ".cache/brokermesh-tests/cassandra"))
# The classes that a server loads, as a JVM maps them into its memory; `tests/provision/cassandra.sh` has it made.
ARCHIVE = HOME / "classes.jsa"

# What Cassandra 5.0 needs of Java 17, as its own scripts start it.
_EXPORTS = (
    "java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch "
    "java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server "
    "java.rmi/sun.rmi.transport.tcp java.sql/java.sql jdk.unsupported/sun.misc"
)
_OPENS = (
    "java.base/java.lang.module java.base/jdk.internal.loader java.base/jdk.internal.ref "
    "java.base/jdk.internal.reflect java.base/jdk.internal.math java.base/jdk.internal.module "
    "java.base/jdk.internal.util.jar jdk.management/com.sun.management.internal java.base/sun.nio.ch "
    "java.base/java.io java.base/java.nio java.base/java.lang java.base/java.util "
    "java.base/java.util.concurrent java.base/java.util.concurrent.atomic java.base/java.lang.reflect"
)
_LOGGING = """<configuration><appender name="out" class="ch.qos.logback.core.ConsoleAppender"><encoder>
<pattern>%-5level %d{HH:mm:ss.SSS} %logger{0} %msg%n</pattern></encoder></appender>
<root level="WARN"><appender-ref ref="out"/></root></configuration>
"""

_TLS = """
client_encryption_options:
  enabled: true
  optional: true
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
  keystore: {}
"""


class CassandraServer(Server):
    """Apache Cassandra, which has on its disk what it confirmed.

    Attributes:
        more: Options of its JVM, besides those of all.
        closed: Whether only its user ``cassandra`` may log in, whose password is the same.
        certificate: What it shows to clients that want TLS, a file of a key and a certificate; None = nothing.
    """

    title = "Cassandra"

    def __init__(self, directory: Path, *, closed: bool = False, certificate: Path | None = None) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self.closed = closed
        self.certificate = certificate
        self._java = shutil.which("java")
        if self._java is None or not next(HOME.glob("libs/cassandra-all-*.jar"), None):
            raise NotInstalledError(f"Cassandra is not in {HOME}: run tests/provision/cassandra.sh")
        self.more: tuple[str, ...] = (f"-XX:SharedArchiveFile={ARCHIVE}",) if ARCHIVE.exists() else ()
        self._storage = free_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Write its configuration, and give its command line."""
        (self.directory / "logback.xml").write_text(_LOGGING)
        (self.directory / "cassandra.yaml").write_text(self._configuration())
        properties = {
            "cassandra.config": (self.directory / "cassandra.yaml").as_uri(),
            "cassandra.storagedir": str(self.directory),
            "logback.configurationFile": str(self.directory / "logback.xml"),
            "cassandra.skip_wait_for_gossip_to_settle": "0",
            "cassandra.ring_delay_ms": "1",
            "cassandra.superuser_setup_delay_ms": "0",
            "cassandra-foreground": "yes",
            "jdk.attach.allowAttachSelf": "true",
        }
        return (
            str(self._java),
            *("-Xms512m", "-Xmx512m", "-Xss384k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote", *self.more),
            *(f"--add-exports={each}=ALL-UNNAMED" for each in _EXPORTS.split()),
            *(f"--add-opens={each}=ALL-UNNAMED" for each in _OPENS.split()),
            *(f"-D{name}={value}" for name, value in properties.items()),
            *("-cp", f"{HOME}/libs/*", "org.apache.cassandra.service.CassandraDaemon"),
        )

    def _configuration(self) -> str:
        return f"""
cluster_name: tests
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
authenticator: {"PasswordAuthenticator" if self.closed else "AllowAllAuthenticator"}
data_file_directories: [{self.directory}/data]
commitlog_directory: {self.directory}/commitlog
saved_caches_directory: {self.directory}/saved
hints_directory: {self.directory}/hints
cdc_raw_directory: {self.directory}/cdc
commitlog_sync: batch
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "127.0.0.1:{self._storage}"}}]
listen_address: 127.0.0.1
rpc_address: 127.0.0.1
storage_port: {self._storage}
native_transport_port: {self.port}
""" + (_TLS.format(self.certificate) if self.certificate else "")

    def execute(self, statement: str) -> Sequence[tuple[object, ...]]:
        """Run a statement, as another program would."""
        user = PlainTextAuthProvider("cassandra", "cassandra") if self.closed else None
        with Cluster(["127.0.0.1"], port=self.port, auth_provider=user) as cluster:
            return [tuple(row) for row in cluster.connect().execute(statement)]

    def answers(self) -> bool:
        """Ask which options it has; one whose port is taken ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            connection.sendall(bytes((4, 0, 0, 0, 5, 0, 0, 0, 0)))
            return connection.recv(16)[4:5] == b"\x06"


async def _make_archive() -> None:
    """Have a server write down which classes it has loaded; `tests/provision/cassandra.sh` calls this once."""
    with tempfile.TemporaryDirectory(dir=HOME) as directory:
        server = CassandraServer(Path(directory) / "server")
        made = Path(directory) / "classes.jsa"
        server.more = (f"-XX:ArchiveClassesAtExit={made}",)
        async with server:
            await asyncio.to_thread(server.execute, "SELECT release_version FROM system.local")
            await server.stop()
        made.replace(ARCHIVE)


if __name__ == "__main__":
    asyncio.run(_make_archive())
