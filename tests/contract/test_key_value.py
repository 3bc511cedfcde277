"""Key/value: compare-and-set, expiry, transactions; all or nothing."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence

import pytest

from mesh.broker import Broker, KeyValue, KeyValueProvider, Write
from mesh.errors import ConflictError, InvalidEtagError, StateError
from mesh.store import Item, KeyValueStateStore
from tests.support.contract import came_to, no_tasks_besides
from tests.support.eventually import eventually

pytestmark = pytest.mark.requires("key_value")

_numbers = itertools.count()


def _name() -> str:
    return f"store {os.getpid()}.{next(_numbers)}/é"


@pytest.fixture
async def store(broker: Broker) -> KeyValue:
    assert isinstance(broker, KeyValueProvider)
    return await broker.key_value(_name())


async def put(store: KeyValue, key: str, value: bytes, ttl: float | None = None) -> int:
    await store.apply([Write(key, value, ttl=ttl)])
    entry = await store.get(key)
    assert entry is not None
    return entry.revision


async def value(store: KeyValue, key: str) -> bytes | None:
    weak, strong = await store.get(key), await store.get(key, strong=True)
    assert weak == strong
    return weak.value if weak is not None else None


async def keys(store: KeyValue, prefix: str = "") -> list[str]:
    return sorted([key async for key in store.keys(prefix)])


async def test_put_get_delete(store: KeyValue) -> None:
    assert await store.get("a") is None
    assert await store.get("a", strong=True) is None
    first = await put(store, "a", b"1")
    second = await put(store, "a", b"2")
    assert second > first
    assert await value(store, "a") == b"2"
    await store.apply([Write("a", None)])
    assert await value(store, "a") is None
    await store.apply([Write("a", None), Write("never there", None)])
    await put(store, "a", b"3")
    assert await value(store, "a") == b"3"


async def test_revision_rises_over_all_keys_and_expiry_is_none(store: KeyValue) -> None:
    assert await put(store, "a", b"1") < await put(store, "b", b"1") < await put(store, "a", b"1")
    entry = await store.get("a")
    assert entry is not None
    assert entry.expires_at is None


async def test_stores_are_apart_and_shared_by_name(broker: Broker, other: Broker) -> None:
    assert isinstance(broker, KeyValueProvider)
    assert isinstance(other, KeyValueProvider)
    name = _name()
    one, same, another = await broker.key_value(name), await other.key_value(name), await broker.key_value(_name())
    await put(one, "k", b"v")
    assert await value(same, "k") == b"v"
    assert await value(another, "k") is None


async def test_compare_and_set(store: KeyValue) -> None:
    revision = await put(store, "a", b"1")
    await store.apply([Write("a", b"2", expected=revision)])
    for stale in (revision, 0, revision + 1_000_000):
        with pytest.raises(ConflictError):
            await store.apply([Write("a", b"3", expected=stale)])
    assert await value(store, "a") == b"2"


async def test_expecting_a_key_that_does_not_exist(store: KeyValue) -> None:
    with pytest.raises(ConflictError):
        await store.apply([Write("a", b"1", expected=7)])
    assert await value(store, "a") is None


async def test_must_not_exist(store: KeyValue) -> None:
    await store.apply([Write("a", b"1", expected=0)])
    with pytest.raises(ConflictError):
        await store.apply([Write("a", b"2", expected=0)])
    await store.apply([Write("a", None)])
    await store.apply([Write("a", b"3", expected=0)])
    assert await value(store, "a") == b"3"
    with pytest.raises(ConflictError):
        await store.apply([Write("a", b"4", expected=0)])


async def test_delete_with_revision(store: KeyValue) -> None:
    revision = await put(store, "a", b"1")
    with pytest.raises(ConflictError):
        await store.apply([Write("a", None, expected=revision + 1)])
    await store.apply([Write("a", None, expected=revision)])
    with pytest.raises(ConflictError):
        await store.apply([Write("a", None, expected=revision)])
    assert await value(store, "a") is None


async def test_one_of_many_wins(store: KeyValue) -> None:
    async def claim(number: int) -> int | None:
        try:
            await store.apply([Write("lock", b"%d" % number, expected=0)])
        except ConflictError:
            return None
        return number

    async with asyncio.TaskGroup() as tasks:
        claims = [tasks.create_task(claim(number)) for number in range(30)]
    [winner] = [task.result() for task in claims if task.result() is not None]
    assert await value(store, "lock") == b"%d" % winner


async def test_writes_at_once_are_each_for_itself(store: KeyValue) -> None:
    """However they go to the server, one that conflicts takes no other along."""
    await put(store, "there", b"0")
    names = [f"k{number}" if number % 3 else "there" for number in range(60)]
    writes = [Write(name, b"%d" % number, expected=0) for number, name in enumerate(names)]
    done = await came_to(store, writes)
    assert [isinstance(each, ConflictError) for each in done] == [name == "there" for name in names]
    assert await value(store, "there") == b"0"
    assert [await value(store, each.key) for each in writes if each.key != "there"] == [
        each.value for each in writes if each.key != "there"
    ]


async def test_each_of_many_is_told_what_it_came_to(store: KeyValue) -> None:
    revisions = [await put(store, f"k{number}", b"0") for number in range(3)]
    state = KeyValueStateStore(store)
    items = [Item(f"k{number}", None, str(revision)) for number, revision in enumerate(revisions)]
    items += [Item(f"n{number}", b"%d" % number) for number in range(120)]
    items += [Item("k1x", None, "7"), Item("bad", b"", "no revision")]
    items[1] = Item("k1", b"1", str(revisions[1] + 99))
    done = await state.save_each(items)
    failed = {item.key: type(each) for item, each in zip(items, done, strict=True) if each is not None}
    assert failed == {"k1": ConflictError, "k1x": ConflictError, "bad": InvalidEtagError}
    found = [await value(store, key) for key in ("k0", "k1", "k2", "n0", "n119")]
    assert found == [None, b"0", None, b"0", b"119"]


async def test_counter_loses_no_increment(store: KeyValue) -> None:
    await put(store, "n", b"0")

    async def increment() -> None:
        for _ in range(10):
            while True:
                entry = await store.get("n", strong=True)
                assert entry is not None
                try:
                    await store.apply([Write("n", b"%d" % (int(entry.value) + 1), expected=entry.revision)])
                    break
                except ConflictError:
                    continue

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(increment())
    assert await value(store, "n") == b"80"


async def test_transaction_is_all(store: KeyValue) -> None:
    revision = await put(store, "a", b"1")
    await put(store, "b", b"1")
    await store.apply([Write("a", b"2", expected=revision), Write("b", None), Write("c", b"new", expected=0)])
    assert [await value(store, key) for key in "abc"] == [b"2", None, b"new"]
    await store.apply([])


@pytest.mark.parametrize("place_of_conflict", [0, 1, 2])
async def test_transaction_is_nothing(store: KeyValue, place_of_conflict: int) -> None:
    await put(store, "a", b"1")
    operations = [Write("x", b"2"), Write("y", b"2")]
    operations.insert(place_of_conflict, Write("a", b"2", expected=0))
    with pytest.raises(ConflictError):
        await store.apply(operations)
    assert [await value(store, key) for key in "axy"] == [b"1", None, None]


async def test_transaction_over_deleted_keys(store: KeyValue) -> None:
    await put(store, "a", b"1")
    await put(store, "b", b"1")
    await store.apply([Write("a", None), Write("b", None)])
    await store.apply([Write("a", b"2", expected=0), Write("b", b"2", expected=0), Write("c", b"2")])
    assert [await value(store, key) for key in "abc"] == [b"2", b"2", b"2"]


async def test_last_of_several_writes_to_one_key_in_a_transaction_counts(store: KeyValue) -> None:
    await store.apply([Write("a", b"1"), Write("b", b"1"), Write("a", b"2"), Write("b", None)])
    assert await value(store, "a") == b"2"
    assert await value(store, "b") is None


@pytest.mark.parametrize("there", [False, True])
async def test_conditions_of_several_writes_to_one_key_are_of_what_was_there_before(
    store: KeyValue, there: bool
) -> None:
    revision = await put(store, "a", b"1") if there else 0
    await store.apply([Write("a", b"2"), Write("b", b"1"), Write("a", None), Write("a", b"3", expected=revision)])
    assert [await value(store, key) for key in "ab"] == [b"3", b"1"]
    entry = await store.get("a", strong=True)
    assert entry is not None
    same = entry.revision
    await store.apply([Write("a", b"4", expected=same), Write("a", None, same, check=True), Write("a", b"5", same)])
    assert await value(store, "a") == b"5"
    for conditions in ((None, 0), (None, same), (0, same), (same, 0)):
        with pytest.raises(ConflictError):
            await store.apply([Write("b", b"2"), *(Write("a", b"6", expected) for expected in conditions)])
    assert [await value(store, key) for key in "ab"] == [b"5", b"1"]


async def test_transactions_at_once_leave_one_of_them(store: KeyValue) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            written = b"%d" % number
            tasks.create_task(store.apply([Write("a", written), Write("b", written), Write("c", written)]))
    found = {await value(store, key) for key in "abc"}
    assert len(found) == 1


async def test_many_operations(store: KeyValue) -> None:
    operations = [Write(f"key {number}", b"%d" % number) for number in range(500)]
    await store.apply(operations)
    assert len(await keys(store)) == 500
    assert await value(store, "key 499") == b"499"
    await store.apply([Write(operation.key, None) for operation in operations])
    assert await keys(store) == []


async def test_expiry(store: KeyValue) -> None:
    before = time.time()
    await put(store, "short", b"v", ttl=0.7)
    await put(store, "long", b"v", ttl=100)
    entry, both = await store.get("short"), await keys(store)
    if time.time() < before + 0.69:  # Else the machine was too busy to see it.
        assert entry is not None
        assert entry.expires_at is not None
        assert before + 0.69 < entry.expires_at < time.time() + 0.71
        assert both == ["long", "short"]

    async def gone() -> None:
        assert await store.get("short") is None

    await eventually(gone)
    assert time.time() >= before + 0.69
    assert await value(store, "short") is None
    assert await keys(store) == ["long"]
    await store.apply([Write("short", b"again", expected=0)])
    assert await value(store, "short") == b"again"


async def test_short_expiry(store: KeyValue) -> None:
    await store.apply([Write("k", b"v", ttl=0.05)])
    await asyncio.sleep(0.1)
    assert await value(store, "k") is None
    await store.apply([Write("k", b"w", expected=0, ttl=0.05)])
    await asyncio.sleep(0.1)
    await store.apply([Write("k", b"x", expected=0), Write("l", b"x", expected=0)])
    assert await value(store, "k") == b"x"


async def test_a_lease_is_ended_by_the_store_alone(store: KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is ahead, where it is read or wanted, ends none; the store does, and not too early."""
    began, now = time.monotonic(), time.time
    await store.apply([Write("k", b"v", expected=0, ttl=1.0, lease=True)])
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + 3600)
        entry, taken = await store.get("k", strong=True), True
        try:
            await store.apply([Write("k", b"w", expected=0, ttl=1.0, lease=True)])
        except ConflictError:
            taken = False
    if time.monotonic() - began < 0.9:  # Else the machine was too busy to see it.
        assert entry is not None
        assert not taken

    async def free() -> None:
        try:
            await store.apply([Write("k", b"w", expected=0, ttl=100.0, lease=True)])
        except ConflictError as error:
            raise AssertionError from error

    await eventually(free)
    assert time.monotonic() - began > 0.9
    assert await value(store, "k") == b"w"


