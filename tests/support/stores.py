"""The components that the suites of ``tests/stores`` run against; a new one is a row of a table here.

A row says how to make the component, and which server it needs. What the store can do, its adapter declares.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio import RedisCluster as ClusterClient

from mesh.blocks.configuration import SET, Set
from mesh.node.runtime import Runtime
from mesh.resources.component import Secret, SecretRef
from tests.support.azure_servers import AzuriteServer, CosmosDBServer
from tests.support.cassandra_server import CassandraServer
from tests.support.datastore_server import DatastoreServer
from tests.support.extension import install
from tests.support.hand_servers import HandServer
from tests.support.kubernetes_api import KubernetesAPI
from tests.support.mariadb_server import MariaDBServer
from tests.support.mongodb_replica_set import ReplicaSet
from tests.support.nats import NatsServer
from tests.support.nodes import ask, component
from tests.support.pluggable_server import pluggable
from tests.support.postgresql_server import PostgreSQLServer
from tests.support.redis_server import RedisCluster, RedisServer, RedisStack, RedisWatched
from tests.support.server import Server
from tests.support.small_servers import DynamoDBServer, EtcdServer, MemcachedServer, MongoDBServer

__all__ = ["CONFIGURATION", "LOCK", "STATE", "ConfigurationKind", "Served", "StoreKind", "kubeconfig_for"]

PATIENCE = 30.0  # Seconds that a start may take beside all other tests.


@dataclass(frozen=True, slots=True)
class Served:
    """A store that can be used.

    Attributes:
        settings: Of the component, by name; what stands in a secret store as one that was read from there.
        backbone: URL of the node's.
        server: What can be restarted; None = nothing.
        version: Of the component.
    """

    settings: Mapping[str, str | Secret]
    backbone: str = "memory:"
    server: Server | HandServer | None = None
    version: str = "v1"

    def component(self, name: str, kind: str, **more: str | Secret) -> Any:
        """Make the component."""
        made = component(name, kind, version=self.version, **{**self.settings, **more})
        return replace(made, init_timeout=PATIENCE)


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A row.

    Attributes:
        type: Of the component.
        serve: Given an empty directory, starts what it needs; raises FileNotFoundError where that is not installed.
        restarts: Whether its server may be killed and started again without the loss of what it confirmed.
        metadata: What the suite says of every key, as that all of a transaction are of one partition.
        checks: Whether a transaction may have items that are only checked.
        longest_key: The most characters that a key can have with its prefix; None = it takes those of the suite.
        app_id: What the suite calls its applications; a transaction on a Redis cluster needs keys of one slot.
        keys: Some of all kinds that it takes.
        largest: Bytes of a value that it takes.
        many: Keys that its server writes within a deadline.
    """

    type: str
    serve: Callable[[Path], AbstractAsyncContextManager[Served]]
    restarts: bool = False
    app_id: str = "{}"
    keys: tuple[str, ...] = ("ünï/code key", "a.b=c", "A.b=c", "a.b=c ", "1" * 200, "1" * 300)
    largest: int = 1024 * 1024
    many: int = 10_000
    longest_key: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    checks: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationKind(StoreKind):
    """A row of a table of configuration stores.

    Attributes:
        put: Writes a value into the store of a node's component ``store``, as its users do; None deletes the key.
        versions: Whether the values that it writes have versions.
        whole: Whether asking for no keys gives all that are there.
        any_key: Whether a key may be any text; else it has letters, digits, dots and dashes.
    """

    put: Callable[[Runtime, Served, str, str | None], Awaitable[None]]
    versions: bool = True
    whole: bool = True
    any_key: bool = True


@asynccontextmanager
async def _in_process(directory: Path) -> AsyncIterator[Served]:
    yield Served({})


@asynccontextmanager
async def _encrypted(directory: Path) -> AsyncIterator[Served]:
    yield Served({"primaryEncryptionKey": Secret("0f" * 32, SecretRef("keys", "first"))})


@asynccontextmanager
async def _sqlite(directory: Path) -> AsyncIterator[Served]:
    yield Served({"connectionString": str(directory / "state.db")})


