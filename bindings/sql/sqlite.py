"""``state.sqlite``: state in a SQLite file of this machine, shared by the gateways that name the file.

The layout is that of Dapr 1.18. The file does not reach other machines, unless one node hosts the component for all:
``mesh.placement: backbone`` and a ``mesh host``.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import parse_qs, quote, unquote
from uuid import uuid4

from sqlalchemy import Connection, create_engine

from bindings.sql._dialect import INTERVAL, NAME, Dialect, Fault, one
from bindings.sql._runner import ENGINE, Runner, threaded
from bindings.sql._session import Driver, blocking
from bindings.sql._store import SQLStateStore, TableSettings
from bindings.sql._values import decoded, encoded, new_etag, utc_text
from mesh.errors import StateError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, SECONDS, located, read_settings, setting
from mesh.store import Stored

__all__ = ["BUSY_SECONDS", "DRIVER", "File", "Opening", "SQLiteStateStore", "parse"]

BUSY_SECONDS = 2.0
_PRAGMA = re.compile(r"([a-z_]+)[(=]\s*([A-Za-z0-9_-]+)\s*\)?")
_PRAGMAS = frozenset(
    {"cache_size", "journal_size_limit", "mmap_size", "synchronous", "temp_store", "wal_autocheckpoint"}
)
_DENIED = (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY)
_LIMITS = (sqlite3.SQLITE_TOOBIG,)


@dataclass(frozen=True, slots=True)
class SQLiteSettings(TableSettings):
    """Settings of ``state.sqlite``."""

    connection_string: str = setting(
        "connectionString",
        "The path of a file, relative to the working directory of the gateway, a file: URL, or :memory:.",
        required=True,
        aliases=("url",),
        example="data/state.db",
    )
    busy: float = setting(
        "busyTimeout", "How long to wait for another process that writes.", SECONDS, default=BUSY_SECONDS
    )
    without_wal: bool = setting(
        "disableWAL", "Whether to keep no write-ahead log, for a file on a network.", BOOLEAN, default=False
    )
    metadata: str = setting(
        "metadataTableName", "The table that remembers the version of the layout.", NAME, default="metadata"
    )
    clean_every: float = setting(
        "cleanupInterval",
        "How often expired rows are deleted; 0 or less = never.",
        INTERVAL,
        default=0.0,
        aliases=("cleanupIntervalInSeconds",),
    )


@dataclass(frozen=True)
class File:
    """Where a database is.

    Attributes:
        path: None = in memory.
        pragmas: To set on its connection.
    """

    path: Path | None
    pragmas: Mapping[str, str]


def parse(text: str) -> File:
    """Read a connection string.

    Raises:
        ValueError: It names no file, or asks for what a store cannot be.
    """
    path, _, query = text.partition("?") if text.startswith("file:") or text.startswith(":memory:") else (text, "", "")
    options = {name: values[-1] for name, values in parse_qs(query).items() if name != "_pragma"}
    if options.get("mode") == "ro" or options.get("immutable") in ("1", "true"):
        raise ValueError("asks for a file that is only read; this one is written")
    if "vfs" in options:
        raise ValueError("vfs is not supported")
    pragmas = {}
    for given in parse_qs(query).get("_pragma", ()):
        matched = _PRAGMA.fullmatch(given.strip().lower())
        if matched is None or matched[1] not in _PRAGMAS:
            known = "busy_timeout is the setting busyTimeout and journal_mode is disableWAL"
            raise ValueError(f"_pragma is one of {', '.join(sorted(_PRAGMAS))}; {known}")
        pragmas[matched[1]] = matched[2]
    if path.startswith("file:"):
        path = unquote(path.removeprefix("file:"))
        path = re.sub(r"\A//(localhost)?(?=/)", "", path)
    if path.startswith(":memory:") or options.get("mode") == "memory":
        return File(None, pragmas)
    if not path or "\0" in path:
        raise ValueError("must be the path of a file, a file: URL, or :memory:")
    try:
        return File(Path(path).expanduser(), pragmas)
    except RuntimeError as error:  # There is no such user.
        raise ValueError(str(error)) from None


class SQLiteStateStore(SQLStateStore):
    """A state store in a file."""

    bound = True
    title = "State in a SQLite file of this machine, shared by the gateways that name the file."
    tested = "real files"
    settings = SQLiteSettings

    def __init__(self, settings: SQLiteSettings, file: File) -> None:
        """Prepare; entering opens the file, and makes it if it is missing.

        Args:
            settings: Of the component.
            file: Where it is.
        """
        name = "the database in memory" if file.path is None else file.path.name
        super().__init__(
            settings, _dialect(name, settings.table, settings.metadata), settings.timeout, settings.clean_every
        )
        self.volatile = file.path is None
        self._file = file

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings.

        Raises:
            ConfigError: They are wrong, located.
        """
        settings = read_settings(component, cls.settings)
        with located(component, "connectionString"):
            return cls(settings, parse(settings.connection_string))

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        settings = cast("SQLiteSettings", self._settings)
        opening = Opening(self._dialect.title, self._file, settings.busy, settings.without_wal)
        return opening.served(self._stack, DRIVER, "state-sqlite")


