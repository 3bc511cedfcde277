"""What the components on Redis leave there, and read there, byte by byte: others keep state in the same layout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.crc import key_slot

from bindings.redis.configuration import RedisConfigurationStore
from bindings.redis.lock import RedisLockStore
from bindings.redis.state import RedisStateStore
from mesh.blocks.configuration import ConfigurationItem
from mesh.blocks.lock import Released
from mesh.blocks.state import DELETE, SAVE, TRANSACT, Save
from mesh.errors import ConfigurationError, ConflictError, InvalidEtagError, StateError
from mesh.store import Concurrency, Item, Stored
from tests.support.eventually import eventually
from tests.support.nodes import ask, component, node, unique
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")
FIRST, LAST = Concurrency.FIRST_WRITE, Concurrency.LAST_WRITE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path_factory.mktemp("redis"), ("--save", "")) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def raw(server: RedisServer) -> AsyncIterator[Redis]:
    """Another program's client, on an empty server."""
    async with Redis(port=server.port) as client:
        await client.flushall()
        yield client


def made(adapter: Any, server: RedisServer, **settings: str) -> Any:
    return adapter.from_component(component("c", "", redisHost=f"127.0.0.1:{server.port}", **settings))


@pytest_asyncio.fixture(loop_scope="module")
async def state(server: RedisServer, raw: Redis) -> AsyncIterator[RedisStateStore]:
    async with made(RedisStateStore, server) as store:
        yield store


@pytest.mark.parametrize(
    "value", [b'{"a":2}', '"hé"'.encode(), b"12", b"true", b"null", b"\x00\xff not JSON"], ids=repr
)
async def test_a_key_is_a_hash(state: RedisStateStore, raw: Redis, value: bytes) -> None:
    await state.write([Item("obs||k", b"1")])
    await state.write([Item("obs||k", value)])
    assert await raw.hgetall("obs||k") == {b"data": value, b"version": b"2"}
    assert await raw.ttl("obs||k") == -1


async def test_what_others_wrote_is_read(state: RedisStateStore, raw: Redis) -> None:
    await raw.hset("obs||k", mapping={"data": '{"a":2}', "version": "7"})
    await raw.hset("obs||f", mapping={"data": "1", "version": "3", "first-write": "0"})
    await raw.hset("obs||t", mapping={"data": "1", "version": "1"})
    await raw.expire("obs||t", 600)
    assert await state.get("obs||k", strong=False) == Stored(b'{"a":2}', "7")
    found = await state.get_many(["obs||f", "obs||none", "obs||t"])
    assert found[:2] == [Stored(b"1", "3"), None]
    assert isinstance(found[2], Stored)
    assert found[2].expires_at is not None
    await state.write([Item("obs||k", b"1", etag="7")])
    assert await raw.hgetall("obs||k") == {b"data": b"1", b"version": b"8"}


async def test_a_first_write_leaves_no_flag(state: RedisStateStore, raw: Redis) -> None:
    """Which would have other programs refuse every later save; one that is there goes with our next write."""
    await state.write([Item("obs||k", b"1", concurrency=FIRST)])
    assert await raw.hgetall("obs||k") == {b"data": b"1", b"version": b"1"}
    with pytest.raises(ConflictError):
        await state.write([Item("obs||k", b"2", concurrency=FIRST)])
    await state.write([Item("obs||k", b"2")])
    await raw.hset("obs||k", "first-write", "0")
    await state.write([Item("obs||k", b"3")])
    assert await raw.hgetall("obs||k") == {b"data": b"3", b"version": b"3"}


async def test_expiry(state: RedisStateStore, raw: Redis) -> None:
    """The key's; a write without one takes it away."""
    await state.write([Item("obs||k", b"1", ttl=600.0)])
    assert 590 < await raw.ttl("obs||k") <= 600
    await state.write([Item("obs||k", b"2")])
    assert await raw.ttl("obs||k") == -1


@pytest.mark.parametrize(
    ("etag", "concurrency", "error"),
    [
        ("1", None, None),
        ("1", FIRST, None),
        ("999999", None, ConflictError),
        ("0", None, ConflictError),
        ("-1", None, ConflictError),
        ("01", None, ConflictError),
        ("999999", FIRST, ConflictError),
        ("999999", LAST, None),
        ("abc", LAST, None),
        ("abc", None, InvalidEtagError),
        ("1.0", None, InvalidEtagError),
        ("1\n", None, InvalidEtagError),
        ("9" * 30, None, InvalidEtagError),
        ("", FIRST, InvalidEtagError),
    ],
)
async def test_etags(
    state: RedisStateStore, raw: Redis, etag: str, concurrency: Concurrency | None, error: type[Exception] | None
) -> None:
    """The version; whoever says that the last write wins has no etag looked at."""
    await state.write([Item("obs||k", b"1")])
    item = Item("obs||k", b"2", etag, concurrency)
    if error is None:
        await state.write([item])
    else:
        with pytest.raises(error):
            await state.write([Item("obs||other", b"2"), item])
    assert await raw.exists("obs||other") == 0
    assert await raw.hget("obs||k", "data") == (b"2" if error is None else b"1")


