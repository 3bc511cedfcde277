"""Key/value of dotted paths: keys below one in order with their values, and many keys at once."""

from __future__ import annotations

import asyncio
import itertools
import os
import time

import pytest

from mesh.address import encode_token
from mesh.broker import Broker, KeyValue, KeyValueProvider, Write
from mesh.errors import ConflictError, FeatureNotSupportedError, InvalidEtagError, StateError
from mesh.store import Item, KeyValueStateStore, Stored
from tests.support.guarded import writes_each_that_its_check_allows

pytestmark = pytest.mark.requires("key_value")

_numbers = itertools.count()


def _name() -> str:
    return f"paths {os.getpid()}.{next(_numbers)}/é"


@pytest.fixture
async def paths(broker: Broker) -> KeyValue:
    """A store whose keys are dotted paths."""
    assert isinstance(broker, KeyValueProvider)
    return await broker.key_value(_name(), dotted=True)


async def scanned(store: KeyValue, prefix: str = "", after: str = "", limit: int = 100) -> list[str]:
    return [key for key, _ in await store.scan(prefix, after, limit)]


async def test_scan_gives_keys_in_order_with_their_values(paths: KeyValue) -> None:
    names = ["t.a-b.k", "t.a.k", "t.a.k.n", "t.a.l", "t.a=2E.k", "t.aa.k", "t.B.k", "u.a.k", "t"]
    await paths.apply([Write(name, name.encode()) for name in names])
    assert await paths.scan("", "", 100) == [(name, await paths.get(name, strong=True)) for name in sorted(names)]
    assert await scanned(paths, "t.a.") == ["t.a.k", "t.a.k.n", "t.a.l"]
    assert await scanned(paths, "t.a.k.") == ["t.a.k.n"]
    assert await scanned(paths, "t.") == sorted(name for name in names if name.startswith("t."))
    assert await scanned(paths, "none.") == []
    assert await scanned(paths, "t.a.", "t.a.k") == ["t.a.k.n", "t.a.l"]
    assert await scanned(paths, "t.a.", "t.a.k", 1) == ["t.a.k.n"]
    assert await scanned(paths, "t.a.", "t.a.k.nn", 1) == ["t.a.l"]
    assert await scanned(paths, "t.a.", "a") == ["t.a.k", "t.a.k.n", "t.a.l"]
    assert await scanned(paths, "t.a.", "t.a.l") == await scanned(paths, "t.a.", "u") == []
    assert await scanned(paths, "t.a.", "", 0) == []
    assert sorted([key async for key in paths.keys("")]) == sorted(names)
    assert sorted([key async for key in paths.keys("t.a.k")]) == ["t.a.k", "t.a.k.n"]


async def test_scan_gives_what_is_there_now(paths: KeyValue) -> None:
    await paths.apply([Write(f"t.{number}", b"1") for number in range(6)])
    await paths.apply([Write("t.1", None), Write("t.2", b"2"), Write("t.3", b"3", ttl=100)])
    await paths.apply([Write("t.4", b"4", ttl=0.05), Write("t.0", None)])
    await paths.apply([Write("t.0", b"again", expected=0), Write("t.5", None)])
    await asyncio.sleep(0.1)
    found = dict(await paths.scan("t.", "", 100))
    assert {key: entry.value for key, entry in found.items()} == {"t.0": b"again", "t.2": b"2", "t.3": b"3"}
    expires_at = found["t.3"].expires_at
    assert expires_at is not None
    assert time.time() < expires_at < time.time() + 100
    for key, entry in found.items():
        assert entry == await paths.get(key, strong=True)
        await paths.apply([Write(key, None, entry.revision)])
    assert await scanned(paths) == []


async def test_scan_goes_on_behind_what_is_gone(paths: KeyValue) -> None:
    """A page is full where there is more, whatever was deleted or is over between."""
    names = [f"t.{number:03}" for number in range(300)]
    await paths.apply([Write(name, b"v") for name in names])
    await paths.apply([Write(name, None) for name in names if not name.endswith("0")])
    found: list[str] = []
    while page := await scanned(paths, "t.", found[-1] if found else "", 7):
        found += page
        assert len(page) == 7 or len(found) == 30
    assert found == names[::10]


async def test_scan_of_many_keys_in_pages(paths: KeyValue) -> None:
    names = sorted(f"t.{number % 7}.{number}" for number in range(5000))
    for start in range(0, len(names), 1000):
        await paths.apply([Write(name, b"%d" % start) for name in names[start : start + 1000]])
    found: list[str] = []
    while page := await scanned(paths, "t.", found[-1] if found else "", 1300):
        found += page
    assert found == names
    assert await scanned(paths, "t.3.", "", 10_000) == [name for name in names if name.startswith("t.3.")]


