"""What a node does with its components and its subscriptions, on a broker of memory."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import ClassVar

import pytest

from bindings.in_memory import InMemoryStateStore
from brokers.memory import MemoryBroker
from mesh.address import Address
from mesh.application import AppResponse, Headers, Kind
from mesh.blocks.durable import ACCEPT, DurableCall
from mesh.blocks.invocation import INVOKE, Call
from mesh.broker import Handler, SubscribeOptions
from mesh.errors import BadArgumentError, BrokerUnavailableError, ConfigError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Method
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry, SecretRef
from mesh.resources.settings import Setting, ignored
from mesh.resources.subscription import Subscription
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, node, unique

TOPICS = ("a", "b", "c")


class Joining(MemoryBroker):
    """A broker on which nobody joins a group before as many do as a node has subscriptions, calls included."""

    barrier = asyncio.Barrier(len(TOPICS) + 1)

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        await self.barrier.wait()
        async with super().subscribe(address, options, handler):
            yield


class JoiningRegistry(Registry):
    def load(self, name: str, layout: str = "") -> type:
        return Joining if name == "backbone.memory" else super().load(name, layout)


class App:
    """An application that is there."""

    takes_grpc = False
    is_grpc = True  # So nobody asks it for its actors.

    def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AppResponse]:
        raise NotImplementedError

    async def post(self, path: str, headers: Headers, body: bytes, kind: Kind) -> tuple[int, bytes]:
        raise NotImplementedError

    async def until_reachable(self) -> None:
        return

    async def until_unreachable(self) -> None:
        await asyncio.Event().wait()


async def test_groups_of_a_node_are_joined_at_once() -> None:
    async def programmatic() -> Sequence[Subscription]:
        return [Subscription("", "pubsub", topic, default_path=f"/{topic}") for topic in TOPICS]

    runtime = Runtime(NodeSettings("app", "default", "memory:"), JoiningRegistry())

    def serving() -> None:
        assert runtime.serving

    async with runtime, runtime.inbound(App(), programmatic):
        await eventually(serving)


class Away(MemoryBroker):
    """A broker on which nobody can subscribe to ``away`` before it is back; it counts what is subscribed to."""

    def __init__(self) -> None:
        super().__init__()
        self.back = False
        self.begun: list[str] = []

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        topic = address.text.rpartition(".")[2]
        self.begun.append(topic)
        if topic == "away" and not self.back:
            raise BrokerUnavailableError("no connection")
        async with super().subscribe(address, options, handler):
            yield


async def test_a_subscription_whose_broker_is_away_disturbs_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again until the broker is back; the others stay as they are."""
    caplog.set_level(logging.INFO)
    broker = Away()
    monkeypatch.setattr("mesh.node.inbound.SESSION_RETRY", 0.01)
    mesh = MemoryMesh()
    mesh._made["backbone.memory"] = SimpleNamespace(from_url=lambda url: broker)
    here, away = (Subscription(name, "pubsub", name, default_path=f"/{name}") for name in ("here", "away"))
    settings = NodeSettings("app", "default", "memory:", subscriptions=(here,))
    runtime = Runtime(settings, mesh)

    async def programmatic() -> Sequence[Subscription]:
        return ()

    def check(tries: int) -> None:
        assert runtime.serving
        assert broker.begun.count("away") >= tries

    async with runtime, runtime.inbound(App(), programmatic):
        await eventually(lambda: check(0))
        await runtime.reload(dataclasses.replace(settings, subscriptions=(here, away)))
        await eventually(lambda: check(5))
        assert broker.begun.count("here") == 1
        told = [each.getMessage() for each in caplog.records if "trying again" in each.getMessage()]
        assert told == ["pubsub/away is not served, trying again: no connection"]
        broker.back = True
        await eventually(lambda: _subscribed(caplog))
    assert broker.begun.count("here") == 1


def _subscribed(caplog: pytest.LogCaptureFixture) -> None:
    assert "subscribed to pubsub/away" in caplog.text


def one(kind: str, **settings: str) -> NodeSettings:
    entries = [
        MetadataEntry(name, value, f"spec.metadata[{n}]", 9 + n, 3) for n, (name, value) in enumerate(settings.items())
    ]
    component = Component("c", kind, tuple(entries), file="c.yaml", line=1)
    return NodeSettings("app", "default", "memory:", components=(component,))


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [
        ("state.in-memory", "keyPrefx", "keyPrefix"),
        ("state.mesh", "keyPrefixes", "keyPrefix"),
        ("state.sqlite", "conectionString", "connectionString"),
        ("secretstores.local.env", "prefx", "prefix"),
        ("secretstores.local.file", "secretFile", "secretsFile"),
        ("pubsub.mesh", "consumerId2", "consumerID"),
        ("pubsub.in-memory", "alowedTopics", "allowedTopics"),
        ("pubsub.redis", "redisHosts", "redisHost"),
    ],
)
async def test_a_misspelt_setting_is_an_error(kind: str, wrong: str, meant: str) -> None:
    place = rf"c.yaml:9:3: spec.metadata\[0\] \({wrong}\): unknown setting; did you mean '{meant}'\?"
    with pytest.raises(ConfigError, match=place):
        async with Runtime(one(kind, **{wrong: "x"}), Registry()):
            pass


