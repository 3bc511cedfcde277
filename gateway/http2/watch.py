"""Ends what is done for a client of HTTP/2 that is no longer there, or that waited long enough."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import cast

from httpunk.exceptions import HTTPunkError
from httpunk.h2.server import ServerRequest

__all__ = ["Watch"]

WATCH_AFTER = 0.02


class Watch:
    """As a context manager, cancels what is done within when the client gives up, or a limit is over.

    To watch costs a task, so what is short goes without. Whoever has a limit, or an error to end with, extends it.
    """

    __slots__ = ("_beginning", "_error", "_request", "_task", "_watching")

    def __init__(self, request: ServerRequest) -> None:
        """Prepare."""
        self._request = request
        self._error: Exception | None = None
        self._watching: asyncio.Task[None] | None = None

    def limit(self) -> float | None:
        """Give the Unix time at which it ends; None = there is none. It may become later, or none."""
        return None

    def ended(self, *, late: bool) -> Exception | None:
        """Make the error that is raised in place of the cancellation; None = that is passed on.

        Args:
            late: The limit is over; else the client gave up.
        """

    def __enter__(self) -> None:
        """Begin."""
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._beginning = asyncio.get_running_loop().call_later(WATCH_AFTER, self._begin_to_watch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End.

        Raises:
            Exception: What ``ended`` made.
        """
        self._beginning.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self._error is not None and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise self._error from None

    def _begin_to_watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="http2-watch")

    async def _watch(self) -> None:
        self._error = self.ended(late=await self._is_late())
        self._task.cancel()

    async def _is_late(self) -> bool:
        """Wait; tell whether the limit was over before the client gave up."""
        while True:
            limit = self.limit()
            if limit is not None and time.time() >= limit:
                return True
            try:
                async with asyncio.timeout(None if limit is None else limit - time.time()):
                    await self._request.reset_received()
            except HTTPunkError:
                return False
            except TimeoutError:
                continue
            return False