@dataclass(frozen=True)
class Opening:
    """How a database is opened.

    Attributes:
        title: For people.
        file: Where it is.
        busy: Seconds to wait for another process that writes.
        without_wal: Whether to keep no write-ahead log.
        prepare: Given each new connection.
    """

    title: str
    file: File
    busy: float
    without_wal: bool
    prepare: Callable[[sqlite3.Connection], None] = lambda connection: None

    def served(self, stack: AsyncExitStack, driver: Driver, name: str) -> AbstractAsyncContextManager[Runner]:
        """Run work on it.

        Args:
            stack: Keeps what is in memory.
            driver: How it is used.
            name: Of the thread.
        """
        path = self.file.path
        if path is None:
            uri = f"file:mesh-{uuid4()}?mode=memory&cache=shared"
            keeper = sqlite3.connect(uri, uri=True, check_same_thread=False)  # The data live as long as a connection.
            stack.callback(keeper.close)
        else:
            uri = f"file:{quote(os.fsencode(path))}"
        # One connection in one thread: SQLite writes one after the other, and a queue costs less than locks.
        engine = create_engine(
            "sqlite+pysqlite://",
            creator=partial(self._open, uri),
            **ENGINE,
        )
        return threaded(engine, driver, 1, name)

    def _open(self, uri: str) -> sqlite3.Connection:
        path = self.file.path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            database = sqlite3.connect(uri, uri=True, timeout=self.busy, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"cannot use {self.title}: {error}") from None
        try:
            if path is not None:
                database.execute(f"PRAGMA journal_mode={'DELETE' if self.without_wal else 'WAL'}")
            database.execute("PRAGMA synchronous=FULL")
            for name, value in self.file.pragmas.items():
                database.execute(f"PRAGMA {name}={value}")
            self.prepare(database)
        except BaseException:
            database.close()
            raise
        return database


def _fault(error: BaseException) -> Fault:
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_CONSTRAINT:
        return Fault.EXISTS
    if code & 0xFF in _DENIED:
        return Fault.DENIED
    return Fault.LIMIT if code & 0xFF in _LIMITS else Fault.OTHER


DRIVER = blocking((sqlite3.Error,), _fault)


