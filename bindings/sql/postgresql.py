"""``state.postgresql`` and its likes: the settings, and connections by asyncpg."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from bindings.sql._dialect import DOTTED_NAME, INTERVAL, Dialect, identifier
from bindings.sql._libpq import ConnectionString, parse
from bindings.sql._postgresql import fault, postgresql_v1, postgresql_v2
from bindings.sql._query import run_query
from bindings.sql._runner import ENGINE, Bounds, Runner, pooled
from bindings.sql._session import Driver
from bindings.sql._store import SQLStateStore
from mesh.errors import ConfigError, FeatureNotSupportedError, StateError
from mesh.query import Queried, Query
from mesh.resources.component import Component
from mesh.resources.settings import (
    DURATION,
    LIMIT_SECONDS,
    Kind,
    Setting,
    choice,
    ignored,
    located,
    read_settings,
    setting,
    whole,
)
from mesh.values import parse_bool

__all__ = [
    "CLOUD",
    "DRIVER",
    "CockroachDBStateStore",
    "Connecting",
    "PostgreSQLStateStore",
    "YugabyteDBStateStore",
    "open_connection",
    "pool",
]

_LEAST_CONNECTIONS = 4


def _refused(text: str) -> bool:
    if parse_bool(text, words=True):
        raise ValueError("is not supported: log in with a password or a certificate")
    return False


NOT_SUPPORTED = Kind("boolean, false", _refused)
EXEC_MODE = choice("cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol")
CLOUD = ignored(
    "it is a part of logging in by a cloud's identity, which is not supported",
    *("awsRegion", "awsAccessKey", "awsSecretKey", "awsSessionToken", "region", "accessKey", "secretKey"),
    *("sessionToken", "assumeRoleArn", "sessionName", "azureTenantId", "azureClientId", "azureClientSecret"),
    *("azureCertificate", "azureCertificateFile", "azureCertificatePassword", "azureEnvironment"),
)


@dataclass(frozen=True, slots=True)
class Connecting:
    """How PostgreSQL is reached; of every component on it."""

    connection_string: str = setting(
        "connectionString",
        "Where the database is and how to log in: a postgres:// URL, or pairs such as host=db user=shop dbname=shop.",
        default="",
        secret=True,
        aliases=("url",),
        suggested=True,
        example="host=localhost user=postgres password=example port=5432 dbname=shop",
    )
    host: str = setting("host", "Host; goes before that of connectionString.", default="", example="localhost")
    hostaddr: str = setting("hostaddr", "Address to connect to; goes before host.", default="", example="127.0.0.1")
    port: str = setting("port", "Port; goes before that of connectionString.", default="", example="5432")
    database: str = setting("database", "Database; goes before that of connectionString.", default="", example="shop")
    user: str = setting("user", "User; goes before that of connectionString.", default="", example="postgres")
    password: str = setting("password", "Password; goes before that of connectionString.", default="", secret=True)
    ssl_root_cert: str = setting(
        "sslRootCert", "Path of the certificates that the server's is checked by.", default="", example="ca.pem"
    )
    timeout: float = setting(
        "timeout",
        "How long an operation may take; the deadline of a request is another one.",
        LIMIT_SECONDS,
        default=20.0,
        aliases=("timeoutInSeconds",),
    )
    max_connections: int = setting(
        "maxConns",
        "Most connections; 0 = pool_max_conns of connectionString, else as many as CPUs, and at least 4.",
        whole(-(2**31)),
        default=0,
    )
    idle: float | None = setting(
        "connectionMaxIdleTime",
        "A connection that was unused for longer is replaced.",
        DURATION,
        aliases=("connMaxIdleTime",),
        example="5m",
    )
    exec_mode: str = setting(
        "queryExecMode",
        "How queries run; every mode but cache_statement works through a proxy such as PgBouncer.",
        EXEC_MODE,
        default="",
    )
    use_azure_ad: bool = setting("useAzureAD", "Only false: log in by Azure AD.", NOT_SUPPORTED, default=False)
    use_aws_iam: bool = setting("useAWSIAM", "Only false: log in by AWS IAM.", NOT_SUPPORTED, default=False)

    def place(self, component: Component) -> ConnectionString:
        """Read where the database is.

        Raises:
            ConfigError: The connection string is none, or there is neither it nor a host.
        """
        said = {
            "host": self.host,
            "hostaddr": self.hostaddr,
            "port": self.port,
            "dbname": self.database,
            "user": self.user,
            "password": self.password,
            "sslrootcert": self.ssl_root_cert,
        }
        given = {name: value for name, value in said.items() if value}
        if not self.connection_string and not given.keys() & {"host", "hostaddr"}:
            raise ConfigError(component.missing("the setting connectionString is missing, and there is no host"))
        with located(component, "connectionString"):
            return parse(self.connection_string, given)


@dataclass(frozen=True, slots=True)
class PostgreSQLSettings(Connecting):
    """Settings of ``state.postgresql``."""

    table: str = setting("tableName", "Version v1: the table, perhaps with its schema.", DOTTED_NAME, default="state")
    prefix: str = setting(
        "tablePrefix",
        "Version v2: what the name of the table begins with, perhaps with its schema.",
        default="",
        example="shop_",
    )
    metadata: str = setting(
        "metadataTableName",
        "The table that remembers the version of the layout, perhaps with its schema.",
        DOTTED_NAME,
        default="dapr_metadata",
    )
    clean_every: float = setting(
        "cleanupInterval",
        "How often expired rows are deleted; 0 or less = never.",
        INTERVAL,
        default=3600.0,
        aliases=("cleanupIntervalInSeconds",),
    )
    ignored: ClassVar[tuple[Setting, ...]] = CLOUD


class PostgreSQLStateStore(SQLStateStore):
    """State in PostgreSQL, in the tables of version v1 or v2."""

    settings = PostgreSQLSettings
    product: ClassVar[str] = "PostgreSQL"
    tested = "PostgreSQL 15"
    versions: ClassVar[tuple[str, ...]] = ("v1", "v2")
    capabilities_with: ClassVar[Mapping[str, str]] = {"QUERY_API": "`version` v1"}

    def __init__(self, settings: PostgreSQLSettings, dialect: Dialect, place: ConnectionString, version: str) -> None:
        """Prepare; entering connects.

        Args:
            settings: Of the component.
            dialect: For its tables.
            place: Where the database is.
            version: Of the component.
        """
        super().__init__(settings, dialect, settings.timeout, settings.clean_every)
        self._place = place
        self._table = identifier(settings.table, dotted=True)
        self.capabilities = (*type(self).capabilities, *(("QUERY_API",) if version == "v1" else ()))

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; the component's version decides the tables.

        Raises:
            ConfigError: They are wrong, located.
        """
        settings = read_settings(component, cls.settings)
        version = component.version
        if problem := component.version_problem(cls.versions):
            raise ConfigError(problem)
        place = settings.place(component)
        unused = "tablePrefix" if version == "v1" else "tableName"
        if component.setting(unused):
            raise ConfigError(component.problem(f"is not a setting of version {version}", setting=unused))
        metadata = identifier(settings.metadata, dotted=True)
        if version == "v1":
            return cls(settings, postgresql_v1(identifier(settings.table, dotted=True), metadata), place, version)
        with located(component, "tablePrefix"):
            table = identifier(f"{settings.prefix}state", dotted=True)
        return cls(settings, postgresql_v2(table, metadata, settings.prefix, cls.product), place, version)

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        return pool(cast("PostgreSQLSettings", self._settings), self._place)

    async def query(self, query: Query, prefix: str) -> Queried:
        """Find values by their contents; of version v1 only."""
        if "QUERY_API" not in self.capabilities:
            raise FeatureNotSupportedError(f"{self.product} v2", "querying; version v1 can")
        return await run_query(query, prefix, self._table, self._database.core)


