"""What the mesh itself must remember: outcomes of durable calls, what was handled already.

One place holds it: the backbone's key/value where there is one, else the state store component that is
marked ``actorStateStore: "true"``. With neither, the first use is refused with the line to add. Never a
file that only one machine sees.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from mesh.blocks.store import CAPABILITIES, Item, StateStore, Stored
from mesh.errors import RecordsMissingError

__all__ = ["LazyRecords", "Prefixed", "missing"]


class LazyRecords:
    """A store that is opened when it is first needed, so that who needs none is not asked for one."""

    capabilities = CAPABILITIES

    def __init__(self, name: str, open_store: Callable[[str], Awaitable[StateStore]]) -> None:
        """Name what is remembered; nothing is opened."""
        self._name = name
        self._open = open_store
        self._store: StateStore | None = None

    async def opened(self) -> StateStore:
        """Give the store.

        Raises:
            RecordsMissingError: There is no place for it.
        """
        if self._store is None:
            self._store = await self._open(self._name)
        return self._store

    async def get(self, key: str, *, strong: bool = True) -> Stored | None:
        """Read."""
        return await (await self.opened()).get(key, strong=strong)

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing; raises ``ConflictError``."""
        await (await self.opened()).write(items)


class Prefixed:
    """A part of a store that also holds other things."""

    def __init__(self, store: StateStore, prefix: str) -> None:
        """Use keys with a prefix only."""
        self.capabilities = store.capabilities
        self._store = store
        self._prefix = prefix

    async def get(self, key: str, *, strong: bool) -> Stored | None:
        """Read."""
        return await self._store.get(self._prefix + key, strong=strong)

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing."""
        await self._store.write([replace(item, key=self._prefix + item.key) for item in items])


def missing(what: str, backbone: str) -> RecordsMissingError:
    """Make the error of a mesh that has no place to remember something in."""
    return RecordsMissingError(
        f"there is no place to keep {what}: {backbone} has no key/value store; mark a state store component that "
        'every node reaches, by this line in its spec.metadata: - {name: actorStateStore, value: "true"}'
    )
