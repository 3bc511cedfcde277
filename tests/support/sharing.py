"""Gives an adapter what the block of bindings gives it: a place for what it remembers, and owners."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

from brokers.memory import MemoryBroker, MemoryHub
from mesh.blocks.binding_contract import Remembering, Sharing
from mesh.calls.exchange import Exchange
from mesh.key_value import MemoryKeyValue
from mesh.operation import Caller
from mesh.ownership.asking import Owners
from mesh.store import KeyValueStateStore, StateStore

__all__ = ["entered", "running_owners"]

_hubs: WeakKeyDictionary[StateStore, MemoryHub] = WeakKeyDictionary()
_numbers = itertools.count()


@asynccontextmanager
async def running_owners(records: StateStore) -> AsyncIterator[Owners]:
    """Run the owners of one node more, of all that have these records."""
    async with MemoryBroker(_hubs.setdefault(records, MemoryHub())) as broker, Exchange(broker) as exchange:
        owners = Owners(broker, exchange, records, Caller("default", "app"), f"node{next(_numbers)}")
        async with owners.run():
            yield owners


@asynccontextmanager
async def entered(
    adapter: Any, records: StateStore | None = None, timers: StateStore | None = None
) -> AsyncIterator[Any]:
    """Enter it on a node of its own.

    Args:
        adapter: Of a binding.
        records: For all that it keeps but its timers; None = in memory.
        timers: For those, with dotted keys; None = in memory.
    """
    records = KeyValueStateStore(MemoryKeyValue()) if records is None else records
    if isinstance(adapter, Remembering):
        adapter.remember_in("in", records)
    if not isinstance(adapter, Sharing):
        async with adapter:
            yield adapter
        return
    async with running_owners(records) as owners:
        adapter.share_by(owners, timers or KeyValueStateStore(MemoryKeyValue(dotted=True)))
        async with adapter:
            yield adapter
