"""What one secret store has that others have not: who it asks as, and how its secrets are named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.blocks.secrets import BULK, GET, Bulk, Get
from mesh.errors import ConfigError, SecretError
from tests.support.bao_server import BaoServer
from tests.support.hand_servers import AzureVault, GoogleSecrets, KubernetesSecrets
from tests.support.moto_server import CREDENTIALS, MotoServer
from tests.support.nodes import ask, component, node, unique
from tests.support.stores import kubeconfig_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

VAULT = "secretstores.hashicorp.vault"
AWS = "secretstores.aws.secretmanager"
GCP = "secretstores.gcp.secretmanager"
AZURE = "secretstores.azure.keyvault"
KUBERNETES = "secretstores.kubernetes"


async def read(kind: str, settings: Mapping[str, str], name: str, **metadata: str) -> Any:
    """Open a store and read a secret; all of them without a name."""
    patient = replace(component("store", kind, **settings), init_timeout=30.0)  # A library's attempts take their time.
    async with node("memory:", unique("secrets"), patient) as runtime:
        if not name:
            return await ask(runtime, BULK, "store", Bulk(metadata))
        return await ask(runtime, GET, "store", Get(name, metadata))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bao(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BaoServer]:
    async with BaoServer(tmp_path_factory.mktemp("bao")) as server:
        yield server


async def test_vault_paths(bao: BaoServer) -> None:
    """A secret's name is its path below the prefix; all are found, however deep."""
    for path, value in (("team/db", "1"), ("team/deep/er", "2"), ("top", "3")):
        await asyncio.to_thread(bao.ask, "POST", f"secret/data/paths/{path}", {"data": {"v": value, "n": {"a": [1]}}})
    settings = {"vaultAddr": bao.url, "vaultToken": bao.token, "vaultKVPrefix": "paths"}
    assert await read(VAULT, settings, "team/db") == {"v": "1", "n": '{"a":[1]}'}
    found = await read(VAULT, settings, "")
    assert {name: secret["v"] for name, secret in found.items()} == {"team/db": "1", "team/deep/er": "2", "top": "3"}
    whole = {**settings, "vaultKVUsePrefix": "false", "vaultValueType": "text"}
    assert await read(VAULT, whole, "paths/top") == {"paths/top": '{"n":{"a":[1]},"v":"3"}'}


async def test_vault_deleted_versions(bao: BaoServer) -> None:
    """They are not there, and all others still are."""
    settings = {"vaultAddr": bao.url, "vaultToken": bao.token, "vaultKVPrefix": "deleted"}
    for name in ("a", "b"):
        await asyncio.to_thread(bao.ask, "POST", f"secret/data/deleted/{name}", {"data": {"v": name}})
    await asyncio.to_thread(bao.ask, "DELETE", "secret/data/deleted/a")
    with pytest.raises(SecretError, match="secret a not found"):
        await read(VAULT, settings, "a")
    assert await read(VAULT, settings, "") == {"b": {"v": "b"}}


async def test_vault_tokens(bao: BaoServer, tmp_path: Path) -> None:
    """In a file that is replaced while it is used; one that may not read is told, and never shown."""
    file = tmp_path / "token"
    file.write_text(f"{bao.token}\n")
    await asyncio.to_thread(bao.ask, "POST", "secret/data/dapr/a", {"data": {"v": "1"}})
    settings = {"vaultAddr": bao.url, "vaultTokenMountPath": str(file)}
    async with node("memory:", unique("secrets"), component("store", VAULT, **settings)) as runtime:
        assert await ask(runtime, GET, "store", Get("a")) == {"v": "1"}
        file.write_text("s.other")
        with pytest.raises(SecretError, match=r"Vault answered 403: .*permission denied") as raised:
            await ask(runtime, GET, "store", Get("a"))
        assert "s.other" not in str(raised.value)
        assert not raised.value.retryable
        file.unlink()
        with pytest.raises(SecretError, match="the file of the token cannot be read"):
            await ask(runtime, GET, "store", Get("a"))


