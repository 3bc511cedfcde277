"""What differs between resources, and what a node does with it, on a broker of memory."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Self, cast

import pytest

from gateway.reload import look, watching
from gateway.settings import Reader, endpoint_client
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.errors import (
    ConfigError,
    MeshError,
    NotConfiguredError,
    Problem,
    SecretError,
    SecretStoreAwayError,
    StateError,
)
from mesh.life import Lives
from mesh.node.reload import Resources, Told, needs_restart, steps
from mesh.node.runtime import NodeSettings, Runtime
from mesh.policies import CircuitBreaker, Retry
from mesh.resources.component import Component, HTTPEndpoint, MetadataEntry, SecretRef
from mesh.resources.configuration import APISpec, Configuration, ConfigurationSpec, SecretsSpec, Tracing
from mesh.resources.documents import parse_documents
from mesh.resources.resiliency import Resiliency
from mesh.resources.subscription import Rule, Subscription
from mesh.resources.workflow_access import WorkflowAccessPolicy, WorkflowAccessRule
from mesh.store import Item, Stored
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, component, node, unique

A = Component("a", "state.x", (MetadataEntry("k", "v", "spec.metadata[0]", 5, 1),), file="a.yaml", line=1)
MOVED = dataclasses.replace(
    A, metadata=(MetadataEntry("k", "v", "spec.metadata[1]", 50, 3),), file="b.yaml", line=9, type_place=(4, 4)
)
SUBSCRIPTION = Subscription(
    "s", "pubsub", "t", (Rule("event.type == 'x'", "/x", "a place"),), metadata=MappingProxyType({"a": "b"}), line=3
)
RETRY = Resiliency(
    "r", retries={"one": Retry(max_retries=1)}, breakers={"b": CircuitBreaker("b")}, file="r.yaml", line=1
)
ENDPOINT = HTTPEndpoint("e", "http://x", (MetadataEntry("h", SecretRef("s", "k")),), file="e.yaml", line=1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Resources(), Resources()),
        (Resources((A,)), Resources((MOVED,))),
        (
            Resources(subscriptions=(SUBSCRIPTION,)),
            Resources(
                subscriptions=(
                    dataclasses.replace(
                        SUBSCRIPTION,
                        rules=(dataclasses.replace(SUBSCRIPTION.rules[0], place="elsewhere"),),
                        metadata=MappingProxyType({"a": "b"}),
                        file="elsewhere",
                    ),
                )
            ),
        ),
        (
            Resources(resiliencies=(RETRY,)),
            Resources(resiliencies=(dataclasses.replace(RETRY, breakers={"b": CircuitBreaker("b")}, line=8),)),
        ),
        (Resources(endpoints=(ENDPOINT,)), Resources(endpoints=(dataclasses.replace(ENDPOINT, line=7),))),
        (
            Resources(configuration=Configuration("c", ConfigurationSpec(tracing=Tracing()))),
            Resources(configuration=Configuration("c", ConfigurationSpec(tracing=Tracing()), line=4)),
        ),
    ],
)
def test_what_is_equal_by_value_is_no_step(before: Resources, after: Resources) -> None:
    assert steps(before, after) == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ((A,), (), ["Component a removed"]),
        ((), (A,), ["Component a added (a.yaml:1)"]),
        ((A,), (dataclasses.replace(MOVED, type="state.y"),), ["Component a changed (b.yaml:9)"]),
        ((A,), (dataclasses.replace(MOVED, scopes=("x",)),), ["Component a changed (b.yaml:9)"]),
        ((A,), (dataclasses.replace(MOVED, placement="local"),), ["Component a changed (b.yaml:9)"]),
        ((A,), (dataclasses.replace(MOVED, metadata=()),), ["Component a changed (b.yaml:9)"]),
        ((A,), (dataclasses.replace(MOVED, auth_secret_store="v"),), ["Component a changed (b.yaml:9)"]),
        ((A,), (dataclasses.replace(A, name="b"),), ["Component b added (a.yaml:1)", "Component a removed"]),
    ],
)
def test_steps_of_components(before: tuple[Any, ...], after: tuple[Any, ...], told: list[str]) -> None:
    assert [str(step) for step in steps(Resources(before), Resources(after))] == told


def test_steps_of_every_kind() -> None:
    policy = WorkflowAccessPolicy("w", file="w.yaml", line=1)
    old = Resources((A,), (SUBSCRIPTION,), (RETRY,), (ENDPOINT,), Configuration("c", file="c.yaml", line=2), (policy,))
    new = Resources(
        (dataclasses.replace(A, version="v2"),),
        (dataclasses.replace(SUBSCRIPTION, default_path="/y", file="s.yaml"),),
        (dataclasses.replace(RETRY, retries={}),),
        (dataclasses.replace(ENDPOINT, base_url="http://y"),),
        Configuration("c", ConfigurationSpec(placement="local"), file="c.yaml", line=2),
        (dataclasses.replace(policy, rules=(WorkflowAccessRule(("a",)),)),),
    )
    assert [str(step) for step in steps(old, new)] == [
        "Component a changed (a.yaml:1)",
        "HTTPEndpoint e changed (e.yaml:1)",
        "Resiliency r changed (r.yaml:1)",
        "Subscription s changed (s.yaml:3)",
        "WorkflowAccessPolicy w changed (w.yaml:1)",
        "Configuration c changed (c.yaml:2)",
    ]
    assert [step.after is None for step in steps(new, Resources())] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("spec", "sections"),
    [
        (ConfigurationSpec(), []),
        (ConfigurationSpec(secrets=SecretsSpec(), tracing=Tracing()), []),
        (ConfigurationSpec(api=APISpec()), ["spec.api"]),
        (ConfigurationSpec(api=APISpec(), placement="backbone"), ["spec.api", "spec.placement"]),
    ],
)
def test_what_needs_a_restart(spec: ConfigurationSpec, sections: list[str]) -> None:
    assert needs_restart(Configuration(), Configuration("c", spec)) == sections
    assert needs_restart(Configuration("c", spec), Configuration()) == sections


# What a look sees


def test_a_look_sees_what_may_be_a_change(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "config.yaml"
    folder.mkdir()
    seen = [look([folder, file])]

    def is_new() -> bool:
        seen.append(look([folder, file]))
        return seen[-1] != seen[-2]

    assert not is_new()
    (folder / "a.yaml").write_text("a")
    assert is_new()
    (folder / "a.yaml").write_text("ab")
    assert is_new()
    (folder / "new").write_text("ab")
    assert not is_new()  # It is no resource yet.
    (folder / "new").replace(folder / "a.yaml")
    assert is_new()
    (folder / "c.yml").symlink_to(folder / "nothing")
    assert is_new()
    (folder / "nothing").write_text("c")
    assert is_new()
    (folder / "a.yaml").rename(folder / "b.yaml")
    assert is_new()
    file.write_text("kind: Configuration")
    assert is_new()
    (folder / "b.yaml").unlink()
    assert is_new()
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    assert is_new()
    folder.mkdir()
    assert is_new()
    assert not is_new()


# How long something is open


class Thing:
    def __init__(self, *, fails: bool = False, hangs: bool = False) -> None:
        self.fails, self.hangs = fails, hangs
        self.open = self.tried = False
        self.tasks: list[object] = []

    async def begin(self, stack: AsyncExitStack) -> Self:
        self.tried = True
        await stack.enter_async_context(self._opened())
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            raise StateError("no")
        return self

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        self.open = True
        self.tasks.append(asyncio.current_task())
        try:
            yield
        finally:
            self.open = False
            self.tasks.append(asyncio.current_task())


async def test_what_is_used_is_closed_after_its_last_use() -> None:
    async with Lives() as lives:
        thing, life = await lives.begin("a thing", Thing().begin)
        with life:
            with life:
                lives.retire(life, 60)
                await asyncio.sleep(0)
                assert thing.open
            await asyncio.sleep(0)
            assert thing.open
        await eventually(lambda: _closed(thing))
        assert thing.tasks[0] is thing.tasks[1]  # As task groups in adapters need it.


def _closed(*things: Thing) -> None:
    assert not any(each.open for each in things)


async def test_what_is_used_for_too_long_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with Lives() as lives:
        thing, life = await lives.begin("a thing", Thing().begin)
        with life:
            await life.end(0.01)
            assert not thing.open
    assert "a thing is closed, though 1 still use it after 0.01 s" in caplog.text


async def test_leaving_closes_what_is_left() -> None:
    """What is retired and still used, as well."""
    async with Lives() as lives:
        one, life = await lives.begin("one", Thing().begin)
        two, _ = await lives.begin("two", Thing().begin)
        life.__enter__()
        lives.retire(life, 600)
    _closed(one, two)


async def test_what_cannot_be_opened_leaves_nothing_open() -> None:
    failing, hanging = Thing(fails=True), Thing(hangs=True)
    async with Lives() as lives:
        with pytest.raises(StateError, match="no"):
            await lives.begin("failing", failing.begin)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await lives.begin("hanging", hanging.begin)
        assert failing.tried
        assert hanging.tried
        _closed(failing, hanging)


# A node


class Slow:
    """A store whose reads end when the test says so; it notes who is open, and those that were opened."""

    settings = ("which",)
    capabilities: Sequence[str] = ()

    def __init__(self, made: list[Slow] | None = None) -> None:
        self._made = [] if made is None else made
        self.open = self.closed = False
        self.asked = 0
        self.go_on = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._made.append(self)
        self.open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.open, self.closed = False, True

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] | None = None) -> Stored | None:
        self.asked += 1
        await self.go_on.wait()
        assert self.open
        return Stored(str(id(self)).encode(), "1")


async def reload(runtime: Runtime, *components: Component, **settings: Any) -> Told:
    return await runtime.reload(dataclasses.replace(runtime.settings, components=components, **settings))


async def test_operations_in_flight_end_on_what_they_began_with() -> None:
    """None is lost, none waits for the others, and what is replaced is closed once they are done."""
    made: list[Slow] = []

    mesh = MemoryMesh(slow=lambda: Slow(made))
    async with node("memory:", unique("reload"), component("s", "state.slow"), registry=mesh) as runtime:
        async with asyncio.TaskGroup() as tasks:
            old = [tasks.create_task(ask(runtime, GET, "s", Get("k"))) for _ in range(10)]
            await eventually(lambda: _asked(made[0], 10))
            told = await reload(runtime, component("s", "state.slow", which="2"))
            assert [str(step) for step in told.done] == ["Component s changed"]
            new = [tasks.create_task(ask(runtime, GET, "s", Get("k"))) for _ in range(10)]
            await eventually(lambda: _asked(made[1], 10))
            made[1].go_on.set()
            for each in new:
                assert (await each).value == str(id(made[1])).encode()
            assert made[0].open
            told = await reload(runtime)
            assert [str(step) for step in told.done] == ["Component s removed"]
            with pytest.raises(NotConfiguredError):
                await ask(runtime, GET, "s", Get("k"))
            made[0].go_on.set()
        assert {each.result().value for each in old} == {str(id(made[0])).encode()}
        await eventually(lambda: _all_closed(made))
    assert len(made) == 2


def _asked(store: Slow, count: int) -> None:
    assert store.asked == count


def _all_closed(stores: Sequence[Slow]) -> None:
    assert all(each.closed for each in stores)


class Refusing(Slow):
    async def __aenter__(self) -> Self:
        raise StateError("the server is away")


class Hanging(Slow):
    async def __aenter__(self) -> Self:
        await asyncio.Event().wait()
        raise AssertionError


class Broken(Slow):
    async def __aenter__(self) -> Self:
        raise ValueError("a defect")


@pytest.mark.parametrize(
    ("kind", "why", "again"),
    [
        ("refusing", "component s: the server is away", True),
        (
            "hanging",
            "component s: its start took longer than 0.1 s (spec.initTimeout), it waited for its adapter state.hanging",
            True,
        ),
        ("broken", "component s: ValueError", True),
        ("none", "there is no component type 'state.none'", False),
    ],
)
async def test_what_cannot_be_opened_changes_nothing(kind: str, why: str, *, again: bool) -> None:
    mesh = MemoryMesh(refusing=Refusing, hanging=Hanging, broken=Broken)
    before = component("s", "state.in-memory")
    async with node("memory:", unique("reload"), before, registry=mesh) as runtime:
        await ask(runtime, SAVE, "s", Save([Item("k", b"1")]))
        bad = dataclasses.replace(component("s", f"state.{kind}"), init_timeout=0.1, file="s.yaml", line=4)
        other = component("other", "state.in-memory")
        told = await reload(runtime, bad, other)
        assert [str(step) for step in told.done] == ["Component other added"]
        assert len(told.kept) == 1
        assert str(told.kept[0]).startswith("s.yaml:4")
        assert why in str(told.kept[0])
        assert told.again is again
        assert (await ask(runtime, GET, "s", Get("k"))).value == b"1"
        assert [each.name for each in runtime.description.components] == ["s", "other"]
        # It is tried again with the next change, and what is there by then is no change.
        told = await reload(runtime, before, other)
        assert told == Told()
        assert (await ask(runtime, GET, "s", Get("k"))).value == b"1"


async def test_what_is_absent_is_told_for_as_long_as_it_is_wanted() -> None:
    bad = component("bad", "state.none")
    async with node("memory:", unique("reload"), component("s", "state.in-memory")) as runtime:
        await reload(runtime, component("s", "state.in-memory"), bad)
        assert [(each.name, each.health) for each in await runtime.health()] == [("s", "ok"), ("bad", "absent")]
        await reload(runtime, component("s", "state.in-memory"))
        assert [each.name for each in await runtime.health()] == ["s"]


async def test_a_marked_store_changes(tmp_path: Path) -> None:
    """Where the mesh's own records are on the backbone; else it stays, see ``test_a_store_is_marked_later``."""

    def store(name: str) -> Component:
        return component("s", "state.sqlite", connectionString=str(tmp_path / name), actorStateStore="true")

    async with node("memory:", unique("reload"), store("one")) as runtime:
        told = await reload(runtime, store("two"))
        assert len(told.done) == 1


