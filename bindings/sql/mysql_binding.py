"""``bindings.mysql``: statements on MySQL or MariaDB, whose rows are objects.

Parameters are variables of the session, and a statement with some is prepared by the server: asyncmy would write them
into its text.

Source: Dapr 1.18, the MySQL binding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar, Self

from asyncmy.cursors import SSCursor

from bindings.sql._binding import Answer, SQLBinding, as_json, json_text
from bindings.sql._godsn import DataSource, parse
from bindings.sql._runner import Bounds, Runner, pooled
from bindings.sql.mysql import DRIVER, engine_of, open_connection
from mesh.blocks.binding_contract import BindingError
from mesh.resources.component import Component
from mesh.resources.settings import COUNT, DURATION, LIMIT_SECONDS, Setting, ignored, located, read_settings, setting

__all__ = ["MySQLBinding"]

_CONNECTIONS = 10
_IN_TRANSACTION = 1
_NO_MORE_THAN_ONE = b"\x01\x00"
_SET_OPTION = 0x1B
_SET_AUTOCOMMIT = re.compile(r"\bset\s+(session\s+|local\s+|@@(session\.|local\.)?)?autocommit\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MySQLBindingSettings:
    """Settings of ``bindings.mysql``."""

    connection_string: str = setting(
        "url",
        "Where the server is and how to log in: user:password@tcp(host:3306)/database, perhaps with options behind "
        "a '?'; with multiStatements=true a text may hold several statements.",
        required=True,
        secret=True,
        aliases=("connectionString",),
        example="root:example@tcp(localhost:3306)/shop",
    )
    pem_path: str = setting(
        "pemPath",
        "Path of the certificates that the server's is checked by, with tls=custom.",
        default="",
        example="ca.pem",
    )
    max_connections: int = setting("maxOpenConns", "Most connections.", COUNT, default=_CONNECTIONS)
    lifetime: float | None = setting(
        "connMaxLifetime", "A connection that is open for longer is replaced.", DURATION, example="1h"
    )
    idle: float | None = setting(
        "connMaxIdleTime", "A connection that was unused for longer is replaced.", DURATION, example="5m"
    )
    timeout: float = setting("timeout", "How long getting a connection may take.", LIMIT_SECONDS, default=20.0)
    ignored: ClassVar[tuple[Setting, ...]] = ignored("connections are kept as long as they may be", "maxIdleConns")


class MySQLBinding(SQLBinding):
    """Statements on MySQL or MariaDB."""

    title = "Does statements on MySQL or MariaDB."
    tested = "MariaDB 10.11"
    settings: ClassVar[type[MySQLBindingSettings]] = MySQLBindingSettings
    product = "MySQL"

    def __init__(self, settings: MySQLBindingSettings, source: DataSource) -> None:
        """Prepare; entering connects.

        Args:
            settings: Of the component.
            source: Where the server is.
        """
        super().__init__(settings, settings.timeout)
        self._source = source

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        settings = read_settings(component, cls.settings)
        with located(component, "url"):
            source = parse(settings.connection_string, statements=True)
            if source.tls == "custom" and not settings.pem_path:
                raise ValueError("has tls=custom, which needs the setting pemPath")
        return cls(settings, source)

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        settings: MySQLBindingSettings = self._settings
        bounds = Bounds(settings.max_connections, settings.idle or None, settings.lifetime or None)
        engine = engine_of(self._open, self._source)
        return pooled(engine, replace(DRIVER, stop=self._stop), bounds, self._tasks)

    async def _open(self, **more: Any) -> Any:
        settings: MySQLBindingSettings = self._settings
        named = {"database": self._source.database} if self._source.database else {}
        made = await open_connection(self._source, settings.timeout, settings.pem_path, **named, **more)
        if not self._source.several:  # asyncmy allows them to every connection.
            await made._execute_command(_SET_OPTION, _NO_MORE_THAN_ONE)
            await made.read_packet()
        return made

    async def _stop(self, connection: Any) -> None:
        """Have the server end what a connection does whose own end is closed."""
        other = await self._open()
        try:
            await other.query(f"KILL {connection.thread_id()}")
        finally:
            other.close()

    async def _execute(self, connection: Any, sql: str, params: Sequence[Any] | None) -> int:
        async with connection.cursor(SSCursor) as cursor:
            await _begin(cursor, connection, sql, params)
            while True:
                if cursor.description is not None:
                    while await cursor.fetchone() is not None:
                        pass
                changed: int = 0 if cursor.description is not None else cursor.rowcount
                if not await cursor.nextset():
                    return changed

    async def _query(self, connection: Any, sql: str, params: Sequence[Any] | None, answer: Answer) -> None:
        async with connection.cursor(SSCursor) as cursor:
            await _begin(cursor, connection, sql, params)
            if cursor.description is None:
                return
            names = [column[0] for column in cursor.description]
            while (row := await cursor.fetchone()) is not None:
                answer.take(names, row)
            answer.end()

    async def _undo(self, connection: Any) -> bool:
        opened = bool(connection.server_status & _IN_TRANSACTION)
        if opened:
            await connection.rollback()
        return opened

    def _encode(self, value: Any) -> Any:
        return str(value) if isinstance(value, Decimal) else as_json(value)


async def _begin(cursor: Any, connection: Any, sql: str, params: Sequence[Any] | None) -> None:
    """Do a statement."""
    if _SET_AUTOCOMMIT.search(sql):  # What the server says of it then cannot be told from nothing.
        raise BindingError("autocommit cannot be set, since calls share connections: send a transaction whole")
    if params is None:
        await cursor.execute(sql)
        return
    names = [f"@mesh_{number}" for number in range(len(params))]
    values = zip(names, (_literal(connection, each) for each in params), strict=True)
    given = ", ".join(f"{name} = {value}" for name, value in values)
    await cursor.execute(f"SET @mesh_sql = {connection.escape(sql)}, {given}")
    await cursor.execute("PREPARE mesh FROM @mesh_sql")
    await cursor.execute(f"EXECUTE mesh USING {', '.join(names)}")


def _literal(connection: Any, value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case bool():
            return str(int(value))
        case int() | Decimal():
            return str(value)
        case str():
            return str(connection.escape(value))
        case _:
            return str(connection.escape(json_text(value)))
