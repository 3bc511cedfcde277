"""The dialects of PostgreSQL: version 1 of the reference's tables keeps jsonb, version 2 keeps bytes.

The layout is that of Dapr 1.18.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, exc

from bindings.sql._dialect import Dialect, Fault, one
from bindings.sql._values import decoded, encoded, is_uuid
from mesh.errors import StateError
from mesh.store import Stored

__all__ = ["fault", "postgresql_v1", "postgresql_v2", "quoted"]

_AGAIN = frozenset({"40001", "40P01", "55P03"})
_EXISTS = "23505"
_LIMITS = ("54", "22001", "22023")
_DENIED = "42501"
_LOST = frozenset({"57P01", "57P02", "57P03", "25P03", "57P05"})
# Two sessions that make the same table at the same time: PostgreSQL lets one fail in its own catalogue.
_RACES = frozenset({"23505", "42P07", "42710", "XX000"})
_RACE_ATTEMPTS = 10
# Columns that tell a table's version; those that a later step adds are not among them.
_LAYOUTS = {"v1": {"key", "value", "isbinary"}, "v2": {"key", "value", "etag"}}
_XID_MAX = 2**32


def quoted(parts: Sequence[str]) -> str:
    """Give a table's name as a statement has it; without quotes PostgreSQL would write it small as well."""
    return ".".join(f'"{part.lower()}"' for part in parts)


def fault(error: BaseException) -> Fault:
    """Say what an error means, by its SQLSTATE; without one it did not come from the server."""
    state = getattr(error, "sqlstate", None)
    if not isinstance(state, str):
        return Fault.OTHER if isinstance(error, ValueError) else Fault.LOST
    if state in _AGAIN:
        return Fault.AGAIN
    if state == _EXISTS:
        return Fault.EXISTS
    if state in _LOST or state.startswith("08"):
        return Fault.LOST
    if state == _DENIED:
        return Fault.DENIED
    return Fault.LIMIT if state.startswith(_LIMITS) else Fault.OTHER


def _dialect(
    table: Sequence[str],
    metadata: Sequence[str],
    *,
    columns: str,
    values: str,
    changed: str,
    selected: str,
    end: str,
    etag_is: str,
    cleaned: str,
    title: str = "PostgreSQL",
    **more: Any,
) -> Dialect:
    t, m = quoted(table), quoted(metadata)
    live = f"({end} IS NULL OR {end} > CURRENT_TIMESTAMP)"
    ends = "CURRENT_TIMESTAMP + CAST(:ttl AS float8) * interval '1 second'"
    select = f"SELECT {selected}, CAST(EXTRACT(EPOCH FROM {end}) AS float8) FROM {t}"
    key = "key = CAST(:key AS text)"
    insert = f"INSERT INTO {t} AS s ({columns}, {end}) VALUES {{rows}} ON CONFLICT (key) DO UPDATE SET"
    excluded = f"{changed}, {end} = excluded.{end}"
    first = values.format("CAST(:key AS text)")
    return Dialect(
        title=title,
        get=f"{select} WHERE {key} AND {live}",
        get_many=f"{select} WHERE key = ANY(CAST(:keys AS text[])) AND {live}",
        upsert=f"{insert} {excluded}",
        row=f"({first}, {ends})",
        insert=(f"{insert} {excluded} WHERE s.{end} <= CURRENT_TIMESTAMP",),
        update=(
            f"UPDATE {t} AS s SET {changed}, {end} = excluded.{end} FROM (VALUES ({first}, {ends})) "
            f"AS excluded ({columns}, {end}) WHERE s.key = excluded.key AND s.{etag_is} AND "
            f"(s.{end} IS NULL OR s.{end} > CURRENT_TIMESTAMP)"
        ),
        delete=f"DELETE FROM {t} WHERE key = ANY(CAST(:keys AS text[]))",
        delete_if=f"DELETE FROM {t} WHERE {key} AND {etag_is} AND {live}",
        check=f"SELECT 1 FROM {t} WHERE {key} AND {etag_is} AND {live} FOR UPDATE",
        check_many=f"{select} WHERE key = ANY(CAST(:keys AS text[])) AND {live} ORDER BY key FOR UPDATE",
        keys=(
            f'SELECT key FROM {t} WHERE key COLLATE "C" > CAST(:after AS text) '
            f"AND left(key, char_length(CAST(:prefix AS text))) = CAST(:prefix AS text) AND {live} "
            'ORDER BY key COLLATE "C" LIMIT CAST(:limit AS bigint)'
        ),
        clean=(
            f"DELETE FROM {t} WHERE key IN (SELECT key FROM {t} WHERE {end} <= CURRENT_TIMESTAMP "
            "LIMIT CAST(:limit AS bigint) FOR UPDATE SKIP LOCKED)"
        ),
        claim=(
            f"INSERT INTO {m} AS s (key, value) VALUES ('{cleaned}', CAST(CURRENT_TIMESTAMP AS text)) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE CAST(s.value AS timestamptz) < "
            "CURRENT_TIMESTAMP - CAST(:seconds AS float8) * interval '1 second'",
        ),
        begin="BEGIN ISOLATION LEVEL READ COMMITTED",
        rights=_rights(t, m),
        **more,
    )