# A component that is hosted


async def test_two_stores_of_records() -> None:
    """The second one is refused, whichever file it is in; the mark may go from one to another."""

    def store(name: str, marked: str) -> Component:
        return dataclasses.replace(
            component(name, "state.in-memory", actorStateStore=marked), file=f"{name}.yaml", line=1
        )

    async with node("memory:", unique("reload"), store("a", "true")) as runtime:
        told = await reload(runtime, store("a", "true"), store("b", "True"))
        assert str(told.kept[0]).startswith("b.yaml: actorStateStore: ")
        assert "and a (a.yaml:1) is marked already: detected duplicate actor state store" in str(told.kept[0])
        assert [each.name for each in runtime.description.components] == ["a"]
        told = await reload(runtime, store("a", "false"), store("b", "true"))
        assert [each.name for each in runtime.description.components] == ["a", "b"]
        assert not told.kept


@pytest.fixture
def mesh() -> MemoryMesh:
    return MemoryMesh()


def hosted(*, scopes: Sequence[str] = (), placement: str = "backbone", **settings: str) -> Component:
    return component("store", "state.in-memory", placement=placement, scopes=scopes, **settings)


async def test_a_host_answers_with_what_it_has_now(mesh: MemoryMesh) -> None:
    """Who has used it finds what came after, with other settings or equal ones; what is removed is missed."""
    namespace = unique("reload")
    async with (
        node("memory:", namespace, registry=mesh, app_id="host", host_only=True) as host,
        node("memory:", namespace, registry=mesh, app_id="asker") as asker,
    ):
        with pytest.raises(NotConfiguredError):
            await ask(asker, GET, "store", Get("k"))
        await reload(host, hosted())

        async def saved(value: bytes) -> None:
            try:
                await ask(asker, SAVE, "store", Save([Item("k", value)]))
            except (NotConfiguredError, MeshError) as error:
                raise AssertionError from error

        await eventually(lambda: saved(b"1"))
        for settings in ({"keyPrefix": "name"}, {"keyPrefix": "none"}, {}):
            await reload(host, hosted(**settings))
            assert await ask(asker, GET, "store", Get("k")) is None  # Another store in memory.
            await saved(b"2")
            assert (await ask(asker, GET, "store", Get("k"))).value == b"2"
            await ask(host, SAVE, "store", Save([Item("own", b"3")]))  # It asks itself over the backbone.
            assert (await ask(host, GET, "store", Get("own"))).value == b"3"
        await reload(host, hosted(password="other"))  # It has no part in the fingerprint.
        await reload(host, hosted(scopes=("host",)))
        with pytest.raises(MeshError):
            await ask(asker, GET, "store", Get("k"))
        await reload(host, hosted(scopes=("host", "asker")))
        await eventually(lambda: saved(b"3"))
        await reload(host, hosted(placement="local"))
        with pytest.raises(MeshError):
            await ask(asker, GET, "store", Get("k"))


