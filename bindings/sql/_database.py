"""A database as components use it: work within a time, again where that is safe, and errors in our words."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, exc

from bindings.sql._dialect import Fault
from bindings.sql._runner import Runner
from mesh.errors import OutcomeUnknownError, StateError, StateLimitError

__all__ = ["Database"]

ATTEMPTS = 5
LONGEST_PAUSE = 0.2
_T = TypeVar("_T")


class Database:
    """Does work on a pool of connections."""

    def __init__(self, title: str, fault: Callable[[exc.DBAPIError], Fault], timeout: float, run: Runner) -> None:
        """Use an open pool.

        Args:
            title: For people.
            fault: Says what an exception of the driver means.
            timeout: Seconds that work may take.
            run: The pool.
        """
        self._title = title
        self._fault = fault
        self._timeout = timeout
        self._run = run

    async def do(self, work: Callable[[Connection], _T], *, writes: bool = False) -> _T:
        """Do work, again where the database undid it, and what only reads also where a connection was lost.

        Raises:
            OutcomeUnknownError: What was written may have been, or not.
            StateError: The database refused, or cannot be reached.
        """
        attempt = 0
        while True:
            attempt += 1
            limit = asyncio.timeout(self._timeout)
            try:
                async with limit:
                    return await self._run(work)
            except TimeoutError:
                if not limit.expired():
                    raise StateError(f"cannot connect to {self._title} in time") from None
                told = f"{self._title} did not answer within {self._timeout:g} s"
                raise (_unknown(told) if writes else StateError(told)) from None
            except exc.DBAPIError as error:
                fault = self._fault(error)
                if attempt >= ATTEMPTS or fault not in (Fault.AGAIN, Fault.LOST) or (fault is Fault.LOST and writes):
                    raise self._told(error, fault, writes=writes) from None
            except exc.TimeoutError:
                raise StateError(f"{self._title}: all connections of the pool are in use") from None
            except (exc.SQLAlchemyError, OSError) as error:
                raise StateError(f"cannot use {self._title}: {_first_line(error)}") from None
            await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.01 * 2**attempt)))  # noqa: S311 - no secret

    def _told(self, error: exc.DBAPIError, fault: Fault, *, writes: bool) -> StateError:
        reason = _first_line(error.orig)
        if fault is Fault.LIMIT:
            return StateLimitError(f"{self._title}: {reason}")
        if fault is Fault.LOST and writes and error.statement is not None:
            return _unknown(f"{self._title}: the connection was lost ({reason})")
        return StateError(f"{self._title}: {reason}")


def _unknown(told: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(f"{told}; the outcome is unknown: what was asked may have been done")


def _first_line(error: BaseException | None) -> str:
    """Give a driver's words without the statement and its values, and without what it says below."""
    text = str(error).strip().partition("\n")[0]
    return text.partition(">: ")[2] if text.startswith("<class ") else text or type(error).__name__
