"""One suite for all state stores, in the process that asks; tests/contract/test_hosting.py has what a host adds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import cast

import orjson
import pytest
import pytest_asyncio
from msgspec.structs import replace

from mesh import address
from mesh.blocks.records import Prefixed
from mesh.blocks.state import (
    BULK_GET,
    DELETE,
    GET,
    KEYS,
    QUERY,
    SAVE,
    TRANSACT,
    BulkGet,
    Get,
    Keys,
    Listed,
    Save,
    Search,
    StateStoreComponent,
)
from mesh.broker import Delivery, SubscribeOptions
from mesh.errors import (
    BadArgumentError,
    ConflictError,
    FeatureNotSupportedError,
    IllegalKeyError,
    InvalidEtagError,
    MeshError,
    StateLimitError,
    TooManyOperationsError,
)
from mesh.node.runtime import Runtime
from mesh.query import Queried
from mesh.resources.component import Secret, SecretRef
from mesh.store import Concurrency, Item, Stored
from tests.support.eventually import eventually
from tests.support.guarded import writes_each_that_its_check_allows
from tests.support.nodes import ask, component, node, unique
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

    def __init__(self, runtime: Runtime, name: str = "store", *, metadata: Mapping[str, str]) -> None:
        self.runtime = runtime
        self.name = name
        self.metadata = dict(metadata)
        self.app_id = unique("app")  # With keys of its own.

    @property
    def component(self) -> StateStoreComponent:
        return cast("StateStoreComponent", self.runtime.services["state"].components[self.name])  # type: ignore[attr-defined]

    @property
    def capabilities(self) -> Sequence[str]:
        """What it says that it can do."""
        return self.component.capabilities

    def needs(self, ability: str) -> None:
        """Skip where it does not say that it has an ability."""
        if ability not in self.capabilities:
            pytest.skip(f"does not declare {ability}")

    def of(self, items: Iterable[Item]) -> Save:
        """Say of all what the store must be told of each."""
        return Save([replace(item, metadata={**self.metadata, **item.metadata}) for item in items])

    async def get(self, key: str, *, strong: bool = True) -> Stored | None:
        wanted = Get(key, strong, self.metadata)
        return cast("Stored | None", await ask(self.runtime, GET, self.name, wanted, app_id=self.app_id))

    async def value(self, key: str) -> bytes | None:
        stored = await self.get(key)
        return None if stored is None else stored.value

    async def save(self, *items: Item) -> None:
        await ask(self.runtime, SAVE, self.name, self.of(items), app_id=self.app_id)

    async def delete(self, key: str, etag: str | None = None) -> None:
        await ask(self.runtime, DELETE, self.name, self.of([Item(key, None, etag)]), app_id=self.app_id)

    async def transact(self, *items: Item) -> None:
        await ask(self.runtime, TRANSACT, self.name, self.of(items), app_id=self.app_id)

    async def bulk(self, *keys: str, parallelism: int = 0) -> list[bytes | str | None]:
        wanted = BulkGet(keys, parallelism, self.metadata)
        found = await ask(self.runtime, BULK_GET, self.name, wanted, app_id=self.app_id)
        return [each.value if isinstance(each, Stored) else each for each in cast("Sequence[Stored | None]", found)]

    async def keys(self, prefix: str = "", after: str = "", limit: int = 100) -> Listed:
        return cast("Listed", await ask(self.runtime, KEYS, self.name, Keys(prefix, after, limit), app_id=self.app_id))

    async def query(self, query: object, **metadata: str) -> Queried:
        search = Search(orjson.dumps(query), {**self.metadata, **metadata})
        return cast("Queried", await ask(self.runtime, QUERY, self.name, search, app_id=self.app_id))


@pytest.fixture
def store(runtime: Runtime, kind: StoreKind) -> Store:
    store = Store(runtime, metadata=kind.metadata)
    store.app_id = kind.app_id.format(store.app_id)
    return store


async def test_save_get_delete(store: Store) -> None:
    """Bytes are kept as they are; every write gives another etag, where there are some."""
    assert await store.get("k") is None
    await store.save(Item("k", b'{"a": 1}'), Item("other", bytes(range(256))), Item("empty", b""))
    first = await store.get("k")
    assert first is not None
    assert (first.value, first.expires_at) == (b'{"a": 1}', None)
    assert (await store.value("other"), await store.value("empty")) == (bytes(range(256)), b"")
    await store.save(Item("k", b"2"))
    second = await store.get("k", strong=False)
    assert second is not None
    if "ETAG" in store.capabilities:
        assert second.etag != first.etag
    else:
        assert (first.etag, second.etag) == ("", "")
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


async def test_first_write_in_a_transaction(store: Store) -> None:
    """It guards the others, as an outbox needs it."""
    store.needs("TRANSACTIONAL")
    store.needs("ETAG")
    first = Item("first", b"1", concurrency=Concurrency.FIRST_WRITE)
    await store.transact(Item("a", b"1"), first)
    for items in ([Item("a", b"2"), first], [first, Item("a", b"2")], [Item("b", b"2"), Item("a", None), first]):
        with pytest.raises(ConflictError):
            await store.transact(*items)
    assert [await store.value(key) for key in ("a", "b", "first")] == [b"1", None, b"1"]
    await store.delete("first")
    await store.transact(first, Item("a", b"3"))
    assert [await store.value(key) for key in ("a", "first")] == [b"3", b"1"]


async def test_items_that_are_only_checked(store: Store, kind: StoreKind) -> None:
    """They guard the others, and are not changed themselves."""
    store.needs("TRANSACTIONAL")
    if not kind.checks:
        with pytest.raises(FeatureNotSupportedError):
            await store.transact(Item("nobody", None, check=True), Item("a", b"1"))
        assert await store.value("a") is None
        return
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


async def test_many_writes_under_what_is_only_checked(store: Store, kind: StoreKind) -> None:
    """Each is done if its own check holds."""
    store.needs("TRANSACTIONAL")
    store.needs("ETAG")
    if not kind.checks or kind.metadata:
        pytest.skip("transactions there have items that are only checked, or are of one partition")
    await writes_each_that_its_check_allows(store.component.store, f"{store.app_id}||")


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


async def test_a_time_to_live_that_is_refused(store: Store) -> None:
    """A store that keeps what it has does not take it in silence."""
    if "TTL" in store.capabilities:
        pytest.skip("lets values expire")
    for write in (store.save, store.transact):
        with pytest.raises(BadArgumentError, match="cannot let values expire"):
            await write(Item("k", b"1", ttl=1.0))
    assert await store.value("k") is None


async def test_conditions_that_are_refused(store: Store) -> None:
    """A store that cannot compare does not write in silence."""
    if "ETAG" in store.capabilities:
        pytest.skip("compares etags")
    await store.save(Item("k", b"1"))
    writes = (Item("k", b"2", "1"), Item("k", None, "1"), Item("k", b"2", None, Concurrency.FIRST_WRITE))
    for item in writes:
        with pytest.raises(BadArgumentError, match="has no etags"):
            await store.save(item)
    assert await store.value("k") == b"1"
    await store.save(Item("k", b"3", None, Concurrency.LAST_WRITE))
    assert await store.value("k") == b"3"


async def test_what_the_application_says_besides(store: Store) -> None:
    """Metadata that a store does not know change nothing."""
    metadata = {**store.metadata, "contentType": "application/json", "x-none": "1"}
    await store.save(Item("k", b'{"a":1}', metadata=metadata, strong=True))
    wanted = Get("k", strong=True, metadata=metadata)
    stored = await ask(store.runtime, GET, store.name, wanted, app_id=store.app_id)
    assert orjson.loads(stored.value) == {"a": 1}
    found = await ask(store.runtime, BULK_GET, store.name, BulkGet(("k",), 0, metadata), app_id=store.app_id)
    assert found[0].value == stored.value


async def test_transactions_that_are_too_large(store: Store) -> None:
    """Nothing of them is done."""
    store.needs("TRANSACTIONAL")
    most = store.component.store.max_transaction
    if most is None:
        pytest.skip("has no limit")
    with pytest.raises(TooManyOperationsError) as raised:
        await store.transact(*(Item(f"k{number}", b"1") for number in range(most + 1)))
    assert (raised.value.count, raised.value.most, raised.value.retryable) == (most + 1, most, False)
    assert await store.value("k0") is None


async def test_listing(store: Store) -> None:
    """An application's own keys that are there, in order, by pages."""
    other = Store(store.runtime, store.name, metadata=store.metadata)
    if "KEYS" not in store.capabilities:
        with pytest.raises(FeatureNotSupportedError):
            await store.keys()
        return
    names = ["a", "a b", "a*", "a1", "a10", "a2", "ab%_", "b", "ä/ö", "𝄞"]
    assert await store.keys() == Listed((), "")
    await store.save(*(Item(name, b"1") for name in (*names, "gone")))
    await other.save(Item("a-other", b"1"))
    await store.delete("gone")
    assert (await store.keys()).keys == tuple(names)
    assert (await store.keys("a1")).keys == ("a1", "a10")
    assert (await store.keys("ab%_")).keys == ("ab%_",)
    assert (await store.keys("a*")).keys == ("a*",)
    assert (await store.keys("ä")).keys == ("ä/ö",)
    assert (await store.keys("none")).keys == ()
    assert (await store.keys(after="ab%_")).keys == ("b", "ä/ö", "𝄞")
    assert (await store.keys("a\0")).keys == ()
    assert (await store.keys(after="ab%_\0a")).keys == ("b", "ä/ö", "𝄞")
    assert (await store.keys(after="ab\0")).keys == ("ab%_", "b", "ä/ö", "𝄞")
    pages: list[str] = []
    page = Listed((), "")
    for _ in range(len(names)):
        page = await store.keys("a", page.after, 3)
        pages += page.keys
        if not page.after:
            break
        await store.save(Item(f"a {len(pages)}", b"1"))  # Behind what was given already.
        await store.delete(page.keys[0])
    assert pages == [name for name in names if name.startswith("a")]


