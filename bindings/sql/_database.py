"""A database as components use it: work within a time, again where that is safe, and errors in our words."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, exc

from bindings.sql._dialect import Fault
from bindings.sql._runner import Runner, Work
from bindings.sql._session import RefusedError, Session, driver_error
from mesh.errors import OutcomeUnknownError, StateError, StateLimitError

__all__ = ["Database"]

ATTEMPTS = 5
LONGEST_PAUSE = 0.2
_T = TypeVar("_T")


class Database:
    """Does work on a pool of connections."""

    def __init__(self, title: str, timeout: float, run: Runner, rights: str) -> None:
        """Use an open pool.

        Args:
            title: For people.
            timeout: Seconds that work may take.
            run: The pool.
            rights: What the user must be allowed, for people.
        """
        self._title = title
        self._timeout = timeout
        self._run = run
        self._rights = rights

    async def rows(self, statement: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Read rows by a statement."""
        return await self.do(lambda session: session.rows(statement, parameters))

    async def count(self, statement: str, parameters: Mapping[str, Any]) -> int:
        """Change rows by a statement; give how many."""
        return await self.do(lambda session: session.count(statement, parameters), writes=True)

    async def core(self, work: Callable[[Connection], _T], *, writes: bool = False) -> _T:
        """Do work by SQLAlchemy's Core."""
        return await self.do(lambda session: session.core(work), writes=writes)

    async def do(self, work: Work[_T], *, writes: bool = False) -> _T:
        """Do work, again where the database undid it, and what only reads also where a connection was lost.

        Raises:
            OutcomeUnknownError: What was written may have been, or not.
            StateError: The database refused, or cannot be reached.
        """
        attempt, begun = 0, False  # Nothing is done by what only waited for a connection.

        async def begin(session: Session) -> _T:
            nonlocal begun
            begun = True
            return await work(session)

        while True:
            attempt, begun = attempt + 1, False
            limit = asyncio.timeout(self._timeout)
            try:
                async with limit:
                    return await self._run(begin)
            except TimeoutError:
                if not limit.expired():
                    raise StateError(f"cannot connect to {self._title} in time") from None
                if not begun:
                    raise StateError(f"{self._title}: no connection was free within {self._timeout:g} s") from None
                told = f"{self._title} did not answer within {self._timeout:g} s"
                raise (_unknown(told) if writes else StateError(told)) from None
            except RefusedError as error:
                again = error.fault is Fault.AGAIN or (error.fault is Fault.LOST and not writes)
                if attempt >= ATTEMPTS or not again:
                    raise self._told(error, writes=writes) from None
            except (exc.SQLAlchemyError, OSError) as error:
                raise StateError(f"cannot use {self._title}: {_first_line(driver_error(error))}") from None
            await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.01 * 2**attempt)))  # noqa: S311 - no secret

    def _told(self, error: RefusedError, *, writes: bool) -> StateError:
        reason = _first_line(error.error)
        if error.fault is Fault.LIMIT:
            return StateLimitError(f"{self._title}: {reason}")
        if error.fault is Fault.DENIED:
            return StateError(f"{self._title}: {reason}; its user needs {self._rights}")
        if error.fault is Fault.LOST and writes:
            return _unknown(f"{self._title}: the connection was lost ({reason})")
        return StateError(f"{self._title}: {reason}")


def _unknown(told: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(f"{told}; the outcome is unknown: what was asked may have been done")


def _first_line(error: BaseException) -> str:
    """Give a driver's words without the statement and its values, and without what it says below."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
