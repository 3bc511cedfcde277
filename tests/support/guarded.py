"""What every store promises of ``StateStore.write_guarded``, run by the suite of each kind of store."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.errors import ConflictError, MeshError
from mesh.store import Item, StateStore

__all__ = ["writes_each_that_its_check_allows"]


async def writes_each_that_its_check_allows(store: StateStore, prefix: str) -> None:
    """Write many under checks that hold and that do not; keys begin with the prefix."""
    fences = [f"{prefix}fence.{number}" for number in range(3)]
    for fence in fences:
        await store.write([Item(fence, b"1")])
    holds = [Item(fence, None, await _etag(store, fence), check=True) for fence in fences]
    absent = Item(f"{prefix}absent", None, check=True)
    keys = [f"{prefix}k.{number}" for number in range(120)]
    writes = [(Item(key, b"%d" % number), [*holds, absent][number % 4]) for number, key in enumerate(keys)]
    assert await store.write_guarded(writes) == [None] * 120
    assert await _values(store, keys) == [b"%d" % number for number in range(120)]

    await store.write([Item(fences[1], b"2")])  # It belongs to another owner from now on.
    again = [(Item(item.key, None if number % 2 else b'"x"'), check) for number, (item, check) in enumerate(writes)]
    came_to = await store.write_guarded(again)
    assert [None if each is None else type(each) for each in came_to] == [None, ConflictError, None, None] * 30
    expected = [(b'"x"', b"%d" % number, b'"x"', None)[number % 4] for number in range(120)]
    assert await _values(store, keys) == expected

    now = Item(fences[1], None, await _etag(store, fences[1]), check=True)
    assert await store.write_guarded([(Item(keys[1], None), now)]) == [None]
    assert [type(each) for each in await store.write_guarded([(Item(keys[0], None), holds[1])])] == [ConflictError]
    assert await _values(store, keys[:2]) == [b'"x"', None]
    assert await store.write_guarded([]) == []


async def _etag(store: StateStore, key: str) -> str:
    found = await store.get(key, strong=True)
    assert found is not None
    return found.etag


async def _values(store: StateStore, keys: Sequence[str]) -> list[bytes | None]:
    found = await store.get_many(keys, strong=True)
    return [each.value if each is not None and not isinstance(each, MeshError) else None for each in found]
