"""The instances in memory, those used last at the end; it lets go of idle ones beyond so many bytes."""

from __future__ import annotations

from collections import OrderedDict

from mesh.workflows.entry import Entry

__all__ = ["Memory"]

TRIES = 32  # The most that are looked at when one more has come: those at work stay.
ENTRY_BYTES = 2048  # What an instance takes in memory besides what its ``Saved`` counts.


class Memory:
    """The instances in memory, those used last at the end; it lets go of idle ones beyond so many bytes."""

    def __init__(self, limit: int) -> None:
        """Begin with none; ``limit`` in bytes."""
        self._limit = limit
        self._entries: OrderedDict[Entry, None] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def used(self, entry: Entry) -> None:
        """Take note that an instance in memory was used, perhaps grew."""
        size = ENTRY_BYTES
        if entry.saved is not None:  # What workers have rendered of it is about as large.
            size += entry.saved.size * (2 if entry.rendered else 1)
        self.bytes += size - entry.size
        entry.size = size
        self._entries[entry] = None
        self._entries.move_to_end(entry)
        if self.bytes > self._limit:
            self._shrink()

    def forget(self, entry: Entry) -> None:
        """Take note that it is in memory no more."""
        if entry in self._entries:
            del self._entries[entry]
            self.bytes -= entry.size
            entry.size = 0

    def _shrink(self) -> None:
        for _ in range(TRIES):
            entry = next(iter(self._entries))
            if not entry.idle:
                self._entries.move_to_end(entry)
                continue
            self.forget(entry)
            entry.unload()
            if entry.bare:
                entry.partition.entries.pop(entry.ref.id, None)
            if self.bytes <= self._limit or not self._entries:
                return
