"""A connection that comes back: one supervisor reconnects, and calls wait for it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence

from brokers.redis._config import RedisConfig
from brokers.redis._scripts import Script
from brokers.redis._wire import Argument, ConnectionLostError, OnMessage, Reply, ReplyError, Wire, connect, pack
from mesh.errors import BrokerUnavailableError

__all__ = ["Connection"]

logger = logging.getLogger("brokers.redis")

FIRST_WAIT = 0.05
LONGEST_WAIT = 2.0
BUSY_WAIT = 0.1
MISSED_PINGS = 2
# Its credentials are wrong, or not enough: trying again changes nothing while we start.
REFUSED = frozenset({"WRONGPASS", "NOAUTH", "NOPERM", "DENIED"})
# It answers, but cannot serve just now.
NOT_NOW = frozenset({"LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"})
# A replica: what was the primary is found again by connecting anew.
MOVED = frozenset({"READONLY", "UNKILLABLE"})
PING = pack("PING")


class Connection:
    """One connection to Redis, under supervision.

    Attributes:
        wire: The socket while it is connected and prepared.
        reconnects: How often it came back.
    """

    def __init__(
        self,
        config: RedisConfig,
        purpose: str,
        *,
        prepare: Callable[[Wire], Awaitable[None]] | None = None,
        on_message: OnMessage | None = None,
    ) -> None:
        """Prepare it; ``open`` connects.

        Args:
            config: Where to.
            purpose: For the server's list of clients.
            prepare: Runs on each new socket, before it is used.
            on_message: Takes what is published to subscribed channels.
        """
        self._config = config
        self._name = f"brokermesh-{purpose}"
        self._prepare = prepare
        self._on_message = on_message
        self._closed = False
        self._resolved = asyncio.Event()  # Connected, or closed for good.
        self._restored: list[Callable[[], None]] = []
        self.wire: Wire | None = None
        self.reconnects = 0

    async def open(self) -> None:
        """Connect; ``supervise`` keeps it so.

        Raises:
            BrokerUnavailableError: Not within the time, or refused.
        """
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._config.connect_wait):
                for wait in _waits():
                    try:
                        await self._connect()
                        return
                    except (OSError, ConnectionLostError, ReplyError) as error:
                        last = error
                        if isinstance(error, ReplyError) and error.code in REFUSED:
                            raise self.unavailable(error) from error
                    await asyncio.sleep(wait)
        except TimeoutError:
            raise self.unavailable(last) from last

    async def _connect(self) -> None:
        wire = await connect(self._config, self._name, self._on_message)
        try:
            if self._prepare is not None:
                await self._prepare(wire)
        except BaseException:
            wire.abort()
            raise
        if wire.lost.done():
            raise ConnectionLostError
        self.wire = wire
        wire.lost.add_done_callback(self._note_loss)
        self._resolved.set()

    def _note_loss(self, lost: asyncio.Future[None]) -> None:
        if self.wire is not None and self.wire.lost is lost:
            self.wire = None
            self._resolved.clear()
            logger.warning("lost Redis at %s (%s); reconnecting", self._config.shown, self._name)

    async def supervise(self) -> None:
        """Watch, and connect again when it breaks, for ever."""
        while True:
            if self.wire is not None:
                await self._watch(self.wire)
            for wait in _waits():
                try:
                    await self._connect()
                    break
                except (OSError, ConnectionLostError, ReplyError) as error:
                    logger.debug("Redis at %s: %s", self._config.shown, error)
                await asyncio.sleep(wait)
            self.reconnects += 1
            logger.warning("Redis at %s is back (%s)", self._config.shown, self._name)
            for callback in self._restored:
                callback()

    async def _watch(self, wire: Wire) -> None:
        """Return when the socket is gone; a server that says nothing is as good as gone."""
        loop = asyncio.get_running_loop()
        interval = self._config.ping_interval
        while not wire.lost.done():
            await asyncio.wait([wire.lost], timeout=interval)
            if wire.outstanding and loop.time() - wire.heard_at > interval * MISSED_PINGS:
                wire.abort()
                await asyncio.wait([wire.lost])
            elif not wire.outstanding:
                _ = wire.send(PING)

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back after each reconnect."""
        self._restored.append(callback)

    def forget_restored(self, callback: Callable[[], None]) -> None:
        """Stop calling back."""
        self._restored.remove(callback)

    async def close(self) -> None:
        """Send what waits, and close for good; idempotent."""
        self._closed = True
        wire, self.wire = self.wire, None
        self._resolved.set()
        if wire is not None:
            await wire.close()

    def unavailable(self, error: Exception | None = None) -> BrokerUnavailableError:
        """Make the error that names where it points."""
        reason = f": {error}" if error is not None and str(error) else ""
        return BrokerUnavailableError(f"Redis at {self._config.shown} is not reachable{reason}")

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
        """Send a command and return its reply; see ``call_packed``."""
        return await self.call_packed(pack(*command), repeat=repeat)

    async def call_packed(self, packed: bytes, *, repeat: bool = True) -> Reply:
        """Send a command and return its reply; the caller bounds it in time.

        Args:
            packed: The command.
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
                return await wire.send(packed)
            except ConnectionLostError as error:
                if not repeat:
                    raise self.unavailable(error) from error
                if self.wire is wire:
                    await asyncio.sleep(0)  # Its loss is noted in the loop's next turn.
            except ReplyError as error:
                if not repeat or error.code not in NOT_NOW | MOVED:
                    raise
                if error.code in MOVED:
                    wire.abort()
                await asyncio.sleep(BUSY_WAIT)

    async def run(self, script: Script, keys: Sequence[Argument], *arguments: Argument, repeat: bool = True) -> Reply:
        """Run a script; see ``call_packed``."""
        return await self.run_packed(script, script.pack(keys, arguments), repeat=repeat)

    async def run_packed(self, script: Script, packed: bytes, *, repeat: bool = True) -> Reply:
        """Run a script that was packed before; one that the server has forgotten is loaded again."""
        while True:
            try:
                return await self.call_packed(packed, repeat=repeat)
            except ReplyError as error:
                if error.code != "NOSCRIPT":
                    raise
            await self.call("SCRIPT", "LOAD", script.text, repeat=repeat)

    def post(self, packed: bytes) -> asyncio.Future[Reply] | None:
        """Send a command now or not at all, and do not wait for its reply."""
        wire = self.wire
        return None if wire is None else wire.send(packed)


def _waits() -> Iterator[float]:
    """Give the waits between attempts to connect, growing, with jitter; whoever asks decides when to stop."""
    wait = FIRST_WAIT
    while True:
        yield wait * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret
        wait = min(wait * 2, LONGEST_WAIT)
