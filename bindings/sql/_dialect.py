"""What tells one SQL database from another, as a value: its statements, and how its driver fails.

Statements are texts with named parameters (``:key``). A row that is written is a text as well, whose parameters
end in the row's number: ``(:key0, :value0)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, text

from mesh.resources.settings import Kind
from mesh.store import Stored
from mesh.values import parse_duration

__all__ = [
    "DOTTED_NAME",
    "INTERVAL",
    "NAME",
    "Dialect",
    "Fault",
    "identifier",
    "keys_of",
    "numbered",
    "one",
    "rows_of",
]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_NUMBERED = re.compile(r":([a-z]+)\b")


class Fault(Enum):
    """What a database's refusal means."""

    LOST = "the connection is gone"
    AGAIN = "another transaction was in the way; this one was undone"
    EXISTS = "there is such a row"
    LIMIT = "it is larger than the database takes"
    DENIED = "the user lacks a right"
    OTHER = "anything else"


@dataclass(frozen=True)
class Dialect:
    """A database with the names of its tables filled in.

    Attributes:
        title: For people.
        get: The row of ``:key`` if it is live: key, value, whether that is encoded, etag, Unix time of its end.
        get_many: The same of ``:keys``.
        upsert: Writes rows whatever is there; ``{rows}`` is where they stand.
        row: One of them.
        parameters: Gives those of a row, for a value and the seconds it lives.
        insert: Write one row if there is none that is live; the last one must count a row, or fail by ``EXISTS``.
        update: Writes ``:key`` if it is live and has ``:etag_is``.
        delete: Of ``:keys``.
        delete_if: Of ``:key`` if it is live and has ``:etag_is``.
        check: Finds ``:key`` if it is live and has ``:etag_is``, and keeps others from changing it until the end.
        check_many: Reads ``:keys`` as ``get_many`` does, and keeps others from changing them, likewise.
        keys: At most ``:limit`` live ones with ``:prefix`` behind ``:after``, in the order of their bytes.
        clean: Deletes at most ``:limit`` rows whose time is over.
        claim: Note the time of a clean-up unless one was less than ``:seconds`` ago; a row that counts says so.
        begin: Begins a transaction that writes.
        read: Gives what was stored of a row of ``get``.
        migrate: Makes the tables, or brings them up to date.
        etag: Checks an etag's form and gives what stands for it in a statement; None if none is like it.
        rights: What whoever makes the tables must be allowed, as the database's own statement.
        etag_invalid: Whether an etag of another form is told as such, instead of as one that differs.
        chunk: The most rows or keys of a statement.
        max_key: Characters of the longest key; None = the database's own limit is met.
    """

    title: str
    get: str
    get_many: str
    upsert: str
    row: str
    parameters: Callable[[str, bytes, float | None], dict[str, Any]]
    insert: Sequence[str]
    update: str
    delete: str
    delete_if: str
    check: str
    check_many: str
    keys: str
    clean: str
    claim: Sequence[str]
    begin: str
    read: Callable[[Any], Stored]
    migrate: Callable[[Connection], None]
    etag: Callable[[str], str | bytes | None]
    rights: str
    etag_invalid: bool = False
    max_key: int | None = None
    chunk: int = 500


def identifier(name: str, *, dotted: bool = False) -> tuple[str, ...]:
    """Take a table's name apart; it is put into statements, so it holds nothing but letters, digits and ``_``.

    Raises:
        ValueError: It holds something else.
    """
    parts = tuple(name.split(".")) if dotted else (name,)
    if len(parts) > 2 or not all(_IDENTIFIER.fullmatch(part) for part in parts):
        allowed = "a name of letters, digits and '_'" + (", perhaps with a schema before it" if dotted else "")
        raise ValueError(f"is {allowed}, not {name!r}")
    return parts


def _name(text: str, *, dotted: bool) -> str:
    identifier(text, dotted=dotted)
    return text


def _interval(text: str) -> float:
    return 0.0 if text.lstrip().startswith("-") else parse_duration(text, bare="s")


INTERVAL = Kind("duration, or -1", _interval)
NAME = Kind("name", lambda text: _name(text, dotted=False))
DOTTED_NAME = Kind("name", lambda text: _name(text, dotted=True))


@lru_cache(1024)
def one(statement: str) -> TextClause:
    """Give a statement for SQLAlchemy's Core in the form that is compiled once."""
    return text(statement)


def keys_of(statement: str, keys: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Give a statement of ``:keys`` and its parameters: a database takes them as one, or each as one."""
    if "IN :keys" not in statement:
        return statement, {"keys": keys}
    return _in(statement, len(keys)), numbered([{"key": key} for key in keys])


@lru_cache(256)
def _in(statement: str, count: int) -> str:
    return statement.replace("IN :keys", f"IN ({', '.join(f':key{number}' for number in range(count))})")


@lru_cache(128)
def rows_of(statement: str, row: str, count: int) -> str:
    """Give a statement that writes so many rows."""
    rows = ", ".join(_NUMBERED.sub(rf":\g<1>{number}", row) for number in range(count))
    return statement.format(rows=rows)


def numbered(parameters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the parameters of several rows by the names that they have in `rows_of`."""
    return {f"{name}{number}": value for number, row in enumerate(parameters) for name, value in row.items()}
