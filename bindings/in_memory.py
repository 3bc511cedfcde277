"""``state.in-memory``: state of this process alone, gone with it. For tests and experiments."""

from __future__ import annotations

from mesh.blocks.state import KeyValueStateStore
from mesh.key_value import MemoryKeyValue
from mesh.resources.component import Component

__all__ = ["InMemoryStateStore"]


class InMemoryStateStore(KeyValueStateStore):
    """Keys and values in a dictionary."""

    def __init__(self, component: Component) -> None:
        """Start empty; it has no settings of its own."""
        super().__init__(MemoryKeyValue())
