"""The store that actors keep their state in: what it must have, and what is said where it has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from brokers.memory import MemoryBroker
from mesh.actors.errors import ActorStateMissingError
from mesh.blocks.actor_store import ActorStore
from mesh.errors import TooManyOperationsError
from mesh.life import Life
from mesh.store import Item, KeyValueStateStore, StateStore, Stored


class _Plain(StateStore):
    capabilities = ("ETAG", "TTL")

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        raise AssertionError("it is not used")

    async def write(self, items: Sequence[Item]) -> None:
        raise AssertionError("it is not used")


async def test_none_is_marked() -> None:
    store = ActorStore(lambda: None)
    with pytest.raises(ActorStateMissingError, match='name: actorStateStore, value: "true"'):
        await store.get("k", strong=True)
    with pytest.raises(ActorStateMissingError):
        assert store.lets_expire


async def test_one_that_lacks_an_ability() -> None:
    store = ActorStore(lambda: ("plain", _Plain(), Life("it")))
    with pytest.raises(ActorStateMissingError, match=r"plain cannot keep the state of actors: it has no TRANSACTIONAL"):
        await store.write([Item("k", b"1")])


async def test_too_many_operations() -> None:
    """The fence takes one of those that the store takes at once."""
    inner = KeyValueStateStore(await MemoryBroker().key_value("s"))
    inner.max_transaction = 3
    store = ActorStore(lambda: ("s", inner, Life("it")))
    await store.write([Item(str(number), b"1") for number in range(3)])
    with pytest.raises(TooManyOperationsError, match=r"contains 3 operations.*supports: 2"):
        await store.write([Item(str(number), b"1") for number in range(4)])
