"""What every route needs of a request: its parts, decoded the way Dapr decodes them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import TypeVar, cast
from urllib.parse import parse_qsl, unquote

import msgspec
import orjson
from aiohttp import web

from gateway import errors
from mesh.values import parse_duration

__all__ = [
    "BODY_SECONDS",
    "body_parts",
    "check_escapes",
    "deadline_of",
    "every",
    "fields",
    "go_ahead",
    "header",
    "in_time",
    "members",
    "metadata_of",
    "query_of",
    "raw_member",
    "read_body",
    "read_json",
    "text_of",
    "text_map",
    "unescape",
]

TIMEOUT_HEADER = "mesh-timeout"
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
BODY_SECONDS = 60.0
READ_BYTES = 64 * 1024
_T = TypeVar("_T")
NO_METADATA: Mapping[str, str] = {}


def check_escapes(path: str) -> None:
    """Refuse a percent sign that begins no escape.

    Raises:
        APIError: There is one.
    """
    if "%" in path and _BAD_ESCAPE.search(path):
        raise errors.bad_request(f"bad percent escape in the path {path!r}; a percent sign is written as %25")


def unescape(segment: str) -> str:
    """Decode a path segment: percent escapes, and nothing else. A ``+`` is a plus.

    Source: RFC 3986 section 2.1; the plus for a blank belongs to the queries of HTML forms.

    Raises:
        APIError: A percent escape is broken, or not UTF-8.
    """
    if "%" not in segment:
        return segment
    check_escapes(segment)
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise errors.bad_request(f"the path segment {segment!r} is not UTF-8") from None


def header(request: web.BaseRequest, name: str) -> str | None:
    """Give a header's value.

    Raises:
        APIError: It is not UTF-8.
    """
    return text_of(name, request.headers.get(name))


def text_of(name: str, value: str | None) -> str | None:
    """Give a header's value, if it is there.

    Raises:
        APIError: It is not UTF-8.
    """
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise errors.bad_request(f"the header {name} is not UTF-8") from None
    return value


def deadline_of(request: web.BaseRequest) -> float | None:
    """Give the Unix time until which the client waits, by its header ``mesh-timeout``; None = it does not say."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        return time.time() + parse_duration(text)
    except ValueError as error:
        raise errors.bad_request(f"header {TIMEOUT_HEADER}: {error}") from None


def query_of(raw_query: str) -> dict[str, str]:
    """Decode a query; of repeated names the first counts."""
    found: dict[str, str] = {}
    for name, value in _pairs(raw_query):
        found.setdefault(name, value)
    return found


def every(raw_query: str, name: str) -> tuple[str, ...]:
    """Give the values of a parameter that may be repeated, each once."""
    return tuple(dict.fromkeys(value for given, value in _pairs(raw_query) if given == name))


def _pairs(raw_query: str) -> list[tuple[str, str]]:
    if not raw_query.isascii():
        raw_query = raw_query.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return parse_qsl(raw_query, keep_blank_values=True)


def metadata_of(raw_query: str) -> Mapping[str, str]:
    """Give the ``metadata.*`` parameters without their prefix, which counts in this case only."""
    if "metadata." not in raw_query:
        return NO_METADATA
    return {name[9:]: value for name, value in query_of(raw_query).items() if name.startswith("metadata.")}


def go_ahead(request: web.BaseRequest) -> None:
    """Tell a client that asks before it sends its body to send it.

    Source: RFC 9110 section 10.1.1.
    """
    if "Expect" in request.headers and request.version == (1, 1) and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def read_body(request: web.BaseRequest) -> bytes:
    """Read the whole body.

    Raises:
        APIError: It is over the limit, or comes too slowly.
    """
    try:
        if request.content.is_eof():
            return await request.read()
        go_ahead(request)
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise errors.too_slow(BODY_SECONDS) from None
    except web.HTTPRequestEntityTooLarge:
        raise errors.too_large(request._client_max_size) from None


async def body_parts(request: web.BaseRequest) -> AsyncGenerator[bytes, None]:
    """Iterate over the body as it comes.

    Raises:
        APIError: Nothing came for a minute.
    """
    if not request.content.is_eof():
        go_ahead(request)
    parts = aiter(request.content.iter_chunked(READ_BYTES))
    while part := await in_time(anext(parts, b"")):
        yield part


async def in_time(next_part: Awaitable[_T]) -> _T:
    """Wait for what the client sends next; who sends nothing for a minute is not waited for."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await next_part
    except TimeoutError:
        raise errors.too_slow(BODY_SECONDS) from None


async def read_json(request: web.BaseRequest) -> object:
    """Read the body as JSON, whatever the content type says; an empty one is None.

    Raises:
        APIError: It is not JSON, or over the limit.
    """
    body = await read_body(request)
    if not body.strip():
        return None
    try:
        return cast("object", orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise errors.malformed(error) from None


def fields(value: object, what: str) -> dict[str, object]:
    """Take a JSON object's members with lower-case names.

    Raises:
        APIError: It is no object.
    """
    if not isinstance(value, dict):
        raise errors.malformed(f"{what} must be an object")
    return {str(name).lower(): member for name, member in value.items()}


def members(value: object, what: str) -> dict[str, object]:
    """Take the members of a message in JSON: their names may be written with underscores, and in any case.

    Raises:
        APIError: It is no object.
    """
    return {name.replace("_", ""): member for name, member in fields(value, what).items()}


def raw_member(body: bytes, name: str) -> bytes | None:
    """Take a member of a message as it is written, so that a number keeps all its digits; None = it has none.

    Args:
        body: JSON that ``members`` was given, read.
        name: In lower case, without underscores.

    Raises:
        APIError: Something in it is nested too deeply to be passed over.
    """
    if body.strip() in (b"", b"null"):
        return None
    try:
        raw = members(msgspec.json.decode(body, type=dict[str, msgspec.Raw]), "the body").get(name)
    except RecursionError:
        raise errors.malformed("it is nested too deeply") from None
    return None if raw is None else bytes(cast("msgspec.Raw", raw))


def text_map(value: object, what: str) -> Mapping[str, str]:
    """Take a JSON object of strings.

    Raises:
        APIError: It is something else.
    """
    if value is None:
        return NO_METADATA
    if not isinstance(value, dict) or not all(isinstance(member, str) for member in value.values()):
        raise errors.malformed(f"{what} must be an object of strings")
    return cast("Mapping[str, str]", value)
