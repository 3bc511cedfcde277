"""Components on every backbone: found, kept apart by their settings, refused out of scope, missed at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from mesh import address
from mesh.blocks.configuration import GET as GET_VALUES
from mesh.blocks.configuration import WATCH, Watch
from mesh.blocks.configuration import Get as GetValues
from mesh.blocks.configuration_store import digest
from mesh.blocks.secrets import BULK, Bulk
from mesh.blocks.secrets import GET as GET_SECRET
from mesh.blocks.secrets import Get as GetSecret
from mesh.blocks.state import GET, KEYS, QUERY, SAVE, TRANSACT, Get, Keys, Listed, Save, Search
from mesh.blocks.topics import PUBLISH, Publish
from mesh.broker import Delivery, SubscribeOptions
from mesh.errors import (
    BadArgumentError,
    ComponentNotFoundError,
    ConfigError,
    DeadlineExceededError,
    HostsDifferError,
    MeshError,
    NoResponderError,
    NotConfiguredError,
    PermissionDeniedError,
    SecretError,
)
from mesh.resources.component import Component, MetadataEntry, SecretRef
from mesh.resources.configuration import Configuration, ConfigurationSpec, SecretScope, SecretsSpec
from mesh.store import Item
from tests.support.backends import Backend
from tests.support.eventually import eventually
from tests.support.kubernetes_api import KubernetesAPI
from tests.support.nodes import ask, component, node, unique
from tests.support.stores import kubeconfig_for

pytestmark = pytest.mark.requires("shared", "frames")
ONE = Save([Item("k", b"1")])


@pytest.fixture
def url(shared_backend: Backend, backend_name: str) -> str:
    if backend_name == "embedded":
        pytest.skip("the same server as nats, found by other means")
    return shared_backend.url


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """A node's start reads what is installed, once, before anything runs; the suite's detector would refuse it."""


@pytest.fixture
def namespace() -> str:
    return unique("hosting")


def memory(
    name: str = "store", placement: str | None = "backbone", scopes: tuple[str, ...] = (), **more: str
) -> Component:
    return component(name, "state.in-memory", placement=placement, scopes=scopes, **more)


async def test_a_component_that_nobody_has_is_missed_at_once(url: str, namespace: str) -> None:
    """And one whose host is told to keep it for itself, as a type that is bound to a process is by itself."""
    local, bound = memory("local", "local"), memory("bound", None)
    async with node(url, namespace, local, bound), node(url, namespace, app_id="asker") as asker:
        for name in ("nobody", "local", "bound"):
            started = time.monotonic()
            with pytest.raises(NotConfiguredError):
                await ask(asker, GET, name, Get("k"), deadline=time.time() + 60)
            assert time.monotonic() - started < 30  # Long before the deadline.
        for name in ("x" * 5000, "x" * 100_000, ""):
            with pytest.raises(NotConfiguredError):
                await ask(asker, GET, name, Get("k"))
        with pytest.raises(NotConfiguredError):  # The connection is as it was.
            await ask(asker, GET, "nobody", Get("k"))
    async with node(url, namespace, memory("mine", None)) as having:
        with pytest.raises(ComponentNotFoundError):
            await ask(having, GET, "nobody", Get("k"))
        await ask(having, SAVE, "mine", ONE)


async def test_another_block_of_the_same_name_is_none(url: str, namespace: str) -> None:
    """A secret store is no state store."""
    secrets = component("store", "secretstores.local.env", placement="backbone", prefix="X_")
    async with node(url, namespace, secrets), node(url, namespace, app_id="asker") as asker:
        with pytest.raises(NotConfiguredError):
            await ask(asker, GET, "store", Get("k"))


async def test_scopes_are_checked_by_the_host(url: str, namespace: str) -> None:
    """By who asks; who is not in scope does not even find it."""
    async with (
        node(url, namespace, memory(scopes=("friend", "host")), app_id="host") as host,
        node(url, namespace, app_id="friend") as friend,
        node(url, namespace, app_id="stranger") as stranger,
    ):
        await ask(friend, SAVE, "store", ONE)
        assert (await ask(friend, GET, "store", Get("k"))).value == b"1"
        assert await ask(host, GET, "store", Get("k")) is None  # Its own keys.
        with pytest.raises(NotConfiguredError):
            await ask(stranger, GET, "store", Get("k"))
        # A host's own API is no way around, whatever it has opened.
        with pytest.raises(ComponentNotFoundError):
            await ask(host, GET, "store", Get("k"), app_id="stranger")
        # Whoever knows the address from elsewhere is refused there.
        found = friend.parts.hosts._known
        stranger.parts.hosts._known.update({("state", "store", "stranger"): found["state", "store", "friend"]})
        with pytest.raises(PermissionDeniedError, match="not in the scope of app id stranger"):
            await ask(stranger, GET, "store", Get("k"))


async def test_what_a_nodes_own_files_withhold_is_nobodys(
    url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Although another node has one of the name for everybody; once the files say so no more, it is found."""
    caplog.set_level("INFO", "mesh.host")
    secrets = component("vault", "secretstores.local.env", placement="backbone", prefix="X_")
    own = [memory(scopes=("friend",)), replace(secrets, scopes=("friend",))]
    async with (
        node(url, namespace, memory(), secrets, app_id="host") as host,
        node(url, namespace, *own, app_id="asker") as asker,
        node(url, namespace, app_id="other", withheld=frozenset({"store"})) as other,
    ):
        await ask(host, SAVE, "store", ONE)
        for runtime in (asker, other):
            with pytest.raises(NotConfiguredError):
                await ask(runtime, GET, "store", Get("k"))
            with pytest.raises(NotConfiguredError):
                await ask(runtime, SAVE, "store", ONE)
        with pytest.raises(NotConfiguredError):
            await ask(asker, GET_SECRET, "vault", GetSecret("A"))
        assert "components that are for other applications by their scopes: store, vault" in caplog.messages
        await other.reload(replace(other.settings, withheld=frozenset()))
        for _ in range(2):
            assert await ask(other, GET, "store", Get("k")) is None  # Its own keys.
    assert caplog.messages.count("state store store is another node's: host") == 1


