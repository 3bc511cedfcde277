"""Frames that are none of ours: whoever may send to the broker may send anything."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from mesh.broker import Frame, Sink

__all__ = ["MALFORMED", "careful", "listed", "named"]

logger = logging.getLogger(__name__)

MALFORMED = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
QUIET_SECONDS = 10.0
MAX_NAME = 512


def named(value: object) -> str:
    """Read the name of a node or of a call, which may be remembered; raises ``ValueError``."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError(f"a name is none, or longer than {MAX_NAME} characters")
    return value


def listed(value: Any, most: int) -> list[Any]:
    """Read a list; raises ``ValueError``."""
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"a list is none, or longer than {most}")
    return value


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
