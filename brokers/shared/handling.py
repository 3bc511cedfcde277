"""Running a handler on a delivery."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh.broker import Delivery, Handler

__all__ = ["run_handler"]

logger = logging.getLogger("brokers")


async def run_handler(handler: Handler, delivery: Delivery, release: Callable[[], Awaitable[None]]) -> None:
    """Run a handler; log what it raises, and nack what it leaves unsettled.

    Args:
        handler: The handler.
        delivery: What it gets.
        release: Hands the delivery back as one that was never tried, as far as the broker can; for a handler that is
            cancelled before it has settled.
    """
    try:
        await handler(delivery)
    except asyncio.CancelledError:
        if delivery.settled is None:
            await release()
        raise
    except Exception:  # The handler's failure is this delivery's alone.
        logger.exception("handler failed on %s", delivery.address)
    if delivery.settled is None:
        await delivery.nack()
