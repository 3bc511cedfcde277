"""``state.sqlite``: state in a SQLite file of this machine, shared by the gateways that name the file.

The file's layout is brokermesh's own. It does not reach other machines, unless one node hosts the component
for all: ``mesh.placement: backbone`` and a ``mesh host``.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, TypeVar
from urllib.parse import unquote, urlsplit

from mesh.blocks.store import KeyValueStateStore
from mesh.broker import Entry, Write
from mesh.errors import ConfigError, ConflictError, StateError
from mesh.key_value import check_key
from mesh.resources.component import Component
from mesh.resources.settings import Setting, ignored, read_settings, setting

__all__ = ["FileKeyValue", "SQLiteStateStore"]

BUSY_SECONDS = 10.0
PAGE_KEYS = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, expires_at REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS expiries ON entries (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS counter (revision INTEGER NOT NULL);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter);
"""
_T = TypeVar("_T")


class FileKeyValue:
    """Keys and values in one file; entering opens it."""

    def __init__(self, path: Path) -> None:
        """Prepare.

        Args:
            path: The file; its directory is made if it is missing.
        """
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="file-key-value")
        self._database: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            StateError: It cannot be opened.
        """
        try:
            await self._run(self._open)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the file."""
        await self._run(self._close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], _T]) -> _T:
        """Work in the file's own thread; a cancelled caller does not interrupt it."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"cannot use {self._path.name}: {error}") from error

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.executescript(_SCHEMA)
        self._database = database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    @property
    def _open_database(self) -> sqlite3.Connection:
        if self._database is None:
            raise StateError(f"{self._path.name} is closed")
        return self._database

    async def get(self, key: str, *, strong: bool = False) -> Entry | None:
        """Read a key; every read is strong here."""
        check_key(key)
        return await self._run(lambda: self._read(key))

    def _read(self, key: str) -> Entry | None:
        row = self._open_database.execute(
            "SELECT value, revision, expires_at FROM entries WHERE key = ? AND (expires_at IS NULL OR expires_at > ?)",
            (key, time.time()),
        ).fetchone()
        return None if row is None else Entry(bytes(row[0]), row[1], row[2])

    async def apply(self, operations: Sequence[Write]) -> None:
        """Do all or nothing, in one transaction.

        Raises:
            ConflictError: A revision differs from the expected one; nothing was done.
        """
        for operation in operations:
            check_key(operation.key)
        if operations:
            await self._run(lambda: self._apply(operations))

    def _apply(self, operations: Sequence[Write]) -> None:
        database = self._open_database
        now = time.time()
        database.execute("BEGIN IMMEDIATE")
        try:
            database.execute("DELETE FROM entries WHERE expires_at <= ?", (now,))
            for operation in operations:
                if operation.expected is not None:
                    entry = self._read(operation.key)
                    if (entry.revision if entry else 0) != operation.expected:
                        raise ConflictError(f"key {operation.key!r} is at another revision")
            for operation in operations:
                if not operation.check:
                    self._write(database, operation, now)
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise

    def _write(self, database: sqlite3.Connection, operation: Write, now: float) -> None:
        if operation.value is None:
            database.execute("DELETE FROM entries WHERE key = ?", (operation.key,))
            return
        (revision,) = database.execute("UPDATE counter SET revision = revision + 1 RETURNING revision").fetchone()
        expires_at = None if operation.ttl is None else now + operation.ttl
        database.execute(
            "INSERT OR REPLACE INTO entries (key, value, revision, expires_at) VALUES (?, ?, ?, ?)",
            (operation.key, operation.value, revision, expires_at),
        )

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Iterate over live keys, in order."""
        after = ""
        while True:
            page = await self._run(partial(self._page, prefix, after))
            for key in page:
                yield key
            if len(page) < PAGE_KEYS:
                return
            after = page[-1]

    def _page(self, prefix: str, after: str) -> list[str]:
        rows = self._open_database.execute(
            "SELECT key FROM entries WHERE key > ? AND substr(key, 1, ?) = ? "
            "AND (expires_at IS NULL OR expires_at > ?) ORDER BY key LIMIT ?",
            (after, len(prefix), prefix, time.time(), PAGE_KEYS),
        )
        return [row[0] for row in rows]


@dataclass(frozen=True, slots=True)
class SQLiteSettings:
    """Settings of ``state.sqlite``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("the tables are brokermesh's own", "tableName", "metadataTableName"),
        *ignored("what expired is not seen, and is deleted with the next write", "cleanupInterval"),
        *ignored("the file has a write-ahead log", "disableWAL", anyway=("false",)),
        *ignored("the times are fixed", "timeout", "busyTimeout", "timeoutInSeconds"),
    )

    connection_string: str = setting(
        "connectionString", "The path of a file, or a `file:` URL.", required=True, example="state.db"
    )


class SQLiteStateStore(KeyValueStateStore):
    """Keys and values in a SQLite file of this machine, shared by the gateways that name the file."""

    bound = True
    tested = "real files"
    settings = SQLiteSettings

    def __init__(self, path: Path) -> None:
        """Prepare; entering opens the file, and makes it if it is missing."""
        self._file = FileKeyValue(path)
        super().__init__(self._file)

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings.

        Raises:
            ConfigError: The connection string is missing, or names no file.
        """
        text = read_settings(component, cls.settings).connection_string
        path = unquote(urlsplit(text).path) if text.startswith("file:") else text
        if not path or ":memory:" in path or "\0" in path:
            message = "must be the path of a file, or a file: URL"
            raise ConfigError(component.problem(message, setting="connectionString"))
        try:
            return cls(Path(path).expanduser())
        except RuntimeError as error:  # There is no such user.
            raise ConfigError(component.problem(str(error), setting="connectionString")) from None

    async def __aenter__(self) -> Self:
        """Open the file."""
        await self._file.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the file."""
        await self._file.__aexit__(*exc_info)