async def test_put_without_expiry_ends_an_earlier_one(store: KeyValue) -> None:
    await put(store, "k", b"v", ttl=1.0)
    await put(store, "k", b"w")
    await asyncio.sleep(1.3)
    assert await value(store, "k") == b"w"


@pytest.mark.parametrize(
    "key",
    [
        *["a b", "a.b", ".", "..", "a..b", "*", ">", "a/b\\c", "app||key", "größe 日本", "=", "\n\t\0", "$KV"],
        *["x" * 1024, "é" * 512],
    ],
    ids=range(15),
)
async def test_keys_are_any_text(store: KeyValue, key: str) -> None:
    await store.apply([Write(key, b"v", expected=0), Write("plain", b"other")])
    assert await value(store, key) == b"v"
    assert await keys(store) == sorted([key, "plain"])
    await store.apply([Write(key, None)])
    assert await value(store, key) is None


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513], ids=["empty", "long", "long-utf-8"])
async def test_impossible_keys_are_refused(store: KeyValue, key: str) -> None:
    with pytest.raises(StateError):
        await store.apply([Write("fine", b"v"), Write(key, b"v")])
    with pytest.raises(StateError):
        await store.get(key)
    assert await value(store, "fine") is None


async def test_keys_by_prefix(store: KeyValue) -> None:
    await store.apply([Write(key, b"") for key in ("app||a", "app||b", "apple", "other||a", "app.x")])
    await store.apply([Write("app||b", None)])
    assert await keys(store, "app||") == ["app||a"]
    assert await keys(store, "app") == ["app.x", "apple", "app||a"]
    assert await keys(store, "none") == []


