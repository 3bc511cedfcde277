"""One suite for all state stores, in the process that asks; tests/contract/test_hosting.py has what a host adds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest
import pytest_asyncio

from mesh.blocks.state import BULK_GET, DELETE, GET, SAVE, TRANSACT, BulkGet, Get, Save, StateStoreComponent
from mesh.blocks.store import Concurrency, Item, Stored
from mesh.errors import ConflictError, IllegalKeyError, InvalidEtagError, MeshError
from mesh.node.runtime import Runtime
from tests.support.eventually import eventually
from tests.support.nodes import ask, node, unique
from tests.support.stores import STATE, Served, StoreKind

TABLE = STATE
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(served: Served, kind: StoreKind) -> AsyncIterator[Runtime]:
    """A node that has the store."""
    store = served.component("store", kind.type)
    async with node(served.backbone, unique("stores"), store) as runtime:
        yield runtime


class Store:
    """A store as one application sees it."""

    def __init__(self, runtime: Runtime, name: str = "store") -> None:
        self.runtime = runtime
        self.name = name
        self.app_id = unique("app")  # With keys of its own.

    @property
    def capabilities(self) -> Sequence[str]:
        """What it says that it can do."""
        return cast("StateStoreComponent", self.runtime.services["state"].components[self.name]).capabilities  # type: ignore[attr-defined]

    def needs(self, ability: str) -> None:
        """Skip where it does not say that it has an ability."""
        if ability not in self.capabilities:
            pytest.skip(f"does not declare {ability}")

    async def get(self, key: str, *, strong: bool = True) -> Stored | None:
        return cast("Stored | None", await ask(self.runtime, GET, self.name, Get(key, strong), app_id=self.app_id))

    async def value(self, key: str) -> bytes | None:
        stored = await self.get(key)
        return None if stored is None else stored.value

    async def save(self, *items: Item) -> None:
        await ask(self.runtime, SAVE, self.name, Save(list(items)), app_id=self.app_id)

    async def delete(self, key: str, etag: str | None = None) -> None:
        await ask(self.runtime, DELETE, self.name, Save([Item(key, None, etag)]), app_id=self.app_id)

    async def transact(self, *items: Item) -> None:
        await ask(self.runtime, TRANSACT, self.name, Save(list(items)), app_id=self.app_id)

    async def bulk(self, *keys: str, parallelism: int = 0) -> list[bytes | str | None]:
        found = await ask(self.runtime, BULK_GET, self.name, BulkGet(keys, parallelism), app_id=self.app_id)
        return [each.value if isinstance(each, Stored) else each for each in cast("Sequence[Stored | None]", found)]


@pytest.fixture
def store(runtime: Runtime, kind: StoreKind) -> Store:
    store = Store(runtime)
    store.app_id = kind.app_id.format(store.app_id)
    return store


async def test_save_get_delete(store: Store) -> None:
    """Bytes are kept as they are; every write gives another etag."""
    assert await store.get("k") is None
    await store.save(Item("k", b'{"a": 1}'), Item("other", bytes(range(256))))
    first = await store.get("k")
    assert first is not None
    assert (first.value, first.expires_at) == (b'{"a": 1}', None)
    assert await store.value("other") == bytes(range(256))
    await store.save(Item("k", b"2"))
    second = await store.get("k", strong=False)
    assert second is not None
    assert second.etag != first.etag
    await store.delete("k")
    await store.delete("never-there")
    assert await store.get("k") is None


async def test_etags(store: Store) -> None:
    """A write with an etag that is not the stored one's changes nothing, and says so by its class."""
    store.needs("ETAG")
    await store.save(Item("k", b"1"))
    stored = await store.get("k")
    assert stored is not None
    await store.save(Item("k", b"2", stored.etag))
    for wrong in (store.save(Item("k", b"3", stored.etag)), store.delete("k", stored.etag)):
        with pytest.raises(ConflictError) as raised:
            await wrong
        assert (raised.value.code, raised.value.retryable) == ("STATE_CONFLICT", False)
    with pytest.raises((InvalidEtagError, ConflictError)):
        await store.save(Item("k", b"3", "x"))
    with pytest.raises(ConflictError):
        await store.save(Item("k", b"3", None, Concurrency.FIRST_WRITE))
    assert await store.value("k") == b"2"
    now = await store.get("k")
    assert now is not None
    await store.delete("k", now.etag)
    await store.save(Item("k", b"4", None, Concurrency.FIRST_WRITE))
    assert await store.value("k") == b"4"


async def test_transactions(store: Store) -> None:
    """All or nothing."""
    store.needs("TRANSACTIONAL")
    await store.save(Item("a", b"1"), Item("b", b"1"))
    with pytest.raises(ConflictError):
        await store.transact(Item("a", b"2"), Item("new", b"2"), Item("b", b"2", "999999999"))
    assert [await store.value(key) for key in ("a", "b", "new")] == [b"1", b"1", None]
    await store.transact(Item("a", b"2"), Item("b", None), Item("new", b"2"))
    assert [await store.value(key) for key in ("a", "b", "new")] == [b"2", None, b"2"]
    await store.transact()


