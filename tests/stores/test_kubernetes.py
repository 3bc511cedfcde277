"""What is particular to the ConfigMap of a cluster, on answers as the Kubernetes documentation shows them."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest

from bindings.kubernetes._access import Access, find_access, in_cluster, kubeconfig
from mesh.blocks.configuration import GET, WATCH, ConfigurationItem, Get, Watch
from mesh.blocks.configuration_store import digest
from mesh.errors import ConfigError, ConfigurationError
from mesh.node.runtime import Runtime
from tests.support.certificates import Authority
from tests.support.kubernetes_api import KubernetesAPI
from tests.support.nodes import ask, component, node, unique
from tests.support.stores import kubeconfig_for


def having(api: KubernetesAPI, directory: Path, **settings: str) -> Runtime:
    file = kubeconfig_for(api, directory)
    settings = {"configMapName": "conf", "kubeconfigPath": str(file), **settings}
    return node("memory:", unique("ns"), component("store", "configuration.kubernetes", **settings))


async def values(runtime: Runtime, *keys: str) -> Mapping[str, ConfigurationItem]:
    found: Mapping[str, ConfigurationItem] = await ask(runtime, GET, "store", Get(keys))
    return found


async def watch(runtime: Runtime, known: Mapping[str, ConfigurationItem], seconds: float = 8.0) -> object:
    digests = {key: digest(item) for key, item in known.items()}
    return await ask(runtime, WATCH, "store", Watch((), {}, digests, seconds))


async def test_what_is_read(tmp_path: Path) -> None:
    """Texts, and bytes as base64; the version is that of the whole, and another one changes no other value."""
    async with KubernetesAPI("conf") as api, having(api, tmp_path) as runtime:
        assert await values(runtime) == {}
        api.put("log.level", "info")
        api.put("blob", b"\xff\x00")
        first = await values(runtime)
        encoded = ConfigurationItem("/wA=", "102", {"encoding": "base64"}, shared_version=True)
        assert first == {"blob": encoded, "log.level": ConfigurationItem("info", "102", shared_version=True)}
        api.put("log.level", "debug")
        changed = await watch(runtime, first, seconds=0.0)
        assert changed == {"log.level": ConfigurationItem("debug", "103", shared_version=True)}
        api.remove()
        assert await watch(runtime, first, seconds=0.0) == {"blob": None, "log.level": None}
        path, query, authorization = api.asked[0]
        assert (path, query, authorization) == ("/api/v1/namespaces/default/configmaps/conf", {}, "Bearer t0ken")


async def test_streams_that_end(tmp_path: Path) -> None:
    """In their time, by an error, or with the server: a change is told all the same."""
    async with KubernetesAPI("conf") as api, having(api, tmp_path) as runtime:
        api.put("a", "0")
        for number, end in enumerate((api.end_streams, api.expire, api.remove), 1):
            known = await values(runtime)
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch(runtime, known))
                assert not (await asyncio.wait([watching], timeout=0.1))[0]
                end()
                if end != api.remove:
                    assert not (await asyncio.wait([watching], timeout=0.1))[0]
                    api.put("a", str(number))
            assert list(watching.result()) == ["a"]
            api.put("a", "back")
        known = await values(runtime)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(runtime, known))
            assert not (await asyncio.wait([watching], timeout=0.1))[0]
            await api.__aexit__()
            api.put("a", "while it was away")
            await api.__aenter__()
        assert list(watching.result()) == ["a"]


async def test_who_may_not_read_it(tmp_path: Path) -> None:
    """At start, and later: the server's own words, and not the token."""
    async with KubernetesAPI("conf") as api:
        api.refuses = 403
        with pytest.raises(ConfigError, match=r'answered 403: configmaps "conf" is forbidden') as raised:
            async with having(api, tmp_path):
                pass
        assert "t0ken" not in str(raised.value)
        api.refuses = 0
        async with having(api, tmp_path) as runtime:
            api.refuses = 401
            with pytest.raises(ConfigurationError, match="answered 401"):
                await values(runtime)
    with pytest.raises(ConfigError, match="cannot be asked"):
        async with having(api, tmp_path):
            pass


@pytest.mark.parametrize("name", ["", "Conf", "a/b", "-a", "x" * 64, "a.b"])
async def test_a_wrong_name(tmp_path: Path, name: str) -> None:
    """Is told with its place, before anything is asked."""
    api = KubernetesAPI("conf")
    with pytest.raises(ConfigError, match=r"configMapName: (must not be empty|is lower-case letters)"):
        async with having(api, tmp_path, configMapName=name):
            pass


