"""Encrypted documents of the format ``dapr.io/enc/v1``: streams in bounded memory, of which every byte is checked.

A document is a header of three lines and a payload. The lines are the format's name, a manifest in JSON with the
document's own key, wrapped, and the code that authenticates both (HMAC). The payload is the plaintext in segments of
64 KiB, each sealed for itself with its number and whether it is the last one: what is given out is authentic, and a
document that is cut off or put together anew is noticed. One without any segment is refused, though Dapr writes an
empty one so: it cannot be told from a document that was cut off behind its header.

Source: Dapr 1.18, the Dapr encryption scheme v1; RFC 5869 (HKDF).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from mesh.errors import CryptoAwayError, CryptoError
from mesh.registry import needs

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

__all__ = ["SEGMENT_BYTES", "Sealing", "Unwrap", "Wrap", "opened", "sealed"]

SCHEME = b"dapr.io/enc/v1"
SEGMENT_BYTES = 64 * 1024
TAG_BYTES = 16
KEY_BYTES = 32
PREFIX_BYTES = 7
MAX_SEGMENTS = 2**32
ALGORITHMS = {"A256KW": 1, "A128CBC-NOPAD": 2, "A192CBC-NOPAD": 3, "A256CBC-NOPAD": 4, "RSA-OAEP-256": 5}
ALIASES = {"AES": "A256KW", "RSA": "RSA-OAEP-256"}
CIPHERS = {"aes-gcm": 1, "chacha20-poly1305": 2}
_NAMES = {number: name for name, number in ALGORITHMS.items()}

# They take a key, or a wrapped one, the algorithm and the nonce that belongs to it, and the name of the key around it.
Wrap = Callable[[bytes, str, bytes, str], Awaitable[bytes]]
Unwrap = Callable[[bytes, str, bytes, str], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Sealing:
    """How a document is encrypted.

    Attributes:
        key_name: Of the key that wraps the document's own.
        algorithm: Of the wrapping, or its alias, in any case.
        cipher: Of the payload; empty = AES-GCM.
        named: The key's name as the document tells it; empty = as it is.
        nameless: Whether the document tells none.
    """

    key_name: str
    algorithm: str
    cipher: str = ""
    named: str = ""
    nameless: bool = False


@dataclass(frozen=True, slots=True)
class _Manifest:
    key_name: str
    algorithm: str
    wrapped: bytes
    cipher: int
    prefix: bytes


class _FileKey:
    """The key of one document, and what is derived from it."""

    def __init__(self, key: bytes, prefix: bytes, cipher: int) -> None:
        self._key, self._prefix = key, prefix
        self._aead = _aead(cipher, self._derived(prefix, b"payload"))

    def _derived(self, salt: bytes, info: bytes) -> bytes:
        """Derive a key; an empty salt is one of zeros."""
        drawn = hmac.digest(salt or bytes(32), self._key, hashlib.sha256)
        return hmac.digest(drawn, info + b"\x01", hashlib.sha256)

    def code(self, lines: bytes) -> bytes:
        """Authenticate two lines of a header."""
        return base64.b64encode(hmac.digest(self._derived(b"", b"header"), lines, hashlib.sha256))

    def _nonce(self, number: int, last: bool) -> bytes:
        return self._prefix + number.to_bytes(4, "big") + (b"\x01" if last else b"\x00")

    def seal(self, number: int, segment: bytes, last: bool) -> bytes:
        return self._aead.encrypt(self._nonce(number, last), segment, None)

    def open(self, number: int, segment: bytes, last: bool) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(self._nonce(number, last), segment, None)
        except InvalidTag:
            raise CryptoError(f"error processing segment {number}: failed to decrypt segment") from None


def _aead(cipher: int, key: bytes) -> AESGCM | ChaCha20Poly1305:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
    except ModuleNotFoundError as error:
        raise needs("cryptography of documents", error.name or "") from error
    return AESGCM(key) if cipher == CIPHERS["aes-gcm"] else ChaCha20Poly1305(key)


def _wrapping_nonce(algorithm: str) -> bytes:
    """Give the nonce of a wrapping: the format has no place for one, and what is wrapped is random."""
    return bytes(16) if "CBC" in algorithm else b""


async def sealed(parts: AsyncIterable[bytes], how: Sealing, wrap: Wrap) -> AsyncIterator[bytes]:
    """Encrypt a document; the first of what is given is its header.

    Args:
        parts: The plaintext, as it comes.
        how: How.
        wrap: Wraps the key.

    Raises:
        CryptoError: It cannot be encrypted so; nothing was given, but of one of more than 256 TiB.
    """
    given = how.algorithm.upper()
    algorithm = ALIASES.get(given, given)
    if algorithm not in ALGORITHMS:
        raise CryptoError(f"option Algorithm is not valid: algorithm {how.algorithm[:100]} is not supported")
    cipher = CIPHERS.get((how.cipher or "aes-gcm").lower())
    if cipher is None:
        raise CryptoError(f"option Cipher is not valid: cipher {how.cipher[:100]} is not supported")
    random = os.urandom(KEY_BYTES + PREFIX_BYTES)
    key = _FileKey(random[:KEY_BYTES], random[KEY_BYTES:], cipher)
    try:
        wrapped = await wrap(random[:KEY_BYTES], algorithm, _wrapping_nonce(algorithm), how.key_name)
    except CryptoAwayError:
        raise
    except CryptoError as error:
        raise CryptoError(f"failed to wrap the file key: {error}") from None
    named = "" if how.nameless else how.named or how.key_name
    manifest = {
        **({"k": named} if named else {}),
        "kw": ALGORITHMS[algorithm],
        "wfk": base64.b64encode(wrapped).decode(),
        "cph": cipher,
        "np": base64.b64encode(random[KEY_BYTES:]).decode(),
    }
    lines = b"%b\n%b\n" % (SCHEME, orjson.dumps(manifest))
    header = b"%b%b\n" % (lines, key.code(lines))
    if len(header) > SEGMENT_BYTES:
        raise CryptoError("header is too long")
    async for number, segment, last in _segments(parts, SEGMENT_BYTES):
        if number == 0:  # Not before: a plaintext that does not come at all has no document.
            yield header
        yield key.seal(number, segment, last)


async def opened(parts: AsyncIterable[bytes], key_name: str, unwrap: Unwrap) -> AsyncIterator[bytes]:
    """Decrypt a document.

    Args:
        parts: The document, as it comes.
        key_name: Of the key that unwraps the document's own; empty = the document tells it.
        unwrap: Unwraps the key.

    Raises:
        CryptoError: It is no such document, or not as it was made. What was given before is authentic.
    """
    incoming = aiter(parts)
    head = _Head()
    async for part in incoming:
        if head.add(part):
            break
    lines, code, manifest = head.read()
    name = key_name or manifest.key_name
    if not name:
        raise CryptoError("document's manifest does not contain a key name, and no key name was provided")
    try:
        found = await unwrap(manifest.wrapped, manifest.algorithm, _wrapping_nonce(manifest.algorithm), name)
    except CryptoAwayError:
        raise
    except CryptoError:  # Which is all that is told, so that nobody learns of keys by asking for them.
        found = b""
    known = len(found) == KEY_BYTES
    key = _FileKey(found if known else os.urandom(KEY_BYTES), manifest.prefix, manifest.cipher)
    if not hmac.compare_digest(key.code(lines), code) or not known:
        raise CryptoError("failed to validate the document's signature")

    async def payload() -> AsyncIterator[bytes]:
        yield head.rest
        async for part in incoming:
            yield part

    async for number, segment, last in _segments(payload(), SEGMENT_BYTES + TAG_BYTES):
        yield key.open(number, segment, last)


async def _segments(
    parts: AsyncIterator[bytes] | AsyncIterable[bytes], size: int
) -> AsyncIterator[tuple[int, bytes, bool]]:
    """Cut a stream into segments, with their numbers and whether they are the last; there is always a last one."""
    pending, number = bytearray(), 0
    async for part in parts:
        pending += part
        while len(pending) > size:
            yield number, bytes(pending[:size]), False
            del pending[:size]
            number += 1
            if number >= MAX_SEGMENTS:
                raise CryptoError("input stream is too large")
    yield number, bytes(pending), True


@dataclass(slots=True)
class _Head:
    """The header of a document, while it comes.

    Attributes:
        rest: What came behind it.
    """

    rest: bytes = b""
    _data: bytearray = field(default_factory=bytearray)

    def add(self, part: bytes) -> bool:
        """Take a part; tell whether there is enough."""
        self._data += part
        return self._data.count(b"\n", 0, SEGMENT_BYTES) >= 3 or len(self._data) >= SEGMENT_BYTES

    def read(self) -> tuple[bytes, bytes, _Manifest]:
        """Give the first two lines, the code in the third one, and the manifest."""
        scheme, *further = bytes(self._data[:SEGMENT_BYTES]).split(b"\n", 3)
        if not further:
            raise CryptoError("invalid header: scheme name not found")
        if scheme != SCHEME:
            raise CryptoError("invalid header: unsupported scheme")
        if len(further) < 3:
            missing = "manifest" if len(further) < 2 else "message authentication code"
            raise CryptoError(f"invalid header: {missing} not found")
        manifest, code, _ = further
        length = len(scheme) + len(manifest) + 2
        self.rest = bytes(self._data[length + len(code) + 1 :])
        self._data.clear()
        return b"%b\n%b\n" % (scheme, manifest), code, _manifest(manifest)


def _manifest(text: bytes) -> _Manifest:
    try:
        told = orjson.loads(text)
        wrapped, prefix = (base64.b64decode(told[name], validate=True) for name in ("wfk", "np"))
        name, algorithm, cipher = told.get("k", ""), told["kw"], told["cph"]
        right = type(algorithm) is type(cipher) is int and isinstance(name, str) and len(prefix) == PREFIX_BYTES
        if right and wrapped and cipher in CIPHERS.values():
            return _Manifest(name, _NAMES[algorithm], wrapped, cipher, prefix)
    except (orjson.JSONDecodeError, binascii.Error, KeyError, TypeError, ValueError, AttributeError):
        pass
    raise CryptoError("invalid header: invalid manifest")
