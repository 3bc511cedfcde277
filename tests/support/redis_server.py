"""A real Redis server of a test's own."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.support.eventually import eventually
from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server, Servers

__all__ = ["RedisCluster", "RedisSentinel", "RedisServer", "RedisStack", "RedisWatched", "find_redis_server"]

# With "everysec" a reply may precede the write while an fsync is under way, and kill -9 then loses what was confirmed.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
CLUSTERED = ("--cluster-enabled", "yes", "--cluster-node-timeout", "3000", "--repl-diskless-sync-delay", "0")


def find_redis_server() -> str | None:
    """Give the path of the server."""
    return shutil.which("redis-server")


class RedisServer(Server):
    """One server."""

    title = "redis-server"

    def __init__(self, directory: Path, options: Sequence[str] = DURABLE) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
            options: Of its command line.
        """
        super().__init__(directory)
        found = find_redis_server()
        if found is None:
            raise NotInstalledError("redis-server is not installed")
        self._binary = found
        self.options = options

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return (self._binary, *self._arguments())

    def _arguments(self) -> list[str]:
        """Give those of its command line."""
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        return [*own, *self.options]

    def answers(self) -> bool:
        assert self.process is not None
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            connection.sendall(b"INFO\r\n")
            with connection.makefile("rb") as lines:
                first = lines.readline()
                if first.startswith(b"-NOAUTH"):
                    return True
                text = lines.read(int(first[1:])) if first.startswith(b"$") else b""
        found = dict(line.split(b":", 1) for line in text.split(b"\r\n") if b":" in line)
        return int(found.get(b"process_id", 0)) == self.process.pid and found.get(b"loading", b"0") == b"0"


class RedisSentinel(RedisServer):
    """A Sentinel; its options are lines of its configuration, which it goes on to write itself."""

    def _arguments(self) -> list[str]:
        config = self.directory / "sentinel.conf"
        if not config.exists():
            own = (f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}")
            config.write_text("\n".join((*own, *self.options, "")))
        return [str(config), "--sentinel"]


class RedisStack(RedisServer):
    """A server with the modules for JSON and search."""

    def __init__(self, directory: Path, options: Sequence[str] = DURABLE) -> None:
        """Prepare; entering starts it; arguments as of any."""
        cache = Path.home() / ".cache" / "brokermesh-tests" / "redis-stack"
        self._home = Path(os.environ.get("BROKERMESH_REDIS_STACK") or cache)
        if not (self._home / "libssl.so.1.1").exists():
            raise NotInstalledError("a Redis server with modules is not installed: tests/provision/redis-stack.sh")
        modules = [("--loadmodule", str(self._home / name)) for name in ("redisearch.so", "rejson.so")]
        super().__init__(directory, (*options, *modules[0], *modules[1]))
        self._binary = str(self._home / "redis-server")

    def environ(self) -> Mapping[str, str]:
        return {**os.environ, "LD_LIBRARY_PATH": str(self._home)}


class _RedisServers(Servers):
    title = "redis-server"
    servers: Sequence[RedisServer]

    async def start(self) -> None:
        for server in self.servers:  # A replica that comes before its primary is late.
            await server.start()


class RedisCluster(_RedisServers):
    """Primaries that share the slots."""

    SLOTS = 16384

    def __init__(self, directory: Path, nodes: int = 3, replicas: int = 0, options: Sequence[str] = DURABLE) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier cluster.
            nodes: How many primaries.
            replicas: How many of these, from the first one on, have a replica.
            options: Of each command line.
        """
        super().__init__(directory)
        self._formed = False
        self.servers = [
            RedisServer(
                directory / f"node{number}",
                (*options, *CLUSTERED, "--cluster-port", str(free_port())),
            )
            for number in range(nodes + replicas)
        ]
        self._primaries = nodes

    @property
    def hosts(self) -> str:
        """Host and port of each."""
        return ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    async def start(self) -> None:
        await super().start()
        if not self._formed:
            await self._form()
            self._formed = True
        for server in self.servers:
            await eventually(lambda server=server: _cluster_is_whole(server, len(self.servers)), within=60.0)  # type: ignore[misc]

    async def _form(self) -> None:
        share = -(-self.SLOTS // self._primaries)
        met = self.servers[0]
        for number, server in enumerate(self.servers):
            async with Redis(port=server.port) as client:
                first = number * share
                if number < self._primaries:
                    last = min(first + share, self.SLOTS) - 1
                    await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                if server is not met:
                    await client.execute_command("CLUSTER", "MEET", "127.0.0.1", met.port, met.options[-1])
        for number, server in enumerate(self.servers[self._primaries :]):
            async with Redis(port=self.servers[number].port, decode_responses=True) as client:
                primary = await client.execute_command("CLUSTER", "MYID")
            await eventually(lambda server=server, primary=primary: _follows(server, primary), within=60.0)  # type: ignore[misc]


class RedisWatched(_RedisServers):
    """A primary with a replica, and Sentinels that watch them.

    Attributes:
        primary: At the start.
        replica: At the start.
        hosts: Host and port of each Sentinel.
    """

    MASTER = "main"

    def __init__(self, directory: Path, sentinels: int = 3) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory.
            sentinels: How many.
        """
        super().__init__(directory)
        self.primary = RedisServer(directory / "primary")
        of = ("--replicaof", "127.0.0.1", str(self.primary.port), "--repl-diskless-sync-delay", "0")
        self.replica = RedisServer(directory / "replica", (*DURABLE, *of))
        lines = (
            f"sentinel monitor {self.MASTER} 127.0.0.1 {self.primary.port} {sentinels // 2 + 1}",
            f"sentinel down-after-milliseconds {self.MASTER} 500",
            f"sentinel failover-timeout {self.MASTER} 3000",
        )
        watching = [RedisSentinel(directory / f"sentinel{number}", lines) for number in range(sentinels)]
        self.servers = [self.primary, self.replica, *watching]
        self.hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in watching)
        self._watching = watching

    async def start(self) -> None:
        await super().start()
        for sentinel in self._watching:
            await eventually(lambda sentinel=sentinel: self._knows_all(sentinel), within=40.0)  # type: ignore[misc]

    async def _knows_all(self, sentinel: RedisSentinel) -> None:
        async with Redis(port=sentinel.port, decode_responses=True) as client:
            found = cast("dict[str, str]", await client.execute_command("SENTINEL", "MASTER", self.MASTER))
            replicas = cast("list[dict[str, str]]", await client.execute_command("SENTINEL", "REPLICAS", self.MASTER))
        assert int(found["num-other-sentinels"]) == len(self._watching) - 1, found
        assert [each["master-link-status"] for each in replicas] == ["ok"], replicas


async def _follows(server: RedisServer, primary: str) -> None:
    """Make a server a primary's replica, once it knows it."""
    async with Redis(port=server.port, decode_responses=True) as client:
        state = await client.info("replication")
        if state["role"] == "master":
            try:
                await client.execute_command("CLUSTER", "REPLICATE", primary)
            except ResponseError as error:
                raise AssertionError(str(error)) from error
        assert state.get("master_link_status") == "up", state


async def _cluster_is_whole(server: RedisServer, nodes: int) -> None:
    async with Redis(port=server.port, decode_responses=True) as client:
        told = cast("object", await client.execute_command("CLUSTER", "INFO"))
    text = str(told)
    found = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line) if isinstance(told, str) else told
    assert isinstance(found, dict)
    assert (found["cluster_state"], found["cluster_known_nodes"]) == ("ok", str(nodes)), found
