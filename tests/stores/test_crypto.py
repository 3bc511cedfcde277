"""Keys that are on a server: a set of JSON Web Keys at a URL, and the Secrets of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from aiohttp import web

from bindings.crypto.jwks import JWKSCrypto
from bindings.kubernetes.crypto import KubernetesCrypto
from mesh.blocks.crypto import GetKey, UnwrapKey, Unwrapped, WrapKey
from mesh.errors import ConfigError, CryptoAwayError, CryptoError
from tests.support.crypto_keys import JWK, RSA_PEM, SYMMETRIC
from tests.support.hand_servers import HandServer, KubernetesSecrets
from tests.support.nodes import component
from tests.support.stores import kubeconfig_for

KEY = bytes(range(32))


class KeySets(HandServer):
    """Answers one set of keys, or what it is told to."""

    body: object = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/keys.json" or self.refuses:
            return web.Response(status=self.refuses or 404)
        return web.Response(body=orjson.dumps(self.body))


@pytest.fixture
async def sets() -> AsyncIterator[KeySets]:
    async with KeySets() as server:
        server.body = {"keys": [{**orjson.loads(JWK), "kid": "one"}]}
        yield server


@pytest.fixture
async def cluster() -> AsyncIterator[KubernetesSecrets]:
    async with KubernetesSecrets() as server:
        server.put("keys", {"sym": SYMMETRIC, "jwk": JWK, "rsa": RSA_PEM, "empty": b"", "bad": b"-----"})
        yield server


def jwks(server: KeySets, path: str = "/keys.json", **more: str) -> AbstractAsyncContextManager[Any]:
    url = f"http://127.0.0.1:{server.port}{path}"
    made = JWKSCrypto.from_component(component("keys", "crypto.dapr.jwks", jwks=url, **more))
    return cast("AbstractAsyncContextManager[Any]", made)


def secrets(server: KubernetesSecrets, folder: Path, **more: str) -> AbstractAsyncContextManager[Any]:
    file = kubeconfig_for(f"http://127.0.0.1:{server.port}", folder)
    kind = "crypto.dapr.kubernetes.secrets"
    made = KubernetesCrypto.from_component(component("keys", kind, kubeconfigPath=str(file), **more))
    return cast("AbstractAsyncContextManager[Any]", made)


async def there_and_back(provider: Any, name: str, algorithm: str = "A256KW") -> None:
    wrapped = await provider.wrap_key(WrapKey(KEY, algorithm, name))
    assert await provider.unwrap_key(UnwrapKey(wrapped.wrapped_key, algorithm, name)) == Unwrapped(KEY)


async def test_a_set_at_a_url(sets: KeySets) -> None:
    """It is read at the start, and anew when it is old; while its server is away, what was read stays."""
    async with jwks(sets, minRefreshInterval="0s") as provider:
        await there_and_back(provider, "one")
        with pytest.raises(CryptoError, match="key not found"):
            await there_and_back(provider, "two")
        sets.body = {"keys": [{**orjson.loads(JWK), "kid": "two"}]}
        await there_and_back(provider, "two")
        with pytest.raises(CryptoError, match="key not found"):
            await there_and_back(provider, "one")
        for refusal in (500, 403):
            sets.refuses = refusal
            await there_and_back(provider, "two")
        sets.refuses, sets.body = 0, ["no set"]
        await there_and_back(provider, "two")
        await sets.kill()
        await there_and_back(provider, "two")


async def test_a_set_that_is_not_old_is_not_read_again(sets: KeySets) -> None:
    async with jwks(sets) as provider:
        await sets.kill()
        await there_and_back(provider, "one")


async def test_a_url_without_a_set(sets: KeySets) -> None:
    for path, refusal, error in (("/other", 0, CryptoAwayError), ("/keys.json", 503, CryptoAwayError)):
        sets.refuses = refusal
        with pytest.raises(error, match="answered"):
            await jwks(sets, path).__aenter__()
    sets.refuses, sets.body = 0, {}
    with pytest.raises(ConfigError, match="a key set is a JSON object with a list of keys"):
        await jwks(sets).__aenter__()
    await sets.kill()
    with pytest.raises(CryptoAwayError, match="cannot be reached"):
        await jwks(sets).__aenter__()


async def test_secrets_of_a_cluster(cluster: KubernetesSecrets, tmp_path: Path) -> None:
    async with secrets(cluster, tmp_path, defaultNamespace="shop") as provider:
        for name in ("keys/sym", "shop/keys/sym", "keys/jwk"):
            await there_and_back(provider, name)
        await there_and_back(provider, "keys/rsa", "RSA-OAEP-256")
        assert (await provider.get_key(GetKey("keys/rsa"))).public_key.startswith("-----BEGIN PUBLIC KEY-----")
        for name in ("keys/none", "none/sym", "other/keys/sym", "keys/empty", "keys/../sym", "KEYS/sym"):
            with pytest.raises(CryptoError, match=r"key not found|a key is named as"):
                await there_and_back(provider, name)
        for name in ("", "keys", "a/b/c/d"):
            with pytest.raises(CryptoError, match="a key is named as namespace/secret/entry"):
                await there_and_back(provider, name)
        with pytest.raises(CryptoError, match="is no key in PEM"):
            await there_and_back(provider, "keys/bad")
        cluster.refuses = 403
        with pytest.raises(CryptoError, match="secrets is forbidden"):
            await there_and_back(provider, "keys/sym")
        await cluster.kill()
        with pytest.raises(CryptoAwayError):
            await there_and_back(provider, "keys/sym")
        with pytest.raises(CryptoAwayError):
            await provider.check()


async def test_no_namespace(cluster: KubernetesSecrets, tmp_path: Path) -> None:
    async with secrets(cluster, tmp_path) as provider:
        with pytest.raises(CryptoError, match="doesn't have a namespace"):
            await there_and_back(provider, "keys/sym")
        await there_and_back(provider, "shop/keys/sym")