class YugabyteDBStateStore(PostgreSQLStateStore):
    """State in YugabyteDB, in the tables of version v2."""

    product = "YugabyteDB"
    tested = "not run against the real service"
    versions = ("v2", "v1")

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; its only tables are those of version v2, whatever the file says."""
        return super().from_component(replace(component, version="v2"))


class CockroachDBStateStore(PostgreSQLStateStore):
    """State in CockroachDB, in the tables of version v2: those of v1 need what only PostgreSQL has."""

    product = "CockroachDB"
    tested = "not run against the real service"
    versions = ("v2",)
    capabilities_with: ClassVar[Mapping[str, str]] = {}


async def _rows(connection: asyncpg.Connection[Any], sql: str, values: Sequence[Any]) -> Sequence[Any]:
    found: Sequence[Any] = await connection.fetch(sql, *values)
    return found


async def _count(connection: asyncpg.Connection[Any], sql: str, values: Sequence[Any]) -> int:
    """Give the number at the end of what the server says: ``INSERT 0 1``; ``BEGIN`` has none."""
    told = (await connection.execute(sql, *values)).rpartition(" ")[2]
    return int(told) if told.isdigit() else 0


DRIVER = Driver(
    _rows,
    _count,
    (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError),
    fault,
    lambda connection: connection.close(),
    lambda connection: connection.is_closed(),
    lambda connection: connection.terminate(),
)


def pool(
    settings: Connecting,
    place: ConnectionString,
    driver: Driver = DRIVER,
    stopping: asyncio.TaskGroup | None = None,
    prepare: Callable[[Any], Coroutine[Any, Any, None]] | None = None,
) -> AbstractAsyncContextManager[Runner]:
    """Make a pool of connections; none is opened yet.

    Args:
        settings: Of the component.
        place: Where the database is.
        driver: How it is used.
        stopping: As `pooled` has it.
        prepare: Given each new connection.
    """
    most = settings.max_connections if settings.max_connections > 0 else place.max_connections
    mode = settings.exec_mode or place.exec_mode or "cache_statement"
    without_cache = {} if mode == "cache_statement" else {"statement_cache_size": 0}

    async def connect(**more: Any) -> asyncpg.Connection[Any]:
        return await open_connection(place, **{**more, **without_cache})

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        **ENGINE,
    )
    if prepare is not None:
        event.listen(engine.sync_engine, "connect", lambda connection, _: connection.run_async(prepare))
    idle = settings.idle if settings.idle is not None else place.max_idle
    bounds = Bounds(most or max(_LEAST_CONNECTIONS, os.cpu_count() or 1), idle, place.max_lifetime or None)
    return pooled(engine, driver, bounds, stopping)


async def open_connection(place: ConnectionString, **more: Any) -> asyncpg.Connection[Any]:
    """Open a connection.

    Raises:
        StateError: It cannot be opened; the text says why, and holds no password.
    """
    options: Mapping[str, Any] = {**place.options, **more}
    try:
        return await asyncpg.connect(dsn=place.dsn, **options)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise StateError(f"cannot connect to the database at {place.place}: {reason}") from None