async def test_queries_and_lists_cross_the_backbone(url: str, namespace: str) -> None:
    """As the application's own would be, and so do their errors."""
    async with (
        node(url, namespace, memory(), memory("plain", ttlInSeconds="100"), app_id="host"),
        node(url, namespace, app_id="asker") as asker,
    ):
        await ask(asker, SAVE, "store", Save([Item(f"k{n}", b'{"n":%d}' % n) for n in range(3)]))
        found = await ask(asker, QUERY, "store", Search(b'{"filter": {"GTE": {"n": 1}}, "page": {"limit": 1}}'))
        assert ([match.key for match in found.matches], bool(found.token)) == (["k1"], True)
        assert await ask(asker, KEYS, "store", Keys("k", "k0", 1)) == Listed(("k1",), "k1")
        with pytest.raises(BadArgumentError, match="the query is no JSON"):
            await ask(asker, QUERY, "store", Search(b"{"))
        await ask(asker, SAVE, "plain", ONE)
        assert (await ask(asker, GET, "plain", Get("k"))).expires_at is not None


async def test_the_outbox_of_a_host(url: str, namespace: str) -> None:
    """Its events are of the application that wrote; that needs no pub/sub component."""
    store = memory(outboxPublishPubsub="pubsub", outboxPublishTopic="orders")
    taken: list[object] = []

    async def take(delivery: Delivery) -> None:
        taken.append(orjson.loads(delivery.message.body))
        await delivery.ack()

    async with (
        node(url, namespace, component("pubsub", "pubsub.mesh"), store, app_id="host") as host,
        node(url, namespace, app_id="asker") as asker,
        host.broker.subscribe(address.topic(namespace, "pubsub", "orders"), SubscribeOptions("watch"), take),
    ):
        await ask(asker, TRANSACT, "store", Save([Item("k", b'{"n":1}')]))

        def check() -> None:
            assert [(each["data"], each["source"]) for each in taken] == [({"n": 1}, "asker")]  # type: ignore[index]

        await eventually(check)
        assert (await ask(asker, GET, "store", Get("k"))).value == b'{"n":1}'


async def test_hosts_of_equal_settings_compete(url: str, namespace: str) -> None:
    """One that leaves is not missed."""
    async with node(url, namespace, app_id="asker") as asker:
        async with node(url, namespace, memory(), app_id="one") as one:
            async with node(url, namespace, memory(), app_id="two"):
                for _ in range(20):
                    await ask(asker, GET, "store", Get("k"))
            await ask(asker, SAVE, "store", ONE)
            assert (await ask(one, GET, "store", Get("k"), app_id="asker")).value == b"1"
        with pytest.raises(NoResponderError, match="no host of component store") as raised:
            await ask(asker, GET, "store", Get("k"))
        assert raised.value.retryable
        async with node(url, namespace, memory(), app_id="three"):

            async def found_again() -> None:
                try:
                    await ask(asker, SAVE, "store", ONE)
                except NoResponderError as error:
                    raise AssertionError from error

            await eventually(found_again)


async def test_hosts_of_other_settings_are_never_mixed(url: str, namespace: str) -> None:
    """Who asks for the first time is told; who asked before stays with those it knows."""
    async with (
        node(url, namespace, app_id="early") as early,
        node(url, namespace, app_id="late") as late,
        node(url, namespace, memory(), app_id="one"),
    ):
        await ask(early, SAVE, "store", ONE)
        async with node(url, namespace, memory(other="setting"), app_id="two"):
            for _ in range(10):
                assert (await ask(early, GET, "store", Get("k"))).value == b"1"
            with pytest.raises(HostsDifferError, match="configured differently by its hosts, one and two"):
                await ask(late, GET, "store", Get("k"))
        assert await ask(late, GET, "store", Get("k")) is None


