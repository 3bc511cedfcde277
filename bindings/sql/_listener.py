"""One connection that listens on channels of PostgreSQL, for all who watch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import orjson

from mesh.errors import ConfigurationError, StateError

__all__ = ["Listener"]

ASKED_EVERY = 10.0
ANSWERS_WITHIN = 5.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
MAX_CHANNELS = 100

logger = logging.getLogger(__name__)


class Listener:
    """Sets the events of those who watch a channel when something is told there, and when it has been away."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection[Any]]]) -> None:
        """Prepare; the first who watches has it connect.

        Args:
            connect: Opens a connection; raises ``StateError``.
        """
        self._connect = connect
        self._connection: asyncpg.Connection[Any] | None = None
        self._channels: dict[str, dict[asyncio.Event, frozenset[str]]] = {}
        self._changing = asyncio.Lock()
        self._lost = asyncio.Event()

    @asynccontextmanager
    async def watch(self, channel: str, keys: frozenset[str]) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set when one of these keys may have changed; no keys = all.

        Raises:
            ConfigurationError: It cannot listen now.
        """
        # LISTEN without quotes takes a name in small letters, pg_notify takes it as it is.
        names = {channel, channel.lower()}
        event = asyncio.Event()
        await self._listen(names)
        for name in names:
            self._channels[name][event] = keys
        try:
            yield event
        finally:
            for name in names:
                self._channels.get(name, {}).pop(event, None)

    async def _listen(self, names: set[str]) -> None:
        try:
            async with asyncio.timeout(ANSWERS_WITHIN), self._changing:
                for name in names - self._channels.keys():
                    if len(self._channels) >= MAX_CHANNELS:
                        await self._forget_one()
                    if self._connection is not None:
                        await self._connection.add_listener(name, self._told)
                    self._channels[name] = {}
                if self._connection is None:
                    await self._open()
        except TimeoutError:
            self._drop()
            raise ConfigurationError(f"PostgreSQL did not answer within {ANSWERS_WITHIN:g} s") from None
        except StateError as error:
            raise ConfigurationError(str(error)) from None
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._drop()
            raise ConfigurationError(f"cannot listen for changes: {str(error).partition(chr(10))[0]}") from None

    async def _forget_one(self) -> None:
        idle = next((name for name, watching in self._channels.items() if not watching), None)
        if idle is None:
            raise ConfigurationError(f"at most {MAX_CHANNELS} channels are watched at once")
        del self._channels[idle]
        if self._connection is not None:
            await self._connection.remove_listener(idle, self._told)

    async def _open(self) -> None:
        connection = await self._connect()
        try:
            for name in self._channels:
                await connection.add_listener(name, self._told)
            connection.add_termination_listener(self._terminated)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self._lost.clear()

    async def keep(self) -> None:
        """Have it listen again whenever its connection is lost, and find out if that was not told."""
        pause = FIRST_PAUSE
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(ASKED_EVERY):
                    await self._lost.wait()
            try:
                async with asyncio.timeout(ANSWERS_WITHIN), self._changing:
                    if self._connection is not None:
                        await self._connection.execute("SELECT 1")
                    elif self._channels:
                        await self._open()
                        self._wake()  # Something may have been told meanwhile.
                    else:
                        self._lost.clear()
                pause = FIRST_PAUSE
            except (TimeoutError, OSError, StateError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if pause == FIRST_PAUSE:
                    logger.warning("changes of configuration are not heard for now: %s", error or "no answer")
                self._drop()
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def close(self) -> None:
        """Close its connection."""
        self._channels.clear()
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._lost.set()
        if connection is not None:
            connection.remove_termination_listener(self._terminated)
            connection.terminate()

    def _terminated(self, connection: object) -> None:
        if connection is self._connection:
            self._connection = None
            self._lost.set()

    def _told(self, _: object, process: int, channel: str, payload: object) -> None:
        key = _key(payload)
        for event, keys in self._channels.get(channel, {}).items():
            if not keys or key is None or key in keys:
                event.set()

    def _wake(self) -> None:
        for watching in self._channels.values():
            for event in watching:
                event.set()


def _key(payload: object) -> str | None:
    """Give the key that a notification is of, in the form that the reference asks for; None = any."""
    try:
        row = orjson.loads(payload if isinstance(payload, str) else "")["data"]
        return next(str(value) for name, value in row.items() if name.lower() == "key")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError, StopIteration):
        return None
