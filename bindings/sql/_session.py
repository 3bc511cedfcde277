"""One connection: statements go to the driver itself, in the form that SQLAlchemy compiled once.

Work on it is a coroutine, whatever the driver: where that blocks, its coroutines never wait, and a thread runs them
through.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Dialect, exc, text
from sqlalchemy.util.concurrency import greenlet_spawn

from bindings.sql._dialect import Fault
from mesh.errors import MeshError

__all__ = ["Compile", "Driver", "RefusedError", "Session", "blocking", "compiler", "driver_error"]

_T = TypeVar("_T")
Compile = Callable[[str], tuple[str, Sequence[str]]]


class RefusedError(Exception):
    """The driver failed."""

    def __init__(self, error: BaseException, fault: Fault) -> None:
        """Keep what it said.

        Args:
            error: The driver's exception.
            fault: What it means.
        """
        super().__init__(str(error))
        self.error = error
        self.fault = fault


class _Rows(Protocol):
    def __call__(self, connection: Any, sql: str, values: Sequence[Any], /) -> Coroutine[Any, Any, Sequence[Any]]: ...


class _Count(Protocol):
    def __call__(self, connection: Any, sql: str, values: Sequence[Any], /) -> Coroutine[Any, Any, int]: ...


@dataclass(frozen=True)
class Driver:
    """How a driver is used.

    Attributes:
        rows: Does a statement; gives its rows.
        count: Does a statement; gives how many rows it changed.
        errors: What it raises.
        fault: Says what one of these means.
        close: Takes leave of the server.
        gone: Tells of a connection that it is lost, without asking the server.
        abort: Closes a connection at once: a stalled server is not asked to say good-bye.
        blocks: Whether it has no coroutines, and these never wait.
        stop: Has the server end what it does for a connection whose work was cancelled; None = the connection is closed
            at once, and the server may go on.
        interrupt: The same for one that blocks; called in another thread, it does not wait.
    """

    rows: _Rows
    count: _Count
    errors: tuple[type[Exception], ...]
    fault: Callable[[BaseException], Fault]
    close: Callable[[Any], Coroutine[Any, Any, None]]
    gone: Callable[[Any], bool]
    abort: Callable[[Any], None]
    blocks: bool = False
    stop: Callable[[Any], Coroutine[Any, Any, None]] | None = None
    interrupt: Callable[[Any], None] | None = None


class Session:
    """A connection that is in use by one."""

    def __init__(self, core: Connection, driver: Driver, compiled: Compile) -> None:
        """Use an open connection.

        Args:
            core: As SQLAlchemy has it.
            driver: Of the connection below it.
            compiled: Gives a statement as the driver has it, and the names of its parameters in order.
        """
        self._core = core
        self._driver = driver
        self._compiled = compiled
        self._connection: Any = core.connection.driver_connection
        self.opened = self.since = time.monotonic()
        self.broken = False  # Nobody may use it again.

    @property
    def gone(self) -> bool:
        """Whether it is known to be lost."""
        return self.broken or self._driver.gone(self._connection)

    async def rows(self, statement: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Do a statement; give its rows.

        Raises:
            RefusedError: The driver failed.
        """
        sql, names = self._compiled(statement)
        try:
            return await self._driver.rows(self._connection, sql, [parameters[name] for name in names])
        except self._driver.errors as error:
            raise self._refused(error) from None

    async def count(self, statement: str, parameters: Mapping[str, Any]) -> int:
        """Do a statement; give how many rows it changed.

        Raises:
            RefusedError: The driver failed.
        """
        sql, names = self._compiled(statement)
        try:
            return await self._driver.count(self._connection, sql, [parameters[name] for name in names])
        except self._driver.errors as error:
            raise self._refused(error) from None

    async def raw(self, work: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        """Do work on the driver's own connection.

        Raises:
            RefusedError: The driver failed.
        """
        try:
            return await work(self._connection)
        except self._driver.errors as error:
            raise self._refused(error) from None

    async def core(self, work: Callable[[Connection], _T]) -> _T:
        """Do work by SQLAlchemy's Core, which costs more: for what is seldom, or has no text that stays.

        Raises:
            RefusedError: The driver failed.
        """
        try:
            return work(self._core) if self._driver.blocks else await greenlet_spawn(work, self._core)
        except exc.DBAPIError as error:
            raise self._refused(driver_error(error)) from None

    async def close(self) -> None:
        """Have it take leave of the server."""
        with suppress(*self._driver.errors):
            await self._driver.close(self._connection)

    async def stop(self) -> None:
        """Have the server end what it does for this connection, which nobody uses again."""
        self.broken = True
        assert self._driver.stop is not None
        with suppress(*self._driver.errors, MeshError):
            await self._driver.stop(self._connection)

    def interrupt(self) -> None:
        """End the statement that another thread does."""
        if self._driver.interrupt is not None:
            self._driver.interrupt(self._connection)

    def abort(self) -> None:
        """Close it at once."""
        self.broken = True
        self._driver.abort(self._connection)
        if not self._core.closed and not self._core.invalidated:
            self._core.invalidate()

    def _refused(self, error: BaseException) -> RefusedError:
        fault = self._driver.fault(error)
        return RefusedError(error, Fault.LOST if fault is Fault.OTHER and self.gone else fault)


def driver_error(error: BaseException) -> BaseException:
    """Give the driver's own error: the cause of what SQLAlchemy makes of those of asyncpg."""
    if isinstance(error, exc.DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def compiler(dialect: Dialect) -> Compile:
    """Make what compiles statements for a driver, each once."""

    @lru_cache(512)
    def compiled(statement: str) -> tuple[str, Sequence[str]]:
        made: Any = text(statement).compile(dialect=dialect)
        return made.string, tuple(made.positiontup or ())

    return compiled


def blocking(errors: tuple[type[Exception], ...], fault: Callable[[BaseException], Fault]) -> Driver:
    """Make a driver of one that blocks, and whose connections close by themselves when they are forgotten."""

    def execute(connection: Any, sql: str, values: Sequence[Any]) -> Any:
        return connection.execute(sql, values) if values else connection.execute(sql)

    async def rows(connection: Any, sql: str, values: Sequence[Any]) -> Sequence[Any]:
        found: Sequence[Any] = execute(connection, sql, values).fetchall()
        return found

    async def count(connection: Any, sql: str, values: Sequence[Any]) -> int:
        changed: int = execute(connection, sql, values).rowcount
        return changed

    async def close(connection: Any) -> None:
        connection.close()

    return Driver(rows, count, errors, fault, close, lambda connection: False, lambda connection: None, blocks=True)
