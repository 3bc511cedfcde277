"""One suite for all configuration stores, in the process that asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from mesh.blocks.configuration import GET, WATCH, ConfigurationItem, Get, Watch
from mesh.blocks.configuration_store import digest
from mesh.errors import MeshError
from mesh.node.runtime import Runtime
from tests.support.eventually import eventually
from tests.support.nodes import ask, node, unique
from tests.support.stores import CONFIGURATION, ConfigurationKind, Served

TABLE = CONFIGURATION
SOON = 8.0  # Longer than a store may take to notice, on a busy machine, and less than a watch may take.
pytestmark = pytest.mark.asyncio(loop_scope="module")
Found = Mapping[str, ConfigurationItem | None]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(served: Served, kind: ConfigurationKind) -> AsyncIterator[Runtime]:
    """A node that has the store."""
    async with node(served.backbone, unique("configuration"), served.component("store", kind.type)) as runtime:
        yield runtime


class Store:
    """A store, and keys that are this test's own."""

    def __init__(self, runtime: Runtime, served: Served, kind: ConfigurationKind) -> None:
        self.runtime = runtime
        self.served = served
        self.kind = kind
        self.mark = unique("k")

    def key(self, name: str) -> str:
        return f"{self.mark}-{name}"

    async def put(self, name: str, value: str | None) -> None:
        await self.kind.put(self.runtime, self.served, self.key(name), value)

    def mine(self, found: Found) -> dict[str, ConfigurationItem | None]:
        return {key.removeprefix(f"{self.mark}-"): item for key, item in found.items() if key.startswith(self.mark)}

    async def get(self, *names: str) -> dict[str, ConfigurationItem]:
        found = await ask(self.runtime, GET, "store", Get(tuple(self.key(name) for name in names)))
        return self.mine(found)  # type: ignore[return-value]  # nothing is gone in what is read

    async def values(self, *names: str) -> dict[str, str]:
        return {name: item.value for name, item in (await self.get(*names)).items()}

    async def watch(self, *names: str, known: Mapping[str, ConfigurationItem], seconds: float) -> Found:
        digests = {self.key(name): digest(item) for name, item in known.items()}
        asked = Watch(tuple(self.key(name) for name in names), {}, digests, seconds)
        return self.mine(await ask(self.runtime, WATCH, "store", asked))

    async def told(self, *names: str, known: Mapping[str, ConfigurationItem]) -> Found:
        """Watch until something differs."""
        began = time.monotonic()
        found = await self.watch(*names, known=known, seconds=SOON)
        assert time.monotonic() - began < SOON, "nothing was told before its time"
        return found


@pytest.fixture
def store(runtime: Runtime, served: Served, kind: ConfigurationKind) -> Store:
    return Store(runtime, served, kind)


async def test_it_says_that_it_can_be_used(runtime: Runtime) -> None:
    assert [each.health for each in await runtime.health() if each.name == "store"] == ["ok"]


async def test_values(store: Store) -> None:
    """Those that are there; what was deleted is not."""
    assert await store.get("a", "b") == {}
    await store.put("a", "1")
    await store.put("b", "zwölf 12")
    assert await store.values("a", "b", "none") == {"a": "1", "b": "zwölf 12"}
    assert await store.values("b") == {"b": "zwölf 12"}
    await store.put("a", None)
    assert await store.values("a", "b") == {"b": "zwölf 12"}


async def test_all_values(store: Store) -> None:
    """Of no keys in particular."""
    if not store.kind.whole:
        pytest.skip("does not give all")
    await store.put("a", "1")
    await store.put("b", "2")
    found = store.mine(await ask(store.runtime, GET, "store", Get()))
    assert {name: item.value for name, item in found.items() if item is not None} == {"a": "1", "b": "2"}


async def test_versions(store: Store) -> None:
    """Another one with each value; that of another key stays."""
    if not store.kind.versions:
        pytest.skip("has no versions")
    await store.put("a", "1")
    await store.put("b", "1")
    first = await store.get("a", "b")
    await store.put("a", "2")
    second = await store.get("a", "b")
    assert first["a"].version
    assert first["a"].version != second["a"].version
    assert first["b"] == second["b"]


