"""The state of actors on every store: what is kept, and that a former owner of an actor writes nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import cast

import orjson
import pytest
import pytest_asyncio

from mesh.actors.errors import ActorMovedError, ActorStateMissingError
from mesh.actors.state import ActorState, StateCache, fence_key, partition_key, state_key
from mesh.blocks.actor_store import ActorStore
from mesh.blocks.state import StateStoreComponent
from mesh.errors import OutcomeUnknownError, StateError
from mesh.node.runtime import Runtime
from mesh.store import Item
from tests.support.eventually import eventually
from tests.support.nodes import node, unique
from tests.support.stores import STATE, Served, StoreKind

TABLE = STATE
MANY = 40
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(served: Served, kind: StoreKind) -> AsyncIterator[Runtime]:
    """A node whose actors have the store."""
    store = served.component("store", kind.type, actorStateStore="true")
    async with node(served.backbone, unique("actors"), store) as runtime:
        yield runtime


@pytest.fixture
def opened(runtime: Runtime) -> ActorStore:
    """The store as actors have it, whatever it can."""
    return ActorStore(runtime.parts.marked)


@pytest.fixture
def store(opened: ActorStore, runtime: Runtime, kind: StoreKind) -> ActorStore:
    """A store that can keep the state of actors."""
    if not {"ETAG", "TRANSACTIONAL"} <= set(_capabilities(runtime)):
        pytest.skip("is refused")
    return opened


@pytest.fixture
def actor(kind: StoreKind) -> str:
    """The partition key of an actor of the test's own."""
    return partition_key(kind.app_id.format(unique("app")), "thing", "1")


def _capabilities(runtime: Runtime) -> Sequence[str]:
    blocks = runtime.services["state"].components  # type: ignore[attr-defined]
    return cast("StateStoreComponent", blocks["store"]).capabilities


class Lossy(ActorStore):
    """A store whose answers to writes get lost, one after the other.

    Attributes:
        loses: How many.
    """

    loses = 0

    async def write(self, items: Sequence[Item]) -> None:
        await super().write(items)
        if self.loses:
            self.loses -= 1
            raise OutcomeUnknownError("the answer was lost")


class Owner(ActorState):
    """An activation.

    Attributes:
        ended: How often it was told that it has been replaced.
    """

    def __init__(self, store: ActorStore, actor: str, epoch: int, cache: StateCache | None = None) -> None:
        self.ended = 0
        super().__init__(store, actor, epoch, cache or StateCache(64 << 20), self._is_replaced)

    def _is_replaced(self) -> None:
        self.ended += 1

    async def value(self, key: str) -> bytes | None:
        found = await self.get(key)
        return None if found is None else found.value


async def test_one_that_lacks_an_ability(opened: ActorStore, runtime: Runtime) -> None:
    """It is refused, by its name and that of the ability."""
    missing = [each for each in ("ETAG", "TRANSACTIONAL") if each not in _capabilities(runtime)]
    if not missing:
        pytest.skip("lacks nothing")
    state = Owner(opened, "a||thing||1", 1)
    for use in (state.get("k"), state.write([Item("k", b"1")])):
        with pytest.raises(ActorStateMissingError, match=f"store store cannot .* no {' and no '.join(missing)}$"):
            await use


async def test_write_and_read(store: ActorStore, actor: str) -> None:
    """What an activation wrote, the next one reads; of a key that is named twice the last counts."""
    state = Owner(store, actor, 1)
    assert await state.value("none") is None
    await state.write([Item("k", b'{"a": 1}'), Item("gone", b"1"), Item("k", b"2")])
    await state.write([Item("gone", None), Item("never", None), Item("more", b"[1]")])
    for reader in (state, Owner(store, actor, 1), Owner(store, actor, 2)):
        assert [await reader.value(key) for key in ("k", "gone", "never", "more")] == [b"2", None, None, b"[1]"]
    metadata = {"partitionKey": actor}
    kept = await store.get(state_key(actor, "k"), strong=True, metadata=metadata)
    fence = await store.get(fence_key(actor), strong=True, metadata=metadata)
    assert kept is not None
    assert fence is not None
    assert (kept.value, fence.value) == (b"2", b"2")


async def test_actors_are_apart(store: ActorStore, actor: str) -> None:
    """Each has keys and a fence of its own."""
    one, other = Owner(store, actor, 9), Owner(store, actor + "1", 1)
    await one.write([Item("k", b"1")])
    await other.write([Item("k", b"2")])
    assert [await each.value("k") for each in (one, other)] == [b"1", b"2"]
    assert not one.ended + other.ended