async def test_an_unknown_cluster() -> None:
    """Is told at start."""
    store = component("store", "configuration.kubernetes", configMapName="conf", kubeconfigPath="/nowhere/config")
    with pytest.raises(ConfigError, match=r"cannot tell how to reach the cluster: .*/nowhere/config"):
        async with node("memory:", "ns", store):
            pass


def config(cluster: object, user: object) -> str:
    return orjson.dumps(
        {
            "current-context": "here",
            "contexts": [{"name": "other", "context": {}}, {"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        }
    ).decode()


SERVER = {"server": "https://k8s:6443/"}


@pytest.mark.parametrize(
    ("cluster", "user", "access"),
    [
        (SERVER, {"token": "t"}, Access("https://k8s:6443", token="t")),
        (SERVER, {"token": "t", "tokenFile": "f"}, Access("https://k8s:6443", token="t")),
        (SERVER, {"tokenFile": "f"}, Access("https://k8s:6443", token_file=Path("/d/f"))),
        (SERVER, {"tokenFile": "/f"}, Access("https://k8s:6443", token_file=Path("/f"))),
        (SERVER, {"username": "n", "password": "p"}, Access("https://k8s:6443", login=("n", "p"))),
        (
            {**SERVER, "insecure-skip-tls-verify": True, "tls-server-name": "s"},
            {},
            Access("https://k8s:6443", verify=False, server_name="s"),
        ),
        (
            {**SERVER, "certificate-authority-data": base64.b64encode(b"PEM").decode()},
            {"client-certificate-data": "Yw==", "client-key-data": "aw=="},
            Access("https://k8s:6443", "PEM", certificate=("c", "k")),
        ),
    ],
)
def test_kubeconfigs(cluster: object, user: object, access: Access) -> None:
    """The current context counts."""
    assert kubeconfig(config(cluster, user), Path("/d")) == access


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (": :", "is no YAML"),
        ("[]", "there is no context None in it"),
        ("current-context: c", "there is no context 'c' in it"),
        (config({}, {}), "the cluster has no server"),
        (config(SERVER, {"exec": {"command": "aws"}}), r"gives credentials \(exec\) is not supported; use a token"),
        (config(SERVER, {"auth-provider": {"name": "gcp"}}), r"an auth provider \(auth-provider\) is not supported"),
        (config({**SERVER, "certificate-authority-data": "?"}, {}), "certificate-authority-data is no base64"),
    ],
)
def test_wrong_kubeconfigs(text: str, problem: str) -> None:
    """Say what is wrong."""
    with pytest.raises(ValueError, match=problem):
        kubeconfig(text, Path("/d"))


def test_in_a_pod(tmp_path: Path) -> None:
    """The service account's files, and the server's address, of version 6 as well."""
    (tmp_path / "ca.crt").write_text("PEM")
    (tmp_path / "token").write_text("t")
    for host, shown in (("10.0.0.1", "10.0.0.1"), ("fd00::1", "[fd00::1]")):
        environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "6443"}
        access = Access(f"https://{shown}:6443", "PEM", token_file=tmp_path / "token")
        assert in_cluster(environ, tmp_path) == access


def test_where_it_is_looked_for(tmp_path: Path) -> None:
    """A file that is named goes before the variable; of several the first counts."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(config({"server": f"http://{name}"}, {}))
    environ = {"KUBECONFIG": f"{tmp_path / 'one'}:{tmp_path / 'two'}"}
    assert find_access(None, environ).server == "http://one"
    in_a_pod = {**environ, "KUBERNETES_SERVICE_HOST": "h"}
    assert find_access(str(tmp_path / "two"), in_a_pod).server == "http://two"
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "none"))):
        find_access(str(tmp_path / "none"), environ)


def test_certificates(tmp_path: Path) -> None:
    """Of the server and of the client; a broken one is told without its text."""
    authority = Authority(tmp_path / "ca")
    mine = authority.issue("client")
    pem = (mine.certificate.read_text(), mine.key.read_text())
    context = Access("https://k8s", authority.text, certificate=pem).tls()
    assert context is not None
    assert len(context.get_ca_certs()) == 1
    assert Access("http://k8s").tls() is None
    with pytest.raises(ValueError, match="a certificate or a key of https://k8s cannot be read") as raised:
        Access("https://k8s", authority.text, certificate=(pem[0], "s3cret")).tls()
    assert "s3cret" not in str(raised.value)
