"""State without HTTP: prefixes, etags as revisions, and what a save does with the items before a failure."""

from __future__ import annotations

import pytest

from mesh.blocks.state import (
    Concurrency,
    IllegalKeyError,
    Item,
    KeyValueStateStore,
    State,
    StateStoreComponent,
    key_prefix,
)
from mesh.errors import ConfigError, ConflictError, InvalidEtagError
from mesh.guard import Guard
from mesh.key_value import MemoryKeyValue
from mesh.policies import Policy, Retry, Timeout
from mesh.resources import Component, MetadataEntry


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> StateStoreComponent:
    return StateStoreComponent("s", "state.test", "v1", KeyValueStateStore(MemoryKeyValue(clock)), "app||")


@pytest.fixture
def state(store: StateStoreComponent) -> State:
    return State({"s": store})


async def value(state: State, key: str) -> bytes | None:
    stored = await state.get(state.components["s"], key)
    return None if stored is None else stored.value


async def test_save_and_get(state: State, store: StateStoreComponent, clock: Clock) -> None:
    """Every write changes the etag; an expired value is gone."""
    await state.save(store, [Item("k", b"1")])
    first = await state.get(store, "k")
    await state.save(store, [Item("k", b"2", first.etag if first else None, ttl=5.0)])
    second = await state.get(store, "k", strong=True)
    assert first is not None
    assert second is not None
    assert (second.value, second.expires_at) == (b"2", 1005.0)
    assert second.etag != first.etag
    clock.now = 1005.0
    assert await state.get(store, "k") is None


async def test_a_save_keeps_what_was_before_the_failure(state: State, store: StateStoreComponent) -> None:
    """Items are written one by one; a transaction is all or nothing."""
    items = [Item("a", b"1"), Item("b", b"1", "77"), Item("c", b"1")]
    with pytest.raises(ConflictError):
        await state.save(store, items)
    assert [await value(state, key) for key in "abc"] == [b"1", None, None]
    with pytest.raises(ConflictError):
        await state.transact(store, [Item("a", b"2"), *items[1:]])
    assert [await value(state, key) for key in "abc"] == [b"1", None, None]
    await state.transact(store, [])
    await state.transact(store, [Item("a", None), Item("b", b"2")])
    assert [await value(state, key) for key in "ab"] == [None, b"2"]


@pytest.mark.parametrize("etag", ["x", "-1", "1.0", "٣", "1" * 20, " 1"])
async def test_malformed_etags(state: State, store: StateStoreComponent, etag: str) -> None:
    """Only a whole number can be one of this store's."""
    with pytest.raises(InvalidEtagError):
        await state.save(store, [Item("k", b"1", etag)])


async def test_etag_0_matches_nothing(state: State, store: StateStoreComponent) -> None:
    """In the store's terms it would mean that the key must not exist."""
    with pytest.raises(ConflictError):
        await state.save(store, [Item("k", b"1", "0")])


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
async def test_concurrency(state: State, store: StateStoreComponent, item: Item, exists: bool, allowed: bool) -> None:
    """First write loses against what is there; a delete without an etag always may."""
    if exists:
        await state.save(store, [Item("k", b"old")])
    if allowed:
        await state.save(store, [item])
        assert await value(state, "k") == item.value
    else:
        with pytest.raises(ConflictError):
            await state.save(store, [item])
        assert await value(state, "k") == (b"old" if exists else None)


async def test_illegal_keys(state: State, store: StateStoreComponent) -> None:
    """The separator would let an application reach another's keys; nothing is written."""
    for call in (
        state.get(store, "a||b"),
        state.save(store, [Item("ok", b"1"), Item("a||b", b"1")]),
        state.transact(store, [Item("a||b", None)]),
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


async def test_outbound_policy(clock: Clock) -> None:
    """Reads and writes go through the component's guard."""

    class Hangs(KeyValueStateStore):
        calls = 0

        async def get(self, key: str, *, strong: bool) -> None:
            import asyncio

            self.calls += 1
            await asyncio.Event().wait()

    hangs = Hangs(MemoryKeyValue(clock))
    guard = Guard.of(Policy(timeout=Timeout(0.01), retry=Retry(interval=0.0, max_retries=1)))
    component = StateStoreComponent("s", "state.test", "v1", hangs, "", guard)
    state = State({"s": component})
    await state.save(component, [Item("k", b"1")])
    with pytest.raises(Exception, match=r"no answer within 0\.01 s"):
        await state.get(component, "k")
    assert hangs.calls == 2
