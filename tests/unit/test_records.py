"""Where the mesh remembers: in the backbone, else in the store that is marked, else nowhere, and that is said."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from brokers.memory import MemoryBroker, MemoryHub
from mesh.adapter import ComponentAdapter
from mesh.blocks.durable import ACCEPT, DurableCall
from mesh.blocks.job_record import Job, Named, Schedule
from mesh.blocks.jobs import GET as GET_JOB
from mesh.blocks.jobs import SCHEDULE
from mesh.blocks.records import LazyRecords, Prefixed
from mesh.blocks.state import GET, SAVE, Get, Save, is_marked
from mesh.errors import FeatureNotSupportedError, MissingDependencyError, RecordsMissingError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.node.components import Entry, open_component
from mesh.node.reload import Told
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Caller, Context, Method, Operation
from mesh.registry import Registry
from mesh.resources.component import Component, SecretRef
from mesh.resources.loader import load_resources
from mesh.resources.settings import setting
from mesh.store import CAPABILITIES, Item, KeyValueStateStore, StateStore
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
        if name in OWN_TYPES:
            return EntryPoint(name, f"tests.unit.test_records:{OWN_TYPES[name]}", "mesh.components")
        return super().find(name)


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    server: str = setting("server", "Which one.", required=True)
    lacks: str = setting("lacks", "What it cannot.", default="")


class Server(ComponentAdapter, KeyValueStateStore):
    """A state store that every node reaches: all that name one server have the same."""

    settings = ServerSettings
    servers: ClassVar[dict[str, MemoryKeyValue]] = {}

    def __init__(self, settings: ServerSettings) -> None:
        ComponentAdapter.__init__(self, settings)
        KeyValueStateStore.__init__(self, self.servers.setdefault(settings.server, MemoryKeyValue()))
        self.capabilities = [each for each in CAPABILITIES if each not in settings.lacks.split()]


OWN_TYPES = {"backbone.plain": "Plain", "backbone.shared": "Shared", "state.server": "Server"}


def server(name: str, marked: bool, file: str | None = None, **more: str) -> Component:
    """Describe a store on a server of this test session's own."""
    made: Component = component(name, "state.server", actorStateStore=str(marked), keyPrefix="none", **more)
    return dataclasses.replace(made, file=file, line=file and 7)


def node(
    *components: Component,
    home: Path | None = None,
    backbone: str = "plain:",
    namespace: str = "ns",
    single_host: bool = False,
) -> Runtime:
    settings = NodeSettings(
        "app", namespace, backbone, components=components or None, home=home, single_host=single_host
    )
    return Runtime(settings, Installed())


async def reload(runtime: Runtime, *components: Component) -> Told:
    return await runtime.reload(dataclasses.replace(runtime.settings, components=components))


async def refusal(runtime: Runtime, name: str = "mine") -> str:
    """Give what is said of ``state.mesh``."""
    with pytest.raises(RecordsMissingError) as refused:
        await ask(runtime, GET, name, Get("k"))
    return str(refused.value)


async def test_neither_is_there(tmp_path: Path) -> None:
    """The first use is refused, before anything is stored; the text has a component that would be a place."""
    stores = component("mine", "state.mesh"), component("file", "state.sqlite", connectionString=str(tmp_path / "s.db"))
    async with node(*stores) as plain:
        for what, method, target, arguments in (
            ("durable calls", ACCEPT, "callee", CALL),
            ("the state of mine", GET, "mine", Get("k")),
            ("jobs, reminders and timers", SCHEDULE, "app", Schedule(Job("nightly", due_time="24h"))),
        ):
            with pytest.raises(RecordsMissingError) as refused:
                await ask(plain, method, target, arguments)
            text = str(refused.value)
            assert text.startswith(f"there is no place to keep {what}: memory has no key/value store; mark a state ")
            assert text.endswith("; or set MESH_SINGLE_HOST=true, if all gateways are on this machine")
        await ask(plain, SAVE, "file", Save([Item("k", b"1")]))
    example = tmp_path / "example.yaml"
    example.write_text(text[text.index("{") : text.rindex("}") + 1])
    [written] = load_resources([example]).components
    assert is_marked(written)


