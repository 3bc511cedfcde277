"""``crypto.azure.keyvault``: keys of Azure Key Vault, which never leave it.

What the public part of an RSA key suffices for (to encrypt, to wrap, to verify) is done here. That of a version, which
never changes, is kept for some minutes; without a version it is asked for each time. All else the vault does.

Source: Dapr 1.18, the Azure Key Vault cryptography component; Key Vault's REST reference, version 7.4.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from azure.core.rest import HttpRequest
from cryptography.hazmat.primitives.asymmetric import rsa

from bindings.azure._vault import KeyVaultSettings, VaultAdapter
from bindings.crypto import _algorithms as algorithms
from bindings.crypto._keys import Key, as_pem, key_from_jwk, public_jwk, serialized
from mesh.blocks.crypto import (
    Decrypt,
    Decrypted,
    Encrypt,
    Encrypted,
    GetKey,
    PublicKey,
    Sign,
    Signed,
    UnwrapKey,
    Unwrapped,
    Verified,
    Verify,
    WrapKey,
    Wrapped,
)
from mesh.errors import CryptoAwayError, CryptoError
from mesh.resources.settings import LIMIT, setting

__all__ = ["KeyVaultCrypto"]

API = "7.4"
KEPT_SECONDS = 600.0
MAX_KEPT = 1000
_NAME = re.compile(r"([0-9A-Za-z-]{1,127})(?:/([0-9A-Za-z]{1,64}))?")
_CIPHER = re.compile(r"RSA-OAEP|RSA-OAEP-256|RSA1_5|A(?:128|192|256)(?:GCM|KW|CBC|CBC-NOPAD)")
_SIGNATURE = re.compile(r"(?:RS|PS|ES)(?:256|384|512)|ES256K")
_LOCAL = re.compile(r"RSA-OAEP|RSA-OAEP-256|RSA1_5|(?:RS|PS)(?:256|384|512)")


@dataclass(frozen=True, slots=True)
class KeyVaultCryptoSettings(KeyVaultSettings):
    """Settings of ``crypto.azure.keyvault``."""

    timeout: float = setting("requestTimeout", "How long the vault may take to answer.", LIMIT, default=30.0)


@dataclass(frozen=True, slots=True)
class _Found:
    """A key of the vault.

    Attributes:
        id: Its name and version.
        told: Its public part, as a JSON Web Key.
        attributes: What the vault says of it.
        at: The time (monotonic) when it was read.
    """

    id: str
    told: Mapping[str, Any]
    attributes: Mapping[str, Any]
    at: float

    def key(self) -> Key:
        """Give its public part; raises ``CryptoError`` where it has none that is known here."""
        kind = str(self.told.get("kty", "")).removesuffix("-HSM")  # Where it is kept is no matter here.
        if kind == "oct":
            raise CryptoError("key not found")
        return key_from_jwk({**self.told, "kty": kind, "kid": self.id})

    def valid(self) -> bool:
        """Tell whether it may be used to encrypt now."""
        now = time.time()
        return bool(self.attributes.get("nbf", now) <= now <= self.attributes.get("exp", now))


class KeyVaultCrypto(VaultAdapter):
    """Keys of one vault, named as `name` or `name/version`."""

    settings = KeyVaultCryptoSettings
    failed, away = CryptoError, CryptoAwayError
    capabilities: Sequence[str] = ()

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._kept: dict[str, _Found] = {}

    async def _enter(self) -> None:
        """Connect, and see that there are credentials; a permission to list the keys is not needed."""
        await super()._enter()
        await self.check()

    async def check(self) -> None:
        """Ask whether the vault answers, and takes the credentials."""
        await self._ask("GET", "/keys?maxresults=1", denied=True)

    async def get_key(self, asked: GetKey) -> PublicKey:
        """Read the public part of a key."""
        found = await self._find(asked.name)
        key = found.key()
        assert key.public is not None
        return PublicKey(found.id, as_pem(key.public) if asked.format == "PEM" else public_jwk(key))

    async def encrypt(self, asked: Encrypt) -> Encrypted:
        """Encrypt a message."""
        return Encrypted(*await self._seal("encrypt", asked, asked.plaintext))

    async def decrypt(self, asked: Decrypt) -> Decrypted:
        """Decrypt a message."""
        return Decrypted(await self._open("decrypt", asked, asked.ciphertext))

    async def wrap_key(self, asked: WrapKey) -> Wrapped:
        """Encrypt a key."""
        return Wrapped(*await self._seal("wrapKey", asked, serialized(asked.plaintext_key)))

    async def unwrap_key(self, asked: UnwrapKey) -> Unwrapped:
        """Decrypt a key."""
        return Unwrapped(await self._open("unwrapKey", asked, asked.wrapped_key))

    async def sign(self, asked: Sign) -> Signed:
        """Sign a digest; a signature of ES256 and its like is two numbers of equal length, as the vault makes it."""
        algorithm = _known(_SIGNATURE, asked.algorithm)
        told = await self._do("sign", asked.key_name, {"alg": algorithm, "value": _text(asked.digest)})
        return Signed(_bytes(told, "value"))

    async def verify(self, asked: Verify) -> Verified:
        """Tell whether a signature is right."""
        algorithm = _known(_SIGNATURE, asked.algorithm)
        if _LOCAL.fullmatch(algorithm):
            key = _for((await self._find(asked.key_name)).key(), "verify")
            rest = algorithm, asked.digest, asked.signature
            return Verified(await asyncio.to_thread(algorithms.verify, key, *rest))
        body = {"alg": algorithm, "digest": _text(asked.digest), "value": _text(asked.signature)}
        return Verified((await self._do("verify", asked.key_name, body)).get("value") is True)

    async def _seal(self, operation: str, asked: Encrypt | WrapKey, data: bytes) -> tuple[bytes, bytes]:
        """Encrypt: here, where that needs the public part alone. The vault has no labels, so it is asked about them."""
        algorithm = _known(_CIPHER, asked.algorithm)
        name = asked.key_name
        if _LOCAL.fullmatch(algorithm) and not asked.associated_data:
            found = await self._find(name)
            if not found.valid():
                raise CryptoError("the key is outside of its time validity bounds")
            key = _for(found.key(), operation)
            return await asyncio.to_thread(algorithms.encrypt, key, algorithm, data, b"", b"")
        told = await self._do(operation, name, _cipher(algorithm, data, asked.nonce, asked.associated_data))
        return _bytes(told, "value"), _bytes(told, "tag") if told.get("tag") else b""

    async def _open(self, operation: str, asked: Decrypt | UnwrapKey, data: bytes) -> bytes:
        algorithm = _known(_CIPHER, asked.algorithm)
        body = _cipher(algorithm, data, asked.nonce, asked.associated_data, asked.tag)
        return _bytes(await self._do(operation, asked.key_name, body), "value")

    async def _do(self, operation: str, name: str, body: Mapping[str, str]) -> Mapping[str, Any]:
        """Have the vault do something with a key, of which it wants the version."""
        key, version = _named(name)
        which = f"{key}/{version}" if version else (await self._find(name)).id
        return await self._ask("POST", f"/keys/{which}/{operation.lower()}", body)

    async def _find(self, name: str) -> _Found:
        """Read a key, or that which is kept of a version."""
        key, version = _named(name)
        place = f"{key}/{version}" if version else key
        kept = self._kept.get(place)
        if kept is not None and time.monotonic() - kept.at < KEPT_SECONDS:
            return kept
        told = await self._ask("GET", f"/keys/{place}")
        attributes, jwk = told.get("attributes", {}), told.get("key", {})
        if not attributes.get("enabled", False):
            raise CryptoError("key not found")
        found = _Found(urlsplit(str(jwk["kid"])).path.removeprefix("/keys/"), jwk, attributes, time.monotonic())
        if version:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[place] = found
        return found

    async def _ask(
        self, verb: str, path: str, body: Mapping[str, str] | None = None, *, denied: bool = False
    ) -> Mapping[str, Any]:
        """Send a request to the vault; where a missing permission is no error, that is an empty answer."""
        url = f"{self._url}{path}{'&' if '?' in path else '?'}api-version={API}"
        request, told = HttpRequest(verb, url, json=body), None
        try:
            with self._errors(denied=denied):
                async with asyncio.timeout(self._settings.timeout):
                    response = await self._client.send_request(request)
                    if response.status_code == 404:
                        raise CryptoError("key not found")
                    response.raise_for_status()
                    told = response.json()
        except TimeoutError:
            raise CryptoAwayError("Key Vault does not answer in time") from None
        return told if isinstance(told, dict) else {}


def _named(name: str) -> tuple[str, str]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise CryptoError("key not found")
    version = found[2] or ""
    return found[1], "" if version.lower() == "latest" else version


def _known(algorithms: re.Pattern[str], algorithm: str) -> str:
    if not algorithms.fullmatch(algorithm):
        raise CryptoError(f"invalid algorithm: {algorithm[:50]}")
    return algorithm


def _for(key: Key, operation: str) -> Key:
    if key.operations and operation not in key.operations:
        raise CryptoError(f"key cannot perform the '{operation}' operation")
    if not isinstance(key.public, rsa.RSAPublicKey):
        raise CryptoError("key type mismatch: an RSA key is needed")
    return key


def _cipher(algorithm: str, data: bytes, nonce: bytes, associated: bytes, tag: bytes = b"") -> dict[str, str]:
    """Write what the vault is asked; its names for CBC are the other way round: without a suffix it does not pad."""
    if algorithm.endswith("CBC"):
        algorithm += "PAD"
    given = {"value": data, "iv": nonce, "aad": associated, "tag": tag}
    return {"alg": algorithm.removesuffix("-NOPAD")} | {name: _text(each) for name, each in given.items() if each}


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(told: Mapping[str, Any], name: str) -> bytes:
    text = told.get(name)
    try:
        if isinstance(text, str):
            return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        pass
    raise CryptoError(f"Key Vault answered without a {name}")
