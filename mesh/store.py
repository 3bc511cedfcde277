"""What an adapter to a state store implements, and the one on a key/value store.

The block is in ``mesh/blocks/state.py``. The mesh's own records (``mesh/blocks/records.py``) are kept in such a
store as well.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec

from mesh.broker import Entry, KeyValue, Write
from mesh.errors import (
    ConflictError,
    FeatureNotSupportedError,
    InvalidEtagError,
    MeshError,
    OutcomeUnknownError,
    StateError,
)
from mesh.query import Queried, Query

__all__ = [
    "CAPABILITIES",
    "CHECKED_KEY",
    "MAX_PARALLEL",
    "Concurrency",
    "Item",
    "KeyValueStateStore",
    "StateStore",
    "Stored",
    "smallest",
]

CHECKED_KEY = "mesh||check"
MAX_PARALLEL = 100
CAPABILITIES = ("ETAG", "TRANSACTIONAL", "TTL", "ACTOR", "KEYS")
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_ALL_ALIKE = (ConflictError, OutcomeUnknownError)


class Concurrency(StrEnum):
    """Who wins when two write."""

    FIRST_WRITE = "first-write"
    LAST_WRITE = "last-write"


class Stored(msgspec.Struct, frozen=True):
    """A value as stored.

    Attributes:
        value: The bytes as saved.
        etag: Changes with every write.
        expires_at: Unix time in seconds; None for never.
        bare: Whether it is a text that another program stored without the quotes of JSON.
    """

    value: bytes
    etag: str
    expires_at: float | None = None
    bare: bool = False


class Item(msgspec.Struct, frozen=True):
    """One write.

    Attributes:
        key: The application's key.
        value: The bytes to save; None deletes.
        etag: The etag it must have; None when not given.
        concurrency: None when not given: a check with an etag, last-write without.
        ttl: Seconds until it expires, by the item's word or the component's; None for never.
        metadata: What the application said of it (``contentType``, ``partitionKey``…), for stores that read it; that
            of its time to live is in ``ttl`` already.
        check: Whether nothing is written: the key must have the etag, or without one must not exist. Only in a
            transaction, whose other items it guards.
        strong: Whether it must have reached the store's followers, where the store can wait for them.
        lease: Whether no reader's clock may end it, only the store's, as in `mesh.broker.Write`.
    """

    key: str
    value: bytes | None
    etag: str | None = None
    concurrency: Concurrency | None = None
    ttl: float | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    check: bool = False
    strong: bool = False
    lease: bool = False


class StateStore:
    """What an adapter to a store extends; keys come with their prefix.

    The first two functions are every store's. Of the others, those after ``get_many`` and ``save_each`` are abilities:
    a store that lacks one leaves it as it is here, and does not name it in ``capabilities``.

    Attributes:
        capabilities: What metadata tells: ``ETAG``, ``TRANSACTIONAL``, ``TTL``, ``ACTOR``, ``QUERY_API``, and ours,
            ``KEYS`` for listing. Without ``TRANSACTIONAL``, ``write`` gets one item.
        max_transaction: The most items of a transaction; None = no limit.
        guards: Whether a transaction may have items that are only checked.
        alone: Whether many small writes are no faster together than each for itself, all on their way at once.
        volatile: Whether what is in it is gone with this process, which nobody else sees.
    """

    capabilities: Sequence[str] = ()
    guards: bool = True
    alone: bool = False
    volatile: bool = False
    max_transaction: int | None = None

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read; ``strong`` never answers from a follower."""
        raise NotImplementedError

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing; of equal keys the last one counts.

        Raises:
            ConflictError: An etag does not match, or first-write lost; nothing was done.
            InvalidEtagError: An etag can not be one of this store's; nothing was done.
            StateError: The store failed; ``retryable`` says whether that may pass.
        """
        raise NotImplementedError

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several; a key that could not be read has its error. A store with a read of many overrides it."""
        results: list[Stored | MeshError | None] = [None] * len(keys)
        waiting = iter(enumerate(keys))

        async def read() -> None:
            for index, key in waiting:
                try:
                    results[index] = await self.get(key, strong=strong, metadata=metadata)
                except MeshError as error:
                    results[index] = error

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(parallelism, len(keys))):
                tasks.create_task(read(), name="state-get-many")
        return results

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        """Write each item for itself, in order where keys are equal; gives what each came to.

        What is left out at the end was not tried. A store with a pipeline or a write of many overrides it.
        """
        results: list[MeshError | None] = []
        for item in items:
            try:
                await self.write([item])
            except MeshError as error:
                return [*results, error]
            results.append(None)
        return results

    async def write_guarded(self, items: Sequence[tuple[Item, Item]]) -> Sequence[MeshError | None]:
        """Write each item if what is only checked beside it holds, as ``write`` does in a transaction of both.

        No two are of one key, and they have no condition of their own. Gives what each came to; in what order they are
        done, and how many at once, is the store's.
        """
        results: list[MeshError | None] = [None] * len(items)
        by_check: dict[tuple[str, str | None], list[int]] = {}
        for place, (_, check) in enumerate(items):
            by_check.setdefault((check.key, check.etag), []).append(place)
        most = (self.max_transaction or len(items) + 1) - 1  # Those of one check would wait for each other otherwise.
        waiting = iter(
            [each[start : start + most] for each in by_check.values() for start in range(0, len(each), most)]
        )

        async def write(places: Sequence[int]) -> None:
            try:
                await self.write([*(items[place][0] for place in places), items[places[0]][1]])
            except MeshError as error:
                if len(places) > 1 and not error.retryable and not isinstance(error, _ALL_ALIKE):
                    for place in places:  # One of them is refused: the others are not.
                        await write([place])
                else:
                    for place in places:
                        results[place] = error

        async def work() -> None:
            for places in waiting:
                await write(places)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(MAX_PARALLEL, len(by_check))):
                tasks.create_task(work(), name="state-write-guarded")
        return results

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List live keys that begin with a prefix, in order, from the first one behind ``after``."""
        raise FeatureNotSupportedError("the state store", "listing keys")

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Stored]]:
        """List live keys that begin with a prefix, in order behind ``after``, with their values.

        What was acknowledged before it began is in it, unless it was deleted or overwritten since. The last key of a
        page, given as the next ``after`` soon, goes on with the same scan. Fewer than ``limit`` are given where there
        are no more.

        Raises:
            FeatureNotSupportedError: The store does not list keys (``KEYS``).
            StateError: A key cannot be read now.
        """
        found: list[tuple[str, Stored]] = []
        while wanted := limit - len(found):
            keys = await self.keys(prefix, after, wanted)
            for key, stored in zip(keys, await self.get_many(keys, strong=True), strict=True):
                if isinstance(stored, MeshError):
                    raise stored
                if stored is not None:  # It was deleted, or its time was over, since it was listed.
                    found.append((key, stored))
            if len(keys) < wanted:
                break
            after = keys[-1]
        return found

    async def query(self, query: Query, prefix: str) -> Queried:
        """Find values by their contents among the keys that begin with a prefix."""
        raise FeatureNotSupportedError("the state store", "querying")

    async def check(self) -> None:
        """Raise a ``StateError`` when it cannot be used now: it reads a key that nobody has, unless it knows better."""
        await self.get(CHECKED_KEY, strong=False)


async def smallest(keys: AsyncIterable[str], after: str, limit: int) -> Sequence[str]:
    """Give the first keys in order behind ``after`` of a store that promises none; holds little more than those."""
    found: list[str] = []
    async for key in keys:
        if key > after:
            found.append(key)
            if len(found) >= limit + MAX_PARALLEL:
                found = heapq.nsmallest(limit, found)
    return heapq.nsmallest(limit, found)


class KeyValueStateStore(StateStore):
    """A state store on a broker's (or the memory's) key/value store; its etags are revisions."""

    capabilities: Sequence[str] = CAPABILITIES

    def __init__(self, key_value: KeyValue) -> None:
        """Use an open store."""
        self._key_value = key_value
        self.max_transaction = getattr(key_value, "max_operations", None)
        self.alone = getattr(key_value, "alone", False)

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a key."""
        entry = await self._key_value.get(key, strong=strong)
        return None if entry is None else _stored(entry)

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several, many at a time."""
        read: Callable[[Sequence[str]], Awaitable[Sequence[Entry | None]]] | None
        read = getattr(self._key_value, "get_many", None) if strong else None
        if read is None or len(keys) < 2:
            return await super().get_many(keys, parallelism=parallelism, metadata=metadata, strong=strong)
        try:
            return [None if entry is None else _stored(entry) for entry in await read(keys)]
        except MeshError as error:
            return [error] * len(keys)

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing."""
        await self._key_value.apply([self._operation(item) for item in items])

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        """Write several at once; of equal keys one after the other, and none behind one that failed.

        Else the failed one, tried again, would take the place of what came after it.
        """
        if len(items) < 2:
            return await super().save_each(items)
        by_key: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            by_key.setdefault(item.key, []).append(index)
        results: list[MeshError | None] = [StateError("was not tried")] * len(items)
        each: Callable[[Sequence[Write]], Awaitable[Sequence[MeshError | None]]] | None
        each = getattr(self._key_value, "apply_each", None)
        if each is not None and len(by_key) == len(items):
            return await self._save_at_once(items, each)
        waiting, save_in_order = iter(by_key.values()), super().save_each

        async def save() -> None:
            for indexes in waiting:
                found = await save_in_order([items[each] for each in indexes])
                for index, result in zip(indexes, found, strict=False):  # It ends with the first that failed.
                    results[index] = result

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(MAX_PARALLEL, len(by_key))):
                tasks.create_task(save(), name="state-save-each")
        return results

    async def _save_at_once(
        self, items: Sequence[Item], each: Callable[[Sequence[Write]], Awaitable[Sequence[MeshError | None]]]
    ) -> Sequence[MeshError | None]:
        return await _those_that_can(self._operation, items, each)

    async def write_guarded(self, items: Sequence[tuple[Item, Item]]) -> Sequence[MeshError | None]:
        """Write each if its check holds, several at once where the store does that faster."""
        each: Callable[[Sequence[tuple[Write, Write]]], Awaitable[Sequence[MeshError | None]]] | None
        each = getattr(self._key_value, "apply_guarded", None)
        if each is None:
            return await super().write_guarded(items)
        return await _those_that_can(lambda pair: (self._operation(pair[0]), self._operation(pair[1])), items, each)

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys; holds no more than a few pages, however many there are."""
        return await smallest(self._key_value.keys(prefix), after, limit)

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Stored]]:
        """List keys with their values, cheaply where the store was opened for it."""
        if not self._key_value.dotted:
            return await super().scan(prefix, after, limit)
        return [(key, _stored(entry)) for key, entry in await self._key_value.scan(prefix, after, limit)]

    def _operation(self, item: Item) -> Write:
        if item.etag is not None:
            if not item.etag.isascii() or not item.etag.isdigit() or len(item.etag) > 19:
                raise InvalidEtagError(f"invalid etag value: {item.etag}")
            expected: int | None = int(item.etag)
            if expected == 0:  # No write has revision 0; in the store's terms it would mean "must not exist".
                raise ConflictError("etag 0 matches nothing")
        else:
            expected = 0 if item.concurrency is Concurrency.FIRST_WRITE and item.value is not None else None
        if item.check:
            return Write(item.key, None, expected or 0, check=True)
        return Write(item.key, item.value, expected, item.ttl, lease=item.lease)


async def _those_that_can(
    operation: Callable[[_Given], _Made],
    items: Sequence[_Given],
    each: Callable[[Sequence[_Made]], Awaitable[Sequence[MeshError | None]]],
) -> Sequence[MeshError | None]:
    """Do each item that can be made an operation; gives what each came to."""
    results: list[MeshError | None] = [None] * len(items)
    operations: dict[int, _Made] = {}
    for place, item in enumerate(items):
        try:
            operations[place] = operation(item)
        except MeshError as error:
            results[place] = error
    for place, result in zip(operations, await each([*operations.values()]), strict=True):
        results[place] = result
    return results


def _stored(entry: Entry) -> Stored:
    return Stored(entry.value, str(entry.revision), entry.expires_at)
