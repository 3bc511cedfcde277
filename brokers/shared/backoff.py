"""How long to wait before another attempt."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["CONNECT_WAIT", "waits"]

CONNECT_WAIT = 4.0  # For one attempt to connect, so that a start of the usual 5 s can say why it failed.
FIRST, LONGEST = 0.05, 2.0


def waits(longest: float = LONGEST) -> Iterator[float]:
    """Give the seconds between attempts, growing, with jitter; whoever asks decides when to stop."""
    wait = FIRST
    while True:
        yield wait * random.uniform(0.5, 1.0)  # noqa: S311 - it only spreads the load
        wait = min(wait * 2, longest)
