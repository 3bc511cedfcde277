"""Where the mesh remembers: in the backbone, else in the store that is marked, else nowhere, and that is said."""

from __future__ import annotations

import dataclasses
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Self

import pytest

from brokers.memory import MemoryBroker, MemoryHub
from mesh.blocks.durable import ACCEPT, DurableCall
from mesh.blocks.job_record import Job, Named, Schedule
from mesh.blocks.jobs import GET as GET_JOB
from mesh.blocks.jobs import SCHEDULE
from mesh.blocks.records import LazyRecords, Prefixed
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.errors import FeatureNotSupportedError, RecordsMissingError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Caller, Context, Operation
from mesh.registry import Registry
from mesh.resources.component import Component
from mesh.store import Item, StateStore
from tests.support.nodes import ask, component

CALL = DurableCall("POST", "/work", [], b"x", key="k")


class Plain(MemoryBroker):
    """A broker without key/value."""

    @property
    def features(self):  # type: ignore[no-untyped-def]
        return dataclasses.replace(super().features, key_value=False)


class Shared(MemoryBroker):
    """A broker that several nodes have."""

    hub = MemoryHub()

    @classmethod
    def from_url(cls, url: str) -> Self:
        return cls(cls.hub)


class Installed(Registry):
    def find(self, name: str) -> EntryPoint | None:
        if name in ("backbone.plain", "backbone.shared"):
            adapter = name.removeprefix("backbone.").capitalize()
            return EntryPoint(name, f"tests.unit.test_records:{adapter}", "mesh.components")
        return super().find(name)


def node(*components: Component, home: Path | None = None, backbone: str = "plain:", namespace: str = "ns") -> Runtime:
    settings = NodeSettings("app", namespace, backbone, components=components or None, home=home)
    return Runtime(settings, Installed())


async def test_neither_is_there(tmp_path: Path) -> None:
    """The first use is refused, before anything is stored; the text has the line to add."""
    stores = component("mine", "state.mesh"), component("file", "state.sqlite", connectionString=str(tmp_path / "s.db"))
    async with node(*stores) as plain:
        for asking in (
            ask(plain, ACCEPT, "callee", CALL),
            ask(plain, GET, "mine", Get("k")),
            ask(plain, SCHEDULE, "app", Schedule(Job("nightly", due_time="24h"))),
        ):
            with pytest.raises(RecordsMissingError, match=r'- \{name: actorStateStore, value: "true"\}'):
                await asking
        await ask(plain, SAVE, "file", Save([Item("k", b"1")]))


async def test_the_marked_store(tmp_path: Path) -> None:
    """Holds calls and ``state.mesh``, apart from what applications keep in it, and over a restart."""
    marked = component(
        "file", "state.sqlite", connectionString=str(tmp_path / "s.db"), actorStateStore="TRUE", keyPrefix="none"
    )
    async with node(marked, component("mine", "state.mesh")) as plain:
        call_id = await ask(plain, ACCEPT, "callee", CALL)
        await ask(plain, SCHEDULE, "app", Schedule(Job("nightly", due_time="24h")))
        await ask(plain, SAVE, "mine", Save([Item("k", b"mine")]))
        await ask(plain, SAVE, "file", Save([Item("k", b"file")]))
    async with node(marked, component("mine", "state.mesh")) as plain:
        assert await ask(plain, ACCEPT, "callee", CALL) == call_id
        assert (await ask(plain, GET, "mine", Get("k"))).value == b"mine"
        assert (await ask(plain, GET, "file", Get("k"))).value == b"file"
        assert (await ask(plain, GET_JOB, "app", Named("nightly"))).job.due_time == "24h"


async def test_the_backbone_comes_first(tmp_path: Path) -> None:
    """Where it has key/value, nothing of the mesh's is in the marked store."""
    marked = component("file", "state.sqlite", connectionString=str(tmp_path / "s.db"), actorStateStore="true")
    async with node(marked, backbone="memory:") as rich:
        await ask(rich, ACCEPT, "callee", CALL)
        assert await rich._components.all[0][1].store.keys("", "", 10) == []  # type: ignore[attr-defined]


