"""A root in a secret store: what issues by it, and what is said where it is of no use."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.configure import gateway_config
from gateway.cli.dispatch import main
from gateway.cli.options import GatewayOptions
from gateway.settings import load_settings
from mesh.errors import ConfigError, Problem
from mesh.registry import Registry
from mesh.trust import files, secret
from mesh.trust.certificates import check_chain, make_root, read_certificates
from mesh.trust.credential import Own
from mesh.trust.files import guarding
from mesh.trust.folder import Root
from mesh.trust.guard import Guard
from mesh.trust.identity import Identity, RootSecret, TrustSettings
from mesh.trust.secret import IssuedBySecret, read_root, texts_of
from tests.support.bao_server import BaoServer
from tests.support.eventually import eventually
from tests.support.nodes import component

SHOP = Identity("public", "default", "shop")
DAY = datetime.timedelta(days=1)
RESOURCE = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: vault
scopes:
- nobody
spec:
  type: secretstores.local.file
  version: v1
  metadata:
  - name: secretsFile
    value: {file}
  - name: multiValued
    value: "true"
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(secret, "LOOK_SECONDS", 0.02)


def new_root(trust_domain: str = "public", ttl: datetime.timedelta = DAY) -> Root:
    root, key = make_root(trust_domain, ttl)
    return Root([root], key, "", "")


def one_text(root: Root) -> str:
    return "".join(texts_of(root).values())


class Store:
    """A file of secrets."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "secrets.json"
        self.resources = folder / "resources"
        self.resources.mkdir()
        (self.resources / "vault.yaml").write_text(RESOURCE.format(file=self._file))
        self.secret = RootSecret(
            "vault",
            "root",
            component("vault", "secretstores.local.file", secretsFile=str(self._file), multiValued="true"),
        )

    def write(self, value: object) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps({"root": value, "other": "x"}))
        draft.replace(self._file)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def read(named: RootSecret) -> Root:
    return await read_root(named, Registry(), "default", "shop")


def guarded(named: RootSecret, trust_domain: str = "public") -> Any:
    return guarding(TrustSettings("strict", trust_domain, secret=named), "default", "shop", Registry())


