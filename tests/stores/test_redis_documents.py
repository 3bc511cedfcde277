"""State in Redis as documents of the server's JSON module: what is typed ``application/json`` where it has one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from bindings.redis.state import RedisStateStore
from mesh.errors import ConflictError, StateError
from mesh.store import Concurrency, Item, Stored
from tests.support.nodes import component
from tests.support.redis_server import RedisStack

pytestmark = pytest.mark.asyncio(loop_scope="module")
JSON = {"contentType": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisStack]:
    async with RedisStack(tmp_path_factory.mktemp("redis"), ("--save", "")) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def raw(server: RedisStack) -> AsyncIterator[Redis]:
    async with Redis(port=server.port) as client:
        await client.flushall()
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def state(server: RedisStack, raw: Redis) -> AsyncIterator[RedisStateStore]:
    settings: Any = component("c", "", redisHost=f"127.0.0.1:{server.port}")
    async with RedisStateStore.from_component(settings) as store:
        yield store


async def document(raw: Redis, key: str) -> object:
    return orjson.loads(await raw.execute_command("JSON.GET", key))


async def test_a_document(state: RedisStateStore, raw: Redis) -> None:
    for number, value in enumerate((b'{"a":[1,2.5,"\\u00e9"]}', b'"text"', b"null", b"12"), start=1):
        await state.write([Item("obs||k", value, metadata=JSON)])
        assert await document(raw, "obs||k") == {"data": orjson.loads(value), "version": number}
        stored = await state.get("obs||k", strong=True)
        assert stored is not None
        assert (orjson.loads(stored.value), stored.etag) == (orjson.loads(value), str(number))


@pytest.mark.parametrize(
    "metadata", [{"contenttype": "application/json; charset=utf-8"}, {"ContentType": "APPLICATION/JSON"}]
)
async def test_how_it_is_typed(state: RedisStateStore, raw: Redis, metadata: dict[str, str]) -> None:
    await state.write([Item("obs||k", b"1", metadata=metadata)])
    assert await raw.type("obs||k") == b"ReJSON-RL"


@pytest.mark.parametrize("value", [b"\xff", b"{", b"[" * 101 + b"]" * 101], ids=["bytes", "broken", "deep"])
async def test_what_the_module_would_not_take(state: RedisStateStore, raw: Redis, value: bytes) -> None:
    """Is kept as any value: in a transaction its failure would come too late."""
    await state.write([Item("obs||j", b"1", metadata=JSON), Item("obs||k", value, metadata=JSON)])
    assert await raw.hgetall("obs||k") == {b"data": value, b"version": b"1"}
    deep = b"[" * 100 + b"]" * 100
    await state.write([Item("obs||k", deep, metadata=JSON)])
    assert await state.get("obs||k", strong=True) == Stored(deep, "2")


async def test_what_others_wrote(state: RedisStateStore, raw: Redis) -> None:
    await raw.execute_command("JSON.SET", "obs||k", ".", '{"data":{"a":2},"version":7}')
    await raw.expire("obs||k", 600)
    stored = await state.get("obs||k", strong=True)
    assert stored is not None
    assert (stored.value, stored.etag, stored.expires_at is not None) == (b'{"a":2}', "7", True)
    await state.write([Item("obs||k", b"3", "7", metadata=JSON)])
    assert await document(raw, "obs||k") == {"data": 3, "version": 8}
    assert await raw.ttl("obs||k") == -1


async def test_from_one_to_the_other(state: RedisStateStore, raw: Redis) -> None:
    """The version goes on; expiry is the last write's."""
    await state.write([Item("obs||k", b"1", ttl=600.0)])
    await state.write([Item("obs||k", b"2", "1", metadata=JSON)])
    assert await document(raw, "obs||k") == {"data": 2, "version": 2}
    assert await raw.ttl("obs||k") == -1
    await state.write([Item("obs||k", b"3", "2", ttl=600.0)])
    assert await raw.hgetall("obs||k") == {b"data": b"3", b"version": b"3"}
    assert await raw.ttl("obs||k") > 590


async def test_transactions(state: RedisStateStore, raw: Redis) -> None:
    """Of documents and hashes; nothing is written when one of them is not as it should be."""
    await state.write([Item("obs||j", b"1", metadata=JSON), Item("obs||h", b"1")])
    for wrong in (Item("obs||j", b"2", "9", metadata=JSON), Item("obs||h", b"2", None, Concurrency.FIRST_WRITE)):
        with pytest.raises(ConflictError):
            await state.write([Item("obs||n", b"1", metadata=JSON), wrong])
    await raw.execute_command("JSON.SET", "obs||foreign", ".", "[1]")
    with pytest.raises(StateError, match="something else than state"):
        await state.write([Item("obs||n", b"1", metadata=JSON), Item("obs||foreign", b"1", metadata=JSON)])
    assert await raw.exists("obs||n") == 0
    await state.write([Item("obs||j", None, "1"), Item("obs||h", b"2", "1", metadata=JSON)])
    assert await raw.exists("obs||j") == 0
    assert await document(raw, "obs||h") == {"data": 2, "version": 2}


@pytest.mark.parametrize(
    "item", [Item("obs||j", b"2"), Item("obs||h", b"2", metadata=JSON), Item("obs||j", b"2", metadata=JSON)], ids=str
)
async def test_without_memory_nothing_is_half_done(state: RedisStateStore, raw: Redis, item: Item) -> None:
    """The server refuses it, or does all of it."""
    await state.write([Item("obs||j", b"1", metadata=JSON), Item("obs||h", b"1")])
    await raw.config_set("maxmemory", "1")
    try:
        await state.write([item])
        expected = Stored(b"2", "2")
    except StateError as error:
        assert "OOM" in str(error)
        expected = Stored(b"1", "1")
    finally:
        await raw.config_set("maxmemory", "0")
    assert await state.get(item.key, strong=True) == expected


async def test_both_are_listed(state: RedisStateStore, raw: Redis) -> None:
    await state.save_each([Item("obs||a", b"1"), Item("obs||b", b"1", metadata=JSON), Item("obs||c", b"1")])
    assert await state.keys("obs||", "", 10) == ["obs||a", "obs||b", "obs||c"]