async def test_items_that_are_only_checked(store: Store) -> None:
    """They guard the others, and are not changed themselves."""
    store.needs("TRANSACTIONAL")
    await store.save(Item("guard", b"1"))
    guard = await store.get("guard")
    assert guard is not None
    holds, absent = Item("guard", None, guard.etag, check=True), Item("nobody", None, check=True)
    await store.transact(holds, Item("a", b"1"), absent)
    await store.transact(absent, holds)
    assert (await store.get("guard"), await store.value("nobody"), await store.value("a")) == (guard, None, b"1")
    await store.save(Item("guard", b"2"))
    for checks in ([holds], [Item("guard", None, check=True)], [holds, absent]):
        with pytest.raises(ConflictError):
            await store.transact(Item("a", b"2"), Item("b", b"2"), *checks)
    assert [await store.value(key) for key in ("a", "b")] == [b"1", None]
    await store.delete("guard")
    await store.transact(Item("guard", None, check=True), Item("a", b"3"))
    assert await store.value("a") == b"3"


async def test_a_save_keeps_what_was_before_the_failure(store: Store) -> None:
    """Items are written one by one; the first that cannot be is what is told."""
    store.needs("ETAG")
    with pytest.raises(ConflictError):
        await store.save(Item("a", b"1"), Item("b", b"1", "999999999"), Item("c", b"1"))
    assert [await store.value(key) for key in "ab"] == [b"1", None]


async def test_expiry(store: Store) -> None:
    """A value is gone once its time is over, and tells until when it is there."""
    store.needs("TTL")
    await store.save(Item("k", b"1", ttl=1.0), Item("stays", b"1", ttl=1000.0))
    stored = await store.get("stays")
    assert stored is not None
    assert stored.expires_at is not None
    assert 900 < stored.expires_at - time.time() <= 1001

    async def gone() -> None:
        assert await store.get("k") is None

    await eventually(gone)


async def test_bulk_get(store: Store) -> None:
    """In the order asked for."""
    await store.save(*[Item(f"k{number}", b"%d" % number) for number in range(20)])
    keys = ("none", *(f"k{number}" for number in reversed(range(20))))
    assert await store.bulk(*keys, parallelism=3) == [None, *(b"%d" % number for number in reversed(range(20)))]


async def test_many_keys(store: Store, kind: StoreKind) -> None:
    """Ten thousand at once, written and read."""
    keys = [f"k{number}" for number in range(kind.many)]
    await store.save(*[Item(key, b'"%s"' % key.encode()) for key in keys])
    assert await store.bulk(*keys) == [b'"%s"' % key.encode() for key in keys]


async def test_keys(store: Store, kind: StoreKind) -> None:
    """Any text but the separator; an application reaches its own only."""
    for key in kind.keys:
        await store.save(Item(key, b"1"))
        assert await store.value(key) == b"1"
    with pytest.raises(IllegalKeyError, match=r"input key/keyPrefix 'a\|\|b' can't contain '\|\|'") as raised:
        await store.get("a||b")
    assert raised.value.key == "a||b"
    other = Store(store.runtime, store.name)
    assert await other.get("a.b=c") is None


async def test_large_values(store: Store, kind: StoreKind) -> None:
    """A MiB, or what the store takes, of any bytes."""
    large = bytes(range(256)) * (kind.largest // 256)
    await store.save(Item("large", large))
    assert await store.value("large") == large


async def test_first_write_is_won_once(store: Store) -> None:
    """However many try at once."""
    store.needs("ETAG")
    lost = 0

    async def write(number: int) -> None:
        nonlocal lost
        try:
            await store.save(Item("k", b"%d" % number, None, Concurrency.FIRST_WRITE))
        except ConflictError:
            lost += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(write(number))
    assert lost == 9


async def test_compare_and_set_from_two_nodes(store: Store, served: Served, kind: StoreKind) -> None:
    """No update is lost."""
    store.needs("ETAG")
    if kind.type == "state.in-memory":
        pytest.skip("a node has its own")
    await store.save(Item("n", b"0"))

    async def count(store: Store) -> None:
        done = 0
        while done < 20:
            now = await store.get("n")
            assert now is not None
            try:
                await store.save(Item("n", b"%d" % (int(now.value) + 1), now.etag))
            except ConflictError:
                continue
            done += 1

    namespace = store.runtime.settings.namespace
    async with node(served.backbone, namespace, served.component("store", kind.type)) as second:
        other = Store(second)
        other.app_id = store.app_id
        async with asyncio.TaskGroup() as tasks:
            for each in (store, other, store, other):
                tasks.create_task(count(each))
    assert await store.value("n") == b"80"


async def test_a_server_that_is_killed(store: Store, served: Served, kind: StoreKind) -> None:
    """What was confirmed is there when it is back; what was not raised in time, or says so."""
    if not kind.restarts:
        pytest.skip("has no server, or one that keeps nothing")
    confirmed: dict[str, bytes] = {}
    async with asyncio.TaskGroup() as tasks:
        stop = asyncio.Event()

        async def write(worker: int) -> None:
            number = 0
            while not stop.is_set():
                key, number = f"w{worker}-{number}", number + 1
                try:
                    await store.save(Item(key, b"%d" % number))
                except MeshError:
                    await asyncio.sleep(0.01)
                else:
                    confirmed[key] = b"%d" % number

        for worker in range(4):
            tasks.create_task(write(worker))
        await eventually(lambda: _at_least(confirmed, 50))
        assert served.server is not None
        await served.server.restart(kill=True)
        before = len(confirmed)
        await eventually(lambda: _at_least(confirmed, before + 50))
        stop.set()
    assert dict(zip(confirmed, await store.bulk(*confirmed), strict=True)) == confirmed


async def _at_least(confirmed: dict[str, bytes], count: int) -> None:
    assert len(confirmed) >= count
