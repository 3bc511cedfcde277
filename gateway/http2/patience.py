"""What a connection owes a peer that does not read: nothing more than it has."""

from __future__ import annotations

import asyncio

from httpunk._backend.asyncio import _AsyncioStream

__all__ = ["HeldBack"]


class HeldBack(_AsyncioStream):
    """Reads no further while the peer takes nothing of what was written.

    Each ping and each setting is answered: a peer that sends them and reads nothing would fill the memory with answers.
    """

    def __init__(self, *arguments: object, **settings: object) -> None:
        """Prepare; arguments are the library's."""
        super().__init__(*arguments, **settings)  # type: ignore[no-untyped-call]
        self._taken = asyncio.Event()
        self._taken.set()

    def pause_writing(self) -> None:
        """Wait for the peer."""
        super().pause_writing()  # type: ignore[no-untyped-call]
        self._taken.clear()

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()  # type: ignore[no-untyped-call]
        self._taken.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Have whoever waits find out."""
        super().connection_lost(exc)  # type: ignore[no-untyped-call]
        self._taken.set()

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Give what came, once the peer has taken what it was told."""
        if not self._taken.is_set():
            await self._taken.wait()
        data: bytes = await super().receive_some(max_bytes)  # type: ignore[no-untyped-call]
        return data
