"""One member's part of the sessions of a queue, or of a subscription, of Azure Service Bus.

A session is locked by one member at a time, which takes its messages in order: the next one when the one before is
settled. One that is tried again later holds up its session, and no other, until it has come again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

from brokers.clients.servicebus import BUSY_WAIT_SECONDS, WAIT_SECONDS, Receiver
from brokers.native._servicebus_member import Held
from brokers.native._topics import Delays, Taken
from brokers.shared.backoff import waits
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, ConfigError
from mesh.tasks import task_group
from mesh.values import parse_bool, parse_whole

__all__ = ["SUBSCRIBE_METADATA", "Asked", "NoSessionError", "Sessions"]

logger = logging.getLogger(__name__)

SUBSCRIBE_METADATA = ("requireSessions", "maxConcurrentSessions", "sessionIdleTimeoutInSec")
ACCEPT_SECONDS = 20.0  # How long the service is asked to wait for a session; then it is asked again.
RELEASE_SECONDS = 2.0
MAX_SESSIONS = 1000  # Each has a connection.


@dataclass(frozen=True, slots=True)
class Asked:
    """What a subscription asks for.

    Attributes:
        sessions: Most sessions at once.
        idle: Seconds without a message after which a session is left.
    """

    sessions: int
    idle: int

    @classmethod
    def read(cls, topic: str, options: SubscribeOptions, most_events: int) -> Self | None:
        """Read a subscription's metadata; None = it asks for no sessions.

        Args:
            topic: For people.
            options: Have the metadata.
            most_events: At work at once; a session has one.

        Raises:
            ConfigError: A value makes no sense.
        """
        told = {name.casefold(): value for name, value in options.metadata.items()}
        require, most, idle = SUBSCRIBE_METADATA
        name = require
        try:
            wanted = parse_bool(told.get(require.casefold()) or "false", words=True)
            name = most
            sessions = parse_whole(told.get(most.casefold()) or "8", least=1, most=MAX_SESSIONS)
            name = idle
            seconds = parse_whole(told.get(idle.casefold()) or "60", least=1, most=86_400)
        except ValueError as error:
            raise ConfigError(f"subscription to {topic}: the metadata {name} {error}") from None
        return cls(min(sessions, most_events), seconds) if wanted else None


class NoSessionError(BrokerError):
    """No session came in the time that the service was asked to wait."""


class Sessions:
    """Takes from several sessions at once."""

    def __init__(
        self,
        receiver: Callable[[float], Receiver],
        address: Address,
        outage: Outage,
        asked: Asked,
        *,
        renewal: float,
        lease: float,
    ) -> None:
        """Prepare; entering begins to ask for sessions.

        Args:
            receiver: Makes one for the next session that nobody has, which the service waits for so many seconds.
            address: Of the messages.
            outage: Is told when the service is away.
            asked: How many, and how long.
            renewal: Seconds between the renewals of a session's lock.
            lease: Seconds without a sign of life of a handler until its session's lock is renewed no more.
        """
        self._receiver, self._address, self._outage, self._asked = receiver, address, outage, asked
        self._renewal, self._lease = renewal, lease
        self._places = asyncio.Semaphore(asked.sessions)
        self._serving: dict[str, asyncio.Event] = {}
        self._ready: deque[Held] = deque()
        self._changed = asyncio.Event()
        self._stopped = False
        self._failed: BrokerError | None = None
        self._delays = Delays()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin."""
        self._tasks = await self._stack.enter_async_context(task_group())
        self._accepting = self._tasks.create_task(self._accept(), name="servicebus-accept")
        self._stack.callback(self._accepting.cancel)
        await self._stack.enter_async_context(self._delays)
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """End, and leave the sessions; what waits for its time goes back now."""
        try:
            await self._stack.__aexit__(*exc_info)
        finally:
            self._outage.forget(self)

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for messages; see ``Source`` of the layout."""
        while not self._stopped:
            if self._ready:
                held = [self._ready.popleft() for _ in range(min(room, len(self._ready)))]
                return [each.taken(self._address) for each in held]
            if self._failed is not None:
                raise self._failed
            self._changed.clear()
            await self._changed.wait()
        return ()

    async def stop(self) -> None:
        """Take no more."""
        self._stopped = True
        self._accepting.cancel()
        self._changed.set()
        ready, self._ready = self._ready, deque()
        with suppress(TimeoutError):  # What is not given back by then comes again as its session is left.
            async with asyncio.timeout(RELEASE_SECONDS), asyncio.TaskGroup() as tasks:
                for held in ready:
                    tasks.create_task(held.release(), name="servicebus-release")

    async def _accept(self) -> None:
        """Ask for one session after the other, as long as there is room for one."""
        pauses = waits()
        while True:
            await self._places.acquire()
            began = time.monotonic()
            try:
                receiver = await self._next()
            except BrokerUnavailableError as error:
                self._places.release()
                self._outage.lost(error, self)
                await asyncio.sleep(next(pauses))
                continue
            except BrokerError as error:
                self._failed = error
                self._changed.set()
                return
            self._outage.back(self)
            if receiver is not None:
                self._tasks.create_task(self._serve(receiver), name="servicebus-session")
            else:
                self._places.release()
            if receiver is None and time.monotonic() - began < ACCEPT_SECONDS / 2:  # It was asked to wait, and did not.
                await asyncio.sleep(next(pauses))
            else:
                pauses = waits()

    async def _next(self) -> Receiver | None:
        """Lock a session; None = there was none."""
        receiver = self._receiver(ACCEPT_SECONDS)
        try:
            await receiver.open(ACCEPT_SECONDS)
            if receiver.session is None:  # The library tells only now that it was refused.
                await receiver.fetch(1, BUSY_WAIT_SECONDS)
                raise BrokerUnavailableError("no session was told of")
        except NoSessionError:
            await receiver.close()
            return None
        except BaseException:
            await receiver.close()
            raise
        return receiver

    async def _serve(self, receiver: Receiver) -> None:
        name = str(receiver.session)
        over = asyncio.Event()
        earlier, self._serving[name] = self._serving.get(name), over
        try:
            async with task_group() as tasks:
                session = _Session(receiver)
                renewing = tasks.create_task(session.renew(self._renewal), name="servicebus-renew")
                if earlier is not None:  # Its lock was lost, and a handler still has a message of it.
                    await earlier.wait()
                await self._hand_over(session)
                renewing.cancel()
        finally:
            await receiver.close()
            over.set()
            if self._serving.get(name) is over:
                del self._serving[name]
            self._places.release()

    async def _hand_over(self, session: _Session) -> None:
        """Hand over a session's messages, one after the other."""
        until = time.monotonic() + self._asked.idle
        while not self._stopped and time.monotonic() < until:
            try:
                found = await session.receiver.fetch(1, WAIT_SECONDS)
            except BrokerError as error:  # It is locked anew by whoever is asked next for it.
                logger.debug("a session of %r was lost: %s", self._address.label, error)
                return
            for got in found:
                session.held = held = Held(got, session.receiver, self._delays, self._lease)
                if self._stopped:
                    await held.release()
                    return
                self._ready.append(held)
                self._changed.set()
                await held.done.wait()
                until = time.monotonic() + self._asked.idle


class _Session:
    """One that this member has locked."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.held: Held | None = None

    async def renew(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            if self.held is None or self.held.done.is_set() or self.held.kept:
                try:
                    await self.receiver.renew_session()
                except BrokerError as error:  # Whoever asks next is told.
                    logger.debug("%s", error)
