"""Senders to entities of Azure's messaging services, which lend themselves one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

__all__ = ["Senders"]

MAX_SENDERS = 8  # At work; each has a connection.
MAX_KEPT = 16  # With those at work.

_Sender = TypeVar("_Sender")


class Senders(Generic[_Sender]):
    """Lends senders: each serves one at a time, and one that failed or was cancelled is not used again."""

    def __init__(
        self,
        make: Callable[[str], _Sender],
        close: Callable[[_Sender], Awaitable[None]],
        harmless: tuple[type[Exception], ...] = (),
    ) -> None:
        """Begin without any.

        Args:
            make: Makes one, for an entity.
            close: Closes what may be broken; does not raise.
            harmless: Those errors of the library after which a sender is as before.
        """
        self._make, self._close, self._harmless = make, close, harmless
        self._idle: list[tuple[str, _Sender]] = []
        self._lent, self._closed = 0, False
        self._places = asyncio.Semaphore(MAX_SENDERS)

    async def close(self) -> None:
        """Close those that are idle; those at work are closed when they come back."""
        self._closed = True
        while self._idle:
            await self._close(self._idle.pop()[1])

    @asynccontextmanager
    async def lend(self, entity: str, *, fresh: bool = False) -> AsyncIterator[_Sender]:
        """Lend one to an entity; raises the library's errors.

        Args:
            entity: Which.
            fresh: Whether it is a new one; the service may have left one that was idle.
        """
        async with self._places:
            found = None if fresh else next((each for each in reversed(self._idle) if each[0] == entity), None)
            if found is not None:
                self._idle.remove(found)
            elif len(self._idle) + self._lent >= MAX_KEPT:  # Now, as nobody is to wait once the message is stored.
                await self._close(self._idle.pop(0)[1])
            sender = found[1] if found is not None else self._make(entity)
            self._lent += 1
            good = False
            try:
                yield sender
                good = True
            except self._harmless:
                good = True
                raise
            finally:
                self._lent -= 1
                if good and not self._closed:
                    self._idle.append((entity, sender))
                else:
                    await self._close(sender)
