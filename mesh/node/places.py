"""Where a node keeps the mesh's own records: one place, from its first use on until the node ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from mesh import address
from mesh.blocks.records import Prefixed, located, missing, no_place, unfit
from mesh.blocks.state import is_marked
from mesh.errors import ConfigError, MissingDependencyError, RecordsMissingError
from mesh.registry import STATE_ON_BACKBONE
from mesh.resources.component import Component, MetadataEntry
from mesh.steps import Steps
from mesh.store import KeyValueStateStore, StateStore

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.broker import Broker, KeyValueProvider
    from mesh.life import Life
    from mesh.node.components import Components, Entry
    from mesh.node.spec import NodeSettings
    from mesh.registry import Registry

__all__ = ["Places", "file_component"]

OPEN_SECONDS = 30.0


def file_component(home: Path, namespace: str) -> Component:
    """Describe the store of a machine whose gateways are all there are (``MESH_SINGLE_HOST``), marked.

    Args:
        home: ``MESH_HOME``, which all of them have.
        namespace: Theirs.
    """
    file = home / "state" / f"{address.encode_token(namespace)}.db"
    # What is over is deleted, since records come and go: a file of one's own keeps it as long as nobody says how long.
    settings = {"connectionString": str(file), "actorStateStore": "true", "cleanupInterval": "1h"}
    entries = tuple(MetadataEntry(*each) for each in settings.items())
    # Several gateways of a machine that starts make it together, and load its library at once.
    return Component("statestore", "state.sqlite", entries, init_timeout=OPEN_SECONDS)


class Places(Steps):
    """Opens records; entered before whoever uses them until the end, and left after it.

    Attributes:
        in_file: Whether they are in the file of this machine.
    """

    def __init__(self, broker: Broker, components: Components, registry: Registry, settings: NodeSettings) -> None:
        """Open nothing yet.

        Args:
            broker: The backbone, entered.
            components: Of the node, as they are at any time.
            registry: Has what opens a file.
            settings: Of the node; what they say of resources is of no account.
        """
        super().__init__()
        self.in_file = False
        self._broker = broker
        self._components = components
        self._registry = registry
        self._namespace = settings.namespace
        self._single_host = settings.single_host
        self._home = settings.home
        self._held = ""
        self._file: StateStore | None = None
        self._opening = asyncio.Lock()

    async def _enter(self) -> None:
        """Nothing: what is needed is opened when it is."""

    async def open(self, name: str, *, dotted: bool = False) -> StateStore:
        """Open a store of the mesh's own: in the backbone, else in the state store that is marked for it.

        Args:
            name: What is remembered.
            dotted: Whether its keys are dotted paths of encoded tokens, so that to scan below one is cheap.

        Raises:
            RecordsMissingError: There is neither, or the store lacks what it needs.
        """
        store = address.store(self._namespace, name)
        if self._broker.features.key_value:
            return KeyValueStateStore(await cast("KeyValueProvider", self._broker).key_value(store, dotted=dotted))
        kept = await self._kept(name)
        # What can be scanned is also written in transactions; in braces, all of it is in one slot of a cluster.
        return Prefixed(kept, f"mesh||{{{store}}}||" if dotted else f"mesh||{store}||")

    def held_by(self, component: str) -> bool:
        """Tell whether records are in a component, so that whoever has them open would go on with it."""
        return component == self._held

    def marked(self) -> tuple[str, StateStore, Life] | None:
        """Give the state store that is marked for actors, if there is one: its name, the store, its life."""
        entry = self._marked("marked")
        return None if entry is None else (entry.component.name, _store(entry), entry.life)

    def _marked(self, how: str) -> Entry | None:
        return next((each for each in self._components.entries.values() if getattr(each.opened, how, False)), None)

    async def _kept(self, name: str) -> StateStore:
        entry = None if self.in_file else self._marked("remembers")
        if entry is None and not self.in_file and (absent := self._absent()):
            raise RecordsMissingError(f"{no_place(name)}: {absent}")
        if entry is None and self._single_host and self._home is not None:
            return await self._opened_file(name, file_component(self._home, self._namespace))
        if entry is not None and not unfit(name, entry.resolved, _store(entry), single_host=self._single_host):
            self._held = entry.component.name
            return _store(entry)
        raise self._missing(name)

    def _absent(self) -> str:
        """Say why the marked store is not open, if there is one: its records are there, and nowhere else meanwhile."""
        for component, why in self._components.absent.values():
            if is_marked(component):
                return f"{located(component)}, which is marked by actorStateStore, is not open: {why}"
        return ""

    def _missing(self, name: str) -> RecordsMissingError:
        stores = [
            (each.resolved, _store(each))
            for each in self._components.entries.values()
            if hasattr(each.opened, "remembers") and each.resolved.type != STATE_ON_BACKBONE
        ]
        fit = next(
            (each for each, store in stores if not unfit(name, each, store, single_host=self._single_host)), None
        )
        marked, why, would = self._marked("marked"), "", not self._single_host
        if marked is not None and marked.resolved.type == STATE_ON_BACKBONE:
            why = f"{STATE_ON_BACKBONE} needs such a place itself"
        elif marked is not None:
            why = unfit(name, marked.resolved, _store(marked), single_host=self._single_host)
            would = would and not unfit(name, marked.resolved, _store(marked), single_host=True)
        component = None if marked is None else marked.resolved
        return missing(name, self._broker.features.name, fit, component, why, single_host=would)

    async def _opened_file(self, name: str, component: Component) -> StateStore:
        self.in_file = True
        async with self._opening:
            if self._file is None:
                try:
                    adapter = self._registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
                    self._file = await self._stack.enter_async_context(adapter)
                except (ConfigError, MissingDependencyError) as error:
                    text = f"{no_place(name)}: the file of this machine (MESH_SINGLE_HOST) cannot be used: {error}"
                    raise RecordsMissingError(text) from error
                finally:
                    self.in_file = self._file is not None
            return cast("StateStore", self._file)


def _store(entry: Entry) -> StateStore:
    return cast("StateStore", entry.opened.store)  # type: ignore[attr-defined]  # a state store's
