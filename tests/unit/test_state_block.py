"""State without HTTP: prefixes, etags as revisions, and what a save does with the items before a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pytest

from mesh.blocks.state import (
    BULK_GET,
    FIRST_PART,
    GET,
    MAX_ANSWER_BYTES,
    QUERY,
    SAVE,
    TRANSACT,
    BulkGet,
    Get,
    Save,
    Search,
    StateStoreComponent,
    key_prefix,
)
from mesh.broker import Write
from mesh.errors import (
    AnswerTooLargeError,
    ConfigError,
    ConflictError,
    DeadlineExceededError,
    IllegalKeyError,
    InvalidEtagError,
    MeshError,
    OutcomeUnknownError,
    StateError,
    StateLimitError,
)
from mesh.key_value import MemoryKeyValue
from mesh.operation import Caller, Context, Method, Operation
from mesh.pipeline import Pipeline
from mesh.policies import Policy, Retry, Timeout
from mesh.query import Match, Queried, Query
from mesh.resources.component import Component, MetadataEntry
from mesh.store import MAX_PARALLEL, Concurrency, Item, KeyValueStateStore, StateStore, Stored


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class State:
    """What an application can do with a store."""

    component: StateStoreComponent
    app_id: str = "app"

    async def run(self, method: Method, arguments: object) -> object:
        operation = Operation(method, "s", arguments, Context(Caller("ns", self.app_id)))
        return await getattr(self.component, method.name)(operation)

    async def get(self, key: str, *, strong: bool = False) -> Stored | None:
        return cast("Stored | None", await self.run(GET, Get(key, strong)))

    async def save(self, items: Sequence[Item]) -> None:
        await self.run(SAVE, Save(list(items)))

    async def transact(self, items: Sequence[Item]) -> None:
        await self.run(TRANSACT, Save(list(items)))


@pytest.fixture
def state(clock: Clock) -> State:
    store = KeyValueStateStore(MemoryKeyValue(clock))
    return State(StateStoreComponent(store, lambda app_id: f"{app_id}||"))


async def value(state: State, key: str) -> bytes | None:
    stored = await state.get(key)
    return None if stored is None else stored.value


async def test_save_and_get(state: State, clock: Clock) -> None:
    """Every write changes the etag; an expired value is gone."""
    await state.save([Item("k", b"1")])
    first = await state.get("k")
    await state.save([Item("k", b"2", first.etag if first else None, ttl=5.0)])
    second = await state.get("k", strong=True)
    assert first is not None
    assert second is not None
    assert (second.value, second.expires_at) == (b"2", 1005.0)
    assert second.etag != first.etag
    clock.now = 1005.0
    assert await state.get("k") is None


async def test_a_save_keeps_what_did_not_fail(state: State) -> None:
    """Items are written each for itself; a transaction is all or nothing."""
    items = [Item("a", b"1"), Item("b", b"1", "77"), Item("c", b"1")]
    with pytest.raises(ConflictError):
        await state.save(items)
    assert [await value(state, key) for key in "abc"] == [b"1", None, b"1"]
    with pytest.raises(ConflictError):
        await state.transact([Item("a", b"2"), *items[1:]])
    assert [await value(state, key) for key in "abc"] == [b"1", None, b"1"]
    await state.transact([])
    await state.transact([Item("a", None), Item("b", b"2")])
    assert [await value(state, key) for key in "ab"] == [None, b"2"]


@pytest.mark.parametrize("etag", ["x", "-1", "1.0", "٣", "1" * 20, " 1"])
async def test_malformed_etags(state: State, etag: str) -> None:
    """Only a whole number can be one of this store's."""
    with pytest.raises(InvalidEtagError):
        await state.save([Item("k", b"1", etag)])


async def test_etag_0_matches_nothing(state: State) -> None:
    """In the store's terms it would mean that the key must not exist."""
    with pytest.raises(ConflictError):
        await state.save([Item("k", b"1", "0")])