async def test_keys_and_values(store: Store) -> None:
    """Of any text."""
    for name in ("ünï/code key", "a.b=c", "x" * 200, "*", "[a]?") if store.kind.any_key else ("a.b-c_D9", "x" * 200):
        await store.put(name, f"{name} {name}")
        assert await store.values(name) == {name: f"{name} {name}"}
    assert await store.values("[a]", "a") == {}
    await store.put("large", "x" * 10_000)
    assert await store.values("large") == {"large": "x" * 10_000}


async def test_a_watch_that_knows_something_else(store: Store) -> None:
    """Is answered at once: what is new, what is another, what is gone."""
    await store.put("same", "1")
    await store.put("other", "1")
    await store.put("gone", "1")
    known = await store.get("same", "other", "gone")
    await store.put("other", "2")
    await store.put("gone", None)
    await store.put("new", "1")
    told = await store.told("same", "other", "gone", "new", "never", known=known)
    assert {name: item and item.value for name, item in told.items()} == {"other": "2", "gone": None, "new": "1"}


async def test_a_watch_that_knows_all(store: Store) -> None:
    """Is answered after its time, with nothing."""
    await store.put("a", "1")
    began = time.monotonic()
    assert await store.watch("a", "b", known=await store.get("a"), seconds=1.0) == {}
    assert time.monotonic() - began >= 0.9


async def test_changes_while_it_is_watched(store: Store) -> None:
    """A new key, a new value, a deletion: each ends a watch, and those of several who watch at once."""
    await store.put("a", "0")
    known = await store.get("a", "b")
    for name, value in (("a", "1"), ("b", "1"), ("a", "2"), ("b", None), ("b", "2")):
        async with asyncio.TaskGroup() as tasks:
            watching = [tasks.create_task(store.told("a", "b", known=known)) for _ in range(3)]
            assert not (await asyncio.wait(watching, timeout=0.2))[0]
            await store.put(name, value)
        for each in watching:
            assert {key: item and item.value for key, item in each.result().items()} == {name: value}
        known = await store.get("a", "b")


async def test_one_watches_while_others_come_and_go(store: Store) -> None:
    """Whoever waits is told, whoever has left meanwhile."""
    await store.put("a", "0")
    known = await store.get("a")
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(store.told("a", known=known))
        for _ in range(3):
            await store.watch("a", known=known, seconds=0.0)
            await store.watch("b", known={}, seconds=0.1)
        await store.put("a", "1")
    assert list(watching.result()) == ["a"]


async def test_all_keys_are_watched(store: Store) -> None:
    """Those that come as well."""
    if not store.kind.whole:
        pytest.skip("does not give all")
    known = await ask(store.runtime, GET, "store", Get())
    digests = {key: digest(item) for key, item in known.items()}
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(ask(store.runtime, WATCH, "store", Watch((), {}, digests, SOON)))
        assert not (await asyncio.wait([watching], timeout=0.2))[0]
        await store.put("a", "1")
    assert list(store.mine(watching.result())) == ["a"]


async def test_a_server_that_is_killed(store: Store) -> None:
    """Who watches on is told of what was written after it is back."""
    if not store.kind.restarts:
        pytest.skip("has no server, or one that keeps nothing")
    await store.put("a", "0")
    known = await store.get("a")
    async with asyncio.TaskGroup() as tasks:
        told: list[Found] = []

        async def follow() -> None:
            while not told:
                try:
                    found = await store.watch("a", known=known, seconds=2.0)
                except MeshError:
                    await asyncio.sleep(0.05)
                else:
                    told.extend([found] if found else [])

        following = tasks.create_task(follow())
        assert not (await asyncio.wait([following], timeout=0.2))[0]
        assert store.served.server is not None
        await store.served.server.restart(kill=True)

        async def written() -> None:
            try:
                await store.put("a", "1")
            except Exception as error:  # Of whatever client the store's own users have.
                raise AssertionError(str(error)) from error

        await eventually(written)
        await asyncio.wait([following], timeout=30)
        assert [each["a"] and each["a"].value for each in told] == ["1"]
        following.cancel()
