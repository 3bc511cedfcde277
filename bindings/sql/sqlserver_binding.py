"""``bindings.sqlserver``: statements on SQL Server or Azure SQL, whose rows are objects.

It was not run against the real service: it was written from the public documentation.

Source: Dapr's documentation of the SQL Server binding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, Self

from sqlalchemy import create_engine

from bindings.sql._ado import SQLServer, parse
from bindings.sql._binding import Answer, SQLBinding, as_json, json_text
from bindings.sql._runner import ENGINE, Runner, threaded
from bindings.sql._session import blocking
from bindings.sql.sqlserver import LOGIN_BY_CLOUD, NO_CLOUD, fault, load_driver
from mesh.errors import StateError
from mesh.resources.component import Component
from mesh.resources.settings import COUNT, LIMIT_SECONDS, Setting, ignored, located, read_settings, setting

__all__ = ["SQLServerBinding", "calling"]

_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class SQLServerBindingSettings:
    """Settings of ``bindings.sqlserver``, which was not run against the real service."""

    connection_string: str = setting(
        "connectionString",
        "Where the database is and how to log in: Server=…;User Id=…;Password=…;Database=…, or a sqlserver:// URL.",
        required=True,
        secret=True,
        aliases=("url",),
        example="Server=localhost;User Id=sa;Password=example;Database=shop",
    )
    max_connections: int = setting("maxOpenConns", "Most connections.", COUNT, default=_CONNECTIONS)
    timeout: float = setting("timeout", "How long getting a connection may take.", LIMIT_SECONDS, default=20.0)
    use_azure_ad: bool = setting("useAzureAD", "Only false: log in by Azure AD.", NO_CLOUD, default=False)
    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("a connection is kept until it is lost", "maxIdleConns", "connMaxLifetime", "connMaxIdleTime"),
        *LOGIN_BY_CLOUD,
    )


class SQLServerBinding(SQLBinding):
    """Statements on SQL Server."""

    title = "Does statements on SQL Server or Azure SQL."
    tested = "not run against the real service"
    settings: ClassVar[type[SQLServerBindingSettings]] = SQLServerBindingSettings
    product = "SQL Server"
    blocks = True

    def __init__(self, settings: SQLServerBindingSettings, server: SQLServer) -> None:
        """Prepare; entering connects.

        Args:
            settings: Of the component.
            server: Where it is.
        """
        super().__init__(settings, settings.timeout)
        self._server = server
        self._cursors: dict[int, Any] = {}

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        settings = read_settings(component, cls.settings)
        with located(component, "connectionString"):
            return cls(settings, parse(settings.connection_string))

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        pyodbc = load_driver("bindings.sqlserver")
        engine = create_engine("mssql+pyodbc://", creator=partial(self._open, pyodbc), **ENGINE)
        driver = replace(blocking((pyodbc.Error,), fault), interrupt=self._interrupt)
        return threaded(engine, driver, self._settings.max_connections, "binding-sqlserver")

    def _open(self, pyodbc: Any) -> Any:
        server = self._server
        try:
            within = server.timeout or max(1, int(self._settings.timeout))
            connection = pyodbc.connect(server.odbc, autocommit=True, timeout=within)
            if server.database:
                connection.execute(f"USE [{server.database.replace(']', ']]')}]")
        except pyodbc.Error as error:
            reason = str(error.args[-1]).partition("\n")[0]
            raise StateError(f"cannot connect to the database at {server.server}: {reason}") from None
        return connection

    def _interrupt(self, connection: Any) -> None:
        cursor = self._cursors.get(id(connection))
        if cursor is not None:
            cursor.cancel()

    async def _execute(self, connection: Any, sql: str, params: Sequence[Any] | None) -> int:
        changed = 0
        with self._begun(connection, sql, params) as cursor:
            while True:
                if cursor.description is None:
                    changed = max(0, cursor.rowcount)
                if not cursor.nextset():
                    return changed

    async def _query(self, connection: Any, sql: str, params: Sequence[Any] | None, answer: Answer) -> None:
        with self._begun(connection, sql, params) as cursor:
            while cursor.description is None:  # A procedure may tell counts first.
                if not cursor.nextset():
                    return
            names = [column[0] for column in cursor.description]
            for row in cursor:
                answer.take(names, row)
            answer.end()

    async def _undo(self, connection: Any) -> bool:
        [[count]] = connection.execute("SELECT @@TRANCOUNT").fetchall()
        if count:
            connection.execute("IF @@TRANCOUNT > 0 ROLLBACK")
        return bool(count)

    def _encode(self, value: Any) -> Any:
        return str(value) if isinstance(value, Decimal) else as_json(value)

    @contextmanager
    def _begun(self, connection: Any, sql: str, params: Sequence[Any] | None) -> Iterator[Any]:
        """Do a statement; its parameters are called ``@p1``, ``@p2`` and so on."""
        cursor = connection.cursor()
        self._cursors[id(connection)] = cursor
        try:
            cursor.execute(*calling(sql, params))
            yield cursor
        finally:
            del self._cursors[id(connection)]
            cursor.close()


def calling(sql: str, params: Sequence[Any] | None) -> Sequence[Any]:
    """Give what ODBC is given for a statement whose parameters have names."""
    if params is None:
        return (sql,)
    typed = [_typed(each) for each in params]
    declared = ", ".join(f"@p{number} {name}" for number, (name, _) in enumerate(typed, 1))
    return (f"EXEC sp_executesql ?, ?{', ?' * len(typed)}", sql, declared, *(value for _, value in typed))


def _typed(value: Any) -> tuple[str, Any]:
    match value:
        case bool():
            return "bit", value
        case int() if value < 2**63:
            return "bigint", value
        case int() | Decimal():
            exact = len(Decimal(value).as_tuple().digits) <= 38  # Else the nearest that a float has.
            return ("nvarchar(40)", str(value)) if exact and "E" not in str(value) else ("float", float(value))
        case None | str():
            return "nvarchar(max)", value
        case _:
            return "nvarchar(max)", json_text(value)
