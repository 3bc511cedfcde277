"""Components that a cluster is behind, on a real one: secrets, a ConfigMap, keys, and Events."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bindings.kubernetes.api import Cluster
from bindings.kubernetes.crypto import KubernetesCrypto
from bindings.kubernetes.events import KubernetesEventsBinding
from mesh.blocks.binding_contract import BindingError, BindingEvent, Reading
from mesh.blocks.configuration import GET as GET_CONFIGURATION
from mesh.blocks.configuration import WATCH, ConfigurationItem, Watch
from mesh.blocks.configuration import Get as GetConfiguration
from mesh.blocks.configuration_store import digest
from mesh.blocks.crypto import Sign, Verify
from mesh.blocks.secrets import BULK, GET, Bulk, Get
from mesh.errors import SecretError
from mesh.key_value import MemoryKeyValue
from mesh.store import KeyValueStateStore
from tests.support.eventually import eventually
from tests.support.kubernetes.node import LocalCluster
from tests.support.kubernetes.operators import write_kubeconfig
from tests.support.nodes import ask, component, node, unique
from tests.support.sharing import entered

SPACE = "adapters"


@pytest.fixture
async def admin(cluster: LocalCluster) -> AsyncIterator[Cluster]:
    async with Cluster(str(cluster.kubeconfig)) as admin:
        await admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
        yield admin


def having(cluster: LocalCluster, kind: str, **settings: str) -> Any:
    return component("it", kind, kubeconfigPath=str(cluster.kubeconfig), **settings)


async def test_secrets(cluster: LocalCluster, admin: Cluster) -> None:
    """Are read as they are, one, many of them, and of another namespace; what is no text is left out."""
    about = {"name": "login", "namespace": SPACE}
    data = {"password": base64.b64encode("p\N{SNOWMAN}".encode()).decode(), "bytes": base64.b64encode(b"\xff").decode()}
    await admin.apply({"apiVersion": "v1", "kind": "Secret", "metadata": about, "data": data})
    for number in range(120):
        other = {"name": f"s{number}", "namespace": SPACE}
        await admin.apply({"apiVersion": "v1", "kind": "Secret", "metadata": other, "stringData": {"a": str(number)}})
    store = having(cluster, "secretstores.kubernetes", defaultNamespace=SPACE)
    async with node("memory:", unique("ns"), store) as runtime:
        assert await ask(runtime, GET, "it", Get("login")) == {"password": "p\N{SNOWMAN}"}
        found: Mapping[str, Mapping[str, str]] = await ask(runtime, BULK, "it", Bulk())
        assert len(found) == 121
        assert found["s119"] == {"a": "119"}
        with pytest.raises(SecretError, match="not found"):
            await ask(runtime, GET, "it", Get("login", {"namespace": "default"}))


async def test_configuration(cluster: LocalCluster, admin: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of a ConfigMap are read, and their changes come."""
    monkeypatch.setenv("NAMESPACE", SPACE)
    about = {"name": "settings", "namespace": SPACE}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"level": "info", "other": "x"}}
    await admin.apply(manifest)
    async with node(
        "memory:", unique("ns"), having(cluster, "configuration.kubernetes", configMapName="settings")
    ) as run:
        found: Mapping[str, ConfigurationItem] = await ask(run, GET_CONFIGURATION, "it", GetConfiguration(("level",)))
        assert {key: each.value for key, each in found.items()} == {"level": "info"}
        known = {key: digest(each) for key, each in found.items()}
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(ask(run, WATCH, "it", Watch(("level",), {}, known, 20.0)))
            assert not (await asyncio.wait([watching], timeout=0.2))[0]
            await admin.apply({**manifest, "data": {"level": "debug", "other": "x"}})
        assert {key: each.value for key, each in watching.result().items()} == {"level": "debug"}
        await admin.delete(await admin.path_of(manifest))
        assert await ask(run, GET_CONFIGURATION, "it", GetConfiguration(("level",))) == {}


