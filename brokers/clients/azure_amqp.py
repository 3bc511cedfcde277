"""What the bindings to Service Bus and Event Hubs have in common: connection strings, and what messages hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mesh.resources.settings import Kind

__all__ = ["connection_kind", "plain", "secrets_of", "texts"]

_SECRET = ("sharedaccesskey", "sharedaccesssignature", "accountkey")


def _connection(text: str) -> str:
    names = {part.partition("=")[0].strip().casefold() for part in text.split(";")}
    if not {"endpoint", "sharedaccesskeyname", "sharedaccesskey"} <= names and "sharedaccesssignature" not in names:
        raise ValueError("is no connection string")
    return text


connection_kind = Kind("connection string", _connection)


def secrets_of(connection: str | None) -> Sequence[str]:
    """Give what no error may tell of a connection string, and itself."""
    parts = [part.partition("=") for part in (connection or "").split(";")]
    return [connection or "", *(value.strip() for name, _, value in parts if name.strip().casefold() in _SECRET)]


def plain(value: object) -> object:
    """Give a text for what the library has as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def texts(value: object) -> bytes:
    """Give the bytes of a body; a value that is neither bytes nor a text is JSON."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Iterable) and not isinstance(value, dict):
        value = list(value)
        if all(isinstance(part, bytes) for part in value):
            return b"".join(value)
    return msgspec.json.encode(_readable(value))


def _readable(value: object) -> object:
    if isinstance(value, dict):
        return {str(plain(name)): _readable(each) for name, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_readable(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else str(plain(value))
