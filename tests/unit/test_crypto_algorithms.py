"""Single operations with keys: published examples, every algorithm both ways, and what does not go together."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives import serialization

from bindings.crypto._algorithms import decrypt, encrypt, sign, verify
from bindings.crypto._keys import Key, as_pem, key_from_jwk, parse_key, public_jwk, serialized
from mesh.errors import CryptoError
from tests.support.crypto_keys import JWK, RSA_PEM, SYMMETRIC, write_keys

RSA = parse_key(RSA_PEM)


def x(text: str) -> bytes:
    return bytes.fromhex(text)


KERCKHOFFS = (
    b"A cipher system must not be required to be secret, and it must be able "
    b"to fall into the hands of the enemy without inconvenience"
)
SUNSCREEN = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
SUNSCREEN += b"sunscreen would be it."
SECOND_PRINCIPLE = b"The second principle of Auguste Kerckhoffs"


@pytest.mark.parametrize(
    ("algorithm", "key", "plaintext", "nonce", "associated", "ciphertext", "tag"),
    [
        # RFC 3394 sections 4.1 and 4.6.
        ("A128KW", SYMMETRIC[:16], x("00112233445566778899AABBCCDDEEFF"), b"", b"",
         x("1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"), b""),
        ("A256KW", SYMMETRIC, x("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F"), b"", b"",
         x("28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"), b""),
        # NIST SP 800-38A, F.2.1 and F.2.5: the first block.
        ("A128CBC-NOPAD", x("2b7e151628aed2a6abf7158809cf4f3c"), x("6bc1bee22e409f96e93d7e117393172a"),
         SYMMETRIC[:16], b"", x("7649abac8119b246cee98e9b12e9197d"), b""),
        ("A256CBC-NOPAD", x("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"),
         x("6bc1bee22e409f96e93d7e117393172a"), SYMMETRIC[:16], b"", x("f58c4c04d6e5f1ba779eabfb5f7bfbd6"), b""),
        # RFC 7518 appendix B.1, without what is behind the second principle: its tag is of all of it.
        ("A128CBC-HS256", SYMMETRIC, KERCKHOFFS, x("1af38c2dc2b96ffdd86694092341bc04"), SECOND_PRINCIPLE,
         x("c80edfa32ddf39d5ef00c0b468834279a2e46a1b8049f792f76bfe54b903a9c9a94ac9b47ad2655c5f10f9aef71427e2fc6f9b3f399a"
           "221489f16362c703233609d45ac69864e3321cf82935ac4096c86e133314c54019e8ca7980dfa4b9cf1b384c486f3a54c51078158ee5"
           "d79de59fbd34d848b3d69550a67646344427ade54b8851ffb598f7f80074b9473c82e2db"),
         x("652c3fa36b0a7c5b3219fab3a30bc1c4")),
        # RFC 8439 section 2.8.2, and draft-irtf-cfrg-xchacha-03 appendix A.3.1.
        ("C20P", bytes(range(0x80, 0xA0)), SUNSCREEN, x("070000004041424344454647"), x("50515253c0c1c2c3c4c5c6c7"),
         x("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e06"
           "0b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d265"
           "86cec64b6116"),
         x("1ae10b594f09e26a7e902ecbd0600691")),
        ("XC20P", bytes(range(0x80, 0xA0)), SUNSCREEN, bytes(range(0x40, 0x58)), x("50515253c0c1c2c3c4c5c6c7"),
         x("bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54"
           "c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f6"
           "15c68b13b52e"),
         x("c0875924c1c7987947deafd8780acf49")),
    ],
)  # fmt: skip
def test_published_examples(
    algorithm: str, key: bytes, plaintext: bytes, nonce: bytes, associated: bytes, ciphertext: bytes, tag: bytes
) -> None:
    made = Key(secret=key)
    assert encrypt(made, algorithm, plaintext, nonce, associated) == (ciphertext, tag)
    assert decrypt(made, algorithm, ciphertext, nonce, tag, associated) == plaintext


SYMMETRIC_ALGORITHMS = [
    *((f"A{bits}{mode}", bits // 8, size) for bits in (128, 192, 256)
      for mode, size in (("CBC", 16), ("CBC-NOPAD", 16), ("GCM", 12), ("GCMKW", 12), ("KW", 0))),
    ("A128CBC-HS256", 32, 16), ("A192CBC-HS384", 48, 16), ("A256CBC-HS512", 64, 16),
    ("C20P", 32, 12), ("C20PKW", 32, 12), ("XC20P", 32, 24), ("XC20PKW", 32, 24),
]  # fmt: skip
RSA_ALGORITHMS = ["RSA1_5", "RSA-OAEP", "RSA-OAEP-256", "RSA-OAEP-384", "RSA-OAEP-512"]


@pytest.mark.parametrize(("algorithm", "length", "nonce"), SYMMETRIC_ALGORITHMS)
def test_symmetric(algorithm: str, length: int, nonce: int) -> None:
    """There and back; with another key, nonce or tag it is refused where the algorithm can tell."""
    key, other = Key(secret=bytes(length)), Key(secret=b"\1" * length)
    ciphertext, tag = encrypt(key, algorithm, SYMMETRIC, bytes(nonce), b"about")
    assert decrypt(key, algorithm, ciphertext, bytes(nonce), tag, b"about") == SYMMETRIC
    with pytest.raises(CryptoError, match=f"key type mismatch: {algorithm} needs a symmetric key of {length * 8} bits"):
        encrypt(Key(secret=bytes(length + 1)), algorithm, SYMMETRIC, bytes(nonce), b"")
    if nonce:
        with pytest.raises(CryptoError, match=f"invalid nonce: it must have {nonce} bytes, not {nonce - 1}"):
            decrypt(key, algorithm, ciphertext, bytes(nonce - 1), tag, b"")
    if tag:
        for changed in (bytes(16), tag[:-1], b""):
            with pytest.raises(CryptoError):
                decrypt(key, algorithm, ciphertext, bytes(nonce), changed, b"about")
        with pytest.raises(CryptoError, match="the data do not fit the key"):
            decrypt(key, algorithm, ciphertext, bytes(nonce), tag, b"other")
    if tag or algorithm.endswith("KW"):
        with pytest.raises(CryptoError, match="the data do not fit the key"):
            decrypt(other, algorithm, ciphertext, bytes(nonce), tag, b"about")


@pytest.mark.parametrize("algorithm", ["A128CBC", "A128CBC-NOPAD", "A128KW"])
def test_lengths(algorithm: str) -> None:
    key = Key(secret=bytes(16))
    nonce = b"" if algorithm == "A128KW" else bytes(16)
    with pytest.raises(CryptoError, match="the data do not fit the key"):
        decrypt(key, algorithm, b"short", nonce, b"", b"")
    if algorithm != "A128CBC":
        with pytest.raises(CryptoError, match="invalid plaintext length"):
            encrypt(key, algorithm, b"short", nonce, b"")


@pytest.mark.parametrize("algorithm", RSA_ALGORITHMS)
def test_rsa(algorithm: str) -> None:
    """The public part encrypts, the private one decrypts."""
    public = Key(public=RSA.public)
    ciphertext, tag = encrypt(public, algorithm, SYMMETRIC, b"", b"label")
    assert tag == b""
    assert decrypt(RSA, algorithm, ciphertext, b"", b"", b"label") == SYMMETRIC
    with pytest.raises(CryptoError, match="with its private part is needed"):
        decrypt(public, algorithm, ciphertext, b"", b"", b"label")
    with pytest.raises(CryptoError, match="invalid plaintext length"):
        encrypt(public, algorithm, bytes(300), b"", b"")
    if algorithm != "RSA1_5":
        with pytest.raises(CryptoError, match="the data do not fit the key"):
            decrypt(RSA, algorithm, ciphertext, b"", b"", b"other")


@pytest.mark.parametrize(
    "algorithm", ["", "A128", "A512GCM", "A128CBC-HS512", "A256CBC-HS256", "rsa-oaep", "RSA-OAEP-1", "ECDH-ES", "none"]
)
def test_unknown_algorithms(algorithm: str) -> None:
    for key in (RSA, Key(secret=SYMMETRIC)):
        with pytest.raises(CryptoError, match="unsupported algorithm"):
            encrypt(key, algorithm, b"", b"", b"")
        with pytest.raises(CryptoError, match="unsupported algorithm"):
            decrypt(key, algorithm, b"", b"", b"", b"")
    for other in (algorithm, "HS256", "A128GCM"):
        with pytest.raises(CryptoError, match="unsupported algorithm"):
            sign(RSA, other, bytes(32))
        with pytest.raises(CryptoError, match="unsupported algorithm"):
            verify(RSA, other, bytes(32), b"")


SIGNING = [
    *((f"{family}{bits}", "rsakey.pem", bits) for family in ("RS", "PS") for bits in (256, 384, 512)),
    ("ES256", "p256.pem", 256),
    ("ES384", "p384.pem", 384),
    ("ES512", "p521.pem", 512),
    ("EdDSA", "ed25519.pem", 256),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize(("algorithm", "name", "bits"), SIGNING)
def test_signatures(folder: Path, algorithm: str, name: str, bits: int) -> None:
    key = parse_key((folder / name).read_bytes())
    digest = hashlib.new(f"sha{bits}", b"message").digest()
    signature = sign(key, algorithm, digest)
    public = Key(public=key.public)
    assert verify(public, algorithm, digest, signature)
    assert not verify(public, algorithm, digest[::-1], signature)
    assert not verify(public, algorithm, digest, signature[:-1] + bytes([signature[-1] ^ 1]))
    assert not verify(public, algorithm, digest, b"")
    for without in (public, Key(secret=SYMMETRIC)):
        with pytest.raises(CryptoError, match="key type mismatch"):
            sign(without, algorithm, digest)
    if algorithm != "EdDSA":
        with pytest.raises(CryptoError, match=f"invalid digest: {algorithm} signs one of {bits // 8} bytes, not of 5"):
            sign(key, algorithm, b"short")
    for other, elsewhere, _ in SIGNING:
        if elsewhere != name and (other.startswith("ES") or other == "EdDSA"):
            size = 64 if other == "ES512" else 48 if other == "ES384" else 32
            with pytest.raises(CryptoError, match="key type mismatch"):
                verify(key, other, bytes(size), signature)


def without(key: Key, *names: str) -> dict[str, str]:
    """Write the RSA key as a JSON Web Key, without some members."""
    numbers = key.private.private_numbers()  # type: ignore[union-attr]
    public = numbers.public_numbers
    members = {
        "n": public.n, "e": public.e, "d": numbers.d, "p": numbers.p, "q": numbers.q,
        "dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp,
    }  # fmt: skip
    told = {
        name: base64.urlsafe_b64encode(value.to_bytes(256, "big")).decode()
        for name, value in members.items()
        if name not in names
    }
    return {"kty": "RSA", **told}


def test_keys_of_every_form(folder: Path) -> None:
    """Names tell the form; without, it is as it looks."""
    assert parse_key(JWK).secret == parse_key(SYMMETRIC).secret == SYMMETRIC
    for name in ("symkey", "symkey64"):
        assert parse_key((folder / name).read_bytes()).secret == SYMMETRIC
    braces = b"{" + bytes(31)
    assert parse_key(braces).secret == braces
    whole, short = key_from_jwk(without(RSA)), key_from_jwk(without(RSA, "p", "q", "dp", "dq", "qi"))
    ciphertext, _ = encrypt(RSA, "RSA-OAEP", b"m", b"", b"")
    assert decrypt(whole, "RSA-OAEP", ciphertext, b"", b"", b"") == b"m"
    assert decrypt(short, "RSA-OAEP", ciphertext, b"", b"", b"") == b"m"
    assert key_from_jwk(without(RSA, "d")).private is None
    for name in ("p256", "p384", "p521", "ed25519"):
        key = parse_key((folder / f"{name}.pem").read_bytes())
        told = json.loads(public_jwk(key))
        again = key_from_jwk({**told, "kid": "k", "use": "sig"})
        assert as_pem(again.public) == as_pem(key.public)  # type: ignore[arg-type]
        assert (again.kid, again.operations) == ("k", {"sign", "verify"})
        assert "d" not in told
    assert json.loads(public_jwk(RSA)).keys() == {"kty", "n", "e"}


PRIME = base64.urlsafe_b64encode((2**2203 - 1).to_bytes(276, "big")).decode()
EXPONENT = base64.urlsafe_b64encode(pow(65537, -1, 2**2203 - 2).to_bytes(276, "big")).decode()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", ""),
        (b"{", "json"),
        (b"[]", "json"),
        (b'{"kty":"oct"}', "json"),
        (b'{"kty":"oct","k":""}', "json"),
        (b'{"kty":"oct","k":5}', "json"),
        (b'{"kty":"oct","k":"*"}', "json"),
        (b'{"kty":"RSA","n":"AQAB"}', "json"),
        (b'{"kty":"RSA","n":"AQAB","e":"AQAB","d":"AQAB"}', "json"),
        (b'{"kty":"EC","crv":"P-1","x":"AA","y":"AA"}', "json"),
        (b'{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}', "json"),
        (b'{"kty":"OKP","crv":"X25519","x":"AA"}', "json"),
        (b'{"kty":"OKP","crv":"Ed25519","x":"AA"}', "json"),
        (b'{"kty":"none"}', "json"),
        (b"{}", "json"),
        *(
            pytest.param(json.dumps({"kty": "RSA", "n": n, "e": e, "d": d}).encode(), "json", id=f"takes long: {name}")
            for name, n, e, d in (
                ("an exponent beyond the modulus", PRIME, "AQAB", "_" * 400_000),
                ("a modulus without its primes", "_" * 2000, "AQAB", "_" * 1999),
                ("an immense modulus", "_" * 400_000, "AQAB", "_" * 300_000),
                ("an immense public exponent", PRIME, "_" * 200, "_" * 200),
                ("a prime as modulus", PRIME, "AQAB", EXPONENT),
                ("exponents that do not fit", PRIME, "AQAB", "Aw"),
            )
        ),
        (b"no pem", "pem"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", ""),
        (b"-----BEGIN ", ""),
    ],
)
def test_what_is_no_key(data: bytes, kind: str) -> None:
    """What is wrong with it is told without a part of it."""
    with pytest.raises(CryptoError) as raised:
        parse_key(data, kind)
    assert "AQAB" not in str(raised.value)


def test_a_key_that_is_too_short() -> None:
    """It verifies nothing."""
    key = key_from_jwk({"kty": "RSA", "n": "_" * 85 + "8", "e": "AQAB"})  # 512 bits
    with pytest.raises(CryptoError, match="too short"):
        verify(key, "PS512", bytes(64), bytes(64))


def test_what_is_wrapped_of_a_key() -> None:
    """Of a symmetric one its bytes, of a pair the DER."""
    assert serialized(SYMMETRIC) == serialized(JWK) == SYMMETRIC
    assert serialized(b"YWJj") == b"YWJj"
    found = serialization.load_der_private_key(serialized(RSA_PEM), None)
    assert found.public_key() == RSA.public
    assert serialization.load_der_public_key(serialized(public_jwk(RSA).encode())) == RSA.public
    for bad in (b"", b"{no key}", b"-----"):
        with pytest.raises(CryptoError):
            serialized(bad)


def test_what_a_key_may_be_used_for() -> None:
    told = {"kty": "oct", "k": "AAAA"}
    for members, operations in (
        ({}, set()),
        ({"use": "sig"}, {"sign", "verify"}),
        ({"use": "enc"}, {"encrypt", "decrypt", "wrapKey", "unwrapKey"}),
        ({"use": "other"}, set()),
        ({"use": "sig", "key_ops": ["wrapKey"]}, {"wrapKey"}),
        ({"key_ops": []}, set()),
    ):
        assert parse_key(orjson.dumps({**told, **members}), "json").operations == operations
    assert parse_key(orjson.dumps({**told, "alg": "A128KW"}), "json").algorithm == "A128KW"
