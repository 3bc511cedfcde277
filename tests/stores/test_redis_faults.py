"""The components on Redis when connections break, servers go and come back, and slots move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from bindings.redis.configuration import RedisConfigurationStore
from bindings.redis.lock import RedisLockStore
from bindings.redis.state import RedisStateStore
from mesh.errors import BadArgumentError, LockError, MeshError, OutcomeUnknownError, StateError, StateLimitError
from mesh.store import Concurrency, Item, Stored
from tests.support.eventually import eventually
from tests.support.nodes import component
from tests.support.proxy import Proxy
from tests.support.redis_server import DURABLE, RedisCluster, RedisServer, RedisWatched


def made(adapter: Any, host: str, **settings: str) -> Any:
    return adapter.from_component(component("c", "", redisHost=host, **settings))


@asynccontextmanager
async def proxied(directory: Path, adapter: Any, **settings: str) -> AsyncIterator[tuple[Any, Proxy, Redis]]:
    async with (
        RedisServer(directory) as server,
        Proxy(server.port) as proxy,
        Redis(port=server.port) as raw,
        made(adapter, f"127.0.0.1:{proxy.port}", **settings) as store,
    ):
        yield store, proxy, raw


CONDITIONS = [Item("k", b"2", "1"), Item("new", b"2", None, Concurrency.FIRST_WRITE), Item("k", None, "1")]


@pytest.mark.parametrize("item", CONDITIONS, ids=["etag", "first write", "delete"])
async def test_a_write_with_a_condition_whose_reply_is_lost(tmp_path: Path, item: Item) -> None:
    """It was done: nothing says that it conflicts, and nothing does it again."""
    async with proxied(tmp_path, RedisStateStore, poolSize="1") as (store, proxy, raw):
        await store.write([Item("k", b"1")])
        for write in (store.write([item]), store.save_each([item]), store.write([Item("x", b"1"), item])):
            await raw.flushall()
            await store.write([Item("k", b"1")])
            proxy.cut_after(1, upwards=False)
            try:
                [error] = await write or [None]
            except StateError as raised:
                error = raised
            assert isinstance(error, OutcomeUnknownError), error
            assert not error.retryable
            assert "whether it was written is unknown" in str(error)
            assert await raw.hget(item.key, "data") == item.value
            assert await store.get("k", strong=True) is None or item.value is not None


async def test_a_write_without_one_may_be_made_again(tmp_path: Path) -> None:
    async with proxied(tmp_path, RedisStateStore, poolSize="1") as (store, proxy, raw):
        await store.write([Item("k", b"1")])
        proxy.cut_after(1, upwards=False)
        with pytest.raises(StateError) as raised:
            await store.write([Item("k", b"2")])
        assert raised.value.retryable
        assert await raw.hget("k", "data") == b"2"


async def test_reads_are_made_again(tmp_path: Path) -> None:
    async with proxied(tmp_path, RedisStateStore, poolSize="1") as (store, proxy, _):
        await store.write([Item("k", b"1")])
        proxy.cut_after(1, upwards=False)
        assert await store.get("k", strong=True) == Stored(b"1", "1")
        proxy.cut_after(1, upwards=False)
        assert await store.get_many(["k"] * 500) == [Stored(b"1", "1")] * 500


async def test_a_connection_that_broke_while_idle_costs_nothing(tmp_path: Path) -> None:
    async with proxied(tmp_path, RedisStateStore) as (store, proxy, raw):
        await store.write([Item("k", b"1")])
        proxy.cut()

        async def noticed() -> None:
            assert len(await raw.client_list(_type="normal")) == 1

        await eventually(noticed)
        await store.write([Item("k", b"2", "1")])


async def test_a_stalled_server(tmp_path: Path) -> None:
    """Fails in time, and others connect anew."""
    async with proxied(tmp_path, RedisStateStore, readTimeout="300ms", redisMaxRetries="0") as (store, proxy, _):
        await store.write([Item("k", b"1")])
        proxy.stall()
        with pytest.raises(StateError, match=r"no answer within 0.3 s"):
            await store.write([Item("k", b"2")])
        assert await store.get("k", strong=True) == Stored(b"1", "1")
        proxy.resume()


async def test_a_server_that_comes_back(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as server, made(RedisStateStore, f"127.0.0.1:{server.port}") as store:
        await store.write([Item("k", b"1")])
        await server.kill()
        for ask in (store.get("k", strong=True), store.write([Item("k", b"2", "1")])):
            with pytest.raises(StateError) as raised:
                await ask
            assert raised.value.retryable, "nothing was sent"
        assert [type(each) for each in await store.get_many(["k", "l"])] == [StateError] * 2
        await server.start()
        assert await store.get("k", strong=True) == Stored(b"1", "1")
        await store.write([Item("k", b"2", "1")])


async def test_who_gives_up_leaves_the_connections_sound(tmp_path: Path) -> None:
    async with proxied(tmp_path, RedisStateStore, poolSize="2") as (store, proxy, raw):
        await store.save_each([Item(f"k{number}", b"%d" % number) for number in range(50)])
        proxy.delay(0.02)
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(store.get(f"k{number}", strong=True)) for number in range(50)]
            await asyncio.sleep(0)
            for task in asking[::2]:
                task.cancel()
        assert [task.result().value for task in asking[1::2]] == [b"%d" % number for number in range(1, 50, 2)]
        proxy.delay(0.0)
        assert await store.get("k7", strong=True) == Stored(b"7", "1")
        assert len(await raw.client_list(_type="normal")) <= 3


async def test_a_lock_whose_reply_is_lost(tmp_path: Path) -> None:
    """It may be held: asking again would find it held by oneself."""
    async with proxied(tmp_path, RedisLockStore, poolSize="1") as (locks, proxy, raw):
        await locks.acquire("lock||a||other", "own", 60.0)
        proxy.cut_after(1, upwards=False)
        with pytest.raises(LockError):
            await locks.acquire("lock||a||r", "own", 60.0)
        assert await raw.get("lock||a||r") == b"own"


async def test_connections_that_grow_old(tmp_path: Path) -> None:
    """By idleness or by age: others take their place."""
    for setting in ("idleTimeout", "maxConnAge"):
        async with proxied(tmp_path / setting, RedisStateStore, poolSize="1", **{setting: "1ms"}) as (store, _, raw):
            await store.get("k", strong=True)
            before = {each["id"] for each in await raw.client_list()}

            async def renewed(store: Any = store, raw: Redis = raw, before: set[str] = before) -> None:
                await store.get("k", strong=True)
                assert {each["id"] for each in await raw.client_list()} - before

            await eventually(renewed)


async def test_watching_without_limits_of_time(tmp_path: Path) -> None:
    """A time of 0 is none, not one that is over."""
    async with (
        proxied(tmp_path, RedisConfigurationStore, dialTimeout="0", readTimeout="0") as (store, _, raw),
        store.watch(["c"], {}) as changed,
    ):
        await raw.set("c", "1")
        async with asyncio.timeout(30):
            await changed.wait()


async def test_a_stalled_connection_of_those_who_watch(tmp_path: Path) -> None:
    """Is found by its silence; whoever waits is told, since something may have been missed."""
    async with (
        proxied(tmp_path, RedisConfigurationStore, readTimeout="200ms") as (store, proxy, raw),
        store.watch(["c"], {}) as changed,
    ):
        changed.clear()
        proxy.stall()
        await raw.set("c", "1")
        async with asyncio.timeout(30):
            await changed.wait()
        changed.clear()
        await raw.set("c", "2")
        async with asyncio.timeout(30):
            await changed.wait()
        proxy.resume()


async def test_nobody_there_at_the_start(tmp_path: Path) -> None:
    """The error says who was waited for; a server that comes in time is found."""
    server = RedisServer(tmp_path, ("--save", ""))
    host = f"127.0.0.1:{server.port}"
    for adapter in (RedisStateStore, RedisLockStore, RedisConfigurationStore):
        store = adapter.from_component(replace(component("c", "", redisHost=host), init_timeout=0.5))
        with pytest.raises(MeshError, match=rf"^Redis at {host} did not answer within 0.4 s: .*{server.port}"):
            await store.__aenter__()
    async with asyncio.TaskGroup() as tasks:
        store = made(RedisStateStore, host)
        entering = tasks.create_task(store.__aenter__())
        await asyncio.sleep(0)
        await server.start()
    try:
        await entering.result().write([Item("k", b"1")])
    finally:
        await store.__aexit__(None, None, None)
        await server.close()


@pytest.mark.parametrize(
    ("options", "settings", "text"),
    [
        (("--requirepass", "sesame"), {}, "NOAUTH|Authentication required"),
        (("--requirepass", "sesame"), {"redisPassword": "hush"}, "WRONGPASS"),
        (("--requirepass", "sesame"), {"redisPassword": "sesame", "redisUsername": "who"}, "WRONGPASS"),
        ((), {"redisDB": "99"}, "DB index is out of range"),
        ((), {"redisType": "cluster"}, "cluster support disabled"),
        (("--cluster-enabled", "yes"), {}, "redisType: cluster|CLUSTERDOWN"),
    ],
)
async def test_a_server_that_refuses(
    tmp_path: Path, options: tuple[str, ...], settings: dict[str, str], text: str
) -> None:
    """Is told at the start, or by the first write; no password is in it."""
    async with RedisServer(tmp_path, (*DURABLE, *options)) as server:
        with pytest.raises(StateError, match=text) as raised:
            async with made(RedisStateStore, f"127.0.0.1:{server.port}", redisMaxRetries="0", **settings) as store:
                await store.write([Item("k", b"1")])
        assert not any(password in str(raised.value) for password in ("sesame", "hush"))


# Clusters


async def test_slots_that_move(tmp_path: Path) -> None:
    """While they do, and after it; nobody is told of it."""
    async with (
        RedisCluster(tmp_path, nodes=2) as cluster,
        made(RedisStateStore, cluster.hosts, redisType="cluster") as store,
    ):
        slot = key_slot(b"k")
        ports = [server.port for server in cluster.servers]
        async with Redis(port=ports[0]) as first, Redis(port=ports[1]) as second:
            nodes = [first, second]
            ids = [await each.execute_command("CLUSTER", "MYID") for each in nodes]
            at = 0 if slot < 8192 else 1
            source, target, source_id, target_id = nodes[at], nodes[1 - at], ids[at], ids[1 - at]
            await store.write([Item("k", b"1")])
            await target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            await source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
            await source.execute_command("MIGRATE", "127.0.0.1", ports[1 - at], "k", 0, 5000)
            assert await store.get("k", strong=True) == Stored(b"1", "1")
            await store.write([Item("k", b"2", "1")])
            for each in nodes:
                await each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
            assert await store.get_many(["k"] * 10) == [Stored(b"2", "2")] * 10
            await store.write([Item("k", b"3", "2")])
            assert await target.hget("k", "data") == b"3"


async def test_names_of_locks_in_a_cluster(tmp_path: Path) -> None:
    """A lock and its token must be in one slot."""
    async with RedisCluster(tmp_path) as cluster, made(RedisLockStore, cluster.hosts, redisType="cluster") as locks:
        for name in ("lock||a||r", "lock||a||{r}1", "lock||a||{r"):
            assert await locks.acquire(name, "own", 60.0) is not None
        for name in ("lock||a||r}", "lock||a||{}r"):
            with pytest.raises(BadArgumentError, match="must not hold a '}'"):
                await locks.acquire(name, "own", 60.0)


async def test_a_primary_whose_replica_takes_over(tmp_path: Path) -> None:
    """Keys of its slots are there again, and their changes are told."""
    async with RedisCluster(tmp_path, nodes=3, replicas=1) as cluster:
        first, replica = cluster.servers[0], cluster.servers[3]
        key = next(key for key in map(str, range(100)) if key_slot(key.encode()) < 5000)
        async with (
            made(RedisStateStore, cluster.hosts, redisType="cluster") as store,
            made(RedisConfigurationStore, cluster.hosts, redisType="cluster") as configuration,
            configuration.watch([f"c{{{key}}}"], {}) as changed,
            Redis(port=first.port) as raw,
        ):
            await store.write([Item(key, b"1")])
            assert await raw.wait(1, 10_000) == 1
            changed.clear()
            await first.kill()

            async def written() -> None:
                try:
                    assert await store.get(key, strong=True) is not None
                    await store.write([Item(key, b"2")])
                except StateError as error:
                    raise AssertionError(str(error)) from error

            await eventually(written, within=60.0)
            async with asyncio.timeout(60):
                await changed.wait()
            changed.clear()
            async with Redis(port=replica.port) as promoted, asyncio.timeout(60):
                assert await promoted.hget(key, "data") == b"2"
                await promoted.set(f"c{{{key}}}", "1")
                await changed.wait()


async def test_keys_of_a_transaction_in_two_slots(tmp_path: Path) -> None:
    """Is refused with what to do; single writes and listings go everywhere."""
    async with RedisCluster(tmp_path) as cluster, made(RedisStateStore, cluster.hosts, redisType="cluster") as store:
        with pytest.raises(StateLimitError, match=r"'a' and 'b' are in two; .*'{order-1}lines'") as raised:
            await store.write([Item("a", b"1"), Item("b", b"1")])
        assert not raised.value.retryable
        await store.write([Item("{t}a", b"1"), Item("{t}b", b"1")])
        names = sorted(f"k{number}" for number in range(300))
        assert await store.save_each([Item(name, b"1") for name in names]) == [None] * 300
        assert await store.get_many(names) == [Stored(b"1", "1")] * 300
        sizes = []
        for server in cluster.servers:
            async with Redis(port=server.port) as raw:
                sizes.append(await raw.dbsize())
        assert min(sizes) > 0
        assert sum(sizes) == 302
        assert [*await store.keys("k", "", 200), *await store.keys("k", names[199], 200)] == names


async def test_a_failover_by_sentinels(tmp_path: Path) -> None:
    """What was written is there, and the new primary takes more."""
    async with RedisWatched(tmp_path) as watched:
        settings = {"failover": "true", "sentinelMasterName": watched.MASTER}
        async with (
            made(RedisStateStore, watched.hosts, **settings) as store,
            made(RedisConfigurationStore, watched.hosts, **settings) as configuration,
            configuration.watch(["c"], {}) as changed,
        ):
            await store.write([Item("k", b"1")])
            async with Redis(port=watched.primary.port) as raw:
                assert await raw.wait(1, 10_000) == 1
            await watched.primary.kill()

            async def written() -> None:
                try:
                    await store.write([Item("l", b"1")])
                except StateError as error:
                    raise AssertionError(str(error)) from error

            await eventually(written, within=60.0)
            assert await store.get("k", strong=True) == Stored(b"1", "1")
            async with asyncio.timeout(30):
                await changed.wait()
            changed.clear()
            async with Redis(port=watched.replica.port) as raw, asyncio.timeout(10):
                await raw.set("c", "2")
                await changed.wait()
