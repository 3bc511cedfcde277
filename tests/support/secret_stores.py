"""The secret stores that ``tests/stores/test_secrets.py`` runs against, and how their users write into them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3

from tests.support.bao_server import BaoServer
from tests.support.hand_servers import AzureVault, GoogleSecrets, HandServer, KubernetesSecrets
from tests.support.moto_server import CREDENTIALS, MotoServer
from tests.support.pluggable_server import pluggable
from tests.support.proxy import Proxy
from tests.support.stores import Served, StoreKind, kubeconfig_for

__all__ = ["SECRETS", "SecretKind", "ServedSecrets"]

Put = Callable[[str, Mapping[str, str]], Awaitable[str]]


class _Machine(Protocol):
    """What is killed and started again."""

    async def kill(self) -> None: ...

    async def start(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSecrets(Served):
    """A store that can be used.

    Attributes:
        put: Writes a secret, as the store's users do, and gives the id of its version.
        machine: What can be killed; None = nothing.
        proxy: What the store is reached through.
        refuse: Has the store refuse whoever asks with a status, if that can be had.
    """

    put: Put
    machine: _Machine | None = None
    proxy: Proxy | None = None
    refuse: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKind(StoreKind):
    """A row.

    Attributes:
        versions: Whether it keeps versions of a secret.
        secret: Of its settings: a text that must show nowhere.
        largest: How many bytes a value may have there.
    """

    versions: bool = True
    secret: str = ""
    largest: int = 64 * 1024


@asynccontextmanager
async def _environment(directory: Path) -> AsyncIterator[ServedSecrets]:
    put: list[str] = []

    async def write(name: str, values: Mapping[str, str]) -> str:
        [value] = values.values()
        os.environ[f"TESTED_{name}"] = value
        put.append(f"TESTED_{name}")
        return ""

    try:
        yield ServedSecrets({"prefix": "TESTED_"}, put=write)
    finally:
        for name in put:
            os.environ.pop(name, None)


def _file(**settings: str) -> Callable[[Path], AbstractAsyncContextManager[ServedSecrets]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[ServedSecrets]:
        file = directory / "secrets.json"
        secrets: dict[str, object] = {}

        async def write(name: str, values: Mapping[str, str]) -> str:
            secrets[name] = dict(values) if settings else next(iter(values.values()))
            file.write_text(json.dumps(secrets))
            return ""

        file.write_text("{}")
        yield ServedSecrets({"secretsFile": str(file), **settings}, put=write)

    return serve


def _bao(engine: str, **settings: str) -> Callable[[Path], AbstractAsyncContextManager[ServedSecrets]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[ServedSecrets]:
        async with BaoServer(directory) as server, Proxy(server.port) as proxy:

            async def write(name: str, values: Mapping[str, str]) -> str:
                body: Any = {"data": dict(values)} if engine == "secret" else dict(values)
                path = f"{engine}/data/dapr/{name}" if engine == "secret" else f"{engine}/dapr/{name}"
                told: Any = await asyncio.to_thread(server.ask, "POST", path, body)
                return str(told["data"]["version"]) if engine == "secret" else ""

            own = {"vaultAddr": f"http://127.0.0.1:{proxy.port}", "vaultToken": server.token, "enginePath": engine}
            yield ServedSecrets({**own, **settings}, put=write, machine=server, proxy=proxy)

    return serve


def _moto(service: str, **settings: str) -> Callable[[Path], AbstractAsyncContextManager[ServedSecrets]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[ServedSecrets]:
        async with MotoServer(directory) as server, Proxy(server.port) as proxy:
            session = boto3.Session(CREDENTIALS["accessKey"], CREDENTIALS["secretKey"], region_name="eu-central-1")
            client = await asyncio.to_thread(session.client, service, endpoint_url=server.url)

            def write_secret(name: str, values: Mapping[str, str]) -> str:
                text = json.dumps(values) if settings else next(iter(values.values()))
                try:
                    told = client.create_secret(Name=name, SecretString=text)
                except client.exceptions.ResourceExistsException:
                    told = client.put_secret_value(SecretId=name, SecretString=text)
                return str(told["VersionId"])

            def write_parameter(name: str, values: Mapping[str, str]) -> str:
                [value] = values.values()
                tier = "Advanced" if len(value) > 4096 else "Standard"
                told = client.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True, Tier=tier)
                return str(told["Version"])

            write = write_secret if service == "secretsmanager" else write_parameter

            async def put(name: str, values: Mapping[str, str]) -> str:
                return await asyncio.to_thread(write, name, values)

            own = {**CREDENTIALS, "endpoint": f"http://127.0.0.1:{proxy.port}", **settings}
            yield ServedSecrets(own, put=put, machine=server, proxy=proxy)
            client.close()

    return serve


async def _put(server: HandServer, name: str, values: Mapping[str, str]) -> str:
    return server.put(name, {key: value.encode() for key, value in values.items()})


def _refuse(server: HandServer) -> Callable[[int], None]:
    return lambda status: setattr(server, "refuses", status)


@asynccontextmanager
async def _kubernetes(directory: Path) -> AsyncIterator[ServedSecrets]:
    async with KubernetesSecrets() as api, Proxy(api.port) as proxy:
        file = kubeconfig_for(f"http://127.0.0.1:{proxy.port}", directory)
        settings = {"defaultNamespace": "shop", "kubeconfigPath": str(file)}
        write = lambda name, values: _put(api, name, values)  # noqa: E731  # It is short.
        yield ServedSecrets(settings, put=write, machine=api, proxy=proxy, refuse=_refuse(api))


@asynccontextmanager
async def _google(directory: Path) -> AsyncIterator[ServedSecrets]:
    server = await asyncio.to_thread(GoogleSecrets, directory)
    async with server, Proxy(server.port) as proxy:
        settings = {
            "type": "service_account",
            "project_id": "shop",
            "client_email": "robot@shop.test",
            "private_key": server.private_key,
            "token_uri": f"http://127.0.0.1:{server.port}/token",
            "endpoint": f"http://127.0.0.1:{proxy.port}",
        }
        write = lambda name, values: _put(server, name, values)  # noqa: E731  # It is short.
        yield ServedSecrets(settings, put=write, machine=server, proxy=proxy, refuse=_refuse(server))


@asynccontextmanager
async def _azure(directory: Path) -> AsyncIterator[ServedSecrets]:
    server = await asyncio.to_thread(AzureVault, directory)
    async with server, Proxy(server.port) as proxy:
        settings = {
            "vaultName": "shop",
            "azureTenantId": "tenant",
            "azureClientId": "client",
            "azureClientSecret": "azure-s3cret",
            "endpoint": f"https://127.0.0.1:{proxy.port}",
            "caCert": str(server.authority.path),
        }
        os.environ["AZURE_AUTHORITY_HOST"] = f"https://127.0.0.1:{server.port}"
        try:
            write = lambda name, values: _put(server, name, values)  # noqa: E731  # It is short.
            yield ServedSecrets(settings, put=write, machine=server, proxy=proxy, refuse=_refuse(server))
        finally:
            del os.environ["AZURE_AUTHORITY_HOST"]


@asynccontextmanager
async def _pluggable(directory: Path) -> AsyncIterator[ServedSecrets]:
    async with pluggable(directory) as server:
        yield ServedSecrets({"multiValued": "true"}, put=server.put)


_AWS_KEY = CREDENTIALS["secretKey"]
# By the name that the tests have.
SECRETS: Mapping[str, SecretKind] = {
    "local-env": SecretKind("secretstores.local.env", _environment, versions=False),
    "local-file": SecretKind("secretstores.local.file", _file(), versions=False),
    "local-file-multi": SecretKind("secretstores.local.file", _file(multiValued="true"), versions=False),
    "vault": SecretKind("secretstores.hashicorp.vault", _bao("secret")),
    "vault-1": SecretKind("secretstores.hashicorp.vault", _bao("kv1"), versions=False),
    "aws-secrets": SecretKind("secretstores.aws.secretmanager", _moto("secretsmanager"), secret=_AWS_KEY),
    "aws-secrets-multi": SecretKind(
        "secretstores.aws.secretmanager",
        _moto("secretsmanager", multipleKeyValuesPerSecret="true"),
        secret=_AWS_KEY,
        largest=65_000,
    ),
    "aws-parameters": SecretKind("secretstores.aws.parameterstore", _moto("ssm"), secret=_AWS_KEY, largest=8192),
    "gcp": SecretKind("secretstores.gcp.secretmanager", _google, secret="PRIVATE KEY"),
    "azure": SecretKind("secretstores.azure.keyvault", _azure, secret="azure-s3cret", largest=25_000),
    "pluggable": SecretKind("secretstores.plugged", _pluggable, versions=False),
    "kubernetes": SecretKind("secretstores.kubernetes", _kubernetes, versions=False, secret="t0ken"),
}
