"""``state.in-memory``: state of this process alone, gone with it. For tests and experiments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mesh.adapter import ComponentAdapter
from mesh.blocks.store import KeyValueStateStore
from mesh.key_value import MemoryKeyValue

__all__ = ["InMemoryStateStore"]


@dataclass(frozen=True, slots=True)
class InMemorySettings:
    """It has none."""


class InMemoryStateStore(ComponentAdapter, KeyValueStateStore):
    """Keys and values in the gateway's memory, gone with it. For tests and experiments."""

    tested = "in its own process"
    bound = True
    settings = InMemorySettings

    def __init__(self, settings: Any = None) -> None:
        """Start empty."""
        ComponentAdapter.__init__(self, settings)
        KeyValueStateStore.__init__(self, MemoryKeyValue())