async def test_of_equal_keys_in_a_transaction_the_last_counts(state: RedisStateStore, raw: Redis) -> None:
    await state.write([Item("obs||k", b"1")])
    await state.write([Item("obs||k", None), Item("obs||k", b"2", etag="1"), Item("obs||k", b"3")])
    assert await raw.hget("obs||k", "data") == b"3"
    await state.write([Item("obs||k", b"4"), Item("obs||k", None)])
    assert await raw.exists("obs||k") == 0
    with pytest.raises(ConflictError):
        await state.write([Item("obs||k", b"5", etag="9"), Item("obs||k", b"6")])
    assert await raw.exists("obs||k") == 0


async def test_what_is_no_state_is_left_alone(state: RedisStateStore, raw: Redis) -> None:
    """In a transaction nothing else is written either."""
    await raw.set("obs||text", "mine")
    await raw.hset("obs||hash", mapping={"version": "not a number"})
    for key in ("obs||text", "obs||hash"):
        with pytest.raises(StateError, match="something else than state"):
            await state.write([Item("obs||k", b"1"), Item(key, b"1")])
    with pytest.raises(StateError, match="WRONGTYPE"):
        await state.get("obs||text", strong=False)
    assert [type(each) for each in await state.get_many(["obs||text", "obs||k"])] == [StateError, type(None)]
    assert (await raw.get("obs||text"), await raw.exists("obs||k")) == (b"mine", 0)


async def test_without_memory_nothing_is_half_done(state: RedisStateStore, raw: Redis) -> None:
    await state.write([Item("obs||gone", b"1"), Item("obs||k", b"1")])
    await raw.config_set("maxmemory", "1")
    try:
        with pytest.raises(StateError, match="OOM"):
            await state.write([Item("obs||gone", None), Item("obs||k", b"2")])
        await state.write([Item("obs||k", None)])
    finally:
        await raw.config_set("maxmemory", "0")
    assert (await raw.hget("obs||gone", "data"), await raw.exists("obs||k")) == (b"1", 0)


async def test_key_prefixes(server: RedisServer, raw: Redis) -> None:
    """They are the state block's; others look for these keys."""
    for given, key in (("appid", "obs||k"), ("name", "sredname||k"), ("none", "k"), ("cus", "cus||k")):
        store = component("sredname", "state.redis", redisHost=f"127.0.0.1:{server.port}", keyPrefix=given)
        async with node("memory:", unique("layout"), store, app_id="obs") as runtime:
            await ask(runtime, SAVE, "sredname", Save([Item("k", b"1")]))
            assert await raw.hgetall(key) == {b"data": b"1", b"version": b"1"}
            await ask(runtime, TRANSACT, "sredname", Save([Item("k", b"2"), Item("l", b"1")]))
            assert await raw.hget(key, "version") == b"2"
            await ask(runtime, DELETE, "sredname", Save([Item("k", None)]))
            assert await raw.exists(key) == 0


async def test_keys_are_listed_in_order_and_pages(state: RedisStateStore, raw: Redis) -> None:
    """Of state alone; what is special in patterns is not in keys."""
    names = sorted(f"a[*]||{number}" for number in range(250))
    await state.save_each([Item(name, b"1") for name in [*names, "a*||x", "aX||x", "b||1"]])
    await raw.set("a[*]||text", "no state")
    found: list[str] = []
    while page := await state.keys("a[*]||", found[-1] if found else "", 100):
        assert len(page) <= 100
        found += page
    assert found == names


async def test_saves_of_one_key_are_done_in_order(state: RedisStateStore, raw: Redis) -> None:
    items = [Item(f"obs||{number % 3}", b"%d" % number) for number in range(999)]
    assert await state.save_each(items) == [None] * 999
    assert [await raw.hgetall(f"obs||{number}") for number in range(3)] == [
        {b"data": b"%d" % (996 + number), b"version": b"333"} for number in range(3)
    ]


# Locks


@pytest_asyncio.fixture(loop_scope="module")
async def locks(server: RedisServer, raw: Redis) -> AsyncIterator[RedisLockStore]:
    async with made(RedisLockStore, server) as store:
        yield store


async def test_a_lock_is_its_owner(locks: RedisLockStore, raw: Redis) -> None:
    token = await locks.acquire("lock||obs||r1", "own1", 60)
    assert token is not None
    assert (await raw.get("lock||obs||r1"), await raw.ttl("lock||obs||r1")) == (b"own1", 60)
    assert await raw.get("fence||{lock||obs||r1}") == b"%d" % token
    assert await locks.acquire("lock||obs||r1", "own1", 60) is None
    assert await locks.release("lock||obs||r1", "other") is Released.HELD_BY_OTHER
    assert await locks.release("lock||obs||r1", "own1") is Released.DONE
    assert await raw.exists("lock||obs||r1") == 0


async def test_a_lock_that_another_program_holds(locks: RedisLockStore, raw: Redis) -> None:
    await raw.set("lock||obs||r1", "own1", ex=60, nx=True)
    assert await locks.acquire("lock||obs||r1", "own2", 60) is None
    assert await locks.release("lock||obs||r1", "own1") is Released.DONE