async def test_who_waits_for_a_change_waits_at_the_host(url: str, namespace: str, tmp_path: Path) -> None:
    """Until there is one, until the time is over, or until the host leaves; other operations pass meanwhile."""
    async with KubernetesAPI("conf") as api, node(url, namespace, app_id="asker") as asker:
        file = str(kubeconfig_for(api, tmp_path))
        store = component("conf", "configuration.kubernetes", configMapName="conf", kubeconfigPath=file)
        async with asyncio.TaskGroup() as tasks, node(url, namespace, store, app_id="host"):
            api.put("a", "0")
            found = await ask(asker, GET_VALUES, "conf", GetValues(("a", "b")))
            assert {key: item.value for key, item in found.items()} == {"a": "0"}
            asked = Watch(("a", "b"), {}, {"a": digest(found["a"])}, 10.0)
            assert await ask(asker, WATCH, "conf", replace(asked, seconds=0.2)) == {}
            watching = [tasks.create_task(ask(asker, WATCH, "conf", asked)) for _ in range(20)]
            assert not (await asyncio.wait(watching, timeout=0.5))[0]
            assert set(await ask(asker, GET_VALUES, "conf", GetValues())) == {"a"}
            api.put("b", "1")
            for each in watching:
                assert set(await each) == {"b"}
            asked = Watch(("a",), {}, {"a": digest(found["a"])}, 10.0)
            watching = [tasks.create_task(ask(asker, WATCH, "conf", asked))]
            assert not (await asyncio.wait(watching, timeout=0.2))[0]
            began = time.monotonic()
        assert watching[0].result() == {}
        assert time.monotonic() - began < 9.5


async def test_publish_subscribe_is_not_hosted(url: str, namespace: str) -> None:
    """A placement does not concern it: every node has its own connection."""
    settings = {"configuration": Configuration("c", ConfigurationSpec(placement="backbone"))}
    async with node(url, namespace, component("pubsub", "pubsub.mesh"), **settings) as publisher:
        await ask(publisher, PUBLISH, "pubsub", Publish("t", b"1"))


async def test_secrets(url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway reads them, and opens components with them, without the file; its own scopes hold."""
    file = tmp_path / "secrets.json"
    file.write_text('{"db": {"password": "s3cret"}, "other": "o"}')
    store = component("vault", "secretstores.local.file", placement="backbone", secretsFile=str(file))
    scope = SecretsSpec((SecretScope("vault", denied_secrets=("other",)),))
    refers = Component(
        "files",
        "state.sqlite",
        (MetadataEntry("connectionString", SecretRef("db:password", "db:password")),),
        auth_secret_store="vault",
    )
    monkeypatch.chdir(tmp_path)
    async with node(url, namespace, store, app_id="host"):
        settings = {"configuration": Configuration("c", ConfigurationSpec(secrets=scope))}
        async with node(url, namespace, refers, app_id="asker", **settings) as asker:
            assert (tmp_path / "s3cret").exists()
            assert await ask(asker, GET_SECRET, "vault", GetSecret("db:password")) == {"db:password": "s3cret"}
            assert await ask(asker, BULK, "vault", Bulk()) == {"db:password": {"db:password": "s3cret"}}
            with pytest.raises(PermissionDeniedError, match='access denied by policy to get "other" from "vault"'):
                await ask(asker, GET_SECRET, "vault", GetSecret("other"))
            with pytest.raises(SecretError, match="secret none not found"):
                await ask(asker, GET_SECRET, "vault", GetSecret("none"))
    with pytest.raises(ConfigError, match=r"refers to the secret 'db:password'"):
        async with node(url, unique("other"), refers):
            pass


async def test_a_stalled_broker(shared_backend: Backend, backend_name: str, namespace: str) -> None:
    """An operation ends at its deadline, whatever the connection does."""
    if backend_name == "embedded" or shared_backend.port is None:
        pytest.skip("cannot be put behind a proxy")
    async with shared_backend.proxy() as proxy, node(shared_backend.url, namespace, memory(), app_id="host"):
        asking = node(shared_backend.url_through(proxy), namespace, app_id="asker")
        async with asking as asker:
            await ask(asker, SAVE, "store", ONE)
            proxy.stall()
            try:
                started = time.monotonic()
                with pytest.raises(MeshError) as raised:
                    await ask(asker, GET, "store", Get("k"), deadline=time.time() + 1.0)
                assert isinstance(raised.value, DeadlineExceededError)
                assert raised.value.retryable
                assert time.monotonic() - started < 8
            finally:
                proxy.resume()
            assert (await ask(asker, GET, "store", Get("k"), deadline=time.time() + 20)).value == b"1"
