"""Cryptography over HTTP: documents as streams, single operations, what is refused, and keys that are elsewhere.

Source: reference/dapr-surface.md 1.10; reference/observed-layouts.md 4.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization

from mesh.blocks.crypto_document import SEGMENT_BYTES
from tests.http.harness import ANY, Backbone, Case, Node, cases, check, component, error, gateway, matches
from tests.support.crypto_keys import HELLO, JWK, VECTORS, write_keys
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALPHA = "/v1.0-alpha1"
WRAP = {"dapr-key-name": "symkey.json", "dapr-key-wrap-algorithm": "A256KW"}
SET = {
    "keys": [
        {**orjson.loads(JWK), "kid": "one"},
        {**orjson.loads(JWK), "kid": "signs", "use": "sig"},
        {**orjson.loads(JWK), "kid": "wraps", "key_ops": ["wrapKey", "unwrapKey"], "alg": "A256KW"},
        {"kty": "oct", "kid": "bad"},
        orjson.loads(JWK),
        "none",
    ]
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    home = tmp_path_factory.mktemp("crypto")
    keys = write_keys(tmp_path_factory.mktemp("keys"))
    (keys / "empty").touch()
    (keys / "folder").mkdir()
    file = home / "keys.json"
    file.write_bytes(orjson.dumps(SET))
    resources = [
        component("vault", "crypto.dapr.localstorage", path=str(keys)),
        component("other", "crypto.dapr.localstorage", path=str(keys), scopes=["someone"]),
        component("set", "crypto.dapr.jwks", jwks=orjson.dumps(SET).decode()),
        component("encoded", "crypto.dapr.jwks", jwks=base64.b64encode(orjson.dumps(SET)).decode()),
        component("file", "crypto.dapr.jwks", jwks=str(file), minRefreshInterval="0s"),
    ]
    async with gateway(module_backbone, home, resources="".join(resources)) as node:
        yield node


def encrypt(name: str = "vault", **headers: str) -> tuple[Any, ...]:
    told = {**WRAP, **{f"dapr-{header.replace('_', '-')}": value for header, value in headers.items()}}
    return "PUT", f"{ALPHA}/crypto/{name}/encrypt", {name: value for name, value in told.items() if value}, HELLO


def decrypt(body: bytes, name: str = "vault", **headers: str) -> tuple[Any, ...]:
    return "PUT", f"{ALPHA}/crypto/{name}/decrypt", headers, body


def failed(text: str) -> dict[str, object]:
    return error("ERR_CRYPTO", f"failed to perform operation: {text}")


MISSING = "invalid request: missing header 'dapr-key-"
NOT_FOUND = error("ERR_CRYPTO_PROVIDER_NOT_FOUND", "crypto provider nope not found")
CHANGED = VECTORS[1][:-1] + bytes([VECTORS[1][-1] ^ 1])
NO_FILE = "failed to wrap the file key: failed to retrieve the key: failed to load key "
NO_PATH = "failed to wrap the file key: failed to retrieve the key: invalid key path: it is the name of a file within "
NO_PATH += "the folder, without '..'"

OUTSIDE = ("../keys.json", "/etc/hostname", "a/../../keys.json", "..")


@cases(
    *(Case(f"document {number}", decrypt(vector), 200, HELLO, {"Content-Type": "application/octet-stream"})
      for number, vector in enumerate(VECTORS, 1)),
    Case("a key by the header", decrypt(VECTORS[1], **{"dapr-key-name": "symkey"}), 200, HELLO),
    Case("another key by the header", decrypt(VECTORS[1], **{"dapr-key-name": "p256.pem"}), 500,
         failed("failed to validate the document's signature")),
    Case("the last byte changed", decrypt(CHANGED), 500,
         failed("error processing segment 0: failed to decrypt segment")),
    Case("no document", decrypt(b"not a document"), 500, failed("invalid header: scheme name not found")),
    Case("an empty body", decrypt(b""), 500, failed("invalid header: scheme name not found")),
    Case("no key name", encrypt(key_name=""), 400, error("ERR_BAD_REQUEST", MISSING + "name'")),
    Case("no algorithm", encrypt(key_wrap_algorithm=""), 400, error("ERR_BAD_REQUEST", MISSING + "wrap-algorithm'")),
    Case("no key name, unknown component", encrypt("nope", key_name=""), 400, error("ERR_BAD_REQUEST")),
    Case("unknown component", encrypt("nope"), 400, NOT_FOUND),
    Case("unknown component, decrypt", decrypt(VECTORS[0], "nope"), 400, NOT_FOUND),
    Case("another's component", encrypt("other"), 400,
         error("ERR_CRYPTO_PROVIDER_NOT_FOUND", "crypto provider other not found")),
    Case("unknown algorithm", encrypt(key_wrap_algorithm="BOGUS"), 500,
         failed("option Algorithm is not valid: algorithm BOGUS is not supported")),
    Case("unknown cipher", encrypt(data_encryption_cipher="rot13"), 500,
         failed("option Cipher is not valid: cipher rot13 is not supported")),
    Case("a symmetric key for RSA", encrypt(key_wrap_algorithm="rsa"), 500,
         failed("failed to wrap the file key: key type mismatch: an RSA key is needed")),
    Case("no such key", encrypt(key_name="nope"), 500, failed(NO_FILE + "'nope': No such file or directory")),
    Case("a folder", encrypt(key_name="folder"), 500, failed(NO_FILE + "'folder': Is a directory")),
    Case("an empty file", encrypt(key_name="empty"), 500,
         failed("failed to wrap the file key: failed to retrieve the key: the key is empty")),
    *(Case(f"a key outside: {name}", encrypt(key_name=name), 500, failed(NO_PATH)) for name in OUTSIDE),
    Case("POST", ("POST", f"{ALPHA}/crypto/vault/encrypt", WRAP, HELLO), 404, error("ERR_DIRECT_INVOKE")),
    Case("a set: no such key", encrypt("set", key_name="nope"), 500,
         failed("failed to wrap the file key: failed to retrieve the key: key not found")),
    Case("a set: a key for something else", encrypt("set", key_name="signs"), 500,
         failed("failed to wrap the file key: key cannot perform the 'wrapKey' operation")),
    Case("a set: a key for another algorithm", encrypt("set", key_name="wraps", key_wrap_algorithm="A256CBC-NOPAD"),
         500, failed("failed to wrap the file key: key cannot be used with algorithm 'A256CBC-NOPAD'")),
    Case("a set: a key that is none", encrypt("set", key_name="bad"), 500, error("ERR_CRYPTO")),
)  # fmt: skip
async def test_documents(node: Node, case: Case) -> None:
    await check(node, case)


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({}, "symkey.json"),
        ({"key_wrap_algorithm": "aes", "data_encryption_cipher": "ChaCha20-Poly1305"}, "symkey.json"),
        ({"key_name": "rsapub.pem", "key_wrap_algorithm": "RSA", "decryption_key_name": "rsakey.pem"}, "rsakey.pem"),
        ({"key_name": "k128", "key_wrap_algorithm": "a128cbc-nopad"}, "k128"),
        ({"omit_decryption_key_name": "true"}, None),
        ({"omit_decryption_key_name": "no", "decryption_key_name": "symkey64"}, "symkey64"),
    ],
)
async def test_there_and_back(node: Node, headers: dict[str, str], name: str | None) -> None:
    """The document tells the name of its key, or else whoever decrypts does."""
    made = await node.request(*encrypt(**headers))
    assert (made.status, made.headers["content-type"]) == (200, "application/octet-stream")
    assert orjson.loads(made.body.split(b"\n")[1]).get("k") == name
    back = await node.request(*decrypt(made.body))
    if name is None:
        reason = "document's manifest does not contain a key name, and no key name was provided"
        assert (back.status, back.json) == (500, failed(reason))
        back = await node.request(*decrypt(made.body, **{"dapr-key-name": "symkey.json"}))
    assert (back.status, back.body) == (200, HELLO)


@pytest.mark.parametrize("name", ["set", "encoded", "file"])
async def test_sets(node: Node, name: str) -> None:
    for key in ("one", "wraps"):
        made = await node.request(*encrypt(name, key_name=key))
        assert (await node.request(*decrypt(made.body, name))).body == HELLO


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def subtle(operation: str, name: str = "vault", /, **members: object) -> tuple[Any, ...]:
    return "POST", f"{ALPHA}/subtlecrypto/{name}/{operation}", None, members


WRAPPED = "KMn0BMS4EPTLzLNc+4f4Jj9XhuLYDtMmy8fw5xqZ9Dv7mIubegLdIQ=="
OF = {"algorithm": "A256KW", "keyName": "symkey.json"}
PLAIN = b64(bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F"))
GCM = {"algorithm": "A256GCM", "keyName": "symkey.json", "nonce": b64(bytes(12)), "associatedData": b64(b"about")}
PUBLIC = matches(lambda text: serialization.load_pem_public_key(text.encode()))
NO_KEY = "failed to retrieve key symkey.json: key not found"


@cases(
    Case("wrap a key", subtle("wrapkey", plaintextKey=PLAIN, **OF), 200, {"wrappedKey": WRAPPED, "tag": ""}),
    Case("other spellings", subtle("wrapkey", plaintext_key=PLAIN.replace("/", "_").rstrip("="), key_name="symkey.json",
         algorithm="A256KW", unknown=1), 200, {"wrappedKey": WRAPPED, "tag": ""}),
    Case("unwrap a key", subtle("unwrapkey", wrappedKey=WRAPPED, **OF), 200, {"plaintextKey": PLAIN}),
    Case("unwrap what is no key", subtle("unwrapkey", wrappedKey=PLAIN, **OF), 500,
         failed("the data do not fit the key, or were changed")),
    Case("public key", subtle("getkey", name="rsakey.pem"), 200, {"name": "rsakey.pem", "publicKey": PUBLIC}),
    Case("public key as PEM", subtle("getkey", name="p256.pem", format="PEM"), 200,
         {"name": "p256.pem", "publicKey": PUBLIC}),
    Case("public key as JSON", subtle("getkey", name="ed25519.pem", format="JSON"), 200,
         {"name": "ed25519.pem", "publicKey": matches(lambda text: orjson.loads(text)["x"])}),
    Case("public key by number", subtle("getkey", name="rsapub.pem", format=1), 200,
         {"name": "rsapub.pem", "publicKey": matches(lambda text: orjson.loads(text)["n"])}),
    Case("another format", subtle("getkey", name="rsakey.pem", format="DER"), 400,
         error("ERR_BAD_REQUEST", "invalid request: invalid key format")),
    Case("a symmetric key", subtle("getkey", name="symkey.json"), 500, error("ERR_CRYPTO_KEY", NO_KEY)),
    Case("no such key", subtle("getkey", name="nope"), 500,
         error("ERR_CRYPTO_KEY", "failed to retrieve key nope: failed to load key 'nope': No such file or directory")),
    Case("no body", ("POST", f"{ALPHA}/subtlecrypto/vault/getkey"), 500, error("ERR_CRYPTO_KEY")),
    Case("unknown component", subtle("sign", "nope"), 400, NOT_FOUND),
    Case("unknown component, and no key name", subtle("encrypt", "nope", plaintext=5), 400, NOT_FOUND),
    Case("no JSON", ("POST", f"{ALPHA}/subtlecrypto/vault/sign", None, b"{"), 400, error("ERR_MALFORMED_REQUEST")),
    Case("no object", ("POST", f"{ALPHA}/subtlecrypto/vault/sign", None, b"[1]"), 400, error("ERR_MALFORMED_REQUEST")),
    Case("no base64", subtle("encrypt", plaintext="*", **GCM), 400,
         error("ERR_MALFORMED_REQUEST", "failed deserializing HTTP body: plaintext must be base64")),
    Case("no text", subtle("encrypt", plaintext="AAAA", algorithm=5), 400,
         error("ERR_MALFORMED_REQUEST", "failed deserializing HTTP body: algorithm must be a string")),
    Case("unknown algorithm", subtle("encrypt", plaintext="AAAA", algorithm="ROT13", keyName="symkey.json"), 500,
         failed("unsupported algorithm 'ROT13'")),
    Case("no nonce", subtle("encrypt", plaintext="AAAA", algorithm="A256GCM", keyName="symkey.json"), 500,
         failed("invalid nonce: it must have 12 bytes, not 0")),
    Case("a key for something else", subtle("encrypt", "set", plaintext="AAAA", **{**GCM, "keyName": "wraps"}), 500,
         failed("key cannot perform the 'encrypt' operation")),
    Case("unknown operation", subtle("rotate"), 404, error("ERR_DIRECT_INVOKE")),
)  # fmt: skip
async def test_single_operations(node: Node, case: Case) -> None:
    await check(node, case)


async def test_messages_and_signatures(node: Node) -> None:
    made = (await node.request(*subtle("encrypt", plaintext=b64(HELLO), **GCM))).json
    assert (await node.request(*subtle("decrypt", **made, **GCM))).json == {"plaintext": b64(HELLO)}
    made["tag"] = b64(bytes(16))
    assert (await node.request(*subtle("decrypt", **made, **GCM))).json == failed(
        "the data do not fit the key, or were changed"
    )
    how = {"algorithm": "PS256", "keyName": "rsakey.pem", "digest": b64(hashlib.sha256(HELLO).digest())}
    signed = (await node.request(*subtle("sign", **how))).json
    assert (await node.request(*subtle("verify", **how, **signed))).json == {"valid": True}
    how["digest"] = b64(bytes(32))
    assert (await node.request(*subtle("verify", **how, **signed))).json == {"valid": False}


async def test_no_component(memory: Backbone, tmp_path: Path) -> None:
    """That is told before which one is meant; what is missing in the request comes first."""
    async with gateway(memory, tmp_path) as node:
        wanted = error("ERR_CRYPTO_PROVIDERS_NOT_CONFIGURED", "crypto providers not configured")
        for request in (encrypt(), decrypt(b""), subtle("getkey")):
            reply = await node.request(*request)
            assert (reply.status, reply.json) == (500, wanted)
        assert (await node.request(*encrypt(key_name=""))).status == 400


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("crypto.dapr.localstorage", {}, "path"),
        ("crypto.dapr.localstorage", {"path": "/nowhere/at/all"}, "there is no folder /nowhere/at/all"),
        ("crypto.dapr.jwks", {}, "jwks"),
        ("crypto.dapr.jwks", {"jwks": "/nowhere/at/all"}, "cannot read the key set: No such file or directory"),
        ("crypto.dapr.jwks", {"jwks": '{"keys": '}, "a key set is a JSON object with a list of keys"),
        ("crypto.dapr.jwks", {"jwks": "{}"}, "a key set is a JSON object with a list of keys"),
    ],
)
async def test_settings(memory: Backbone, tmp_path: Path, kind: str, settings: dict[str, str], told: str) -> None:
    with pytest.raises(Exception, match=told):
        async with gateway(memory, tmp_path, resources=component("vault", kind, **settings)):
            pass


async def test_a_set_is_read_anew(memory: Backbone, tmp_path: Path) -> None:
    """A key that is new is there, and one that is gone is not; while the set is broken, those before stay."""
    file = tmp_path / "keys.json"
    file.write_bytes(b'{"keys": []}')
    resources = component("file", "crypto.dapr.jwks", jwks=str(file), minRefreshInterval="0s")
    async with gateway(memory, tmp_path, resources=resources) as node:
        assert (await node.request(*encrypt("file", key_name="one"))).status == 500
        file.write_bytes(orjson.dumps(SET))
        assert (await node.request(*encrypt("file", key_name="one"))).status == 200
        file.write_bytes(b"broken")
        assert (await node.request(*encrypt("file", key_name="one"))).status == 200
        file.write_bytes(b'{"keys": []}')
        assert (await node.request(*encrypt("file", key_name="one"))).status == 500


async def chunks(data: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield data


@pytest.mark.costly
async def test_large_documents_in_bounded_memory(node: Node) -> None:
    """Of 64 MiB nobody holds more than a few segments: they go through the gateway's process, which is this one."""
    block = os.urandom(SEGMENT_BYTES)
    count = 1024
    gc.collect()
    process = psutil.Process()
    before = most = process.memory_info().rss

    async def document() -> AsyncIterator[bytes]:
        async with node.open("PUT", f"{ALPHA}/crypto/vault/encrypt", WRAP, chunks(block, count)) as response:
            assert response.status == 200
            async for part in response.content.iter_any():
                yield part

    digest, size = hashlib.sha256(), 0
    async with node.open("PUT", f"{ALPHA}/crypto/vault/decrypt", None, document()) as response:
        assert response.status == 200
        async for part in response.content.iter_any():
            digest.update(part)
            size += len(part)
            most = max(most, process.memory_info().rss)
    wanted = hashlib.sha256()
    for _ in range(count):
        wanted.update(block)
    assert (size, digest.digest()) == (count * SEGMENT_BYTES, wanted.digest())
    assert most - before < 40 * 2**20


