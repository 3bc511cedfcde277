"""``pubsub.redis``: Redis streams as every other program has them.

==============  ===================================================================================
ours            on Redis
==============  ===================================================================================
topic           the stream of that name
event           an entry: ``data`` = the envelope, ``metadata`` = a JSON object of texts. An entry
                without ``data`` is a JSON object of its fields
group           the consumer group ``consumerID``, made with the stream, from its first entry on
member          a consumer of its own, that is gone with the member; what it leaves goes to the
                consumer named as the group, as which Dapr's sidecars read
attempt         the delivery counter
ack, reject     ``XACK``; the entry stays in the stream, for others
nack(delay)     kept by the member, with signs of life meanwhile, and handed out again
extend          ``XCLAIM … JUSTID``, which ends the idle time
redelivery      each member looks every ``redeliverInterval`` for what nobody has had for ``processingTimeout``
==============  ===================================================================================

Source: Dapr 1.18 as it was seen; redis.io (streams, XCLAIM, XPENDING).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import ClassVar, Self

import orjson
from redis.exceptions import RedisError, ResponseError

from brokers.native._redis_client import BLOCK_SECONDS, LOST, Client, NativeRedisSettings
from brokers.native._redis_inspection import Inspection, message_of, pairs
from brokers.native._topics import Delays, NativeTopics, Source, Taken
from brokers.shared.limits import check_size
from brokers.shared.settings import node_name
from mesh.address import Address
from mesh.broker import Backlog, Delivery, Features, Message, SubscribeOptions
from mesh.errors import BrokerUnavailableError, PublishRejectedError, TopologyMismatchError
from mesh.resources.component import Component
from mesh.tasks import task_group

__all__ = ["RedisTopics"]

logger = logging.getLogger("brokers.redis")

MAX_MESSAGE_BYTES = 65 * 1024 * 1024  # A gateway's largest body, and its envelope; a server takes 512 MB.
LOOK_AT = 100
FREE_MS = 24 * 3600 * 1000  # Idle for so long, an entry is anybody's.
LEAVE_SECONDS = 2.0
# A read that was given up may be served still: its entry must not end with the consumer.
END = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return 0
"""


