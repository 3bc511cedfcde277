"""The connection that publishes: stored messages with confirmation, frames without.

It is apart from the one that consumes: a server short of memory or disk reads nothing more from
a connection that publishes, and acks must still get through.
"""

from __future__ import annotations

from brokers.rabbitmq import _topology
from brokers.rabbitmq import _wire as wire
from brokers.rabbitmq._config import RabbitMQConfig
from brokers.rabbitmq._connection import LOST, REFUSED, STORED, Channel, Connection, RefusedError
from brokers.rabbitmq._session import Session
from mesh.broker import Topology
from mesh.errors import BrokerUnavailableError, MessageTooLargeError, PublishRejectedError

__all__ = ["Publisher"]

NOT_FOUND = 404
METHOD_ROOM = 1024


class Publisher:
    """Publishes over one connection after another.

    Attributes:
        session: The connections.
        spaces: What was declared here, so that it is declared again on a server that lost it.
    """

    def __init__(self, config: RabbitMQConfig) -> None:
        self.session = Session(config, "publishing", self._prepare)
        self.spaces: dict[str, Topology] = {}
        self._known: set[str] = set()
        self._storing: Channel
        self._frames: Channel
        self._shown = config.shown

    async def _prepare(self, connection: Connection) -> None:
        self._known = {"", *await _topology.declare_again(connection, self.spaces.values())}
        self._storing = await connection.open_channel(wire.CONFIRM_SELECT)
        self._frames = await connection.open_channel(_topology.FRAMES_EXCHANGE)
        for channel in (self._storing, self._frames):
            channel.lost.add_done_callback(lambda _, lost=channel: _end(connection, lost))

    async def store(self, exchange: str, key: str, properties: bytes, body: bytes) -> None:
        """Publish, and return once the server has stored it; through a broken connection it publishes again.

        Raises:
            PublishRejectedError: The server refused.
            BrokerUnavailableError: This publisher is closed.
        """
        while True:
            connection = await self.session.live()
            if exchange not in self._known:
                await self._see(connection, exchange)
                continue
            if connection.congested and not await _drained(connection):
                continue
            limit_head(connection, properties)
            outcome = await self._storing.publish(exchange, key, properties, body)
            if outcome == STORED:
                return
            if outcome == REFUSED:
                raise PublishRejectedError(f"RabbitMQ at {self._shown} did not take it: a queue of {key!r} is full")
            if outcome != LOST:
                raise PublishRejectedError(f"RabbitMQ at {self._shown} has no queue that takes {key!r}")

    async def _see(self, connection: Connection, exchange: str) -> None:
        """See that an exchange is there: publishing to one that is not would end the channel for all."""
        try:
            async with connection.channel(wire.exchange_declare(exchange, passive=True)):
                self._known.add(exchange)
        except BrokerUnavailableError:
            return  # The next connection will tell.
        except RefusedError as error:
            if error.code != NOT_FOUND:
                raise PublishRejectedError(f"RabbitMQ at {self._shown}: {error}") from error
            raise PublishRejectedError(f"{exchange} was never declared on RabbitMQ at {self._shown}") from error

    async def post(self, exchange: str, key: str, properties: bytes, body: bytes, *, mandatory: bool) -> None:
        """Publish a frame, unconfirmed.

        Raises:
            BrokerUnavailableError: There is no connection.
        """
        connection = self.session.current()
        if connection.congested:
            await connection.writable()
        limit_head(connection, properties)
        self._frames.post(exchange, key, properties, body, mandatory=mandatory)

    def on_return(self, channel_return: object) -> None:
        raise NotImplementedError


def _end(connection: Connection, channel: Channel) -> None:
    """End a connection one of whose channels was closed by the server; another is opened whole."""
    if connection.error is None and channel.error is not None:
        connection.abort(BrokerUnavailableError(str(channel.error)))


async def _drained(connection: Connection) -> bool:
    try:
        await connection.writable()
    except BrokerUnavailableError:
        return False
    return True


def limit_head(connection: Connection, properties: bytes) -> None:
    """Refuse headers that do not fit into one frame, as AMQP has it: the server would hang up."""
    room = connection.frame_max - METHOD_ROOM
    if len(properties) > room:
        raise MessageTooLargeError(len(properties), room)
