"""Locks: a resource is held by one owner at a time, for as long as its lease.

Source: Dapr 1.18, the distributed lock API (alpha).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

__all__ = ["LockStore", "Released"]


class Released(IntEnum):
    """What became of a wish to give a lock back; the numbers are the API's."""

    DONE = 0
    NOT_HELD = 1
    HELD_BY_OTHER = 2


class LockStore(Protocol):
    """What an adapter implements; names come with their prefix."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""

    async def acquire(self, name: str, owner: str, seconds: float) -> int | None:
        """Take a lock that nobody holds; its owner is nobody special.

        Args:
            name: Of the resource, with its prefix.
            owner: Who wants it.
            seconds: How long the lease is.

        Returns:
            The fencing token: greater than that of every earlier holder of this lock; 0 where the store has none.
            None when it is held.

        Raises:
            LockError: The store failed; whether it is held now may be unknown.
        """

    async def release(self, name: str, owner: str) -> Released:
        """Give a lock back, if this owner holds it.

        Raises:
            LockError: The store failed.
        """
