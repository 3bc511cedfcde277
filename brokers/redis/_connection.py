"""A connection that comes back: one supervisor reconnects, and calls wait for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from redis.asyncio import Connection as Socket

from brokers.redis._config import RedisConfig
from brokers.redis._scripts import Script
from brokers.redis._wire import (
    ERRORS,
    Argument,
    Command,
    ConnectionLostError,
    OnMessage,
    Reply,
    ReplyError,
    Wire,
    ask,
    connect,
    drop,
)
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.outage import Outage
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Connection"]

logger = logging.getLogger("brokers.redis")

BUSY_WAIT = 0.1
# Its credentials are wrong, or not enough: trying again changes nothing while we start.
REFUSED = frozenset({"WRONGPASS", "NOAUTH", "NOPERM", "DENIED"})
# It answers, but cannot serve just now.
NOT_NOW = frozenset({"LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"})
# A replica: what was the primary is found again by connecting anew.
MOVED = frozenset({"READONLY", "UNKILLABLE"})


class Connection:
    """One connection to Redis, under supervision.

    Attributes:
        wire: The socket while it is connected and prepared.
        reconnects: How often it came back.
        outage: Is told when it is lost, and when it is back.
    """

    def __init__(
        self,
        config: RedisConfig,
        purpose: str,
        outage: Outage,
        *,
        prepare: Callable[[Socket], Awaitable[None]] | None = None,
        on_message: OnMessage | None = None,
    ) -> None:
        """Prepare it; ``open`` connects, ``supervise`` makes it work.

        Args:
            config: Where to.
            purpose: For the server's list of clients.
            outage: What is told of it.
            prepare: Runs on each new socket, before it is used.
            on_message: Takes what is published to subscribed channels.
        """
        self._config = config
        self._name = f"brokermesh-{purpose}"
        self.outage = outage
        self._prepare = prepare
        self._on_message = on_message
        self._closed = False
        self._resolved = asyncio.Event()  # Connected, or closed for good.
        self._restored: list[Callable[[], None]] = []
        self.wire: Wire | None = None
        self.reconnects = 0

    async def open(self) -> None:
        """Connect, or find that nobody is there.

        Raises:
            BrokerUnavailableError: Not within the time, or refused.
        """
        try:
            async with asyncio.timeout(self._config.connect_wait):
                await self._connect()
        except (BrokerError, TimeoutError) as error:
            raise self.unavailable(error) from error

    async def _connect(self) -> None:
        socket = await connect(self._config, self._name)
        try:
            client_id = await ask(socket, "CLIENT", "ID")
            if self._prepare is not None:
                with ERRORS:
                    await self._prepare(socket)
        except BaseException:
            drop(socket)
            raise
        self.wire = Wire(socket, cast("int", client_id), self._on_message, self._note_loss)
        self._resolved.set()

    def _note_loss(self, reason: str | None) -> None:
        self.wire = None
        if not self._closed:
            self._resolved.clear()
            if reason is not None:
                self.outage.lost(reason, self)

    async def supervise(self) -> None:
        """Work, and connect again when it breaks, for ever; the connection is closed when this ends."""
        try:
            while True:
                if self.wire is not None:
                    await self.wire.run(self._config.ping_interval)
                for wait in waits():
                    try:
                        async with asyncio.timeout(CONNECT_WAIT):
                            await self._connect()
                        break
                    except (BrokerError, TimeoutError) as error:
                        logger.debug("Redis at %s: %s", self._config.shown, error)
                    await asyncio.sleep(wait)
                self.reconnects += 1
                self.outage.back(self)
                for callback in self._restored:
                    callback()
        finally:
            self.close()

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back after each reconnect."""
        self._restored.append(callback)

    def forget_restored(self, callback: Callable[[], None]) -> None:
        """Stop calling back."""
        self._restored.remove(callback)

    def close(self) -> None:
        """Close for good; idempotent."""
        self._closed = True
        self._resolved.set()
        self.outage.forget(self)
        if self.wire is not None:
            self.wire.abort()

    def unavailable(self, error: Exception | None = None) -> BrokerUnavailableError:
        """Make the error that names where it points."""
        made = unavailable(f"Redis at {self._config.shown}", error)
        return NotAdmittedError(str(made)) if isinstance(error, ReplyError) and error.reply_code in REFUSED else made

    async def connected(self) -> Wire:
        """Wait for the connection.

        Raises:
            BrokerUnavailableError: It was closed for good.
        """
        while (wire := self.wire) is None:
            if self._closed:
                raise self.unavailable()
            await self._resolved.wait()
        return wire

    async def call(self, *command: Argument, repeat: bool = True) -> Reply:
        """Send a command and return its reply; see ``execute``."""
        return await self.execute(command, repeat=repeat)

    async def execute(self, command: Command, *, repeat: bool = True) -> Reply:
        """Send a command and return its reply; the caller bounds it in time.

        Args:
            command: Its words.
            repeat: Wait for a connection, and send again when it broke; else raise, as the outcome is unknown.

        Raises:
            BrokerUnavailableError: The connection is closed, or broke and ``repeat`` is off.
            ReplyError: The server answered with an error.
        """
        while True:
            wire = self.wire
            if wire is None:
                if not repeat:
                    raise self.unavailable()
                wire = await self.connected()
            try:
                return await wire.send(command)
            except ConnectionLostError as error:
                if not repeat:
                    raise self.unavailable(error) from error
            except ReplyError as error:
                if not repeat or error.reply_code not in NOT_NOW | MOVED:
                    raise
                if error.reply_code in MOVED:
                    wire.abort(str(error))
                await asyncio.sleep(BUSY_WAIT)

    async def run(self, script: Script, keys: Sequence[Argument], *arguments: Argument, repeat: bool = True) -> Reply:
        """Run a script; see ``execute``."""
        return await self.run_command(script, script.command(keys, arguments), repeat=repeat)

    async def run_command(self, script: Script, command: Command, *, repeat: bool = True) -> Reply:
        """Run a script by its command; one that the server has forgotten is loaded again."""
        while True:
            try:
                return await self.execute(command, repeat=repeat)
            except ReplyError as error:
                if error.reply_code != "NOSCRIPT":
                    raise
            await self.call("SCRIPT", "LOAD", script.text, repeat=repeat)

    def post(self, command: Command) -> asyncio.Future[Reply] | None:
        """Send a command now or not at all, and do not wait for its reply."""
        wire = self.wire
        return None if wire is None else wire.send(command)
