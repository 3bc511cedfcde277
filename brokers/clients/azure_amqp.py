"""What the adapters to Service Bus and Event Hubs have in common: connection strings, and what messages hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mesh.resources.settings import Kind

__all__ = ["account_kind", "connection_kind", "fields_of", "plain", "reason_of", "texts"]

MAX_REASON = 300
_SECRET = ("sharedaccesskey", "sharedaccesssignature", "accountkey")


def fields_of(connection: str | None) -> Sequence[tuple[str, str]]:
    """Give what a connection string says, by names in small letters; one that is none says what it says."""
    parts = [part.partition("=") for part in (connection or "").split(";")]
    return [(name.strip().casefold(), value.strip()) for name, _, value in parts]


def reason_of(error: BaseException, connection: str | None) -> str:
    """Give what an error of a library says, on one short line, without the secrets of the connection string."""
    text = str(error).partition("\n")[0] or (
        "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    )
    secrets = [connection or "", *(value for name, value in fields_of(connection) if name in _SECRET)]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return "".join(each if each.isprintable() else " " for each in text)[:MAX_REASON]


def _connection(text: str) -> str:
    names = {name for name, _ in fields_of(text)}
    if not {"endpoint", "sharedaccesskeyname", "sharedaccesskey"} <= names and "sharedaccesssignature" not in names:
        raise ValueError("is no connection string")
    return text


def _account(text: str) -> str:
    if not {name for name, _ in fields_of(text)} & {"accountname", "blobendpoint", "usedevelopmentstorage"}:
        raise ValueError("is no connection string of a storage account")
    return text


connection_kind = Kind("connection string", _connection)
account_kind = Kind("connection string", _account)


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
