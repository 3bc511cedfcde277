"""The keys of a Key Vault, written by hand from its REST reference: the real one cannot be had here."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.padding import PKCS7

from tests.support.hand_servers import AzureVault

__all__ = ["AzureKeys"]

VERSION = "0" * 31 + "1"
_SHA = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


@dataclass
class _Held:
    """A key; what it may be used for, and when."""

    key: Any
    kind: str
    operations: tuple[str, ...] = ("encrypt", "decrypt", "wrapKey", "unwrapKey", "sign", "verify")
    attributes: dict[str, Any] = field(default_factory=lambda: {"enabled": True})


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class AzureKeys(AzureVault):
    """A vault with an RSA key, one of a curve, and a symmetric one, in one version each.

    Attributes:
        keys: By their names.
        asked: The operations that it did, and the keys that it was asked for.
    """

    def __init__(self, directory: Path) -> None:
        """Make the keys."""
        super().__init__(directory)
        pair = rsa.generate_private_key(65537, 2048)
        self.keys = {
            "rsa": _Held(pair, "RSA-HSM"),
            "signer": _Held(pair, "RSA", ("sign", "verify")),
            "old": _Held(pair, "RSA", attributes={"enabled": True, "exp": int(time.time()) - 60}),
            "off": _Held(pair, "RSA", attributes={"enabled": False}),
            "curve": _Held(ec.generate_private_key(ec.SECP256R1()), "EC"),
            "aes": _Held(bytes(range(32)), "oct-HSM"),
        }
        self.asked: list[str] = []

    async def _found(self, request: web.BaseRequest, own: str) -> web.StreamResponse:
        assert request.query["api-version"] == "7.4"
        name, _, rest = request.path.removeprefix("/keys").strip("/").partition("/")
        version, _, operation = rest.partition("/")
        if not name:
            return web.json_response({"value": []})
        held = self.keys.get(name)
        if held is None or version not in ("", VERSION):
            return self._error(404, "KeyNotFound", f"A key with (name/id) {name} was not found in this key vault.")
        self.asked.append(operation or "get")
        kid = f"{own}/keys/{name}/{VERSION}"
        if request.method == "GET":
            jwk = {"kid": kid, "kty": held.kind, "key_ops": held.operations, **self._public(held.key)}
            return web.json_response({"key": jwk, "attributes": held.attributes})
        body = await request.json()
        try:
            return web.json_response({"kid": kid, **self._do(operation, held.key, body)})
        except (ValueError, InvalidTag, InvalidUnwrap, KeyError):
            return self._error(400, "BadParameter", "The parameter is incorrect.")

    def _public(self, key: Any) -> Mapping[str, str]:
        if isinstance(key, rsa.RSAPrivateKey):
            numbers = key.public_key().public_numbers()
            return {"n": _text(numbers.n.to_bytes(256, "big")), "e": "AQAB"}
        if isinstance(key, ec.EllipticCurvePrivateKey):
            point = key.public_key().public_numbers()
            return {"crv": "P-256", "x": _text(point.x.to_bytes(32, "big")), "y": _text(point.y.to_bytes(32, "big"))}
        return {}

    def _do(self, operation: str, key: Any, body: Mapping[str, str]) -> Mapping[str, object]:
        algorithm, data = body["alg"], _bytes(body["value"])
        match operation:
            case "sign":
                return {"value": _text(self._sign(key, algorithm, data))}
            case "verify":
                return {"value": self._verify(key, algorithm, _bytes(body["digest"]), data)}
            case "encrypt" | "wrapkey" | "decrypt" | "unwrapkey":
                iv, aad, tag = (_bytes(body.get(each, "")) for each in ("iv", "aad", "tag"))
                sealing = operation in ("encrypt", "wrapkey")
                if isinstance(key, bytes):
                    value, tag = self._symmetric(algorithm, key, data, iv, aad, tag, sealing=sealing)
                    return {"value": _text(value), **({"tag": _text(tag)} if tag else {})}
                if aad or sealing:  # Sealing by an RSA key is done by whoever has its public part.
                    raise ValueError
                return {"value": _text(key.decrypt(data, self._padding(algorithm)))}
        raise KeyError(operation)

    def _padding(self, algorithm: str) -> padding.AsymmetricPadding:
        if algorithm == "RSA1_5":
            return padding.PKCS1v15()
        made = {"RSA-OAEP": hashes.SHA1(), "RSA-OAEP-256": hashes.SHA256()}[algorithm]
        return padding.OAEP(padding.MGF1(made), made, None)

    def _symmetric(
        self, algorithm: str, key: bytes, data: bytes, iv: bytes, aad: bytes, tag: bytes, *, sealing: bool
    ) -> tuple[bytes, bytes]:
        match algorithm:
            case "A256KW":
                return aes_key_wrap(key, data) if sealing else aes_key_unwrap(key, data), b""
            case "A256GCM" if sealing:
                sealed = AESGCM(key).encrypt(iv, data, aad)
                return sealed[:-16], sealed[-16:]
            case "A256GCM":
                return AESGCM(key).decrypt(iv, data + tag, aad), b""
            case "A256CBC" | "A256CBCPAD":
                cipher, pad = Cipher(algorithms.AES(key), modes.CBC(iv)), PKCS7(128)
                if sealing:
                    padder, encryptor = pad.padder(), cipher.encryptor()
                    data = padder.update(data) + padder.finalize() if algorithm.endswith("PAD") else data
                    return encryptor.update(data) + encryptor.finalize(), b""
                unpadder, decryptor = pad.unpadder(), cipher.decryptor()
                data = decryptor.update(data) + decryptor.finalize()
                return unpadder.update(data) + unpadder.finalize() if algorithm.endswith("PAD") else data, b""
        raise KeyError(algorithm)

    def _sign(self, key: Any, algorithm: str, digest: bytes) -> bytes:
        made = Prehashed(_SHA[algorithm[2:]])
        if algorithm.startswith("ES"):
            r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(made)))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return bytes(key.sign(digest, self._scheme(algorithm), made))

    def _verify(self, key: Any, algorithm: str, digest: bytes, signature: bytes) -> bool:
        numbers = (int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        try:
            key.public_key().verify(encode_dss_signature(*numbers), digest, ec.ECDSA(Prehashed(_SHA[algorithm[2:]])))
        except InvalidSignature:
            return False
        return True

    def _scheme(self, algorithm: str) -> padding.AsymmetricPadding:
        if algorithm.startswith("RS"):
            return padding.PKCS1v15()
        return padding.PSS(padding.MGF1(_SHA[algorithm[2:]]), padding.PSS.DIGEST_LENGTH)