class RedisTopics(Inspection, NativeTopics):
    """Streams of a Redis server or cluster."""

    title = "Events in Redis streams, as other programs write and read them."
    tested = "Redis 7.0, one and a cluster of three"
    settings: ClassVar[type[NativeRedisSettings]] = NativeRedisSettings
    layouts: ClassVar[Mapping[str, str]] = {"mesh": "brokers.redis:RedisBroker"}
    features = Features(
        name="redis",
        event_prefix="ce_",
        max_message_bytes=MAX_MESSAGE_BYTES,
        durable=True,
        shared=True,
        delay=True,
        frames=False,
        layout="native",
    )

    def __init__(self, client: Client) -> None:
        """Prepare; entering connects."""
        super().__init__(client.settings)
        self._client = client

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = cls(Client.from_component(component))
        made._component = component
        return made

    async def _enter(self) -> None:
        await self._stack.enter_async_context(self._client.connected())

    async def check(self) -> None:
        """Ask the server for a sign of life."""
        try:
            await self._client.once("PING")
        except (*LOST, RedisError) as error:
            raise BrokerUnavailableError(f"Redis at {self._client.shown} cannot serve now: {error}") from error

    async def publish(self, address: Address, message: Message) -> None:
        """Add an entry; the reply with its id confirms it."""
        beside = {**message.metadata, **message.headers}
        check_size(message.body, beside, MAX_MESSAGE_BYTES)
        found = self._client.settings
        trim: tuple[object, ...] = ()
        if found.max_length is not None:
            trim = ("MAXLEN", "~", found.max_length)
        elif found.ttl is not None:
            trim = ("MINID", "~", int((time.time() - found.ttl) * 1000))
        fields = ("data", message.body, "metadata", orjson.dumps(beside, option=orjson.OPT_SORT_KEYS))
        try:
            await self._client.call("XADD", address.label, *trim, "*", *fields)
        except ResponseError as error:
            raise PublishRejectedError(f"Redis refused to store it: {error}") from error

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Ask for the group, and for the time of its oldest entry that is not settled."""
        groups = await self._client.call("XINFO", "GROUPS", address.label)
        found = next((each for each in map(pairs, groups) if each["name"] == options.group.encode()), None)
        if found is None:
            raise TopologyMismatchError(f"the stream {address.label} has no group {options.group!r}")
        waiting, taken = found.get("lag") or 0, found["pending"]
        first: bytes | None = None
        if taken:
            first = (await self._client.call("XPENDING", address.label, options.group))[1]
        elif waiting:
            after = b"(" + found["last-delivered-id"]
            first = next((each[0] for each in await self._client.call(*_range(address.label, after))), None)
        return Backlog(waiting, taken, None if first is None else int(first.partition(b"-")[0]) / 1000)

    def _limit(self, options: SubscribeOptions) -> int:
        return min(options.max_in_flight, self._client.settings.concurrency or options.max_in_flight)

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Source]:
        member = _Member(self._client, address, options)
        await member.begin()
        try:
            async with member.delays, task_group() as tasks:
                work = member.read(), member.keep(), member.look()
                working = [tasks.create_task(each, name="redis-member") for each in work]
                try:
                    yield member
                finally:
                    for task in working:
                        task.cancel()
        finally:
            await member.leave()


class _Member:
    """A consumer of a group on one stream."""

    def __init__(self, client: Client, address: Address, options: SubscribeOptions) -> None:
        self.client, self.delays = client, Delays()
        self._address, self._group = address, options.group
        self.key, self.name = address.label, f"{options.group}@{node_name()}"
        self.patience = max(
            client.settings.processing or 0.0, options.ack_wait
        )  # Signs of life come as the latter says.
        self._ready: deque[Taken] = deque()
        self._wake = asyncio.Event()
        self._asked = asyncio.Event()
        self._room = 0  # For how many there is room; zero while nobody waits for one.
        self.stopping = False
        self.delayed: set[str] = set()

    async def begin(self) -> None:
        """Make stream and group, if they are not there.

        Raises:
            TopologyMismatchError: What has the topic's name is no stream.
        """
        try:
            await self.client.call("XGROUP", "CREATE", self.key, self._group, "0", "MKSTREAM")
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                text = f"the key {self.key} on Redis at {self.client.shown} is no stream, as the topic has to be"
                raise TopologyMismatchError(text) from error
            if not str(error).startswith("BUSYGROUP"):
                raise TopologyMismatchError(f"Redis refuses the group {self._group!r}: {error}") from error

    async def take(self, room: int) -> Sequence[Taken]:
        while not self._ready and not self.stopping:
            self._wake.clear()
            self._room = room
            self._asked.set()
            await self._wake.wait()
        self._room = 0
        return [self._ready.popleft() for _ in range(min(room, len(self._ready)))]

    async def stop(self) -> None:
        self.stopping = True
        self._wake.set()

    async def read(self) -> None:
        """Take new entries, as many as there is room for."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            command = ("GROUP", self._group, self.name, "COUNT", self._room or 1, "BLOCK", int(BLOCK_SECONDS * 1000))
            try:
                found = await self.client.read("XREADGROUP", *command, "STREAMS", self.key, ">")
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise TopologyMismatchError(f"the stream {self.key} cannot be read: {error}") from error
                logger.warning("the group %r of the stream %s is gone, and made again", self._group, self.key)
                await self.begin()
                found = ()
            self._ready += [self._taken(entry, fields, 1) for _, entries in found or () for entry, fields in entries]
            self._wake.set()

    def _taken(self, entry: bytes, fields: Sequence[bytes], attempt: int) -> Taken:
        return self.handed(entry.decode(), message_of(fields), attempt)

    def handed(self, entry: str, message: Message, attempt: int) -> Taken:
        """Make a delivery."""
        settler = _Settler(self, entry, message, attempt)
        return Taken(Delivery(message, self._address, attempt, settler), settler.release)

    def again(self, taken: Taken) -> None:
        """Hand out what was handed out before."""
        self._ready.append(taken)
        self._wake.set()

    async def claim(self, entry: str, *options: object, consumer: str = "", idle: float = 0.0) -> None:
        """Have an entry; raises nothing."""
        with suppress(*LOST, RedisError):
            name, least = consumer or self.name, int(idle * 1000)
            await self.client.once("XCLAIM", self.key, self._group, name, least, entry, *options, "JUSTID")

    def ack(self, entry: str) -> None:
        """Settle an entry; one whose server is away for longer than this member is comes again."""
        self.client.ack(self.key, self._group, entry)

    async def free(self, entry: str, attempt: int) -> None:
        """Give an entry back, which ``attempt`` attempts were made at."""
        await self.claim(entry, "IDLE", FREE_MS, "RETRYCOUNT", attempt, consumer=self._group)

    async def keep(self) -> None:
        """Give signs of life of what is kept for later."""
        while True:
            await asyncio.sleep(self.patience / 3)
            for entry in list(self.delayed):
                await self.claim(entry)

    async def look(self) -> None:
        """Take over what nobody has any more."""
        every = min(self.client.settings.redeliver, max(0.25, self.patience / 3))
        while True:
            await asyncio.sleep(every)
            try:
                if self._room:  # Else it would keep from others what it has no hands for, perhaps because of that.
                    await self._look(self._room)
            except ResponseError as error:
                logger.debug("%s: %s", self.key, error)  # Reading says it.

    async def _look(self, most: int) -> None:
        least = int(self.patience * 1000)
        pending = await self.client.call("XPENDING", self.key, self._group, "IDLE", least, "-", "+", min(most, LOOK_AT))
        times = {entry: count for entry, _, _, count in pending}
        if not times:
            return
        claimed = await self.client.call("XCLAIM", self.key, self._group, self.name, least, *times)
        for entry, fields in filter(None, claimed):
            self.again(self._taken(entry, fields, times[entry] + 1))

    async def leave(self) -> None:
        """Give back what was not handed out, and what is in nobody's hands, and be gone."""
        with suppress(TimeoutError, *LOST, RedisError):
            async with asyncio.timeout(LEAVE_SECONDS):
                listing = ("XPENDING", self.key, self._group, "-", "+", LOOK_AT, self.name)
                while pending := await self.client.once(*listing):
                    for entry, _, _, count in pending:
                        await self.free(entry.decode(), count - 1)
                await self.client.once("EVAL", END, 1, self.key, self._group, self.name)


class _Settler:
    """Settles one entry."""

    def __init__(self, member: _Member, entry: str, message: Message, attempt: int) -> None:
        self._member, self._entry, self._message, self._attempt = member, entry, message, attempt

    async def ack(self) -> None:
        self._member.ack(self._entry)

    async def reject(self) -> None:
        self._member.ack(self._entry)

    async def extend(self) -> None:
        member = self._member  # One that was too late has it no more: whoever claimed it since is not idle for so long.
        await member.claim(self._entry, idle=member.patience / 4)

    async def nack(self, delay: float) -> None:
        self._member.delayed.add(self._entry)
        await self._member.delays.after(delay, self._again)

    async def _again(self) -> None:
        member = self._member
        member.delayed.discard(self._entry)
        if member.stopping:
            await member.free(self._entry, self._attempt)
            return
        await member.claim(self._entry, "RETRYCOUNT", self._attempt + 1)
        member.again(member.handed(self._entry, self._message, self._attempt + 1))

    async def release(self) -> None:
        await self._member.free(self._entry, self._attempt - 1)


def _range(key: str, after: bytes) -> tuple[object, ...]:
    return "XRANGE", key, after, "+", "COUNT", 1