@asynccontextmanager
async def _extension(directory: Path) -> AsyncIterator[Served]:
    installed = str(await asyncio.to_thread(install, directory))
    sys.path.append(installed)
    try:
        yield Served({"folder": str(directory / "state"), "sync": "false"})
    finally:
        sys.path.remove(installed)


@asynccontextmanager
async def _postgresql(directory: Path, version: str = "v1") -> AsyncIterator[Served]:
    async with PostgreSQLServer(directory) as server:
        yield Served({"connectionString": server.connection_string}, server=server, version=version)


@asynccontextmanager
async def _mysql(directory: Path) -> AsyncIterator[Served]:
    async with MariaDBServer(directory) as server:
        yield Served({"connectionString": server.connection_string}, server=server)


def _nats(directory: Path) -> NatsServer:
    return NatsServer(directory, config="max_payload: 8MB")


def _on_backbone(make: Callable[[Path], Server]) -> Callable[[Path], AbstractAsyncContextManager[Served]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[Served]:
        async with make(directory) as server:
            yield Served({}, server.url, server)

    return serve


# What the suite's queries ask for.
_INDEXES = (
    '[{"name":"people","indexes":[{"key":"person.org","type":"TEXT"},{"key":"person.id","type":"NUMERIC"},'
    '{"key":"state","type":"TAG"}]}]'
)


def _redis(make: Callable[[Path], Server], **settings: str) -> Callable[[Path], AbstractAsyncContextManager[Served]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[Served]:
        async with make(directory) as server:
            yield Served({"redisHost": f"127.0.0.1:{server.port}", **settings}, server=server)

    return serve


@asynccontextmanager
async def _redis_cluster(directory: Path) -> AsyncIterator[Served]:
    async with RedisCluster(directory) as cluster:
        yield Served({"redisHost": cluster.hosts, "redisType": "cluster"}, server=cluster)


@asynccontextmanager
async def _redis_sentinel(directory: Path) -> AsyncIterator[Served]:
    async with RedisWatched(directory, sentinels=1) as watched:
        settings = {"redisHost": watched.hosts, "failover": "true", "sentinelMasterName": watched.MASTER}
        yield Served(settings, server=watched)


def _etcd(version: str) -> Callable[[Path], AbstractAsyncContextManager[Served]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[Served]:
        async with EtcdServer(directory) as server:
            yield Served({"endpoints": server.url, "keyPrefixPath": "tests"}, server=server, version=version)

    return serve


def _memcached(servers: int) -> Callable[[Path], AbstractAsyncContextManager[Served]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[Served]:
        async with AsyncExitStack() as stack:
            started = [
                await stack.enter_async_context(MemcachedServer(directory / str(number))) for number in range(servers)
            ]
            # The reply may take longer than a second while both cores are busy.
            yield Served({"hosts": ",".join(server.url for server in started), "timeout": "10s"})

    return serve


@asynccontextmanager
async def _dynamodb(directory: Path) -> AsyncIterator[Served]:
    async with DynamoDBServer(directory) as server:
        yield Served(server.settings, server=server)


@asynccontextmanager
async def _cosmosdb(directory: Path) -> AsyncIterator[Served]:
    async with CosmosDBServer(directory) as server:
        yield Served(server.settings, server=server)


def _azurite(service: str, version: str = "v1") -> Callable[[Path], AbstractAsyncContextManager[Served]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[Served]:
        async with AzuriteServer(directory, service) as server:
            yield Served(server.settings, server=server, version=version)

    return serve


@asynccontextmanager
async def _cassandra(directory: Path) -> AsyncIterator[Served]:
    async with CassandraServer(directory) as server:
        yield Served({"hosts": server.url}, server=server)


@asynccontextmanager
async def _firestore(directory: Path) -> AsyncIterator[Served]:
    async with await asyncio.to_thread(DatastoreServer, directory) as server:
        yield Served(server.settings, server=server)


@asynccontextmanager
async def _mongodb(directory: Path) -> AsyncIterator[Served]:
    async with MongoDBServer(directory) as server:
        yield Served({"host": server.url}, server=server)


@asynccontextmanager
async def _mongodb_set(directory: Path) -> AsyncIterator[Served]:
    async with ReplicaSet() as server:
        yield Served({"host": f"127.0.0.1:{server.port}", "params": "?replicaSet=rs0"})


def _pluggable(**settings: str) -> Callable[[Path], AbstractAsyncContextManager[Served]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[Served]:
        async with pluggable(directory) as server:
            yield Served(settings, server=server)

    return serve


_MEMCACHED_KEYS = ("ünï/code,key", "a.b=c", "A.b=c", "1" * 100)

# By the name that the tests have.
STATE: Mapping[str, StoreKind] = {
    "in-memory": StoreKind("state.in-memory", _in_process),
    "encrypted": StoreKind("state.in-memory", _encrypted),
    "sqlite": StoreKind("state.sqlite", _sqlite),
    "extension": StoreKind("state.folder", _extension),
    "postgresql": StoreKind("state.postgresql", _postgresql, restarts=True),
    "postgresql-v2": StoreKind("state.postgresql", lambda directory: _postgresql(directory, "v2"), restarts=True),
    "mysql": StoreKind("state.mysql", _mysql, restarts=True, longest_key=255),
    "redis": StoreKind("state.redis", _redis(RedisServer), restarts=True),
    "redis-stack": StoreKind("state.redis", _redis(RedisStack, queryIndexes=_INDEXES), restarts=True),
    "redis-cluster": StoreKind("state.redis", _redis_cluster, restarts=True, app_id="{{{}}}"),
    "redis-sentinel": StoreKind("state.redis", _redis_sentinel),
    "cassandra": StoreKind("state.cassandra", _cassandra, restarts=True, many=2000),
    # An item has at most 400 KiB; moto is slow.
    "dynamodb": StoreKind("state.aws.dynamodb", _dynamodb, largest=384 * 1024, many=1000),
    "cosmosdb": StoreKind(
        "state.azure.cosmosdb",
        _cosmosdb,
        keys=("ünï code%20key", "a.b=c", "A.b=c", "a&b;+:@%", "1" * 200, "1" * 300),
        many=300,
        metadata={"partitionKey": "tests"},
        checks=False,
    ),
    "azure-tables": StoreKind(
        "state.azure.tablestorage",
        _azurite("table"),
        keys=("ünï code%20key", "a.b=c", "A.b=c", "a.b=c ", "it's", "1" * 200, "1" * 300),
        largest=64 * 1024,
        many=300,
    ),
    "azure-blobs": StoreKind("state.azure.blobstorage", _azurite("blob", "v2"), many=300),
    # An entity has at most a MiB less 4 bytes, all in all.
    "firestore": StoreKind("state.gcp.firestore", _firestore, restarts=True, largest=1000 * 1024),
    "etcd-v1": StoreKind("state.etcd", _etcd("v1"), restarts=True),
    "etcd-v2": StoreKind("state.etcd", _etcd("v2"), restarts=True),
    "memcached": StoreKind("state.memcached", _memcached(1), keys=_MEMCACHED_KEYS),
    "memcached-two": StoreKind("state.memcached", _memcached(2), keys=_MEMCACHED_KEYS),
    # The server keeps nothing, and has no transactions.
    "mongodb": StoreKind("state.mongodb", _mongodb, many=3000),
    # Answers of ours: for transactions, which the other server has not.
    "mongodb-set": StoreKind("state.mongodb", _mongodb_set, many=2000),
    "pluggable": StoreKind("state.plugged", _pluggable(), restarts=True, checks=False),
    "pluggable-plain": StoreKind(
        "state.plugged", _pluggable(without="ETAG,TRANSACTIONAL,TTL,QUERY_API,bulk"), many=1000, checks=False
    ),
    "mesh-nats": StoreKind("state.mesh", _on_backbone(_nats), restarts=True),
    "mesh-redis": StoreKind("state.mesh", _on_backbone(RedisServer), restarts=True),
}

LOCK: Mapping[str, StoreKind] = {
    "redis": StoreKind("lock.redis", _redis(RedisServer), restarts=True),
    "redis-cluster": StoreKind("lock.redis", _redis_cluster, restarts=True),
    "redis-sentinel": StoreKind("lock.redis", _redis_sentinel),
    "mesh-memory": StoreKind("lock.mesh", _in_process),
    "mesh-nats": StoreKind("lock.mesh", _on_backbone(_nats), restarts=True),
    "mesh-redis": StoreKind("lock.mesh", _on_backbone(RedisServer), restarts=True),
}


def kubeconfig_for(api: KubernetesAPI | str, directory: Path) -> Path:
    """Write a kubeconfig for a server, or for its URL."""
    cluster, user = {"server": api if isinstance(api, str) else api.url}, {"token": "t0ken"}
    document = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    file = directory / "kubeconfig"
    file.write_text(json.dumps(document))
    return file


@dataclass(frozen=True, slots=True)
class _Cluster(Served):
    api: KubernetesAPI | None = None


@asynccontextmanager
async def _kubernetes(directory: Path) -> AsyncIterator[Served]:
    async with KubernetesAPI("conf") as api:
        yield _Cluster({"configMapName": "conf", "kubeconfigPath": str(kubeconfig_for(api, directory))}, api=api)


async def _edit(runtime: Runtime, served: Served, key: str, value: str | None) -> None:
    assert isinstance(served, _Cluster)
    assert served.api is not None
    served.api.put(key, value)


async def _set(runtime: Runtime, served: Served, key: str, value: str | None) -> None:
    await ask(runtime, SET, "store", Set(key, value))


_TELLING = """
CREATE TABLE IF NOT EXISTS configuration (key varchar NOT NULL, value varchar NOT NULL, version varchar NOT NULL,
    metadata json);
CREATE OR REPLACE FUNCTION tell() RETURNS trigger AS $$
BEGIN
    PERFORM pg_notify('changes', json_build_object('data', json_build_object('key', coalesce(NEW.key, OLD.key)))::text);
    RETURN NULL;
END; $$ LANGUAGE plpgsql;
CREATE OR REPLACE TRIGGER told AFTER INSERT OR UPDATE OR DELETE ON configuration FOR EACH ROW EXECUTE FUNCTION tell();
"""


@asynccontextmanager
async def _configuration_postgresql(directory: Path) -> AsyncIterator[Served]:
    async with PostgreSQLServer(directory) as server:
        server.psql(_TELLING)
        settings = {"connectionString": server.connection_string, "table": "configuration", "notifyChannel": "changes"}
        yield Served(settings, server=server)


async def _put_row(runtime: Runtime, served: Served, key: str, value: str | None) -> None:
    assert isinstance(served.server, PostgreSQLServer)
    named = key.replace("'", "''")
    statement = f"DELETE FROM configuration WHERE key = '{named}'"
    if value is not None:  # Another row, of a higher version.
        version = f"(SELECT coalesce(max(version::int), 8) + 1 FROM configuration WHERE key = '{named}')::varchar"
        statement = f"INSERT INTO configuration VALUES ('{named}', '{value}', {version}, '{{\"by\": 1}}')"
    await asyncio.to_thread(served.server.psql, statement)


async def _put_text(runtime: Runtime, served: Served, key: str, value: str | None) -> None:
    """Write as another program would."""
    host, port = str(served.settings["redisHost"]).split(",")[0].split(":")
    client: Any = (ClusterClient if "redisType" in served.settings else Redis)(host=host, port=int(port))
    async with client:
        await (client.delete(key) if value is None else client.set(key, value))


CONFIGURATION: Mapping[str, ConfigurationKind] = {
    "redis": ConfigurationKind(
        "configuration.redis", _redis(RedisServer), restarts=True, put=_put_text, versions=False
    ),
    "redis-cluster": ConfigurationKind(
        "configuration.redis", _redis_cluster, restarts=True, put=_put_text, versions=False
    ),
    "postgresql": ConfigurationKind("configuration.postgresql", _configuration_postgresql, restarts=True, put=_put_row),
    "kubernetes": ConfigurationKind("configuration.kubernetes", _kubernetes, put=_edit, versions=False, any_key=False),
    "mesh-memory": ConfigurationKind("configuration.mesh", _in_process, put=_set),
    "mesh-nats": ConfigurationKind("configuration.mesh", _on_backbone(_nats), restarts=True, put=_set),
    "mesh-redis": ConfigurationKind("configuration.mesh", _on_backbone(RedisServer), restarts=True, put=_set),
}
