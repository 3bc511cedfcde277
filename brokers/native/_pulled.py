"""One member's part of a subscription of Google Cloud Pub/Sub."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Self

from brokers.clients.gcp_pubsub import PubSubService
from brokers.native._held import GoneError, Lanes
from brokers.native._topics import Delays, Taken
from brokers.shared.backoff import waits
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Delivery, Message
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError

__all__ = ["MAX_ATTRIBUTE", "InvalidError", "Pulled"]

logger = logging.getLogger(__name__)

MAX_READY = 1000
MAX_LEASE = 600
MAX_ATTRIBUTE = 1024
KEEP_SECONDS = 3.0  # A subscription's own lease has at least ten.
IDLE_SECONDS = 0.1  # Asked for messages, the service waits itself.
MAX_COUNTED = 10_000
ACKS = 3


class InvalidError(PublishRejectedError):
    """A message is not what the topic takes; nothing of its request was stored."""


@dataclass(frozen=True, slots=True, eq=False)
class _Got:
    ack_id: str
    key: str
    message: Message
    attempt: int


class Pulled:
    """Takes messages; those of one ordering key are handed over one after the other."""

    def __init__(self, service: PubSubService, name: str, address: Address, lease: int, outage: Outage) -> None:
        """Prepare; entering begins to take.

        Args:
            service: Where.
            name: The subscription.
            address: Of its messages.
            lease: Seconds without a sign of life until others may have what it holds.
            outage: Is told when the service is away.
        """
        self._service, self._name, self._address, self._outage = service, name, address, outage
        self.lease = lease
        self._ready: Lanes[_Got] = Lanes(lambda each: each.key)
        self._waiting: set[_Got] = set()
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._room = 0
        self._wanted, self._changed = asyncio.Event(), asyncio.Event()
        self._failed: BrokerError | None = None
        self._stopping = False
        self._stack = AsyncExitStack()
        self._delays = Delays()

    async def __aenter__(self) -> Self:
        """Begin."""
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._pulling = tasks.create_task(self._pull(), name="pubsub-pull")
        keeping = tasks.create_task(self._keep(), name="pubsub-keep")
        self._stack.callback(keeping.cancel)
        self._stack.callback(self._pulling.cancel)
        await self._stack.enter_async_context(self._delays)
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """End; what waits for its time goes back now."""
        await self._stack.aclose()
        self._outage.forget(self)

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for messages; see ``Source`` of the layout."""
        while not self._stopping:
            if begun := self._ready.begin(room):
                return [self._taken(each) for each in begun]
            if self._failed is not None:
                raise self._failed
            self._changed.clear()
            self._room = room
            self._wanted.set()
            await self._changed.wait()
        return ()

    async def stop(self) -> None:
        """Take no more; what was not begun goes back."""
        self._stopping = True
        self._changed.set()
        self._pulling.cancel()
        await self._lease(self._ready.clear(), 0)

    def _taken(self, got: _Got) -> Taken:
        identity = got.message.id or ""
        count = self._counts[identity] = max(got.attempt, self._counts.pop(identity, 0) + 1)
        if len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)
        held = _Held(self, got)
        return Taken(Delivery(got.message, self._address, count, held), partial(held.nack, 0.0))

    async def _pull(self) -> None:
        pauses = waits()
        failing = False
        while True:
            if not self._room or len(self._ready) >= MAX_READY:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            try:
                # What failed may have been an answer that was too large: one message never is.
                asked = {"maxMessages": 1 if failing else self._room}
                answer = await self._service.post("subscriptions", self._name, "pull", asked)
                if answer.status == 404:
                    raise GoneError(f"the subscription {self._name!r} of Pub/Sub is gone")
                given = self._service.taken(answer, f"pull from {self._name!r}").get("receivedMessages") or ()
            except BrokerUnavailableError as error:
                self._outage.lost(error, self)
                failing = True
                await asyncio.sleep(next(pauses))
                continue
            except BrokerError as error:
                self._failed = error
                self._changed.set()
                return
            self._outage.back(self)
            failing, pauses = False, waits()
            for each in given:
                try:
                    self._ready.add(_read(each))
                except (KeyError, ValueError) as error:
                    logger.warning("the subscription %r has what is no message: %r", self._name, error)
            if given:
                self._room = 0
                self._changed.set()
            else:
                await asyncio.sleep(IDLE_SECONDS)

    async def _keep(self) -> None:
        """Renew the lease of what is not at work."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            await self._lease([*self._ready, *self._waiting], self.lease)

    async def _lease(self, held: Sequence[_Got], seconds: int) -> None:
        if not held:
            return
        asked = {"ackIds": [each.ack_id for each in held], "ackDeadlineSeconds": min(seconds, MAX_LEASE)}
        try:
            await self._service.ask("subscriptions", self._name, "modifyAckDeadline", asked)
        except BrokerError as error:  # Then they come when their lease is over.
            logger.debug("%s", error)

    async def ack(self, got: _Got) -> None:
        """Have done with a message."""
        error: BrokerError | None = None
        for pause in islice(waits(), ACKS):
            try:
                await self._service.ask("subscriptions", self._name, "acknowledge", {"ackIds": [got.ack_id]})
                error = None
                break
            except BrokerError as found:
                error = found
                if not isinstance(found, BrokerUnavailableError):
                    break
                await asyncio.sleep(pause)
        if error is not None:
            logger.warning("an event of the subscription %r may come again: %s", self._name, error)
        self._counts.pop(got.message.id or "", None)
        self._ready.free(got)
        self._changed.set()

    async def again(self, got: _Got, delay: float) -> None:
        """Have a message come again later; those of its key that came behind it come after it."""
        if not got.key and delay <= MAX_LEASE:
            await self._lease([got], math.ceil(delay))
        elif delay <= 0:
            await self._give_back(got)
        else:
            self._waiting.add(got)
            await self._delays.after(delay, partial(self._give_back, got))

    async def _give_back(self, got: _Got) -> None:
        self._waiting.discard(got)
        await self._lease([got, *self._ready.behind(got)], 0)
        self._ready.free(got)
        self._changed.set()

    async def renew(self, got: _Got) -> None:
        """Renew a message's lease."""
        await self._lease([got], self.lease)


