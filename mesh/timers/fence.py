"""The fence of a partition: with it the store refuses what a former owner of its timers writes.

An owner that stood still between looking at the clock and writing may write when another one has long confirmed
something else. So each partition has a record of its own, ``fence.<kind>.<partition>``, with the epoch in which timers
were put or deleted last. Whoever owns the partition *takes* it before its first put or delete, by writing its own
epoch; and each put has as a condition that the fence is as its owner has left it. What is written under an earlier
fence conflicts from then on, whatever became of the timer meanwhile. It is taken anew after a put whose outcome is not
known: that may be on its way as well.

The condition costs no access to the store: it goes with the write.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from mesh.address import encode_token
from mesh.errors import ConflictError, StateError
from mesh.ownership.errors import NotOwnerError
from mesh.store import Concurrency, Item, StateStore, Stored

__all__ = ["Fence"]

TRIES = 20
TOKEN_BYTES = 6


class Fence:
    """The fence of one partition, as one owner takes it."""

    __slots__ = ("_check", "_epoch", "_etag", "_guarded", "_key", "_lock", "_mine", "_owns", "_records")

    def __init__(
        self,
        records: StateStore,
        kind: str,
        partition: int,
        epoch: int,
        owns: Callable[[], bool],
        guarded: Callable[[Item, Item], Awaitable[None]] | None = None,
    ) -> None:
        """Touch nothing yet.

        Args:
            records: Has transactions.
            kind: Of the partition.
            partition: Its number.
            epoch: In which it is owned.
            owns: Tells whether it still is, now and for sure.
            guarded: Writes an item on the condition of another one, as ``write`` does in a transaction of both; None =
                by such a one.
        """
        self._records = records
        self._key = f"fence.{encode_token(kind)}.{partition:03d}"
        self._epoch = epoch
        self._owns = owns
        self._guarded = guarded or self._in_transaction
        self._mine = self._new()
        self._etag: str | None = None  # While it is this owner's, as far as is known.
        self._check = Item(self._key, None, check=True)
        self._lock = asyncio.Lock()

    async def take(self) -> str:
        """Take it, unless that is done; gives its etag.

        Raises:
            NotOwnerError: It is a later owner's.
            MeshError: The store failed.
        """
        if self._etag is not None:
            return self._etag
        async with self._lock:
            if self._etag is None:
                self._etag = await self._take()
            return self._etag

    async def write(self, item: Item) -> None:
        """Write under it.

        Raises:
            NotOwnerError: It is a later owner's; nothing was done.
            MeshError: The store failed; it may have been done.
        """
        for _ in range(TRIES):
            etag = self._etag or await self.take()
            if self._check.etag != etag:
                self._check = Item(self._key, None, etag, check=True)
            try:
                return await self._guarded(item, self._check)
            except ConflictError:
                if self._etag == etag:  # Else others have found that out before.
                    self._etag = None
            except BaseException:  # It may still be on its way, and must not come behind what is written next.
                self._etag, self._mine = None, self._new()
                raise
        raise self._contended()

    async def _in_transaction(self, item: Item, check: Item) -> None:
        await self._records.write([item, check])

    async def _take(self) -> str:
        for _ in range(TRIES):
            if not self._owns():
                raise NotOwnerError(f"{self._key} is another one's, or will be")
            found = await self._records.get(self._key, strong=True)
            if found is not None and found.value == self._mine:
                return found.etag
            if found is not None and _epoch(found) > self._epoch:
                raise NotOwnerError(f"{self._key} has epoch {_epoch(found)}, and this is an owner of {self._epoch}")
            first = Concurrency.FIRST_WRITE if found is None else None
            try:
                await self._records.write([Item(self._key, self._mine, None if found is None else found.etag, first)])
            except ConflictError:  # Who has written it is seen in the next round, be it a write of this one.
                continue
        raise self._contended()

    def _new(self) -> bytes:
        """Make what no fence has been before: of one epoch there may be several, one after the other, at one node."""
        return b"%d %s" % (self._epoch, secrets.token_hex(TOKEN_BYTES).encode())

    def _contended(self) -> StateError:
        return StateError(f"the store had {TRIES} conflicts at {self._key}: try again")


def _epoch(found: Stored) -> int:
    try:
        return int(found.value.partition(b" ")[0])
    except ValueError:
        return 0  # Whatever it is, it is no owner's.
