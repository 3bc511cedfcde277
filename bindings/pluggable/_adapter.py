"""What the adapters to pluggable components have in common: how a component is found, and told its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bindings.pluggable._connection import Connection, Failed
from bindings.pluggable._hidden import hiding
from bindings.pluggable._messages import Message, message, method
from mesh.adapter import ComponentAdapter
from mesh.errors import ConfigError, MeshError
from mesh.resources.component import Component
from mesh.sockets import find_socket

__all__ = ["Plugged", "PluggableAdapter"]

# The block does this itself; no program of others needs the keys.
KEPT = frozenset({"primaryencryptionkey", "secondaryencryptionkey"})


@dataclass(frozen=True, slots=True)
class Plugged:
    """What a component is told, and where.

    Attributes:
        path: Its socket.
        name: Of the component.
        properties: Its settings.
        prefix: Put before every topic; ``{space}`` in it stands for ``Address.space``.
        shown: Gives a text of the component without the secrets of its settings.
    """

    path: Path
    name: str
    properties: Mapping[str, str] = field(repr=False)
    prefix: str = ""
    shown: Callable[[str], str] = str


class PluggableAdapter(ComponentAdapter):
    """A component that a program of a third party is; its settings are that program's.

    Attributes:
        service: What it must have.
        features: What it says that it can do, once entered.
        services: What it has, once entered.
    """

    title = "A program of a third party that answers Dapr's gRPC services for pluggable components on a socket."
    tested = "a component made with the official gRPC library for Python"
    service: str
    _settings: Plugged
    _connection: Connection

    def __init__(self, plugged: Plugged) -> None:
        """Prepare; entering connects."""
        super().__init__(plugged)
        self._features: frozenset[str] = frozenset()
        self._services: frozenset[str] = frozenset()

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Find the socket; raises ``ConfigError`` when it is gone, or there are two of the name."""
        path = find_socket(component.type)
        if path is None:
            raise ConfigError(component.type_problem(f"the socket of {component.type} is gone"))
        properties = {entry.name: entry.text() or "" for entry in component.metadata if entry.name.lower() not in KEPT}
        made = cls(Plugged(path, component.name, properties, shown=hiding(component.metadata)))
        made._component = component
        return made

    async def _enter(self) -> None:
        """Connect, see that it is what its type says, and tell it its settings."""
        plugged = self._settings
        self._connection = Connection(plugged.path, plugged.name, self.service, self._initialise, plugged.shown)
        self._stack.push_async_callback(self._connection.close)
        try:
            self._services = await self._connection.services()
            self._see(plugged.path)
            self._connection.service = self.service
            await self._connection.connect()
        except Failed as failed:
            # What it refuses here, it would refuse again.
            raise (self._problem(str(failed)) if failed.final else self._error(failed)) from None

    def _see(self, path: Path) -> None:
        if self.service not in self._services:
            there = ", ".join(sorted(name for name in self._services if not name.startswith("grpc."))) or "none"
            raise self._problem(f"the pluggable component at {path} has no service {self.service}; it has: {there}")

    async def _initialise(self, connection: Connection, **more: str) -> None:
        await self._init(connection, self.service, **more)
        told = await connection.call(self.service, "Features", message("FeaturesRequest")(), first=True)
        self._features = frozenset(told.features)

    async def _init(self, connection: Connection, service: str, **more: str) -> None:
        """Tell a service the settings."""
        request = message(method(service, "Init").input_type.name)
        others = {name.lower() for name in more}
        kept = {name: text for name, text in self._settings.properties.items() if name.lower() not in others}
        await connection.call(service, "Init", request(metadata={"properties": {**kept, **more}}), first=True)

    async def check(self) -> None:
        """Ask for a sign of life."""
        await self._ask("Ping", message("PingRequest")())

    async def _ask(self, name: str, request: Message, service: str = "") -> Message:
        try:
            return await self._connection.call(service or self.service, name, request)
        except Failed as failed:
            raise self._error(failed) from None

    def _error(self, failed: Failed) -> MeshError:
        """Make the block's error of a failure."""
        raise NotImplementedError