async def test_a_root_in_two_texts_or_in_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a variable."""
    root = new_root()
    monkeypatch.setenv("ROOT", one_text(root))
    variable = RootSecret("env", "ROOT", component("env", "secretstores.local.env"))
    for written in (texts_of(root), {**texts_of(root), "note": "x"}, one_text(root)):
        store.write(written)
        for named in (store.secret, variable):
            found = await read(named)
            assert found.roots == root.roots
            assert found.own() == root.roots[0]


async def test_a_node_issues_its_own_and_follows_a_rotation(store: Store) -> None:
    """New roots come first, and the new key later."""
    old = new_root()
    store.write(texts_of(old))
    async with guarded(store.secret) as guard:
        first, number = guard.own, serial(guard)
        assert first.identity == SHOP
        new = old.rotated(DAY)
        store.write({**texts_of(old), "roots.pem": texts_of(new)["roots.pem"]})
        await eventually(lambda: _differ(guard.own, first))
        second = guard.own
        guard.peers.get(new_credential(new))
        store.write(texts_of(new))
        guard.peers.get(second.header)
        assert serial(guard) == number  # Others may not know the new root yet.
        store.write(texts_of(Root([new.own()], new.key, "", "")))
        await eventually(lambda: _differ(guard.own, second))
        assert serial(guard) != number


def new_credential(root: Root) -> str:
    return Own(root.issue(SHOP), SHOP).header


async def test_a_certificate_is_renewed_when_half_of_its_life_is_over(store: Store) -> None:
    root = new_root()
    store.write(texts_of(root))
    source = IssuedBySecret(store.secret, SHOP, Registry())
    first = await source.first()
    for hours, renewed in ((24.0, False), (0.01, True)):  # It counts from five minutes before.
        source._issued, source._look_at = root.issue(SHOP, datetime.timedelta(hours=hours)), 0.0
        assert (await source.renewed() is not None) is renewed
    assert source._issued.chain != first.chain
    assert source.ending() == ""


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no key": (lambda: {"roots.pem": texts_of(new_root())["roots.pem"]}, "vault/root has no root.key"),
    "no roots": (lambda: {"root.key": texts_of(new_root())["root.key"]}, "vault/root has no roots.pem"),
    "neither": (lambda: {"a": "b", "c": "d"}, "vault/root has no roots.pem and root.key"),
    "empty": (lambda: "", "vault/root has no roots.pem and root.key"),
    "garbage": (lambda: "garbage", "vault/root holds no certificates"),
    "a garbled root": (
        lambda: {**texts_of(new_root()), "roots.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
        "roots.pem of the secret vault/root holds no certificates",
    ),
    "a garbled key": (
        lambda: {**texts_of(new_root()), "root.key": "-----BEGIN PRIVATE KEY-----\nsecret"},
        "root.key of the secret vault/root holds no private key",
    ),
    "another key": (
        lambda: {**texts_of(new_root()), "root.key": texts_of(new_root())["root.key"]},
        "root.key of the secret vault/root is not of a root in roots.pem of the secret vault/root",
    ),
    "expired": (lambda: texts_of(new_root(ttl=-datetime.timedelta(seconds=9))), "the root has expired"),
    "of another trust domain": (lambda: texts_of(new_root("other")), "is of the trust domain other, not of"),
}


@pytest.mark.parametrize("how", BAD)
async def test_what_is_of_no_use_is_told(store: Store, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """At start it is an error, in use it leaves what was there; nothing of it is told."""
    made, told = BAD[how]
    store.write(made())
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        async with guarded(store.secret):
            raise AssertionError
    assert "BEGIN" not in str(caught.value)
    good = new_root()
    store.write(texts_of(good))
    async with guarded(store.secret) as guard:
        first = guard.own
        store.write(made())
        await eventually(lambda: _told(caplog, "is not renewed, the former one is used"))
        assert guard.own is first
        store.write(texts_of(good.rotated(DAY)))
        await eventually(lambda: _differ(guard.own, first))
    assert "BEGIN" not in caplog.text


async def test_a_store_that_cannot_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot read the secrets file"):
        await read(store.secret)
    store.write(texts_of(new_root()))
    with pytest.raises(ConfigError, match="the secret vault/none cannot be read: secret none not found"):
        await read(RootSecret("vault", "none", store.secret.component))
    monkeypatch.setattr(secret, "READ_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Nobody accepts.
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hangs = component("vault", "secretstores.hashicorp.vault", vaultAddr=address, vaultToken="t")
        with pytest.raises(ConfigError, match=r"the secret vault/root could not be read within 0\.5 s"):
            await read(RootSecret("vault", "root", hangs))


@pytest.mark.costly
async def test_a_root_in_a_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the server is away, what was issued is used."""
    old = new_root()
    async with BaoServer(tmp_path / "bao") as server:

        def write(root: Root) -> None:
            server.ask("POST", "secret/data/dapr/mesh/root", {"data": texts_of(root)})

        await asyncio.to_thread(write, old)
        settings = {"vaultAddr": server.url, "vaultToken": server.token, "enginePath": "secret"}
        named = RootSecret.parse("vault/mesh/root").among(
            [component("vault", "secretstores.hashicorp.vault", **settings)]
        )
        async with guarded(named) as guard:
            first = guard.own
            await server.kill()
            await eventually(lambda: _told(caplog, "is not renewed, the former one is used"))
            assert guard.own is first
            await server.start()
            await asyncio.to_thread(write, old.rotated(DAY))
            await eventually(lambda: _differ(guard.own, first))


def test_the_command_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes is what it reads."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    where = ["--trust-secret", "vault/root", "-d", str(store.resources)]

    def texts(*words: str) -> dict[str, str]:
        assert main(["trust", *words]) == 0
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    def shown() -> list[bool]:
        assert main(["trust", "show", "-o", "json", *where]) == 0
        return [each["issues"] for each in json.loads(capsys.readouterr().out)]

    begun = texts("init", "--output", "json")
    assert begun["root.key"] == (tmp_path / "home/trust/root.key").read_text()
    store.write(begun)
    assert shown() == [True]
    turned = texts("rotate", "--output", "json", *where)
    store.write({**turned, "root.key": begun["root.key"]})
    assert shown() == [False, True]
    store.write(turned)
    assert shown() == [True, False]
    assert main(["trust", "issue", "shop", "--out", str(out), *where]) == 0
    chain, roots = (read_certificates((out / each).read_bytes(), "") for each in ("shop.pem", "roots.pem"))
    assert (check_chain(chain, roots, "public"), len(roots)) == (SHOP, 2)
    store.write(texts("rotate", "--finish", "-o", "json", *where))
    assert shown() == [True]
    assert check_chain(chain, read_certificates(turned["roots.pem"].encode(), "")[:1], "public") == SHOP