@pytest.mark.parametrize("kind", ["state.in-memory", "state.mesh", "secretstores.local.env", "pubsub.mesh"])
async def test_a_setting_that_nothing_reads_is_one_warning(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with Runtime(one(kind, redisHost="somewhere"), Registry()):
            pass
    place = "c.yaml:9:3: spec.metadata[0] (redisHost): unknown setting, which nothing reads"
    assert [record.getMessage() for record in caplog.records] == [place]


@dataclass(frozen=True, slots=True)
class _WithoutPool:
    ignored: ClassVar[tuple[Setting, ...]] = ignored("there is no pool", "poolSize", anyway=("0",))


class _Store(InMemoryStateStore):
    settings = _WithoutPool


class _Installed(Registry):
    def find(self, name: str) -> EntryPoint | None:
        return super().find("state.in-memory" if name == "state.toy" else name)

    def load(self, name: str, layout: str = "") -> type:
        return _Store if name == "state.toy" else super().load(name, layout)


@pytest.mark.parametrize(("value", "told"), [("3", True), ("0", False)])
async def test_a_setting_without_effect_is_one_warning(
    value: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless it asks for what is so anyway."""
    with caplog.at_level(logging.WARNING):
        async with Runtime(one("state.toy", poolSize=value), _Installed()):
            pass
    place = "c.yaml:9:3: spec.metadata[0] (poolSize): it has no effect: there is no pool"
    assert [record.getMessage() for record in caplog.records] == [place] * told


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("pubsub.redis", "redisHost", "{}"),
        ("pubsub.rabbitmq", "connectionString", "amqp://{}"),
        ("pubsub.kafka", "brokers", "{}"),
        ("pubsub.mqtt", "url", "mqtt://{}"),
        ("pubsub.jetstream", "natsURL", "nats://{}"),
    ],
)
async def test_a_server_that_says_nothing_is_named(kind: str, setting: str, value: str) -> None:
    """Within the component's own time for its start, however short."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = one(kind, **{setting: value.format(where)})
        assert settings.components
        # An adapter has four fifths of the time. A machine that stands still for the last fifth cannot tell.
        for seconds in (1.5, 3.0, 4.8):
            quick = dataclasses.replace(settings.components[0], init_timeout=seconds)
            with pytest.raises(ConfigError) as caught:
                async with Runtime(dataclasses.replace(settings, components=(quick,)), Registry()):
                    pass
            if "(spec.initTimeout)" not in str(caught.value):
                break
        told = f"c.yaml:1:1: component c: .*{where}.* is not reachable: it does not answer"
        assert re.search(told, str(caught.value)), str(caught.value)


class Endless:
    """A store whose start does not end."""

    settings = ()

    @classmethod
    def from_component(cls, component: Component) -> AbstractAsyncContextManager[None]:
        return endless()


@asynccontextmanager
async def endless() -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("foo://me:secret@x", "'foo://***@x' does not begin with the scheme of a broker; these are: amqp, amqps, "),
        ("me:secret@x", "'me:…' does not begin with the scheme of a broker; these are: amqp, amqps, "),
        ("nats://h?nope=3", "unknown option of a NATS URL: 'nope'"),
    ],
)
async def test_what_is_wrong_with_a_backbone_names_where_it_came_from(url: str, said: str) -> None:
    settings = NodeSettings("app", "default", url, backbone_from="MESH_BACKBONE")
    with pytest.raises(ConfigError) as raised:
        async with Runtime(settings, Registry()):
            pass
    assert str(raised.value).startswith(f"MESH_BACKBONE: {said}")


class EndlessRegistry(Registry):
    def load(self, name: str, layout: str = "") -> type:
        return Endless if name == "secretstores.local.env" else super().load(name, layout)


async def test_a_start_that_does_not_end_says_what_it_waited_for() -> None:
    settings = one("secretstores.local.env")
    assert settings.components
    quick = dataclasses.replace(settings.components[0], init_timeout=0.1)
    message = (
        r"c.yaml:1:1: component c: its start took longer than 0.1 s \(spec.initTimeout\), it waited for its adapter "
    )
    with pytest.raises(ConfigError, match=f"{message}secretstores.local.env"):
        async with Runtime(dataclasses.replace(settings, components=(quick,)), EndlessRegistry()):
            pass


