"""What keys are used for, by the names of JOSE.

Of a decryption that fails nothing is told but that: who can ask for many would learn from more. What is wrong with the
request whatever the key is, as a nonce of the wrong length, is told.

Source: RFC 7518 (JSON Web Algorithms), with its AES-CBC and HMAC; RFC 3394 (AES key wrap); RFC 8439 and
draft-irtf-cfrg-xchacha-03 (ChaCha20-Poly1305); RFC 8017 (RSA). Names beyond RFC 7518 are Dapr's.
"""

from __future__ import annotations

import hmac
import re
import struct
from collections.abc import Callable, Mapping

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.padding import PKCS7

from bindings.crypto._keys import Key
from mesh.errors import CryptoError

__all__ = ["decrypt", "encrypt", "sign", "verify"]

TAG_BYTES = 16
GCM_NONCE_BYTES, BLOCK_BYTES, XCHACHA_NONCE_BYTES = 12, 16, 24
_HASHES: Mapping[str, Callable[[], hashes.HashAlgorithm]] = {
    "1": hashes.SHA1,
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES = {"256": "secp256r1", "384": "secp384r1", "512": "secp521r1"}
_AES = re.compile(r"A(128|192|256)(CBC|CBC-NOPAD|GCM|GCMKW|KW|CBC-HS(256|384|512))")
_MACS = {"128": "256", "192": "384", "256": "512"}
_RSA = re.compile(r"RSA-OAEP(?:-(256|384|512))?|RSA1_5")
_SIGNING = re.compile(r"(RS|PS|ES)(256|384|512)|EdDSA")
_CHACHA = ("C20P", "C20PKW", "XC20P", "XC20PKW")
_FAILED = "the data do not fit the key, or were changed"
Sealed = tuple[bytes, bytes]


def encrypt(key: Key, algorithm: str, plaintext: bytes, nonce: bytes, associated: bytes) -> Sealed:
    """Encrypt; give what it gives, and the tag.

    Raises:
        CryptoError: Key, algorithm, nonce or plaintext do not go together.
    """
    try:
        if _RSA.fullmatch(algorithm):
            return _rsa_public(key).encrypt(plaintext, _rsa_padding(algorithm, associated)), b""
        secret = _secret(key, algorithm)
        if (match := _AES.fullmatch(algorithm)) is None:
            sealed = ChaCha20Poly1305(_chacha_key(secret, algorithm, nonce)).encrypt(
                _chacha_nonce(algorithm, nonce), plaintext, associated
            )
            return sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
        return _encrypt_aes(match[2], secret, plaintext, nonce, associated)
    except ValueError:
        raise CryptoError("invalid plaintext length") from None


def _encrypt_aes(mode: str, secret: bytes, plaintext: bytes, nonce: bytes, associated: bytes) -> Sealed:
    if mode == "KW":
        return aes_key_wrap(secret, plaintext), b""
    if mode.startswith("GCM"):
        sealed = AESGCM(secret).encrypt(_sized(nonce, GCM_NONCE_BYTES), plaintext, associated)
        return sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
    _sized(nonce, BLOCK_BYTES)
    authentic = mode.startswith("CBC-HS")
    if mode != "CBC-NOPAD":
        padder = PKCS7(BLOCK_BYTES * 8).padder()
        plaintext = padder.update(plaintext) + padder.finalize()
    elif len(plaintext) % BLOCK_BYTES:
        raise ValueError
    half = len(secret) // 2 if authentic else 0
    encryptor = Cipher(algorithms.AES(secret[half:]), modes.CBC(nonce)).encryptor()
    ciphertext = encryptor.update(plaintext) + encryptor.finalize()
    return ciphertext, _cbc_tag(mode, secret, ciphertext, nonce, associated) if authentic else b""


def decrypt(key: Key, algorithm: str, ciphertext: bytes, nonce: bytes, tag: bytes, associated: bytes) -> bytes:
    """Decrypt.

    Raises:
        CryptoError: Key, algorithm and nonce do not go together, or the data are not what was encrypted.
    """
    try:
        if _RSA.fullmatch(algorithm):
            return _rsa_private(key).decrypt(ciphertext, _rsa_padding(algorithm, associated))
        secret = _secret(key, algorithm)
        if (match := _AES.fullmatch(algorithm)) is None:
            chacha = ChaCha20Poly1305(_chacha_key(secret, algorithm, nonce))
            return chacha.decrypt(
                _chacha_nonce(algorithm, nonce), ciphertext + _sized(tag, TAG_BYTES, "tag"), associated
            )
        return _decrypt_aes(match[2], secret, ciphertext, nonce, tag, associated)
    except (ValueError, InvalidTag, InvalidUnwrap):
        raise CryptoError(_FAILED) from None


def _decrypt_aes(mode: str, secret: bytes, ciphertext: bytes, nonce: bytes, tag: bytes, associated: bytes) -> bytes:
    if mode == "KW":
        return aes_key_unwrap(secret, ciphertext)
    if mode.startswith("GCM"):
        sealed = ciphertext + _sized(tag, TAG_BYTES, "tag")
        return AESGCM(secret).decrypt(_sized(nonce, GCM_NONCE_BYTES), sealed, associated)
    _sized(nonce, BLOCK_BYTES)
    half = 0
    if mode.startswith("CBC-HS"):
        half = len(secret) // 2
        if not hmac.compare_digest(tag, _cbc_tag(mode, secret, ciphertext, nonce, associated)):
            raise ValueError
    decryptor = Cipher(algorithms.AES(secret[half:]), modes.CBC(nonce)).decryptor()
    plaintext = decryptor.update(ciphertext) + decryptor.finalize()
    if mode == "CBC-NOPAD":
        return plaintext
    unpadder = PKCS7(BLOCK_BYTES * 8).unpadder()
    return unpadder.update(plaintext) + unpadder.finalize()


def _cbc_tag(mode: str, secret: bytes, ciphertext: bytes, nonce: bytes, associated: bytes) -> bytes:
    half = len(secret) // 2
    told = associated + nonce + ciphertext + struct.pack(">Q", len(associated) * 8)
    return hmac.digest(secret[:half], told, f"sha{mode[-3:]}")[:half]


def _sized(data: bytes, size: int, what: str = "nonce") -> bytes:
    if len(data) != size:
        raise CryptoError(f"invalid {what}: it must have {size} bytes, not {len(data)}")
    return data


def _secret(key: Key, algorithm: str) -> bytes:
    match = _AES.fullmatch(algorithm)
    if match is None and algorithm not in _CHACHA:
        raise CryptoError(f"unsupported algorithm {algorithm[:50]!r}")
    bits = 256 if match is None else int(match[1])
    if match is not None and match[3]:
        if _MACS[match[1]] != match[3]:
            raise CryptoError(f"unsupported algorithm {algorithm[:50]!r}")
        bits *= 2
    if key.secret is None or len(key.secret) * 8 != bits:
        raise CryptoError(f"key type mismatch: {algorithm} needs a symmetric key of {bits} bits")
    return key.secret


def _chacha_nonce(algorithm: str, nonce: bytes) -> bytes:
    if algorithm.startswith("X"):
        return bytes(4) + nonce[16:]
    return _sized(nonce, GCM_NONCE_BYTES)


def _chacha_key(secret: bytes, algorithm: str, nonce: bytes) -> bytes:
    """Give the key that ChaCha20 is used with; XChaCha20 derives it by HChaCha20, its rounds without the last addition.

    A block of ChaCha20 is those rounds with the words that went in added, so that they are taken off again.
    """
    if not algorithm.startswith("X"):
        return secret
    _sized(nonce, XCHACHA_NONCE_BYTES)
    block = Cipher(algorithms.ChaCha20(secret, nonce[:16]), None).encryptor().update(bytes(64))
    words = struct.unpack("<16I", block)
    begun = struct.unpack("<16I", b"expand 32-byte k" + secret + nonce[:16])
    rounds = [(word - first) & 0xFFFFFFFF for word, first in zip(words, begun, strict=True)]
    return struct.pack("<8I", *rounds[:4], *rounds[12:])


def _rsa_public(key: Key) -> rsa.RSAPublicKey:
    if not isinstance(key.public, rsa.RSAPublicKey):
        raise CryptoError("key type mismatch: an RSA key is needed")
    return key.public


def _rsa_private(key: Key) -> rsa.RSAPrivateKey:
    if not isinstance(key.private, rsa.RSAPrivateKey):
        raise CryptoError("key type mismatch: an RSA key with its private part is needed")
    return key.private


def _rsa_padding(algorithm: str, label: bytes) -> padding.AsymmetricPadding:
    if algorithm == "RSA1_5":
        return padding.PKCS1v15()
    made = _HASHES[algorithm.removeprefix("RSA-OAEP").lstrip("-") or "1"]
    return padding.OAEP(padding.MGF1(made()), made(), label or None)


def _signing(algorithm: str, digest: bytes) -> tuple[str, hashes.HashAlgorithm]:
    match = _SIGNING.fullmatch(algorithm)
    if match is None:
        raise CryptoError(f"unsupported algorithm {algorithm[:50]!r}")
    if match[1] is None:
        return algorithm, hashes.SHA512()
    made = _HASHES[match[2]]()
    if len(digest) != made.digest_size:
        raise CryptoError(f"invalid digest: {algorithm} signs one of {made.digest_size} bytes, not of {len(digest)}")
    return match[1], made


def sign(key: Key, algorithm: str, digest: bytes) -> bytes:
    """Sign a digest; EdDSA signs a message. Signatures of ES256 and its like are ASN.1.

    Raises:
        CryptoError: Key, algorithm and digest do not go together.
    """
    family, made = _signing(algorithm, digest)
    try:
        match key.private:
            case rsa.RSAPrivateKey() as found if family in ("RS", "PS"):
                return found.sign(digest, _signature_padding(family, made, verifying=False), Prehashed(made))
            case ec.EllipticCurvePrivateKey() as found if family == "ES" and _is_curve(found.curve, algorithm):
                return found.sign(digest, ec.ECDSA(Prehashed(made)))
            case ed25519.Ed25519PrivateKey() as found if family == "EdDSA":
                return found.sign(digest)
    except ValueError:
        raise CryptoError(f"the key is too short for {algorithm}") from None
    raise CryptoError(f"key type mismatch: {algorithm} needs another private key")


def verify(key: Key, algorithm: str, digest: bytes, signature: bytes) -> bool:
    """Tell whether a signature is that of a digest.

    Raises:
        CryptoError: Key, algorithm and digest do not go together.
    """
    family, made = _signing(algorithm, digest)
    try:
        match key.public:
            case rsa.RSAPublicKey() as found if family in ("RS", "PS"):
                scheme = _signature_padding(family, made, verifying=True)
                found.verify(signature, digest, scheme, Prehashed(made))
            case ec.EllipticCurvePublicKey() as found if family == "ES" and _is_curve(found.curve, algorithm):
                found.verify(signature, digest, ec.ECDSA(Prehashed(made)))
            case ed25519.Ed25519PublicKey() as found if family == "EdDSA":
                found.verify(signature, digest)
            case _:
                raise CryptoError(f"key type mismatch: {algorithm} needs another key")
    except InvalidSignature:
        return False
    except ValueError:
        raise CryptoError(f"the key is too short for {algorithm}") from None
    return True


def _signature_padding(family: str, made: hashes.HashAlgorithm, *, verifying: bool) -> padding.AsymmetricPadding:
    if family == "RS":
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(made), padding.PSS.AUTO if verifying else padding.PSS.MAX_LENGTH)


def _is_curve(curve: ec.EllipticCurve, algorithm: str) -> bool:
    return curve.name == _CURVES[algorithm[2:]]
