"""``state.in-memory``: state of this process alone, gone with it. For tests and experiments."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from mesh.adapter import ComponentAdapter
from mesh.blocks import matching
from mesh.key_value import MemoryKeyValue
from mesh.query import Queried, Query
from mesh.store import CAPABILITIES, KeyValueStateStore

__all__ = ["InMemoryStateStore"]


@dataclass(frozen=True, slots=True)
class InMemorySettings:
    """It has none."""


class InMemoryStateStore(ComponentAdapter, KeyValueStateStore):
    """Keys and values in the gateway's memory, gone with it. For tests and experiments."""

    tested = "in its own process"
    bound = True
    volatile = True
    settings = InMemorySettings
    capabilities = (*CAPABILITIES, "QUERY_API")

    def __init__(self, settings: Any = None) -> None:
        """Start empty."""
        ComponentAdapter.__init__(self, settings)
        self._values = MemoryKeyValue()
        KeyValueStateStore.__init__(self, self._values)

    async def query(self, query: Query, prefix: str) -> Queried:
        """Find values by their contents; looks at each, as there is no index."""
        entries = [(key, entry) async for key in self._values.keys(prefix) if (entry := await self._values.get(key))]
        found = [(key, entry.value, str(entry.revision)) for key, entry in entries]
        return await asyncio.to_thread(matching.run, query, found)  # With many values it takes a while.
