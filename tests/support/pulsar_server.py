"""A real Apache Pulsar of a test's own: broker, bookie and metadata in one process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.request import Request, urlopen

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server

__all__ = ["PulsarServer", "find_pulsar"]

# A line for a name that is there twice counts where it stands last.
CONFIG = """
advertisedAddress=127.0.0.1
bindAddress=127.0.0.1
brokerServicePort={port}
webServicePort={admin}
{more}
"""
PACKAGES = (
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/java.util.zip",
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.platform",
    "java.management/sun.management",
    "jdk.management/com.sun.management.internal",
)
JAVA = (
    "-Xmx384m",
    "-XX:MaxDirectMemorySize=256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.net.preferIPv4Stack=true",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dlog4j.configurationFile=log4j2.yaml",
    "-Dlog4j2.is.webapp=false",
    "-Dpulsar.log.appender=Console",
    "-Dpulsar.log.level=warn",
    "-Dpulsar.log.root.level=warn",
    "-Dpulsar.routing.appender.default=Console",
)


def find_pulsar() -> Path | None:
    """Give the server's directory; `tests/provision/pulsar.sh` puts it there."""
    home = Path(os.environ.get("BROKERMESH_PULSAR") or Path.home() / ".cache/brokermesh-tests/pulsar")
    return home if shutil.which("java") and (home / "conf/standalone.conf").exists() else None


class PulsarServer(Server):
    """One server; its namespace is ``public/default``, and topics are made when they are first used.

    Attributes:
        admin_port: Of its REST interface.
    """

    title = "Apache Pulsar"

    def __init__(self, directory: Path, config: str = "", token: str = "") -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            config: Further lines for ``standalone.conf``.
            token: A superuser's, where the configuration asks for one.
        """
        super().__init__(directory)
        found = find_pulsar()
        if found is None:
            raise NotInstalledError(f"{self.title} is not installed: tests/provision/pulsar.sh")
        self._home = found
        self._config = config
        self._token = token
        self._bookie = free_port()
        self.admin_port = free_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"pulsar://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """Its REST interface."""
        return f"http://127.0.0.1:{self.admin_port}/admin/v2"

    def command(self) -> Sequence[str]:
        config = self.directory / "standalone.conf"
        given = (self._home / "conf/standalone.conf").read_text()
        config.write_text(given + CONFIG.format(port=self.port, admin=self.admin_port, more=self._config))
        data = self.directory / "data"
        return (
            "java",
            *JAVA,
            *(f"--add-opens={package}=ALL-UNNAMED" for package in PACKAGES),
            "-cp",
            f"{self._home / 'conf'}:{self._home / 'lib'}/*",
            "org.apache.pulsar.PulsarStandaloneStarter",
            "--config",
            str(config),
            "--no-functions-worker",
            "--no-stream-storage",
            "--metadata-dir",
            str(data / "metadata"),
            "--bookkeeper-dir",
            str(data / "bookkeeper"),
            "--bookkeeper-port",
            str(self._bookie),
        )

    def answers(self) -> bool:
        """Ask for the namespace, which it makes last."""
        login = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        with urlopen(Request(f"{self.admin_url}/namespaces/public/default", headers=login), timeout=5.0) as response:
            return bool(response.status == 200)