@pytest.mark.costly
async def test_a_client_that_asks_before_it_sends(node: Node) -> None:
    """It is told to go on, before the answer begins; or refused, when that is known already."""
    plain = os.urandom(SEGMENT_BYTES * 3)
    url = f"{node.url}{ALPHA}/crypto/vault/encrypt"
    async with node.session.put(url, headers=WRAP, data=plain, expect100=True) as response:
        assert response.status == 200
        made = await response.read()
    assert (await node.request(*decrypt(made))).body == plain
    request = f"PUT {ALPHA}/crypto/vault/encrypt HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n"
    answer = await node.raw(f"{request}Connection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_document_that_is_changed_later_breaks_off(node: Node) -> None:
    """What was given out before is authentic; the rest is not given, and the answer does not end well."""
    plain = os.urandom(SEGMENT_BYTES * 3)
    made = bytearray((await node.request("PUT", f"{ALPHA}/crypto/vault/encrypt", WRAP, plain)).body)
    made[-1] ^= 1
    given = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with node.open("PUT", f"{ALPHA}/crypto/vault/decrypt", None, bytes(made)) as response:
            assert response.status == 200
            async for part in response.content.iter_any():
                given += part
    assert plain.startswith(given)
    assert len(given) <= SEGMENT_BYTES * 2


async def test_clients_that_leave(node: Node) -> None:
    """In the middle of a body, and in the middle of an answer: nothing stays behind, and others are answered."""
    tasks = len(asyncio.all_tasks())
    endless = f"PUT {ALPHA}/crypto/vault/encrypt HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    endless += "".join(f"{name}: {value}\r\n" for name, value in WRAP.items()) + "\r\n5\r\nhello\r\n"
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
        writer.write(endless.encode())
        await writer.drain()
        writer.close()
        async with node.open("PUT", f"{ALPHA}/crypto/vault/encrypt", WRAP, chunks(bytes(2**20), 64)) as response:
            await response.content.readany()
            response.close()
    assert (await node.request(*decrypt(VECTORS[0]))).body == HELLO

    def none_is_left() -> None:
        assert len(asyncio.all_tasks()) <= tasks + 2

    await eventually(none_is_left)


async def test_keys_of_a_host(nats: Backbone, tmp_path: Path) -> None:
    """A gateway without the keys encrypts and decrypts through the node that has them; scopes and absence hold."""
    keys = write_keys(tmp_path)
    away = component("vault", "crypto.dapr.localstorage", scopes=["host", "friend"], path=str(keys))
    away = away.replace('"name":"vault"', '"name":"vault","annotations":{"mesh.placement":"backbone"}', 1)
    resources = component("own", "crypto.dapr.jwks", jwks='{"keys": []}')
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    async with gateway(nats, tmp_path / "a", app_id="host", resources=away), \
        gateway(nats, tmp_path / "b", app_id="friend", resources=resources) as friend, \
        gateway(nats, tmp_path / "c", app_id="stranger", resources=resources) as stranger:  # fmt: skip
        plain = os.urandom(SEGMENT_BYTES * 2 + 5)
        made = await friend.request("PUT", f"{ALPHA}/crypto/vault/encrypt", WRAP, plain)
        assert (await friend.request(*decrypt(made.body))).body == plain
        for vector in VECTORS:
            assert (await friend.request(*decrypt(vector))).body == HELLO
        wrapped = await friend.request(*subtle("wrapkey", plaintextKey=PLAIN, **OF))
        assert wrapped.json == {"wrappedKey": WRAPPED, "tag": ""}
        refused = await friend.request(*encrypt(key_wrap_algorithm="RSA"))
        assert refused.json == failed("failed to wrap the file key: key type mismatch: an RSA key is needed")
        assert (await friend.request(*subtle("getkey", name="symkey.json"))).json == error("ERR_CRYPTO_KEY", NO_KEY)
        reply = await stranger.request(*encrypt())
        assert (reply.status, reply.json) == (400, error("ERR_CRYPTO_PROVIDER_NOT_FOUND", ANY))
