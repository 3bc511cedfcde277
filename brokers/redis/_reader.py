"""Blocking reads: on a connection of their own, and ended early from another one."""

from __future__ import annotations

import asyncio

from brokers.redis._config import RedisConfig
from brokers.redis._connection import Connection
from brokers.redis._wire import Argument, Reply
from mesh.errors import BrokerError

__all__ = ["Reader"]

UNBLOCK_WAIT = 0.005


class Reader:
    """A connection for one blocking command at a time.

    Attributes:
        connection: The connection.
        until: Loop time at which the present call ends by itself; 0 when there is none.
    """

    def __init__(self, config: RedisConfig, commands: Connection) -> None:
        """Prepare.

        Args:
            config: Where to connect to.
            commands: The connection to end a call from.
        """
        self.connection = Connection(config, "reader", commands.outage)
        self.until = 0.0
        self._commands = commands
        self._calls = 0
        self._call: int | None = None

    async def block(self, wait: float, *command: Argument) -> Reply:
        """Send a command that blocks for so many seconds; its reply may be lost.

        Raises:
            BrokerUnavailableError: The connection broke, or is not there.
            ReplyError: The server answered with an error.
        """
        self._calls += 1
        self._call = self._calls
        self.until = asyncio.get_running_loop().time() + wait
        try:
            reply = await self.connection.call(*command, repeat=False)
        except BrokerError:
            self._call = None
            raise
        finally:
            self.until = 0.0
        self._call = None  # But after a cancellation the call goes on, on the server, until ``abandon`` ends it.
        return reply

    def interrupt(self) -> None:
        """End the present call, as if its time were over."""
        self.until = 0.0
        self._unblock(self._call)

    def _unblock(self, call: int | None) -> None:
        """Ask for it again and again: the call may still be on its way to the server."""
        wire = self.connection.wire
        if call is None or call != self._call or wire is None:
            return
        sent = self._commands.post(("CLIENT", "UNBLOCK", wire.client_id))
        if sent is not None:
            sent.add_done_callback(lambda sent: self._unblocked(call, sent))

    def _unblocked(self, call: int, sent: asyncio.Future[Reply]) -> None:
        if sent.exception() is None and sent.result() == 0:
            asyncio.get_running_loop().call_later(UNBLOCK_WAIT, self._unblock, call)

    def abandon(self) -> None:
        """End a call that nobody waits for any more, before it is handed something."""
        wire = self.connection.wire
        if self._call is not None and wire is not None:
            self._call = None
            self._commands.post(("CLIENT", "UNBLOCK", wire.client_id))
