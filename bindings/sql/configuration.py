"""``configuration.postgresql``: configuration in a table of PostgreSQL, whose changes a channel tells.

The table has the columns KEY, VALUE, VERSION and METADATA; a trigger tells its changes by ``pg_notify``, as in Dapr
1.18.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson

from bindings.sql._database import Database
from bindings.sql._dialect import DOTTED_NAME, identifier
from bindings.sql._libpq import ConnectionString
from bindings.sql._listener import Listener
from bindings.sql._postgresql import quoted
from bindings.sql.postgresql import CLOUD, Connecting, open_connection, pool
from mesh.adapter import ComponentAdapter
from mesh.blocks.configuration import ConfigurationItem
from mesh.errors import ConfigurationError, StateError
from mesh.resources.component import Component
from mesh.resources.settings import Setting, read_settings, setting
from mesh.tasks import task_group

__all__ = ["PostgreSQLConfigurationStore"]

_COLUMNS = "CAST(key AS text), CAST(value AS text), CAST(version AS text), CAST(metadata AS text)"
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class ConfigurationSettings(Connecting):
    """Settings of ``configuration.postgresql``."""

    table: str = setting(
        "table",
        "The table, perhaps with its schema; it has the columns KEY, VALUE, VERSION and METADATA.",
        DOTTED_NAME,
        required=True,
        example="configuration",
    )
    channel: str = setting(
        "notifyChannel",
        "The channel that tells changes; unset = the metadata pgNotifyChannel of each subscription.",
        default="",
        example="configuration",
    )
    ignored: ClassVar[tuple[Setting, ...]] = CLOUD


class PostgreSQLConfigurationStore(ComponentAdapter):
    """Configuration in a table; one connection listens for all who watch."""

    tested = "PostgreSQL 15"
    settings = ConfigurationSettings
    capabilities: Sequence[str] = ()

    def __init__(self, settings: ConfigurationSettings, place: ConnectionString) -> None:
        """Prepare; entering connects.

        Args:
            settings: Of the component.
            place: Where the database is.
        """
        super().__init__(settings)
        self._place = place
        self._channel = settings.channel
        self._table = identifier(settings.table, dotted=True)
        self._database: Database
        self._listener = Listener(lambda: open_connection(place))

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings.

        Raises:
            ConfigError: They are wrong, located.
        """
        settings = read_settings(component, cls.settings)
        return cls(settings, settings.place(component))

    async def _enter(self) -> None:
        """Connect.

        Raises:
            ConfigurationError: The database cannot be reached, or has no such table.
        """
        table = quoted(self._table)
        runner = await self._stack.enter_async_context(pool(self._settings, self._place))
        self._database = Database("PostgreSQL", self._settings.timeout, runner, f"GRANT SELECT ON {table}")
        [[found]] = await self._rows("SELECT to_regclass(CAST(:name AS text))", {"name": table})
        if found is None:
            raise ConfigurationError(f"PostgreSQL has no table {'.'.join(self._table)}, which table names")
        tasks = await self._stack.enter_async_context(task_group())
        self._stack.push_async_callback(self._listener.close)
        self._stack.callback(tasks.create_task(self._listener.keep(), name="configuration-listen").cancel)

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str]) -> Mapping[str, ConfigurationItem]:
        """Read the values of keys; of several versions of a key the highest."""
        found: dict[str, ConfigurationItem] = {}
        where = "WHERE CAST(key AS text) = ANY(CAST(:keys AS text[]))" if keys else ""
        rows = await self._rows(f"SELECT {_COLUMNS} FROM {quoted(self._table)} {where}", {"keys": list(keys)})
        for key, value, version, told in rows:
            item = ConfigurationItem(value or "", version or "", _metadata(told))
            if key not in found or _natural(item.version) > _natural(found[key].version):
                found[key] = item
        return found

    def watch(self, keys: Sequence[str], metadata: Mapping[str, str]) -> AbstractAsyncContextManager[asyncio.Event]:
        """Listen on the channel that the component or the metadata ``pgNotifyChannel`` names."""
        given = {name.casefold(): value for name, value in metadata.items()}
        channel = self._channel or given.get("pgnotifychannel", "")
        if not channel:
            raise ConfigurationError(
                "the subscription names no channel: give metadata.pgNotifyChannel, or the component notifyChannel"
            )
        return self._listener.watch(channel, frozenset(keys))

    async def _rows(self, statement: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
        try:
            return await self._database.rows(statement, parameters)
        except StateError as error:
            raise ConfigurationError(str(error)) from None


def _metadata(text: str | None) -> dict[str, str]:
    try:
        told = orjson.loads(text) if text else None
    except orjson.JSONDecodeError:  # Of a column of texts.
        told = None
    if not isinstance(told, dict):
        return {}
    return {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in told.items()}


def _natural(version: str) -> list[tuple[int, int, str]]:
    """Give what orders versions: ``9`` is before ``10``, and ``v9`` before ``v10``."""
    parts = _DIGITS.split(version)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part]
