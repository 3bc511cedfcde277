"""Encryption at rest: around any state store, so that the values it holds can be read with a key only.

A stored value is ``base64(nonce ‖ ciphertext ‖ tag)||<name of the key>``: AES in Galois/counter mode, with 12 bytes of
nonce, 16 of tag and no associated data. The name is that of the key within its secret, so that values which were
written with an older key, the secondary one, stay readable. Keys, etags and times to live are not encrypted.

What is encrypted is the value as it was saved, JSON text. Dapr encrypts a text without its quotes, and other values as
Go prints them: what is no JSON is therefore marked (``Stored.bare``), and JSON answers quote it. A text that reads as
JSON (``12``) cannot be told from what it reads as.

Source: Dapr 1.18, state encryption, as its stores were seen to hold it.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
from msgspec.structs import replace

from mesh.errors import ConfigError, EncryptionError, FeatureNotSupportedError, MeshError
from mesh.query import Queried, Query
from mesh.registry import needs
from mesh.resources.component import Component, Secret, SecretRef
from mesh.store import MAX_PARALLEL, Item, StateStore, Stored

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["ENCRYPTION_SETTINGS", "EncryptedStateStore", "Key", "encryption_keys"]

ENCRYPTION_SETTINGS = ("primaryEncryptionKey", "secondaryEncryptionKey")
SEPARATOR = b"||"
NONCE_BYTES, TAG_BYTES = 12, 16
KEY_BYTES = (16, 24, 32)


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its name, which is stored with each value."""

    name: str
    secret: bytes = field(repr=False)


def encryption_keys(component: Component) -> tuple[Key, ...]:
    """Read the keys, the one to write with first; none when the store is not encrypted.

    Raises:
        ConfigError: One is none, or does not come from a secret store.
    """
    problems, keys = [], []
    for name in ENCRYPTION_SETTINGS:
        entry = component.entry(name)
        if entry is None:
            continue
        source = entry.value.source if isinstance(entry.value, Secret) else None
        if not isinstance(source, SecretRef):
            reason = "must refer to a secret (secretKeyRef): the name of the key within it is stored with every value"
            problems.append(component.problem(reason, setting=name))
            continue
        try:
            secret = bytes.fromhex(component.setting(name) or "")
        except ValueError:
            secret = b""
        if len(secret) not in KEY_BYTES:
            reason = "is no AES key: 16, 24 or 32 bytes are written as 32, 48 or 64 hexadecimal digits"
            problems.append(component.problem(reason, setting=name))
            continue
        keys.append(Key(source.key, secret))
    if component.entry(ENCRYPTION_SETTINGS[1]) is not None and component.entry(ENCRYPTION_SETTINGS[0]) is None:
        reason = "needs a primaryEncryptionKey beside it: with a secondary one nothing is written"
        problems.append(component.problem(reason, setting=ENCRYPTION_SETTINGS[1]))
    if problems:
        raise ConfigError(problems)
    return tuple(keys)


class EncryptedStateStore(StateStore):
    """A state store whose values are encrypted."""

    def __init__(self, store: StateStore, keys: Sequence[Key]) -> None:
        """Use an open store.

        Args:
            store: What keeps the values.
            keys: What values were encrypted with; the first one encrypts.

        Raises:
            MissingDependencyError: There is no library for it.
        """
        self._store = store
        self._names = [key.name for key in keys]
        self._ciphers = [_cipher(key) for key in keys]
        self._suffix = SEPARATOR + keys[0].name.encode()
        self.capabilities = tuple(each for each in store.capabilities if each != "QUERY_API")
        self.max_transaction = store.max_transaction
        self.guards, self.alone = store.guards, store.alone
        self.volatile = store.volatile
        self.bound = getattr(store, "bound", False)

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read and decrypt; raises ``EncryptionError``."""
        stored = await self._store.get(key, strong=strong, metadata=metadata)
        return None if stored is None else self._decrypted(key, stored)

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several; one that cannot be decrypted has its error."""
        found = await self._store.get_many(keys, parallelism=parallelism, metadata=metadata, strong=strong)
        results: list[Stored | MeshError | None] = []
        for key, stored in zip(keys, found, strict=True):
            try:
                results.append(self._decrypted(key, stored) if isinstance(stored, Stored) else stored)
            except EncryptionError as error:
                results.append(error)
        return results

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing."""
        await self._store.write([self._encrypted(item) for item in items])

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        """Write each item for itself."""
        return await self._store.save_each([self._encrypted(item) for item in items])

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys, which are not encrypted."""
        return await self._store.keys(prefix, after, limit)

    async def query(self, query: Query, prefix: str) -> Queried:
        """Refuse: the store cannot look into values."""
        raise FeatureNotSupportedError("an encrypted state store", "querying")

    def _encrypted(self, item: Item) -> Item:
        if item.value is None:
            return item
        nonce = os.urandom(NONCE_BYTES)
        sealed = base64.b64encode(nonce + self._ciphers[0].encrypt(nonce, item.value, None))
        return replace(item, value=sealed + self._suffix)

    def _decrypted(self, key: str, stored: Stored) -> Stored:
        plain = self._opened(key, stored.value)
        bare = False
        try:
            orjson.loads(plain)
        except orjson.JSONDecodeError:
            with suppress(UnicodeDecodeError):
                plain.decode()
                bare = True
        return replace(stored, value=plain, bare=bare)

    def _opened(self, key: str, value: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        encoded, separator, told = value.partition(SEPARATOR)
        try:
            sealed = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            sealed = b""
        if not separator or len(sealed) < NONCE_BYTES + TAG_BYTES:
            raise EncryptionError(
                f"the value of key {key!r} is not encrypted: it was written without primaryEncryptionKey"
            )
        name = told.decode("utf-8", "replace")
        for ours, cipher in zip(self._names, self._ciphers, strict=True):
            if ours == name:  # Both keys may have one name, in different secrets.
                with suppress(InvalidTag):
                    return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        if name in self._names:
            raise EncryptionError(
                f"the value of key {key!r} does not fit the encryption key {name!r}: that is another one"
            )
        raise EncryptionError(
            f"the value of key {key!r} was encrypted with the key {name!r}; configured are: {', '.join(self._names)}"
        )


def _cipher(key: Key) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError as error:
        raise needs("primaryEncryptionKey", error.name or "") from error
    return AESGCM(key.secret)
