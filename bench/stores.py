"""What stores are measured against: their own drivers, alone and behind a bare aiohttp handler, one process each.

======= ==========================================================================================
role    does
======= ==========================================================================================
bare    aiohttp's low-level server does the call with the driver before the answer
driver  the driver alone, 32 at once
answer  aiohttp's low-level server reads the body and answers as a store would, without one
======= ==========================================================================================
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

import aiohttp
import orjson
import uvloop
from aiohttp import web

from bench.bare import Options, idle, in_a_loop, serving
from bench.load import CONNECTIONS
from bench.peer import control

Pair = tuple[str, bytes]
Found = tuple[bytes, str]
_T = TypeVar("_T")


class Store(Protocol):
    """What a driver does; each role uses the part that its component has."""

    async def get(self, key: str) -> Found:
        """Give value and etag."""

    async def save(self, sets: Sequence[Pair], deletes: Sequence[str]) -> None:
        """Write and delete, all or nothing."""

    async def configuration(self, key: str) -> Found:
        """Give value and version."""

    async def lock(self, name: str, owner: str, seconds: int) -> bool:
        """Take a lock that nobody holds."""

    async def secret(self, key: str) -> str:
        """Give a secret."""

    async def call(self, operation: str, data: bytes, metadata: Mapping[str, str]) -> bytes | None:
        """Do what a binding does."""


class _None:
    """Has nothing of what the others have."""

    async def get(self, key: str) -> Found:
        raise NotImplementedError

    async def save(self, sets: Sequence[Pair], deletes: Sequence[str]) -> None:
        raise NotImplementedError

    async def configuration(self, key: str) -> Found:
        raise NotImplementedError

    async def lock(self, name: str, owner: str, seconds: int) -> bool:
        raise NotImplementedError

    async def secret(self, key: str) -> str:
        raise NotImplementedError

    async def call(self, operation: str, data: bytes, metadata: Mapping[str, str]) -> bytes | None:
        raise NotImplementedError


class RedisPy(_None):
    """redis-py with hiredis: the layout of state in a hash, one script for each write."""

    _WRITE = """
local sets = tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
  if i > sets then
    redis.call('DEL', key)
  else
    redis.call('HSET', key, 'data', ARGV[i + 1])
    redis.call('HINCRBY', key, 'version', 1)
  end