def _rights(*tables: str) -> str:
    schemas = ", ".join(sorted({table.rpartition(".")[0] or "public" for table in tables}))
    return (
        f"GRANT USAGE, CREATE ON SCHEMA {schemas} to make the tables, or tables that are there and "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(tables)}"
    )


def postgresql_v1(table: Sequence[str], metadata: Sequence[str]) -> Dialect:
    """Make the dialect of a table with jsonb, whose etags are the numbers of transactions."""

    def parameters(key: str, value: bytes, ttl: float | None) -> dict[str, Any]:
        text, binary = encoded(value, quoted=True)
        return {"key": key, "value": text, "binary": binary, "ttl": ttl}

    def read(row: Any) -> Stored:
        return Stored(decoded(row[1], row[2]), row[3], row[4])

    t, name = quoted(table), table[-1].lower()
    steps = (
        f"CREATE TABLE IF NOT EXISTS {t} (key text NOT NULL PRIMARY KEY, value jsonb NOT NULL, "
        "isbinary boolean NOT NULL, insertdate timestamp with time zone NOT NULL DEFAULT now(), "
        "updatedate timestamp with time zone NULL)",
        f"ALTER TABLE {t} ADD COLUMN IF NOT EXISTS expiredate timestamp with time zone",
        _row_id(t, name),
    )
    return _dialect(
        table,
        metadata,
        columns="key, value, isbinary",
        values="{}, CAST(CAST(:value AS text) AS jsonb), CAST(:binary AS boolean)",
        changed="value = excluded.value, isbinary = excluded.isbinary, updatedate = CURRENT_TIMESTAMP",
        selected="key, CAST(value AS text), isbinary, CAST(xmin AS text)",
        end="expiredate",
        etag_is="xmin = CAST(CAST(:etag_is AS text) AS xid)",
        cleaned="last-cleanup",
        parameters=parameters,
        read=read,
        etag=_xid,
        etag_invalid=True,
        migrate=partial(_migrate, table, metadata, "migrations", steps),
    )


def postgresql_v2(table: Sequence[str], metadata: Sequence[str], prefix: str, title: str = "PostgreSQL") -> Dialect:
    """Make the dialect of a table with bytes, whose etags are UUIDs."""

    def parameters(key: str, value: bytes, ttl: float | None) -> dict[str, Any]:
        return {"key": key, "value": value, "ttl": ttl}

    def read(row: Any) -> Stored:
        return Stored(bytes(row[1]), row[3], row[4])

    t, name = quoted(table), table[-1].lower()
    steps = (
        f"CREATE TABLE IF NOT EXISTS {t} (key text NOT NULL PRIMARY KEY, value bytea NOT NULL, "
        "etag uuid NOT NULL DEFAULT gen_random_uuid(), created_at timestamp with time zone NOT NULL DEFAULT now(), "
        "updated_at timestamp with time zone, expires_at timestamp with time zone); "
        f'CREATE INDEX IF NOT EXISTS "{name}_expires_at_idx" ON {t} (expires_at)',
        _row_id(t, name),
    )
    return _dialect(
        table,
        metadata,
        columns="key, value, etag",
        values="{}, CAST(:value AS bytea), gen_random_uuid()",
        changed="value = excluded.value, etag = excluded.etag, updated_at = CURRENT_TIMESTAMP",
        selected="key, value, false, CAST(etag AS text)",
        end="expires_at",
        etag_is="etag = CAST(CAST(:etag_is AS text) AS uuid)",
        cleaned=f"last-cleanup-state-v2-{metadata[-1].lower()}",
        title=title,
        parameters=parameters,
        read=read,
        etag=is_uuid,
        migrate=partial(_migrate, table, metadata, f"migrations-state-v2-{prefix}", steps),
    )


