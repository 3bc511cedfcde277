"""``state.in-memory``: state of this process alone, gone with it. For tests and experiments."""

from __future__ import annotations

from typing import Self

from mesh.blocks.store import KeyValueStateStore
from mesh.key_value import MemoryKeyValue
from mesh.resources.component import Component

__all__ = ["InMemoryStateStore"]


class InMemoryStateStore(KeyValueStateStore):
    """Keys and values in a dictionary."""

    bound = True
    settings = ()

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Start empty; it has no settings of its own."""
        return cls(MemoryKeyValue())

    async def __aenter__(self) -> Self:
        """Need nothing."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Hold nothing."""
