"""``state.sqlserver``: state in Microsoft SQL Server or Azure SQL, in the layout of Dapr 1.18.

It was not run against the real service: its statements were written from the public documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self, cast

from sqlalchemy import Connection, create_engine

from bindings.sql._ado import SQLServer, parse
from bindings.sql._dialect import NAME, Dialect, Fault, one
from bindings.sql._runner import ENGINE, Runner, threaded
from bindings.sql._session import blocking
from bindings.sql._store import SQLStateStore, TableSettings
from bindings.sql._values import encoded
from mesh.errors import ConfigError, StateError
from mesh.registry import needs
from mesh.resources.component import Component
from mesh.resources.settings import Kind, Setting, ignored, located, read_settings, setting, whole
from mesh.store import Stored
from mesh.values import parse_bool

__all__ = ["LOGIN_BY_CLOUD", "NO_CLOUD", "SQLServerStateStore", "fault", "load_driver"]

_CONNECTIONS = 8
_MAX_KEY = 450  # Characters of NVARCHAR that an index takes.
_CHUNK = 400  # A statement has at most 2,100 parameters.
_LONGEST_TTL = 2**31 - 1
_AGAIN = ("(1205)", "(1222)", "(3960)")
_DENIED = ("(229)", "(230)", "(262)", "(1088)", "(2760)")
_EXISTS = ("(2601)", "(2627)")
_LOST = ("08", "HYT", "HY010", "10054", "01000", "01002")  # States of ODBC; after a time-out nobody knows.
_LIMITS = ("(2628)", "(8152)", "(1946)")
_BINARY = "Latin1_General_100_BIN2"


def _string_only(text: str) -> str:
    if text.lower() != "string":
        raise ValueError("is string; keys of other types are not supported")
    return "string"


def _refused(text: str) -> bool:
    if parse_bool(text, words=True):
        raise ValueError("is not supported: log in with a password")
    return False


NO_CLOUD = Kind("boolean, false", _refused)
LOGIN_BY_CLOUD = ignored(
    "it is a part of logging in by Azure AD, which is not supported",
    *("azureTenantId", "azureClientId", "azureClientSecret", "azureCertificate", "azureCertificateFile"),
    *("azureCertificatePassword", "azureEnvironment"),
)


@dataclass(frozen=True, slots=True)
class SQLServerSettings(TableSettings):
    """Settings of ``state.sqlserver``, which was not run against the real service."""

    connection_string: str = setting(
        "connectionString",
        "Where the server is and how to log in: Server=…;User Id=…;Password=…, or a sqlserver:// URL.",
        required=True,
        secret=True,
        aliases=("url",),
        example="Server=localhost;User Id=sa;Password=example;Database=shop",
    )
    database: str = setting(
        "databaseName",
        "The database, made if it is missing; that of connectionString goes before.",
        NAME,
        default="dapr",
    )
    schema: str = setting("schemaName", "The schema, made if it is missing.", NAME, default="dbo", aliases=("schema",))
    key_type: str = setting("keyType", "Only string.", Kind("string", _string_only), default="string")
    key_length: int = setting(
        "keyLength", "The most characters of a key, when the table is made.", whole(1, _MAX_KEY), default=200
    )
    max_connections: int = setting("maxConns", "Most connections.", whole(1), default=_CONNECTIONS)
    use_azure_ad: bool = setting("useAzureAD", "Only false: log in by Azure AD.", NO_CLOUD, default=False)
    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored(
            "make computed columns and their indexes with the table; nothing here reads them", "indexedProperties"
        ),
        *ignored("reads are cut into statements as the server takes them", "bulkGetChunkSize"),
        *LOGIN_BY_CLOUD,
    )


class SQLServerStateStore(SQLStateStore):
    """State in SQL Server, in the tables of version v1, for JSON alone, or v2."""

    tested = "not run against the real service"
    settings = SQLServerSettings
    versions = ("v1", "v2")

    def __init__(self, settings: SQLServerSettings, server: SQLServer, version: str) -> None:
        """Prepare; entering connects.

        Args:
            settings: Of the component.
            server: Where it is.
            version: Of the component.
        """
        dialect = _dialect(settings, binary=version == "v2")
        super().__init__(settings, dialect, settings.timeout, settings.clean_every)
        self._server = server

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; the component's version decides the tables.

        Raises:
            ConfigError: They are wrong, located.
        """
        settings = read_settings(component, cls.settings)
        if problem := component.version_problem(cls.versions):
            raise ConfigError(problem)
        with located(component, "connectionString"):
            return cls(settings, parse(settings.connection_string), component.version)

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        pyodbc = load_driver("state.sqlserver")
        settings = cast("SQLServerSettings", self._settings)
        engine = create_engine(
            "mssql+pyodbc://",
            creator=partial(self._open, pyodbc),
            **ENGINE,
        )
        driver = blocking((pyodbc.Error,), fault)
        return threaded(engine, driver, settings.max_connections, "state-sqlserver")

    def _open(self, pyodbc: Any) -> Any:
        settings, server = cast("SQLServerSettings", self._settings), self._server
        database = server.database or settings.database
        try:
            within = server.timeout or max(1, int(settings.timeout))
            connection = pyodbc.connect(server.odbc, autocommit=True, timeout=within)
            connection.timeout = max(1, int(settings.timeout))
            name = database.replace("'", "''")
            connection.execute(f"IF DB_ID(N'{name}') IS NULL CREATE DATABASE [{database.replace(']', ']]')}]")
            connection.execute(f"USE [{database.replace(']', ']]')}]")
        except pyodbc.Error as error:
            reason = str(error.args[-1]).partition("\n")[0]
            raise StateError(f"cannot connect to the database at {server.server}: {reason}") from None
        return connection