def _row_id(table: str, name: str) -> str:
    return (
        f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS row_id bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY; "
        f'CREATE UNIQUE INDEX IF NOT EXISTS "{name}_row_id_uidx" ON {table} (row_id)'
    )


def _xid(etag: str) -> str | None:
    fits = etag.isascii() and etag.isdigit() and len(etag) <= 10 and int(etag) < _XID_MAX
    return etag if fits else None


def _migrate(
    table: Sequence[str], metadata: Sequence[str], level_key: str, steps: Sequence[str], connection: Connection
) -> None:
    """Take the steps that the tables lack, one gateway after the other: they wait for the row ``lock``."""
    m, key = quoted(metadata), {"key": level_key}
    _make(connection, m)
    connection.execute(one(f"INSERT INTO {m} (key, value) VALUES ('lock', 'lock') ON CONFLICT (key) DO NOTHING"))
    connection.exec_driver_sql("BEGIN")
    try:
        connection.execute(one(f"SELECT value FROM {m} WHERE key = 'lock' FOR UPDATE"))
        row = connection.execute(one(f"SELECT value FROM {m} WHERE key = CAST(:key AS text)"), key).first()
        level = _level(row[0] if row else "0", m)
        _check_layout(table, "v1" if level_key == "migrations" else "v2", connection)
        for step in steps[level:]:
            for statement in step.split("; "):
                connection.exec_driver_sql(statement)
        if level < len(steps):
            connection.execute(
                one(
                    f"INSERT INTO {m} (key, value) VALUES (CAST(:key AS text), CAST(:level AS text)) "
                    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
                ),
                key | {"level": str(len(steps))},
            )
    except Exception:  # When it is given up, a server that stalls would be waited for; the connection is closed then.
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _check_layout(table: Sequence[str], version: str, connection: Connection) -> None:
    """Refuse a table that has not the columns of a version.

    Raises:
        StateError: It has those of the other one, or of neither.
    """
    asked = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(CAST(:name AS text)) AND attnum > 0"
    have = {str(name) for name in connection.execute(one(asked), {"name": quoted(table)}).scalars()}
    if not have or _LAYOUTS[version] <= have:
        return
    name, other = ".".join(table).lower(), "v2" if version == "v1" else "v1"
    setting = "tableName" if version == "v1" else "tablePrefix"
    if _LAYOUTS[other] <= have:
        told = f"the table {name} is of version {other}: set spec.version {other}, or another {setting}"
    else:
        told = f"there is a table {name} that no state store made: set another {setting}"
    raise StateError(told)


def _make(connection: Connection, metadata: str) -> None:
    """Make the table of metadata, unless there is one: whoever may not make tables can use those that are there."""
    for attempt in range(_RACE_ATTEMPTS):
        if connection.execute(one("SELECT to_regclass(CAST(:name AS text))"), {"name": metadata}).scalar() is not None:
            return
        try:
            connection.exec_driver_sql(
                f"CREATE TABLE IF NOT EXISTS {metadata} (key text NOT NULL PRIMARY KEY, value text NOT NULL)"
            )
        except exc.DBAPIError as error:
            if getattr(error.orig, "sqlstate", "") not in _RACES or attempt == _RACE_ATTEMPTS - 1:
                raise


def _level(text: str, metadata: str) -> int:
    if not text.isdigit():
        raise StateError(f"the table {metadata} holds the level of migration {text!r}, which is no number")
    return int(text)
