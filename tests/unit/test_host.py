"""Components on another node: what is tried again, and what the caller is told when a host is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from gateway.errors import row_of
from mesh.blocks import BLOCKS
from mesh.blocks.state import BULK_GET, GET, SAVE, TRANSACT, BulkGet, Get, Save
from mesh.errors import (
    AnswerTooLargeError,
    BrokerUnavailableError,
    ComponentNotFoundError,
    ConfigError,
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
from mesh.resources.component import Component, MetadataEntry, SecretRef
from mesh.resources.resiliency import ComponentTarget, Resiliency, Target
from mesh.store import Concurrency, Item, KeyValueStateStore, Stored
from tests.support.eventually import eventually
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


async def test_a_bulk_read_is_bounded_by_the_host() -> None:
    """Before anything of it crosses the backbone; a repeated key is answered as often."""
    mesh = MemoryMesh()
    store = component("store", "state.in-memory", placement="backbone")
    async with (
        node("memory:", "ns", app_id="asker", registry=mesh) as asker,
        node("memory:", "ns", store, app_id="host", registry=mesh),
    ):
        await ask(asker, SAVE, "store", Save([Item("k", bytes(3 * 2**20))]))
        found = await ask(asker, BULK_GET, "store", BulkGet(("k", "none", "k")))
        assert [each and len(each.value) for each in found] == [3 * 2**20, None, 3 * 2**20]  # type: ignore[attr-defined]
        error = await asked(ask(asker, BULK_GET, "store", BulkGet(("k",) * 200)))
        assert isinstance(error, AnswerTooLargeError)
        assert "ask for fewer keys at once" in str(error)


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


def told_of_hosts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "another node's" in each.getMessage()]


async def test_what_a_node_withholds_at_another_node_is_no_way_around() -> None:
    """A host that has the component in its files does not ask a less strict one; who has not named it does."""
    mesh = MemoryMesh()
    strict = component("store", "state.in-memory", placement="backbone", scopes=["friend"])
    hosts = node("memory:", "ns", component("store", "state.in-memory", placement="backbone"), registry=mesh)
    async with (
        hosts,
        node("memory:", "ns", strict, app_id="strict", registry=mesh, host_only=True) as host,
        node("memory:", "ns", app_id="asker", registry=mesh) as asker,
    ):
        await ask(asker, SAVE, "store", Save([Item("k", b"1")]))
        assert isinstance(await asked(ask(host, GET, "store", Get("k"))), ComponentNotFoundError)
        assert isinstance(await asked(host.services["state"].find("store", host.caller)), ComponentNotFoundError)  # type: ignore[attr-defined]


async def test_a_reference_to_a_secret_store_that_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value is not read from another node's store of that name."""
    monkeypatch.setenv("OTHERS_SECRET", "x")
    mesh = MemoryMesh()
    hosted = component("vault", "secretstores.local.env", placement="backbone")
    refers = Component(
        "store",
        "state.in-memory",
        (MetadataEntry("keyPrefix", SecretRef("OTHERS_SECRET", "OTHERS_SECRET")),),
        auth_secret_store="vault",
    )
    async with node("memory:", "ns", hosted, app_id="host", registry=mesh):
        async with node("memory:", "ns", refers, app_id="asker", registry=mesh):
            pass
        withheld = replace(hosted, scopes=("other",))
        with pytest.raises(ConfigError, match="refers to the secret 'OTHERS_SECRET'"):
            async with node("memory:", "ns", refers, withheld, app_id="asker", registry=mesh):
                pass


async def test_whose_a_component_is_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """When it is first found, and when another node is found to have it; of one's own nothing is told."""
    caplog.set_level(logging.INFO)
    mesh = MemoryMesh()
    store = component("pgv1", "state.in-memory", placement="backbone")

    async def saved() -> None:
        try:
            await ask(asker, SAVE, "pgv1", Save([Item("k", b"1")]))
        except HostsGoneError as error:  # For a moment nobody looks for it again.
            raise AssertionError from error

    async def come_and_go(app_id: str) -> None:
        async with node("memory:", "ns", store, app_id=app_id, registry=mesh) as host:
            await eventually(saved)
            await ask(asker, GET, "pgv1", Get("k"))
            await ask(host, GET, "pgv1", Get("k"))
        assert isinstance(await asked(ask(asker, GET, "pgv1", Get("k"))), HostsGoneError)

    async with node("memory:", "ns", app_id="asker", registry=mesh) as asker:
        await come_and_go("myapp")
        await come_and_go("myapp")
        assert told_of_hosts(caplog) == ["state store pgv1 is another node's: myapp"]
        await come_and_go("second")
        assert told_of_hosts(caplog)[1:] == ["state store pgv1 is another node's: second"]


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
