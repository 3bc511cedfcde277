"""Cryptography: with keys that the application never sees, and that never leave the node which has them.

Whole documents are streams (``mesh/blocks/crypto_document.py``): only the key of each document is wrapped and unwrapped
here, so that no more than 32 bytes of it go to a host elsewhere. Everything else is small, and goes whole.

Source: Dapr 1.18, the cryptography API (alpha).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from mesh.blocks.block import Block, Parts
from mesh.blocks.components import ComponentService
from mesh.operation import Method, Operation
from mesh.resources.component import Component

__all__ = [
    "BLOCK",
    "DECRYPT",
    "ENCRYPT",
    "GET_KEY",
    "SIGN",
    "UNWRAP_KEY",
    "VERIFY",
    "WRAP_KEY",
    "CryptoComponent",
    "CryptoProvider",
    "Decrypt",
    "Decrypted",
    "Encrypt",
    "Encrypted",
    "GetKey",
    "PublicKey",
    "Sign",
    "Signed",
    "UnwrapKey",
    "Unwrapped",
    "Verified",
    "Verify",
    "WrapKey",
    "Wrapped",
]


# The names are those of the API's messages.
@dataclass(frozen=True, slots=True)
class GetKey:
    """Read the public part of a key, as ``PEM`` or as a ``JSON`` Web Key."""

    name: str
    format: str = "PEM"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public part of a key, with the name it has, which may tell its version."""

    name: str
    public_key: str


@dataclass(frozen=True, slots=True)
class Encrypt:
    """Encrypt a small message."""

    plaintext: bytes = field(repr=False)
    algorithm: str
    key_name: str
    nonce: bytes = b""
    associated_data: bytes = b""


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A message; the tag is empty where the algorithm has none of its own."""

    ciphertext: bytes
    tag: bytes = b""


@dataclass(frozen=True, slots=True)
class Decrypt:
    """Decrypt a small message."""

    ciphertext: bytes
    algorithm: str
    key_name: str
    nonce: bytes = b""
    tag: bytes = b""
    associated_data: bytes = b""


@dataclass(frozen=True, slots=True)
class Decrypted:
    """A message."""

    plaintext: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WrapKey:
    """Encrypt a key: the bytes of a symmetric one, or PEM or a JSON Web Key."""

    plaintext_key: bytes = field(repr=False)
    algorithm: str
    key_name: str
    nonce: bytes = b""
    associated_data: bytes = b""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A key that is encrypted."""

    wrapped_key: bytes
    tag: bytes = b""


@dataclass(frozen=True, slots=True)
class UnwrapKey:
    """Decrypt a key."""

    wrapped_key: bytes
    algorithm: str
    key_name: str
    nonce: bytes = b""
    tag: bytes = b""
    associated_data: bytes = b""


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """A key."""

    plaintext_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sign:
    """Sign a digest; with EdDSA, a message."""

    digest: bytes
    algorithm: str
    key_name: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature."""

    signature: bytes


@dataclass(frozen=True, slots=True)
class Verify:
    """Tell whether a signature is that of a digest."""

    digest: bytes
    algorithm: str
    key_name: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """Whether it is."""

    valid: bool


GET_KEY = Method("crypto", "get_key", GetKey, PublicKey)
ENCRYPT = Method("crypto", "encrypt", Encrypt, Encrypted)
DECRYPT = Method("crypto", "decrypt", Decrypt, Decrypted)
WRAP_KEY = Method("crypto", "wrap_key", WrapKey, Wrapped)
UNWRAP_KEY = Method("crypto", "unwrap_key", UnwrapKey, Unwrapped)
SIGN = Method("crypto", "sign", Sign, Signed)
VERIFY = Method("crypto", "verify", Verify, Verified)


class CryptoProvider(Protocol):
    """What an adapter implements; each raises a ``CryptoError``, whose text tells nothing of plaintexts or keys."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""

    async def get_key(self, asked: GetKey) -> PublicKey:
        """Read the public part of a key; one that has none is as one that is not there."""

    async def encrypt(self, asked: Encrypt) -> Encrypted:
        """Encrypt a message."""

    async def decrypt(self, asked: Decrypt) -> Decrypted:
        """Decrypt a message; why it cannot be is not told, but for what is wrong with the request itself."""

    async def wrap_key(self, asked: WrapKey) -> Wrapped:
        """Encrypt a key."""

    async def unwrap_key(self, asked: UnwrapKey) -> Unwrapped:
        """Decrypt a key, as `decrypt`."""

    async def sign(self, asked: Sign) -> Signed:
        """Sign a digest."""

    async def verify(self, asked: Verify) -> Verified:
        """Tell whether a signature is right."""


class CryptoComponent:
    """A configured provider; its functions are the block's methods."""

    def __init__(self, provider: CryptoProvider) -> None:
        """Use an open provider, by the name that those of other blocks have."""
        self.store = provider

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""
        return self.store.capabilities

    async def get_key(self, operation: Operation) -> PublicKey:
        """Read the public part of a key."""
        return await self.store.get_key(cast("GetKey", operation.arguments))

    async def encrypt(self, operation: Operation) -> Encrypted:
        """Encrypt a message."""
        return await self.store.encrypt(cast("Encrypt", operation.arguments))

    async def decrypt(self, operation: Operation) -> Decrypted:
        """Decrypt a message."""
        return await self.store.decrypt(cast("Decrypt", operation.arguments))

    async def wrap_key(self, operation: Operation) -> Wrapped:
        """Encrypt a key."""
        return await self.store.wrap_key(cast("WrapKey", operation.arguments))

    async def unwrap_key(self, operation: Operation) -> Unwrapped:
        """Decrypt a key."""
        return await self.store.unwrap_key(cast("UnwrapKey", operation.arguments))

    async def sign(self, operation: Operation) -> Signed:
        """Sign a digest."""
        return await self.store.sign(cast("Sign", operation.arguments))

    async def verify(self, operation: Operation) -> Verified:
        """Tell whether a signature is right."""
        return await self.store.verify(cast("Verify", operation.arguments))


async def open_provider(component: Component, parts: Parts) -> CryptoComponent:
    """Open a cryptography component."""
    adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
    provider: CryptoProvider = await parts.stack.enter_async_context(adapter)
    return CryptoComponent(provider)


BLOCK = Block(
    "crypto",
    (GET_KEY, ENCRYPT, DECRYPT, WRAP_KEY, UNWRAP_KEY, SIGN, VERIFY),
    ComponentService,
    kind="crypto",
    open=open_provider,
    hosted=True,
    policy=lambda policies, target: policies.for_component(target, "crypto", "outbound"),
    called="cryptokeys",
)
