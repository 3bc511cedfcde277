"""Statements of applications: the calls ``exec``, ``query`` and ``close`` of an output binding on any of the databases.

The statement and its parameters are the caller's. What a caller leaves behind, as a transaction that is open, is undone
before another one has the connection.

Source: Dapr 1.18, the PostgreSQL and MySQL bindings.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

import orjson
from sqlalchemy import exc

from bindings.sql._dialect import Fault
from bindings.sql._runner import Runner
from bindings.sql._session import RefusedError, Session, driver_error
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked
from mesh.errors import StateError
from mesh.tasks import task_group

__all__ = ["CHUNK", "MAX_BYTES", "MAX_ROWS", "Answer", "ExcessError", "SQLBinding", "as_json", "json_text"]

OPERATIONS = ("exec", "query", "close")
MAX_ROWS = 100_000
MAX_BYTES = 64 * 1024 * 1024
MAX_PARAMS_BYTES = 16 * 1024 * 1024
MOST_DIGITS = 1000
CHUNK, CHUNK_BYTES = 500, 1024 * 1024
_LONG = frozenset((str, bytes))  # What can be.
_LONGEST_INT64 = 20  # Characters.
LONGEST_SQL_TOLD = 4096  # Clients take header fields of 8 KiB.
_ENDLESS = {datetime.max: "infinity", datetime.min: "-infinity", date.max: "infinity", date.min: "-infinity"}
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS


class ExcessError(Exception):
    """An answer is larger than is passed on."""


class Answer:
    """The rows of an answer as they come, encoded part by part."""

    def __init__(self, encode: Callable[[Any], Any]) -> None:
        """Begin.

        Args:
            encode: Gives something that JSON has for a value of the driver's that it has not.
        """
        self._encode = encode
        self._parts: list[bytes] = []
        self._rows = self._bytes = 0
        self._names: Sequence[str] = ()
        self._held: list[Sequence[Any]] = []
        self._held_bytes = 0

    def take(self, names: Sequence[str], row: Sequence[Any]) -> None:
        """Add a row as an object; few are held until `end`, and none that are large. Raises as `add`."""
        self._names = names
        self._held.append(row)
        for each in row:
            if type(each) in _LONG:
                self._held_bytes += len(each)
        if len(self._held) >= CHUNK or self._held_bytes >= CHUNK_BYTES:
            self.end()

    def end(self) -> None:
        """Add what is held; raises as `add`."""
        held, self._held, self._held_bytes = self._held, [], 0
        self.add([dict(zip(self._names, row, strict=True)) for row in held])

    def add(self, rows: Sequence[Any]) -> None:
        """Add rows: sequences, or mappings.

        Raises:
            ExcessError: They are too many, or too large.
        """
        if not rows:
            return
        self._rows += len(rows)
        if self._rows > MAX_ROWS:
            raise ExcessError(f"the answer has more than {MAX_ROWS} rows: ask for fewer, as by LIMIT")
        part = orjson.dumps(rows, self._encode, _OPTIONS)[1:-1]
        self._bytes += len(part)
        if self._bytes > MAX_BYTES:
            raise ExcessError(f"the answer has more than {MAX_BYTES} bytes: ask for fewer rows or columns")
        self._parts.append(part)

    def data(self) -> bytes:
        """Give it."""
        return b"[" + b",".join(self._parts) + b"]"


def as_json(value: Any) -> Any:
    """Give something that JSON has for a value of a driver's: times as RFC 3339 in UTC, bytes in base64."""
    match value:
        case datetime():
            return _moment(value)
        case date():
            return _ENDLESS.get(value) or f"{value.isoformat()}T00:00:00Z"
        case time_of_day():
            return value.isoformat()
        case timedelta():
            return _clock(value)
        case Decimal():
            return orjson.Fragment(str(value)) if value.is_finite() else str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case tuple():  # With names; those without never come here.
            return list(value)
        case _:
            return str(value)


def _moment(value: datetime) -> str:
    naive = value.replace(tzinfo=None)
    if naive in _ENDLESS:
        return _ENDLESS[naive]
    utc = naive if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    text = utc.isoformat()
    return f"{text.rstrip('0') if '.' in text else text}Z"


