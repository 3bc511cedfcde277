"""Documents of ``state.mongodb``: what is written, what is read, and what is looked for."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import bson
import orjson
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError
from bson.json_util import RELAXED_JSON_OPTIONS, dumps

from bindings.mongodb._settings import Document
from mesh.errors import BadArgumentError
from mesh.query import All, Compare, Filter, Query, Scalar
from mesh.query import Any as AnyOf
from mesh.store import Item, Stored

__all__ = ["alive", "checked_key", "condition", "laid_out", "order_of", "prefixed", "skipped", "stored", "text_of"]

MAX_LEVELS = 90  # MongoDB takes 100.
MAX_BYTES = 15 * 1024 * 1024  # Of BSON, which may be longer than its JSON; a longer one is kept as text.
_LAST = 2**63 - 1
_OPERATORS = {"EQ": "$eq", "NEQ": "$ne", "GT": "$gt", "GTE": "$gte", "LT": "$lt", "LTE": "$lte"}


def now() -> DatetimeMS:
    """Give the time."""
    return DatetimeMS(int(time.time() * 1000))


def alive() -> Document:
    """Make the condition that a document has not expired; the server deletes it within a minute or two."""
    return {"$or": [{"_ttl": None}, {"_ttl": {"$gt": now()}}]}


def checked_key(key: str) -> str:
    """Give a key that can be sent.

    Raises:
        BadArgumentError: It is no Unicode text.
    """
    try:
        key.encode()
    except UnicodeEncodeError:
        raise BadArgumentError(f"the key {key!r} is no Unicode text") from None
    return key


def laid_out(item: Item) -> Document:
    """Give what is set in an item's document."""
    assert item.value is not None
    expires = None if item.ttl is None else DatetimeMS(min(int((time.time() + item.ttl) * 1000), _LAST))
    return {"value": _value(item.value), "_etag": str(uuid.uuid4()), "_ttl": expires}


def _value(value: bytes) -> object:
    """Give a JSON object or array as a document, if reading it gives the same bytes; else the text, or the bytes."""
    if value[:1] in (b"{", b"["):
        try:
            read = orjson.loads(value)
            same = orjson.dumps(read) == value and (_is_simple(value) or _fits(read, 0))
            if same and len(bson.encode({"value": read})) <= MAX_BYTES:
                return read
        except (orjson.JSONDecodeError, BSONError, OverflowError):
            pass  # It is kept as text.
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _is_simple(value: bytes) -> bool:
    return b'"$' not in value and value.count(b"[") + value.count(b"{") <= MAX_LEVELS


def _fits(value: object, level: int) -> bool:
    """Tell whether MongoDB takes it as it is: names that begin with a dollar mean something there."""
    match value:
        case dict():
            return level < MAX_LEVELS and all(
                not name.startswith("$") and _fits(each, level + 1) for name, each in value.items()
            )
        case list():
            return level < MAX_LEVELS and all(_fits(each, level + 1) for each in value)
        case _:
            return True


def text_of(value: object) -> bytes:
    """Give a value as it was saved; what another program stored as a document is JSON."""
    match value:
        case str():
            return value.encode()
        case bytes():
            return bytes(value)
        case float() if value.is_integer() and abs(value) < 2**53:
            return b"%d" % value  # Dapr stores every number so.
    try:
        return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError:  # It has what JSON has not.
        return dumps(value, json_options=RELAXED_JSON_OPTIONS, separators=(",", ":"), ensure_ascii=False).encode()


def stored(document: Document | None) -> Stored | None:
    """Read a document; None if it has expired."""
    if document is None:
        return None
    expires = document.get("_ttl")
    expires_at = int(expires) / 1000 if isinstance(expires, DatetimeMS) else None
    if expires_at is not None and expires_at <= time.time():
        return None
    return Stored(text_of(document.get("value")), str(document.get("_etag") or ""), expires_at)


def prefixed(prefix: str, after: str) -> Document:
    """Make the condition on keys that begin with a prefix and are behind a key."""
    found: Document = {"$gt": after} if after >= prefix and after else {"$gte": prefix}
    if end := _behind(prefix):
        found["$lt"] = end
    return found


def _behind(prefix: str) -> str:
    """Give the first text behind all that begin with a prefix; empty = there is none."""
    while prefix and prefix[-1] == "\U0010ffff":
        prefix = prefix[:-1]
    following = ord(prefix[-1]) + 1 if prefix else 0
    return prefix[:-1] + chr(0xE000 if following == 0xD800 else following) if prefix else ""


def condition(found: Filter) -> Document:
    """Translate a filter.

    Raises:
        BadArgumentError: No member can have such a name.
    """
    match found:
        case All(filters):
            return {"$and": [condition(each) for each in filters]}
        case AnyOf(filters):
            return {"$or": [condition(each) for each in filters]}
        case Compare("IN", path, values):
            return {_member(path): {"$in": [_scalar(each) for each in values]}}
        case Compare(operator, path, values):
            return {_member(path): {_OPERATORS[operator]: _scalar(values[0])}}


def _scalar(value: Scalar) -> Scalar:
    return float(value) if isinstance(value, int) and not -_LAST <= value <= _LAST else value


def _member(path: Sequence[str]) -> str:
    if any(each.startswith("$") or "\0" in each for each in path):
        raise BadArgumentError(f"the member {'.'.join(path)!r} cannot be looked for in MongoDB")
    return ".".join(("value", *path))


def order_of(query: Query) -> list[tuple[str, Any]]:
    """Give the order in which a query gives what it finds; keys decide between equals."""
    wanted = {_member(each.path): -1 if each.descending else 1 for each in reversed(query.sort)}
    return [*reversed(wanted.items()), ("_id", 1)]


def skipped(query: Query) -> int:
    """Read a query's token: how many were given before.

    Raises:
        BadArgumentError: It is none.
    """
    token = query.token or "0"
    if not (token.isascii() and token.isdigit() and len(token) <= 10):
        raise BadArgumentError("page.token must be the token of the page before")
    return int(token)
