"""The versions of an actor's state are one chain, whoever believes that it owns it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokers.memory import MemoryBroker
from mesh.actors.errors import ActorMovedError
from mesh.actors.state import ActorState, StateCache, fence_key, partition_key
from mesh.errors import ConflictError, MeshError, OutcomeUnknownError, StateError
from mesh.store import Item, KeyValueStateStore, StateStore, Stored
from tests.support.virtual_time import run

PARTITION = partition_key("app", "thing", "1")


class _Slow(StateStore):
    """A store that takes its time, loses answers, and does some writes late."""

    def __init__(self, inner: StateStore, dice: random.Random, loses: float = 0.0) -> None:
        self.capabilities, self.guards = inner.capabilities, inner.guards
        self._inner, self._dice, self._loses = inner, dice, loses
        self._late: set[asyncio.Task[None]] = set()
        self.accesses = 0

    async def get(self, key: str, *, strong: bool, metadata: object = None) -> Stored | None:
        self.accesses += 1
        assert strong, "a follower may not have what was written last"
        await asyncio.sleep(self._dice.choice((0, 0.1, 1)))
        return await self._inner.get(key, strong=True)

    async def write(self, items: Sequence[Item]) -> None:
        self.accesses += 1
        await asyncio.sleep(self._dice.choice((0, 0.1, 1)))
        if self._dice.random() < self._loses:
            late = asyncio.get_running_loop().create_task(self._write_late(items))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            raise OutcomeUnknownError("lost")
        await self._inner.write(items)

    async def _write_late(self, items: Sequence[Item]) -> None:
        await asyncio.sleep(self._dice.choice((0, 1, 5)))
        with suppress(MeshError):
            await self._inner.write(items)

    async def settled(self) -> None:
        if self._late:
            await asyncio.wait(self._late)


async def _store() -> StateStore:
    broker = MemoryBroker()
    return KeyValueStateStore(await broker.key_value("s"))


def _nothing() -> None:
    pass


def _state(store: StateStore, epoch: int, replaced: Callable[[], None] = _nothing) -> ActorState:
    return ActorState(store, PARTITION, epoch, StateCache(1_000_000), replaced)


async def test_what_is_stored() -> None:
    """Keys stand under app, type and id; beside them the fence, which holds the epoch."""
    store = await _store()
    await _state(store, 7).write([Item("k", b"1"), Item("gone", None)])
    assert (await store.get("app||thing||1||k", strong=True)).value == b"1"
    assert (await store.get("mesh||fence||app||thing||1", strong=True)).value == b"7"


async def test_an_owner_that_was_replaced() -> None:
    """It neither writes nor goes on, and is told so; the other one is not disturbed."""
    store, told = await _store(), []
    old, new = _state(store, 1, lambda: told.append("old")), _state(store, 2)
    await old.write([Item("k", b"old")])
    assert (await new.get("k")).value == b"old"
    with pytest.raises(ActorMovedError) as raised:
        await old.write([Item("k", b"stale")])
    assert raised.value.retryable
    assert told == ["old"]
    with pytest.raises(ActorMovedError):
        await old.get("k")
    await new.write([Item("k", b"new")])
    assert (await new.get("k")).value == b"new"
    assert told == ["old"]


async def test_an_owner_of_a_lower_epoch_touches_nothing() -> None:
    """The first thing that it does is to find the fence of a later one."""
    store = await _store()
    await _state(store, 2).write([Item("k", b"new")])
    with pytest.raises(ActorMovedError):
        await _state(store, 1).get("k")
    assert (await store.get(fence_key(PARTITION), strong=True)).value == b"2"


async def test_reads_come_from_memory() -> None:
    """What was read or written is not read again, also that there is nothing; what expires does so."""
    store = _Slow(await _store(), random.Random(3))
    now = [1000.0]
    state = ActorState(store, PARTITION, 1, StateCache(1_000_000), _nothing, lambda: now[0])
    assert await state.get("none") is None
    await state.write([Item("k", b"1", ttl=5)])
    before = store.accesses
    assert await state.get("none") is None
    found = await state.get("k")
    assert found is not None
    assert (found.value, found.expires_at) == (b"1", 1005.0)
    now[0] += 5
    assert await state.get("k") is None
    assert store.accesses == before


async def test_a_conflict_that_is_not_the_fence() -> None:
    """The store may refuse for reasons of its own; then the activation goes on, and the caller may try again."""
    store = await _store()

    class Conflicting(_Slow):
        refuse = False

        async def write(self, items: Sequence[Item]) -> None:
            if self.refuse:
                raise ConflictError("serialization failure")
            await super().write(items)

    conflicting, told = Conflicting(store, random.Random(5)), []
    state = _state(conflicting, 1, lambda: told.append(1))
    await state.write([Item("k", b"1")])
    conflicting.refuse = True
    with pytest.raises(StateError) as raised:
        await state.write([Item("k", b"2")])
    assert raised.value.retryable
    conflicting.refuse = False
    await state.write([Item("k", b"3")])
    assert not told


async def test_a_store_that_cannot_only_check() -> None:
    """The fence is written with what it guards; where its new etag cannot be read, what was written still is."""

    class Failing(KeyValueStateStore):
        guards = False
        fails = False

        async def get(self, key: str, *, strong: bool, metadata: object = None) -> Stored | None:
            if self.fails:
                raise StateError("it is away")
            return await super().get(key, strong=strong)

    store, told = Failing(await MemoryBroker().key_value("s")), []
    state = _state(store, 1, lambda: told.append(1))
    await state.write([Item("k", b"1")])
    await state.write([Item("k", b"2")])
    store.fails = True
    await state.write([Item("k", b"3")])
    with pytest.raises(StateError, match="away"):
        await state.get("k")
    store.fails = False
    assert (await state.get("k")).value == b"3"
    await state.write([Item("k", b"4")])
    assert not told
    await _state(store, 2).get("k")
    with pytest.raises(ActorMovedError):
        await state.write([Item("k", b"5")])
    assert (await store.get(f"{PARTITION}||k", strong=True)).value == b"4"


def test_the_cache_is_bounded() -> None:
    """The oldest gives way."""
    cache = StateCache(1000)
    for number in range(10):
        cache.put(str(number), Stored(b"x" * 100, ""))
    assert cache.get("9") is not None
    with pytest.raises(KeyError):
        cache.get("0")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), guarding=st.booleans())
def test_versions_are_one_chain(seed: int, guarding: bool) -> None:
    """Owners of several epochs count at once, on a store that is slow, loses answers and writes late.

    Each reads a number and writes the next one. Where all writes are one chain, no number is written twice.
    """
    dice = random.Random(seed)
    accepted: list[tuple[int, int]] = []

    class Noted(KeyValueStateStore):
        guards = guarding

        async def write(self, items: Sequence[Item]) -> None:
            assert guarding or not any(each.check for each in items)
            await super().write(items)
            fenced = items[0].key == fence_key(PARTITION) and items[0].etag is not None
            accepted.extend((int(each.value or 0), fenced) for each in items if each.key.endswith("||n"))

    async def owner(store: StateStore, epoch: int, cache: StateCache) -> None:
        await asyncio.sleep(dice.uniform(0, 3))
        state = ActorState(store, PARTITION, epoch, cache, _nothing)
        for _ in range(dice.randint(1, 6)):
            try:
                found = await state.get("n")
                await asyncio.sleep(dice.choice((0, 0, 2)))
                await state.write([Item("n", b"%d" % (0 if found is None else int(found.value) + 1))])
            except ActorMovedError:
                break
            except MeshError:
                continue
        state.close()

    async def main() -> None:
        store = _Slow(Noted(await MemoryBroker().key_value("s")), dice, 0.1)

        async def node(epochs: list[int]) -> None:
            cache = StateCache(1_000_000)
            for epoch in epochs:  # Of one node they follow each other, also under the same epoch.
                await owner(store, epoch, cache)

        async with asyncio.TaskGroup() as tasks:
            for epochs in ([1, 1, 3], [2, 4, 4]):
                tasks.create_task(node(epochs))
        await store.settled()

    run(main())
    numbers = [number for number, _ in accepted]
    assert all(fenced for _, fenced in accepted)
    assert numbers == list(range(len(numbers)))


class _Held(_Slow):
    """A store whose answers come when they are let go."""

    def __init__(self, inner: StateStore) -> None:
        super().__init__(inner, random.Random(0))
        self.inner, self.go, self.done = inner, asyncio.Event(), asyncio.Event()

    async def get(self, key: str, *, strong: bool, metadata: object = None) -> Stored | None:
        found = await self.inner.get(key, strong=strong)
        if "fence" not in key:
            self.done.set()
            await self.go.wait()
        return found

    async def write(self, items: Sequence[Item]) -> None:
        await self.inner.write(items)
        if len(items) > 1:
            self.done.set()
            await self.go.wait()


@pytest.mark.parametrize("writes", [True, False])
async def test_an_answer_that_comes_when_the_activation_is_over(*, writes: bool) -> None:
    """It is not kept: the actor may be elsewhere by then, and be back later."""
    store, cache = await _store(), StateCache(1_000_000)
    held = _Held(store)
    former = ActorState(held, PARTITION, 1, cache, _nothing)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(former.write([Item("k", b"former")]) if writes else former.get("k"))
        await held.done.wait()
        former.close()
        held.go.set()
    await _state(store, 2).write([Item("k", b"elsewhere")])
    found = await ActorState(store, PARTITION, 3, cache, _nothing).get("k")
    assert found is not None
    assert found.value == b"elsewhere"
