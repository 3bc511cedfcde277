"""Components on another node: what is tried again, and what the caller is told when a host is gone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

from gateway.errors import row_of
from mesh.blocks import BLOCKS
from mesh.blocks.state import GET, SAVE, TRANSACT, Get, Save
from mesh.blocks.store import Concurrency, Item, KeyValueStateStore, Stored
from mesh.errors import (
    BrokerUnavailableError,
    HostsDifferError,
    HostsGoneError,
    MeshError,
    NoResponderError,
    RemoteError,
    StateError,
)
from mesh.key_value import MemoryKeyValue
from mesh.node.runtime import NodeSettings, Runtime
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


class Hanging(KeyValueStateStore):
    """A store that never answers a read."""

    def __init__(self) -> None:
        super().__init__(MemoryKeyValue())
        self.asked = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_host_that_leaves_waits_no_longer_than_it_may() -> None:
    """Its caller is told at once, by an error that may be repeated."""
    store = Hanging()
    mesh = MemoryMesh(hanging=lambda: store)
    settings = NodeSettings("host", "ns", "memory:", components=[component("store", "state.hanging")])
    async with node("memory:", "ns", app_id="asker", registry=mesh) as asker, asyncio.TaskGroup() as tasks:
        async with Runtime(settings, mesh, grace=lambda: 0.1):
            deadline = time.time() + 120
            asking = tasks.create_task(asked(ask(asker, GET, "store", Get("k"), deadline=deadline)))
            await store.asked.wait()
        error = await asking
        assert time.time() < deadline - 60
        assert error.retryable


async def asked(asking: Awaitable[object]) -> MeshError:
    with pytest.raises(MeshError) as raised:
        await asking
    return raised.value


async def test_hosts_that_are_gone_are_one_error() -> None:
    """From the first operation on, whether it is found out by asking or remembered; and one answer for every block."""
    mesh = MemoryMesh(failing=lambda: Failing(StateError("full")))
    async with node("memory:", "ns", app_id="asker", registry=mesh) as asker:
        async with node("memory:", "ns", component("store", "state.failing"), app_id="host", registry=mesh):
            await ask(asker, SAVE, "store", Save([Item("k", b"1")]))
        for asking in (ask(asker, GET, "store", Get("k")), asker.services["state"].find("store", asker.caller)):  # type: ignore[attr-defined]
            assert isinstance(await asked(asking), HostsGoneError)


@pytest.mark.parametrize("method", [None, *(method for block in BLOCKS if block.hosted for method in block.methods)])
@pytest.mark.parametrize(
    ("error", "told"),
    [(HostsGoneError("gone"), (503, "ERR_BROKER")), (HostsDifferError("s", "differ"), (500, "ERR_COMPONENT"))],
)
def test_what_clients_are_told_of_hosts(error: MeshError, told: tuple[int, str], method: Method | None) -> None:
    """The same when the component is looked for and when it is asked."""
    row = row_of(error, method)
    assert (row.status, row.code) == told


async def test_hosts_of_other_scopes_are_not_mixed() -> None:
    """Whoever one of them admits is not sent to the other; that the scopes differ is no error for who is in both."""
    mesh = MemoryMesh()

    def host(app_id: str, *scopes: str) -> Runtime:
        store = component("store", "state.in-memory", placement="backbone", scopes=scopes)
        return node("memory:", "ns", store, app_id=app_id, registry=mesh, host_only=True)

    async with (
        node("memory:", "ns", app_id="asker", registry=mesh) as asker,
        host("one", "friend", "both"),
        host("two", "neighbour", "both"),
    ):
        for app_id in ("friend", "neighbour", "both"):
            await ask(asker, SAVE, "store", Save([Item("k", app_id.encode())]), app_id=app_id)
            for _ in range(10):
                stored = await ask(asker, GET, "store", Get("k"), app_id=app_id)
                assert stored.value == app_id.encode()


async def test_an_adapter_that_fails_in_its_own_way() -> None:
    """Its caller is told what its own application would be: no stream broke, and it is not for a policy to repeat."""
    store = Failing(RuntimeError("a defect"))  # type: ignore[arg-type]
    mesh = MemoryMesh(failing=lambda: store)
    host = node("memory:", "ns", component("store", "state.failing"), app_id="host", registry=mesh)
    async with host, node("memory:", "ns", app_id="asker", registry=mesh) as asker:
        error = await asked(ask(asker, TRANSACT, "store", Save(FIRST)))
        assert isinstance(error, RemoteError)
        assert "RuntimeError" in str(error)
        assert not error.retryable
        assert await ask(asker, GET, "store", Get("a")) is not None


async def test_a_setting_may_be_any_bytes(tmp_path: Path) -> None:
    """As the name of a file that a variable holds."""
    file = os.fsdecode(bytes(tmp_path) + b"/\xff.db")
    store = component("store", "state.sqlite", placement="backbone", connectionString=file)
    mesh = MemoryMesh()
    async with node("memory:", "ns", store, registry=mesh), node("memory:", "ns", registry=mesh) as asker:
        await ask(asker, SAVE, "store", Save([Item("k", b"1")]))
        assert (await ask(asker, GET, "store", Get("k"))).value == b"1"