async def test_the_default_store_is_a_file_of_this_machine(tmp_path: Path) -> None:
    """Where the backbone has no key/value; it is an application's, and none of the mesh's."""
    async with node(home=tmp_path) as plain:
        await ask(plain, SAVE, "statestore", Save([Item("k", b"1")]))
        assert [each.type for each in plain.description.components] == ["pubsub.mesh", "state.sqlite"]
        assert (tmp_path / "state" / "ns.db").exists()
        with pytest.raises(RecordsMissingError):
            await ask(plain, ACCEPT, "callee", CALL)


@pytest.mark.parametrize("backbone", ["shared:", "plain:"])
async def test_namespaces_share_nothing(tmp_path: Path, backbone: str) -> None:
    """Whatever their names and those of components are put together."""
    path = str(tmp_path / "s.db")
    marked = component("file", "state.sqlite", connectionString=path, actorStateStore="true", keyPrefix="none")

    async with (
        node(marked, component("b-c", "state.mesh"), backbone=backbone, namespace="a") as one,
        node(marked, component("c", "state.mesh"), backbone=backbone, namespace="a-b") as other,
        node(marked, component("c||b-c", "state.mesh"), backbone=backbone, namespace="a") as third,
        node(marked, component("b-c", "state.mesh"), backbone=backbone, namespace="a||c") as fourth,
    ):
        await ask(one, SAVE, "b-c", Save([Item("k", b"1")]))
        await ask(third, SAVE, "c||b-c", Save([Item("k", b"3")]))
        assert await ask(other, GET, "c", Get("k")) is None
        assert await ask(fourth, GET, "b-c", Get("k")) is None
        assert (await ask(one, GET, "b-c", Get("k"))).value == b"1"


async def test_an_idempotency_key_belongs_to_its_caller() -> None:
    """Another application, and the application of that name in another namespace, make other calls."""

    async def accepted(namespace: str, app_id: str) -> object:
        return await mesh.run(Operation(ACCEPT, "callee", CALL, Context(Caller(namespace, app_id))))

    async with node(backbone="memory:") as mesh:
        ids = [await accepted(*caller) for caller in (("ns", "a"), ("ns", "a"), ("other", "a"), ("ns", "b"))]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("backbone", ["memory:", "plain:"])
async def test_records_below_a_path(tmp_path: Path, backbone: str) -> None:
    """They are read in order, wherever they are kept, and apart from those of other names."""
    path = str(tmp_path / "s.db")
    marked = component("file", "state.sqlite", connectionString=path, actorStateStore="true", keyPrefix="none")
    async with node(marked, backbone=backbone) as mesh:
        opened = partial(mesh._records, dotted=True)
        records, other = LazyRecords("mesh:one", opened), LazyRecords("mesh:two", opened, 5.0)
        names = [f"t.a.{number:02}" for number in range(20)]
        assert list(await records.save_each([Item(name, name.encode()) for name in names])) == [None] * 20
        await other.write([Item("t.a.other", b"1"), Item("t.ab.k", b"1")])
        await records.write([Item(names[3], None), Item("t.ab.k", b"1")])
        live = [name for name in names if name != names[3]]
        found = [*await records.scan("t.a.", "", 7), *await records.scan("t.a.", live[6], 100)]
        assert [(key, stored.value) for key, stored in found] == [(name, name.encode()) for name in live]
        assert list(await records.get_many(names[2:5])) == [found[2][1], None, found[3][1]]
        assert [key for key, _ in await other.scan("t.a.", "", 100)] == ["t.a.other"]


async def test_a_store_that_lists_no_keys_cannot_be_scanned() -> None:
    with pytest.raises(FeatureNotSupportedError, match="listing keys"):
        await Prefixed(StateStore(), "mesh||one||").scan("t.", "", 10)


async def test_reminders_and_jobs_are_laid_out_alike() -> None:
    """They are in one store, in which a partition can be read without all others."""
    async with node(backbone="memory:") as mesh:
        reminders = await mesh.services["actors"]._records.opened()  # type: ignore[attr-defined]
        jobs = (await mesh.services["jobs"]._opened()).timers  # type: ignore[attr-defined]
        assert reminders._key_value.dotted
        assert jobs._records._key_value.dotted
        await reminders.write([Item("timer.k.000.a.n", b"1")])
        assert [key for key, _ in await jobs._records.scan("timer.k.000.", "", 9)] == ["timer.k.000.a.n"]
