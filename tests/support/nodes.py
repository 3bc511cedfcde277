"""Nodes in the process of a test, without HTTP: what asks, and what hosts."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any, cast

from brokers.memory import MemoryBroker, MemoryHub
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Caller, Context, Method, Operation
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry, Secret

__all__ = ["MemoryMesh", "ask", "component", "node", "unique"]

_numbers = itertools.count()


def unique(what: str) -> str:
    """Give a name that no other test uses."""
    return f"{what}{os.getpid()}-{next(_numbers)}"


def component(
    name: str,
    kind: str,
    *,
    version: str = "v1",
    placement: str | None = None,
    scopes: Sequence[str] = (),
    **settings: str | Secret,
) -> Any:
    """Make a component."""
    metadata = tuple(MetadataEntry(key, value) for key, value in settings.items())
    return Component(name, kind, metadata, version=version, placement=placement, scopes=tuple(scopes))


class MemoryMesh(Registry):
    """Has all nodes on ``memory:`` be on one mesh, and types of components that a test brings along."""

    def __init__(self, **types: Callable[[], object]) -> None:
        super().__init__()
        hub = MemoryHub()
        self._made = {"backbone.memory": SimpleNamespace(from_url=lambda url: MemoryBroker(hub))}
        for name, make in types.items():
            self._made[f"state.{name}"] = SimpleNamespace(from_component=lambda _, make=make: make())

    def find(self, name: str) -> EntryPoint | None:
        """Find a test's type as well."""
        return EntryPoint(name, "", "") if name in self._made else super().find(name)

    def load(self, name: str, layout: str = "") -> type:
        """Give what is of this mesh."""
        return cast("type", self._made[name]) if name in self._made else super().load(name, layout)


def node(
    backbone: str,
    namespace: str,
    *components: Component,
    app_id: str = "app",
    registry: Registry | None = None,
    **settings: Any,
) -> Runtime:
    """Make a node; entering starts it."""
    made = NodeSettings(app_id, namespace, backbone, components=components, **settings)
    return Runtime(made, Registry() if registry is None else registry)


async def ask(
    runtime: Runtime,
    method: Method,
    target: str,
    arguments: object,
    *,
    app_id: str | None = None,
    deadline: float | None = None,
) -> Any:
    """Ask for an operation as the node's application, or as another one."""
    caller = runtime.caller if app_id is None else Caller(runtime.settings.namespace, app_id)
    return await runtime.run(Operation(method, target, _copied(arguments), Context(caller, deadline)))


def _copied(arguments: object) -> object:
    """Arguments may be used up; a test asks with the same again."""
    items = getattr(arguments, "items", None)
    if items is None or not dataclasses.is_dataclass(arguments) or isinstance(arguments, type):
        return arguments
    return dataclasses.replace(arguments, items=type(items)(items))
