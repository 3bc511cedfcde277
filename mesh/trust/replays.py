"""What came already, for as long as it could come again."""

from __future__ import annotations

from collections import Counter

__all__ = ["MAX_HELD", "MAX_HELD_OF_ONE", "Replays"]

MAX_HELD = 262_144
MAX_HELD_OF_ONE = MAX_HELD // 4
SECONDS = 8


class Replays:
    """Digests of requests by when they expire, which each of them says itself: so it is looked for in one place."""

    def __init__(self, most: int = MAX_HELD, most_of_one: int = MAX_HELD_OF_ONE) -> None:
        """Hold at most so many, and of one sender."""
        self._most, self._most_of_one = most, most_of_one
        self._held: dict[int, dict[bytes, str]] = {}
        self._of: Counter[str] = Counter()
        self._count = 0

    def seen(self, digest: bytes, expires_at: float) -> bool:
        """Tell whether it came already."""
        return digest in self._held.get(int(expires_at) // SECONDS, ())

    def add(self, digest: bytes, expires_at: float, sender: str, now: float) -> bool:
        """Hold one until it expires; False = there is no room."""
        if self._count >= self._most or self._of[sender] >= self._most_of_one:
            self._forget(now)
            if self._count >= self._most or self._of[sender] >= self._most_of_one:
                return False
        bucket = int(expires_at) // SECONDS
        held = self._held.get(bucket)
        if held is None:
            self._forget(now)
            held = self._held[bucket] = {}
        held[digest] = sender
        self._of[sender] += 1
        self._count += 1
        return True

    def _forget(self, now: float) -> None:
        for bucket in [each for each in self._held if (each + 1) * SECONDS < now]:
            gone = self._held.pop(bucket)
            self._of.subtract(gone.values())
            self._count -= len(gone)
        self._of = +self._of
