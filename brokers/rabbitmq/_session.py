"""A connection that comes back: the only place that connects, and reconnects."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from brokers.rabbitmq._channel import Channel
from brokers.rabbitmq._config import RabbitMQConfig
from brokers.rabbitmq._connection import Connection, Login
from brokers.rabbitmq._refusals import RefusedError
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Attachment", "Session"]

logger = logging.getLogger("brokers.rabbitmq")

ATTEMPT_WAIT = 10.0
FIRST_BACKOFF = 0.05
MAX_BACKOFF = 2.0
STEADY = 5.0
SETTINGS_ARE_WRONG = frozenset({403, 530})  # Login refused; no such virtual host.

Prepare = Callable[[Connection], Awaitable[None]]


class Session:
    """One connection after another, each made ready before anybody gets it."""

    def __init__(self, config: RabbitMQConfig, purpose: str, prepare: Prepare) -> None:
        """Prepare.

        Args:
            config: Where to, and as whom.
            purpose: For the connection's name on the server.
            prepare: Makes a connection ready; what it raises ends that connection.
        """
        self._config = config
        self._prepare = prepare
        self._login = Login(
            user=config.user,
            password=config.password,
            external=config.external,
            vhost=config.vhost,
            heartbeat=config.heartbeat,
            name=f"{config.name} ({purpose})",
        )
        self._connection: Connection | None = None
        self._ready = asyncio.Event()  # There is a connection, or there never will be.
        self._closed = False
        self._turn = 0
        self._backoff = 0.0
        self._last_error = ""

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailableError: Not within ``connect_wait``.
        """
        try:
            async with asyncio.timeout(self._config.connect_wait):
                await self._connect(first=True)
        except TimeoutError:
            reason = f": {self._last_error}" if self._last_error else ""
            raise BrokerUnavailableError(f"no RabbitMQ answers at {self._config.shown}{reason}") from None

    async def keep(self) -> None:
        """Reconnect whenever it is lost, until cancelled."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while True:
            connection = self._connection
            if connection is not None:
                await asyncio.shield(connection.closed)
                logger.warning("lost RabbitMQ at %s: %s; reconnecting", self._config.shown, connection.error)
            self._ready.clear()
            if loop.time() - since > STEADY:
                self._backoff = 0.0
            else:
                await self._pause()  # It did not last: what ended it may end the next one as well.
            await self._connect(first=False)
            since = loop.time()
            self._last_error = ""
            logger.warning("RabbitMQ at %s is back", self._config.shown)

    async def _connect(self, *, first: bool) -> None:
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_WAIT):
                    await self._make_ready(await self.dial())
                return
            except RefusedError as error:
                if first and error.reply_code in SETTINGS_ARE_WRONG:
                    raise BrokerUnavailableError(f"RabbitMQ at {self._config.shown}: {error}") from error
                self._note(error)
            except (OSError, BrokerError, TimeoutError) as error:
                self._note(error)
            self._turn += 1
            await self._pause()

    async def _pause(self) -> None:
        """Wait, from time to time longer."""
        self._backoff = min(max(self._backoff * 2, FIRST_BACKOFF), self._config.max_backoff)
        await asyncio.sleep(random.uniform(self._backoff / 2, self._backoff))  # noqa: S311 - it only spreads the load

    async def dial(self) -> Connection:
        """Open one more connection, for the caller alone.

        Raises:
            RefusedError: The server does not let us in.
            OSError: It cannot be reached.
        """
        host, port = self._config.hosts[self._turn % len(self._config.hosts)]
        return await Connection.open(host, port, self._config.tls, self._login)

    async def _make_ready(self, connection: Connection) -> None:
        try:
            await self._prepare(connection)
        except BaseException:
            connection.abort(BrokerUnavailableError("the connection was given up"))
            raise
        self._connection = connection
        self._ready.set()

    def _note(self, error: Exception) -> None:
        text = str(error) or "it does not answer"
        if text != self._last_error:
            self._last_error = text
            logger.info("cannot connect to RabbitMQ at %s: %s", self._config.shown, text)

    async def close(self) -> None:
        """Close it for good; idempotent."""
        self._closed = True
        self._ready.set()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @property
    def connection(self) -> Connection | None:
        """The connection, if there is one now."""
        connection = self._connection
        return None if connection is None or connection.error is not None else connection

    def current(self) -> Connection:
        """Give the connection.

        Raises:
            BrokerUnavailableError: There is none now.
        """
        connection = self.connection
        if connection is None:
            raise self._unavailable()
        return connection

    async def live(self) -> Connection:
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

    def _unavailable(self) -> BrokerUnavailableError:
        reason = "" if self._closed or not self._last_error else f": {self._last_error}"
        return BrokerUnavailableError(f"RabbitMQ at {self._config.shown} is not reachable{reason}")


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
            backoff = FIRST_BACKOFF
            while True:
                try:
                    channel = self.channel = await self._open(await self._session.live())
                    break
                except BrokerUnavailableError:
                    pass
                except BrokerError as error:
                    logger.warning("cannot go on with %s: %s", self._what, error)
                await asyncio.sleep(random.uniform(backoff / 2, backoff))  # noqa: S311 - it only spreads the load
                backoff = min(backoff * 2, MAX_BACKOFF)

    def stop(self) -> None:
        """Open it no more; the present one stays until it is closed."""
        if self._keeping is not None:
            self._keeping.cancel()