async def test_a_store_that_could_be_marked() -> None:
    """It is named with its file, and the line to add; that of a mark that stands elsewhere is named too."""
    line = 'this line in its spec.metadata (r/shared.yaml:7): - {name: actorStateStore, value: "true"}'
    weak, fit = server("weak", False, server="1", lacks="TTL"), server("shared", False, "r/shared.yaml", server="1")
    async with node(component("mine", "state.mesh"), weak, fit) as plain:
        assert f"; mark the state store shared, if every node reaches it, by {line}; or set" in await refusal(plain)
    async with node(component("mine", "state.mesh", actorStateStore="true"), fit) as plain:
        text = await refusal(plain)
        assert "and mine, which is marked by actorStateStore, cannot keep it: state.mesh needs such a place" in text
        assert f"; mark the state store shared instead of mine, if every node reaches it, by {line}; or set" in text


@pytest.mark.parametrize(
    ("lacks", "method", "arguments", "said"),
    [
        ("ETAG", GET, Get("k"), "no ETAG"),
        ("TRANSACTIONAL TTL", GET, Get("k"), "no TTL and no TRANSACTIONAL"),
        ("TTL", ACCEPT, CALL, "no TTL"),
        ("KEYS", SCHEDULE, Schedule(Job("nightly", due_time="24h")), "no KEYS"),
    ],
)
async def test_a_marked_store_that_lacks_an_ability(lacks: str, method: Method, arguments: object, said: str) -> None:
    """It is refused by its name, its file, and what it lacks."""
    marked = server("shared", True, "r/shared.yaml", server="2", lacks=lacks)
    async with node(component("mine", "state.mesh"), marked) as plain:
        with pytest.raises(RecordsMissingError) as refused:
            await ask(plain, method, "mine" if method is GET else "app", arguments)
        told = (
            f"and shared (r/shared.yaml:7), which is marked by actorStateStore, cannot keep it: it has {said}; mark a"
        )
        assert told in str(refused.value)
        assert "MESH_SINGLE_HOST" not in str(refused.value)


async def test_a_marked_store_that_other_nodes_do_not_have(tmp_path: Path) -> None:
    """One of this machine is a place if the user says that it is the only one; one of this process never is."""
    file = component("file", "state.sqlite", connectionString=str(tmp_path / "s.db"), actorStateStore="true")
    mine = component("mine", "state.mesh")
    async with node(mine, file) as plain:
        text = await refusal(plain)
        assert "file, which is marked by actorStateStore, cannot keep it: state.sqlite is on this machine alone" in text
        assert text.endswith("or set MESH_SINGLE_HOST=true, if all gateways are on this machine")
    async with node(mine, file, single_host=True) as plain:
        await ask(plain, SAVE, "mine", Save([Item("k", b"1")]))
    for kind, more in (("state.in-memory", {}), ("state.sqlite", {"connectionString": ":memory:"})):
        marked = component("s", kind, actorStateStore="true", **more)
        async with node(mine, marked, single_host=True, home=tmp_path) as plain:
            text = await refusal(plain)
            assert f"s, which is marked by actorStateStore, cannot keep it: {kind} is gone with this process" in text


async def test_two_homes_and_one_marked_store(tmp_path: Path) -> None:
    """What one node keeps, another one finds; applications' keys of the store are others, whatever they are called."""
    stores = server("shared", True, server="3"), component("mine", "state.mesh", keyPrefix="none")
    async with node(*stores, home=tmp_path / "1") as one, node(*stores, home=tmp_path / "2") as two:
        await ask(one, SAVE, "mine", Save([Item("k", b"mine")]))
        await ask(one, SAVE, "shared", Save([Item("k", b"shared")]))
        assert (await ask(two, GET, "mine", Get("k"))).value == b"mine"
        assert (await ask(two, GET, "shared", Get("k"))).value == b"shared"
        assert await ask(one, ACCEPT, "callee", CALL) == await ask(two, ACCEPT, "callee", CALL)
    assert not [*tmp_path.iterdir()], "there is a file"