async def test_tokens_rise_whatever_became_of_the_last_one(locks: RedisLockStore, raw: Redis) -> None:
    """Also when it was lost, or is of a clock that was ahead."""
    tokens = []
    fence = "fence||{lock||obs||r}"
    for last in (None, b"", b"9000000000000000", b"not a number"):
        if last == b"":
            await raw.delete(fence)
        elif last is not None:
            await raw.set(fence, last)
        token = await locks.acquire("lock||obs||r", "own", 60)
        assert token is not None
        tokens.append(token)
        assert await raw.pttl(fence) > 7 * 24 * 3600 * 1000
        assert await locks.release("lock||obs||r", "own") is Released.DONE
    assert 0 < tokens[0] < tokens[1] < tokens[2] == 9000000000000001
    assert tokens[3] > tokens[1]


@pytest.mark.parametrize(
    ("name", "fence"),
    [
        ("lock||a||r", "fence||{lock||a||r}"),
        ("lock||a||{x}r", "fence||lock||a||{x}r"),
        ("lock||a||r{", "fence||{lock||a||r{}"),
        ("lock||a||{}", "fence||{lock||a||{}}"),
        ("lock||a||r}", "fence||{lock||a||r}}"),
    ],
)
async def test_the_last_token_is_in_the_slot_of_its_lock(
    locks: RedisLockStore, raw: Redis, name: str, fence: str
) -> None:
    """Unless its name makes that impossible, which matters in a cluster only."""
    assert await locks.acquire(name, "own", 60.0) is not None
    assert sorted(await raw.keys()) == sorted([name.encode(), fence.encode()])
    if "}" not in name.partition("{")[0] and "{}" not in name:
        assert key_slot(fence.encode()) == key_slot(name.encode())


# Configuration


@pytest_asyncio.fixture(loop_scope="module")
async def configuration(server: RedisServer, raw: Redis) -> AsyncIterator[RedisConfigurationStore]:
    async with made(RedisConfigurationStore, server) as store:
        yield store


async def test_configuration_is_plain_text(configuration: RedisConfigurationStore, raw: Redis) -> None:
    texts = {"c1": "val1||v9", "c2": "plain", "c3": "a||b||c", "c4": "", "c5": "zwölf"}
    await raw.mset(texts)
    await raw.hset("hash", "a", "b")
    expected = {
        "c1": ConfigurationItem("val1", "v9"),
        "c2": ConfigurationItem("plain"),
        "c3": ConfigurationItem("a", "b"),
        "c5": ConfigurationItem("zwölf"),
    }
    assert await configuration.get([*texts, "missing"], {}) == expected
    assert await configuration.get([], {}) == expected
    with pytest.raises(ConfigurationError, match="WRONGTYPE"):
        await configuration.get(["hash"], {})
    await raw.set("binary", b"\xff")
    with pytest.raises(ConfigurationError, match="'binary' holds no text"):
        await configuration.get(["binary"], {})
    assert await configuration.get([], {}) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "Kg$xe"), ("KEA", "AKE"), ("El", "lEKg$xe"), ("K$", "$Kgxe"), ("Kg$xe", "g$xeK"), ("Am", "AmK")],
)
async def test_notifications_are_turned_on(
    configuration: RedisConfigurationStore, raw: Redis, before: str, after: str
) -> None:
    """What somebody else needs stays."""
    await raw.config_set("notify-keyspace-events", before)
    async with configuration.watch(["c"], {}):
        flags = (await raw.config_get("notify-keyspace-events"))["notify-keyspace-events"]
        assert set(flags) == set(after)


async def heard(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()


async def test_changes_are_told(configuration: RedisConfigurationStore, raw: Redis) -> None:
    """Of the watched key, or of all; a write, a deletion, an expiry."""
    async with configuration.watch(["c*"], {}) as one, configuration.watch([], {}) as every:
        for change, told in (
            (raw.set("c*", "1"), True),
            (raw.set("cx", "1"), False),
            (raw.delete("c*"), True),
            (raw.set("c*", "2", px=1), True),
        ):
            one.clear()
            every.clear()
            await change
            await heard(every)
            if told:
                await heard(one)
            else:
                assert not one.is_set()


async def test_all_watch_over_one_connection(
    configuration: RedisConfigurationStore, raw: Redis, server: RedisServer
) -> None:
    """Which ends with its last one for a key, and is told of what was missed when it is back."""

    async def listening() -> list[str]:
        clients = await raw.client_list()
        return [each["id"] for each in clients if int(each["sub"]) + int(each["psub"])]

    async with configuration.watch(["a"], {}) as first, configuration.watch(["a", "b"], {}) as second:
        [client] = await listening()
        assert (await raw.pubsub_numsub("__keyspace@0__:a", "__keyspace@0__:b")) == [
            (b"__keyspace@0__:a", 1),
            (b"__keyspace@0__:b", 1),
        ]
        first.clear()
        second.clear()
        await raw.client_kill_filter(_id=client)
        await heard(first)
        await heard(second)

    async def nobody() -> None:
        assert await listening() == []

    await eventually(nobody)