def _clock(value: timedelta) -> str:
    """Write a time as the database does: ``-12:30:00``."""
    sign, whole = ("-", -value) if value < timedelta() else ("", value)
    minutes, seconds = divmod(whole.days * 86400 + whole.seconds, 60)
    fraction = f".{whole.microseconds:06}" if whole.microseconds else ""
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}:{seconds:02}{fraction}"


def json_text(value: object) -> str:
    """Write a parameter that is no text as JSON has it; a number with all its digits."""
    return orjson.dumps(value, as_json).decode()


def _whole(text: str) -> int | Decimal:
    if len(text) <= _LONGEST_INT64 and -(2**63) <= (value := int(text)) < 2**64:
        return value
    return _number(text)


def _number(text: str) -> Decimal:
    value = Decimal(text)
    if abs(value.adjusted()) > MOST_DIGITS or len(text) > 2 * MOST_DIGITS:
        raise ValueError("a number is too large, too small, or too long")
    return value


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_number, parse_constant=_no_number)


def _params(asked: Invoke) -> Sequence[Any] | None:
    """Read the metadata ``params``; None = there are none.

    Raises:
        BindingError: They are no JSON array.
    """
    text = asked.metadata.get("params", "")
    if not text:
        return None
    try:
        if len(text) > MAX_PARAMS_BYTES:
            raise ValueError(f"they have more than {MAX_PARAMS_BYTES} characters")
        found = _DECODER.decode(text)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise BindingError(f"invalid metadata property params: it is no JSON array: {error}") from None
    if not isinstance(found, list | None):
        raise BindingError("invalid metadata property params: it is no JSON array")
    return found or None


def _duration(seconds: float) -> str:
    """Write a duration as Go does: ``432µs``, ``9.41ms``, ``1.5s``, ``1m2.5s``."""
    micro = round(seconds * 1e6)
    if micro < 1_000_000:
        return f"{micro}µs" if micro < 1000 else f"{micro / 1e3:g}ms"
    minutes, rest = divmod(micro, 60_000_000)
    shown = f"{rest / 1e6:.6f}".rstrip("0").rstrip(".")
    return (f"{minutes // 60}h{minutes % 60}m" if minutes >= 60 else f"{minutes}m" if minutes else "") + f"{shown}s"


def _reason(error: BaseException) -> str:
    told = str(error.args[-1]) if error.args else str(error)
    return told.strip().partition("\n")[0] or type(error).__name__