@pytest.mark.parametrize(
    ("method", "target", "arguments", "problem"),
    [
        (INVOKE, "a" * 257, Call("GET", "/x", [], b""), "invalid app id"),
        (INVOKE, "a.b.c", Call("GET", "/x", [], b""), "invalid app id"),
        (ACCEPT, "a" * 257, DurableCall("GET", "/x", [], b""), "invalid app id"),
        (ACCEPT, "a", DurableCall("GET", "/x", [], b"", key="k" * 513), "an idempotency key is longer than 512 bytes"),
    ],
)
async def test_limits_hold_without_http(method: Method, target: str, arguments: object, problem: str) -> None:
    async with node("memory:", "default") as mesh:
        with pytest.raises(BadArgumentError, match=problem):
            await ask(mesh, method, target, arguments)


class Late:
    """A store whose start does not end."""

    settings = ()

    async def __aenter__(self) -> None:
        await asyncio.Event().wait()

    async def __aexit__(self, *exc_info: object) -> None:
        return


class SilentSecrets:
    """A secret store that gives no secret."""

    capabilities: Sequence[str] = ()

    async def __aenter__(self) -> SilentSecrets:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return

    async def get(self, name: str, metadata: dict[str, str]) -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError


async def test_the_secret_store_that_was_waited_for_is_named() -> None:
    mesh = MemoryMesh()
    mesh._made["secretstores.silent"] = SimpleNamespace(from_component=lambda _: SilentSecrets())
    entry = MetadataEntry("connectionString", SecretRef("a", "b"))
    store = Component("c", "state.sqlite", (entry,), auth_secret_store="vault", init_timeout=0.1, file="c.yaml", line=1)
    vault = Component("vault", "secretstores.silent")
    place = r"c.yaml:1:1: component c: its start took longer than 0.1 s \(spec.initTimeout\), it waited for the secret "
    with pytest.raises(ConfigError, match=place + "store vault"):
        async with node("memory:", unique("late"), vault, store, registry=mesh):
            pass


class Unopened(InMemoryStateStore):
    async def __aenter__(self) -> InMemoryStateStore:
        pytest.fail("it is opened although others are wrong")


async def test_all_that_is_wrong_is_told_before_anything_is_opened() -> None:
    """A server that is away would hold back what is wrong elsewhere, and it would be told bit by bit."""
    entries = {
        "first": ("state.unopened", {}),
        "wrong": ("state.memcached", {"hosts": "h:70000", "timeout": "0s"}),
        "both": ("state.sqlite", {"connectionString": SecretRef("a", "b"), "cleanupInterval": "soon"}),
        "misspelt": ("bindings.kafka", {"brokers": "h:1", "publishTopik": "t"}),
        "spared": ("state.sqlite", {"tableName": "1"}),
    }
    components = [
        Component(
            name,
            kind,
            tuple(MetadataEntry(*each, line=index) for index, each in enumerate(settings.items(), 2)),
            ignore_errors=name == "spared",
            auth_secret_store="vault",
            file=f"{name}.yaml",
            line=1,
        )
        for name, (kind, settings) in entries.items()
    ]
    vault = Component("vault", "secretstores.local.env")
    with pytest.raises(ConfigError) as raised:
        async with node("memory:", unique("wrong"), *components, vault, registry=MemoryMesh(unopened=Unopened)):
            pass
    assert [(each.file, each.line) for each in raised.value.problems] == [
        ("wrong.yaml", 2),
        ("wrong.yaml", 3),
        ("both.yaml", 3),
        ("misspelt.yaml", 3),
    ]


def spared(kind: str, **settings: str | SecretRef) -> Component:
    entries = tuple(MetadataEntry(name, value) for name, value in settings.items())
    seconds = 0.1 if kind == "state.endless" else 30.0
    return Component("c", kind, entries, ignore_errors=True, init_timeout=seconds, file="c.yaml", line=1)


@pytest.mark.parametrize(
    ("component", "why"),
    [
        (spared("state.nothing"), "there is no component type 'state.nothing'"),
        (spared("state.in-memory", keyPrefx="x"), "did you mean 'keyPrefix'"),
        (spared("state.in-memory", keyPrefix="{podName}"), "needs the variable POD_NAME"),
        (spared("state.sqlite"), "the setting connectionString is missing"),
        (spared("state.sqlite", connectionString="/dev/null/x.db"), "cannot use x.db"),
        (spared("state.sqlite", connectionString=SecretRef("a", "b")), "refers to the secret 'a'"),
        (spared("state.endless"), "it waited for its adapter state.endless"),
    ],
)
async def test_what_may_be_left_out_is_left_out(
    component: Component, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``ignoreErrors``: one warning says why, and the others work."""
    monkeypatch.delenv("POD_NAME", raising=False)
    mesh = MemoryMesh(endless=Late)
    async with node(
        "memory:", unique("spared"), component, Component("d", "state.in-memory"), registry=mesh
    ) as runtime:
        assert [each.name for each in runtime.description.components] == ["d"]
    [told] = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told.startswith("component c is left out: ")
    assert "c.yaml" in told
    assert why in told
