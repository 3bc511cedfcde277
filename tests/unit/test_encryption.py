"""Encryption of state at rest: the layout, byte by byte, and what cannot be read."""

from __future__ import annotations

import base64
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.blocks.encryption import EncryptedStateStore, Key, encryption_keys
from mesh.errors import ConfigError, EncryptionError, FeatureNotSupportedError
from mesh.key_value import MemoryKeyValue
from mesh.query import Query
from mesh.resources.component import Component, MetadataEntry, Secret, SecretRef
from mesh.store import Item, KeyValueStateStore, Stored

FIRST = Key("ek", bytes(range(32)))
# As Dapr 1.18 stored the text s with that key.
SEEN = b"/rM62+oCmeICw1qswrBIhNsTLR54to7jNtnJYdk=||ek"


class Stores:
    """One store, encrypted and as it is."""

    def __init__(self, *keys: Key) -> None:
        self.plain = KeyValueStateStore(MemoryKeyValue())
        self.encrypted = EncryptedStateStore(self.plain, keys or [FIRST])

    async def stored(self, value: bytes) -> Stored:
        """Read what somebody else stored."""
        await self.plain.write([Item("k", value)])
        stored = await self.encrypted.get("k", strong=True)
        assert stored is not None
        return stored


async def test_what_the_reference_stored() -> None:
    """A text without its quotes, which JSON answers put around it."""
    stored = await Stores().stored(SEEN)
    assert (stored.value, stored.bare) == (b"s", True)


def sealed(plain: bytes, key: Key = FIRST) -> bytes:
    nonce = os.urandom(12)
    return base64.b64encode(nonce + AESGCM(key.secret).encrypt(nonce, plain, None)) + b"||" + key.name.encode()


@pytest.mark.parametrize(
    ("plain", "bare"),
    [
        (b'"s"', False),
        (b"12", False),
        (b'{"p":1}', False),
        (b"map[p:1]", True),
        (b"", True),
        (b"\xff\x00", False),
    ],
)
async def test_values_come_back_as_they_were(plain: bytes, bare: bool) -> None:
    """Written by us or by anybody with the key."""
    stores = Stores()
    await stores.encrypted.write([Item("k", plain)])
    ours = await stores.encrypted.get("k", strong=True)
    theirs = await stores.stored(sealed(plain))
    for stored in (ours, theirs):
        assert stored is not None
        assert (stored.value, stored.bare) == (plain, bare)


@pytest.mark.parametrize("size", [16, 24, 32])
async def test_layout(size: int) -> None:
    """base64 of nonce, ciphertext and tag, then the key's name; another nonce each time."""
    key = Key("name", os.urandom(size))
    stores = Stores(key)
    await stores.encrypted.save_each([Item("a", b'"v"'), Item("b", b'"v"')])
    values = [stored.value for each in "ab" if (stored := await stores.plain.get(each, strong=True))]
    assert values[0] != values[1]
    for value in values:
        encoded, name = value.split(b"||")
        raw = base64.b64decode(encoded, validate=True)
        assert (name, len(raw)) == (b"name", 12 + 3 + 16)
        assert AESGCM(key.secret).decrypt(raw[:12], raw[12:], None) == b'"v"'


async def test_keys_in_turn() -> None:
    """What an older key encrypted stays readable; both may have one name, in different secrets."""
    old, new = Key("ek", os.urandom(16)), Key("ek", os.urandom(16))
    other = Key("old||name", os.urandom(32))
    for keys in ((new, old), (new, other)):
        stores = Stores(*keys)
        for key in keys:
            assert (await stores.stored(sealed(b"1", key))).value == b"1"
        await stores.encrypted.write([Item("k", b"2")])
        written = await stores.plain.get("k", strong=True)
        assert written is not None
        with pytest.raises(EncryptionError, match=r"is another one|was encrypted with the key"):
            await Stores(keys[1]).stored(written.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b'{"plain": 1}', "the value of key 'k' is not encrypted"),
        (b'"a||b"', "is not encrypted"),
        (b"", "is not encrypted"),
        (b"AAAA||ek", "is not encrypted"),
        (SEEN.replace(b"||ek", b"||older"), "was encrypted with the key 'older'; configured are: ek"),
        (b"A" + SEEN[1:], "does not fit the encryption key 'ek'"),
    ],
)
async def test_what_cannot_be_read(value: bytes, text: str) -> None:
    """The text says why; another try would not help. A bulk read gives the others."""
    stores = Stores()
    with pytest.raises(EncryptionError, match=text) as raised:
        await stores.stored(value)
    assert not raised.value.retryable
    await stores.encrypted.write([Item("fine", b"1")])
    found = await stores.encrypted.get_many(["k", "fine", "none"])
    assert [type(each) for each in found] == [EncryptionError, Stored, type(None)]


async def test_abilities() -> None:
    """All of the store's, but queries."""
    stores = Stores()
    stores.plain.capabilities = ("ETAG", "QUERY_API", "KEYS")
    encrypted = EncryptedStateStore(stores.plain, [FIRST])
    assert encrypted.capabilities == ("ETAG", "KEYS")
    with pytest.raises(FeatureNotSupportedError):
        await encrypted.query(Query(), "")


def component(**values: str | Secret) -> Component:
    return Component("s", "state.test", tuple(MetadataEntry(name, value) for name, value in values.items()))


def referred(text: str, key: str = "ek") -> Secret:
    return Secret(text, SecretRef("secret", key))


def test_settings() -> None:
    """The name of a key is that within its secret."""
    assert encryption_keys(component()) == ()
    keys = encryption_keys(
        component(PrimaryEncryptionKey=referred("00" * 16), secondaryEncryptionKey=referred("FF" * 32, "x"))
    )
    assert keys == (Key("ek", bytes(16)), Key("x", b"\xff" * 32))
    assert "00" not in repr(keys[0])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"primaryEncryptionKey": "00" * 16}, r"primaryEncryptionKey.*must refer to a secret \(secretKeyRef\)"),
        ({"primaryEncryptionKey": Secret("00" * 16)}, "must refer to a secret"),
        ({"primaryEncryptionKey": referred("00" * 15)}, "is no AES key: 16, 24 or 32 bytes"),
        ({"primaryEncryptionKey": referred("secret")}, "is no AES key"),
        ({"primaryEncryptionKey": referred("")}, "is no AES key"),
        ({"secondaryEncryptionKey": referred("00" * 16)}, "needs a primaryEncryptionKey beside it"),
    ],
)
def test_settings_that_are_wrong(values: dict[str, str | Secret], text: str) -> None:
    """Nothing is stored as plain text by mistake, and no key is told."""
    with pytest.raises(ConfigError, match=text) as raised:
        encryption_keys(component(**values))
    assert "0000" not in str(raised.value)