async def test_many_keys_and_a_large_value(store: ActorStore, actor: str, kind: StoreKind) -> None:
    """In one transaction each."""
    state = Owner(store, actor, 1)
    value = orjson.dumps("x" * (min(kind.largest, 256 << 10) - 1024))
    await state.write([Item(f"k{number}", b"%d" % number) for number in range(MANY)])
    await state.write([Item("large", value)])
    found = Owner(store, actor, 2)
    assert [await found.value(f"k{number}") for number in range(MANY)] == [b"%d" % number for number in range(MANY)]
    assert await found.value("large") == value


async def test_expiry(store: ActorStore, actor: str) -> None:
    """A value is gone once its time is over, for who wrote it and for who comes later."""
    if not store.lets_expire:
        pytest.skip("keeps what it has")
    state, later = Owner(store, actor, 1), Owner(store, actor, 2)
    await state.write([Item("k", b"1", ttl=1.0), Item("stays", b"1", ttl=1000.0)])

    async def gone(of: Owner) -> None:
        assert await of.value("k") is None

    await eventually(lambda: gone(state))
    assert await state.value("stays") == b"1"
    await eventually(lambda: gone(later))
    assert await later.value("stays") == b"1"


async def test_an_owner_that_was_replaced(store: ActorStore, actor: str) -> None:
    """It is told so by the class of the error, once, and nothing of what it writes is there."""
    old, new = Owner(store, actor, 1), Owner(store, actor, 2)
    await old.write([Item("k", b"1")])
    assert await new.value("k") == b"1"
    with pytest.raises(ActorMovedError) as raised:
        await old.write([Item("k", b"3"), Item("more", b"3")])
    assert raised.value.retryable
    with pytest.raises(ActorMovedError):
        await old.get("k")
    await new.write([Item("k", b"2")])
    assert [await Owner(store, actor, 2).value(key) for key in ("k", "more")] == [b"2", None]
    assert (old.ended, new.ended) == (1, 0)
    late = Owner(store, actor, 1)
    with pytest.raises(ActorMovedError):
        await late.write([Item("k", b"4")])
    assert late.ended == 1


async def test_another_activation_of_the_same_epoch(store: ActorStore, actor: str) -> None:
    """The former one's writes are refused as well, and so is what it had on its way."""
    old, new = Owner(store, actor, 1), Owner(store, actor, 1)
    await old.write([Item("k", b"1")])
    assert await new.value("k") == b"1"
    with pytest.raises(ActorMovedError):
        await old.write([Item("k", b"2")])
    await new.write([Item("k", b"3")])
    assert await Owner(store, actor, 1).value("k") == b"3"


async def test_an_answer_that_is_lost(runtime: Runtime, store: ActorStore, actor: str) -> None:
    """What is there then is known by the next read; the activation goes on."""
    lossy = Lossy(runtime.parts.marked)
    state = Owner(lossy, actor, 1)
    await state.write([Item("n", b"1")])
    lossy.loses = 1
    with pytest.raises(OutcomeUnknownError):
        await state.write([Item("n", b"2")])
    assert await state.value("n") == b"2"
    await state.write([Item("n", b"3")])
    assert not state.ended


async def test_versions_are_one_chain(store: ActorStore, actor: str) -> None:
    """Owners of several epochs count at once, each from what it read; no number is written twice."""
    dice = random.Random(actor)
    written: list[int] = []

    async def count(cache: StateCache, epochs: Sequence[int]) -> None:
        for epoch in epochs:
            state = Owner(store, actor, epoch, cache)
            for _ in range(dice.randint(2, 4)):
                try:
                    number = int(await state.value("n") or b"0") + 1
                    await state.write([Item("n", b"%d" % number)])
                    written.append(number)
                except ActorMovedError:
                    break
                except StateError as error:  # The store was busy with the other one.
                    assert error.retryable
            state.close()

    async with asyncio.TaskGroup() as tasks:
        for epochs in ((1, 3, 5), (2, 4, 6)):
            tasks.create_task(count(StateCache(1 << 20), epochs))
    last = Owner(store, actor, 9)
    assert sorted(written) == list(range(1, len(written) + 1))
    assert int(await last.value("n") or b"0") == len(written) > 0
