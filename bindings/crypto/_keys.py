"""Keys as they are written: JSON Web Keys, PEM, and the bytes of symmetric ones.

Source: RFC 7517, RFC 7518 section 6, RFC 8037 (JSON Web Keys); RFC 7468 (PEM).
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mesh.errors import CryptoError

__all__ = ["Key", "as_pem", "key_from_jwk", "parse_key", "public_jwk", "serialized"]

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Public = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_CURVES: Mapping[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_USES = {"sig": ("sign", "verify"), "enc": ("encrypt", "decrypt", "wrapKey", "unwrapKey")}
_ENCODING, _DER, _PKCS8 = serialization.Encoding, serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
_SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
_RSA_MEMBERS = ("n", "e", "d", "p", "q", "dp", "dq", "qi")
PLAIN_LENGTHS = (16, 24, 32)
MAX_RSA_BITS, MAX_FACTORED_BITS, MAX_EXPONENT_BITS = 16384, 4096, 256
FACTORING_ATTEMPTS = 32


@dataclass(frozen=True, slots=True)
class Key:
    """A key.

    Attributes:
        secret: The symmetric one; None = it is none.
        private: Of a pair; None = it is symmetric, or only the public part is here.
        public: Of a pair.
        kid: Its id; empty = it has none.
        operations: What it may be used for; empty = anything.
        algorithm: The one it may be used with; empty = any.
    """

    secret: bytes | None = field(default=None, repr=False)
    private: Private | None = field(default=None, repr=False)
    public: Public | None = None
    kid: str = ""
    operations: frozenset[str] = frozenset()
    algorithm: str = ""


def parse_key(data: bytes, kind: str = "") -> Key:
    """Read a key.

    Args:
        data: Its text or bytes; base64 of a symmetric one is taken as such.
        kind: ``json`` or ``pem``; empty = as it looks.

    Raises:
        CryptoError: It is none.
    """
    if not data:
        raise CryptoError("the key is empty")
    looks_json = data[:1] == b"{" and len(data) not in PLAIN_LENGTHS
    if kind == "json" or (not kind and looks_json):
        try:
            return key_from_jwk(orjson.loads(data))
        except orjson.JSONDecodeError:
            raise CryptoError("the key is no JSON Web Key") from None
    if kind == "pem" or data.startswith(b"-----"):
        return key_from_pem(data)
    text = data.strip().rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return Key(secret=base64.b64decode(text + b"=" * (-len(text) % 4), validate=True))
    except binascii.Error:
        return Key(secret=data)


def key_from_pem(data: bytes) -> Key:
    """Read PKCS #8, PKCS #1, SEC 1 or the public part, as PEM; raises ``CryptoError``."""
    try:
        if b"PRIVATE KEY-----" in data:
            return _of_pair(serialization.load_pem_private_key(data, None, unsafe_skip_rsa_key_validation=True))
        return _of_pair(serialization.load_pem_public_key(data))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CryptoError("the key is no key in PEM, or has a passphrase") from None


def _of_pair(loaded: object) -> Key:
    if isinstance(loaded, Private):
        return Key(private=loaded, public=loaded.public_key())
    if isinstance(loaded, Public):
        return Key(public=loaded)
    raise CryptoError("the key is of a kind that is not supported: neither RSA, EC, Ed25519 nor symmetric")


def key_from_jwk(told: object) -> Key:
    """Read a JSON Web Key; raises ``CryptoError``."""
    if not isinstance(told, dict):
        raise CryptoError("a JSON Web Key must be an object")
    try:
        key = _from_members(told)
    except CryptoError:
        raise
    except (KeyError, ValueError, TypeError, UnsupportedAlgorithm):
        raise CryptoError("the JSON Web Key cannot be read: a member is missing or wrong") from None
    listed = told.get("key_ops")
    operations = listed if isinstance(listed, list) and listed else _USES.get(str(told.get("use")), ())
    kid, algorithm = (str(told.get(name) or "") for name in ("kid", "alg"))
    return replace(key, kid=kid, operations=frozenset(map(str, operations)), algorithm=algorithm)


