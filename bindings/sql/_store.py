"""A state store on any of the databases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from bindings.sql._database import Database
from bindings.sql._dialect import INTERVAL, NAME, Dialect, Fault, keys_of, numbered, rows_of
from bindings.sql._plan import Step, has_condition, plan
from bindings.sql._runner import Runner
from bindings.sql._session import RefusedError, Session
from bindings.sql._values import LONGEST_TTL
from mesh.adapter import ComponentAdapter
from mesh.errors import ConflictError, InvalidEtagError, MeshError, OutcomeUnknownError, StateError, StateLimitError
from mesh.resources.settings import LIMIT_SECONDS, setting
from mesh.store import CAPABILITIES, MAX_PARALLEL, Item, StateStore, Stored
from mesh.tasks import task_group

__all__ = ["SQLStateStore", "TableSettings"]

CLEAN_ROWS = 1000
CLEAN_STATEMENTS = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TableSettings:
    """Settings of a store whose tables have one layout; each adapter says what differs."""

    connection_string: str = setting("connectionString", "Where the database is.", required=True, aliases=("url",))
    table: str = setting("tableName", "The table.", NAME, default="state")
    metadata: str = setting(
        "metadataTableName", "The table that remembers the last clean-up.", NAME, default="dapr_metadata"
    )
    timeout: float = setting(
        "timeout", "How long an operation may take.", LIMIT_SECONDS, default=20.0, aliases=("timeoutInSeconds",)
    )
    clean_every: float = setting(
        "cleanupInterval",
        "How often expired rows are deleted; 0 or less = never.",
        INTERVAL,
        default=3600.0,
        aliases=("cleanupIntervalInSeconds",),
    )


class SQLStateStore(ComponentAdapter, StateStore):
    """Keys and values in a table; each database's adapter opens the connections and gives its dialect."""

    capabilities: Sequence[str] = CAPABILITIES

    def __init__(self, settings: Any, dialect: Dialect, timeout: float, clean_every: float) -> None:
        """Prepare; entering connects and makes the tables.

        Args:
            settings: Of the component.
            dialect: Of the database, for the tables that the settings name.
            timeout: Seconds that an operation may take.
            clean_every: Seconds between two clean-ups of what is over; 0 = none.
        """
        super().__init__(settings)
        self._dialect = dialect
        self._timeout = timeout
        self._clean_every = clean_every
        self._database: Database

    def _connect(self) -> AbstractAsyncContextManager[Runner]:
        """Give the pool; no connection is opened yet."""
        raise NotImplementedError

    async def _enter(self) -> None:
        """Connect, make the tables, and begin to clean up.

        Raises:
            StateError: The database cannot be reached, or refuses.
        """
        run = await self._stack.enter_async_context(self._connect())
        self._database = Database(self._dialect.title, self._timeout, run, self._dialect.rights)
        await self._database.core(self._dialect.migrate, writes=True)
        if self._clean_every > 0:
            tasks = await self._stack.enter_async_context(task_group())
            self._stack.callback(tasks.create_task(self._clean_up(), name="state-clean-up").cancel)

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a key; every read is strong here."""
        self._check_key(key)
        rows = await self._database.rows(self._dialect.get, {"key": key})
        return self._dialect.read(rows[0]) if rows else None

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several by one statement for each part of them."""
        read = self._dialect.read
        refused: dict[str, MeshError] = {}
        for key in keys:
            try:
                self._check_key(key)
            except StateError as error:
                refused[key] = error
        found: dict[str, Stored | MeshError] = dict(refused)
        wanted = list(dict.fromkeys(key for key in keys if key not in refused))
        for start in range(0, len(wanted), self._dialect.chunk):
            part = wanted[start : start + self._dialect.chunk]
            try:
                rows = await self._database.rows(*keys_of(self._dialect.get_many, part))
                found |= {row[0]: read(row) for row in rows}
            except StateError as error:
                found |= dict.fromkeys(part, error)
        return [found.get(key) for key in keys]

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing, in one transaction.

        Raises:
            OutcomeUnknownError: The connection was lost before the database had answered.
        """
        steps = plan([self._checked(item) for item in items], self._dialect.chunk)
        if not steps:
            return
        try:
            kind = steps[0][0]
            if len(steps) == 1 and kind != "absent" and (kind != "insert" or len(self._dialect.insert) == 1):
                await self._database.do(lambda session: self._step(session, *steps[0]), writes=True)
            else:
                await self._database.do(lambda session: self._transaction(session, steps), writes=True)
        except OutcomeUnknownError as error:
            if not any(has_condition(item) for item in items):
                raise StateError(f"{error}; writing the same again is safe") from None
            raise

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        """Write each for itself; those that nothing can refuse by statements of many rows."""
        if len(items) < 2 or any(has_condition(item) for item in items):
            return await super().save_each(items)
        results: list[MeshError | None] = []
        for start in range(0, len(items), self._dialect.chunk):
            part = items[start : start + self._dialect.chunk]
            try:
                await self.write(part)
                results += [None] * len(part)
            except MeshError as error:
                if error.retryable:
                    return [*results, *[error] * len(part)]
                alone = await super().save_each(part)  # One of them is refused: the others are not.
                results += alone
                if len(alone) < len(part) or alone[-1] is not None:
                    return results
        return results

    async def write_guarded(self, items: Sequence[tuple[Item, Item]]) -> Sequence[MeshError | None]:
        """Write each if its check holds: all in one transaction, unless one of them cannot be done."""
        checks = {(check.key, check.etag): check for _, check in items}
        try:
            await self.write([*(item for item, _ in items), *checks.values()])
        except MeshError as error:
            if error.retryable or isinstance(error, OutcomeUnknownError):
                return [error] * len(items)
            return await super().write_guarded(items)
        return [None] * len(items)

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List live keys that begin with a prefix, by their bytes; none holds a NUL, which is the least."""
        if "\0" in prefix:
            return []
        parameters = {"prefix": prefix, "after": after.partition("\0")[0], "limit": limit}
        return [row[0] for row in await self._database.rows(self._dialect.keys, parameters)]

    def _check_key(self, key: str) -> None:
        longest = self._dialect.max_key
        if longest is not None and len(key) > longest:
            told = f"a key has at most {longest} characters in {self._dialect.title}, with its prefix"
            raise StateLimitError(f"{told}; this one {len(key)}")
        if not key or "\0" in key or not _is_text(key):
            raise StateLimitError("a key is text that is not empty and holds no NUL")

    def _checked(self, item: Item) -> Item:
        self._check_key(item.key)
        if item.etag and self._dialect.etag(item.etag) is None:
            if self._dialect.etag_invalid:
                raise InvalidEtagError(f"invalid etag value: {item.etag}")
            raise ConflictError(f"key {item.key!r} has another etag")
        return item if item.ttl is None else replace(item, ttl=min(item.ttl, LONGEST_TTL))

    async def _transaction(self, session: Session, steps: Sequence[tuple[str, Sequence[Step]]]) -> None:
        try:
            await session.count(self._dialect.begin, {})
            for kind, group in steps:
                await self._step(session, kind, group)
        except MeshError:
            await _undo(session)
            raise
        except RefusedError as error:
            if error.fault is Fault.LOST:
                session.broken = True
                raise StateError(f"{self._dialect.title}: the connection was lost; nothing was done") from None
            await _undo(session)
            raise
        await session.count("COMMIT", {})

    async def _step(self, session: Session, kind: str, steps: Sequence[Step]) -> None:
        item, dialect = steps[0].item, self._dialect
        key = {"key": item.key}
        match kind:
            case "upsert":
                parameters = numbered([self._row(step.item) for step in steps])
                await session.count(rows_of(dialect.upsert, dialect.row, len(steps)), parameters)
                return
            case "delete":
                await session.count(*keys_of(dialect.delete, [step.item.key for step in steps]))
                return
            case "insert" | "absent":
                done = await self._insert(session, item)
                if kind == "absent" and done:  # Whoever makes the same key waits for the end of this transaction.
                    await session.count(*keys_of(dialect.delete, [item.key]))
            case "check" if len(steps) > 1:
                found = await session.rows(*keys_of(dialect.check_many, [step.item.key for step in steps]))
                etags = {row[0]: dialect.etag(dialect.read(row).etag) for row in found}
                for step in steps:
                    if etags.get(step.item.key) != dialect.etag(step.expected):
                        raise ConflictError(f"key {step.item.key!r} has another etag")
                return
            case "check":
                etag = {"etag_is": dialect.etag(steps[0].expected)}
                done = bool(await session.rows(dialect.check, key | etag))
            case _:
                etag = {"etag_is": dialect.etag(steps[0].expected)}
                row = {} if kind == "delete_if" else self._row(item)
                statement = dialect.delete_if if kind == "delete_if" else dialect.update
                done = await session.count(statement, key | etag | row) > 0
        if not done:
            raise ConflictError(f"key {item.key!r} has another etag, or is there already")

    def _row(self, item: Item) -> dict[str, Any]:
        return self._dialect.parameters(item.key, item.value or b"", item.ttl)

    async def _insert(self, session: Session, item: Item) -> bool:
        row = numbered([self._row(item if item.value is not None else replace(item, value=b"null"))])
        rowcount = 0
        for statement in self._dialect.insert:
            try:
                rowcount = await session.count(rows_of(statement, self._dialect.row, 1), row)
            except RefusedError as error:
                if error.fault is Fault.EXISTS:
                    return False
                raise
        return rowcount > 0

    async def _clean_up(self) -> None:
        """Delete what is over, a bounded number of rows each time; one gateway of several does it."""
        while True:
            await asyncio.sleep(self._clean_every)
            try:
                if await self._database.do(self._claim, writes=True):
                    for _ in range(CLEAN_STATEMENTS):
                        if await self._database.count(self._dialect.clean, {"limit": CLEAN_ROWS}) < CLEAN_ROWS:
                            break
            except MeshError as error:
                logger.warning("could not clean up expired state: %s", error)

    async def _claim(self, session: Session) -> bool:
        parameters = {"seconds": max(0.0, self._clean_every - 0.1)}
        for statement in self._dialect.claim:
            try:
                if await session.count(statement, parameters) > 0:
                    return True
            except RefusedError as error:
                if error.fault is Fault.EXISTS:
                    return False
                raise
        return False


async def _undo(session: Session) -> None:
    try:
        await session.count("ROLLBACK", {})
    except RefusedError:  # Without its connection the server undoes it.
        session.broken = True


def _is_text(key: str) -> bool:
    return key.isascii() or not any("\ud800" <= character <= "\udfff" for character in key)
