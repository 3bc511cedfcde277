"""Queries of state in Redis, with the server's search module."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from bindings.redis import state
from bindings.redis._indexes import narrowed
from bindings.redis.state import RedisStateStore
from mesh.blocks import matching
from mesh.errors import BadArgumentError, ConfigError, FeatureNotSupportedError, MeshError, StateError
from mesh.query import Queried, parse_query
from mesh.store import Item, Stored
from tests.support.eventually import eventually
from tests.support.nodes import component
from tests.support.redis_server import RedisServer, RedisStack

pytestmark = pytest.mark.asyncio(loop_scope="module")
JSON = {"contentType": "application/json"}
FIELDS = {("text",): ("t", "TEXT"), ("n",): ("n", "NUMERIC"), ("a", "tag"): ("g", "TAG")}
INDEXES = (
    '[{"name":"all","indexes":[{"key":"text","type":"TEXT"},'
    '{"key":"n","type":"numeric"},{"key":"a.tag","type":"TAG"}]}]'
)


@pytest.mark.parametrize(
    ("condition", "query"),
    [
        ({}, None),
        ({"EQ": {"text": "Los Angeles"}}, "(@t:(Los Angeles))"),
        ({"EQ": {"text": "over the hill"}}, "(@t:(over hill))"),
        ({"EQ": {"text": "the"}}, None),
        ({"EQ": {"text": "a-b"}}, None),
        ({"EQ": {"text": "é"}}, None),
        ({"EQ": {"text": 1}}, None),
        ({"EQ": {"n": 1}}, "(@n:[1 1])"),
        ({"EQ": {"n": True}}, None),
        ({"EQ": {"n": 2**60}}, None),
        ({"GT": {"n": -1.5}}, "(@n:[-1.5 +inf])"),
        ({"LT": {"n": 1}}, "(@n:[-inf 1])"),
        ({"GT": {"text": "b"}}, None),
        ({"NEQ": {"n": 1}}, None),
        ({"EQ": {"other": 1}}, None),
        ({"EQ": {"a.tag": "two words"}}, "(@g:{two\\ words})"),
        ({"IN": {"n": [1, 2]}}, "(@n:[1 1]) | (@n:[2 2])"),
        ({"IN": {"n": [1, None]}}, None),
        ({"IN": {"n": []}}, None),
        ({"AND": [{"EQ": {"n": 1}}, {"EQ": {"other": 1}}, {"EQ": {"text": "abc"}}]}, "((@n:[1 1])) ((@t:(abc)))"),
        ({"OR": [{"EQ": {"n": 1}}, {"EQ": {"text": "abc"}}]}, "((@n:[1 1])) | ((@t:(abc)))"),
        ({"OR": [{"EQ": {"n": 1}}, {"EQ": {"other": 1}}]}, None),
    ],
    ids=str,
)
async def test_what_an_index_is_asked_for(condition: object, query: str | None) -> None:
    """All that may match, whatever else it finds."""
    assert narrowed(parse_query(orjson.dumps({"filter": condition}), {}).filter, FIELDS) == query


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[1]",
        '[{"name":"a"}]',
        '[{"name":"a","indexes":[]}]',
        '[{"name":"","indexes":[{"key":"b","type":"TEXT"}]}]',
        '[{"name":"a","indexes":[{"key":"b c","type":"TEXT"}]}]',
        '[{"name":"a","indexes":[{"key":"b","type":"GEO"}]}]',
    ],
)
async def test_indexes_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match=r"JSON like|has a type|has a key"):
        RedisStateStore.from_component(component("c", "", redisHost="localhost", queryIndexes=text))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisStack]:
    async with RedisStack(tmp_path_factory.mktemp("redis"), ("--save", "")) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def raw(server: RedisStack) -> AsyncIterator[Redis]:
    async with Redis(port=server.port) as client:
        await client.flushall()
        yield client


@asynccontextmanager
async def opened(server: RedisServer, indexes: str = INDEXES) -> AsyncIterator[RedisStateStore]:
    settings = component("c", "", redisHost=f"127.0.0.1:{server.port}", queryIndexes=indexes)
    async with RedisStateStore.from_component(settings) as store:
        yield store


async def found(store: RedisStateStore, condition: object, prefix: str = "obs||", **metadata: str) -> str:
    result = await store.query(parse_query(orjson.dumps({"filter": condition}), metadata), prefix)
    return "".join(match.key.removeprefix(prefix) for match in result.matches)


TEXTS = ["the", "Los Angeles", "los angeles", "Angeles Los", "walking", "walk", "a-b", "é ü", "", "x" * 3000, "@{}|*"]


async def test_texts_are_compared_as_they_are(server: RedisStack, raw: Redis) -> None:
    """Not as words; and numbers beyond what the module can tell apart."""
    numbers = [0, -1, 1.5, 2**53, 2**53 + 1, 10**15]
    async with opened(server) as store:
        items = [
            Item(f"obs||{chr(97 + i)}", orjson.dumps({"text": text}), metadata=JSON) for i, text in enumerate(TEXTS)
        ]
        items += [Item(f"obs||{i}", orjson.dumps({"n": n}), metadata=JSON) for i, n in enumerate(numbers)]
        await store.save_each([*items, Item("other||z", orjson.dumps({"text": "walk", "n": 0}), metadata=JSON)])

        async def all_are_there() -> None:
            assert len(await found(store, {})) == len(items)

        await eventually(all_are_there)
        for index, text in enumerate(TEXTS):
            assert await found(store, {"EQ": {"text": text}}) == chr(97 + index)
        for index, number in enumerate(numbers):
            assert await found(store, {"EQ": {"n": number}}) == str(index)
        assert await found(store, {"GT": {"n": 2**53}}) == "4"
        assert await found(store, {"LT": {"n": 1.5}}) == "01"
        assert await found(store, {"IN": {"text": ["walk", "the"]}}) == "af"


async def test_values_that_are_no_documents_are_not_found(server: RedisStack, raw: Redis) -> None:
    async with opened(server) as store:
        await store.write([Item("obs||a", b'{"n":1}'), Item("obs||b", b'{"n":1}', metadata=JSON)])

        async def one() -> None:
            assert await found(store, {"EQ": {"n": 1}}) == "b"

        await eventually(one)


async def test_an_index_that_is_there(server: RedisStack, raw: Redis) -> None:
    """Is used as it is; what it lacks is added. One that was taken away is made again."""
    create = ("FT.CREATE", "all", "ON", "JSON", "SCHEMA", "$.data.n", "AS", "their_n", "NUMERIC")
    await raw.execute_command(*create)
    await raw.execute_command("JSON.SET", "obs||a", ".", '{"data":{"n":1,"text":"abc"},"version":3}')
    async with opened(server) as store:
        for condition in ({"EQ": {"n": 1}}, {"EQ": {"text": "abc"}}):

            async def one(condition: object = condition) -> None:
                try:
                    assert await found(store, condition) == "a"
                except StateError as error:
                    raise AssertionError(str(error)) from error

            await eventually(one)
        await raw.flushall()
        await store.write([Item("obs||b", b'{"n":1}', metadata=JSON)])

        async def again() -> None:
            try:
                assert await found(store, {"EQ": {"n": 1}}) == "b"
            except StateError as error:
                raise AssertionError(str(error)) from error

        await eventually(again)


async def test_which_index(server: RedisStack, raw: Redis) -> None:
    """The only one, or the one that is named."""
    two = INDEXES[:-1] + ',{"name":"second","indexes":[{"key":"n","type":"NUMERIC"}]}]'
    async with opened(server, two) as store:
        await store.write([Item("obs||a", b'{"n":1}', metadata=JSON)])
        for metadata in ({}, {"queryIndexName": "third"}):
            with pytest.raises(BadArgumentError, match="queryIndexName must be one of queryIndexes: all, second"):
                await found(store, {}, **metadata)

        async def one() -> None:
            assert await found(store, {}, queryindexname="second") == "a"

        await eventually(one)


async def test_a_server_without_the_module(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as server:
        with pytest.raises(StateError, match=r"queryIndexes needs the modules for JSON and search, .* use Redis"):
            async with opened(server):
                pytest.fail("entered")
        async with RedisStateStore.from_component(component("c", "", redisHost=f"127.0.0.1:{server.port}")) as store:
            assert "QUERY_API" not in store.capabilities
            with pytest.raises(FeatureNotSupportedError):
                await found(store, {})


class Many(RedisStateStore):
    """Values by key, without a server; it notes how many were asked for at once."""

    async def get_many(self, keys: Sequence[str], **named: Any) -> Sequence[Stored | MeshError | None]:
        self.asked = [*getattr(self, "asked", ()), len(keys)]
        return [Stored(b'{"n": 1}', "1") for _ in keys]


def many() -> Many:
    async def candidates(*arguments: object) -> list[str]:
        return [f"app||{number}" for number in range(250)]

    store = Many.from_component(component("s", "state.redis", redisHost="127.0.0.1:1"))
    store._search = cast("Any", SimpleNamespace(candidates=candidates))
    return store


async def test_many_values_are_looked_at_beside_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, and in a thread of their own."""
    threads: list[threading.Thread] = []

    def run(*arguments: Any) -> Queried:
        threads.append(threading.current_thread())
        return real(*arguments)

    real = matching.run
    monkeypatch.setattr(matching, "run", run)
    store = many()
    assert len((await store.query(parse_query(b"{}", {}), "app||")).matches) == 250
    assert store.asked == [100, 100, 50]
    assert threads != [threading.current_thread()]


async def test_values_that_are_too_large_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are not all held in memory."""
    monkeypatch.setattr(state, "MAX_LOOKED_AT_BYTES", 1000)
    store = many()
    with pytest.raises(StateError, match="values of over 1000 bytes may match; ask for less"):
        await store.query(parse_query(b"{}", {}), "app||")
    assert store.asked == [100, 100]