async def test_operations_of_others_in_flight_end_at_the_host() -> None:
    made: list[Slow] = []

    mesh, namespace = MemoryMesh(slow=lambda: Slow(made)), unique("reload")

    def slow(**settings: str) -> Component:
        return component("s", "state.slow", placement="backbone", **settings)

    async with (
        node("memory:", namespace, slow(), registry=mesh, app_id="host") as host,
        node("memory:", namespace, registry=mesh, app_id="asker") as asker,
        asyncio.TaskGroup() as tasks,
    ):
        old = [tasks.create_task(ask(asker, GET, "s", Get("k"))) for _ in range(5)]
        await eventually(lambda: _asked(made[0], 5))
        await reload(host, slow(which="2"))
        made[1].go_on.set()
        assert (await ask(asker, GET, "s", Get("k"))).value == str(id(made[1])).encode()
        assert not made[0].closed
        await reload(host)
        made[0].go_on.set()
        for each in old:
            assert (await each).value == str(id(made[0])).encode()
        await eventually(lambda: _all_closed(made))


async def test_hosts_that_change_one_after_the_other(mesh: MemoryMesh) -> None:
    """Who looks for the component meanwhile comes to those that have changed: no error in between."""
    namespace = unique("reload")
    async with (
        node("memory:", namespace, hosted(), registry=mesh, app_id="one") as one,
        node("memory:", namespace, hosted(), registry=mesh, app_id="two") as two,
        node("memory:", namespace, registry=mesh, app_id="early") as early,
        node("memory:", namespace, registry=mesh, app_id="late") as late,
    ):
        await ask(early, SAVE, "store", Save([Item("k", b"1")]))
        await reload(one, hosted(keyPrefix="name"))
        await ask(early, SAVE, "store", Save([Item("k", b"1")]))  # At the one that has not changed yet.
        await ask(late, SAVE, "store", Save([Item("k", b"late")]))
        assert (await ask(one, GET, "store", Get("k"))).value == b"late"
        await reload(two, hosted(keyPrefix="name"))
        for asker in (early, late):
            await ask(asker, SAVE, "store", Save([Item("k", b"2")]), deadline=time.time() + 20)