async def test_a_marked_store_that_could_not_be_opened(tmp_path: Path) -> None:
    """What is in it is nowhere else meanwhile, on a single host neither; once it is open it is used."""
    broken = component("shared", "state.server", actorStateStore="true")
    broken = dataclasses.replace(broken, file="r/shared.yaml", line=7, ignore_errors=True)
    mine = component("mine", "state.mesh")
    async with node(mine, broken, home=tmp_path, single_host=True) as plain:
        text = await refusal(plain)
        assert "mine: shared (r/shared.yaml:7), which is marked by actorStateStore, is not open: " in text
        assert "the setting server is missing" in text
        assert not (await reload(plain, mine, server("shared", True, server="8"))).kept
        await ask(plain, SAVE, "mine", Save([Item("k", b"1")]))
    assert not [*tmp_path.iterdir()]


async def test_a_store_is_marked_later() -> None:
    """What was refused works without a restart. The mark stays from the first use on, and may go until then."""
    mine = component("mine", "state.mesh")
    async with node(mine, server("shared", False, server="4")) as plain:
        await refusal(plain)
        assert not (await reload(plain, mine, server("shared", True, server="5"))).kept
        assert not (await reload(plain, mine, server("shared", True, server="4"))).kept
        await ask(plain, SAVE, "mine", Save([Item("k", b"1")]))
        for stores in ((), (server("shared", True, server="5"),), (server("shared", False, server="4"),)):
            [problem] = (await reload(plain, mine, *stores)).kept
            assert "component shared keeps the mesh's own records (actorStateStore), and needs a restart" in str(
                problem
            )
        assert (await ask(plain, GET, "mine", Get("k"))).value == b"1"


async def test_a_store_that_waits_for_a_secret_is_open_before_who_keeps_something_there(tmp_path: Path) -> None:
    """Else a binding would begin without a place."""
    (tmp_path / "secrets.json").write_text('{"server": "6"}')
    secrets = component("vault", "secretstores.local.file", secretsFile=str(tmp_path / "secrets.json"))
    waits = dataclasses.replace(server("shared", True, server=SecretRef("server", "server")), auth_secret_store="vault")
    binding = component("tick", "bindings.cron", schedule="@every 1h")
    async with node(binding, waits, secrets) as plain:
        assert [each.name for each in plain.description.components] == ["vault", "shared", "tick"]


async def test_the_marked_store(tmp_path: Path) -> None:
    """Holds calls and ``state.mesh``, apart from what applications keep in it, and over a restart."""
    marked = component(
        "file", "state.sqlite", connectionString=str(tmp_path / "s.db"), actorStateStore="TRUE", keyPrefix="none"
    )
    async with node(marked, component("mine", "state.mesh"), single_host=True) as plain:
        call_id = await ask(plain, ACCEPT, "callee", CALL)
        await ask(plain, SCHEDULE, "app", Schedule(Job("nightly", due_time="24h")))
        await ask(plain, SAVE, "mine", Save([Item("k", b"mine")]))
        await ask(plain, SAVE, "file", Save([Item("k", b"file")]))
    async with node(marked, component("mine", "state.mesh"), single_host=True) as plain:
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


async def test_without_any_configuration(tmp_path: Path) -> None:
    """The default store is there, and says at its first use what it lacks; nothing is kept on this machine."""
    async with node(home=tmp_path) as plain:
        assert [each.type for each in plain.description.components] == ["pubsub.mesh", "state.mesh"]
        assert "the state of statestore" in await refusal(plain, "statestore")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("stores", [(), (component("statestore", "state.mesh", keyPrefix="none"),)])
async def test_a_single_host(tmp_path: Path, stores: tuple[Component, ...]) -> None:
    """Its gateways share a file, which holds the mesh's records as well, with resources or without."""
    async with (
        node(*stores, home=tmp_path, single_host=True) as one,
        node(*stores, home=tmp_path, single_host=True) as two,
    ):
        call_id = await ask(one, ACCEPT, "callee", CALL)
        await ask(one, SAVE, "statestore", Save([Item("k", b"1")]))
        assert (await ask(two, GET, "statestore", Get("k"))).value == b"1"
        assert await ask(two, ACCEPT, "callee", CALL) == call_id
        assert (tmp_path / "state" / "ns.db").exists()


