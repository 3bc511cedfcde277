"""Servers that answer as Azure does, of a test's own: cosmosdb-server and the vendor's emulator, Azurite."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azure.cosmos import PartitionKey
from azure.cosmos.aio import CosmosClient

from tests.support.server import NotInstalledError, Server

__all__ = [
    "ACCOUNT",
    "ACCOUNT_KEY",
    "COSMOS_KEY",
    "AzuriteServer",
    "CosmosDBServer",
    "EventHubsServer",
    "ServiceBusServer",
    "azurite_settings",
    "blob_connection",
]

FOLDER = Path(__file__).parent / "azure"
# The account that Azurite has, as its documentation says.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SERVICE_BUS_KEY = "c2VydmljZSBidXMgaW4gdGVzdHM="
COSMOS_KEY = "dGVzdHMgaGF2ZSB0aGVpciBvd24ga2V5"


class _NodeServer(Server):
    """A package of npm."""

    package: str

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        node = shutil.which("node")
        if node is None or not (FOLDER / "node_modules" / self.package).is_dir():
            raise NotInstalledError(f"{self.title} is not installed: tests/provision/azure.sh")
        self.node = node

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        """Ask whether it listens."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True


class CosmosDBServer(_NodeServer):
    """cosmosdb-server with what ``azure/cosmos.js`` adds; what it had is gone when it ends.

    Attributes:
        settings: Of a component that uses its container.
    """

    title = "cosmosdb-server"
    package = "@vercel/cosmosdb-server"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self.settings = {"url": self.url, "masterKey": COSMOS_KEY, "database": "shop", "collection": "state"}

    def command(self) -> Sequence[str]:
        """Give its command line."""
        return (self.node, str(FOLDER / "cosmos.js"), str(self.port))

    def client(self) -> CosmosClient:
        """Make a client of its own."""
        return CosmosClient(self.url, COSMOS_KEY, enable_endpoint_discovery=False)

    async def start(self) -> None:
        """Start it, and make the containers."""
        await super().start()
        async with self.client() as client:
            database = await client.create_database("shop")
            containers: dict[str, tuple[str, dict[str, Any]]] = {
                "state": ("/partitionKey", {"default_ttl": -1}),
                "forever": ("/partitionKey", {}),
                "other": ("/id", {}),
            }
            for name, (path, options) in containers.items():
                await database.create_container(name, PartitionKey(path), **options)


def azurite_settings(service: str, port: int) -> dict[str, str]:
    """Give the settings of a component that reaches one of Azurite's services at a port."""
    url, account = f"http://127.0.0.1:{port}/{ACCOUNT}", {"accountName": ACCOUNT, "accountKey": ACCOUNT_KEY}
    if service == "table":
        return {**account, "tableName": "state", "serviceURL": url}
    if service == "queue":
        return {**account, "endpoint": url}
    return {**account, "containerName": "state", "endpoint": url}


def blob_connection(port: int) -> str:
    """Give the connection string of Azurite's blobs at a port."""
    address = f"http://127.0.0.1:{port}/{ACCOUNT}"
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={address};"


class AzuriteServer(_NodeServer):
    """Azurite, Microsoft's emulator of blobs, queues and tables.

    Attributes:
        service: Which of the three it is.
        settings: Of a component that uses it.
    """

    title = "Azurite"
    package = "azurite"

    def __init__(self, directory: Path, service: str = "table") -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self.service = service
        self.settings = azurite_settings(service, self.port)

    def command(self) -> Sequence[str]:
        """Give its command line."""
        main = FOLDER / "node_modules/azurite/dist/src" / self.service / "main.js"
        options = (
            "--silent",
            "--disableTelemetry",
            "--skipApiVersionCheck",
            "--location",
            str(self.directory / "data"),
        )
        return (
            self.node,
            str(main),
            *options,
            f"--{self.service}Host",
            "127.0.0.1",
            f"--{self.service}Port",
            str(self.port),
        )


class ServiceBusServer(_NodeServer):
    """``azure/servicebus.js``; what it had is gone when it ends.

    Attributes:
        connection: How it is connected to.
        lock_seconds: How long a lock holds.
    """

    title = "rhea"
    package = "rhea"

    def __init__(self, directory: Path, lock_seconds: float = 2.0) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self.lock_seconds = lock_seconds
        self.connection = self.at(self.port)

    @staticmethod
    def at(port: int, key: str = SERVICE_BUS_KEY) -> str:
        """Give the connection string for a port."""
        return (
            f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=Root;SharedAccessKey={key};UseDevelopmentEmulator=true"
        )

    def command(self) -> Sequence[str]:
        """Give its command line."""
        script = str(FOLDER / "servicebus.js")
        return (self.node, script, str(self.port), SERVICE_BUS_KEY, str(int(self.lock_seconds * 1000)))


class EventHubsServer(ServiceBusServer):
    """``azure/eventhubs.js``, which keeps what it has in its directory."""

    def command(self) -> Sequence[str]:
        """Give its command line."""
        kept = self.directory / "events.jsonl"
        return (self.node, str(FOLDER / "eventhubs.js"), str(self.port), SERVICE_BUS_KEY, str(kept))