async def test_vault_limited_token(bao: BaoServer) -> None:
    """A token that may read one path only is enough for it."""
    policy = 'path "secret/data/dapr/one" { capabilities = ["read"] }'
    await asyncio.to_thread(bao.ask, "PUT", "sys/policies/acl/one", {"policy": policy})
    made: Any = await asyncio.to_thread(
        bao.ask, "POST", "auth/token/create", {"policies": ["one"], "no_default_policy": True}
    )
    await asyncio.to_thread(bao.ask, "POST", "secret/data/dapr/one", {"data": {"v": "1"}})
    settings = {"vaultAddr": bao.url, "vaultToken": made["auth"]["client_token"]}
    assert await read(VAULT, settings, "one") == {"v": "1"}
    for name in ("two", ""):
        with pytest.raises(SecretError, match="Vault answered 403"):
            await read(VAULT, settings, name)


@pytest.mark.parametrize("in_file", [False, True])
async def test_vault_does_not_take_a_token(bao: BaoServer, tmp_path: Path, in_file: bool) -> None:
    """The start ends and says so; it shows no token."""
    file = tmp_path / "token"
    file.write_text("s.wrong")
    token = {"vaultTokenMountPath": str(file)} if in_file else {"vaultToken": "s.wrong"}
    told = (
        rf"Vault does not take the token {f'in {file}' if in_file else 'vaultToken'} \(403: permission denied\): it is"
    )
    with pytest.raises(ConfigError, match=told) as raised:
        async with node("memory:", unique("secrets"), component("store", VAULT, vaultAddr=bao.url, **token)):
            pass
    assert "s.wrong" not in str(raised.value)


async def test_vault_token_of_no_engine(bao: BaoServer) -> None:
    """One that Vault knows is taken, whatever it may do now: rights are given later as well."""
    made: Any = await asyncio.to_thread(bao.ask, "POST", "auth/token/create", {"policies": ["default"]})
    settings = {"vaultAddr": bao.url, "vaultToken": made["auth"]["client_token"]}
    with pytest.raises(SecretError, match="Vault answered 403"):
        await read(VAULT, settings, "one")


@pytest.mark.parametrize(
    ("of", "settings", "told"),
    [
        (VAULT, {}, "set either vaultToken or vaultTokenMountPath"),
        (VAULT, {"vaultToken": "a", "vaultTokenMountPath": "b"}, "set either vaultToken or vaultTokenMountPath"),
        (VAULT, {"vaultToken": "a", "vaultAddr": "localhost:8200"}, "begins with http:// or https://"),
        (VAULT, {"vaultToken": "a", "caCert": "/none"}, "the certificates of the server cannot be read"),
        (VAULT, {"vaultToken": "a", "vaultValueType": "list"}, "map or text"),
        (AWS, {"accessKey": "a"}, "needs secretKey as well"),
        (AWS, {"secretKey": "a"}, "needs accessKey as well"),
        (AWS, {"sessionToken": "a"}, "needs accessKey and secretKey as well"),
        (AWS, {"trustAnchorArn": "arn:aws:x"}, "IAM Roles Anywhere is not supported"),
        (GCP, {"client_email": "a@b"}, "needs private_key as well"),
        (GCP, {"project_id": "p", "client_email": "a@b", "private_key": "k3y"}, "private_key is no key in PEM"),
        (AZURE, {}, "the setting vaultName is missing"),
        (AZURE, {"vaultName": "v", "azureClientSecret": "s"}, "needs azureTenantId and azureClientId as well"),
        (AZURE, {"vaultName": "v", "azureEnvironment": "MOON"}, "AZUREPUBLICCLOUD or"),
        (KUBERNETES, {"kubeconfigPath": "/none"}, "cannot tell how to reach the cluster"),
    ],
)
async def test_wrong_settings(of: str, settings: Mapping[str, str], told: str) -> None:
    """They end the start, and no secret is in what is told."""
    with pytest.raises(ConfigError, match=told) as raised:
        await read(of, settings, "x")
    assert "k3y" not in str(raised.value)