end
return 0
"""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._write = redis.register_script(self._WRITE)

    @classmethod
    async def open(cls, options: Options, stack: AsyncExitStack) -> RedisPy:
        from redis.asyncio import BlockingConnectionPool, Redis

        pool = BlockingConnectionPool(host="127.0.0.1", port=options["port"], max_connections=CONNECTIONS)
        return cls(await stack.enter_async_context(Redis(connection_pool=pool)))

    async def get(self, key: str) -> Found:
        value, version = await self._redis.hmget(key, "data", "version")
        return value, version.decode()

    async def save(self, sets: Sequence[Pair], deletes: Sequence[str]) -> None:
        values = [value for _, value in sets]
        await self._write(keys=[*(key for key, _ in sets), *deletes], args=[len(sets), *values])

    async def configuration(self, key: str) -> Found:
        [text] = await self._redis.mget(key)
        value, _, version = text.partition(b"||")
        return value, version.decode()

    async def lock(self, name: str, owner: str, seconds: int) -> bool:
        return bool(await self._redis.set(name, owner, px=seconds * 1000, nx=True))

    async def call(self, operation: str, data: bytes, metadata: Mapping[str, str]) -> bytes | None:
        if operation == "create":
            await self._redis.set(metadata["key"], data)
            return None
        found: bytes = await self._redis.get(metadata["key"])
        return found


class AsyncPG(_None):
    """asyncpg with its own pool: a row for each key, whose xmin is the etag."""

    _GET = "SELECT value::text, xmin::text FROM bench WHERE key = $1"
    _SET = (
        "INSERT INTO bench (key, value) VALUES ($1, $2::jsonb) "
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated = now()"
    )
    _DELETE = "DELETE FROM bench WHERE key = $1"

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, options: Options, stack: AsyncExitStack) -> AsyncPG:
        import asyncpg

        login = {"user": "mesh", "password": options["password"], "database": "postgres"}
        pool = asyncpg.create_pool(host="127.0.0.1", port=options["port"], min_size=4, max_size=4, ssl=False, **login)
        opened = cls(await stack.enter_async_context(pool))
        await opened._pool.execute(
            "CREATE TABLE IF NOT EXISTS bench (key text PRIMARY KEY, value jsonb NOT NULL, updated timestamptz)"
        )
        return opened

    async def get(self, key: str) -> Found:
        value, etag = await self._pool.fetchrow(self._GET, key)
        return value.encode(), etag

    async def save(self, sets: Sequence[Pair], deletes: Sequence[str]) -> None:
        if len(sets) == 1 and not deletes:
            key, value = sets[0]
            await self._pool.execute(self._SET, key, value.decode())
            return
        async with self._pool.acquire() as connection, connection.transaction():
            for key, value in sorted(sets):  # In one order, so that no two wait for each other.
                await connection.execute(self._SET, key, value.decode())
            for key in deletes:
                await connection.execute(self._DELETE, key)

    async def call(self, operation: str, data: bytes, metadata: Mapping[str, str]) -> bytes | None:
        rows = await self._pool.fetch(metadata["sql"], *orjson.loads(metadata["params"]))
        return orjson.dumps([list(row) for row in rows])


class SQLite3(_None):
    """sqlite3 in one thread, with a write-ahead log, every commit on disk."""

    _SET = (
        "INSERT INTO bench (key, value, etag) VALUES (?, ?, hex(randomblob(16))) "
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value, etag = excluded.etag"
    )

    def __init__(self, database: sqlite3.Connection, stack: AsyncExitStack) -> None:
        self._database = database
        self._thread = stack.enter_context(ThreadPoolExecutor(1))

    @classmethod
    async def open(cls, options: Options, stack: AsyncExitStack) -> SQLite3:
        database = sqlite3.connect(options["file"], isolation_level=None, check_same_thread=False)
        stack.callback(database.close)
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"):
            database.execute(statement)
        database.execute("CREATE TABLE IF NOT EXISTS bench (key TEXT PRIMARY KEY, value TEXT NOT NULL, etag TEXT)")
        return cls(database, stack)

    async def _run(self, work: Callable[..., _T], *given: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    async def get(self, key: str) -> Found:
        value, etag = await self._run(self._get, key)
        return value.encode(), etag

    def _get(self, key: str) -> tuple[str, str]:
        found: tuple[str, str] = self._database.execute(
            "SELECT value, etag FROM bench WHERE key = ?", (key,)
        ).fetchone()
        return found

    async def save(self, sets: Sequence[Pair], deletes: Sequence[str]) -> None:
        await self._run(self._save, [(key, value.decode()) for key, value in sets], deletes)

    def _save(self, sets: Sequence[tuple[str, str]], deletes: Sequence[str]) -> None:
        if len(sets) == 1 and not deletes:
            self._database.execute(self._SET, sets[0])
            return
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(self._SET, sets)
        self._database.executemany("DELETE FROM bench WHERE key = ?", [(key,) for key in deletes])
        self._database.execute("COMMIT")


class File(_None):
    """Secrets of a file, in a dict."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = secrets

    @classmethod
    async def open(cls, options: Options, stack: AsyncExitStack) -> File:
        return cls(json.loads(Path(options["file"]).read_text()))

    async def secret(self, key: str) -> str:
        return self._secrets[key]


