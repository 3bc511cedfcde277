"""Cryptography over gRPC: documents as streams, and single operations, beside the same over HTTP."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
import pytest_asyncio

from mesh.blocks.crypto_document import SEGMENT_BYTES
from tests.grpc.harness import Both, Call, Client, Failed, calls, check_both, check_call, client, pairs
from tests.http.harness import Backbone, Node, component, gateway, matches
from tests.support.crypto_keys import HELLO, VECTORS, write_keys
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
BAD, ALPHA = "INVALID_ARGUMENT", "/v1.0-alpha1"
HOW = {"component_name": "vault", "key_name": "symkey.json", "key_wrap_algorithm": "A256KW"}
VAULT = {"component_name": "vault"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    keys = write_keys(tmp_path_factory.mktemp("keys"))
    resources = component("vault", "crypto.dapr.localstorage", path=str(keys))
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), resources=resources) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def called(node: Node) -> AsyncIterator[Client]:
    async with client(node) as called:
        yield called


def message(called: Client, name: str, data: bytes | None, seq: int = 0, options: object = None) -> Any:
    members: dict[str, Any] = {} if options is None else {"options": options}
    if data is not None:
        members["payload"] = {"data": data, "seq": seq}
    return called.request(name, **members)


async def stream(called: Client, name: str, *messages: Any) -> bytes:
    """Send messages; give what is answered, whose parts are numbered."""

    async def sent() -> AsyncIterator[Any]:
        for each in messages:
            yield each

    found, number = b"", 0
    try:
        async for reply in called.open(name, sent()):
            assert reply.payload.seq == number
            number += 1
            found += reply.payload.data
    except grpc.aio.AioRpcError as error:
        raise Failed(error) from None
    return found


async def document(called: Client, name: str, options: object, data: bytes, size: int = 10_000) -> bytes:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    told = [message(called, name, part, number) for number, part in enumerate(parts)]
    return await stream(called, name, message(called, name, None, options=options), *told)


@pytest.mark.parametrize("vector", VECTORS)
async def test_what_the_reference_wrote(called: Client, vector: bytes) -> None:
    assert await document(called, "DecryptAlpha1", VAULT, vector) == HELLO
    whole = message(called, "DecryptAlpha1", vector, options=VAULT)
    assert await stream(called, "DecryptAlpha1", whole) == HELLO


@pytest.mark.parametrize("size", [0, 5, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key_wrap_algorithm": "RSA", "key_name": "rsakey.pem", "data_encryption_cipher": "chacha20-poly1305"},
        {"decryption_key_name": "symkey64"},
    ],
)
async def test_there_and_back(node: Node, called: Client, size: int, options: dict[str, str]) -> None:
    """What one protocol encrypts the other decrypts."""
    plain = os.urandom(size)
    made = await document(called, "EncryptAlpha1", {**HOW, **options}, plain)
    assert await document(called, "DecryptAlpha1", VAULT, made, 70_000) == plain
    assert (await node.request("PUT", f"{ALPHA}/crypto/vault/decrypt", None, made)).body == plain


async def test_no_key_name(called: Client) -> None:
    made = await document(called, "EncryptAlpha1", {**HOW, "omit_decryption_key_name": True}, HELLO)
    with pytest.raises(Failed, match="INTERNAL: failed to perform operation: document's manifest does not contain"):
        await document(called, "DecryptAlpha1", VAULT, made)
    assert await document(called, "DecryptAlpha1", {**VAULT, "key_name": "symkey"}, made) == HELLO


REFUSED: Sequence[tuple[str, str, list[tuple[bytes | None, int, object]], str]] = [
    ("nothing", "EncryptAlpha1", [], "the first message of the stream must have the options"),
    ("no options", "DecryptAlpha1", [(b"x", 0, None)], "the first message of the stream must have the options"),
    ("no component", "EncryptAlpha1", [(None, 0, {**HOW, "component_name": ""})], "missing component_name in"),
    ("no component", "DecryptAlpha1", [(None, 0, {"key_name": "k"})], "missing component_name in the options"),
    ("no key", "EncryptAlpha1", [(None, 0, {**HOW, "key_name": ""})], "missing key_name in the options"),
    ("no algorithm", "EncryptAlpha1", [(None, 0, {**HOW, "key_wrap_algorithm": ""})], "missing key_wrap_algorithm in"),
    ("options twice", "EncryptAlpha1", [(None, 0, HOW), (b"x", 0, HOW)], "only the first message of the stream has"),
    ("a part is missing", "EncryptAlpha1", [(None, 0, HOW), (b"x", 0, None), (b"y", 2, None)],
     "invalid sequence number 2: 1 was expected"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parts", "told"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
async def test_wrong_streams(
    called: Client, name: str, parts: list[tuple[bytes | None, int, object]], told: str
) -> None:
    with pytest.raises(Failed, match=f"{BAD}: invalid request: {told}"):
        await stream(called, name, *(message(called, name, *part) for part in parts))


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ({"component_name": "nope"}, BAD, "crypto provider nope not found"),
        ({"key_wrap_algorithm": "X"}, "INTERNAL", "option Algorithm is not valid: algorithm X is not supported"),
        ({"key_name": "nope"}, "INTERNAL", "failed to load key 'nope'"),
    ],
)
async def test_what_cannot_be_encrypted(called: Client, options: dict[str, str], code: str, told: str) -> None:
    for _ in range(5):
        with pytest.raises(Failed) as raised:
            await document(called, "EncryptAlpha1", {**HOW, **options}, HELLO)
        # grpcio's own, where it still sends when it is answered (grpc/grpc#36066).
        if "Internal error from Core" not in str(raised.value):
            break
    assert told in str(raised.value)
    assert raised.value.code == code


async def test_a_document_that_is_changed_ends_with_an_error(called: Client) -> None:
    """What was given out before is authentic."""
    plain = os.urandom(SEGMENT_BYTES * 2)
    made = bytearray(await document(called, "EncryptAlpha1", HOW, plain))
    made[-1] ^= 1
    given = b""
    sent = [message(called, "DecryptAlpha1", bytes(made), options=VAULT)]
    with pytest.raises(grpc.aio.AioRpcError, match="error processing segment 1: failed to decrypt segment"):
        async for reply in called.open("DecryptAlpha1", iter(sent)):
            given += reply.payload.data
    assert given == plain[:SEGMENT_BYTES]


async def test_clients_that_give_up(called: Client) -> None:
    """In the middle of a stream: nothing of it stays behind."""
    tasks = len(asyncio.all_tasks())
    for _ in range(5):
        waiting = asyncio.Event()

        async def endless(waiting: asyncio.Event = waiting) -> AsyncIterator[Any]:
            yield message(called, "EncryptAlpha1", bytes(SEGMENT_BYTES + 1), options=HOW)
            await waiting.wait()

        call = called.open("EncryptAlpha1", endless())
        assert (await call.read()).payload.data.startswith(b"dapr.io/enc/v1\n")
        assert len((await call.read()).payload.data) == SEGMENT_BYTES + 16
        call.cancel()
    assert await document(called, "DecryptAlpha1", VAULT, VECTORS[0]) == HELLO

    def none_is_left() -> None:
        assert len(asyncio.all_tasks()) <= tasks + 2

    await eventually(none_is_left)


def of(**members: Any) -> dict[str, Any]:
    return {"component_name": "vault", **members}


KEY = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
WRAPPED = bytes.fromhex("28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21")
AES = {"algorithm": "A256KW", "key_name": "symkey.json"}
CBC = {"algorithm": "A256CBC", "key_name": "symkey.json", "nonce": bytes(16)}
ED = {"algorithm": "EdDSA", "key_name": "ed25519.pem", "digest": HELLO}
NO_KEY = "failed to retrieve key symkey.json: key not found"


@calls(
    Call("wrap", "SubtleWrapKeyAlpha1", of(plaintext_key=KEY, **AES),
         {"wrapped_key": base64.b64encode(WRAPPED).decode()}),
    Call("unwrap", "SubtleUnwrapKeyAlpha1", of(wrapped_key=WRAPPED, **AES),
         {"plaintext_key": base64.b64encode(KEY).decode()}),
    Call("public key", "SubtleGetKeyAlpha1", of(name="rsakey.pem"),
         {"name": "rsakey.pem", "public_key": matches(lambda text: text.startswith("-----BEGIN PUBLIC KEY-----"))}),
    Call("public key as JSON", "SubtleGetKeyAlpha1", of(name="rsakey.pem", format="JSON"),
         {"name": "rsakey.pem", "public_key": matches(lambda text: text.index('"kty":"RSA"'))}),
    Call("an unknown format", "SubtleGetKeyAlpha1", of(name="rsakey.pem", format=7),
         (BAD, "invalid request: invalid key format")),
    Call("a symmetric key", "SubtleGetKeyAlpha1", of(name="symkey.json"), ("INTERNAL", NO_KEY)),
    Call("no component", "SubtleSignAlpha1", {"algorithm": "RS256"}, (BAD, "invalid request: missing component name")),
)  # fmt: skip
async def test_single_operations(called: Client, call: Call) -> None:
    await check_call(called, call)


async def test_messages_and_signatures(called: Client) -> None:
    made = await called.message("SubtleEncryptAlpha1", **of(plaintext=HELLO, **CBC))
    back = await called.message("SubtleDecryptAlpha1", **of(ciphertext=made.ciphertext, tag=made.tag, **CBC))
    assert back.plaintext == HELLO
    signature = (await called.message("SubtleSignAlpha1", **of(**ED))).signature
    assert (await called.message("SubtleVerifyAlpha1", **of(signature=signature, **ED))).valid
    assert not (await called.message("SubtleVerifyAlpha1", **of(signature=signature[::-1], **ED))).valid


def posted(operation: str, component_name: str = "vault", **members: Any) -> tuple[Any, ...]:
    shown = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in members.items()
    }
    return "POST", f"{ALPHA}/subtlecrypto/{component_name}/{operation}", None, shown


@pairs(
    Both("unknown component", posted("sign", "nope", **ED), "SubtleSignAlpha1", of(**ED) | {"component_name": "nope"},
         BAD, 400),
    Both("a key that is not there", posted("getkey", name="nope"), "SubtleGetKeyAlpha1", of(name="nope"), "INTERNAL",
         500),
    Both("unknown algorithm", posted("encrypt", algorithm="X", key_name="symkey"), "SubtleEncryptAlpha1",
         of(algorithm="X", key_name="symkey"), "INTERNAL", 500),
    Both("what was not encrypted", posted("decrypt", ciphertext=bytes(16), **CBC), "SubtleDecryptAlpha1",
         of(ciphertext=bytes(16), **CBC), "INTERNAL", 500),
    Both("what was not wrapped", posted("unwrapkey", wrapped_key=KEY, **AES), "SubtleUnwrapKeyAlpha1",
         of(wrapped_key=KEY, **AES), "INTERNAL", 500),
    Both("a key of another kind", posted("verify", **{**ED, "key_name": "symkey"}), "SubtleVerifyAlpha1",
         of(**{**ED, "key_name": "symkey"}), "INTERNAL", 500),
)  # fmt: skip
async def test_failures(node: Node, called: Client, both: Both) -> None:
    await check_both(node, called, both)