@pytest.mark.parametrize(
    ("item", "exists", "allowed"),
    [
        (Item("k", b"n", None, Concurrency.FIRST_WRITE), False, True),
        (Item("k", b"n", None, Concurrency.FIRST_WRITE), True, False),
        (Item("k", b"n", None, Concurrency.LAST_WRITE), True, True),
        (Item("k", None, None, Concurrency.FIRST_WRITE), True, True),
        (Item("k", None, None, Concurrency.FIRST_WRITE), False, True),
        (Item("k", None, "99"), True, False),
        (Item("k", None, "99"), False, False),
    ],
)
async def test_concurrency(state: State, item: Item, exists: bool, allowed: bool) -> None:
    """First write loses against what is there; a delete without an etag always may."""
    if exists:
        await state.save([Item("k", b"old")])
    if allowed:
        await state.save([item])
        assert await value(state, "k") == item.value
    else:
        with pytest.raises(ConflictError):
            await state.save([item])
        assert await value(state, "k") == (b"old" if exists else None)


async def test_illegal_keys(state: State) -> None:
    """The separator would let an application reach another's keys; nothing is written."""
    for call in (
        state.get("a||b"),
        state.save([Item("ok", b"1"), Item("a||b", b"1")]),
        state.transact([Item("a||b", None)]),
    ):
        with pytest.raises(IllegalKeyError) as raised:
            await call
        assert (raised.value.key, str(raised.value)) == ("a||b", "input key/keyPrefix 'a||b' can't contain '||'")
    assert await value(state, "ok") is None


@pytest.mark.parametrize(
    ("given", "namespace", "prefix"),
    [
        (None, None, "app||"),
        ("", None, "app||"),
        ("APPID", "ns", "app||"),
        ("name", None, "s||"),
        ("none", None, ""),
        ("NameSpace", "ns", "ns.app||"),
        ("namespace", None, "app||"),
        ("Mine", None, "Mine||"),
    ],
)
def test_key_prefix(given: str | None, namespace: str | None, prefix: str) -> None:
    """The table of the reference."""
    metadata = () if given is None else (MetadataEntry("KEYPREFIX", given),)
    assert key_prefix(Component("s", "state.test", metadata), "app", namespace) == prefix


def test_key_prefix_with_separator() -> None:
    """It would make keys ambiguous."""
    with pytest.raises(ConfigError, match="can't contain"):
        key_prefix(Component("s", "state.test", (MetadataEntry("keyPrefix", "a||b"),)), "app", None)


async def test_each_app_has_its_own_keys(state: State) -> None:
    """Also where one component serves several, as a host does."""
    other = State(state.component, "other")
    await state.save([Item("k", b"1")])
    await other.save([Item("k", b"2")])
    assert (await value(state, "k"), await value(other, "k")) == (b"1", b"2")


async def test_bulk_get(state: State) -> None:
    """In the order asked for; a key that cannot be read has the reason."""
    await state.save([Item("a", b"1"), Item("b", b"2")])
    found = cast("Sequence[object]", await state.run(BULK_GET, BulkGet(("b", "none", "a", "x" * 2000), 2)))
    assert [each.value if isinstance(each, Stored) else each for each in found[:3]] == [b"2", None, b"1"]
    assert "a key has 1 to 1024 bytes" in str(found[3])


class Flaky(KeyValueStateStore):
    """A store that fails each time it is told to."""

    def __init__(self) -> None:
        super().__init__(MemoryKeyValue())
        self.failing = 0
        self.written: list[str] = []

    async def write(self, items: Sequence[Item]) -> None:
        self.written += [item.key for item in items]
        if self.failing and len(self.written) == self.failing:
            raise StateError("not now")
        await super().write(items)

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        self.written.append(key)
        await asyncio.Event().wait()
        raise AssertionError