# What needs a secret


class AwayVault:
    """A secret store that is away until it is back."""

    capabilities: Sequence[str] = ()
    back = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        if not self.back:
            raise SecretStoreAwayError("the vault cannot be reached")
        if name != "there":
            raise SecretError(f"secret {name} not found")
        return {name: "x"}

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        raise NotImplementedError


async def test_what_needs_a_secret_of_a_store_that_is_away_is_tried_again() -> None:
    """It says why; that a store has no such secret does not change by itself."""
    vault, mesh = AwayVault(), MemoryMesh()
    mesh._made["secretstores.away"] = SimpleNamespace(from_component=lambda _: vault)
    store = component("vault", "secretstores.away")

    def wanted(name: str) -> dict[str, Any]:
        secret = (MetadataEntry("k", SecretRef(name, name), "spec.headers[0]"),)
        return {
            "components": (store, Component("s", "state.in-memory", secret, auth_secret_store="vault")),
            "endpoints": (HTTPEndpoint("e", "http://x", secret, auth_secret_store="vault"),),
        }

    async with node("memory:", unique("reload"), store, registry=mesh) as runtime:

        async def opening(endpoint: HTTPEndpoint) -> Any:
            return nullcontext(await runtime.resolved(endpoint.headers, endpoint.auth_secret_store, endpoint.file))

        await runtime.open_endpoints(opening)
        for _ in range(2):
            told = await runtime.reload(dataclasses.replace(runtime.settings, **wanted("there")))
            assert (told.done, told.again) == ((), True)
            assert [str(each) for each in told.kept] == [
                "component s: the vault cannot be reached",
                "secret store vault: the vault cannot be reached",
            ]
        only = dataclasses.replace(runtime.settings, endpoints=wanted("there")["endpoints"])
        assert (await runtime.reload(only)).again
        vault.back = True
        told = await runtime.reload(dataclasses.replace(runtime.settings, **wanted("none")))
        assert (told.done, told.again) == ((), False)
        assert all("which no secret store gives" in str(each) for each in told.kept)
        told = await runtime.reload(dataclasses.replace(runtime.settings, **wanted("there")))
        assert [str(step) for step in told.done] == ["Component s added", "HTTPEndpoint e added"]


