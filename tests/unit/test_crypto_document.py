"""Encrypted documents: those that Dapr wrote, ours beside a second implementation, and every way to change one."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bindings.crypto.local import LocalStorageCrypto, LocalStorageSettings
from mesh.blocks.crypto import UnwrapKey, WrapKey
from mesh.blocks.crypto_document import SEGMENT_BYTES, Sealing, opened, sealed
from mesh.errors import CryptoAwayError, CryptoError
from tests.support.crypto_keys import HELLO, VECTORS, write_keys

TAG = 16
WRAPPINGS = [
    ("A256KW", "symkey.json"),
    ("aes", "symkey.json"),
    ("A128CBC-NOPAD", "k128"),
    ("A192CBC-NOPAD", "k192"),
    ("A256CBC-NOPAD", "symkey.json"),
    ("RSA-OAEP-256", "rsakey.pem"),
    ("rsa", "rsakey.pem"),
]
SIZES = [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES, 2 * SEGMENT_BYTES + 4]


class Keys:
    """Wraps and unwraps by a folder of keys."""

    def __init__(self, folder: Path) -> None:
        self._provider = LocalStorageCrypto(LocalStorageSettings(str(folder)))

    async def wrap(self, key: bytes, algorithm: str, nonce: bytes, name: str) -> bytes:
        return (await self._provider.wrap_key(WrapKey(key, algorithm, name, nonce))).wrapped_key

    async def unwrap(self, key: bytes, algorithm: str, nonce: bytes, name: str) -> bytes:
        return (await self._provider.unwrap_key(UnwrapKey(key, algorithm, name, nonce))).plaintext_key

    async def seal(self, data: bytes, how: Sealing, size: int = 10_000) -> bytes:
        return b"".join([part async for part in sealed(cut(data, size), how, self.wrap)])

    async def open(self, data: bytes, name: str = "", size: int = 10_000) -> bytes:
        return b"".join([part async for part in opened(cut(data, size), name, self.unwrap)])


async def cut(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(write_keys(tmp_path_factory.mktemp("keys")))


def second_opinion(document: bytes, file_key: bytes) -> bytes:
    """Decrypt by another implementation of the format."""
    scheme, manifest, code, payload = document.split(b"\n", 3)
    told = json.loads(manifest)
    prefix = base64.b64decode(told["np"])
    checked = hmac.HMAC(HKDF(hashes.SHA256(), 32, b"", b"header").derive(file_key), hashes.SHA256())
    checked.update(scheme + b"\n" + manifest + b"\n")
    checked.verify(base64.b64decode(code))
    payload_key = HKDF(hashes.SHA256(), 32, prefix, b"payload").derive(file_key)
    cipher = {1: AESGCM, 2: ChaCha20Poly1305}[told["cph"]](payload_key)
    found, size = [], SEGMENT_BYTES + TAG
    starts = range(0, len(payload), size)
    for number, start in enumerate(starts):
        last = start == starts[-1]
        nonce = prefix + number.to_bytes(4, "big") + bytes([last])
        found.append(cipher.decrypt(nonce, payload[start : start + size], None))
    return b"".join(found)


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_what_the_reference_wrote(keys: Keys, vector: bytes, size: int) -> None:
    assert await keys.open(vector, size=size) == HELLO


@pytest.mark.parametrize("vector", VECTORS)
async def test_what_the_reference_would_read(keys: Keys, vector: bytes) -> None:
    """The same key, algorithm and cipher give a document of the same form, with other random bytes."""
    told = json.loads(vector.split(b"\n")[1])
    algorithm = {1: "A256KW", 5: "RSA-OAEP-256"}[told["kw"]]
    cipher = {1: "aes-gcm", 2: "chacha20-poly1305"}[told["cph"]]
    document = await keys.seal(HELLO, Sealing(told["k"], algorithm, cipher))
    assert len(document) == len(vector)
    ours = json.loads(document.split(b"\n")[1])
    assert list(ours) == list(told)
    assert {name: ours[name] for name in ("k", "kw", "cph")} == {name: told[name] for name in ("k", "kw", "cph")}
    assert await keys.open(document) == HELLO


@pytest.mark.parametrize(("algorithm", "name"), WRAPPINGS)
@pytest.mark.parametrize("cipher", ["", "AES-GCM", "chacha20-poly1305"])
async def test_wrappings_and_ciphers(keys: Keys, algorithm: str, name: str, cipher: str) -> None:
    document = await keys.seal(HELLO, Sealing(name, algorithm, cipher))
    assert await keys.open(document) == HELLO


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cipher", ["aes-gcm", "chacha20-poly1305"])
async def test_sizes(keys: Keys, size: int, cipher: str) -> None:
    """A second implementation reads them, and so do we, however they are cut."""
    plaintext = bytes(range(256)) * (size // 256) + bytes(size % 256)
    wrapped: list[bytes] = []

    async def wrap(key: bytes, *rest: str | bytes) -> bytes:
        wrapped.append(key)
        return await keys.wrap(key, *rest)  # type: ignore[arg-type]

    parts = [part async for part in sealed(cut(plaintext, 50_001), Sealing("symkey.json", "A256KW", cipher), wrap)]
    document = b"".join(parts)
    assert second_opinion(document, wrapped[0]) == plaintext
    for chunk in (50_001, SEGMENT_BYTES + TAG, len(document)):
        assert await keys.open(document, size=chunk) == plaintext


async def test_names_of_keys(keys: Keys) -> None:
    """A document tells the name that it is given, or none; who decrypts may name another one."""
    other = await keys.seal(HELLO, Sealing("symkey.json", "A256KW", named="other"))
    assert b'"k":"other"' in other
    with pytest.raises(CryptoError, match=r"^failed to validate the document's signature$"):
        await keys.open(other)
    assert await keys.open(other, "symkey.json") == HELLO
    nameless = await keys.seal(HELLO, Sealing("symkey.json", "A256KW", named="other", nameless=True))
    assert json.loads(nameless.split(b"\n")[1]).keys() == {"kw", "wfk", "cph", "np"}
    with pytest.raises(CryptoError, match="does not contain a key name, and no key name was provided"):
        await keys.open(nameless)
    assert await keys.open(nameless, "symkey.json") == HELLO
    with pytest.raises(CryptoError, match="failed to validate the document's signature"):
        await keys.open(nameless, "k128")


@pytest.mark.costly
@pytest.mark.no_cover  # To note the same lines thousands of times takes longer than to run them.
@pytest.mark.parametrize("vector", VECTORS)
async def test_every_changed_byte_is_noticed(keys: Keys, vector: bytes) -> None:
    for position in range(len(vector)):
        for change in (1, 0x80):
            changed = bytearray(vector)
            changed[position] ^= change
            with pytest.raises(CryptoError):
                await keys.open(bytes(changed))


@pytest.mark.parametrize("vector", VECTORS[1:])
async def test_every_cut_is_noticed(keys: Keys, vector: bytes) -> None:
    for length in range(len(vector)):
        with pytest.raises(CryptoError):
            await keys.open(vector[:length])
    with pytest.raises(CryptoError):
        await keys.open(vector + b"\0")


def rearranged(header: bytes, segments: list[bytes]) -> Iterator[bytes]:
    for kept in range(len(segments)):
        yield header + b"".join(segments[:kept])
        yield header + b"".join(segments[:kept] + segments[kept + 1 :])
        yield header + b"".join(segments[:kept] + [segments[kept]] * 2 + segments[kept + 1 :])
    yield header + b"".join(reversed(segments))
    yield header + b"".join(segments) + bytes(SEGMENT_BYTES + TAG)


@pytest.mark.parametrize("size", [3 * SEGMENT_BYTES, 3 * SEGMENT_BYTES + 5])
async def test_segments_that_are_missing_doubled_or_moved_are_noticed(keys: Keys, size: int) -> None:
    """What was given out before is the beginning of what was encrypted."""
    plaintext = b"".join(number.to_bytes(4, "big") for number in range(size // 4)) + bytes(size % 4)
    parts = [part async for part in sealed(cut(plaintext, 9999), Sealing("symkey.json", "A256KW"), keys.wrap)]
    assert await keys.open(b"".join(parts)) == plaintext
    for changed in rearranged(parts[0], parts[1:]):
        given = b""
        with pytest.raises(CryptoError):
            async for part in opened(cut(changed, 9999), "", keys.unwrap):
                given += part
        assert plaintext.startswith(given)
        assert len(given) < len(plaintext)


HEAD = b"dapr.io/enc/v1\n"
GOOD = b'{"k":"symkey.json","kw":1,"wfk":"AAAA","cph":1,"np":"AAAAAAAAAA=="}\n'
MANIFESTS = [
    b"",
    b"x",
    b"[]",
    b"null",
    b"{}",
    b'{"kw":1,"wfk":"AAAA","cph":1}',
    b'{"kw":1,"wfk":"AAAA","cph":1,"np":"AAAA"}',
    b'{"kw":1,"wfk":"","cph":1,"np":"AAAAAAAAAA=="}',
    b'{"kw":1,"wfk":"A*AA","cph":1,"np":"AAAAAAAAAA=="}',
    b'{"kw":0,"wfk":"AAAA","cph":1,"np":"AAAAAAAAAA=="}',
    b'{"kw":6,"wfk":"AAAA","cph":1,"np":"AAAAAAAAAA=="}',
    b'{"kw":1,"wfk":"AAAA","cph":3,"np":"AAAAAAAAAA=="}',
    b'{"kw":true,"wfk":"AAAA","cph":true,"np":"AAAAAAAAAA=="}',
    b'{"kw":"1","wfk":"AAAA","cph":1,"np":"AAAAAAAAAA=="}',
    b'{"k":5,"kw":1,"wfk":"AAAA","cph":1,"np":"AAAAAAAAAA=="}',
    b'{"kw":1,"wfk":7,"cph":1,"np":"AAAAAAAAAA=="}',
]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (b"", "invalid header: scheme name not found"),
        (b"not a document", "invalid header: scheme name not found"),
        (b"dapr.io/enc/v1", "invalid header: scheme name not found"),
        (b"dapr.io/enc/v2\n{}\nx\n", "invalid header: unsupported scheme"),
        (b"\n\n\n", "invalid header: unsupported scheme"),
        (HEAD, "invalid header: manifest not found"),
        (HEAD + GOOD, "invalid header: message authentication code not found"),
        (HEAD + GOOD + b"AAAA", "invalid header: message authentication code not found"),
        (HEAD + GOOD + b"AAAA\n", "failed to validate the document's signature"),
        (HEAD + b"x" * 200_000, "invalid header: manifest not found"),
        *((HEAD + manifest + b"\nAAAA\n", "invalid header: invalid manifest") for manifest in MANIFESTS),
    ],
)
async def test_what_is_no_document(keys: Keys, document: bytes, told: str) -> None:
    with pytest.raises(CryptoError) as raised:
        await keys.open(document)
    assert str(raised.value) == told


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (Sealing("k", "BOGUS"), "option Algorithm is not valid: algorithm BOGUS is not supported"),
        (Sealing("k", ""), "option Algorithm is not valid: algorithm  is not supported"),
        (Sealing("k", "AES", "rot13"), "option Cipher is not valid: cipher rot13 is not supported"),
        (Sealing("symkey.json", "AES", named="n" * SEGMENT_BYTES), "header is too long"),
        (
            Sealing("symkey.json", "RSA"),
            "failed to wrap the file key: key type mismatch: an RSA key is needed",
        ),
        (
            Sealing("rsakey.pem", "AES"),
            "failed to wrap the file key: key type mismatch: A256KW needs a symmetric key of 256 bits",
        ),
    ],
)
async def test_what_cannot_be_encrypted(keys: Keys, how: Sealing, told: str) -> None:
    with pytest.raises(CryptoError) as raised:
        await keys.seal(HELLO, how)
    assert str(raised.value) == told


async def test_keys_that_are_away_are_told_of(keys: Keys) -> None:
    """That is no answer about the document, and the same call may succeed later."""

    async def away(*asked: object) -> bytes:
        raise CryptoAwayError("away")

    with pytest.raises(CryptoAwayError):
        await anext(sealed(cut(HELLO, 5), Sealing("k", "AES"), away))
    with pytest.raises(CryptoAwayError):
        await anext(opened(cut(VECTORS[1], 5), "", away))


async def test_a_key_of_another_length_is_none(keys: Keys) -> None:
    async def short(*asked: object) -> bytes:
        return bytes(31)

    with pytest.raises(CryptoError, match="failed to validate the document's signature"):
        await anext(opened(cut(VECTORS[1], 5), "", short))
