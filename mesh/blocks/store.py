"""What an adapter to a state store implements, and the one on a key/value store.

The block is in ``mesh/blocks/state.py``. The mesh's own records (``mesh/blocks/records.py``) are kept in such a
store as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mesh.broker import KeyValue, Write
from mesh.errors import ConflictError, InvalidEtagError

__all__ = ["CAPABILITIES", "Concurrency", "Item", "KeyValueStateStore", "StateStore", "Stored"]

CAPABILITIES = ("ETAG", "TRANSACTIONAL", "TTL", "ACTOR")


class Concurrency(StrEnum):
    """Who wins when two write."""

    FIRST_WRITE = "first-write"
    LAST_WRITE = "last-write"


@dataclass(frozen=True, slots=True)
class Stored:
    """A value as stored.

    Attributes:
        value: The bytes as saved.
        etag: Changes with every write.
        expires_at: Unix time in seconds; None for never.
    """

    value: bytes
    etag: str
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One write.

    Attributes:
        key: The application's key.
        value: The bytes to save; None deletes.
        etag: The etag it must have; None when not given.
        concurrency: None when not given: a check with an etag, last-write without.
        ttl: Seconds until it expires; None for never.
    """

    key: str
    value: bytes | None
    etag: str | None = None
    concurrency: Concurrency | None = None
    ttl: float | None = None


class StateStore(Protocol):
    """What an adapter to a store implements; keys come with their prefix."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells (``ETAG``, ``TRANSACTIONAL``, ``TTL``…)."""

    async def get(self, key: str, *, strong: bool) -> Stored | None:
        """Read."""

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing.

        Raises:
            ConflictError: An etag does not match, or first-write lost; nothing was done.
            InvalidEtagError: An etag can not be one of this store's.
        """


class KeyValueStateStore:
    """A state store on a broker's (or the memory's) key/value store; its etags are revisions."""

    capabilities: Sequence[str] = CAPABILITIES

    def __init__(self, key_value: KeyValue) -> None:
        """Use an open store."""
        self._key_value = key_value

    async def get(self, key: str, *, strong: bool) -> Stored | None:
        """Read a key."""
        entry = await self._key_value.get(key, strong=strong)
        return None if entry is None else Stored(entry.value, str(entry.revision), entry.expires_at)

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing."""
        await self._key_value.apply([self._operation(item) for item in items])

    def _operation(self, item: Item) -> Write:
        if item.etag is not None:
            if not item.etag.isascii() or not item.etag.isdigit() or len(item.etag) > 19:
                raise InvalidEtagError(f"invalid etag value: {item.etag}")
            expected: int | None = int(item.etag)
            if expected == 0:  # No write has revision 0; in the store's terms it would mean "must not exist".
                raise ConflictError("etag 0 matches nothing")
        else:
            expected = 0 if item.concurrency is Concurrency.FIRST_WRITE and item.value is not None else None
        return Write(item.key, item.value, expected, item.ttl)
