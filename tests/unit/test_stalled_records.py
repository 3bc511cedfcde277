"""A store of the mesh's own that stalls: no delivery waits for it for long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from brokers.memory import MemoryBroker
from mesh.blocks.durable import ACCEPT, DurableCall
from mesh.blocks.topics import PUBLISH, Publish
from mesh.broker import Entry, KeyValue
from mesh.key_value import MemoryKeyValue
from mesh.node.runtime import NodeSettings, Runtime
from mesh.registry import Registry
from mesh.resources.subscription import Subscription
from mesh.telemetry import DURABLE_CALLS, EVENTS_DELIVERED
from tests.support.eventually import eventually
from tests.support.nodes import ask
from tests.unit.test_runtime import App


class Silent(MemoryKeyValue):
    """A store that answers until it does not."""

    silent = False

    async def get(self, key: str, *, strong: bool = False) -> Entry | None:
        if self.silent:
            await asyncio.Event().wait()
        return await super().get(key, strong=strong)


class Remembering(MemoryBroker):
    """A broker that keeps all records in one such store."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = Silent()

    async def key_value(self, name: str, *, dotted: bool = False) -> KeyValue:
        return self.kept


class RememberingRegistry(Registry):
    def load(self, name: str, layout: str = "") -> type:
        return Remembering if name == "backbone.memory" else super().load(name, layout)


async def test_records_that_do_not_answer_hold_no_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look one up is bounded: it is an attempt that failed, of an event and of a durable call."""
    for block in ("pubsub", "durable"):
        monkeypatch.setattr(f"mesh.blocks.{block}.RECORD_SECONDS", 0.2)

    async def programmatic() -> Sequence[Subscription]:
        return [Subscription("", "pubsub", "t", default_path="/t", metadata={"deduplicate": "1m"})]

    runtime = Runtime(NodeSettings("app", "default", "memory:"), RememberingRegistry())
    async with runtime, runtime.inbound(App(), programmatic):

        def serves() -> None:
            assert runtime.serving

        await eventually(serves)
        cast("Remembering", runtime.broker).kept.silent = True
        await ask(runtime, ACCEPT, "app", DurableCall("POST", "/work", [], b"x"))
        await ask(runtime, PUBLISH, "pubsub", Publish("t", b"1", "application/json", {}))

        def failed() -> None:
            counts = runtime.counters.snapshot()
            assert counts.get((DURABLE_CALLS, "app", "retry"))
            assert counts.get((EVENTS_DELIVERED, "pubsub", "t", "retry"))

        await eventually(failed)
