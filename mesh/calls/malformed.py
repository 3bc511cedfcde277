"""Frames that are none of ours: whoever may send to the broker may send anything."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mesh.broker import Frame, Sink

__all__ = ["MALFORMED", "careful"]

logger = logging.getLogger(__name__)

MALFORMED = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
QUIET_SECONDS = 10.0


def careful(sink: Callable[[Frame], None]) -> Sink:
    """Ignore what a sink cannot read, and say so now and then."""
    quiet_until = 0.0

    def take(frame: Frame) -> None:
        nonlocal quiet_until
        try:
            sink(frame)
        except MALFORMED as error:
            if time.monotonic() >= quiet_until:
                quiet_until = time.monotonic() + QUIET_SECONDS
                logger.warning("ignored a malformed frame: %s: %s", type(error).__name__, str(error)[:200])

    return take