def _dialect(title: str, table: str, metadata: str) -> Dialect:
    t, m = f'"{table}"', f'"{metadata}"'
    live = "(expiration_time IS NULL OR expiration_time > CURRENT_TIMESTAMP)"
    select = f"SELECT key, value, is_binary, etag, CAST(strftime('%s', expiration_time) AS REAL) FROM {t}"
    insert = (
        f"INSERT INTO {t} (key, value, is_binary, etag, expiration_time) VALUES {{rows}} "
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value, is_binary = excluded.is_binary, etag = excluded.etag, "
        "expiration_time = excluded.expiration_time, update_time = CURRENT_TIMESTAMP"
    )
    conditions = f"WHERE key = :key AND etag = :etag_is AND {live}"

    def parameters(key: str, value: bytes, ttl: float | None) -> dict[str, Any]:
        text, binary = encoded(value, quoted=False)
        return {"key": key, "value": text, "binary": binary, "etag": new_etag(), "end": utc_text(ttl)}

    def read(row: Any) -> Stored:
        return Stored(decoded(row[1], bool(row[2])), row[3], row[4])

    return Dialect(
        title=title,
        get=f"{select} WHERE key = :key AND {live}",
        get_many=f"{select} WHERE key IN :keys AND {live}",
        upsert=insert,
        row="(:key, :value, :binary, :etag, :end)",
        parameters=parameters,
        insert=(f"{insert} WHERE {t}.expiration_time <= CURRENT_TIMESTAMP",),
        update=(
            f"UPDATE {t} SET value = :value, is_binary = :binary, etag = :etag, expiration_time = :end, "
            f"update_time = CURRENT_TIMESTAMP {conditions}"
        ),
        delete=f"DELETE FROM {t} WHERE key IN :keys",
        delete_if=f"DELETE FROM {t} {conditions}",
        check=f"SELECT 1 FROM {t} {conditions}",
        check_many=f"{select} WHERE key IN :keys AND {live}",
        keys=(
            f"SELECT key FROM {t} WHERE key > :after AND key >= :prefix "
            f"AND substr(key, 1, length(:prefix)) = :prefix AND {live} ORDER BY key LIMIT :limit"
        ),
        clean=(
            f"DELETE FROM {t} WHERE key IN "
            f"(SELECT key FROM {t} WHERE expiration_time <= CURRENT_TIMESTAMP LIMIT :limit)"
        ),
        claim=(
            f"INSERT INTO {m} (key, value) VALUES ('last-cleanup', CURRENT_TIMESTAMP) ON CONFLICT (key) DO UPDATE SET "
            f"value = excluded.value WHERE CAST(strftime('%s', {m}.value) AS INTEGER) <= "
            "CAST(strftime('%s', 'now') AS INTEGER) - :seconds",
        ),
        begin="BEGIN IMMEDIATE",
        read=read,
        migrate=partial(_migrate, title, table, metadata),
        etag=lambda etag: etag,
        rights="to write the file and its folder",
    )


_STEPS: Sequence[str] = (
    "CREATE TABLE IF NOT EXISTS {t} (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL, is_binary BOOLEAN NOT NULL, "
    "etag TEXT NOT NULL, expiration_time TIMESTAMP DEFAULT NULL, "
    "update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)",
)


def _migrate(title: str, table: str, metadata: str, connection: Connection) -> None:
    """Take the steps that the file lacks, in a transaction: whoever comes at the same time waits."""
    m = f'"{metadata}"'
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        tables = set(connection.execute(one("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars())
        if {"entries", "counter"} <= tables and table not in tables:
            told = "has the layout of an early version of brokermesh, which is not read any more"
            raise StateError(f"{title} {told}; move it away, or name another file")
        connection.exec_driver_sql(
            f"CREATE TABLE IF NOT EXISTS {m} (key text NOT NULL PRIMARY KEY, value text NOT NULL)"
        )
        found = connection.execute(one(f"SELECT value FROM {m} WHERE key = 'migrations'")).scalar()
        level = int(found) if found is not None and str(found).isdigit() else 0
        for step in _STEPS[level:]:
            connection.exec_driver_sql(step.format(t=f'"{table}"'))
        if level < len(_STEPS):
            connection.execute(
                one(f"INSERT OR REPLACE INTO {m} (key, value) VALUES ('migrations', :level)"),
                {"level": str(len(_STEPS))},
            )
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