REFUSED: dict[str, tuple[list[str], str]] = {
    "nobody can write to a store": (["rotate", "--trust-secret", "vault/root"], "secret stores are only read here"),
    "no name": (["show", "--trust-secret", "vault"], "'vault' is not STORE/NAME"),
    "no such store": (["show", "--trust-secret", "other/root"], "no secret store 'other'; they have: vault"),
    "two places": (["show", "--trust-secret", "vault/root", "--trust-dir", "t"], "without --trust-dir"),
    "another form": (["init", "--output", "yaml"], "init and rotate write json"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_the_command_line_refuses(store: Store, capsys: pytest.CaptureFixture[str], how: str) -> None:
    words, told = REFUSED[how]
    assert main(["trust", *words, "-d", str(store.resources)]) != 0
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("what", ["init", "rotate"])
def test_no_key_is_shown_on_a_terminal(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Nothing is made then."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["trust", what, "-o", "json", "--trust-dir", str(tmp_path / "trust")]) != 0
    assert "a terminal would show" in capsys.readouterr().err
    assert not (tmp_path / "trust").exists()


def test_a_gateway_finds_the_store_and_its_application_does_not(store: Store, tmp_path: Path) -> None:
    """Its scopes name nobody."""
    resources = (str(store.resources),)
    options = GatewayOptions(app_id="shop", trust_secret="vault/root", resources_path=resources)
    config = gateway_config(options, {"MESH_HOME": str(tmp_path)})
    assert config.trust is not None
    assert config.trust.folder is None
    warnings: list[Problem] = []
    settings = load_settings(config, warnings)
    assert warnings == []
    assert settings.trust is not None
    assert settings.trust.secret is not None
    assert settings.trust.secret.component is not None
    assert "vault" not in {each.name for each in settings.components or ()}
    (store.resources / "vault.yaml").write_text(RESOURCE.format(file="x").replace("nobody", "shop"))
    load_settings(config, warnings)
    [warning] = warnings
    assert "application shop can read the root in vault/root, and be anybody" in str(warning)
    for given, told in (
        (GatewayOptions(app_id="shop", trust_secret="vault"), "is not STORE/NAME"),
        (GatewayOptions(app_id="shop", trust_secret="v/r", trust_dir="t"), "there can be one"),
        (GatewayOptions(app_id="shop", trust_secret="v/r", trust_socket="unix:///s"), "there can be one"),
    ):
        with pytest.raises(ConfigError, match=told):
            gateway_config(given, {"MESH_HOME": str(tmp_path)})
    for paths, named in (((), "vault/root"), (resources, "other/root")):
        options = GatewayOptions(app_id="shop", trust_secret=named, resources_path=paths)
        with pytest.raises(ConfigError, match="have no secret store"):
            load_settings(gateway_config(options, {"MESH_HOME": str(tmp_path)}), [])


def test_files_that_are_wrong_beside_the_store(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of others stop nobody, unless the store is not found; its own are told, and nothing else for them."""
    store.write(texts_of(new_root()))
    options = GatewayOptions(app_id="shop", trust_secret="vault/root", resources_path=(str(store.resources),))
    config = gateway_config(options, {"MESH_HOME": str(tmp_path)})
    other = store.resources / "other.yaml"
    wrong = RESOURCE.format(file="x").replace("name: vault", "name: other").replace("version: v1", "version: [1]")

    def told() -> list[str | None]:
        with pytest.raises(ConfigError) as caught:
            load_settings(config, [])
        return [each.file for each in caught.value.problems]

    other.write_text(wrong)
    settings = load_settings(config, [])
    assert settings.trust is not None
    assert settings.trust.secret is not None
    assert settings.trust.secret.component is not None
    show = ["trust", "show", "-o", "json", "--trust-secret", "vault/root", "-d", str(store.resources)]
    assert main(show) == 0
    other.write_text(wrong.replace("nobody", "shop"))
    assert told() == [str(other)]
    other.write_text(wrong)
    (store.resources / "vault.yaml").write_text(wrong.replace("name: other", "name: vault"))
    assert told() == [None, str(other), str(store.resources / "vault.yaml")]
    capsys.readouterr()
    assert main(show) != 0
    assert "have no secret store 'vault'" in (err := capsys.readouterr().err)
    assert f"{store.resources}/vault.yaml:" in err


def serial(guard: Guard) -> int:
    peer = guard.peers.get(guard.own.header)
    assert peer is not None
    return peer.leaf.serial_number


def _differ(one: object, another: object) -> None:
    assert one is not another


def _told(caplog: pytest.LogCaptureFixture, text: str) -> None:
    assert text in caplog.text