@pytest.mark.parametrize("found", [b"", b"\0", bytes(range(256)) * 100], ids=["empty", "zero", "binary"])
async def test_values_are_any_bytes(store: KeyValue, found: bytes) -> None:
    await put(store, "k", found)
    assert await value(store, "k") == found


async def test_large_values(broker: Broker, store: KeyValue) -> None:
    fitting = os.urandom(broker.features.max_message_bytes - 1024)
    await put(store, "k", fitting)
    assert await value(store, "k") == fitting
    await store.apply([Write(f"k{number}", fitting) for number in range(5)])
    assert await value(store, "k4") == fitting


async def test_too_large_value_is_refused_or_stored_but_breaks_nothing(broker: Broker, store: KeyValue) -> None:
    huge = bytes(broker.features.max_message_bytes * 2)
    async with asyncio.timeout(30):
        try:
            await store.apply([Write("small", b"v"), Write("k", huge)])
        except StateError:
            assert await value(store, "k") is None
            assert await value(store, "small") is None
        else:
            assert await value(store, "k") == huge
    await broker.check()


async def test_cancelled_calls_leave_nothing_behind(store: KeyValue) -> None:
    before = asyncio.all_tasks()
    for turns in range(10):
        for call in (store.apply([Write("a", b"1"), Write("b", b"1")]), store.get("a")):
            calling = asyncio.ensure_future(call)
            for _ in range(turns):
                await asyncio.sleep(0)
            calling.cancel()
            await asyncio.wait([calling])
    await no_tasks_besides(before)
    await store.apply([Write("a", b"2"), Write("b", b"2")])
    assert [await value(store, "a"), await value(store, "b")] == [b"2", b"2"]


