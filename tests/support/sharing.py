"""Gives an adapter what the block of bindings gives it: a place for what it remembers, and owners."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from brokers.memory import MemoryBroker
from mesh.blocks.binding_contract import Remembering, Sharing
from mesh.calls.exchange import Exchange
from mesh.key_value import MemoryKeyValue
from mesh.operation import Caller
from mesh.ownership.asking import Owners
from mesh.store import KeyValueStateStore, StateStore

__all__ = ["provided", "running_owners"]


@asynccontextmanager
async def running_owners(records: StateStore, node: str = "node") -> AsyncIterator[Owners]:
    """Run a node's owners, on a backbone of its own: it hears no news, and looks now and then.

    Args:
        records: What nodes share.
        node: The node's id.
    """
    async with MemoryBroker() as broker, Exchange(broker) as exchange:
        owners = Owners(broker, exchange, records, Caller("default", "app"), node)
        async with owners.run():
            yield owners


@asynccontextmanager
async def provided(adapter: object, records: StateStore | None = None) -> AsyncIterator[None]:
    """Provide it, before it is entered.

    Args:
        adapter: Of a binding.
        records: For all; None = one in memory.
    """
    records = KeyValueStateStore(MemoryKeyValue()) if records is None else records
    if isinstance(adapter, Remembering):
        adapter.remember_in("in", records)
    if not isinstance(adapter, Sharing):
        yield
        return
    async with running_owners(records) as owners:
        adapter.share_by(owners, KeyValueStateStore(MemoryKeyValue(dotted=True)))
        yield