# What nobody foresaw


class Leaking(Slow):
    async def __aenter__(self) -> Self:
        raise ValueError("a defect that tells s3cret")


async def test_an_error_that_nobody_foresaw_is_logged_once_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """Where it was raised is told; its text may hold a secret."""
    mesh = MemoryMesh(leaking=Leaking)
    endpoint = HTTPEndpoint("e", "http://x", file="e.yaml", line=1)
    async with node("memory:", unique("reload"), component("s", "state.in-memory"), registry=mesh) as runtime:

        async def opening(endpoint: HTTPEndpoint) -> Any:
            raise TypeError("s3cret is no header")

        await runtime.open_endpoints(opening)
        for _ in range(3):
            told = await reload(runtime, component("s", "state.leaking"), endpoints=(endpoint,))
            assert [str(each) for each in told.kept] == [
                "component s: ValueError",
                "e.yaml:1: HTTPEndpoint e: TypeError",
            ]
            assert told.again
        await ask(runtime, SAVE, "s", Save([Item("k", b"1")]))
    assert [caplog.text.count(f"{name}, raised at") for name in ("ValueError", "TypeError")] == [1, 1]
    assert "in __aenter__" in caplog.text
    assert "tells s3cret" not in "".join(line for line in caplog.text.splitlines() if "raise " not in line)