async def test_keys(cluster: LocalCluster, admin: Cluster) -> None:
    """A key in a Secret signs, and the same key verifies."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    about = {"name": "keys", "namespace": SPACE}
    text = key.private_bytes(*form).decode()
    await admin.apply({"apiVersion": "v1", "kind": "Secret", "metadata": about, "stringData": {"rsa": text}})
    settings = having(cluster, "crypto.dapr.kubernetes.secrets", defaultNamespace=SPACE)
    crypto: Any = KubernetesCrypto.from_component(settings)
    async with crypto:
        signed = await crypto.sign(Sign(b"d" * 32, "RS256", "keys/rsa"))
        verified = await crypto.verify(Verify(b"d" * 32, "RS256", f"{SPACE}/keys/rsa", signed.signature))
        assert verified.valid


def event(name: str, text: str) -> dict[str, Any]:
    """An Event, as something of the cluster would write it."""
    about = {"name": name, "namespace": SPACE}
    involved = {"kind": "Pod", "name": "cart-0", "namespace": SPACE}
    return {"apiVersion": "v1", "kind": "Event", "metadata": about, "involvedObject": involved, "message": text}


class Taken:
    """Takes Events of this test, and notes what came."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str, str]] = []

    async def __call__(self, event: BindingEvent) -> bytes:
        told = orjson.loads(event.data)
        old, new = told["oldVal"], told["newVal"]
        name = new["metadata"].get("name") or old["metadata"]["name"]
        self.got.append((told["event"], name, old.get("message", ""), new.get("message", "")))
        return b""

    def are(self, *expected: tuple[str, str, str, str]) -> None:
        assert self.got == [*expected]


async def test_events(cluster: LocalCluster, admin: Cluster) -> None:
    """Come when they are made, change and go, each once, also those of a time when nobody read."""
    path, store = f"/api/v1/namespaces/{SPACE}/events", KeyValueStateStore(MemoryKeyValue())
    await admin.apply(event("before", "1"))
    taken = Taken()

    def adapter() -> Any:
        return KubernetesEventsBinding.from_component(having(cluster, "bindings.kubernetes", namespace=SPACE))

    async with entered(adapter(), store) as binding, binding.reading(Reading("it", "cart", taken)):
        await eventually(lambda: taken.are(("add", "before", "", "1")))
        await admin.apply(event("now", "2"))
        await admin.patch(f"{path}/now", {"message": "3"})
        await admin.delete(f"{path}/now")
        await eventually(
            lambda: taken.are(
                ("add", "before", "", "1"),
                ("add", "now", "", "2"),
                ("update", "now", "2", "3"),
                ("delete", "now", "3", ""),
            )
        )
    taken.got.clear()
    await admin.patch(f"{path}/before", {"message": "4"})
    await admin.apply(event("while-away", "5"))
    async with (
        entered(adapter(), store) as one,
        entered(adapter(), store) as other,
        one.reading(Reading("it", "cart", taken)),
        other.reading(Reading("it", "cart", taken)),
    ):
        await admin.delete(f"{path}/before")
        await eventually(
            lambda: taken.are(
                ("update", "before", "1", "4"), ("add", "while-away", "", "5"), ("delete", "before", "4", "")
            )
        )
    await admin.delete(f"{path}/while-away")


async def test_who_may_not_read(cluster: LocalCluster, admin: Cluster, tmp_path: Path) -> None:
    """Is told at start, with the words of the API server."""
    about = {"name": "nobody", "namespace": SPACE}
    await admin.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about})
    file = tmp_path / "nobody.kubeconfig"
    await write_kubeconfig(cluster, admin, SPACE, "nobody", file)
    settings = {"kubeconfigPath": str(file), "namespace": SPACE}
    made = KubernetesEventsBinding.from_component(component("it", "bindings.kubernetes", **settings))
    with pytest.raises(BindingError, match="answered 403: events is forbidden"):
        async with entered(made):
            pass
    store = component("it", "secretstores.kubernetes", defaultNamespace=SPACE, kubeconfigPath=str(file))
    async with node("memory:", unique("ns"), store) as runtime:
        with pytest.raises(SecretError, match="answered 403"):
            await ask(runtime, GET, "it", Get("login"))