PEOPLE = {
    "1": {"person": {"org": "Dev", "id": 1036}, "city": "Seattle", "state": "WA"},
    "2": {"person": {"org": "Finance", "id": 1028}, "city": "Portland", "state": "OR"},
    "3": {"person": {"org": "Finance", "id": 1071}, "city": "Sacramento", "state": "CA"},
    "4": {"person": {"org": "Dev", "id": 1042}, "city": "Spokane", "state": "WA"},
    "5": {"person": {"org": "Hardware", "id": 1007}, "city": "Los Angeles", "state": "CA"},
}


@pytest_asyncio.fixture(loop_scope="module")
async def people(store: Store) -> Store:
    """A store with something to look for, if it can."""
    if "QUERY_API" not in store.capabilities:
        with pytest.raises(FeatureNotSupportedError):
            await store.query({})
        pytest.skip("does not declare QUERY_API; refuses")
    json = {"contentType": "application/json"}
    await store.save(*(Item(key, orjson.dumps(value), metadata=json) for key, value in PEOPLE.items()))
    other = Store(store.runtime, store.name, metadata=store.metadata)
    await other.save(Item("1", orjson.dumps(PEOPLE["1"]), metadata=json))
    return store


@pytest.mark.parametrize(
    ("condition", "keys"),
    [
        (None, "12345"),
        ({"EQ": {"state": "CA"}}, "35"),
        ({"EQ": {"person.org": "Nobody"}}, ""),
        ({"NEQ": {"state": "CA"}}, "124"),
        ({"IN": {"state": ["CA", "OR"]}}, "235"),
        ({"EQ": {"person.id": 1042}}, "4"),
        ({"GT": {"person.id": 1036}}, "34"),
        ({"GTE": {"person.id": 1036}}, "134"),
        ({"LT": {"person.id": 1028}}, "5"),
        ({"LTE": {"person.id": 1028}}, "25"),
        ({"AND": [{"EQ": {"state": "WA"}}, {"EQ": {"person.org": "Dev"}}]}, "14"),
        (
            {
                "OR": [
                    {"EQ": {"person.org": "Hardware"}},
                    {"AND": [{"EQ": {"state": "WA"}}, {"LT": {"person.id": 1040}}]},
                ]
            },
            "15",
        ),
    ],
)
async def test_queries(people: Store, condition: object, keys: str) -> None:
    """The application's own values, whole, with their etags."""
    found = await people.query({"filter": condition, "sort": [{"key": "person.id"}]})
    assert sorted(match.key for match in found.matches) == list(keys)
    for match in found.matches:
        stored = await people.get(match.key)
        assert stored is not None
        assert (orjson.loads(match.value), match.etag) == (PEOPLE[match.key], stored.etag)