def _from_members(told: Mapping[str, Any]) -> Key:
    def data(name: str) -> bytes:
        text = told[name]
        if not isinstance(text, str):
            raise TypeError(name)
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)

    def number(name: str) -> int:
        return int.from_bytes(data(name), "big")

    match told.get("kty"):
        case "oct":
            secret = data("k")
            if not secret:
                raise ValueError("k")
            return Key(secret=secret)
        case "RSA":
            return _rsa({name: number(name) for name in _RSA_MEMBERS if name in told})
        case "EC":
            point = ec.EllipticCurvePublicNumbers(number("x"), number("y"), _CURVES[told["crv"]])
            if "d" not in told:
                return _of_pair(point.public_key())
            return _of_pair(ec.EllipticCurvePrivateNumbers(number("d"), point).private_key())
        case "OKP" if told.get("crv") == "Ed25519":
            if "d" not in told:
                return _of_pair(ed25519.Ed25519PublicKey.from_public_bytes(data("x")))
            return _of_pair(ed25519.Ed25519PrivateKey.from_private_bytes(data("d")))
    raise CryptoError("the JSON Web Key is of a kind that is not supported: neither RSA, EC, Ed25519 nor symmetric")


def _rsa(told: Mapping[str, int]) -> Key:
    """Make an RSA key of its numbers. Applications give such keys too, so what takes long is bounded.

    That its primes are prime is not checked, here nor of PEM: it takes 0.3 seconds for 4096 bits, in which nothing else
    is done, and keys are read for each operation.
    """
    n, e = told["n"], told["e"]
    size = n.bit_length()
    if size > MAX_RSA_BITS or e.bit_length() > MAX_EXPONENT_BITS or max(told.values()) > n:
        raise CryptoError(f"the JSON Web Key is larger than those of {MAX_RSA_BITS} bits, or its numbers do not fit")
    public = rsa.RSAPublicNumbers(e, n)
    if "d" not in told:
        return _of_pair(public.public_key())
    d = told["d"]
    if "p" in told:
        p, q, dp, dq, qi = (told[name] for name in ("p", "q", "dp", "dq", "qi"))
    elif size > MAX_FACTORED_BITS:
        raise CryptoError(f"the JSON Web Key has more than {MAX_FACTORED_BITS} bits, and not its primes")
    else:
        p, q = _primes(n, e * d - 1)
        dp, dq, qi = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    private = rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, public)
    return _of_pair(private.private_key(unsafe_skip_rsa_key_validation=True))


def _primes(n: int, product: int) -> tuple[int, int]:
    """Find the primes of a modulus. Each attempt is as good as a coin; those of the library are 500.

    Source: NIST SP 800-56B, appendix C.
    """
    twos = (product & -product).bit_length() - 1
    if n < 4 or product < 1 or not twos:
        raise ValueError
    for _ in range(FACTORING_ATTEMPTS):
        root = pow(2 + secrets.randbelow(n - 3), product >> twos, n)
        for _ in range(twos):
            square = root * root % n
            if square == 1 and root not in (1, n - 1):
                p = gcd(root - 1, n)
                return p, n // p
            root = square
        if root != 1:
            break
    raise ValueError


def as_pem(key: Public) -> str:
    """Write a public key as PEM."""
    return key.public_bytes(_ENCODING.PEM, _SPKI).decode()


def public_jwk(key: Key) -> str:
    """Write the public part of a key as a JSON Web Key."""
    match key.public:
        case rsa.RSAPublicKey() as found:
            numbers = found.public_numbers()
            told = {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
        case ec.EllipticCurvePublicKey() as found:
            point, size = found.public_numbers(), (found.key_size + 7) // 8
            curve = next((name for name, each in _CURVES.items() if each.name == found.curve.name), found.curve.name)
            told = {"kty": "EC", "crv": curve, "x": _number(point.x, size), "y": _number(point.y, size)}
        case ed25519.Ed25519PublicKey() as found:
            told = {"kty": "OKP", "crv": "Ed25519", "x": _text(found.public_bytes_raw())}
        case _:
            raise CryptoError("key not found")
    return orjson.dumps({**told, **({"kid": key.kid} if key.kid else {})}).decode()


def _number(value: int, size: int = 0) -> str:
    return _text(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def serialized(data: bytes) -> bytes:
    """Give the bytes of a key that is to be wrapped: of PEM and JSON the DER, of any other what was given.

    Raises:
        CryptoError: It looks like PEM or JSON, and is no key.
    """
    if not data.startswith((b"{", b"-----")) or len(data) in PLAIN_LENGTHS:
        if not data:
            raise CryptoError("the key is empty")
        return data
    key = parse_key(data)
    if key.secret is not None:
        return key.secret
    if key.private is not None:
        return key.private.private_bytes(_DER, _PKCS8, serialization.NoEncryption())
    assert key.public is not None
    return key.public.public_bytes(_DER, _SPKI)
