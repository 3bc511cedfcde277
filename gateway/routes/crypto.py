"""``crypto`` and ``subtlecrypto``: whole documents as streams, and single operations with keys.

A document is encrypted here, with a key of its own; what has the key around that, here or elsewhere, wraps it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, cast

from gateway.errors import answer, bad_request, malformed
from gateway.http.response import Answered, Response, StreamedResponse, json_response
from gateway.routes.request import body_parts, fields, header, in_time, read_json
from gateway.routes.route import Asked, Asking, Route
from gateway.routes.rpc import RPC, Called, Stream
from mesh.blocks.crypto import (
    DECRYPT,
    ENCRYPT,
    GET_KEY,
    SIGN,
    UNWRAP_KEY,
    VERIFY,
    WRAP_KEY,
    UnwrapKey,
    Unwrapped,
    WrapKey,
    Wrapped,
)
from mesh.blocks.crypto_document import Sealing, Unwrap, Wrap, opened, sealed
from mesh.errors import MeshError
from mesh.operation import Method, Operation

__all__ = ["ROUTES", "RPCS"]

ALPHA = ("v1.0-alpha1",)
PUT, POST = frozenset({"PUT"}), frozenset({"POST"})
TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
OCTETS = ("Content-Type", "application/octet-stream")
FORMATS = ("PEM", "JSON")


async def encrypt(asked: Asked) -> Answered:
    """Encrypt a document, as it comes."""
    name = asked.text(0)
    how = Sealing(
        _required(asked, "dapr-key-name"),
        _required(asked, "dapr-key-wrap-algorithm"),
        header(asked.request, "dapr-data-encryption-cipher") or "",
        header(asked.request, "dapr-decryption-key-name") or "",
        (header(asked.request, "dapr-omit-decryption-key-name") or "").strip().lower() in TRUE,
    )
    await asked.find(WRAP_KEY, name)
    return await _respond(asked, WRAP_KEY, name, sealed(body_parts(asked.request), how, _wrapping(asked, name)))


async def decrypt(asked: Asked) -> Answered:
    """Decrypt a document, as it comes; what is given out is authentic."""
    name = asked.text(0)
    await asked.find(UNWRAP_KEY, name)
    key_name = header(asked.request, "dapr-key-name") or ""
    return await _respond(
        asked, UNWRAP_KEY, name, opened(body_parts(asked.request), key_name, _unwrapping(asked, name))
    )


def _required(asked: Asked, name: str) -> str:
    value = header(asked.request, name)
    if not value:
        raise bad_request(f"missing header '{name}'")
    return value


async def _respond(asked: Asked, method: Method, name: str, parts: AsyncIterator[bytes]) -> Answered:
    """Answer with a stream; what goes wrong before its first part is an answer of its own, later it breaks off."""
    async with aclosing(cast("Any", _told(parts, method, name))) as out:
        first = await anext(out, b"")
        stream = StreamedResponse(200, [OCTETS], None)
        await stream.prepare(asked.request)
        await stream.write(first)
        async for part in out:
            await stream.write(part)
    await stream.write_eof()
    return stream


async def _told(parts: AsyncIterator[bytes], method: Method, name: str) -> AsyncIterator[bytes]:
    """Tell of what goes wrong as of an operation."""
    try:
        async with aclosing(cast("Any", parts)):
            async for part in parts:
                yield part
    except MeshError as error:
        raise answer(error, method, name) from error


def _wrapping(asking: Asking, name: str) -> Wrap:
    async def wrap(key: bytes, algorithm: str, nonce: bytes, key_name: str) -> bytes:
        arguments = WrapKey(key, algorithm, key_name, nonce)
        done = await asking.api.run(Operation(WRAP_KEY, name, arguments, asking.context()))
        return cast("Wrapped", done).wrapped_key

    return wrap


def _unwrapping(asking: Asking, name: str) -> Unwrap:
    async def unwrap(key: bytes, algorithm: str, nonce: bytes, key_name: str) -> bytes:
        arguments = UnwrapKey(key, algorithm, key_name, nonce)
        done = await asking.api.run(Operation(UNWRAP_KEY, name, arguments, asking.context()))
        return cast("Unwrapped", done).plaintext_key

    return unwrap


async def encrypt_rpc(called: Called) -> None:
    """Encrypt a document, as it comes."""
    options, parts = await _begun(called)
    for needed in ("key_name", "key_wrap_algorithm"):
        if not getattr(options, needed):
            raise bad_request(f"missing {needed} in the options of the first message")
    how = Sealing(
        options.key_name,
        options.key_wrap_algorithm,
        options.data_encryption_cipher,
        options.decryption_key_name,
        options.omit_decryption_key_name,
    )
    name = options.component_name
    await called.find(WRAP_KEY, name)
    await _send(called, _told(sealed(parts, how, _wrapping(called, name)), WRAP_KEY, name))


async def decrypt_rpc(called: Called) -> None:
    """Decrypt a document, as it comes; what is given out is authentic."""
    options, parts = await _begun(called)
    name = options.component_name
    await called.find(UNWRAP_KEY, name)
    await _send(called, _told(opened(parts, options.key_name, _unwrapping(called, name)), UNWRAP_KEY, name))


async def _begun(called: Called) -> tuple[Any, AsyncIterator[bytes]]:
    """Give the options, which come first, and what is to be encrypted or decrypted."""
    messages = cast("Stream", called.stream).messages()
    first = await in_time(anext(messages, None))
    if first is None or not first.HasField("options"):
        raise bad_request("the first message of the stream must have the options")
    if not first.options.component_name:
        raise bad_request("missing component_name in the options of the first message")
    return first.options, _payloads(first, messages)


async def _payloads(first: Any, messages: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    number, message = 0, first
    while message is not None:
        if message is not first and message.HasField("options"):
            raise bad_request("only the first message of the stream has options")
        if message.HasField("payload"):
            if message.payload.seq != number:
                raise bad_request(f"invalid sequence number {message.payload.seq}: {number} was expected")
            number += 1
            yield message.payload.data
        message = await in_time(anext(messages, None))


async def _send(called: Called, parts: AsyncIterator[bytes]) -> None:
    number = 0
    async with aclosing(cast("Any", parts)):
        async for part in parts:
            await cast("Stream", called.stream).send(called.reply(payload={"data": part, "seq": number}))
            number += 1


class _Read(Protocol):
    """Gives a member of what was asked, of a type that is named."""

    def __call__(self, name: str, kind: str) -> Any:
        """Give it; raises ``APIError``."""


@dataclass(frozen=True, slots=True)
class _Subtle:
    """A single operation: arguments and result have the members of the API's messages.

    Attributes:
        path: The last segment of its path.
        rpc: The middle of the name of its method.
        method: What is asked.
        said: What it does.
    """

    path: str
    rpc: str
    method: Method
    said: str

    async def run(self, asking: Asking, name: str, read: _Read) -> Mapping[str, Any]:
        """Have it done; give the members of its result."""
        await asking.find(self.method, name)
        kinds = dataclasses.fields(self.method.arguments)
        arguments = self.method.arguments(**{each.name: read(each.name, str(each.type)) for each in kinds})
        done = await asking.run(self.method, name, arguments)
        return {each.name: getattr(done, each.name) for each in dataclasses.fields(cast("Any", done))}

    def route(self) -> Route:
        """Make its route."""

        async def answer(asked: Asked) -> Answered:
            body = await read_json(asked.request)
            members = {name.replace("_", ""): value for name, value in fields(body or {}, "the body").items()}
            return _json(await self.run(asked, asked.text(0), lambda name, kind: _member(members, name, kind)))

        return Route(f"subtlecrypto/{{name}}/{self.path}", self._named(answer, ""), POST, ALPHA)

    def row(self) -> RPC:
        """Make its row."""

        async def answer(called: Called) -> object:
            asked = called.message
            if not asked.component_name:
                raise bad_request("missing component name")

            def read(name: str, kind: str) -> Any:
                return _format(asked.format) if name == "format" else getattr(asked, name)

            return called.reply(**await self.run(called, asked.component_name, read))

        return RPC(f"Subtle{self.rpc}Alpha1", self._named(answer, "_rpc"), "subtlecrypto")

    def _named(self, made: Callable[[Any], Awaitable[Any]], suffix: str) -> Callable[[Any], Awaitable[Any]]:
        made.__name__, made.__doc__ = f"{self.method.name}_subtle{suffix}", self.said
        return made


def _json(members: Mapping[str, Any]) -> Response:
    told = {}
    for name, value in members.items():
        first, *others = name.split("_")
        shown = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        told["".join([first, *(each.capitalize() for each in others)])] = shown
    return json_response(told)


def _member(members: Mapping[str, object], name: str, kind: str) -> Any:
    """Read a member of a JSON body; bytes are base64 of either alphabet, as JSON of messages has them."""
    value = members.get(name.replace("_", ""))
    if name == "format":
        return _format(value)
    if value is None:
        return b"" if kind == "bytes" else ""
    if not isinstance(value, str):
        raise malformed(f"{name} must be a string")
    if kind != "bytes":
        return value
    text = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise malformed(f"{name} must be base64") from None


def _format(value: object) -> str:
    """Read the format of a public key: its name, or its number."""
    if value in (None, ""):
        return FORMATS[0]
    if type(value) is int and 0 <= value < len(FORMATS):
        return FORMATS[value]
    if value in FORMATS:
        return str(value)
    raise bad_request("invalid key format")


SUBTLE = (
    _Subtle("getkey", "GetKey", GET_KEY, "Tell the public part of a key."),
    _Subtle("encrypt", "Encrypt", ENCRYPT, "Encrypt a small message with a key itself."),
    _Subtle("decrypt", "Decrypt", DECRYPT, "Decrypt a small message with a key itself."),
    _Subtle("wrapkey", "WrapKey", WRAP_KEY, "Wrap a key."),
    _Subtle("unwrapkey", "UnwrapKey", UNWRAP_KEY, "Unwrap a key."),
    _Subtle("sign", "Sign", SIGN, "Sign a digest."),
    _Subtle("verify", "Verify", VERIFY, "Tell whether a signature is right."),
)

RPCS = (
    RPC("EncryptAlpha1", encrypt_rpc, "crypto"),
    RPC("DecryptAlpha1", decrypt_rpc, "crypto"),
    *(each.row() for each in SUBTLE),
)

ROUTES = (
    Route("crypto/{name}/encrypt", encrypt, PUT, ALPHA),
    Route("crypto/{name}/decrypt", decrypt, PUT, ALPHA),
    *(each.route() for each in SUBTLE),
)