async def _outcomes(calls: Sequence[asyncio.Future[None]]) -> list[type | None]:
    await asyncio.wait(calls)
    return [None if call.cancelled() or (error := call.exception()) is None else type(error) for call in calls]


async def test_writes_at_the_same_time_are_each_for_itself(store: KeyValue) -> None:
    """However a store joins them: none fails with another, nor is it lost when another one's writer is cancelled."""
    first = await put(store, "taken", b"1")
    writes = [
        Write("taken", b"2", 0),
        Write("taken", b"3", first),
        Write("gone", None, first + 99),
        Write("new", b"4", 0),
    ]
    wanted = [ConflictError, None, ConflictError, None]
    assert await _outcomes([asyncio.ensure_future(store.apply([each])) for each in writes]) == wanted
    assert [await value(store, "taken"), await value(store, "new")] == [b"3", b"4"]
    calls = [asyncio.ensure_future(store.apply([Write(f"k{number}", b"v")])) for number in range(150)]
    await asyncio.sleep(0)
    calls[0].cancel()
    assert await _outcomes(calls) == [None] * 150
    assert not any(call.cancelled() for call in calls[1:])
    assert {f"k{number}" for number in range(1, 150)} <= set(await keys(store))


async def test_several_that_are_saved_each_for_itself(store: KeyValue) -> None:
    """One that fails says nothing of the others."""
    first, many = await put(store, "taken", b"1"), KeyValueStateStore(store)
    items = [Item("taken", b"2", str(first + 99)), Item("a", b"3"), Item("b", b"4", "no etag"), Item("c", b"5")]
    found = await many.save_each(items)
    assert [None if each is None else type(each) for each in found] == [ConflictError, None, InvalidEtagError, None]
    assert [await value(store, key) for key in ("taken", "a", "b", "c")] == [b"1", b"3", None, b"5"]


async def test_what_is_only_checked_stays_as_it_is(store: KeyValue) -> None:
    """A check guards the other writes of a transaction, whether they have conditions of their own or not."""
    guard, first = await put(store, "guard", b"g"), await put(store, "a", b"1")
    check = Write("guard", None, guard, check=True)
    await store.apply([check, Write("a", b"2", first), Write("b", b"2", 0)])
    await store.apply([Write("none", None, 0, check=True), check, Write("c", b"3"), Write("d", b"3")])
    await store.apply([check])
    entry = await store.get("guard", strong=True)
    assert entry is not None
    assert entry.revision == guard
    assert await keys(store) == ["a", "b", "c", "d", "guard"]
    for wrong in (Write("guard", None, guard + 99, check=True), Write("guard", None, 0, check=True)):
        for others in ([], [Write("a", b"4")], [Write("e", b"4", 0)]):
            with pytest.raises(ConflictError):
                await store.apply([wrong, *others])
    await store.apply([Write("guard", None)])
    await store.apply([Write("guard", None, 0, check=True), Write("f", b"5")])
    assert (await value(store, "a"), await value(store, "f")) == (b"2", b"5")