async def test_an_endpoint_that_waits_for_ever_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.node.reload.ENDPOINT_SECONDS", 0.05)
    async with node("memory:", unique("reload"), component("s", "state.in-memory")) as runtime:

        async def opening(endpoint: HTTPEndpoint) -> Any:
            await asyncio.Event().wait()

        await runtime.open_endpoints(opening)
        told = await runtime.reload(dataclasses.replace(runtime.settings, endpoints=(HTTPEndpoint("e", "http://x"),)))
        assert [str(each) for each in told.kept] == ["HTTPEndpoint e: its secrets were not read within 0.05 s"]
        assert told.again


@pytest.mark.parametrize("text", ["no certificate", "Zertifikät", "\0"])
async def test_a_root_ca_that_is_none_is_a_problem(text: str) -> None:
    async def resolved(entries: Sequence[MetadataEntry], *of: object) -> tuple[MetadataEntry, ...]:
        return tuple(entries)

    entry = MetadataEntry("rootCA", text, "spec.clientTLS.rootCA")
    endpoint = HTTPEndpoint("e", "https://x", root_ca=entry)
    with pytest.raises(ConfigError, match="rootCA is no PEM certificate"):
        await endpoint_client(endpoint, cast("Runtime", SimpleNamespace(resolved=resolved)))


def test_a_number_of_too_many_digits_is_a_text() -> None:
    problems: list[Problem] = []
    (read,) = parse_documents(f"a: 0x{'f' * 5000}\nb: {'9' * 5000}\nc: 0xff", "f.yaml", problems)
    assert (read.data, problems) == ({"a": "0x" + "f" * 5000, "b": "9" * 5000, "c": 255}, [])


@pytest.mark.parametrize("where", ["read", "reload"])
async def test_an_unforeseen_error_does_not_end_the_watch(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is one line in the log, and the next attempt counts."""
    monkeypatch.setattr("gateway.reload.INTERVAL", 0.01)
    monkeypatch.setattr("gateway.reload.FIRST_RETRY", 0.01)
    caplog.set_level("INFO")
    asked: list[str] = []

    def fails(what: str) -> None:
        asked.append(what)
        if what == where and asked.count(what) <= 2:
            raise ValueError("s3cret")

    def again() -> NodeSettings:
        fails("read")
        return NodeSettings("app", "ns", "memory:")

    async def put(settings: NodeSettings) -> Told:
        fails("reload")
        return Told()

    reader = SimpleNamespace(paths=[tmp_path], again=again, log_warnings=lambda: None, bad=())
    async with watching(cast("Reader", reader), (), put):
        (tmp_path / "a.yaml").write_text("a")
        await eventually(lambda: _logged(caplog, "all resources are as their files say"))
    assert caplog.text.count("resources are kept as they were: cannot reload: ValueError") == 1
    assert caplog.text.count("raised at") == 1


def _logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    assert text in caplog.text


async def test_what_needs_a_restart_is_told_until_it_is_as_before() -> None:
    async with node("memory:", unique("reload"), component("s", "state.in-memory")) as runtime:
        before = runtime.settings
        other = Configuration("c", ConfigurationSpec(placement="local"), file="c.yaml", line=1)
        for _ in range(3):
            told = await runtime.reload(dataclasses.replace(before, configuration=other))
            assert [str(each) for each in told.kept] == ["c.yaml:1: spec.placement needs a restart to change"]
        assert (await runtime.reload(before)).kept == ()
