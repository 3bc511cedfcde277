"""``bindings.postgresql``: statements on PostgreSQL, whose rows are arrays.

Source: Dapr 1.18, the PostgreSQL binding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar, Self

import asyncpg
import orjson

from bindings.sql._binding import CHUNK, MAX_ROWS, Answer, SQLBinding, as_json, json_text
from bindings.sql._libpq import ConnectionString
from bindings.sql._runner import Runner
from bindings.sql.postgresql import CLOUD, DRIVER, Connecting, pool
from mesh.blocks.binding_contract import BindingError
from mesh.resources.component import Component
from mesh.resources.settings import Setting, read_settings

__all__ = ["PostgreSQLBinding"]

KNOWN_STATEMENTS = 256
_COPY = re.compile(r"\s*copy\b.*\b(stdin|stdout)\b", re.IGNORECASE | re.DOTALL)
_WHOLE = frozenset({"int2", "int4", "int8"})
_FLOATS = frozenset({"float4", "float8"})
_TEXTS = frozenset({"text", "varchar", "bpchar", "name", "unknown"})
_AS_TEXT = frozenset({"json", "jsonb", "interval"})  # We have them as PostgreSQL writes them.


@dataclass(frozen=True, slots=True)
class PostgreSQLBindingSettings(Connecting):
    """Settings of ``bindings.postgresql``."""

    ignored: ClassVar[tuple[Setting, ...]] = CLOUD


@dataclass(frozen=True)
class _Cast:
    """A parameter whose text PostgreSQL reads as of another type.

    Attributes:
        text: Of it, or of the elements of an array.
        type: The type's name as a statement has it.
    """

    text: str | list[Any]
    type: str


class PostgreSQLBinding(SQLBinding):
    """Statements on PostgreSQL."""

    title = "Does statements on PostgreSQL."
    tested = "PostgreSQL 15"
    settings: ClassVar[type[PostgreSQLBindingSettings]] = PostgreSQLBindingSettings
    product = "PostgreSQL"

    def __init__(self, settings: PostgreSQLBindingSettings, place: ConnectionString) -> None:
        """Prepare; entering connects.

        Args:
            settings: Of the component.
            place: Where the database is.
        """
        super().__init__(settings, settings.timeout)
        self._place = place
        self._types: dict[str, Sequence[Any]] = {}

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        settings = read_settings(component, cls.settings)
        return cls(settings, settings.place(component))

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        # Closing asks the server to give up what was cancelled, and waits for it.
        driver = replace(DRIVER, stop=lambda connection: connection.close())
        return pool(self._settings, self._place, driver, self._tasks, _prepare)

    async def _execute(self, connection: Any, sql: str, params: Sequence[Any] | None) -> int:
        _check(sql)
        try:
            told = await self._with(connection, sql, params, connection.execute)
        except AttributeError:  # Of asyncpg, where the text has no statement.
            return 0
        count = told.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def _query(self, connection: Any, sql: str, params: Sequence[Any] | None, answer: Answer) -> None:
        _check(sql)
        # Only this way rows are bounded.
        rows = await self._with(
            connection, sql, params, lambda sql, *given: connection._execute(sql, given, MAX_ROWS + 1, None)
        )
        for start in range(0, len(rows), CHUNK):
            answer.add([list(row) for row in rows[start : start + CHUNK]])

    async def _undo(self, connection: Any) -> bool:
        if not connection.is_in_transaction():
            return False
        await connection.execute("ROLLBACK")
        return True

    def _encode(self, value: Any) -> Any:
        match value:
            case asyncpg.Range():
                return _range(value)
            case asyncpg.BitString():
                return value.as_string().replace(" ", "")
            case asyncpg.Record():
                return list(value)
            case _:
                return as_json(value)

    async def _with(
        self,
        connection: Any,
        sql: str,
        params: Sequence[Any] | None,
        do: Callable[..., Coroutine[Any, Any, Any]],
    ) -> Any:
        """Do a statement with parameters of the types that it has."""
        if params is None:
            return await do(sql)
        types = self._types.get(sql)
        if types is None:
            types = (await connection.prepare(sql, name="")).get_parameters()
        if len(types) != len(params):
            raise BindingError(f"the statement has {len(types)} parameters, and params has {len(params)}")
        try:
            done = await do(sql, *await _given(connection, params, types))
        except BaseException:
            self._types.pop(sql, None)  # They may be others by now.
            raise
        if len(self._types) >= KNOWN_STATEMENTS and sql not in self._types:
            self._types.clear()
        self._types[sql] = types
        return done


async def _given(connection: Any, params: Sequence[Any], types: Sequence[Any]) -> Sequence[Any]:
    """Give parameters of the types that the statement has; what is not of one already, PostgreSQL reads."""
    given = [_as(value, kind) for value, kind in zip(params, types, strict=True)]
    casts = [each for each in given if isinstance(each, _Cast)]
    if not casts:
        return given
    columns = (
        f"CAST(CAST(${number} AS text{'[]' * isinstance(each.text, list)}) AS {each.type})"
        for number, each in enumerate(casts, 1)
    )
    read = iter(await connection.fetchrow(f"SELECT {', '.join(columns)}", *(each.text for each in casts)))
    return [next(read) if isinstance(each, _Cast) else each for each in given]


def _check(sql: str) -> None:
    if _COPY.match(sql):  # The server would wait for data for ever.
        raise BindingError("COPY needs a stream of data, which a call has not")


async def _prepare(connection: Any) -> None:
    """Have values that Python has not, or not with all their digits, as PostgreSQL writes them."""
    for name in sorted(_AS_TEXT):
        decoder = str if name == "interval" else orjson.Fragment
        await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=decoder, format="text")


def _as(value: Any, kind: Any) -> Any:
    """Give a parameter as asyncpg takes it for a type, or what has PostgreSQL read it."""
    name, number = kind.name, isinstance(value, int | Decimal) and not isinstance(value, bool)
    if value is None or (isinstance(value, bool) and name == "bool"):
        return value
    if name in _AS_TEXT or name in _TEXTS:
        return value if isinstance(value, str) else json_text(value)
    if name in _WHOLE and number and value == int(value):
        return int(value)
    if name in _FLOATS and number and math.isfinite(float(value)):
        return float(value)
    if name == "numeric" and number:
        return Decimal(value)
    schema = kind.schema.replace('"', '""')
    plain = name.removesuffix("[]").replace('"', '""')
    if kind.kind == "array" and isinstance(value, list):
        return _Cast(_texts(value), f'"{schema}"."{plain}"[]')
    suffix = "[]" if kind.kind == "array" else ""
    return _Cast(value if isinstance(value, str) else json_text(value), f'"{schema}"."{plain}"{suffix}')


def _texts(values: Sequence[Any]) -> list[Any]:
    """Give the texts of an array's elements; of arrays in it arrays."""
    return [
        each if each is None or isinstance(each, str) else _texts(each) if isinstance(each, list) else json_text(each)
        for each in values
    ]


def _range(value: asyncpg.Range[Any]) -> str:
    if value.isempty:
        return "empty"
    ends = ("" if each is None else str(each) for each in (value.lower, value.upper))
    return ("[" if value.lower_inc else "(") + ",".join(ends) + ("]" if value.upper_inc else ")")