async def test_aws_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role is taken on with the given credentials; without any, the variables tell."""
    async with MotoServer(tmp_path) as server:
        settings = {**CREDENTIALS, "endpoint": server.url}
        with pytest.raises(SecretError, match="ResourceNotFoundException"):
            await read(AWS, settings, "none")
        role = {"assumeRoleArn": "arn:aws:iam::123456789012:role/reader", "sessionName": "shop"}
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
        with pytest.raises(ConfigError, match="cannot be reached"):
            await read(AWS, {**settings, **role}, "none")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
        with pytest.raises(SecretError, match="ResourceNotFoundException"):
            await read(AWS, {**settings, **role}, "none")
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "eu-central-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        with pytest.raises(SecretError, match="ResourceNotFoundException"):
            await read(AWS, {"endpoint": server.url}, "none")


async def test_kubernetes_namespaces(tmp_path: Path) -> None:
    """That of the request, else that of the settings; what is no text is left out."""
    async with KubernetesSecrets() as api:
        api.put("mixed", {"text": b"1", "binary": b"\xff\xfe"})
        api.put("binary", {"binary": b"\xff\xfe"})
        file = str(kubeconfig_for(f"http://127.0.0.1:{api.port}", tmp_path))
        settings = {"kubeconfigPath": file}
        assert await read(KUBERNETES, settings, "mixed", namespace="shop") == {"text": "1"}
        assert await read(KUBERNETES, settings, "", namespace="shop") == {"mixed": {"text": "1"}, "binary": {}}
        for name, namespace, told in (
            ("binary", "shop", "nothing in the secret binary is text"),
            ("mixed", "other", "not found"),
            ("mixed", "", "no namespace is known"),
            ("mixed", "a/../../shop", "there is no namespace"),
        ):
            with pytest.raises(SecretError, match=told):
                await read(KUBERNETES, settings, name, **({"namespace": namespace} if namespace else {}))


async def test_google_tokens(tmp_path: Path) -> None:
    """None is given while the server of tokens is away; a key of another account is told."""
    async with GoogleSecrets(tmp_path) as server:
        server.put("a", {"v": b"1"})
        url = f"http://127.0.0.1:{server.port}"
        settings = {
            "project_id": "shop",
            "client_email": "robot@shop.test",
            "private_key": server.private_key.replace("\n", "\\n"),  # As in a key file.
            "endpoint": url,
            "token_uri": f"{url}/token",
        }
        assert await read(GCP, settings, "a") == {"a": "1"}
        with pytest.raises(ConfigError, match="no token can be had from Google Cloud"):
            await read(GCP, {**settings, "token_uri": "http://127.0.0.1:1/token"}, "a")


async def test_azure_identities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application by its secret or its certificate; a wrong secret is told, and not shown."""
    async with AzureVault(tmp_path) as server:
        server.put("a", {"v": b"1"})
        url = f"https://127.0.0.1:{server.port}"
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", url)
        settings = {
            "vaultName": "shop",
            "endpoint": url,
            "caCert": str(server.authority.path),
            "spnTenantId": "tenant",
            "spnClientId": "client",
        }
        assert await read(AZURE, {**settings, "spnClientSecret": "azure-s3cret"}, "a") == {"a": "1"}
        with pytest.raises(ConfigError, match=r"Azure does not take the credentials: .*AADSTS7000215") as raised:
            await read(AZURE, {**settings, "spnClientSecret": "wr0ng"}, "a")
        assert "wr0ng" not in str(raised.value)
        with pytest.raises(ConfigError, match="the certificate with its key cannot be read"):
            await read(AZURE, {**settings, "azureCertificate": "bm9uZQ=="}, "a")


async def test_azure_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``maxresults`` bounds all secrets."""
    async with AzureVault(tmp_path) as server:
        for number in range(9):
            server.put(f"a{number}", {"v": b"1"})
        url = f"https://127.0.0.1:{server.port}"
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", url)
        settings = {
            "vaultName": "shop",
            "endpoint": url,
            "caCert": str(server.authority.path),
            "azureTenantId": "tenant",
            "azureClientId": "client",
            "azureClientSecret": "azure-s3cret",
        }
        assert list(await read(AZURE, settings, "", maxresults="5")) == [f"a{number}" for number in range(5)]
        with pytest.raises(SecretError, match="maxresults is a whole number"):
            await read(AZURE, settings, "", maxresults="-1")
        await server.kill()
        with pytest.raises(ConfigError, match="component store"):
            await read(AZURE, settings, "a0")
