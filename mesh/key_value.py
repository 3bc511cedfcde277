"""A key/value store in memory: the reference of the ``KeyValue`` contract.

It serves the memory broker and ``state.in-memory``.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence

from mesh.broker import Entry, Write
from mesh.errors import ConflictError, FeatureNotSupportedError, MeshError, StateError, StateLimitError

__all__ = ["MemoryKeyValue", "check_key", "check_path", "check_prefix"]

MAX_KEY_BYTES = 1024
MAX_PATH_BYTES = 3 * MAX_KEY_BYTES  # Its tokens are encoded already.
_PATH = re.compile(r"(?:[A-Za-z0-9_=-]+\.)*[A-Za-z0-9_=-]+")


class MemoryKeyValue:
    """Keys and values of this process; expired ones are dropped as later calls come by."""

    alone = True

    def __init__(self, clock: Callable[[], float] = time.time, *, dotted: bool = False) -> None:
        """Start empty.

        Args:
            clock: Unix time in seconds.
            dotted: Whether keys are dotted paths, so that it can be scanned.
        """
        self.dotted = dotted
        self._check = check_path if dotted else check_key
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._expiries: list[tuple[float, str]] = []
        self._revision = 0

    def _sweep(self) -> None:
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            expires_at, key = heapq.heappop(self._expiries)
            entry = self._entries.get(key)
            if entry is not None and entry.expires_at == expires_at:
                del self._entries[key]

    async def get(self, key: str, *, strong: bool = False) -> Entry | None:
        """Read a key; every read is strong here."""
        self._check(key)
        self._sweep()
        return self._entries.get(key)

    async def apply(self, operations: Sequence[Write]) -> None:
        """Do all or nothing; nothing is awaited, so no other call comes between.

        Raises:
            ConflictError: A revision differs from the expected one; nothing was done.
            StateError: A key is empty or too long; nothing was done.
        """
        self._sweep()
        for operation in operations:
            self._check(operation.key)
            if operation.expected is None:
                continue
            entry = self._entries.get(operation.key)
            if (entry.revision if entry else 0) != operation.expected:
                raise ConflictError(f"key {operation.key!r} is at another revision")
        for operation in operations:
            if operation.check:
                continue
            self._revision += 1
            if operation.value is None:
                self._entries.pop(operation.key, None)
                continue
            expires_at = None if operation.ttl is None else self._clock() + operation.ttl
            self._entries[operation.key] = Entry(operation.value, self._revision, expires_at)
            if expires_at is not None:
                heapq.heappush(self._expiries, (expires_at, operation.key))

    async def apply_guarded(self, operations: Sequence[tuple[Write, Write]]) -> Sequence[MeshError | None]:
        """Do each write if what is checked beside it holds; gives what each came to."""
        results: list[MeshError | None] = []
        for pair in operations:
            try:
                await self.apply(pair)
                results.append(None)
            except MeshError as error:
                results.append(error)
        return results

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Iterate over live keys, in order."""
        self._sweep()
        for key in sorted(self._entries):
            if key.startswith(prefix):
                yield key

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Entry]]:
        """List live keys below a path in order, with their values."""
        check_prefix(prefix, dotted=self.dotted)
        self._sweep()
        found = heapq.nsmallest(limit, (key for key in self._entries if key.startswith(prefix) and key > after))
        return [(key, self._entries[key]) for key in found]


def check_key(key: str) -> None:
    """Refuse a key that no store takes.

    Raises:
        StateError: It is empty or too long.
    """
    if not 0 < len(key) <= MAX_KEY_BYTES or not (key.isascii() or len(key.encode()) <= MAX_KEY_BYTES):
        raise StateLimitError(f"a key has 1 to {MAX_KEY_BYTES} bytes, this one {len(key.encode())}")


def check_path(key: str) -> None:
    """Refuse a key that no store of dotted paths takes.

    Raises:
        StateError: It is too long, or has a token that is empty or not encoded.
    """
    if len(key) > MAX_PATH_BYTES:
        raise StateLimitError(f"a path has at most {MAX_PATH_BYTES} bytes, this one {len(key.encode())}")
    if not _PATH.fullmatch(key):
        raise StateError(f"{key!r} is no path of encoded tokens with dots between them")


def check_prefix(prefix: str, *, dotted: bool) -> None:
    """Refuse to scan what cannot be scanned.

    Raises:
        FeatureNotSupportedError: The store was not opened for it.
        StateError: The prefix is not of whole tokens.
    """
    if not dotted:
        raise FeatureNotSupportedError("a key/value store that was not opened dotted", "scanning keys")
    if prefix:
        if not prefix.endswith("."):
            raise StateError(f"the prefix {prefix!r} ends within a token: it has a dot behind each")
        check_path(prefix[:-1])