def load_driver(kind: str) -> Any:
    """Import pyodbc, which fails where the machine has no ODBC; only who uses it needs that.

    Args:
        kind: The type of the component, for people.

    Raises:
        StateError: The machine has no ODBC.
    """
    try:
        import pyodbc
    except ModuleNotFoundError:
        raise needs(kind, "pyodbc") from None
    except ImportError as error:
        raise StateError(f"{kind} needs ODBC on this machine, with Microsoft's driver 18: {error}") from None
    return pyodbc


def fault(error: BaseException) -> Fault:
    """Say what an error means."""
    state, told = (str(error.args[0]), str(error.args[-1])) if error.args else ("", "")
    if state.startswith(_LOST):
        return Fault.LOST
    if state == "40001" or any(number in told for number in _AGAIN):
        return Fault.AGAIN
    if any(number in told for number in _EXISTS):
        return Fault.EXISTS
    if any(number in told for number in _DENIED):
        return Fault.DENIED
    return Fault.LIMIT if any(number in told for number in _LIMITS) else Fault.OTHER


def _row_version(etag: str) -> bytes | None:
    try:
        version = bytes.fromhex(etag)
    except ValueError:
        return None
    return version if len(version) == 8 else None


def _parameters(binary: bool, key: str, value: bytes, ttl: float | None) -> dict[str, Any]:
    text, other = encoded(value, quoted=False)
    row = {"key": key, "value": text, "ttl": None if ttl is None else min(ttl, _LONGEST_TTL)}
    if binary:
        return row | {"value": None if other else text, "bytes": value if other else None, "binary": other}
    if other:
        raise StateError("the tables of version v1 hold JSON alone; for other bytes use version v2")
    return row


def _read(found: Any) -> Stored:
    value = bytes(found[2]) if found[3] else (found[1] or "").encode()
    return Stored(value, bytes(found[4]).hex(), None if found[5] is None else float(found[5]))


