"""``bindings.sqlite``: statements on a SQLite file of this machine, whose rows are objects."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar, Self

from bindings.sql._binding import MAX_BYTES, Answer, SQLBinding, json_text
from bindings.sql._runner import Runner
from bindings.sql.sqlite import BUSY_SECONDS, DRIVER, File, Opening, parse
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, SECONDS, located, read_settings, setting

__all__ = ["SQLiteBinding"]


@dataclass(frozen=True, slots=True)
class SQLiteBindingSettings:
    """Settings of ``bindings.sqlite``."""

    connection_string: str = setting(
        "connectionString",
        "The path of a file, relative to the working directory of the gateway, a file: URL, or :memory:.",
        required=True,
        aliases=("url",),
        example="data/shop.db",
    )
    busy: float = setting(
        "busyTimeout", "How long to wait for another process that writes.", SECONDS, default=BUSY_SECONDS
    )
    without_wal: bool = setting(
        "disableWAL", "Whether to keep no write-ahead log, for a file on a network.", BOOLEAN, default=False
    )


class SQLiteBinding(SQLBinding):
    """Statements on a SQLite file; they read and write no other one."""

    title = "Does statements on a SQLite file of this machine."
    tested = "real files"
    settings: ClassVar[type[SQLiteBindingSettings]] = SQLiteBindingSettings
    product = "SQLite"
    bound = True
    blocks = True

    def __init__(self, settings: SQLiteBindingSettings, file: File) -> None:
        """Prepare; entering opens the file, and makes it if it is missing.

        Args:
            settings: Of the component.
            file: Where it is.
        """
        super().__init__(settings, settings.busy)
        self._file = file

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        settings = read_settings(component, cls.settings)
        with located(component, "connectionString"):
            return cls(settings, parse(settings.connection_string))

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        settings: SQLiteBindingSettings = self._settings
        name = "the database in memory" if self._file.path is None else self._file.path.name
        opening = Opening(name, self._file, settings.busy, settings.without_wal, _confine)
        driver = replace(DRIVER, interrupt=lambda connection: connection.interrupt())
        return opening.served(self._pool, driver, "binding-sqlite")

    async def _execute(self, connection: sqlite3.Connection, sql: str, params: Sequence[Any] | None) -> int:
        if params is not None:
            with closing(connection.execute(sql, _given(params))) as cursor:
                return max(0, cursor.rowcount)
        before = connection.total_changes
        connection.executescript(sql).close()
        if connection.total_changes == before:
            return 0
        [[changed]] = connection.execute("SELECT changes()").fetchall()
        return int(changed)

    async def _query(
        self, connection: sqlite3.Connection, sql: str, params: Sequence[Any] | None, answer: Answer
    ) -> None:
        with closing(connection.execute(sql, _given(params or ()))) as cursor:
            names = [column[0] for column in cursor.description or ()]
            for row in cursor:
                answer.take(names, row)
            answer.end()

    async def _undo(self, connection: sqlite3.Connection) -> bool:
        opened = connection.in_transaction
        if opened:
            connection.rollback()
        return opened


def _confine(connection: sqlite3.Connection) -> None:
    """Keep statements from other files: to attach one, or to write one as a copy, is refused; bound its values.

    What a statement makes is in the memory of this process.
    """

    def allows(action: int, name: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH and name != "" else sqlite3.SQLITE_OK

    connection.set_authorizer(allows)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)


def _given(params: Sequence[Any]) -> Sequence[Any]:
    return [_as(each) for each in params]


def _as(value: Any) -> Any:
    match value:
        case int() if value >= 2**63:
            return float(value)  # As SQLite has it where it stands in a statement.
        case None | bool() | int() | str():
            return value
        case Decimal():
            return float(value)
        case _:
            return json_text(value)
