"""The application beside the gateway, as the core sees it; ``gateway/http/application.py`` speaks HTTP to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

__all__ = ["AppResponse", "Application", "Headers"]

Headers = Sequence[tuple[str, str]]


class AppResponse(Protocol):
    """An application's answer while it is being read."""

    status: int
    headers: Headers

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        """Read the whole body if it is complete and small by now; else None, and use ``parts``."""

    def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives."""


class Application(Protocol):
    """The application's side of the gateway."""

    def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AppResponse]:
        """Call with any method; ``target`` is path and raw query.

        Raises:
            AppUnreachableError: Nothing reached it.
            AppFailedError: It broke off.
        """

    async def post(self, path: str, headers: Headers, body: bytes) -> tuple[int, bytes]:
        """Post a small body, give status and small answer.

        Raises:
            AppUnreachableError: Nothing reached it.
            AppFailedError: It broke off.
        """

    async def until_reachable(self) -> None:
        """Wait until it accepts connections."""

    async def until_unreachable(self) -> None:
        """Wait until it does not."""