def _dialect(settings: SQLServerSettings, *, binary: bool) -> Dialect:
    t, m = f"[{settings.schema}].[{settings.table}]", f"[{settings.schema}].[{settings.metadata}]"
    live = "([ExpireDate] IS NULL OR [ExpireDate] > GETDATE())"
    utc = "DATEADD(MINUTE, DATEDIFF(MINUTE, GETDATE(), GETUTCDATE()), [ExpireDate])"
    values = "[Data], [BinaryData], [isBinary]" if binary else "[Data], NULL, 0"
    select = f"SELECT [Key], {values}, [RowVersion], DATEDIFF_BIG(MILLISECOND, '1970-01-01', {utc}) / 1000.0 FROM {t}"
    conditions = f"WHERE [Key] = :key AND [RowVersion] = :etag_is AND {live}"
    columns = ("Data", "BinaryData", "isBinary") if binary else ("Data",)
    end = "CASE WHEN {0} IS NULL THEN NULL ELSE DATEADD(SECOND, CEILING({0}), GETDATE()) END".format
    changed = ", ".join(f"[{name}] = s.[{name}]" for name in columns)
    names, given = (", ".join(f"{prefix}[{name}]" for name in columns) for prefix in ("", "s."))
    merge = (
        f"MERGE {t} WITH (HOLDLOCK) AS t USING (VALUES {{rows}}) AS s ([Key], {names}, [TTL]) ON t.[Key] = s.[Key] "
        f"WHEN MATCHED{{over}} THEN UPDATE SET {changed}, [UpdateDate] = GETDATE(), [ExpireDate] = {end('s.[TTL]')} "
        f"WHEN NOT MATCHED THEN INSERT ([Key], {names}, [ExpireDate]) VALUES (s.[Key], {given}, {end('s.[TTL]')});"
    )
    row = ":value, CAST(:bytes AS VARBINARY(MAX)), CAST(:binary AS BIT)" if binary else ":value"

    update = changed.replace("s.[Data]", ":value").replace("s.[BinaryData]", "CAST(:bytes AS VARBINARY(MAX))")
    return Dialect(
        title="SQL Server",
        get=f"{select} WHERE [Key] = :key AND {live}",
        get_many=f"{select} WHERE [Key] IN :keys AND {live}",
        upsert=merge.replace("{over}", ""),
        row=f"(:key, {row}, CAST(:ttl AS float))",
        parameters=partial(_parameters, binary),
        insert=(merge.replace("{over}", " AND t.[ExpireDate] <= GETDATE()"),),
        update=(
            f"UPDATE {t} SET {update.replace('s.[isBinary]', ':binary')}, [UpdateDate] = GETDATE(), "
            f"[ExpireDate] = {end('CAST(:ttl AS float)')} {conditions}"
        ),
        delete=f"DELETE FROM {t} WHERE [Key] IN :keys",
        delete_if=f"DELETE FROM {t} {conditions}",
        check=f"SELECT 1 FROM {t} WITH (UPDLOCK, HOLDLOCK) {conditions}",
        check_many=f"{select} WITH (UPDLOCK, HOLDLOCK) WHERE [Key] IN :keys AND {live}",
        keys=(
            f"SELECT TOP (:limit) [Key] FROM {t} WHERE [Key] COLLATE {_BINARY} > :after "
            f"AND LEFT([Key], LEN(:prefix + N'.') - 1) COLLATE {_BINARY} = :prefix AND {live} "
            f"ORDER BY [Key] COLLATE {_BINARY}"
        ),
        clean=f"DELETE TOP (:limit) FROM {t} WHERE [ExpireDate] <= GETDATE()",
        claim=(
            f"UPDATE {m} SET [Value] = CONVERT(NVARCHAR(MAX), GETDATE(), 21) WHERE [Key] = N'last-cleanup' "
            "AND DATEDIFF_BIG(MILLISECOND, CONVERT(datetime2, [Value], 21), GETDATE()) "
            ">= CAST(:seconds AS float) * 1000",
            f"INSERT INTO {m} ([Key], [Value]) VALUES (N'last-cleanup', CONVERT(NVARCHAR(MAX), GETDATE(), 21))",
        ),
        begin="BEGIN TRANSACTION",
        read=_read,
        migrate=partial(_migrate, _tables(settings, t, m, binary=binary)),
        etag=_row_version,
        rights=(
            f"CREATE TABLE, CREATE SCHEMA unless there is {settings.schema}, and ALTER, SELECT, INSERT, UPDATE, DELETE "
            "on it; or tables that are there and the last four"
        ),
        etag_invalid=True,
        max_key=settings.key_length,
        chunk=_CHUNK,
    )


def _tables(settings: SQLServerSettings, table: str, metadata: str, *, binary: bool) -> Sequence[str]:
    key = f"[Key] NVARCHAR({settings.key_length}) COLLATE {_BINARY} CONSTRAINT [PK_{{}}] PRIMARY KEY"
    if binary:
        values = "[Data] NVARCHAR(MAX) NULL, [BinaryData] VARBINARY(MAX) NULL, [isBinary] BIT NOT NULL DEFAULT(0)"
    else:
        values = "[Data] NVARCHAR(MAX) NOT NULL"
    return (
        f"IF SCHEMA_ID(N'{settings.schema}') IS NULL EXEC(N'CREATE SCHEMA [{settings.schema}]')",
        f"IF OBJECT_ID(N'{table}') IS NULL CREATE TABLE {table} ({key.format(settings.table)}, {values}, "
        "[InsertDate] DateTime2 NOT NULL DEFAULT(GETDATE()), [UpdateDate] DateTime2 NULL, [ExpireDate] DateTime2 NULL, "
        "[RowVersion] ROWVERSION NOT NULL)",
        f"IF OBJECT_ID(N'{metadata}') IS NULL CREATE TABLE {metadata} ({key.format(settings.metadata)}, "
        "[Value] NVARCHAR(MAX) NOT NULL)",
    )


def _migrate(statements: Sequence[str], connection: Connection) -> None:
    """Make what is missing, one gateway after the other."""
    connection.exec_driver_sql("BEGIN TRANSACTION")
    try:
        lock = "EXEC sp_getapplock @Resource = N'brokermesh', @LockMode = N'Exclusive', @LockTimeout = 60000"
        connection.execute(one(lock))
        for statement in statements:
            connection.exec_driver_sql(statement)
    except Exception:
        connection.exec_driver_sql("IF @@TRANCOUNT > 0 ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