async def through_pipeline(store: StateStore, policy: Policy, method: Method, arguments: object) -> object:
    component = StateStoreComponent(store, lambda app_id: "")

    class Service:
        async def run(self, operation: Operation) -> object:
            return await getattr(component, operation.method.name)(operation)

    pipeline = Pipeline({"state": Service()}, policy_of=lambda *_: policy)
    return await pipeline.run(Operation(method, "s", arguments, Context(Caller("ns", "app"))))


async def test_another_attempt_is_of_what_is_not_written() -> None:
    """With etags, what was written would conflict with itself."""
    store = Flaky()
    store.failing = 2
    items = [Item(key, b"1", None, Concurrency.FIRST_WRITE) for key in "abc"]
    await through_pipeline(store, Policy(retry=Retry(interval=0.0, max_retries=1)), SAVE, Save(list(items)))
    assert sorted(store.written) == ["a", "b", "b", "c"]


class Lossy(Flaky):
    """A store that loses every answer."""

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        self.written += [item.key for item in items]
        return [StateError("no answer"), OutcomeUnknownError("no answer")]


async def test_a_write_whose_outcome_is_unknown_is_not_made_again() -> None:
    """Also where another one of the same save could be: it would conflict with itself."""
    store, policy = Lossy(), Policy(retry=Retry(interval=0.0, max_retries=2))
    with pytest.raises(OutcomeUnknownError):
        await through_pipeline(store, policy, SAVE, Save([Item("a", b"1"), Item("b", b"1", "7")]))
    assert store.written == ["a", "b"]


async def test_a_policy_bounds_each_attempt() -> None:
    """And makes as many as it says."""
    store = Flaky()
    policy = Policy(timeout=Timeout(0.01), retry=Retry(interval=0.0, max_retries=1))
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.01 s"):
        await through_pipeline(store, policy, GET, Get("k"))
    assert store.written == ["k", "k"]


async def test_what_never_fits_is_not_tried_again() -> None:
    """Also by a policy without an end."""
    policy = Policy(retry=Retry(interval=0.0))
    with pytest.raises(StateLimitError, match="a key has 1 to 1024 bytes"):
        await through_pipeline(Flaky(), policy, SAVE, Save([Item("x" * 2000, b"1")]))


