"""Components on another node: what is tried again, and what the caller is told when a host is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import pytest

from mesh.blocks.state import SAVE, TRANSACT, Save
from mesh.blocks.store import Concurrency, Item, KeyValueStateStore
from mesh.errors import BrokerUnavailableError, MeshError, NoResponderError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.operation import Method
from mesh.policies import Retry
from mesh.resources.resiliency import ComponentTarget, Resiliency, Target
from tests.support.nodes import MemoryMesh, ask, component, node

FIRST = [Item(key, b"1", None, Concurrency.FIRST_WRITE) for key in "abc"]
ANY = [Item(key, b"1") for key in "abc"]


class Failing(KeyValueStateStore):
    """A store that does its third write, or one of a transaction, and then fails; once."""

    def __init__(self, error: MeshError) -> None:
        super().__init__(MemoryKeyValue())
        self.error = error
        self.writes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def write(self, items: Sequence[Item]) -> None:
        self.writes += 1
        if self.writes == (1 if len(items) > 1 else 3):
            if not isinstance(self.error, StateError):  # Which says that nothing was done.
                await super().write(items)
            raise self.error
        await super().write(items)


ANSWERS = [
    # method, items, what fails, hosted, with a policy, what the caller is told, writes
    (SAVE, FIRST, StateError("full"), True, True, StateError, 3),
    (SAVE, ANY, StateError("full"), True, True, None, 6),
    (SAVE, FIRST, StateError("full"), False, True, None, 4),
    (SAVE, FIRST, BrokerUnavailableError("away"), True, True, BrokerUnavailableError, 3),
    (SAVE, FIRST, BrokerUnavailableError("away"), False, True, BrokerUnavailableError, 3),
    (SAVE, ANY, BrokerUnavailableError("away"), True, True, None, 6),
    (SAVE, ANY, BrokerUnavailableError("away"), True, False, BrokerUnavailableError, 3),
    (SAVE, FIRST, BrokerUnavailableError("away"), True, False, BrokerUnavailableError, 3),
    (SAVE, ANY, NoResponderError("away"), True, False, NoResponderError, 3),
    (TRANSACT, FIRST, StateError("full"), True, True, None, 2),
    (TRANSACT, FIRST, BrokerUnavailableError("away"), True, True, BrokerUnavailableError, 1),
]


@pytest.mark.parametrize(("method", "items", "error", "hosted", "policy", "told", "writes"), ANSWERS)
async def test_a_write_does_not_conflict_with_itself(
    method: Method,
    items: list[Item],
    error: MeshError,
    hosted: bool,
    policy: bool,
    told: type[MeshError] | None,
    writes: int,
) -> None:
    """Tried again is what certainly did nothing, or may be done twice; anything else is the caller's to repeat."""
    store = Failing(error)
    mesh = MemoryMesh(failing=lambda: store)
    target = ComponentTarget(outbound=Target(retry="again"))
    resiliency = Resiliency("r", retries={"again": Retry(interval=0.0, max_retries=3)}, components={"store": target})
    settings = {"registry": mesh, "resiliencies": [resiliency] if policy else []}
    host = node("memory:", "ns", component("store", "state.failing"), app_id="host", **settings)
    async with host, node("memory:", "ns", app_id="asker", **settings) as asker:
        asking = ask(asker if hosted else host, method, "store", Save(items), app_id="app")
        if told is None:
            await asking
        else:
            with pytest.raises(told) as raised:
                await asking
            assert raised.value.retryable
    assert store.writes == writes
