"""Rows of databases: SQL, and Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import orjson

from mesh.blocks.binding_contract import Invoke, Invoked
from tests.support.bindings.rows import Check, InputKind, OutputKind, ServedOutput, call, gives, nothing
from tests.support.mariadb_server import MariaDBServer
from tests.support.postgresql_server import PostgreSQLServer
from tests.support.redis_server import RedisCluster, RedisServer, RedisWatched
from tests.support.server import Server

__all__ = ["INPUTS", "OUTPUTS", "mariadb", "postgresql"]

_TOLD = {"operation", "sql", "start-time", "end-time", "duration"}


def did(sql: str, changed: int, **metadata: str) -> tuple[Invoke, Check]:
    """Make a call of ``exec``, with a check of what it tells."""

    def check(found: Invoked | None) -> object:
        assert found is not None
        told = found.metadata
        whole = told.keys() == {*_TOLD, "rows-affected"} and told["operation"] == "exec" and told["sql"] == sql
        return whole and found.data is None and told["rows-affected"] == str(changed)

    return call("exec", sql=sql, **metadata), check


def asked(sql: str, rows: object, **metadata: str) -> tuple[Invoke, Check]:
    """Make a call of ``query``, with a check of what it gives."""

    def check(found: Invoked | None) -> object:
        assert found is not None
        return found.metadata.keys() == _TOLD and found.data == orjson.dumps(rows)

    return call("query", sql=sql, **metadata), check


def _calls(one: str, two: str, *, arrays: bool) -> tuple[tuple[Invoke, Check], ...]:
    rows = [[1, "a"], [2, None]] if arrays else [{"id": 1, "name": "a"}, {"id": 2, "name": None}]
    return (
        did("CREATE TABLE shop_orders (id int, name varchar(20))", 0),
        did(f"INSERT INTO shop_orders VALUES ({one}, {two})", 1, params='[1, "a"]'),
        did("INSERT INTO shop_orders VALUES (2, NULL)", 1),
        asked("SELECT id, name FROM shop_orders ORDER BY id", rows),
        asked(f"SELECT id, name FROM shop_orders WHERE id = {one}", rows[:1], params="[1]"),
        asked("SELECT id FROM shop_orders WHERE id = 7", []),
        did("DELETE FROM shop_orders WHERE id < 10", 2),
        did("DROP TABLE shop_orders", 0),
        (call("close"), nothing),
        (call("close"), nothing),
    )


_REFUSED = call("query", sql="SELECT nothing FROM nowhere")


@asynccontextmanager
async def postgresql(directory: Path) -> AsyncIterator[ServedOutput]:
    """Serve PostgreSQL."""
    async with PostgreSQLServer(directory) as server:
        settings = {"connectionString": server.connection_string}
        yield ServedOutput(settings, _calls("$1", "$2", arrays=True), _REFUSED)


@asynccontextmanager
async def mariadb(directory: Path) -> AsyncIterator[ServedOutput]:
    """Serve MariaDB."""
    async with MariaDBServer(directory) as server:
        server.sql("CREATE DATABASE shop")
        settings = {"url": server.connection_string.replace("/?", "/shop?")}
        yield ServedOutput(settings, _calls("?", "?", arrays=False), _REFUSED)


@asynccontextmanager
async def _sqlite(directory: Path) -> AsyncIterator[ServedOutput]:
    yield ServedOutput({"connectionString": str(directory / "shop.db")}, _calls("?", "?", arrays=False), _REFUSED)


_KEYS: tuple[tuple[Invoke, Check], ...] = (
    (call("create", b'{"a": 1}', key="{k}one"), nothing),
    (call("get", key="{k}one"), gives(b'{"a": 1}')),
    (call("create", b"\x00\xff", key="{k}raw", ttlInSeconds="100"), nothing),
    (call("get", key="{k}raw", delete="true"), gives(b"\x00\xff")),
    (call("get", key="{k}raw"), gives(None)),
    (call("create", b"41", key="number"), nothing),
    (call("increment", key="number"), nothing),
    (call("increment", key="number", ttlInSeconds="100"), nothing),
    (call("get", key="number"), gives(b"43")),
    (call("delete", key="number"), nothing),
    (call("delete", key="number"), nothing),
    (call("get", key="number"), gives(None)),
)


def _redis(
    make: Callable[[Path], Server], **settings: str
) -> Callable[[Path], AbstractAsyncContextManager[ServedOutput]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[ServedOutput]:
        async with make(directory) as server:
            host = getattr(server, "hosts", f"127.0.0.1:{server.port}")
            yield ServedOutput({"redisHost": host, **settings}, _KEYS, call("get"))

    return serve


def _watched(directory: Path) -> Server:
    return RedisWatched(directory, sentinels=1)


OUTPUTS: Mapping[str, OutputKind] = {
    "postgresql": OutputKind("bindings.postgresql", postgresql),
    "postgres": OutputKind("bindings.postgres", postgresql),
    "mysql": OutputKind("bindings.mysql", mariadb),
    "sqlite": OutputKind("bindings.sqlite", _sqlite),
    "redis": OutputKind("bindings.redis", _redis(RedisServer)),
    "redis-cluster": OutputKind("bindings.redis", _redis(RedisCluster, redisType="cluster")),
    "redis-sentinel": OutputKind(
        "bindings.redis", _redis(_watched, failover="true", sentinelMasterName=RedisWatched.MASTER)
    ),
}

INPUTS: Mapping[str, InputKind] = {}
