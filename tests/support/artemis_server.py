"""A real ActiveMQ Artemis of a test's own: AMQP 1.0, with queues and topics."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server

__all__ = ["PASSWORD", "USER", "ArtemisServer", "find_artemis"]

USER, PASSWORD = "mesh", "artemis-s3cret"
SASL = b"AMQP\x03\x01\x00\x00"
PERMISSIONS = (
    "createNonDurableQueue",
    "deleteNonDurableQueue",
    "createDurableQueue",
    "deleteDurableQueue",
    "createAddress",
    "deleteAddress",
    "consume",
    "browse",
    "send",
    "manage",
)
BROKER = """\
<configuration xmlns="urn:activemq"><core xmlns="urn:activemq:core">
<name>artemis</name>
<journal-type>NIO</journal-type>
<journal-file-size>1M</journal-file-size>
<paging-directory>data/paging</paging-directory>
<bindings-directory>data/bindings</bindings-directory>
<journal-directory>data/journal</journal-directory>
<large-messages-directory>data/large</large-messages-directory>
<critical-analyzer>false</critical-analyzer>
<max-disk-usage>-1</max-disk-usage>
<acceptors>{acceptors}</acceptors>
<security-settings><security-setting match="#">{permissions}</security-setting></security-settings>
<address-settings>{settings}<address-setting match="#">
<dead-letter-address>DLQ</dead-letter-address>
<max-delivery-attempts>-1</max-delivery-attempts>
</address-setting></address-settings>
</core></configuration>
"""
FILES = {
    "bootstrap.xml": '<broker xmlns="http://activemq.apache.org/schema"><jaas-security domain="activemq"/>'
    '<server configuration="file:{directory}/etc/broker.xml"/></broker>',
    "management.xml": '<management-context xmlns="http://activemq.apache.org/schema"/>',
    "login.config": "activemq {{ org.apache.activemq.artemis.spi.core.security.jaas.PropertiesLoginModule required "
    'org.apache.activemq.jaas.properties.user="users.properties" '
    'org.apache.activemq.jaas.properties.role="roles.properties"; }};',
    "users.properties": f"{USER}={PASSWORD}",
    "roles.properties": f"all={USER}",
}


def find_artemis() -> Path | None:
    """Give the broker's directory; `tests/provision/artemis.sh` puts it there."""
    home = Path(os.environ.get("BROKERMESH_ARTEMIS") or Path.home() / ".cache/brokermesh-tests/artemis")
    return home if shutil.which("java") and (home / "lib/artemis-boot.jar").exists() else None


class ArtemisServer(Server):
    """One server; ``queue://NAME`` and ``topic://NAME`` are made when they are first used.

    What is rejected goes to ``queue://DLQ``; what is released or modified is delivered again at once.

    Attributes:
        listeners: The ports of further listeners, by name.
    """

    title = "ActiveMQ Artemis"

    def __init__(self, directory: Path, listeners: Mapping[str, str] | None = None, settings: str = "") -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            listeners: Options of further listeners, by name, as of a query: of TLS, for example.
            settings: Further ``address-setting`` elements.
        """
        super().__init__(directory)
        found = find_artemis()
        if found is None:
            raise NotInstalledError(f"{self.title} is not installed: tests/provision/artemis.sh")
        self._home = found
        self._options = dict(listeners or {})
        self._settings = settings
        self.listeners = {name: free_port() for name in self._options}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        etc = self.directory / "etc"
        etc.mkdir(exist_ok=True)
        for name, content in FILES.items():
            (etc / name).write_text(content.format(directory=self.directory))
        acceptors = [("amqp", self.port, "")]
        acceptors += [(name, self.listeners[name], f";{options}") for name, options in self._options.items()]
        common = "protocols=AMQP;anycastPrefix=queue://;multicastPrefix=topic://;saslMechanisms=PLAIN"
        (etc / "broker.xml").write_text(
            BROKER.format(
                acceptors="".join(
                    f"<acceptor name={quoteattr(name)}>tcp://127.0.0.1:{port}?{common}{options}</acceptor>"
                    for name, port, options in acceptors
                ),
                permissions="".join(f'<permission type="{each}" roles="all"/>' for each in PERMISSIONS),
                settings=self._settings,
            )
        )
        return (
            "java",
            "-Xmx128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            f"-Dartemis.home={self._home}",
            f"-Dartemis.instance={self.directory}",
            f"-Dartemis.instance.etc={etc}",
            f"-Djava.security.auth.login.config={etc / 'login.config'}",
            "-cp",
            f"{self._home / 'lib'}/*",
            "org.apache.activemq.artemis.cli.Artemis",
            "run",
            "--",
            "xml:etc/bootstrap.xml",
        )

    def answers(self) -> bool:
        """Ask whether it speaks AMQP."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            connection.sendall(SASL)
            return connection.recv(8) == SASL