@pytest.mark.parametrize(
    ("sort", "keys"),
    [
        ([{"key": "person.id"}], "52143"),
        ([{"key": "state", "order": "DESC"}, {"key": "person.id", "order": "ASC"}], "14253"),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_pages_of_a_query(people: Store, sort: object, keys: str, limit: int) -> None:
    """Each once, in order; the last page has no token, or the one behind it is empty."""
    pages: list[str] = []
    token = ""
    for _ in range(len(keys) + 1):
        found = await people.query({"sort": sort, "page": {"limit": limit, **({"token": token} if token else {})}})
        assert len(found.matches) <= limit
        pages += [match.key for match in found.matches]
        token = found.token
        if not token:
            break
    assert "".join(pages) == keys


async def test_queries_that_make_no_sense(people: Store) -> None:
    with pytest.raises(BadArgumentError):
        await people.query({"filter": {"LIKE": {"a": 1}}})
    with pytest.raises(BadArgumentError):
        await people.query({"page": {"token": "none of ours", "limit": 1}})


async def test_bulk_get(store: Store) -> None:
    """In the order asked for."""
    await store.save(*[Item(f"k{number}", b"%d" % number) for number in range(20)])
    keys = ("none", *(f"k{number}" for number in reversed(range(20))))
    assert await store.bulk(*keys, parallelism=3) == [None, *(b"%d" % number for number in reversed(range(20)))]


async def test_many_keys(store: Store, kind: StoreKind) -> None:
    """Ten thousand at once, or fewer where the server is slow, written and read."""
    keys = [f"k{number}" for number in range(kind.many)]
    until = time.time() + 120  # How fast it is, is no part of the promise.
    items = [Item(key, b'"%s"' % key.encode()) for key in keys]
    await ask(store.runtime, SAVE, store.name, store.of(items), app_id=store.app_id, deadline=until)
    wanted = BulkGet(tuple(keys), 0, store.metadata)
    found = await ask(store.runtime, BULK_GET, store.name, wanted, app_id=store.app_id, deadline=until)
    assert [each.value for each in found] == [item.value for item in items]


async def test_keys(store: Store, kind: StoreKind) -> None:
    """Any text but the separator; an application reaches its own only, and no two texts are the same key."""
    keys = kind.keys
    for number, key in enumerate(keys):
        if kind.longest_key is not None and len(key) > kind.longest_key:
            with pytest.raises(StateLimitError, match=f"at most {kind.longest_key} characters"):
                await store.save(Item(key, b"1"))
        else:
            await store.save(Item(key, b"%d" % number))
    for number, key in enumerate(keys):
        if kind.longest_key is None or len(key) <= kind.longest_key:
            assert await store.value(key) == b"%d" % number
    with pytest.raises(IllegalKeyError, match=r"input key/keyPrefix 'a\|\|b' can't contain '\|\|'") as raised:
        await store.get("a||b")
    assert raised.value.key == "a||b"
    other = Store(store.runtime, store.name, metadata=store.metadata)
    assert await other.get("a.b=c") is None


async def test_scan(store: Store, kind: StoreKind) -> None:
    """Keys that are there, in order with their values, by pages: what the mesh's own records are read with."""
    records = Prefixed(store.component.store, f"mesh||{unique('records')}||")
    if "KEYS" not in store.capabilities:
        with pytest.raises(FeatureNotSupportedError):
            await records.scan("t.", "", 10)
        return
    assert list(await records.scan("t.", "", 10)) == []
    names = [f"t.{part}.{number:03}" for part in ("a", "a-b", "a=2Eb") for number in range(40)]
    written = [Item(name, b'"%s"' % name.encode()) for name in (*names, "t", "tt.a", "u.a")]
    assert [each for each in await records.save_each(written) if each is not None] == []
    gone, again = names[5], names[6]
    await records.write([Item(gone, None)])
    await records.write([Item(again, b"2")])
    if "TTL" in store.capabilities:
        await records.write([Item("t.short", b"1", ttl=1)])

    async def over() -> None:
        assert await records.get("t.short", strong=True) is None

    await eventually(over)
    live = sorted(set(names) - {gone})
    assert [key for key, _ in await records.scan("t.a.", "", 100)] == [key for key in live if key.startswith("t.a.")]
    found: list[tuple[str, Stored]] = []
    while page := await records.scan("t.", found[-1][0] if found else "", 50):
        found += page
    assert [key for key, _ in found] == live
    assert {key: stored.value for key, stored in found} == {
        key: b"2" if key == again else b'"%s"' % key.encode() for key in live
    }
    read = await records.get_many([*live[:3], gone], strong=True)
    assert list(read) == [*(stored for _, stored in found[:3]), None]
    for key, stored in found[:2]:
        assert stored == await records.get(key, strong=True)
        await records.write([Item(key, b"3", stored.etag if "ETAG" in store.capabilities else None)])


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
        other = Store(second, metadata=kind.metadata)
        other.app_id = store.app_id
        async with asyncio.TaskGroup() as tasks:
            for each in (store, other, store, other):
                tasks.create_task(count(each))
    assert await store.value("n") == b"80"


async def test_encryption(store: Store, served: Served, kind: StoreKind) -> None:
    """Around any store: nothing but the value is another one there, and that cannot be read."""
    key = Secret("0a" * 16, SecretRef("keys", "the key"))
    encrypted = served.component("store", kind.type, primaryEncryptionKey=key)
    async with node(served.backbone, store.runtime.settings.namespace, encrypted) as second:
        other = Store(second, metadata=kind.metadata)
        other.app_id = store.app_id
        values = {
            "object": b'{"a":[1,"\xc3\xa9"]}',
            "text": b'"text"',
            "binary": bytes(range(256)),
            "large": b"1" * min(100_000, kind.largest // 4),  # It becomes a text that is longer.
        }
        await other.save(*(Item(name, value) for name, value in values.items()))
        assert await other.bulk(*values) == list(values.values())
        stored = await other.get("object")
        assert stored is not None
        if kind.type != "state.in-memory":
            for name, value in values.items():
                plain = await store.value(name)
                assert plain is not None
                assert plain.endswith(b"||the key")
                assert value not in plain
        if "ETAG" in other.capabilities:
            await other.save(Item("object", b"2", stored.etag))
            with pytest.raises(ConflictError):
                await other.save(Item("object", b"3", stored.etag))
        if "TRANSACTIONAL" in other.capabilities:
            await other.transact(Item("object", b"4"), Item("text", None))
        if "TTL" in other.capabilities:
            await other.save(Item("expires", b"5", ttl=1000.0))
            expires = await other.get("expires")
            assert expires is not None
            assert (expires.value, expires.expires_at is not None) == (b"5", True)
        assert "QUERY_API" not in other.capabilities


async def test_outbox(store: Store, served: Served, kind: StoreKind) -> None:
    """What is written is published, what is not is not, and no marker is left."""
    if kind.app_id != "{}" or kind.metadata or not kind.checks:
        pytest.skip("needs transactions over any keys")
    store.needs("TRANSACTIONAL")
    store.needs("ETAG")
    namespace, taken = unique("outbox"), dict[str, object]()

    async def take(delivery: Delivery) -> None:
        event = orjson.loads(delivery.message.body)
        taken[event["id"]] = event["data"]
        await delivery.ack()

    settings = {"outboxPublishPubsub": "pubsub", "outboxPublishTopic": "orders"}
    events = served.component("store", kind.type, **settings)
    orders = address.topic(namespace, "pubsub", "orders")
    async with (
        node(served.backbone, namespace, component("pubsub", "pubsub.mesh"), events) as second,
        second.broker.subscribe(orders, SubscribeOptions("watch"), take),
    ):
        other = Store(second, metadata=kind.metadata)
        other.app_id = store.app_id
        await other.transact(Item("a", b'{"n":1}'), Item("b", b'"text"'), Item("c", None))
        with pytest.raises(ConflictError):
            await other.transact(Item("a", b'"never"'), Item("b", b"2", "999999999"))
        await other.transact(Item("a", b"3"))

        async def published() -> None:
            assert sorted(map(str, taken.values())) == ["3", "text", "{'n': 1}"]
            for marker in taken:
                assert await other.component.store.get(marker, strong=True) is None

        await eventually(published)
        assert [await other.value(key) for key in "ab"] == [b"3", b'"text"']


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
