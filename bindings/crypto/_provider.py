"""A provider that has its keys in this process while they are used; where they come from is each type's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from bindings.crypto._algorithms import decrypt, encrypt, sign, verify
from bindings.crypto._keys import Key, as_pem, public_jwk, serialized
from mesh.adapter import ComponentAdapter
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

__all__ = ["LocalProvider"]

_Done = TypeVar("_Done")


class LocalProvider(ComponentAdapter):
    """A provider on the keys that `_key` finds."""

    capabilities: Sequence[str] = ()

    async def _key(self, name: str) -> Key:
        """Find a key.

        Raises:
            CryptoError: There is none of this name, or it cannot be read.
        """
        raise NotImplementedError

    async def get_key(self, asked: GetKey) -> PublicKey:
        """Read the public part of a key."""
        key = await self._key(asked.name)
        if key.public is None:  # Symmetric ones stay where they are.
            raise CryptoError("key not found")
        return PublicKey(key.kid or asked.name, as_pem(key.public) if asked.format == "PEM" else public_jwk(key))

    async def encrypt(self, asked: Encrypt) -> Encrypted:
        """Encrypt a message."""
        rest = asked.algorithm, asked.plaintext, asked.nonce, asked.associated_data
        return Encrypted(*await self._use("encrypt", asked.key_name, asked.algorithm, lambda key: encrypt(key, *rest)))

    async def decrypt(self, asked: Decrypt) -> Decrypted:
        """Decrypt a message."""
        rest = asked.algorithm, asked.ciphertext, asked.nonce, asked.tag, asked.associated_data
        return Decrypted(await self._use("decrypt", asked.key_name, asked.algorithm, lambda key: decrypt(key, *rest)))

    async def wrap_key(self, asked: WrapKey) -> Wrapped:
        """Encrypt a key."""

        def wrap(key: Key) -> tuple[bytes, bytes]:  # In a thread, as the primes of a key may have to be found.
            plaintext = serialized(asked.plaintext_key)
            return encrypt(key, asked.algorithm, plaintext, asked.nonce, asked.associated_data)

        return Wrapped(*await self._use("wrapKey", asked.key_name, asked.algorithm, wrap))

    async def unwrap_key(self, asked: UnwrapKey) -> Unwrapped:
        """Decrypt a key."""
        rest = asked.algorithm, asked.wrapped_key, asked.nonce, asked.tag, asked.associated_data
        return Unwrapped(await self._use("unwrapKey", asked.key_name, asked.algorithm, lambda key: decrypt(key, *rest)))

    async def sign(self, asked: Sign) -> Signed:
        """Sign a digest."""
        rest = asked.algorithm, asked.digest
        return Signed(await self._use("sign", asked.key_name, asked.algorithm, lambda key: sign(key, *rest)))

    async def verify(self, asked: Verify) -> Verified:
        """Tell whether a signature is right."""
        rest = asked.algorithm, asked.digest, asked.signature
        return Verified(await self._use("verify", asked.key_name, asked.algorithm, lambda key: verify(key, *rest)))

    async def _use(self, operation: str, name: str, algorithm: str, do: Callable[[Key], _Done]) -> _Done:
        """Do something with a key that may be used for it, in a thread: RSA takes milliseconds."""
        try:
            key = await self._key(name)
        except CryptoAwayError:
            raise
        except CryptoError as error:
            raise CryptoError(f"failed to retrieve the key: {error}") from None
        if key.operations and operation not in key.operations:
            raise CryptoError(f"key cannot perform the '{operation}' operation")
        if key.algorithm and key.algorithm != algorithm:
            raise CryptoError(f"key cannot be used with algorithm '{algorithm[:50]}'")
        return await asyncio.to_thread(do, key)
