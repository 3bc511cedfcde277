"""Frames: published to channels, and received over one subscribed connection a node.

A frame on a channel is ``B`` + head + body, or ``R`` + name of the stored body + line feed + head. The head is a line
``<token> <reply address>``, a line ``name:value`` for each header, and an empty line.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Connection as Socket

from brokers.redis._config import RedisConfig
from brokers.redis._connection import Connection
from brokers.redis._scripts import FETCH_BODY, SEND, SEND_LARGE, SERVE, UNSERVE
from brokers.redis._wire import ConnectionLostError, Reply, ReplyError
from brokers.shared.inboxes import NODE_NAME, Inboxes
from brokers.shared.outage import Outage
from mesh.address import Address, encode_token
from mesh.broker import Frame, Message, Sink, not_allowed
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Frames"]

logger = logging.getLogger("brokers.redis")

INLINE_BYTES = 16 * 1024
BODY_TTL_MS = 60_000
MAX_FETCHES = 16
MAX_QUEUED = 8192
LEAVE_WAIT = 1.0
Receive = Callable[[bytes], None]
_NOTHING = Frame(None, "", "")


@dataclass(slots=True)
class _Queued:
    """A frame whose turn has not come, as its body, or that of one before it, is still being fetched."""

    sink: Sink
    frame: Frame
    body_name: bytes | None
    body: asyncio.Future[Reply] | None = None

    @property
    def is_ready(self) -> bool:
        return self.body_name is None or (self.body is not None and self.body.done())

    def hand_on(self) -> None:
        """Give it to its sink; one whose body is lost is lost."""
        frame = self.frame
        if self.body is not None and frame.message is not None:
            body = None if self.body.exception() is not None else self.body.result()
            if not isinstance(body, bytes):
                return
            frame = Frame(Message(frame.message.headers, body), frame.token, frame.reply_to)
        self.sink(frame)


class Frames:
    """This node's channels: its inbox, what it serves, what it listens to."""

    def __init__(self, config: RedisConfig, outage: Outage, commands: Connection, inbox: str) -> None:
        """Prepare.

        Args:
            config: Where to connect to.
            outage: Is told of the connection.
            commands: The connection for everything but receiving.
            inbox: This node's address.
        """
        self.inbox = inbox
        self._inboxes = Inboxes("Redis", rf"{NODE_NAME}\.\S*")
        self.sink: Sink | None = None
        self.connection = Connection(config, "frames", outage, prepare=self._subscribe, on_message=self._receive)
        self._commands = commands
        self._suffix = f"@{config.db}" if config.db else ""  # Channels are the same for all databases.
        self._channels: dict[bytes, list[Receive]] = {inbox.encode(): [self._receive_inbox]}
        self._served: dict[str, tuple[str, str]] = {}
        self._numbers = itertools.count(1)
        self._queue: deque[_Queued] = deque()
        self._fetching = 0

    # Channels

    async def _subscribe(self, socket: Socket) -> None:
        channels = list(self._channels)
        await socket.send_command("SUBSCRIBE", *channels, check_health=False)
        subscribed = 0
        while subscribed < len(channels):
            kind, channel, content = await socket.read_response()
            if kind == b"message":
                self._receive(channel, content)
            else:
                subscribed += 1

    def _receive(self, channel: bytes, payload: bytes) -> None:
        receivers = self._channels.get(channel)
        if receivers is None:
            self.connection.post(("UNSUBSCRIBE", channel))  # A leftover of an interrupted leave.
            return
        for receive in receivers:
            try:
                receive(payload)
            except Exception:  # One frame's failure is not the connection's.
                logger.exception("cannot take a frame on %r", channel)

    @asynccontextmanager
    async def wakes(self, name: str, wake: Receive) -> AsyncIterator[None]:
        """Take what a group's channel says; after a reconnect, anything may have been said meanwhile."""

        def catch_up() -> None:
            wake(b"+")

        async with self.channel(name, wake):
            self.connection.on_restored(catch_up)
            try:
                yield
            finally:
                self.connection.forget_restored(catch_up)

    @asynccontextmanager
    async def channel(self, name: str, receive: Receive) -> AsyncIterator[None]:
        """Subscribe to a channel; what was published before leaving is received."""
        channel = name.encode()
        self._channels.setdefault(channel, []).append(receive)
        try:
            await self.connection.call("SUBSCRIBE", channel)
            yield
        finally:
            receivers = self._channels[channel]
            try:
                if len(receivers) == 1:
                    await self._unsubscribe(channel)
            finally:
                receivers.remove(receive)
                if not receivers:
                    del self._channels[channel]

    async def _unsubscribe(self, channel: bytes) -> None:
        done = self.connection.post(("UNSUBSCRIBE", channel))
        if done is not None:
            try:
                async with asyncio.timeout(LEAVE_WAIT):
                    await done
            except (TimeoutError, ConnectionLostError, ReplyError):
                return  # It is subscribed to no more, or will be unsubscribed from with the next message.

    # Receiving

    def _receive_inbox(self, payload: bytes) -> None:
        if self.sink is not None:
            self._deliver(self.sink, payload)

    def _deliver(self, sink: Sink, payload: bytes) -> None:
        """Hand a frame to its sink, after those that came before it."""
        head, _, body = payload.partition(b"\n\n")
        first, *lines = head.decode().split("\n")
        body_name: bytes | None = None
        if first[0] == "R":
            body_name, (first, *lines) = first[1:].encode(), lines
        else:
            first = first[1:]
        token, _, reply_to = first.partition(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name] = value
        frame = Frame(Message(headers, body), token, self._inboxes.reply_to(reply_to))
        if body_name is None and not self._queue:
            sink(frame)
        elif len(self._queue) < MAX_QUEUED:
            self._queue.append(_Queued(sink, frame, body_name))
            self._fetch()
        else:
            logger.warning("dropped a frame: %d wait for their bodies", len(self._queue))

    def _fetch(self) -> None:
        """Fetch the next bodies, some at a time, and hand on what is complete."""
        for queued in self._queue:
            if self._fetching >= MAX_FETCHES:
                break
            if queued.body_name is not None and queued.body is None:
                queued.body = self._commands.post(FETCH_BODY.command([queued.body_name], []))
                if queued.body is None:
                    self._queue.remove(queued)
                    break
                self._fetching += 1
                queued.body.add_done_callback(self._fetched)
        while self._queue and self._queue[0].is_ready:
            self._queue.popleft().hand_on()

    def _fetched(self, body: asyncio.Future[Reply]) -> None:
        self._fetching -= 1
        self._fetch()

    async def _passed(self) -> None:
        """Wait until everything received so far has reached its sink."""
        if self._queue:
            passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(_Queued(lambda _: _resolve(passed), _NOTHING, None))
            await asyncio.wait([passed], timeout=LEAVE_WAIT)

    # Sending

    async def send(self, to: str | Address, message: Message, reply_to: str) -> None:
        """Publish a frame; it is received, or lost.

        Raises:
            BrokerUnavailableError: There is no connection; nor is one sent whose answer could not be received yet.
        """
        served = isinstance(to, Address)
        if reply_to and self.connection.wire is None:
            raise self.connection.unavailable()
        target = f"{to}:serve" if isinstance(to, Address) else self._inboxes.check(to)
        target, _, token = (target, "", "") if served else target.partition(".")
        head = _head(token, reply_to, message)
        body, commands, wire = message.body, self._commands, self._commands.wire
        try:
            if len(body) > INLINE_BYTES:
                name = f"{self.inbox}:{next(self._numbers)}"
                kind = "1" if served else "0"
                received = await commands.run(SEND_LARGE, [target], kind, head, body, name, BODY_TTL_MS, repeat=False)
            elif served:
                received = await commands.run(SEND, [target], "1", head, body, "", 0, repeat=False)
            else:
                received = await commands.call("PUBLISH", target, b"B" + head + body, repeat=False)
        except ReplyError as error:
            if isinstance(to, Address) and error.reply_code == "NOPERM":
                raise not_allowed(to.label) from error
            raise BrokerError(f"Redis refused a frame: {error}") from error
        except BrokerUnavailableError:
            if not served or wire is None:
                raise
            return  # It may have been taken: a call is not made again for that.
        inbox, _, token = reply_to.partition(".")
        if received == 0 and inbox == self.inbox and self.sink is not None:
            self.sink(Frame(None, token, ""))

    async def broadcast(self, address: Address, message: Message) -> None:
        """Publish to all who listen."""
        payload = b"B" + _head("", "", message) + message.body
        try:
            await self._commands.call("PUBLISH", f"{address}{self._suffix}", payload, repeat=False)
        except ReplyError as error:
            raise BrokerError(f"Redis refused a frame: {error}") from error

    # Serving

    @asynccontextmanager
    async def listen(self, address: Address, sink: Sink) -> AsyncIterator[None]:
        """Receive what is broadcast."""
        async with self.channel(f"{address}{self._suffix}", lambda payload: self._deliver(sink, payload)):
            yield

    @asynccontextmanager
    async def serve(self, address: Address, group: str, sink: Sink) -> AsyncIterator[None]:
        """Be one of those that serve an address; a channel of its own says when it is the last frame's turn."""
        name, key = f"{self.inbox}:s{next(self._numbers)}", f"{address}:serve"
        try:
            async with self.channel(name, lambda payload: self._deliver(sink, payload)):
                self._served[name] = (key, encode_token(group))
                try:
                    await self._commands.run(SERVE, [key], encode_token(group), name)
                    yield
                finally:
                    del self._served[name]
                    await self._withdraw(key, encode_token(group), name)
        finally:
            await self._passed()

    async def _withdraw(self, key: str, group: str, name: str) -> None:
        done = self._commands.post(UNSERVE.command([key], [group, name]))
        if done is not None:
            try:
                async with asyncio.timeout(LEAVE_WAIT):
                    await done
            except (TimeoutError, ConnectionLostError, ReplyError):
                return  # The first frame that finds nobody at the channel removes it.

    async def keep_serving(self, interval: float) -> None:
        """Say again what is served here, after each reconnect and from time to time: the server may have lost it."""
        again = asyncio.Event()
        for connection in (self.connection, self._commands):
            connection.on_restored(again.set)
        while True:
            try:
                async with asyncio.timeout(interval):
                    await again.wait()
            except TimeoutError:
                pass
            again.clear()
            await self._serve_again()

    async def _serve_again(self) -> None:
        for name, (key, group) in list(self._served.items()):
            try:
                await self._commands.run(SERVE, [key], group, name, repeat=False)
            except (BrokerUnavailableError, ReplyError) as error:
                logger.debug("cannot renew %s: %s", key, error)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _head(token: str, reply_to: str, message: Message) -> bytes:
    lines = [f"{token} {reply_to}", *(f"{name}:{value}" for name, value in message.headers.items()), "", ""]
    return "\n".join(lines).encode()
