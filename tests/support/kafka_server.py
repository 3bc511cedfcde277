"""A real Apache Kafka of a test's own: each process is broker and controller in one (KRaft)."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.eventually import eventually
from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server, Servers

if TYPE_CHECKING:
    from aiokafka.admin import AIOKafkaAdminClient

__all__ = ["MAKES_TOPICS", "OAUTH", "KafkaCluster", "KafkaServer", "find_kafka"]

CONFIG = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}{more}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy}{more}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT{protocols}
controller.listener.names=CONTROLLER
log.dirs={directory}/data
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=2
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
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
# Of a broker whose listener takes tokens; format it with the listener's name in small letters, where the keys are that
# sign them (JWKS), and for whom they must be.
OAUTH = """\
listener.name.{name}.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.{name}.oauthbearer.sasl.server.callback.handler.class=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.{name}.oauthbearer.sasl.oauthbearer.jwks.endpoint.url={keys}
listener.name.{name}.oauthbearer.sasl.oauthbearer.expected.audience={audience}
listener.name.{name}.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
"""
# Of a broker that makes topics when they are asked for.
MAKES_TOPICS = "auto.create.topics.enable=true\nnum.partitions=4\n"
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
        *,
        node: int = 1,
        controllers: Mapping[int, int] | None = None,
    ) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            config: Further lines for ``server.properties``.
            listeners: The protocols of further listeners, by name.
            scram: Passwords of users that log in by SCRAM.
            node: Its number in its cluster.
            controllers: Where each of its cluster listens as a controller, by number; without, it is alone.
        """
        super().__init__(directory)
        found = find_kafka()
        if found is None:
            raise NotInstalledError("Kafka is not installed")
        self._libs = found
        archive = archive_of(found)
        self.more: tuple[str, ...] = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        self._config = config
        self._node = node
        self._controllers = dict(controllers or {node: free_port()})
        self.proxied_port = free_port()
        self.proxy_port = free_port()
        self._protocols = dict(listeners or {})
        self._scram = dict(scram or {})
        self.listeners = {name: free_port() for name in self._protocols}

    @property
    def url(self) -> str:
        """Where it listens; few partitions make topics quickly."""
        return f"kafka://{self.bootstrap}?partitions=4"

    @property
    def bootstrap(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        properties = self.directory / "server.properties"
        replicas = min(3, len(self._controllers))
        properties.write_text(
            CONFIG.format(
                node=self._node,
                voters=",".join(f"{node}@127.0.0.1:{number}" for node, number in self._controllers.items()),
                replicas=replicas,
                in_sync=replicas // 2 + 1,
                port=self.port,
                proxied=self.proxied_port,
                proxy=self.proxy_port,
                controller=self._controllers[self._node],
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
            about = data / "meta.properties"
            own = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
            text = re.sub(r"(?m)^node\.id=.*", f"node.id={self._node}", about.read_text())
            about.write_text(re.sub(r"(?m)^directory\.id=.*", f"directory.id={own}", text))
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


class KafkaCluster(Servers):
    """Servers that share their topics, node 1 first; one may be killed, and what has three replicas goes on."""

    servers: Sequence[KafkaServer]

    title = "Kafka"
    HEAP = "-Xmx256m"

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        config: str = "",
        listeners: Mapping[str, str] | None = None,
        scram: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; entering starts them.

        Args:
            directory: An empty directory.
            nodes: How many.
            config: Further lines for each ``server.properties``.
            listeners: As of one server.
            scram: As of one server.
        """
        super().__init__(directory)
        controllers = {node: free_port() for node in range(1, nodes + 1)}
        # A broker that gets no processor for a while is not gone.
        config = f"broker.session.timeout.ms=2000\n{config}"
        self.servers = [
            KafkaServer(directory / f"node{node}", config, listeners, scram, node=node, controllers=controllers)
            for node in controllers
        ]
        for server in self.servers:
            server.more = (*server.more, self.HEAP)

    @property
    def url(self) -> str:
        """Where they listen."""
        return f"kafka://{self.bootstrap}?partitions=4"

    @property
    def bootstrap(self) -> str:
        """Host and port of each."""
        return ",".join(server.bootstrap for server in self.servers)

    async def create_topic(self, name: str, partitions: int = 3, replicas: int = 3, **config: str) -> None:
        """Make a topic, and return when all its replicas are in sync.

        Args:
            name: Its name.
            partitions: How many.
            replicas: How many of each.
            config: Of the topic, with ``_`` for ``.`` in names.
        """
        from aiokafka.admin import NewTopic
        from aiokafka.errors import for_code

        async with self._admin() as admin:
            settings = {key.replace("_", "."): value for key, value in config.items()}
            made = await admin.create_topics([NewTopic(name, partitions, replicas, topic_configs=settings)])
            for _, code, *_ in made.topic_errors:
                if code:
                    raise for_code(code)(name)
        await self.in_sync(name, replicas)

    async def in_sync(self, topic: str, replicas: int = 3) -> None:
        """Return when each partition of a topic has a leader and that many replicas in sync."""

        async def check() -> None:
            partitions = await self._partitions(topic)
            assert all(len(each["isr"]) == replicas for each in partitions), partitions

        await eventually(check, within=60.0)

    async def leader(self, topic: str, partition: int = 0) -> KafkaServer:
        """Give the server that leads a partition."""
        found = await eventually(lambda: self._partitions(topic), within=60.0)
        return self.servers[found[partition]["leader"] - 1]

    async def _partitions(self, topic: str) -> list[dict[str, Any]]:
        """Ask one of the brokers, who may not know yet."""
        async with self._admin() as admin:
            (found,) = await admin.describe_topics([topic])
        partitions: list[dict[str, Any]] = sorted(found["partitions"], key=itemgetter("partition"))
        assert partitions, found
        assert all(each["leader"] > 0 for each in partitions), partitions
        return partitions

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        from aiokafka.admin import AIOKafkaAdminClient

        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


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
