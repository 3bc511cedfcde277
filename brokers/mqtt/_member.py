"""One member of a group: takes messages from the sessions it holds, and sees to those that nobody holds.

It has a session of its own, subscribed. When another member leaves or dies, it connects as that one, unsubscribes,
handles what is left, and ends that session. A session ends for no other reason, so nothing in it is lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import deque
from collections.abc import Coroutine
from typing import cast

from mqtt5 import DisconnectReasonCode

from brokers.mqtt._client import MAX_IDS, Identity
from brokers.mqtt._config import MQTTConfig
from brokers.mqtt._messages import message_of
from brokers.mqtt._registry import FREE, HELD, TOPIC, Registry, Watch
from brokers.mqtt._session import Entry, Session
from brokers.mqtt._topics import Filter, label_of
from brokers.shared.handling import run_handler
from mesh.address import Address
from mesh.broker import Delivery, Handler, SubscribeOptions
from mesh.errors import BrokerError

__all__ = ["Member"]

logger = logging.getLogger("brokers.mqtt")

PARKED = 256
MAX_UNASSURED_BYTES = 32 * 1024 * 1024  # Of what was published with QoS 0, and waits here for its turn.
ENTRY_BYTES = 512  # What a message takes beside its payload, roughly.
EPHEMERAL_EXPIRY = 60.0
SILENT_ROUNDS = 3
DRAINED_AFTER = 2.0
ADOPT_WITHIN = 0.2
LOOK_EVERY = 0.5
TAKE_BACK_WAIT = 5.0
LEAVE_WAIT = 2.0


class Member:
    """Takes messages of one group for one subscription."""

    def __init__(
        self,
        config: MQTTConfig,
        registry: Registry,
        wanted: Filter,
        address: Address,
        options: SubscribeOptions,
        handler: Handler,
    ) -> None:
        """Prepare.

        Args:
            config: Where to connect to.
            registry: Knows the group's sessions.
            wanted: What to subscribe to.
            address: The same, as the mesh calls it.
            options: How to take messages.
            handler: Takes each delivery.
        """
        self._config = config
        self._registry = registry
        self._wanted = wanted
        self._space = address.space
        self._handler = handler
        self._limit = min(options.max_in_flight, config.max_in_flight or options.max_in_flight)
        self._lasting = not (options.ephemeral or config.clean)
        server, self._dialect = registry.client.server, registry.client.dialect
        self._alone = not (config.shared and server.shared_subscription_available and server.retain_available)
        self._registry_topics = f"{config.prefix.replace('{space}', self._space)}{TOPIC}/"
        self._topic = f"{self._registry_topics}{wanted.key}"
        self._me = f"{registry.me}-{secrets.token_hex(4)}"
        self._watch: Watch | None = None
        self._own: Session | None = None
        self._sessions: dict[str, Session] = {}
        self._backlog: deque[Entry] = deque()
        self._timers: set[asyncio.TimerHandle] = set()
        self._running = self._dropped = self._unassured_bytes = 0
        self._changed = asyncio.Event()
        self._stopping = False
        self._keepers: asyncio.TaskGroup | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._keeping: list[asyncio.Task[None]] = []

    # Life

    async def start(self, keepers: asyncio.TaskGroup, tasks: asyncio.TaskGroup) -> None:
        """Be subscribed.

        Args:
            keepers: Holds connections, until the last handler is done.
            tasks: Runs handlers.
        """
        self._keepers, self._tasks = keepers, tasks
        client_id = ""
        if self._lasting and not self._alone:
            self._watch = await self._registry.watch(self._topic, self._changed.set)
            free = [name for name, record in self._watch.records.items() if record.state == FREE]
            client_id = random.choice(free) if free else ""  # noqa: S311  # Any of them will do.
        self._own = await self._open(client_id or self._new_id())
        self._keep(self._tend())

    def _new_id(self) -> str:
        name = f"{self._wanted.group[:40]}-{self._wanted.key}"
        return name if self._lasting and self._alone else f"{name}-{secrets.token_hex(6)}"

    async def _open(self, client_id: str, *, draining: bool = False) -> Session:
        watched = self._watch is not None
        identity = Identity(
            client_id,
            self._expiry(),
            min(MAX_IDS, self._limit + PARKED),
            self._registry.will(self._topic, client_id, self._me) if watched else None,
        )
        pattern = self._wanted.pattern if self._alone else self._wanted.shared
        session = Session(
            self._config, identity, pattern, self._take, self._park, beside=self._registry.client, draining=draining
        )
        await session.client.open()
        self._sessions[client_id] = session
        if watched:
            self._say(client_id, HELD)
        self._keep(self._hold(session))
        return session

    def _expiry(self) -> float:
        if self._lasting:
            return self._config.session_expiry
        # In 3.1.1 a session either ends with its connection, or never.
        return EPHEMERAL_EXPIRY if self._dialect.has_properties else 0.0

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = cast("asyncio.TaskGroup", self._keepers).create_task(work, name="mqtt-keep")
        self._keeping.append(task)
        task.add_done_callback(self._keeping.remove)

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True
        self._backlog.clear()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def finish(self) -> None:
        """Leave: what is not acknowledged waits in the session for another member, or for this one to come back."""
        try:
            # A session is free once the server has read its acknowledgements: whoever takes it over cuts them off.
            # One that ends gets its group's next messages until the server has read that.
            async with asyncio.timeout(LEAVE_WAIT):
                for session in [*self._sessions.values()]:
                    await session.client.leave(end=not self._lasting)
        except TimeoutError:
            logger.debug("the server has not closed the sessions of %s", self._wanted.pattern)
        finally:
            self._part()

    def _part(self) -> None:
        for client_id, session in self._sessions.items():
            if not self._lasting:
                session.client.end_session()
                continue
            # The will says the same, for the case that the process ends between the two.
            session.client.close(DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE)
            if self._watch is not None:
                self._say(client_id, FREE)
        self._sessions.clear()
        if self._watch is not None:
            self._registry.unwatch(self._watch)
        for task in self._keeping:
            task.cancel()

    # Sessions

    def _say(self, client_id: str, state: str) -> None:
        self._registry.say(self._topic, client_id, state, self._me)

    async def _hold(self, session: Session) -> None:
        """Keep a session connected, until it ends or another one takes it over."""
        await session.client.supervise()
        client_id = session.client.identity.client_id
        if not session.client.taken or self._sessions.get(client_id) is not session:
            return
        del self._sessions[client_id]
        for entry in [each for each in self._backlog if each.session is session]:
            self._backlog.remove(self._make_room(entry))
        if session is not self._own or self._stopping:
            return
        logger.warning("another client has connected as %s%s", client_id, self._why_taken())
        while not self._stopping:
            if self._alone:
                await asyncio.sleep(TAKE_BACK_WAIT * random.uniform(1, 2))  # noqa: S311
            try:
                self._own = await self._open(self._new_id())
            except BrokerError as error:
                logger.warning("cannot subscribe to %s again: %s", self._wanted.pattern, error)
                await asyncio.sleep(TAKE_BACK_WAIT)
            else:
                return

    def _why_taken(self) -> str:
        if self._alone:
            return "; without shared subscriptions a group can have one member only"
        return "; it took this member for dead"

    async def _tend(self) -> None:
        """Say what is held, and take over what nobody holds."""
        if self._watch is None:
            return
        loop = asyncio.get_running_loop()
        announce_at = loop.time() + self._config.announce_every
        while True:
            self._changed.clear()
            for client_id in [*self._watch.records]:
                await self._look_at(self._watch, client_id)
            for session in [each for each in self._sessions.values() if each.draining]:
                await self._retire(session)
            if loop.time() >= announce_at:
                announce_at = loop.time() + self._config.announce_every
                for client_id in self._sessions:
                    self._say(client_id, HELD)
            busy = any(session.draining for session in self._sessions.values())
            try:
                async with asyncio.timeout(LOOK_EVERY if busy else max(0.0, announce_at - loop.time())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _is_free(self, watch: Watch, client_id: str) -> bool:
        record = watch.records.get(client_id)
        if record is None or client_id in self._sessions or self._stopping:
            return False
        # While this one has no connection itself, it hears nobody.
        silent = asyncio.get_running_loop().time() - max(record.seen_at, self._registry.client.up_since)
        return record.state == FREE or silent > SILENT_ROUNDS * self._config.announce_every

    async def _look_at(self, watch: Watch, client_id: str) -> None:
        record, session = watch.records.get(client_id), self._sessions.get(client_id)
        if record is None:
            return
        if session is not None:
            if record.state == FREE:  # A will that was late.
                self._say(client_id, HELD)
            elif record.holder != self._me:  # Not every server tells whom it throws out for another one.
                session.client.give_up()
            return
        if record.state == HELD and record.holder == self._me:
            self._say(client_id, FREE)  # Two have given it up for each other.
        if not self._is_free(watch, client_id):
            return
        await asyncio.sleep(random.uniform(0, ADOPT_WITHIN))  # noqa: S311  # Others look at it too.
        if not self._is_free(watch, client_id):
            return
        try:
            session = await self._open(client_id, draining=True)
        except BrokerError as error:
            logger.info("cannot take over the session %s: %s", client_id, error)
            return
        logger.info("took over the session %s", client_id)
        if not session.resumed:
            self._end(session)

    async def _retire(self, session: Session) -> None:
        """End another member's session once it is empty: nothing came for a while, though there was room for it."""
        if not session.is_quiet(DRAINED_AFTER):
            return
        try:
            async with asyncio.timeout(DRAINED_AFTER):
                await session.client.check()
        except (BrokerError, TimeoutError):
            return
        if session.is_quiet(DRAINED_AFTER):
            self._end(session)

    def _end(self, session: Session) -> None:
        client_id = session.client.identity.client_id
        if self._sessions.pop(client_id, None) is not None and not session.client.taken:
            session.client.end_session()
            self._say(client_id, "")

    # Handling

    def _take(self, entry: Entry) -> None:
        if self._stopping or entry.session.client.taken:
            return
        if entry.unit is not None and entry.unit.topic.startswith(self._registry_topics):  # For members, not handlers.
            entry.session.settle(entry)
        elif self._running < self._limit:
            self._begin(entry)
        elif self._has_room(entry):
            self._backlog.append(entry)

    def _has_room(self, entry: Entry) -> bool:
        """Count what the server does not keep for this member; there is an end to that."""
        if entry.is_assured or entry.unit is None:
            return True
        size = len(entry.unit.payload) + ENTRY_BYTES
        if self._unassured_bytes + size > MAX_UNASSURED_BYTES:
            if not self._dropped:
                logger.warning("messages published with QoS 0 come faster than they are handled; some are dropped")
            self._dropped += 1
            return False
        self._unassured_bytes += size
        return True

    def _make_room(self, entry: Entry) -> Entry:
        if not entry.is_assured and entry.unit is not None:
            self._unassured_bytes -= len(entry.unit.payload) + ENTRY_BYTES
        return entry

    def _begin(self, entry: Entry) -> None:
        self._running += 1
        cast("asyncio.TaskGroup", self._tasks).create_task(self._handle(entry), name="mqtt-delivery")

    async def _handle(self, entry: Entry) -> None:
        try:
            if not self._stopping and (unit := entry.unit) is not None:
                address = label_of(unit.topic, self._space, self._config.prefix)
                delivery = Delivery(message_of(unit), address, entry.attempt, entry)
                await run_handler(self._handler, delivery, entry.release)
        finally:
            self._running -= 1
            while self._backlog and self._running < self._limit:
                self._begin(self._make_room(self._backlog.popleft()))

    def _park(self, entry: Entry, delay: float) -> None:
        """Try it again here, after some seconds; what is not acknowledged meanwhile is safe at the server."""
        if self._stopping or not self._has_room(entry):
            return
        timer: asyncio.TimerHandle

        def again() -> None:
            self._timers.discard(timer)
            entry.attempt += 1
            self._take(self._make_room(entry))

        timer = asyncio.get_running_loop().call_later(delay, again)
        self._timers.add(timer)
