"""A connection that comes back: the only place that connects, and reconnects."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from brokers.rabbitmq._channel import Channel
from brokers.rabbitmq._config import RabbitMQConfig
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._refusals import RefusedError
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, cause_of, unavailable
from brokers.shared.outage import Outage
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Attachment", "Reconnecting", "Session"]

logger = logging.getLogger("brokers.rabbitmq")

STEADY = 5.0
SETTINGS_ARE_WRONG = frozenset({403, 530})  # Login refused; no such virtual host.

Prepare = Callable[[Connection], Awaitable[None]]


class Single(Protocol):
    """One connection.

    Attributes:
        closed: Resolved when it is over.
        error: Why; None while it is up.
    """

    closed: asyncio.Future[None]
    error: BrokerError | None

    async def close(self) -> None:
        """Close it, and let go of it; idempotent."""

    def abort(self, error: BrokerError) -> None:
        """Drop it at once."""


_Single = TypeVar("_Single", bound=Single)


class Reconnecting(Generic[_Single]):
    """One connection after another, each made ready before anybody gets it."""

    def __init__(
        self,
        open_one: Callable[[str, int, RabbitMQConfig, str], Awaitable[_Single]],
        config: RabbitMQConfig,
        purpose: str,
        prepare: Callable[[_Single], Awaitable[object]],
        outage: Outage,
    ) -> None:
        """Prepare.

        Args:
            open_one: Connects to a host and a port; raises RefusedError, or OSError.
            config: Where to, and as whom.
            purpose: For the connection's name on the server.
            prepare: Makes a connection ready; what it raises ends that connection.
            outage: Is told when it is lost, and when it is back.
        """
        self._open_one = open_one
        self._config = config
        self._prepare = prepare
        self._outage = outage
        self._purpose = purpose
        self._connection: _Single | None = None
        self._ready = asyncio.Event()  # There is a connection, or there never will be.
        self._closed = False
        self._turn = 0
        self._waits = waits(config.max_backoff)
        self._last_error: Exception | None = None

    async def open(self) -> None:
        """Connect, or find that nobody is there; each server is asked once.

        Raises:
            BrokerUnavailableError: None lets us in.
        """
        try:
            async with asyncio.timeout(self._config.connect_wait):
                await self._connect(attempts=len(self._config.hosts))
        except (OSError, BrokerError) as error:
            raise self._unavailable(error) from error

    async def keep(self) -> None:
        """Reconnect whenever it is lost, until cancelled."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while True:
            connection = self._connection
            if connection is not None:
                await asyncio.shield(connection.closed)
                await connection.close()
                self._outage.lost(connection.error, self)
            self._ready.clear()
            if loop.time() - since > STEADY:
                self._waits = waits(self._config.max_backoff)
            else:
                await self._pause()  # It did not last: what ended it may end the next one as well.
            await self._connect()
            since = loop.time()
            self._last_error = None
            self._outage.back(self)

    async def _connect(self, attempts: float = math.inf) -> None:
        while True:
            try:
                async with asyncio.timeout(CONNECT_WAIT):
                    await self._make_ready(await self.dial())
                return
            except (OSError, BrokerError) as error:
                attempts -= 1
                if attempts <= 0 or (attempts < math.inf and _is_final(error)):
                    raise
                self._note(error)
            self._turn += 1
            await self._pause()

    async def _pause(self) -> None:
        """Wait, from time to time longer."""
        await asyncio.sleep(next(self._waits))

    async def dial(self) -> _Single:
        """Open one more connection, for the caller alone.

        Raises:
            RefusedError: The server does not let us in.
            OSError: It cannot be reached.
        """
        host, port = self._config.hosts[self._turn % len(self._config.hosts)]
        return await self._open_one(host, port, self._config, self._purpose)

    async def _make_ready(self, connection: _Single) -> None:
        try:
            await self._prepare(connection)
        except BaseException:
            connection.abort(BrokerUnavailableError("the connection was given up"))
            raise
        self._connection = connection
        self._ready.set()

    def _note(self, error: Exception) -> None:
        if str(error) != str(self._last_error):
            logger.debug("cannot connect to RabbitMQ at %s: %s", self._config.shown, cause_of(error))
        self._last_error = error

    async def close(self) -> None:
        """Close it for good; idempotent."""
        self._closed = True
        self._ready.set()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @property
    def connection(self) -> _Single | None:
        """The connection, if there is one now."""
        connection = self._connection
        return None if connection is None or connection.error is not None else connection

    def current(self) -> _Single:
        """Give the connection.

        Raises:
            BrokerUnavailableError: There is none now.
        """
        connection = self.connection
        if connection is None:
            raise self._unavailable(self._last_error)
        return connection

    async def live(self) -> _Single:
        """Wait for the connection.

        Raises:
            BrokerUnavailableError: The session is closed.
        """
        while (connection := self.connection) is None:
            if self._closed:
                raise self._unavailable()
            self._ready.clear()
            await self._ready.wait()
        return connection

    def _unavailable(self, error: Exception | None = None) -> BrokerUnavailableError:
        made = unavailable(f"RabbitMQ at {self._config.shown}", None if self._closed else error)
        return NotAdmittedError(str(made)) if _is_final(error) else made


class Session(Reconnecting[Connection]):
    """One connection of the mesh's own layout after another."""

    def __init__(self, config: RabbitMQConfig, purpose: str, prepare: Prepare, outage: Outage) -> None:
        """Prepare."""
        super().__init__(Connection.open, config, purpose, prepare, outage)


def _is_final(error: Exception | None) -> bool:
    return isinstance(error, RefusedError) and error.reply_code in SETTINGS_ARE_WRONG


Open = Callable[[Connection], Awaitable[Channel]]


class Attachment:
    """A channel that is opened anew whenever it is lost.

    Attributes:
        channel: The present one; None before the first.
    """

    def __init__(self, session: Session, open_channel: Open, what: str) -> None:
        """Prepare.

        Args:
            session: Whose connections to use.
            open_channel: Opens the channel and all that belongs to it.
            what: For the log.
        """
        self._session = session
        self._open = open_channel
        self._what = what
        self._keeping: asyncio.Task[None] | None = None
        self.channel: Channel | None = None

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open it; from then on a task sees to it.

        Raises:
            BrokerError: The server refused.
        """
        while True:
            connection = await self._session.live()
            try:
                channel = self.channel = await self._open(connection)
                break
            except BrokerUnavailableError:
                continue  # The connection broke; there will be another, or none any more.
        self._keeping = tasks.create_task(self._keep(channel), name="rabbitmq-attachment")

    async def _keep(self, channel: Channel) -> None:
        while True:
            await asyncio.shield(channel.lost)
            for wait in waits():
                try:
                    channel = self.channel = await self._open(await self._session.live())
                    break
                except BrokerUnavailableError:
                    pass
                except BrokerError as error:
                    logger.warning("cannot go on with %s: %s", self._what, error)
                await asyncio.sleep(wait)

    def stop(self) -> None:
        """Open it no more; the present one stays until it is closed."""
        if self._keeping is not None:
            self._keeping.cancel()