async def test_scan_has_all_that_was_acknowledged_before(paths: KeyValue, other: Broker) -> None:
    """Of writers that go on meanwhile, and of another node."""
    assert isinstance(other, KeyValueProvider)
    written = dict[str, int]()
    done = asyncio.Event()

    async def write(writer: int) -> None:
        number = 0
        while not done.is_set():
            key, number = f"w.{writer}.{number % 40}", number + 1
            await paths.apply([Write(key, b"%d" % number)])
            written[key] = number

    async with asyncio.TaskGroup() as tasks:
        for writer in range(4):
            tasks.create_task(write(writer))
        for _ in range(30):
            before = dict(written)
            found = {key: int(entry.value) for key, entry in await paths.scan("w.", "", 1000)}
            assert {key: number for key, number in before.items() if found.get(key, -1) < number} == {}
        done.set()


@pytest.mark.parametrize("dotted", [False, True])
async def test_a_strong_read_of_many_has_what_was_acknowledged(broker: Broker, other: Broker, dotted: bool) -> None:
    assert isinstance(broker, KeyValueProvider)
    assert isinstance(other, KeyValueProvider)
    name = _name()
    writing = await broker.key_value(name, dotted=dotted)
    reading = KeyValueStateStore(await other.key_value(name, dotted=dotted))
    names = [f"t.{number}" for number in range(1500)]
    for turn in range(3):
        for start in (0, 750):
            await writing.apply([Write(each, b"%d" % turn) for each in names[start : start + 750]])
        await writing.apply([Write(names[turn], None), Write(names[10], b"x", ttl=100)])
        found = await reading.get_many([*names, "none", names[20]], strong=True)
        assert [each.value for each in found if isinstance(each, Stored)] == [
            b"x" if each == names[10] else b"%d" % turn for each in (*names, names[20]) if each != names[turn]
        ]
        assert found[turn] is found[-2] is None
        assert found[10] == await reading.get(names[10], strong=True)
    refused = await reading.get_many(["", "x" * 4000], strong=True)
    assert all(isinstance(each, StateError) for each in refused)


async def test_many_are_written_each_for_itself(paths: KeyValue) -> None:
    store = KeyValueStateStore(paths)
    names = [f"t.k{number}" for number in range(4)]
    assert list(await store.save_each([Item(name, b"1") for name in names])) == [None] * 4
    etags = [each.etag for each in await store.get_many(names, strong=True) if isinstance(each, Stored)]
    await paths.apply([Write("t.k1", b"other")])
    items = [Item(name, None, etag) for name, etag in zip(names, etags, strict=True)]
    refused = await store.save_each([*items[:3], Item("t.new", b"1"), Item("t.k", b"x", "none")])
    assert [type(each) for each in refused] == [
        *(type(None), ConflictError, type(None), type(None)),
        InvalidEtagError,
    ]
    assert [(key, entry.value) for key, entry in await paths.scan("", "", 10)] == [
        *(("t.k1", b"other"), ("t.k3", b"1"), ("t.new", b"1")),
    ]


@pytest.mark.parametrize("text", ["", "a.b", "größe 日本", "*", ">", "=", "x" * 256, "é" * 128], ids=range(8))
async def test_scan_of_encoded_tokens(paths: KeyValue, text: str) -> None:
    token = encode_token(text)
    await paths.apply([Write(f"t.{token}.k", b"v", expected=0), Write(f"t.{token}x.k", b"x")])
    assert [(key, entry.value) for key, entry in await paths.scan(f"t.{token}.", "", 10)] == [(f"t.{token}.k", b"v")]


async def test_what_cannot_be_scanned(broker: Broker, paths: KeyValue) -> None:
    assert isinstance(broker, KeyValueProvider)
    store = await broker.key_value(_name())
    with pytest.raises(FeatureNotSupportedError):
        await store.scan("", "", 10)
    for prefix in ("a", ".", "a..", "a.*.", "a.b c."):
        with pytest.raises(StateError):
            await paths.scan(prefix, "", 10)
    for key in ("", ".", "a.", ".a", "a..b", "a b", "*", "a.>", "é", "a\n", "x" * 3073):
        with pytest.raises(StateError):
            await paths.apply([Write("fine", b"v"), Write(key, b"v")])
        with pytest.raises(StateError):
            await paths.get(key)
    assert await scanned(paths) == []


async def test_scan_of_large_values(broker: Broker, paths: KeyValue) -> None:
    value = os.urandom(broker.features.max_message_bytes - 8192)
    for number in range(12):
        await paths.apply([Write(f"t.{number:02}", value)])
    found = await paths.scan("t.", "", 100)
    assert [(key, entry.value == value) for key, entry in found] == [(f"t.{number:02}", True) for number in range(12)]


async def test_many_writes_under_what_is_only_checked(paths: KeyValue) -> None:
    """Each is done if its own check holds."""
    await writes_each_that_its_check_allows(KeyValueStateStore(paths), "")
