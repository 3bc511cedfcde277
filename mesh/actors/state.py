"""What actors keep, in the state store of the application that is marked for it.

A node may believe that it owns an actor when another one does already: it stood still between looking at the clock and
writing. So the store refuses its writes. Each actor that keeps something has a record beside it, its *fence*, which
holds the epoch of the partition under which the last activation ran; each write of an activation has as a condition
that the fence is as this activation has left it.

The fence is taken by the first operation of an activation, not when it begins: an actor that keeps nothing costs no
access to the store. The versions of its state still are one chain. What an activation wrote or read, it did after it
had taken the fence. When another activation takes it, whatever its epoch, all writes of the former one that reach the
store later conflict, and all that were done before are seen by the reads of the next one, since those come later. An
activation of a lower epoch never takes the fence of a higher one. So between two activations that took the fence
nothing of a third one is written, and one that never took it has neither read nor written anything.

It is taken by a write also where the epoch is the same as before: a write of the former activation, here, may still be
on its way.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from mesh.actors.errors import ActorMovedError
from mesh.errors import ConflictError, MeshError, StateError
from mesh.store import Concurrency, Item, StateStore, Stored

__all__ = ["REPLACED", "SEPARATOR", "ActorState", "StateCache", "fence_key", "partition_key", "state_key"]

SEPARATOR = "||"
FENCES = "mesh||fence||"
TRIES = 20
REPLACED = "the actor has moved: another activation of it keeps its state now"


def partition_key(app_id: str, type_: str, id_: str) -> str:
    """Give what all keys of an actor begin with, which also is what stores that partition put them together by."""
    return SEPARATOR.join((app_id, type_, id_))


def state_key(partition: str, key: str) -> str:
    """Give the store's key of an actor's key."""
    return f"{partition}{SEPARATOR}{key}"


def fence_key(partition: str) -> str:
    """Give the store's key of an actor's fence."""
    return FENCES + partition


class StateCache:
    """What active actors have read and written lately, of all together; the oldest gives way."""

    def __init__(self, most_bytes: int) -> None:
        """Keep nothing yet."""
        self._most = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Stored | None] = OrderedDict()

    def get(self, key: str) -> Stored | None:
        """Give what is kept of a key, None for one that there is not; raises KeyError where nothing is known."""
        found = self._kept[key]
        self._kept.move_to_end(key)
        return found

    def put(self, key: str, stored: Stored | None) -> None:
        """Keep what is known of a key."""
        self.forget(key)
        self._kept[key] = stored
        self._bytes += _size(key, stored)
        while self._bytes > self._most:
            oldest, gone = self._kept.popitem(last=False)
            self._bytes -= _size(oldest, gone)

    def forget(self, key: str) -> None:
        """Know nothing of a key."""
        if key in self._kept:
            self._bytes -= _size(key, self._kept.pop(key))


def _size(key: str, stored: Stored | None) -> int:
    return 300 + len(key) + (0 if stored is None else len(stored.value))


class ActorState:
    """The state of one activation; operations are one after the other."""

    def __init__(
        self,
        store: StateStore,
        partition: str,
        epoch: int,
        cache: StateCache,
        replaced: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Touch nothing yet.

        Args:
            store: With etags and transactions.
            partition: Of `partition_key`.
            epoch: Under which the activation runs.
            cache: That it may use while it has the fence.
            replaced: Is told once that the activation is to end, since another one has the fence.
            clock: Unix time.
        """
        self._store = store
        self._partition = partition
        self._epoch = epoch
        self._cache = cache
        self._replaced = replaced
        self._clock = clock
        self._metadata = {"partitionKey": partition}
        self._lock = asyncio.Lock()
        self._fence: str | None = None  # Its etag, while it is this activation's.
        self._over = False
        self._keys: set[str] = set()  # In the cache, perhaps.

    async def get(self, key: str) -> Stored | None:
        """Read a key.

        Raises:
            ActorMovedError: Another activation has the fence.
            MeshError: The store failed.
        """
        name = state_key(self._partition, key)
        async with self._lock:
            await self._take_fence()
            try:
                found = self._cache.get(name)
            except KeyError:
                found = await self._store.get(name, strong=True, metadata=self._metadata)
                self._keep(name, found)
            expired = found is not None and found.expires_at is not None and found.expires_at <= self._clock()
            return None if expired else found

    async def write(self, items: Sequence[Item]) -> None:
        """Write keys, all or none.

        Raises:
            ActorMovedError: Another activation has the fence; nothing was written.
            MeshError: The store failed; what was written then is known by the next read.
        """
        # Of one key that is named more than once the last one counts; some stores take a key once.
        named = {
            item.key: replace(
                item, key=state_key(self._partition, item.key), metadata={**item.metadata, **self._metadata}
            )
            for item in items
        }
        async with self._lock:
            await self._take_fence()
            key, guards = fence_key(self._partition), self._store.guards
            # A store that cannot only check a key writes it, and so gives it another etag.
            value = None if guards else b"%d" % self._epoch
            fence = Item(key, value, self._fence, check=guards, metadata=self._metadata)
            try:
                await self._store.write([fence, *named.values()])
            except ConflictError as error:
                await self._conflicted(error)
            except BaseException:
                self._forget()  # It may be written, and may still be on its way.
                raise
            now = self._clock()
            for item in named.values():
                expires_at = None if item.ttl is None else now + item.ttl
                self._keep(item.key, None if item.value is None else Stored(item.value, "", expires_at))
            if not guards:
                await self._read_fence()

    def close(self) -> None:
        """Let go of what is in the cache; another activation may come."""
        self._forget()
        self._over = True

    async def _take_fence(self) -> None:
        """Take the fence, unless it is this activation's already."""
        if self._over:
            raise ActorMovedError(REPLACED)
        if self._fence is not None:
            return
        key, mine = fence_key(self._partition), b"%d" % self._epoch
        for _ in range(TRIES):
            found = await self._store.get(key, strong=True, metadata=self._metadata)
            if found is not None and _epoch(found) > self._epoch:
                self._end()
            first = Concurrency.FIRST_WRITE if found is None else None
            item = Item(key, mine, None if found is None else found.etag, first, metadata=self._metadata)
            try:
                await self._store.write([item])
            except ConflictError:
                continue
            if await self._is_mine():
                return
        raise StateError("the state of the actor is contended: its fence cannot be taken")

    async def _is_mine(self) -> bool:
        """Read the etag of the fence that was written; tells whether it is still this activation's.

        The write gives no etag, and what is read next may be another's of the same epoch: of this node, whose
        activations of one actor follow each other. So it is this one's.
        """
        found = await self._store.get(fence_key(self._partition), strong=True, metadata=self._metadata)
        self._fence = found.etag if found is not None and _epoch(found) == self._epoch else None
        return self._fence is not None

    async def _read_fence(self) -> None:
        """Read the etag of the fence after a write that is done; where that fails, the next operation takes it anew."""
        self._fence = None
        try:
            mine = await self._is_mine()
        except MeshError:
            mine = False
        except BaseException:
            self._forget()
            raise
        if not mine:
            self._forget()

    async def _conflicted(self, error: ConflictError) -> None:
        """Find out whether it was the fence."""
        fence, self._fence = self._fence, None
        self._forget()
        found = await self._store.get(fence_key(self._partition), strong=True, metadata=self._metadata)
        if found is None or found.etag != fence:
            self._end(error)
        raise StateError(f"the state store had a conflict, and nothing was written: {error}") from error

    def _end(self, cause: MeshError | None = None) -> None:
        self._forget()
        if not self._over:
            self._over = True
            self._replaced()
        raise ActorMovedError(REPLACED) from cause

    def _keep(self, name: str, stored: Stored | None) -> None:
        if self._over:
            return  # An answer of the store that came late; nobody would forget it when another activation writes.
        self._keys.add(name)
        self._cache.put(name, stored)

    def _forget(self) -> None:
        self._fence = None
        for name in self._keys:
            self._cache.forget(name)
        self._keys.clear()


def _epoch(found: Stored) -> int:
    try:
        return int(found.value)
    except ValueError:
        raise StateError("the fence of the actor holds no epoch; it was written by something else") from None
