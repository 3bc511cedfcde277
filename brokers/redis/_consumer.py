"""One member of a group: reads as much as there is room for, and hands it to the handler.

What is new is read in a blocking call on a connection of its own (in an ordered group, that call only says that there
is something, and the script hands it out). Before each, the member takes what is due again: given back, delayed, or
silent for too long at another member.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Iterable
from typing import cast

from brokers.redis._config import RedisConfig
from brokers.redis._entries import address_of, group_id, parse_message, stream_of
from brokers.redis._group_scripts import LOOK, RELEASE
from brokers.redis._reader import Reader
from brokers.redis._settlements import Entry, Settlements
from brokers.redis._spaces import Spaces, lives_on
from brokers.redis._topic_scripts import ALIVE, DROP
from brokers.redis._wire import Argument, Command
from brokers.shared.handling import run_handler
from mesh.address import Address
from mesh.broker import Delivery, Handler, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Consumer"]

logger = logging.getLogger("brokers.redis")

LONGEST_LOOK, SHORTEST_LOOK = 5.0, 0.2
REJOIN_WAIT = 0.5
LEAVE_WAIT = 2.0


class Consumer:
    """Takes entries of one group for one subscription."""

    def __init__(
        self,
        config: RedisConfig,
        spaces: Spaces,
        name: str,
        address: Address,
        options: SubscribeOptions,
        handler: Handler,
    ) -> None:
        """Prepare.

        Args:
            config: Where to connect to.
            spaces: Knows the topics, over the connection for everything but reading.
            name: Nobody else's.
            address: A topic, or a pattern.
            options: How to take entries.
            handler: Takes each delivery.
        """
        self._spaces = spaces
        self._commands = spaces.commands
        self._reader = Reader(config, self._commands)
        self._name = name
        self._address = address
        self._options = options
        self._limit = min(options.max_in_flight, config.max_in_flight or options.max_in_flight)
        self._handler = handler
        self._group = group_id(address, options.group)
        self._settlements = Settlements(
            self._commands, address.space, self._group, name, ordered=options.ordered, due=self.look_in
        )
        self._look_every = min(LONGEST_LOOK, max(SHORTEST_LOOK, options.ack_wait / 4))
        self._longest_block = min(LONGEST_LOOK, config.ping_interval)
        self._topics: list[str] = []
        self._backlog: deque[Entry] = deque()
        self._held: set[Entry] = set()
        self._begun: set[Entry] = set()
        self._running = 0
        self._must_join = self._must_recover = False
        self._look_at = self._reclaim_at = 0.0
        self._changed = asyncio.Event()
        self._stopping = False
        self._tasks: asyncio.TaskGroup | None = None
        self._own_tasks: list[asyncio.Task[None]] = []

    # Life

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Join the group and begin to read; deliveries are handled in ``tasks``."""
        self._tasks = tasks
        await self._join()
        await self._reader.connection.open()
        self._commands.on_restored(self._restore)
        self._own_tasks = [
            tasks.create_task(self._fetch(), name="redis-fetch"),
            tasks.create_task(self._reader.connection.supervise(), name="redis-reader"),
        ]

    async def stop(self) -> None:
        """Stop reading, and give back what no handler has begun."""
        self._stopping = self._settlements.leaving = True
        self._changed.set()
        self._reader.interrupt()
        if not self._own_tasks:
            return
        fetching = self._own_tasks[0]
        if self._commands.wire is not None and self._reader.connection.wire is not None:
            await asyncio.wait([fetching], timeout=LEAVE_WAIT)
        for task in self._own_tasks:
            task.cancel()
        await self._release(self._begun, final=False)

    async def finish(self) -> None:
        """Leave the group, and give back what was not settled; for after the handlers."""
        self._settlements.flush()
        if self._own_tasks:
            self._own_tasks = []
            self._commands.forget_restored(self._restore)
        self._reader.abandon()
        if self._options.ephemeral:
            await self._say(DROP.command([self._address.space], [self._group]))
        else:
            await self._release((), final=True)
        self._reader.connection.close()

    async def _release(self, kept: Iterable[Entry], *, final: bool) -> None:
        await self._say(self._release_command(kept, final=final))

    async def _say(self, command: Command) -> None:
        sent = self._commands.post(command)
        if sent is not None:
            try:
                async with asyncio.timeout(LEAVE_WAIT):
                    await sent
            except (TimeoutError, BrokerError) as error:
                logger.debug("%s: what it held is taken back later: %r", self._name, error)

    def _release_command(self, kept: Iterable[Entry], *, final: bool) -> Command:
        arguments: list[Argument] = [self._group, self._name, int(final), len(self._topics), *self._topics]
        return RELEASE.command([self._address.space], [*arguments, *(entry.name for entry in kept)])

    async def _join(self) -> None:
        self._must_join = False
        self._topics = await self._spaces.join(self._address, self._group, self._options)

    def _restore(self) -> None:
        """After a reconnect: what is held here must not be taken for silent."""
        self._settlements.flush()
        for entry in self._held:
            self._settlements.extend(entry)
        self._reclaim_at = asyncio.get_running_loop().time() + self._look_every
        self._must_join = True
        self.look_in(0.0)

    # Being told

    def wake(self, payload: bytes) -> None:
        """Take a message of the group's channel: there is a new topic (``+``), or something is due in so many ms."""
        if payload == b"+":
            self._must_join = True
        self.look_in(int(payload) / 1000 if payload.isdigit() else 0.0)

    def look_in(self, delay: float) -> None:
        """Look for what is due again in so many seconds."""
        self._look_at = min(self._look_at, asyncio.get_running_loop().time() + delay)
        self._changed.set()
        if self._look_at < self._reader.until:
            self._reader.interrupt()

    # Reading

    async def _fetch(self) -> None:
        while not self._stopping:
            self._changed.clear()
            try:
                await self._turn()
            except BrokerUnavailableError:
                self._must_recover = True  # An answer may have been lost, and entries with it.
                try:
                    await self._reader.connection.connected()
                    await self._commands.connected()
                except BrokerUnavailableError:
                    return
            except BrokerError as error:
                logger.warning("group %r of %s: %s", self._options.group, self._address, error)
                self._must_join = True  # It, or a topic, may have been deleted.
                await self._until_changed(REJOIN_WAIT)

    async def _turn(self) -> None:
        if self._must_recover:
            await self._commands.run_command(RELEASE, self._release_command(self._held, final=False))
            self._must_recover = False
        if self._must_join:
            await self._join()
        while self._backlog and self._running < self._limit:
            self._dispatch(self._backlog.popleft())
        room = self._limit - self._running
        if room <= 0:
            await self._hold()
            return
        now = asyncio.get_running_loop().time()
        cursors: list[bytes] = []
        if self._options.ordered or now >= self._look_at:
            found, cursors = await self._look(room)
            if found or self._stopping:
                return
        await self._read(room, cursors)

    async def _hold(self) -> None:
        """Wait for room; keep what waits here for it from being taken for silent, and the group from ending."""
        lives = lives_on(self._options)
        await self._until_changed(self._look_every if self._backlog or lives != "" else math.inf)
        for entry in self._backlog:
            self._settlements.extend(entry)
        if lives != "":
            await self._commands.run(ALIVE, [self._address.space], self._group, lives)

    async def _until_changed(self, longest: float) -> None:
        try:
            async with asyncio.timeout(None if longest == math.inf else longest):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _look(self, room: int) -> tuple[bool, list[bytes]]:
        """Take what is due again, and, if ordered, what is new; tell whether there was something, or may be more."""
        loop = asyncio.get_running_loop()
        silence: Argument = ""
        if loop.time() >= self._reclaim_at:
            silence = int(self._options.ack_wait * 1000)
        self._look_at = math.inf
        ordered = int(self._options.ordered)
        arguments = (self._group, self._name, room, silence, ordered, lives_on(self._options), *self._topics)
        try:
            reply = await self._commands.run(LOOK, [self._address.space], *arguments, repeat=False)
        except BaseException:
            self._look_at = 0.0
            raise
        if silence != "":
            self._reclaim_at = loop.time() + self._look_every
        entries, due, cursors, more = cast("tuple[list[list[bytes]], int, list[bytes], int]", reply)
        next_due = math.inf if due < 0 else loop.time() + due / 1000
        self._look_at = min(self._look_at, self._reclaim_at, next_due)
        for topic, entry_id, attempt, fields in cast("list[tuple[bytes, bytes, int, list[bytes]]]", entries):
            self._dispatch(Entry(self._settlements, topic.decode(), entry_id, attempt, fields))
        return bool(entries or more), cursors

    async def _read(self, room: int, cursors: list[bytes]) -> None:
        """Wait for what is new, until it is time to look again."""
        loop = asyncio.get_running_loop()
        topics = self._topics
        wait = min(self._look_at - loop.time(), self._longest_block)
        if wait <= 0:
            return
        if not topics or (self._options.ordered and not cursors) or room < min(len(topics), self._limit):
            await self._until_changed(wait)
            return
        streams = [stream_of(self._address.space, topic) for topic in topics]
        block: list[Argument] = ["BLOCK", math.ceil(wait * 1000), "STREAMS", *streams]
        if self._options.ordered:
            await self._reader.block(wait, "XREAD", "COUNT", 1, *block, *cursors)
            return
        group: list[Argument] = ["XREADGROUP", "GROUP", self._group, self._name, "COUNT", max(1, room // len(topics))]
        reply = await self._reader.block(wait, *group, *block, *(">" for _ in topics))
        for stream, entries in cast("list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]", reply or []):
            topic = topics[streams.index(stream.decode())] if len(topics) > 1 else topics[0]
            for entry_id, fields in entries:
                entry = Entry(self._settlements, topic, entry_id, 1, fields)
                if self._running < self._limit:
                    self._dispatch(entry)
                else:
                    self._held.add(entry)
                    self._backlog.append(entry)

    # Handling

    def _dispatch(self, entry: Entry) -> None:
        self._running += 1
        self._held.add(entry)
        cast("asyncio.TaskGroup", self._tasks).create_task(self._handle(entry), name="redis-delivery")

    async def _handle(self, entry: Entry) -> None:
        if self._stopping:
            return  # It is given back, as all that is not among the begun.
        self._begun.add(entry)
        message = parse_message(entry.fields)
        delivery = Delivery(message, address_of(self._address.space, entry.topic), entry.attempt, entry)
        try:
            await run_handler(self._handler, delivery, entry.release)
        finally:
            self._running -= 1
            self._changed.set()
        self._begun.discard(entry)
        self._held.discard(entry)
