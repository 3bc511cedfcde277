"""The memory store with a clock in hand; the contract suite has the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.broker import Entry, Write
from mesh.errors import ConflictError
from mesh.key_value import MemoryKeyValue


class Clock:
    """Time that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryKeyValue:
    return MemoryKeyValue(clock)


async def keys(store: MemoryKeyValue) -> list[str]:
    return [key async for key in store.keys("")]


async def test_key_expires_at_its_time(store: MemoryKeyValue, clock: Clock) -> None:
    await store.apply([Write("k", b"v", ttl=10)])
    clock.now += 9.999
    assert await store.get("k") == Entry(b"v", 1, 1010.0)
    clock.now = 1010.0
    assert await store.get("k") is None
    assert await keys(store) == []


async def test_later_write_decides_the_expiry(store: MemoryKeyValue, clock: Clock) -> None:
    await store.apply([Write(key, b"1", ttl=1) for key in ("forever", "longer", "gone")])
    await store.apply([Write("forever", b"2"), Write("longer", b"2", ttl=5), Write("gone", None)])
    clock.now += 2
    assert await keys(store) == ["forever", "longer"]
    clock.now += 4
    assert await keys(store) == ["forever"]


async def test_expired_key_counts_as_absent(store: MemoryKeyValue, clock: Clock) -> None:
    await store.apply([Write("k", b"v", ttl=1)])
    clock.now += 2
    with pytest.raises(ConflictError):
        await store.apply([Write("k", b"w", expected=1)])
    await store.apply([Write("k", b"w", expected=0)])


async def test_same_expiry_of_several_keys(store: MemoryKeyValue, clock: Clock) -> None:
    await store.apply([Write(key, b"v", ttl=1) for key in "cab"])
    await store.apply([Write("a", b"w", ttl=1)])
    clock.now += 1
    assert await keys(store) == []


operations = st.builds(Write, st.sampled_from("abc"), st.none() | st.binary(max_size=2), st.none() | st.integers(0, 6))


@given(st.lists(st.lists(operations, max_size=3), max_size=12))
async def test_it_does_what_a_dict_does(transactions: list[list[Write]]) -> None:
    store, model, revision = MemoryKeyValue(), dict[str, tuple[bytes, int]](), 0
    for transaction in transactions:
        fits = all(each.expected in (None, model.get(each.key, (b"", 0))[1]) for each in transaction)
        try:
            await store.apply(transaction)
            assert fits
        except ConflictError:
            assert not fits
            continue
        for each in transaction:
            revision += 1
            if each.value is None:
                model.pop(each.key, None)
            else:
                model[each.key] = (each.value, revision)
        found = {key: await store.get(key) for key in "abc"}
        assert {key: (e.value, e.revision) for key, e in found.items() if e is not None} == model
        assert await keys(store) == sorted(model)


async def test_scan_leaves_out_what_is_over(clock: Clock) -> None:
    store = MemoryKeyValue(clock, dotted=True)
    await store.apply([Write("t.a", b"1", ttl=1), Write("t.b", b"2"), Write("u.c", b"3")])
    clock.now += 1
    assert await store.scan("t.", "", 10) == [("t.b", Entry(b"2", 2))]


paths = st.lists(st.sampled_from(["a", "b-", "b", "b=2E"]), min_size=1, max_size=3).map(".".join)


@given(st.sets(paths), paths.map(lambda path: f"{path}.") | st.just(""), paths | st.just(""), st.integers(0, 4))
async def test_scan_is_a_sorted_list_filtered(names: set[str], prefix: str, after: str, limit: int) -> None:
    store = MemoryKeyValue(dotted=True)
    await store.apply([Write(name, b"") for name in names])
    found = [key for key, _ in await store.scan(prefix, after, limit)]
    assert found == sorted(name for name in names if name.startswith(prefix) and name > after)[:limit]