class Counted(MemoryKeyValue):
    """Notes what is written, and how many at once; a value that begins with x is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.order: list[tuple[str, bytes | None]] = []

    async def apply(self, operations: Sequence[Write]) -> None:
        [one] = operations
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if one.value is not None and one.value.startswith(b"x"):
            raise StateError(f"{one.key} failed")
        self.order.append((one.key, one.value))
        await super().apply(operations)


@pytest.mark.parametrize("count", [0, 1, 2, 99, 100, 101, 1000])
async def test_many_are_saved_at_once(count: int) -> None:
    """But no more than so many."""
    counted = Counted()
    results = await KeyValueStateStore(counted).save_each([Item(f"{each}", b"1") for each in range(count)])
    assert results == [None] * count
    assert counted.most == min(count, MAX_PARALLEL)


@pytest.mark.parametrize(
    ("written", "results", "order"),
    [
        ("a1 a2 a3", "- - -", "a1 a2 a3"),
        ("a1 b1 a2 b2 a3", "- - - - -", "a1 b1 a2 b2 a3"),
        ("ax a2 b1 a3 b2", "failed tried - tried -", "b1 b2"),
        ("a1 ax b1 a3", "- failed - tried", "a1 b1"),
        ("ax bx c1", "failed failed -", "c1"),
        ("ax", "failed", ""),
    ],
)
async def test_equal_keys_are_saved_in_order(written: str, results: str, order: str) -> None:
    """What follows one that failed is not tried: the failed one may be tried again, and comes before."""
    counted = Counted()
    items = [Item(each[0], each[1:].encode()) for each in written.split()]
    found = await KeyValueStateStore(counted).save_each(items)
    assert " ".join("-" if each is None else str(each).split()[-1] for each in found) == results
    for key in "abc":
        came = [value for name, value in counted.order if name == key]
        assert came == [each[1:].encode() for each in order.split() if each[0] == key]


LARGE = bytes(4 * 2**20)


class Read(StateStore):
    """Has a large value for each key but those that begin with s, t (small) or n (nothing); notes what is read."""

    capabilities = ("QUERY_API",)

    def __init__(self) -> None:
        self.read: list[str] = []

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        name = key.rpartition("||")[2]
        self.read.append(name)
        if name.startswith("f"):
            raise StateError("x" * 1000)
        return None if name.startswith("n") else Stored(b"1" if name[0] in "st" else LARGE, "1")

    async def query(self, query: Query, prefix: str) -> Queried:
        return Queried([Match(f"{prefix}{each}", LARGE) for each in range(query.limit)])


def keys_of(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{each}" for each in range(count))


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ((), 0),
        (("s",), 1),
        (("s", "n", "s", "l", "s", "f"), 4),
        (("l",) * 15, 1),
        (("s",) * 10_000, 1),
        (("n",) * 10_000, 1),
        (keys_of("l", 15), 15),
        ((*keys_of("s", 1000), *keys_of("n", 1000), *keys_of("l", 10)), 2010),
    ],
    ids=["none", "one", "all kinds", "repeated", "small, repeated", "missing, repeated", "large", "many"],
)
async def test_a_bulk_read_reads_each_key_once(keys: tuple[str, ...], read: int) -> None:
    """And answers it as often as it was asked for, in that order."""
    store = Read()
    found = await State(StateStoreComponent(store, lambda app_id: f"{app_id}||")).run(BULK_GET, BulkGet(keys))
    sizes = {"s": 1, "n": None, "l": len(LARGE), "f": 1000}
    told = [
        len(each.value if isinstance(each, Stored) else each) if each else None
        for each in cast("tuple[Stored | str | None, ...]", found)
    ]
    assert told == [sizes[key[0]] for key in keys]
    assert len(store.read) == len(set(store.read)) == read


@pytest.mark.parametrize(
    ("keys", "most"),
    [
        (("l",) * 16, 1),
        (("s", "l") * 200, 2),
        (keys_of("l", 10_000), FIRST_PART),
        ((*keys_of("s", 100), *keys_of("l", 10_000)), 100 + MAX_PARALLEL),
        (("s",) * 300_000, 0),
        (keys_of("n", 300_000), 0),
        (("f",) * 60_000, 1),
        (("k" * 2**20,) * 64, 0),
    ],
    ids=["repeated", "by turns", "large", "behind small ones", "entries", "missing", "failed", "long keys"],
)
async def test_a_bulk_read_is_bounded(keys: tuple[str, ...], most: int) -> None:
    """It ends once it is over the limit, and reads little beyond; it is not tried again."""
    store, again = Read(), Policy(retry=Retry(interval=0.0))
    with pytest.raises(AnswerTooLargeError, match="larger than 64 MiB; ask for fewer keys at once"):
        await through_pipeline(store, again, BULK_GET, BulkGet(keys))
    assert len(store.read) <= most


@pytest.mark.parametrize("count", [0, 1, 15, 16])
async def test_what_a_query_gives_is_bounded(count: int) -> None:
    """The text says what makes it smaller."""
    state = State(StateStoreComponent(Read(), lambda app_id: f"{app_id}||"))
    wanted = Search(b'{"page": {"limit": %d}}' % count)
    if count * len(LARGE) < MAX_ANSWER_BYTES:
        assert len(cast("Queried", await state.run(QUERY, wanted)).matches) == count
        return
    with pytest.raises(AnswerTooLargeError, match=r"larger than 64 MiB; set a smaller page\.limit"):
        await state.run(QUERY, wanted)
