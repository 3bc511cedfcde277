"""``state.mysql``: state in MySQL or MariaDB, in the layout of Dapr 1.18."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self, cast

import asyncmy
from asyncmy import errors
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bindings.sql._dialect import NAME, Dialect, Fault, one
from bindings.sql._godsn import DataSource, parse
from bindings.sql._runner import ENGINE, Bounds, Runner, pooled
from bindings.sql._session import Driver
from bindings.sql._store import SQLStateStore, TableSettings
from bindings.sql._values import decoded, encoded, new_etag
from mesh.errors import StateError
from mesh.resources.component import Component
from mesh.resources.settings import LIMIT_SECONDS, Setting, ignored, located, read_settings, setting, whole
from mesh.store import Stored

__all__ = ["DRIVER", "MySQLStateStore", "engine_of", "open_connection"]

logging.getLogger("asyncmy").setLevel(logging.ERROR)  # Below, it writes the server's warnings, with what callers sent.
MAX_KEY = 255
_CONNECTIONS = 10
_AGAIN = frozenset({1205, 1213, 3101})
_DENIED = frozenset({1044, 1142, 1143, 1227, 1370})
_EXISTS = 1062
_LIMITS = frozenset({1071, 1118, 1153, 1301, 1406, 2020})
_LOST = frozenset({1053, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 2002, 2003, 2006, 2013, 2014, 2055, 4031})
_LAST_TIMESTAMP = 2147483647


@dataclass(frozen=True, slots=True)
class MySQLSettings(TableSettings):
    """Settings of ``state.mysql``."""

    connection_string: str = setting(
        "connectionString",
        "Where the server is and how to log in: user:password@tcp(host:3306)/, perhaps with options behind a '?'.",
        required=True,
        secret=True,
        aliases=("url",),
        example="root:example@tcp(localhost:3306)/?allowNativePasswords=true",
    )
    database: str = setting(
        "schemaName",
        "The database, made if it is missing; unset = that of connectionString, else dapr_state_store.",
        NAME,
        default="",
        example="shop",
    )
    timeout: float = setting(
        "timeoutInSeconds",
        "How long an operation may take.",
        LIMIT_SECONDS,
        default=20.0,
        aliases=("timeout",),
    )
    pem_path: str = setting(
        "pemPath",
        "Path of the certificates that the server's is checked by, with tls=custom.",
        default="",
        example="ca.pem",
    )
    max_connections: int = setting("maxConns", "Most connections.", whole(1), default=_CONNECTIONS)
    ignored: ClassVar[tuple[Setting, ...]] = ignored("certificates are read from a file: pemPath", "pemContents")


class MySQLStateStore(SQLStateStore):
    """State in MySQL or MariaDB."""

    tested = "MariaDB 10.11"
    settings = MySQLSettings

    def __init__(self, settings: MySQLSettings, source: DataSource) -> None:
        """Prepare; entering connects.

        Args:
            settings: Of the component.
            source: Where the server is.
        """
        database = settings.database or source.database or "dapr_state_store"
        dialect = _dialect(database, settings.table, settings.metadata)
        super().__init__(settings, dialect, settings.timeout, settings.clean_every)
        self._source = source

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings.

        Raises:
            ConfigError: They are wrong, located.
        """
        settings = read_settings(component, cls.settings)
        with located(component, "connectionString"):
            source = parse(settings.connection_string)
            if source.tls == "custom" and not settings.pem_path:
                raise ValueError("has tls=custom, which needs the setting pemPath")
        return cls(settings, source)

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        settings = cast("MySQLSettings", self._settings)
        connect = partial(open_connection, self._source, settings.timeout, settings.pem_path)
        return pooled(engine_of(connect, self._source), DRIVER, Bounds(settings.max_connections))


async def open_connection(source: DataSource, seconds: float, pem_path: str, **more: Any) -> Any:
    """Open a connection.

    Args:
        source: Where the server is.
        seconds: That it may take, unless the source says so.
        pem_path: Of the certificates that the server's is checked by; empty = those of the machine.
        more: Of the driver.

    Raises:
        StateError: It cannot be opened; the text says why, and holds no password.
    """
    options: dict[str, Any] = {
        "user": source.user or None,
        "password": source.password,
        "host": source.host,
        "port": source.port,
        "unix_socket": source.socket or None,
        "connect_timeout": source.connect_timeout or seconds,
        "charset": "utf8mb4",
        "autocommit": True,
        **more,
    }
    try:
        return await asyncmy.connect(**options, ssl=_tls(source, pem_path))
    except (OSError, errors.Error) as error:
        if source.tls == "preferred":
            with suppress(OSError, errors.Error):
                return await asyncmy.connect(**options)
        reason = str(error.args[-1] if error.args else error).partition("\n")[0]
        raise StateError(f"cannot connect to the database at {source.place}: {reason}") from None