async def test_a_single_host_goes_on_with_its_file(tmp_path: Path) -> None:
    """A store that is marked later is refused until a restart: what is in the file would be lost from sight."""
    mine, marked = component("mine", "state.mesh"), server("shared", True, server="7")
    async with node(mine, home=tmp_path, single_host=True) as plain:
        assert not (await reload(plain, mine, server("shared", False, server="7"))).kept
        await ask(plain, SAVE, "mine", Save([Item("k", b"1")]))
        [problem] = (await reload(plain, mine, marked)).kept
        assert "component shared is marked by actorStateStore, and needs a restart" in str(problem)
        assert (await ask(plain, GET, "mine", Get("k"))).value == b"1"
        await ask(plain, ACCEPT, "callee", CALL)
    async with node(mine, marked, home=tmp_path, single_host=True) as plain:
        assert await ask(plain, GET, "mine", Get("k")) is None


@pytest.mark.parametrize("single_host", [False, True])
async def test_records_opened_while_a_change_of_their_store_is_opened(
    single_host: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is refused, what it has opened is closed, and the records are where they were."""
    mine, opened = component("mine", "state.mesh"), list[Entry]()
    async with node(mine, server("shared", not single_host, server="9"), home=tmp_path, single_host=single_host) as one:

        async def slowly(*arguments: Any) -> Entry:
            opened.append(await open_component(*arguments))
            await ask(one, SAVE, "mine", Save([Item("k", b"1")]))
            return opened[0]

        monkeypatch.setattr("mesh.node.reload.open_component", slowly)
        [problem] = (await reload(one, mine, server("shared", True, server="10"))).kept
        assert "needs a restart" in str(problem)
        async with asyncio.timeout(10):
            await asyncio.wait([opened[0].life.task])
        assert (await ask(one, GET, "mine", Get("k"))).value == b"1"


async def test_a_single_host_whose_file_cannot_be_used(tmp_path: Path) -> None:
    """Its uses fail, and not the start; it is tried again."""
    (tmp_path / "state").write_text("no folder")
    async with node(component("mine", "state.mesh"), home=tmp_path, single_host=True) as plain:
        with pytest.raises(StateError, match=r"cannot use ns\.db: "):
            await ask(plain, GET, "mine", Get("k"))
        (tmp_path / "state").unlink()
        await ask(plain, SAVE, "mine", Save([Item("k", b"1")]))


async def test_a_single_host_without_the_library(tmp_path: Path) -> None:
    """What to install is told at the first use."""

    class Bare(Installed):
        def load(self, name: str, layout: str = "") -> type:
            if name == "state.sqlite":
                raise MissingDependencyError("it needs a package")
            return super().load(name, layout)

    mine = component("mine", "state.mesh")
    settings = NodeSettings("app", "ns", "plain:", components=[mine], home=tmp_path, single_host=True)
    async with Runtime(settings, Bare()) as plain:
        told = "the state of mine: the file of this machine (MESH_SINGLE_HOST) cannot be used: it needs a package"
        assert told in await refusal(plain)


@pytest.mark.parametrize("backbone", ["shared:", "plain:"])
async def test_namespaces_share_nothing(tmp_path: Path, backbone: str) -> None:
    """Whatever their names and those of components are put together."""
    path = str(tmp_path / "s.db")
    marked = component("file", "state.sqlite", connectionString=path, actorStateStore="true", keyPrefix="none")
    on: Any = {"backbone": backbone, "single_host": True}
    async with (
        node(marked, component("b-c", "state.mesh"), namespace="a", **on) as one,
        node(marked, component("c", "state.mesh"), namespace="a-b", **on) as other,
        node(marked, component("c||b-c", "state.mesh"), namespace="a", **on) as third,
        node(marked, component("b-c", "state.mesh"), namespace="a||c", **on) as fourth,
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
    async with node(marked, backbone=backbone, single_host=True) as mesh:
        opened = partial(mesh.parts.records, dotted=True)
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
