"""Servers of other systems' state stores, of a test's own."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from aiobotocore.session import get_session

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server

__all__ = ["DynamoDBServer", "EtcdServer", "MemcachedServer", "MongoDBServer"]


def _found(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotInstalledError(f"{name} is not installed")
    return found


class MemcachedServer(Server):
    """memcached, which takes values of up to 4 MiB; what it had is gone when it ends."""

    title = "memcached"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self._binary = _found("memcached")

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return (self._binary, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-I", "4m", "-m", "256", "-u", "root")

    def answers(self) -> bool:
        assert self.process is not None
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            connection.sendall(b"stats\r\n")
            return connection.recv(4096).startswith(b"STAT pid %d\r\n" % self.process.pid)


class EtcdServer(Server):
    """etcd, a cluster of one."""

    title = "etcd"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self._binary = _found("etcd")
        self._peers = free_port()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        clients, peers = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peers}"
        options = {
            "data-dir": str(self.directory / "data"),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
        }
        return (self._binary, *(f"--{name}={value}" for name, value in options.items()))

    def answers(self) -> bool:
        with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1.0) as response:
            return b'"true"' in response.read()


# Its own command serves requests in threads, between which a condition and its write may be torn apart.
_ONE_AT_A_TIME = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""


class DynamoDBServer(Server):
    """The DynamoDB interface of moto; what it had is gone when it ends.

    Attributes:
        settings: Of a component that uses a table of it.
    """

    title = "moto"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self.settings = {
            "table": "state",
            "region": "eu-west-1",
            "endpoint": self.url,
            "accessKey": "testing",
            "secretKey": "testing",
            "ttlAttributeName": "expiresAt",
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return (sys.executable, "-c", _ONE_AT_A_TIME, str(self.port))

    def answers(self) -> bool:
        with urlopen(f"{self.url}/moto-api/data.json", timeout=5.0) as response:
            return bool(response.status == 200)

    async def start(self) -> None:
        """Start it, and make the table."""
        await super().start()
        async with get_session().create_client(
            "dynamodb",
            region_name="eu-west-1",
            endpoint_url=self.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        ) as client:
            await client.create_table(
                TableName="state",
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )


class MongoDBServer(Server):
    """mongo-java-server, which speaks MongoDB's protocol; what it had is gone when it ends.

    It has no replica set, and so neither sessions nor transactions.
    """

    title = "mongo-java-server"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self._java = _found("java")
        places = Path(os.environ.get("BROKERMESH_MONGODB") or Path.home() / ".cache/brokermesh-tests/mongodb")
        found = sorted(places.glob("*/Serve.class"))
        if not found:
            raise NotInstalledError("mongo-java-server is not installed")
        self._classes = found[-1].parent

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        quick = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        return (self._java, *quick, "-cp", f"{self._classes}/*:{self._classes}", "Serve", str(self.port))

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True