def engine_of(connect: Callable[..., Coroutine[Any, Any, Any]], source: DataSource) -> AsyncEngine:
    """Make what opens connections, with the variables that every session has."""
    engine = create_async_engine(
        "mysql+asyncmy://",
        async_creator=connect,
        skip_autocommit_rollback=True,
        **ENGINE,
    )
    variables = "".join(f", {name} = {value}" for name, value in source.variables.items())

    @event.listens_for(engine.sync_engine, "connect")
    def _begin(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        # Without strictness a key that is too long would be cut; other isolation locks what is between keys.
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(f"SET time_zone = '+00:00', sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'){variables}")
        cursor.close()

    return engine


async def _rows(connection: Any, sql: str, values: Sequence[Any]) -> Sequence[Any]:
    async with connection.cursor() as cursor:
        await cursor.execute(sql, values)
        found: Sequence[Any] = await cursor.fetchall()
        return found


async def _count(connection: Any, sql: str, values: Sequence[Any]) -> int:
    async with connection.cursor() as cursor:
        await cursor.execute(sql, values)
        changed: int = cursor.rowcount
        return changed


def _abort(connection: Any) -> None:
    if connection._transport is not None:
        connection._transport.abort()  # A peer that reads nothing would keep it open for what is left to send.
    connection.close()


def _gone(connection: Any) -> bool:
    transport = connection._transport
    return not connection.connected or transport is None or transport.is_closing()


def _tls(source: DataSource, pem_path: str) -> ssl.SSLContext | None:
    if source.tls == "false":
        return None
    try:
        context = ssl.create_default_context(cafile=pem_path or None)
    except OSError as error:
        raise StateError(f"cannot read the certificates of pemPath: {error}") from None
    if source.tls in ("skip-verify", "preferred"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _fault(error: BaseException) -> Fault:
    number = error.args[0] if isinstance(error, errors.Error) and error.args else 0
    if number in _AGAIN:
        return Fault.AGAIN
    if number == _EXISTS:
        return Fault.EXISTS
    if number in _LIMITS:
        return Fault.LIMIT
    if number in _DENIED:
        return Fault.DENIED
    lost = number in _LOST or isinstance(error, errors.InterfaceError) or not isinstance(error, errors.Error)
    return Fault.LOST if lost else Fault.OTHER


# Besides its own, asyncmy raises what it finds on a connection that is closed below it.
DRIVER = Driver(
    _rows,
    _count,
    (errors.Error, OSError, EOFError, RuntimeError, AttributeError),
    _fault,
    lambda connection: connection.ensure_closed(),
    _gone,
    _abort,
)


def _dialect(database: str, table: str, metadata: str) -> Dialect:
    t, m = f"`{database}`.`{table}`", f"`{database}`.`{metadata}`"
    live = "(expiredate IS NULL OR expiredate > CURRENT_TIMESTAMP)"
    select = f"SELECT id, value, isbinary, eTag, UNIX_TIMESTAMP(expiredate) FROM {t}"
    # To whole seconds, as the column has them, never too early, and never behind the last that it can have.
    end = f"FROM_UNIXTIME(LEAST({_LAST_TIMESTAMP}, CEILING(UNIX_TIMESTAMP(CURRENT_TIMESTAMP(6)) + :ttl)))"
    bytes_of = "CAST(CONVERT({} USING utf8mb4) AS BINARY)".format
    conditions = f"WHERE id = :key AND {bytes_of('eTag')} = {bytes_of(':etag_is')} AND {live}"
    insert = f"INSERT INTO {t} (id, value, isbinary, eTag, expiredate) VALUES {{rows}}"

    def parameters(key: str, value: bytes, ttl: float | None) -> dict[str, Any]:
        text, binary = encoded(value, quoted=True)
        return {"key": key, "value": text, "binary": binary, "etag": new_etag(), "ttl": ttl}

    def read(row: Any) -> Stored:
        return Stored(decoded(row[1], bool(row[2])), row[3], None if row[4] is None else float(row[4]))

    return Dialect(
        title="MySQL",
        get=f"{select} WHERE id = :key AND {live}",
        get_many=f"{select} WHERE id IN :keys AND {live}",
        upsert=(
            f"{insert} ON DUPLICATE KEY UPDATE value = VALUES(value), isbinary = VALUES(isbinary), "
            "eTag = VALUES(eTag), expiredate = VALUES(expiredate)"
        ),
        row=f"(:key, :value, :binary, :etag, {end})",
        parameters=parameters,
        insert=(f"DELETE FROM {t} WHERE id = :key0 AND expiredate <= CURRENT_TIMESTAMP", insert),
        update=(f"UPDATE {t} SET value = :value, isbinary = :binary, eTag = :etag, expiredate = {end} {conditions}"),
        delete=f"DELETE FROM {t} WHERE id IN :keys",
        delete_if=f"DELETE FROM {t} {conditions}",
        check=f"SELECT 1 FROM {t} {conditions} FOR UPDATE",
        check_many=f"{select} WHERE id IN :keys AND {live} ORDER BY id FOR UPDATE",
        keys=(
            f"SELECT id FROM {t} WHERE {bytes_of('id')} > {bytes_of(':after')} "
            f"AND {bytes_of('LEFT(id, CHAR_LENGTH(:prefix))')} = {bytes_of(':prefix')} AND {live} "
            f"ORDER BY {bytes_of('id')} LIMIT :limit"
        ),
        clean=f"DELETE FROM {t} WHERE expiredate <= CURRENT_TIMESTAMP LIMIT :limit",
        claim=(
            f"UPDATE {m} SET value = CURRENT_TIMESTAMP WHERE id = 'last-cleanup' "
            "AND UNIX_TIMESTAMP(value) <= UNIX_TIMESTAMP(CURRENT_TIMESTAMP(6)) - :seconds",
            f"INSERT INTO {m} (id, value) VALUES ('last-cleanup', CURRENT_TIMESTAMP)",
        ),
        begin="BEGIN",
        read=read,
        migrate=partial(_migrate, database, table, metadata),
        rights=(
            f"GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE ON `{database}`.*, "
            "or tables that are there and the last four"
        ),
        etag=lambda etag: etag,
        max_key=MAX_KEY,
    )


def _migrate(database: str, table: str, metadata: str, connection: Connection) -> None:
    """Make what is missing, one gateway after the other."""
    lock = {"name": f"brokermesh {database}"[:64]}
    connection.execute(one("SELECT GET_LOCK(:name, 60)"), lock)
    try:
        if not _finds(connection, "schemata WHERE schema_name = :database", database=database):
            connection.exec_driver_sql(f"CREATE DATABASE IF NOT EXISTS `{database}`")
        columns = "columns WHERE table_schema = :database AND table_name = :table"
        have = _finds(connection, columns, "LOWER(column_name)", database=database, table=table)
        for statement in _missing(f"`{database}`.`{table}`", _collation(connection), have):
            connection.exec_driver_sql(statement)
        if not _finds(connection, columns, database=database, table=metadata):
            connection.exec_driver_sql(
                f"CREATE TABLE IF NOT EXISTS `{database}`.`{metadata}` "
                "(id VARCHAR(255) NOT NULL PRIMARY KEY, value TEXT NOT NULL)"
            )
    except Exception:  # When it is given up, a server that stalls would be waited for; the connection is closed then.
        connection.execute(one("SELECT RELEASE_LOCK(:name)"), lock)
        raise
    connection.execute(one("SELECT RELEASE_LOCK(:name)"), lock)


def _missing(table: str, collation: str, have: Sequence[str]) -> Sequence[str]:
    """Give the statements that make a table, or add what an older one lacks."""
    row_id = "row_id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT"
    if not have:
        return (
            f"CREATE TABLE IF NOT EXISTS {table} ("
            f"id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL PRIMARY KEY, value JSON NOT NULL, "
            "isbinary BOOLEAN NOT NULL, insertDate TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, "
            "updateDate TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP, "
            f"eTag VARCHAR(36) NOT NULL, expiredate TIMESTAMP NULL, {row_id}, "
            "INDEX expiredate_idx (expiredate), UNIQUE INDEX row_id_uidx (row_id))",
        )
    added = []
    if "expiredate" not in have:
        added.append(f"ALTER TABLE {table} ADD COLUMN expiredate TIMESTAMP NULL, ADD INDEX expiredate_idx (expiredate)")
    if "row_id" not in have:
        added.append(f"ALTER TABLE {table} ADD COLUMN {row_id}, ADD UNIQUE INDEX row_id_uidx (row_id)")
    return added


def _collation(connection: Connection) -> str:
    """Find one that takes no two keys for the same: neither large and small letters, nor spaces at the end."""
    found = _finds(connection, "collations WHERE collation_name LIKE 'utf8mb4%bin'", "LOWER(collation_name)")
    return next((name for name in ("utf8mb4_0900_bin", "utf8mb4_nopad_bin") if name in found), "utf8mb4_bin")


def _finds(connection: Connection, where: str, column: str = "1", **parameters: str) -> Sequence[str]:
    return connection.execute(one(f"SELECT {column} FROM information_schema.{where}"), parameters).scalars().all()
