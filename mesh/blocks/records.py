"""What the mesh itself must remember: outcomes of durable calls, what was handled already.

One place holds it: the backbone's key/value where there is one, else the state store component that is
marked ``actorStateStore: "true"``. With neither, the first use is refused with the line to add. A file is a
place only where the user says that all nodes are on one machine (``MESH_SINGLE_HOST``). See ``mesh/node/places.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from msgspec.structs import replace

from mesh import address
from mesh.deadlines import Deadlines
from mesh.errors import (
    ConfigError,
    DeadlineExceededError,
    MeshError,
    RecordsMissingError,
    StateError,
    TooManyOperationsError,
)
from mesh.store import CAPABILITIES, MAX_PARALLEL, Item, StateStore, Stored

if TYPE_CHECKING:
    from mesh.blocks.block import Parts
    from mesh.broker import KeyValue, KeyValueProvider
    from mesh.resources.component import Component

__all__ = ["RECORD_SECONDS", "LazyRecords", "Prefixed", "located", "missing", "no_place", "on_backbone", "unfit"]

RECORD_SECONDS = 5.0  # What a delivery waits for, which no operation's deadline bounds.
# What each needs of the store. Without the expiry of sessions nobody would ever take over from an owner that is gone;
# without that of the others what is remembered would never be forgotten. What is not named here is ``state.mesh``.
NEEDED: Mapping[str, Sequence[str]] = {
    "bindings": ("ETAG", "TTL"),
    "mesh:deduplication": ("ETAG", "TTL"),
    "mesh:invocations": ("ETAG", "TTL"),
    "mesh:owners": ("ETAG", "TTL"),
    "mesh:timers": ("ETAG", "KEYS", "TRANSACTIONAL"),
    "mesh:workflows": ("ETAG", "KEYS", "TRANSACTIONAL"),
    "mesh:workflows-ended": ("ETAG", "KEYS", "TRANSACTIONAL", "TTL"),
}
TITLES = {
    "bindings": "what bindings have read",
    "mesh:deduplication": "what `deduplicate` has seen",
    "mesh:invocations": "durable calls",
    "mesh:owners": "who owns actors, jobs and timers",
    "mesh:timers": "jobs, reminders and timers",
    "mesh:workflows": "workflows",
    "mesh:workflows-ended": "workflows that have ended",
}
NEEDED_BY_STATE = ("ETAG", "TTL", "TRANSACTIONAL")
MARK = 'name: actorStateStore, value: "true"'
EXAMPLE = (
    "{apiVersion: dapr.io/v1alpha1, kind: Component, metadata: {name: records}, spec: {type: state.postgresql, "
    'version: v1, metadata: [{name: connectionString, value: "host=… user=… password=… dbname=…"}, {' + MARK + "}]}}"
)
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

    @property
    def alone(self) -> bool:  # type: ignore[override]  # it is known once the store is open
        """See ``StateStore``."""
        return self._store is not None and self._store.alone

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
        """Do all or nothing.

        Raises:
            ConflictError: Nothing was done.
            TooManyOperationsError: The store takes fewer at once.
        """
        await self._in_time(lambda store: _written(store, items))

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

    async def write_guarded(self, items: Sequence[tuple[Item, Item]]) -> Sequence[MeshError | None]:
        """Write each if its check holds."""
        return await self._in_time(lambda store: store.write_guarded(items))

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


async def _written(store: StateStore, items: Sequence[Item]) -> None:
    if store.max_transaction is not None and len(items) > store.max_transaction:
        raise TooManyOperationsError(len(items), store.max_transaction)
    await store.write(items)


class Prefixed(StateStore):
    """A part of a store that also holds other things."""

    def __init__(self, store: StateStore, prefix: str) -> None:
        """Use keys with a prefix only."""
        self.capabilities = store.capabilities
        self.max_transaction = store.max_transaction
        self.guards, self.alone = store.guards, store.alone
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

    async def write_guarded(self, items: Sequence[tuple[Item, Item]]) -> Sequence[MeshError | None]:
        """Write each if its check holds."""
        return await self._store.write_guarded([(self._item(item), self._item(check)) for item, check in items])

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


def unfit(name: str, component: Component, store: StateStore, *, single_host: bool) -> str:
    """Say why a state store cannot keep what is asked of it; empty where it can.

    Args:
        name: What is remembered.
        component: The store's.
        store: The store.
        single_host: Whether all nodes are on this machine.
    """
    needed = NEEDED.get(name, NEEDED_BY_STATE)
    if found := [each for each in needed if each not in store.capabilities]:
        return f"it has no {' and no '.join(found)}"
    if store.volatile:
        return f"{component.type} is gone with this process"
    if getattr(store, "bound", False) and not single_host:
        return f"{component.type} is on this machine alone"
    return ""


def no_place(name: str) -> str:
    """Say that something cannot be remembered."""
    return f"there is no place to keep {TITLES.get(name, f'the state of {name}')}"


def missing(
    name: str, backbone: str, fit: Component | None, marked: Component | None, why: str, *, single_host: bool
) -> RecordsMissingError:
    """Make the error of a mesh that has no place to remember something in; it says what to write, and where.

    Args:
        name: What is remembered.
        backbone: The broker, which has no key/value store.
        fit: A state store of this node that could keep it, were it marked.
        marked: The state store that is marked, and cannot keep it.
        why: It cannot.
        single_host: Whether it would be kept if all nodes were said to be on this machine.
    """
    text = f"{no_place(name)}: {backbone} has no key/value store"
    instead = ""
    if marked is not None:
        text += f", and {located(marked)}, which is marked by actorStateStore, cannot keep it: {why}"
        instead = f" instead of {marked.name}"
    if fit is not None:
        line = f"by this line in its spec.metadata{_at(fit)}: - {{{MARK}}}"
        text += f"; mark the state store {fit.name}{instead}, if every node reaches it, {line}"
    else:
        text += (
            f"; mark a state store that every node reaches{instead}, as this component of a resources folder: {EXAMPLE}"
        )
    if single_host:
        text += "; or set MESH_SINGLE_HOST=true, if all gateways are on this machine"
    return RecordsMissingError(text)


def located(component: Component) -> str:
    """Name a component, with where it stands."""
    return component.name + _at(component)


def _at(component: Component) -> str:
    return f" ({component.file}:{component.line})" if component.file else ""


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
