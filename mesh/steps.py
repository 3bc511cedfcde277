"""What is opened in steps."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

__all__ = ["Steps"]


class Steps:
    """Opens in steps when it is entered; what they put on ``_stack`` is closed in reverse, also when one fails."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._stack = AsyncExitStack()

    async def _enter(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """Take every step, or none; raises what a step raises."""
        try:
            await self._enter()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close everything."""
        await self._stack.aclose()
