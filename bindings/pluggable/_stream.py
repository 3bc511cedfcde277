"""A stream to a pluggable component, on which acknowledgements go."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc.aio

from bindings.pluggable._connection import CALL_SECONDS, is_leaving
from bindings.pluggable._messages import message

__all__ = ["Stream"]

logger = logging.getLogger(__name__)


class Stream:
    """A stream, on which one at a time writes.

    Attributes:
        left: Set when nothing that came on it is to be tried again: it has ended, or its reader stops. What was not
            acknowledged on it is the component's, which gives it on another stream.
    """

    def __init__(self, call: Any, kind: str) -> None:
        """Use a call; what is written are messages of this kind."""
        self.call = call
        self.left = asyncio.Event()
        self._kind = message(kind)
        self._writing = asyncio.Lock()
        call.add_done_callback(lambda _: self.left.set())  # Also while nobody reads, as all slots are taken.

    async def write(self, **fields: object) -> bool:
        """Write a request; gives whether it could be: what was not acknowledged comes again on another stream."""
        try:
            async with asyncio.timeout(CALL_SECONDS), self._writing:
                await self.call.write(self._kind(**fields))
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
            logger.debug("a stream has ended: %s", type(error).__name__)
            return False
        except asyncio.CancelledError:
            if is_leaving():
                raise
            return False
        return True

    async def finish(self, reading: asyncio.Task[None], seconds: float) -> None:
        """End it in good order: acknowledgements on the way count.

        Args:
            reading: What reads from it.
            seconds: How long that may take.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.call.done_writing()
                await asyncio.wait([reading])
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
            logger.debug("a stream has not ended: %s", type(error).__name__)
        finally:
            self.call.cancel()
            reading.cancel()
