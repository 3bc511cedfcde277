"""How values stand in text columns: JSON as it is, anything else in base64 and marked."""

from __future__ import annotations

import base64
import math
import time
from datetime import UTC, datetime
from uuid import UUID, uuid4

import orjson

from mesh.errors import StateError

__all__ = ["LONGEST_TTL", "decoded", "encoded", "is_uuid", "new_etag", "utc_text"]

LONGEST_TTL = 3e9  # Seconds; databases' dates end not much later.
_LAST_DATE = 253402300799  # The end of the year 9999.


def encoded(value: bytes, *, quoted: bool) -> tuple[str, bool]:
    """Give the text that stands for a value, and whether it is encoded.

    Args:
        value: What was saved.
        quoted: Whether the column holds JSON, and an encoded value is a JSON text in it.
    """
    if _is_json(value, quoted):
        return value.decode(), False
    text = base64.b64encode(value).decode()
    return (f'"{text}"' if quoted else text), True


def _is_json(value: bytes, stored_as_json: bool) -> bool:
    if stored_as_json and b"\\u0000" in value:  # jsonb takes no such character.
        return False
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return True


def decoded(text: str, is_encoded: bool) -> bytes:
    """Give back what was saved.

    Raises:
        StateError: It was not written in this way.
    """
    if not is_encoded:
        return text.encode()
    try:
        return base64.b64decode(text.strip().removeprefix('"').removesuffix('"'), validate=True)
    except ValueError:
        raise StateError("a row is marked as encoded, and does not hold base64") from None


def new_etag() -> str:
    """Make an etag that nothing had before."""
    return str(uuid4())


def is_uuid(etag: str) -> str | None:
    """Give an etag that can be a UUID as the database writes it."""
    try:
        return str(UUID(etag))
    except ValueError:
        return None


def utc_text(ttl: float | None) -> str | None:
    """Give the second at which a value's time is over, never too early, as SQLite writes it."""
    if ttl is None:
        return None
    end = min(math.ceil(time.time() + ttl), _LAST_DATE)
    return datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M:%S")