class HTTPClient(_None):
    """aiohttp's client."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    @classmethod
    async def open(cls, options: Options, stack: AsyncExitStack) -> HTTPClient:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return cls(await stack.enter_async_context(session), options["url"])

    async def call(self, operation: str, data: bytes, metadata: Mapping[str, str]) -> bytes | None:
        async with self._session.request(operation.upper(), self._url + metadata["path"]) as response:
            response.raise_for_status()
            return await response.read()


STORES: Mapping[str, type[RedisPy] | type[AsyncPG] | type[SQLite3] | type[File] | type[HTTPClient]] = {
    "http": HTTPClient,
    "redis": RedisPy,
    "postgresql": AsyncPG,
    "sqlite": SQLite3,
    "file": File,
}


def _json(body: bytes, etag: str | None = None) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={} if etag is None else {"ETag": etag})


def _operations(body: bytes) -> tuple[list[Pair], list[str]]:
    sets: list[Pair] = []
    deletes = []
    for each in orjson.loads(body)["operations"]:
        request = each["request"]
        if each["operation"] == "delete":
            deletes.append(request["key"])
        else:
            sets.append((request["key"], orjson.dumps(request["value"])))
    return sets, deletes


async def answered(store: Store, request: web.BaseRequest) -> web.Response:
    """Do what a request of the HTTP API asks for."""
    path = request.raw_path
    block, _, rest = path.split("/", 2)[2].partition("/")
    match block, request.method:
        case "state", "GET":
            return _json(*await store.get(rest.rpartition("/")[2]))
        case "state", _ if path.endswith("/transaction"):
            await store.save(*_operations(await request.read()))
        case "state", _:
            items = orjson.loads(await request.read())
            await store.save([(item["key"], orjson.dumps(item["value"])) for item in items], ())
        case "secrets", _:
            key = rest.rpartition("/")[2]
            return _json(orjson.dumps({key: await store.secret(key)}))
        case "configuration", _:
            [key] = parse_qs(urlsplit(path).query)["key"]
            value, version = await store.configuration(key)
            return _json(orjson.dumps({key: {"value": value.decode(), "version": version}}))
        case "bindings", _:
            asked = orjson.loads(await request.read())
            found = await store.call(asked["operation"], orjson.dumps(asked.get("data")), asked["metadata"])
            return web.Response(status=204) if found is None else _json(found)
        case _:
            asked = orjson.loads(await request.read())
            taken = await store.lock(asked["resourceId"], asked["lockOwner"], asked["expiryInSeconds"])
            return _json(orjson.dumps({"success": taken}))
    return web.Response(status=204)


async def bare(options: Options) -> None:
    async with AsyncExitStack() as stack:
        store = await STORES[options["store"]].open(options, stack)

        async def handle(request: web.BaseRequest) -> web.Response:
            return await answered(store, request)

        await control(await stack.enter_async_context(serving(handle)), idle)


async def driver(options: Options) -> None:
    value = options["value"].encode()
    keys = itertools.cycle([f"order-{number}" for number in range(options["keys"])])
    fresh = itertools.count()
    async with AsyncExitStack() as stack:
        store = await STORES[options["store"]].open(options, stack)

        async def get() -> None:
            await store.get(next(keys))

        async def save() -> None:
            await store.save([(next(keys), value)], ())

        async def transaction() -> None:
            key = next(keys)
            await store.save([(key, value), (f"{key}-b", value)], [f"{key}-c"])

        async def configuration() -> None:
            await store.configuration(next(keys))

        async def lock() -> None:
            if not await store.lock(f"driver-{next(fresh)}", "bench", options["lease"]):
                raise RuntimeError("a lock that nobody holds was refused")

        asked = itertools.cycle(options.get("asked") or [("", {})])

        async def binding() -> None:
            operation, metadata = next(asked)
            await store.call(operation, value, metadata)

        calls: Mapping[str, Callable[[], Awaitable[None]]] = {
            call.__name__: call for call in (get, save, transaction, configuration, lock, binding)
        }

        async def run(question: Options) -> Options:
            return await in_a_loop(calls[question["call"]])(question)

        await control(0, run)


async def answer(options: Options) -> None:
    bodies: Mapping[str, bytes] = {block: text.encode() for block, text in options["bodies"].items()}

    async def handle(request: web.BaseRequest) -> web.Response:
        if request.method == "POST":
            await request.read()
        block = request.raw_path.split("/", 3)[2]
        if (block == "state" and request.method == "POST") or bodies.get(block) == b"null":
            return web.Response(status=204)
        return _json(bodies[block], "1" if block == "state" else None)

    async with serving(handle) as port:
        await control(port, idle)


ROLES = {role.__name__: role for role in (bare, driver, answer)}

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(ROLES[sys.argv[1]](json.loads(sys.argv[2])))
