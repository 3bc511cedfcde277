"""The connection that publishes: stored messages with confirmation, frames without.

It is apart from the one that consumes: a server short of memory or disk reads nothing more from a
connection that publishes, and acks must still get through.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial

from aiormq import spec

from brokers.rabbitmq._channel import LOST, REFUSED, STORED, Channel, Publish
from brokers.rabbitmq._config import RabbitMQConfig
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._line import Line
from brokers.rabbitmq._message import headers_size
from brokers.rabbitmq._refusals import RefusedError
from brokers.rabbitmq._session import Session
from brokers.rabbitmq._topology import FRAMES_EXCHANGE, Space, declare, declare_again
from brokers.shared.outage import Outage
from mesh.errors import BrokerUnavailableError, MessageTooLargeError, PublishRejectedError

__all__ = ["Publisher"]

NOT_FOUND = 404
FRAME_ROOM = 1024  # For the other properties.
MAX_REFUSALS = 8
REFUSED_WAIT = 0.25
_NOT_ALLOWED = re.compile(r"access to topic '([^']+)' in exchange '[^']+' .*refused")


class Publisher:
    """Publishes over one connection after another.

    Attributes:
        session: The connections.
        spaces: What was declared here, by its name; a server that lost it gets it again.
        on_return: Called with the properties of a frame that nobody takes.
        on_refused: Called with the routing key of a frame that this user may not send.
    """

    def __init__(
        self,
        config: RabbitMQConfig,
        on_return: Callable[[spec.Basic.Properties], None],
        on_refused: Callable[[str], None],
        outage: Outage,
    ) -> None:
        self.session = Session(config, "publishing", self._prepare, outage)
        self.spaces: dict[str, Space] = {}
        self.on_return = on_return
        self.on_refused = on_refused
        self._shown = config.shown
        self._known: set[str] = set()
        self._limited: set[str] = set()
        self._line = Line()
        self._storing: Channel
        self._frames: Channel

    async def _prepare(self, connection: Connection) -> None:
        self._known = {"", *await declare_again(connection, list(self.spaces.values()))}
        self._storing = await connection.open_channel(confirms=True)
        self._frames = await connection.open_channel(FRAMES_EXCHANGE, confirms=True)
        self._frames.on_return = self.on_return
        self._frames.lost.add_done_callback(partial(self._note_refused, self._frames))
        for channel in (self._storing, self._frames):
            channel.lost.add_done_callback(partial(_end, connection, channel))

    def _note_refused(self, channel: Channel, lost: asyncio.Future[None]) -> None:
        """Tell what for the server closed the channel of frames, where its rights are the reason."""
        if isinstance(channel.error, RefusedError) and (found := _NOT_ALLOWED.search(channel.error.text)) is not None:
            self.on_refused(found[1])

    async def declare(self, space: Space) -> None:
        """Create a space, or see that it is as wanted.

        Raises:
            TopologyMismatchError: It exists and differs.
        """
        while True:
            connection = await self.session.live()
            try:
                await declare(connection, space)
            except BrokerUnavailableError:
                continue
            self.spaces[space.topology.space] = space
            self._known.add(space.exchange)
            if space.topology.max_bytes is not None or space.max_events is not None:
                self._limited.add(space.exchange)
            return

    async def store(
        self, exchange: str, key: str, properties: spec.Basic.Properties, body: bytes, *, refusals: int = MAX_REFUSALS
    ) -> None:
        """Publish, and return once the server has stored it; through a broken connection, publish again.

        Args:
            exchange: Where to.
            key: The routing key.
            properties: From `encode`.
            body: The body.
            refusals: How many times to publish again what was refused without a limit.

        Raises:
            PublishRejectedError: The server refused.
            BrokerUnavailableError: The session is closed.
        """
        number = self._line.number()
        suspect = False
        while True:
            outcome = LOST
            with self._line.place(number) as place:
                await self._line.first(place)
                connection = await self.session.live()
                if not self._line.is_first(place):  # An earlier one came back meanwhile.
                    continue
                await self.see(exchange)
                message = Publish(exchange, key, properties, body, self._limit(connection, properties))
                channel = self._storing
                if suspect:
                    outcome = await self._store_alone(connection, message)
                else:
                    await channel.room()
            if not suspect:  # In order, since nothing is awaited in between.
                outcome = await channel.publish(message)
                if outcome == LOST:
                    await asyncio.shield(channel.lost)
                    suspect = isinstance(channel.error, RefusedError)
            if outcome == STORED:
                return
            if outcome == REFUSED:
                refusals -= 1
                if refusals < 0 or exchange in self._limited:
                    raise PublishRejectedError(
                        f"RabbitMQ at {self._shown} did not take it: a queue for {key!r} is full"
                    )
                await asyncio.sleep(REFUSED_WAIT)  # Without a limit it is not full; a queue may be without a leader.
                continue
            if outcome != LOST:
                raise PublishRejectedError(f"RabbitMQ at {self._shown} has no queue for {key!r}")
            await asyncio.sleep(0)  # A lost channel ends its connection in the next turn of the loop.

    async def _store_alone(self, connection: Connection, message: Publish) -> int:
        """Publish over a channel of its own: the server closed the common one, and did not say what for.

        Raises:
            PublishRejectedError: It was for this one.
        """
        try:
            channel = await connection.open_channel(confirms=True)
        except BrokerUnavailableError:
            return LOST
        try:
            outcome = await channel.publish(message)
            if outcome == LOST:
                await asyncio.shield(channel.lost)
                if isinstance(channel.error, RefusedError):
                    raise PublishRejectedError(f"RabbitMQ at {self._shown} did not take it: {channel.error.text}")
            return outcome
        finally:
            channel.close()

    async def see(self, exchange: str) -> None:
        """See that an exchange is there: publishing to one that is not ends the channel, for everybody.

        Raises:
            PublishRejectedError: It is not.
        """
        while exchange not in self._known:
            connection = await self.session.live()
            try:
                async with connection.channel(spec.Exchange.Declare(exchange=exchange, passive=True)):
                    self._known.add(exchange)
            except BrokerUnavailableError:
                continue  # The next connection will tell.
            except RefusedError as error:
                reason = "was never declared" if error.reply_code == NOT_FOUND else str(error)
                raise PublishRejectedError(f"{exchange} on RabbitMQ at {self._shown}: {reason}") from error

    async def post(
        self, exchange: str, key: str, properties: spec.Basic.Properties, body: bytes, *, mandatory: bool
    ) -> None:
        """Publish a frame, without confirmation.

        Raises:
            BrokerUnavailableError: There is no connection.
        """
        size = self._limit(self.session.current(), properties)
        channel = self._frames
        await channel.room()
        if channel.error is not None:
            raise BrokerUnavailableError(str(channel.error))
        channel.post(Publish(exchange, key, properties, body, size, mandatory=mandatory))

    def _limit(self, connection: Connection, properties: spec.Basic.Properties) -> int:
        """Refuse headers that do not fit into one frame, as they must: the server would hang up; give their size."""
        room = connection.frame_max - FRAME_ROOM
        size = headers_size(properties)
        if size > room:
            raise MessageTooLargeError(size, room)
        return size

    async def check(self) -> None:
        """Ask the server for a sign of life.

        Raises:
            BrokerUnavailableError: There is no connection, or it takes no publishes now.
        """
        connection = self.session.current()
        if await connection.blocked():
            raise BrokerUnavailableError(f"RabbitMQ at {self._shown} takes no publishes: it is short of memory or disk")
        async with connection.channel():
            return


def _end(connection: Connection, channel: Channel, lost: asyncio.Future[None]) -> None:
    """End the connection whose channel the server closed; the next one has both again."""
    if isinstance(channel.error, RefusedError):
        connection.abort(BrokerUnavailableError(str(channel.error)))