class SQLBinding(ComponentAdapter):
    """Statements on a database; each database's adapter opens the connections, and says how a statement is done.

    Attributes:
        product: The database's name.
        blocks: Whether the driver blocks: what is done on a connection never waits, and is done in a thread.
    """

    product: ClassVar[str]
    blocks: ClassVar[bool] = False
    operations = OPERATIONS

    def __init__(self, settings: Any, timeout: float) -> None:
        """Prepare; entering connects.

        Args:
            settings: Of the component.
            timeout: Seconds that getting a connection may take.
        """
        super().__init__(settings)
        self._timeout = timeout
        self._pool = AsyncExitStack()
        self._run: Runner
        self._tasks: asyncio.TaskGroup
        self._closed = False
        self._busy = 0
        self._idle = asyncio.Event()

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        """Give the pool; no connection is opened yet."""
        raise NotImplementedError

    async def _execute(self, connection: Any, sql: str, params: Sequence[Any] | None) -> int:
        """Do a statement, or several without parameters; give how many rows the last one changed.

        Raises:
            BindingError: The parameters do not go with it.
        """
        raise NotImplementedError

    async def _query(self, connection: Any, sql: str, params: Sequence[Any] | None, answer: Answer) -> None:
        """Do a statement, and add its rows to the answer; raises as `_execute`, and what the answer raises."""
        raise NotImplementedError

    async def _undo(self, connection: Any) -> bool:
        """Undo a transaction that is open; give whether there was one."""
        raise NotImplementedError

    def _encode(self, value: Any) -> Any:
        return as_json(value)

    async def _enter(self) -> None:
        """Connect.

        Raises:
            BindingError: The database cannot be reached, or refuses.
        """
        self._tasks = await self._stack.enter_async_context(task_group())
        await self._stack.enter_async_context(self._pool)
        self._run = await self._pool.enter_async_context(self._connect())
        await self._do(lambda connection: self._execute(connection, "SELECT 1", None))

    async def check(self) -> None:
        """Ask the database for nothing.

        Raises:
            BindingError: It cannot be used now.
        """
        self._check_open()
        await self._do(lambda connection: self._execute(connection, "SELECT 1", None))

    def _check_open(self) -> None:
        if self._closed:
            raise BindingError("component is closed: the operation close was asked for; a restart opens it again")

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """Do a statement."""
        if asked.operation == "close":
            await self._close()
            return None
        self._check_open()
        sql = asked.metadata.get("sql", "")
        if not sql.strip():
            raise BindingError("required metadata not set: sql")
        if "\0" in sql:
            raise BindingError("the metadata sql hold a NUL")
        params = _params(asked)
        began, clock = datetime.now(UTC), time.perf_counter()
        data, told = None, {"operation": asked.operation, "start-time": _moment(began)}
        if len(sql) <= LONGEST_SQL_TOLD:
            told["sql"] = sql
        self._busy += 1
        self._idle.clear()
        try:
            if asked.operation == "exec":
                changed = await self._do(lambda connection: self._execute(connection, sql, params))
                told["rows-affected"] = str(changed)
            else:
                answer = Answer(self._encode)
                await self._do(lambda connection: self._query(connection, sql, params, answer))
                data = answer.data()
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()
        seconds = time.perf_counter() - clock
        told |= {"end-time": _moment(began + timedelta(seconds=seconds)), "duration": _duration(seconds)}
        return Invoked(data, told)

    async def _close(self) -> None:
        """Close the connections once nobody uses them; whoever comes now is told that it is closed."""
        self._closed = True
        if self._busy:
            await self._idle.wait()
        await self._pool.aclose()

    async def _do(self, work: Callable[[Any], Any]) -> Any:
        """Do work on a connection.

        Raises:
            BindingError: The database refused, or there is no connection.
        """
        limit = asyncio.timeout(None if self.blocks else self._timeout)
        try:
            async with limit:
                return await self._run(partial(self._on, work, limit))
        except TimeoutError:
            raise BindingError(f"{self.product}: no connection within {self._timeout:g} s", retryable=True) from None
        except StateError as error:  # Of opening one.
            raise BindingError(str(error), retryable=True) from None
        except RefusedError as error:  # Of undoing.
            raise self._refused(error, lost=True) from None
        except ExcessError as error:
            raise BindingError(str(error)) from None
        except (ValueError, TypeError, ArithmeticError) as error:
            raise BindingError(f"{self.product}: a value cannot be sent or read: {_reason(error)}") from None
        except (exc.SQLAlchemyError, OSError) as error:
            raise BindingError(f"cannot use {self.product}: {_reason(driver_error(error))}", retryable=True) from None

    def _refused(self, error: RefusedError, *, lost: bool = False) -> BindingError:
        told = "; the connection was lost, and what was asked may have been done" if lost else ""
        return BindingError(f"{self.product}: {_reason(error.error)}{told}", retryable=error.fault is Fault.AGAIN)

    async def _on(self, work: Callable[[Any], Any], limit: asyncio.Timeout, session: Session) -> Any:
        """Do work on one connection, and leave it as the next one may use it; one in doubt is closed."""
        if not self.blocks and not limit.expired():
            limit.reschedule(None)  # From here on the operation's deadline is the limit.
        try:
            done = await session.raw(work)
        except RefusedError as error:
            if error.fault is Fault.LOST:
                lost, session.broken = session.gone, True
                raise self._refused(error, lost=lost) from None
            await session.raw(self._undo)
            raise self._refused(error) from None
        except BindingError:
            await session.raw(self._undo)
            raise
        if await session.raw(self._undo):
            raise BindingError(
                "the statement left a transaction open, which was undone: each call may have another connection, so "
                "send a transaction whole"
            )
        return done
