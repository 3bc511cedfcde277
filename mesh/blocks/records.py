"""What the mesh itself must remember: outcomes of durable calls, what was handled already.

One place holds it: the backbone's key/value where there is one, else the state store component that is
marked ``actorStateStore: "true"``. With neither, the first use is refused with the line to add. Never a
file that only one machine sees.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from msgspec.structs import replace

from mesh import address
from mesh.deadlines import Deadlines
from mesh.errors import ConfigError, DeadlineExceededError, MeshError, RecordsMissingError, StateError
from mesh.store import CAPABILITIES, MAX_PARALLEL, Item, StateStore, Stored

if TYPE_CHECKING:
    from mesh.blocks.block import Parts
    from mesh.broker import KeyValue, KeyValueProvider
    from mesh.resources.component import Component

__all__ = ["RECORD_SECONDS", "LazyRecords", "Prefixed", "lacking", "missing", "on_backbone"]

RECORD_SECONDS = 5.0  # What a delivery waits for, which no operation's deadline bounds.
# What each needs of the store; without the expiry of sessions nobody would ever take over from an owner that is gone.
NEEDED: Mapping[str, Sequence[str]] = {"mesh:owners": ("ETAG", "TTL"), "mesh:timers": ("ETAG", "KEYS", "TRANSACTIONAL")}
_T = TypeVar("_T")


class LazyRecords(StateStore):
    """A store that is opened when it is first needed, so that who needs none is not asked for one."""

    capabilities = CAPABILITIES

    def __init__(
        self, name: str, open_store: Callable[[str], Awaitable[StateStore]], seconds: float | None = None
    ) -> None:
        """Name what is remembered; nothing is opened.

        Args:
            name: What is remembered.
            open_store: Opens it.
            seconds: How long each use may take; None = as long as the operation that it is a part of.
        """
        self._name = name
        self._open = open_store
        self._seconds = seconds
        self._deadlines = Deadlines()
        self._store: StateStore | None = None

    async def opened(self) -> StateStore:
        """Give the store.

        Raises:
            RecordsMissingError: There is no place for it.
        """
        if self._store is None:
            self._store = await self._open(self._name)
        return self._store

    async def get(self, key: str, *, strong: bool = True, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read."""
        return await self._in_time(lambda store: store.get(key, strong=strong))

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing; raises ``ConflictError``."""
        await self._in_time(lambda store: store.write(items))

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys."""
        return await self._in_time(lambda store: store.keys(prefix, after, limit))

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = True,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several."""
        return await self._in_time(lambda store: store.get_many(keys, parallelism=parallelism, strong=strong))

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        """Write each for itself."""
        return await self._in_time(lambda store: store.save_each(items))

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Stored]]:
        """List keys with their values."""
        return await self._in_time(lambda store: store.scan(prefix, after, limit))

    async def _use(self, use: Callable[[StateStore], Awaitable[_T]]) -> _T:
        return await use(await self.opened())

    async def _in_time(self, use: Callable[[StateStore], Awaitable[_T]]) -> _T:
        if self._seconds is None:
            return await use(self._store or await self.opened())
        try:
            return await self._deadlines.within(self._seconds, self._use, use)
        except DeadlineExceededError as error:  # The store is late, which says nothing about the application.
            raise StateError(f"{self._name}: {error}") from None


class Prefixed(StateStore):
    """A part of a store that also holds other things."""

    def __init__(self, store: StateStore, prefix: str) -> None:
        """Use keys with a prefix only."""
        self.capabilities = store.capabilities
        self.max_transaction = store.max_transaction
        self.guards = store.guards
        self._store = store
        self._prefix = prefix

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read."""
        return await self._store.get(self._prefix + key, strong=strong)

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing."""
        await self._store.write([self._item(item) for item in items])

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several."""
        names = [self._prefix + key for key in keys]
        return await self._store.get_many(names, parallelism=parallelism, strong=strong)

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        """Write each for itself."""
        return await self._store.save_each([self._item(item) for item in items])

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys."""
        found = await self._store.keys(self._prefix + prefix, self._prefix + after if after else "", limit)
        return [key.removeprefix(self._prefix) for key in found]

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Stored]]:
        """List keys with their values."""
        found = await self._store.scan(self._prefix + prefix, self._prefix + after if after else "", limit)
        return [(key.removeprefix(self._prefix), stored) for key, stored in found]

    def _item(self, item: Item) -> Item:
        return replace(item, key=self._prefix + item.key)


def lacking(name: str, component: str, store: StateStore) -> RecordsMissingError | None:
    """Make the error of a marked store that cannot keep what is asked of it; None where it can.

    Args:
        name: What is remembered.
        component: The store's name.
        store: The store.
    """
    needed = NEEDED.get(name, ("ETAG",))
    found = [each for each in needed if each not in store.capabilities]
    if not found:
        return None
    return RecordsMissingError(
        f"the state store {component} is marked by actorStateStore, and cannot keep {name}: "
        f"it has no {' and no '.join(found)}"
    )


def missing(what: str, backbone: str) -> RecordsMissingError:
    """Make the error of a mesh that has no place to remember something in."""
    return RecordsMissingError(
        f"there is no place to keep {what}: {backbone} has no key/value store; mark a state store component that "
        'every node reaches, by this line in its spec.metadata: - {name: actorStateStore, value: "true"}'
    )


async def on_backbone(component: Component, parts: Parts, instead: str) -> KeyValue:
    """Open the backbone's key/value store for a component that lives in it, apart from all others.

    Raises:
        ConfigError: The backbone has none; names the line to write in its place.
    """
    features = parts.broker.features
    if not features.key_value:
        text = f"{component.type} needs a key/value store, and {features.name} has none; in its place: type: {instead}"
        raise ConfigError(component.type_problem(text))
    name = address.store(parts.caller.namespace, f"{component.block}:{component.name}")
    return await cast("KeyValueProvider", parts.broker).key_value(name)
