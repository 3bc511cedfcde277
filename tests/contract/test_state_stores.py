"""One suite for all state stores: in the process that asks, and behind a host on every backbone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest
import pytest_asyncio

from mesh.blocks.state import BULK_GET, DELETE, GET, SAVE, TRANSACT, BulkGet, Get, Save
from mesh.blocks.store import Concurrency, Item, Stored
from mesh.errors import ConflictError, IllegalKeyError, InvalidEtagError, StateError
from mesh.node.runtime import Runtime
from tests.support.backends import Backend
from tests.support.eventually import eventually
from tests.support.nodes import ask, component, node, unique

pytestmark = [pytest.mark.requires("shared", "frames"), pytest.mark.asyncio(loop_scope="module")]
STORES = ("state.in-memory", "state.sqlite", "state.mesh")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(
    shared_backend: Backend, backend_name: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Runtime]]:
    """A node that has each store twice, once for itself, and one that has none."""
    if backend_name == "embedded":
        pytest.skip("the same server as nats, found by other means")
    namespace, file = unique("stores"), tmp_path_factory.mktemp("stores") / "state.db"
    kinds = [kind for kind in STORES if kind != "state.mesh" or backend_name in ("nats", "redis")]
    stores = [
        component(
            f"{kind}-{placement}",
            kind,
            placement=placement,
            **({"connectionString": f"{file}-{placement}"} if kind == "state.sqlite" else {}),
        )
        for kind in kinds
        for placement in ("local", "backbone")
    ]
    having = node(shared_backend.url, namespace, *stores)
    asking = node(shared_backend.url, namespace, app_id="asker")
    async with having, asking:
        yield {"local": having, "backbone": having, "elsewhere": asking}


class Store:
    """A store as one application sees it."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.runtime = runtime
        self.name = name
        self.app_id = unique("app")  # With keys of its own.

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


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture(params=["local", "backbone", "elsewhere"])
def store(request: pytest.FixtureRequest, nodes: dict[str, Runtime], kind: str, backend_name: str) -> Store:
    """Run here; run here, but sent over the backbone; and run by another node."""
    if kind == "state.mesh" and backend_name not in ("nats", "redis"):
        pytest.skip(f"{backend_name} has no key/value")
    return Store(nodes[request.param], f"{kind}-{'local' if request.param == 'local' else 'backbone'}")


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
    await store.delete("never there")
    assert await store.get("k") is None


async def test_etags(store: Store) -> None:
    """A write with an etag that is not the stored one's changes nothing, and says so by its class."""
    await store.save(Item("k", b"1"))
    stored = await store.get("k")
    assert stored is not None
    await store.save(Item("k", b"2", stored.etag))
    for wrong in (store.save(Item("k", b"3", stored.etag)), store.delete("k", stored.etag)):
        with pytest.raises(ConflictError) as raised:
            await wrong
        assert (raised.value.code, raised.value.retryable) == ("STATE_CONFLICT", False)
    with pytest.raises(InvalidEtagError, match="invalid etag value: x"):
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
    await store.save(Item("a", b"1"), Item("b", b"1"))
    with pytest.raises(ConflictError):
        await store.transact(Item("a", b"2"), Item("new", b"2"), Item("b", b"2", "999999999"))
    assert [await store.value(key) for key in ("a", "b", "new")] == [b"1", b"1", None]
    await store.transact(Item("a", b"2"), Item("b", None), Item("new", b"2"))
    assert [await store.value(key) for key in ("a", "b", "new")] == [b"2", None, b"2"]
    await store.transact()


async def test_a_save_keeps_what_was_before_the_failure(store: Store) -> None:
    """Items are written one by one."""
    with pytest.raises(ConflictError):
        await store.save(Item("a", b"1"), Item("b", b"1", "999999999"), Item("c", b"1"))
    assert [await store.value(key) for key in "abc"] == [b"1", None, None]


async def test_expiry(store: Store) -> None:
    """A value is gone once its time is over, and tells until when it is there."""
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
    found = await ask(store.runtime, BULK_GET, store.name, BulkGet(keys, 3), app_id=store.app_id)
    values = [each.value if each is not None else None for each in cast("Sequence[Stored | None]", found)]
    assert values == [None, *(b"%d" % number for number in reversed(range(20)))]


async def test_keys(store: Store) -> None:
    """Any text but the separator; an application reaches its own only."""
    for key in ("ünï/code key", "a.b=c", "1" * 300):
        await store.save(Item(key, b"1"))
        assert await store.value(key) == b"1"
    with pytest.raises(IllegalKeyError, match=r"input key/keyPrefix 'a\|\|b' can't contain '\|\|'") as raised:
        await store.get("a||b")
    assert raised.value.key == "a||b"
    with pytest.raises(StateError, match="a key has 1 to"):
        await store.get("x" * 5000)
    other = Store(store.runtime, store.name)
    assert await other.get("a.b=c") is None


async def test_large_values(store: Store) -> None:
    """Also above what one frame of the backbone carries."""
    large = bytes(range(256)) * 2400
    await store.save(Item("large", large))
    assert await store.value("large") == large


async def test_first_write_is_won_once(store: Store) -> None:
    """However many try at once."""
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
