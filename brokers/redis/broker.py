"""The adapter class; what maps to what stands in the package's docstring."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from redis.asyncio import Connection as Socket

from brokers.redis._config import RedisConfig, RedisSettings
from brokers.redis._connection import Connection
from brokers.redis._consumer import Consumer
from brokers.redis._entries import channel_of, group_id, id_key, message_fields, stream_of
from brokers.redis._frames import Frames
from brokers.redis._group_scripts import ACK_IN_ORDER, EXTEND, LOOK, NACK, RELEASE
from brokers.redis._inspection import Inspection
from brokers.redis._kv import DELETE, DELETE_EACH, PUT, PUT_EACH, SCAN, RedisKeyValue
from brokers.redis._scripts import FETCH_BODY, SEND, SEND_LARGE, SERVE, UNSERVE
from brokers.redis._spaces import UNDECLARED, Spaces
from brokers.redis._topic_scripts import BACKLOG, DECLARE, DROP, JOIN, PUBLISH, REMOVE, TRIM
from brokers.redis._wire import Argument, Command, Reply, ReplyError, ask
from brokers.shared.adapter import Adapter
from brokers.shared.limits import AT_ONCE, check_size
from brokers.shared.outage import Outage
from brokers.shared.settings import node_name
from mesh.address import Address
from mesh.broker import Backlog, Features, Handler, KeyValue, Message, Sink, SubscribeOptions, Topology
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.rights import Rights

__all__ = ["RedisBroker", "RedisConfig"]

logger = logging.getLogger("brokers.redis")

MIN_VERSION = (7, 0)
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_HEADERS = 2000
DEDUP_WINDOW_MS = 120_000
FULL = -2
SCRIPTS = (
    *(ACK_IN_ORDER, EXTEND, LOOK, NACK, RELEASE),
    *(BACKLOG, DECLARE, DROP, JOIN, PUBLISH, REMOVE, TRIM),
    *(FETCH_BODY, SEND, SEND_LARGE, SERVE, UNSERVE),
    *(DELETE, DELETE_EACH, PUT, PUT_EACH, SCAN),
)


class RedisBroker(Inspection, Adapter):
    """A connection to a Redis server."""

    title = "Events in Redis streams."
    tested = "Redis 7.0"
    configuration = RedisConfig
    settings = RedisSettings
    _config: RedisConfig

    features = Features(
        name="redis",
        max_message_bytes=MAX_MESSAGE_BYTES,
        durable=True,
        shared=True,
        ordering=True,
        delay=True,
        dedup=True,
        wildcard=True,
        key_value=True,
        ephemeral=True,
    )

    def __init__(self, config: RedisConfig) -> None:
        """Prepare; entering connects."""
        super().__init__(config)
        self.inbox = node_name(config.inbox)
        outage = self._outage = Outage(logger, "Redis", config.shown)
        self._commands = Connection(config, "commands", outage, prepare=_load_scripts)
        self._spaces = Spaces(self._commands, config.max_age)
        self._frames = Frames(config, outage, self._commands, self.inbox)
        self._numbers = itertools.count(1)

    async def _enter(self) -> None:
        """Connect, and start to receive frames."""
        stack = self._stack
        for connection in (self._commands, self._frames.connection):
            stack.callback(connection.close)
            await connection.open()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for name, work in (
            ("redis-commands", self._commands.supervise()),
            ("redis-frames", self._frames.connection.supervise()),
            ("redis-serve", self._frames.keep_serving(self._config.ping_interval)),
            ("redis-trim", self._spaces.keep_trimming()),
        ):
            stack.callback(tasks.create_task(work, name=name).cancel)
        await self._check_server()

    async def _check_server(self) -> None:
        """Refuse a server that cannot do what is needed; tell when it may lose what it confirms."""
        shown = self._config.shown
        try:
            info = _parse_info(cast("bytes", await self._commands.call("INFO", repeat=False)))
        except ReplyError as error:
            raise BrokerUnavailableError(f"Redis at {shown} must allow the command INFO: {error}") from error
        version = tuple(int(part) for part in info.get("redis_version", "0.0").split(".")[:2])
        if version < MIN_VERSION:
            raise BrokerUnavailableError(
                f"Redis at {shown} is version {'.'.join(map(str, version))}; "
                f"{'.'.join(map(str, MIN_VERSION))} or later is needed"
            )
        if info.get("cluster_enabled") == "1":
            raise BrokerUnavailableError(f"Redis at {shown} is a cluster, which is not supported")
        if info.get("role", "master") != "master":
            raise BrokerUnavailableError(f"Redis at {shown} is a replica; connect to its primary")
        warnings = []
        if info.get("aof_enabled") != "1":
            warnings.append("it has no append-only file (set 'appendonly yes')")
        if info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy", "noeviction") != "noeviction":
            warnings.append("it evicts keys when its memory is full (set 'maxmemory-policy noeviction')")
        if warnings:
            logger.warning("Redis at %s may lose what it has confirmed: %s", shown, "; ".join(warnings))
            self.features = replace(self.features, durable=False)

    @staticmethod
    def permissions(rights: Rights) -> str:
        """Write what a user of the server has to be allowed."""
        from brokers.redis._permissions import permissions

        return permissions(rights)

    async def check(self) -> None:
        """Ask the server for a sign of life."""
        try:
            await self._commands.call("PING", repeat=False)
        except ReplyError as error:
            raise BrokerUnavailableError(f"Redis at {self._config.shown} cannot serve now: {error}") from error

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back whenever both connections are back, and channels are subscribed to again."""
        self._outage.on_back(callback)

    # Stored messages

    async def declare(self, topology: Topology) -> None:
        """Note a space's limits, or check that they are as wanted."""
        await self._spaces.declare(topology)

    def max_age(self, topology: Topology) -> float | None:
        """Give the seconds after which events of a space are removed: what the component says, else the topology."""
        return self._spaces.max_age(topology)

    async def publish(self, address: Address, message: Message) -> None:
        """Store a message; the script's reply confirms it."""
        await self._publish(address, self._command(address, message))

    def _command(self, address: Address, message: Message) -> Command:
        self._limit(message)
        keys: list[Argument] = [address.space, stream_of(address.space, address.name)]
        if message.id is not None:
            keys.append(id_key(address, message.id))
        return PUBLISH.command(keys, [address.name, DEDUP_WINDOW_MS, *message_fields(message)])

    def _limit(self, message: Message) -> None:
        check_size(message.body, message.headers, MAX_MESSAGE_BYTES)
        if (count := len(message.headers)) > MAX_HEADERS:
            raise PublishRejectedError(f"a message has at most {MAX_HEADERS} headers, this one {count}")

    async def _publish(self, address: Address, command: Command) -> None:
        """Store what is command; a space that is full is trimmed first, one that is lost is declared again."""
        trimmed = False
        while True:
            try:
                reply = await self._commands.run_command(PUBLISH, command)
            except ReplyError as error:
                if error.reply_code != "OOM" or trimmed:
                    raise PublishRejectedError(f"Redis refused to store it: {error}") from error
                reply = FULL
            if reply == UNDECLARED and await self._spaces.declare_again(address.space):
                continue
            if reply == UNDECLARED:
                raise PublishRejectedError(f"{address.space} was never declared")
            if reply != FULL:
                return
            if trimmed:
                raise PublishRejectedError(f"storage is full: {address.space} is at its limit")
            trimmed = True
            await self._spaces.trim(address.space)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several: sent in order, confirmed as the server gets to them."""
        results: list[BrokerError | None] = []
        for first in range(0, len(messages), AT_ONCE):
            results += await self._publish_some(address, messages[first : first + AT_ONCE])
        return results

    async def _publish_some(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        results: list[BrokerError | None] = [None] * len(messages)
        sent: list[tuple[int, Command, asyncio.Future[Reply]]] = []
        wire = await self._commands.connected()
        for index, message in enumerate(messages):
            try:
                command = self._command(address, message)
            except BrokerError as error:
                results[index] = error
            else:
                sent.append((index, command, wire.send(command)))
        try:
            for index, command, future in sent:
                try:
                    stored = cast("int", await future) >= 0
                except BrokerError:
                    stored = False
                if not stored:  # Alone, and in order: those behind it have failed in the same way.
                    try:
                        await self._publish(address, command)
                    except BrokerError as error:
                        results[index] = error
        finally:
            for _, _, future in sent:
                future.cancel()
        return results

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        """Join a consumer group on each stream that matches."""
        name = f"{self.inbox}-{next(self._numbers)}"
        consumer = Consumer(self._config, self._spaces, name, address, options, handler)
        channel = channel_of(address.space, group_id(address, options.group))
        try:
            async with task_group() as tasks:
                try:
                    async with self._frames.wakes(channel, consumer.wake):
                        await consumer.start(tasks)
                        yield
                finally:
                    await consumer.stop()
        finally:
            await consumer.finish()

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Ask for the group's row of each stream that it reads."""
        group = group_id(address, options.group)
        found = await self._commands.run(BACKLOG, [address.space], group, address.name)
        waiting, taken, oldest = cast("list[int]", found)
        return Backlog(waiting, taken, oldest / 1000 if oldest >= 0 else None)

    # Frames

    def on_frame(self, sink: Sink) -> None:
        """Set the inbox sink."""
        self._frames.sink = sink

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        """Publish to one member's channel, chosen by the server among those that live."""
        self._limit(message)
        await self._frames.send(to, message, reply_to)

    def serve(self, address: Address, group: str, sink: Sink) -> AbstractAsyncContextManager[None]:
        """Be one of those among which the server chooses."""
        return self._frames.serve(address, group, sink)

    async def broadcast(self, address: Address, message: Message) -> None:
        """Publish to a channel that every listener has subscribed to."""
        self._limit(message)
        await self._frames.broadcast(address, message)

    def listen(self, address: Address, sink: Sink) -> AbstractAsyncContextManager[None]:
        """Subscribe to that channel."""
        return self._frames.listen(address, sink)

    async def key_value(self, name: str, *, dotted: bool = False) -> KeyValue:
        """Open a store."""
        return RedisKeyValue(self._commands, name, dotted=dotted)


async def _load_scripts(socket: Socket) -> None:
    """Have every script known before any is called; the server forgets them when it restarts."""
    for each in SCRIPTS:
        await ask(socket, "SCRIPT", "LOAD", each.text)


def _parse_info(text: bytes) -> dict[str, str]:
    lines = text.decode(errors="replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}
