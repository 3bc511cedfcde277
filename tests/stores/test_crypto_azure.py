"""Keys of a Key Vault: the server is written by hand from Microsoft's documentation."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from bindings.azure.keyvault_crypto import KeyVaultCrypto
from mesh.blocks.crypto import Decrypt, Encrypt, GetKey, Sign, UnwrapKey, Verify, WrapKey
from mesh.errors import CryptoAwayError, CryptoError
from tests.support.azure_keys import VERSION, AzureKeys
from tests.support.nodes import component

KEY = bytes(range(32))
DIGEST = hashlib.sha256(b"text").digest()


@pytest.fixture
async def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AzureKeys]:
    async with await asyncio.to_thread(AzureKeys, tmp_path) as server:
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", f"https://127.0.0.1:{server.port}")
        yield server


def made(vault: AzureKeys, **more: str) -> KeyVaultCrypto:
    settings = {
        "vaultName": "shop",
        "azureTenantId": "tenant",
        "azureClientId": "client",
        "azureClientSecret": "azure-s3cret",
        "endpoint": f"https://127.0.0.1:{vault.port}",
        "caCert": str(vault.authority.path),
    }
    return KeyVaultCrypto.from_component(component("keys", "crypto.azure.keyvault", **{**settings, **more}))


@pytest.fixture
async def provider(vault: AzureKeys) -> AsyncIterator[KeyVaultCrypto]:
    async with made(vault) as provider:
        yield provider


@pytest.mark.parametrize("name", ["{}", "{}/latest", f"{{}}/{VERSION}"])
@pytest.mark.parametrize(
    ("key", "algorithm", "more"),
    [
        ("rsa", "RSA-OAEP", {}),
        ("rsa", "RSA-OAEP-256", {}),
        ("rsa", "RSA1_5", {}),
        ("aes", "A256KW", {}),
        ("aes", "A256GCM", {"nonce": bytes(12), "associated_data": b"more"}),
        ("aes", "A256CBC", {"nonce": bytes(16)}),
        ("aes", "A256CBC-NOPAD", {"nonce": bytes(16)}),
    ],
)
async def test_there_and_back(
    provider: KeyVaultCrypto, vault: AzureKeys, name: str, key: str, algorithm: str, more: dict[str, bytes]
) -> None:
    """What is encrypted here or there, the vault decrypts; the private part stays in it."""
    name = name.format(key)
    sealed = await provider.encrypt(Encrypt(KEY, algorithm, name, **more))
    nonce, associated = more.get("nonce", b""), more.get("associated_data", b"")
    opened = await provider.decrypt(Decrypt(sealed.ciphertext, algorithm, name, nonce, sealed.tag, associated))
    assert opened.plaintext == KEY
    wrapped = await provider.wrap_key(WrapKey(KEY, algorithm, name, **more))
    rest = algorithm, name, nonce, wrapped.tag, associated
    assert (await provider.unwrap_key(UnwrapKey(wrapped.wrapped_key, *rest))).plaintext_key == KEY
    if algorithm not in ("RSA1_5", "A256CBC", "A256CBC-NOPAD"):  # These may give something, if not that.
        changed = bytes((*wrapped.wrapped_key[:-1], wrapped.wrapped_key[-1] ^ 1))
        with pytest.raises(CryptoError, match="The parameter is incorrect"):
            await provider.unwrap_key(UnwrapKey(changed, *rest))
    done = {"encrypt", "wrapkey", "decrypt", "unwrapkey"} if key == "aes" else {"decrypt", "unwrapkey"}
    assert {*vault.asked} - {"get"} == done


@pytest.mark.parametrize(
    ("key", "algorithm"), [("rsa", "RS256"), ("rsa", "PS256"), ("signer", "RS256"), ("curve", "ES256")]
)
async def test_signatures(provider: KeyVaultCrypto, vault: AzureKeys, key: str, algorithm: str) -> None:
    """The vault signs; of RSA keys the public part tells whether it is right."""
    signature = (await provider.sign(Sign(DIGEST, algorithm, key))).signature
    for digest, right in ((DIGEST, True), (bytes(32), False)):
        assert (await provider.verify(Verify(digest, algorithm, key, signature))).valid is right
    assert ("verify" in vault.asked) == (key == "curve")


async def test_public_parts(provider: KeyVaultCrypto, vault: AzureKeys) -> None:
    """They are named with their version, of which they are kept."""
    found = await provider.get_key(GetKey("rsa"))
    assert found.name == f"rsa/{VERSION}"
    assert found.public_key.startswith("-----BEGIN PUBLIC KEY-----")
    told = orjson.loads((await provider.get_key(GetKey(f"curve/{VERSION}", "JSON"))).public_key)
    assert (told["kty"], told["crv"], told["kid"]) == ("EC", "P-256", f"curve/{VERSION}")
    before = len(vault.asked)
    for _ in range(3):
        await provider.get_key(GetKey(found.name))
    assert len(vault.asked) == before + 1


@pytest.mark.parametrize(
    ("key", "algorithm", "problem"),
    [
        ("none", "A256KW", "key not found"),
        ("off", "RSA-OAEP", "key not found"),
        ("aes/2", "A256KW", "key not found"),
        ("../secrets/x", "A256KW", "key not found"),
        ("a/b/c", "A256KW", "key not found"),
        ("", "A256KW", "key not found"),
        ("old", "RSA-OAEP", "outside of its time validity bounds"),
        ("signer", "RSA-OAEP", "key cannot perform the 'wrapKey' operation"),
        ("curve", "RSA-OAEP", "key type mismatch"),
        ("rsa", "RSA-OAEP-512", "invalid algorithm: RSA-OAEP-512"),
        ("rsa", "RS256", "invalid algorithm: RS256"),
        ("aes", "A256GCM", "Key Vault answered 400: .*The parameter is incorrect"),
    ],
)
async def test_refused(provider: KeyVaultCrypto, key: str, algorithm: str, problem: str) -> None:
    """What cannot be wrapped is told by its reason."""
    with pytest.raises(CryptoError, match=problem):
        await provider.wrap_key(WrapKey(KEY, algorithm, key))


async def test_symmetric_keys_stay(provider: KeyVaultCrypto) -> None:
    """Nobody reads them."""
    with pytest.raises(CryptoError, match="key not found"):
        await provider.get_key(GetKey("aes"))


async def test_away(vault: AzureKeys) -> None:
    """A vault need not permit to list its keys; that it is away is told, and so are wrong credentials."""
    vault.refuses = 403
    async with made(vault) as provider:
        with pytest.raises(CryptoError, match="Key Vault answered 403"):
            await provider.sign(Sign(DIGEST, "RS256", f"rsa/{VERSION}"))
        vault.refuses = 503
        with pytest.raises(CryptoAwayError, match="Key Vault answered 503"):
            await provider.sign(Sign(DIGEST, "RS256", f"rsa/{VERSION}"))
    vault.refuses = 0
    with pytest.raises(CryptoError, match="Azure does not take the credentials") as raised:
        await made(vault, azureClientSecret="wrong-s3cret").__aenter__()
    assert "s3cret" not in str(raised.value)
    await vault.kill()
    with pytest.raises(CryptoAwayError, match="Key Vault cannot be reached"):
        await made(vault).__aenter__()


async def test_in_time(vault: AzureKeys) -> None:
    """A vault that does not answer in time is away."""
    with pytest.raises(CryptoAwayError, match="does not answer in time"):
        await made(vault, requestTimeout="1ms").__aenter__()