class _Held:
    """Settles one delivery."""

    def __init__(self, pulled: Pulled, got: _Got) -> None:
        self._pulled, self._got = pulled, got

    async def ack(self) -> None:
        await self._pulled.ack(self._got)

    reject = ack  # Dead-lettering is the mesh's, before it.

    async def nack(self, delay: float) -> None:
        await self._pulled.again(self._got, delay)

    async def extend(self) -> None:
        await self._pulled.renew(self._got)


def _read(given: Mapping[str, Any]) -> _Got:
    message = given.get("message") or {}
    headers = _headers({str(name): str(value) for name, value in (message.get("attributes") or {}).items()})
    body = base64.b64decode(message.get("data") or "")
    read = Message(headers, body, id=str(message.get("messageId", "")), metadata=headers)
    return _Got(given["ackId"], str(message.get("orderingKey") or ""), read, int(given.get("deliveryAttempt") or 1))


def _headers(attributes: Mapping[str, str]) -> dict[str, str]:
    """Read attributes as headers: those that continue another one are put together again."""
    found: dict[str, str] = {}
    for name, value in attributes.items():
        base, _, number = name.rpartition(".")
        if (
            number.isdecimal()
            and len(attributes.get(base if number == "2" else f"{base}.{int(number) - 1}", "")) == MAX_ATTRIBUTE
        ):
            continue
        last, count = value, 2
        while len(last) == MAX_ATTRIBUTE and (last := attributes.get(f"{name}.{count}", "")):
            value, count = value + last, count + 1
        found[name] = value
    return found
