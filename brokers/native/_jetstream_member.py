"""One member of a group on NATS JetStream: what it takes, and how it settles that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import cast

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from brokers.native._jetstream import check_consumer
from brokers.native._topics import Taken
from brokers.nats._client import Connection
from brokers.nats._consumer import NatsSettler, attempt_of
from brokers.nats._errors import JSON, check_api, error_code
from mesh.address import Address, encode_token
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Member"]

logger = logging.getLogger("brokers.nats")

INTERNAL = 500
NO_CONSUMER = 10014
CONSUMER_EXISTS = 10148
PULL_EXPIRES = 30.0
PULL_HEARTBEAT = 5.0
SILENCE = 2.5 * PULL_HEARTBEAT
# A server hangs up on whoever reads slower than it sends, at 64 MiB by default (``max_pending``).
PULL_BYTES = 16 * 1024 * 1024
RESTORE_WAIT = 0.5
LEAVE_WAIT = 5.0
EXCESS_WAIT = 1.0
MAX_READY = 4096


class _Settler(NatsSettler):
    """Settles a delivery, which a member has until then."""

    __slots__ = ("_member", "handed", "seen")

    def __init__(self, member: Member, reply: str) -> None:
        super().__init__(member.connection, reply)
        self._member = member
        self.handed = False
        self.seen = 0.0

    def hand(self, now: float) -> None:
        """Note that a handler has it: from now on it is that which gives signs of life."""
        self.handed, self.seen = True, now

    async def _send(self, body: bytes) -> None:
        if body != b"+WPI":
            self._member.unsettled.pop(self._reply, None)
        connection = self._connection
        if connection.connected.is_set():
            with suppress(BrokerUnavailableError):  # As without a connection, the delivery comes again.
                await connection.send(self._reply, body)

    async def extend(self) -> None:
        self.seen = time.monotonic()
        await super().extend()

    async def release(self) -> None:
        await super().nack(0.0)

    async def still_here(self) -> None:
        await super().extend()


class Member:
    """Takes for one consumer: asks a pull consumer for as much as there is room for, or listens to a push consumer.

    Attributes:
        connection: To the server.
        unsettled: Deliveries by their reply subjects, waiting or in a handler.
    """

    def __init__(
        self, connection: Connection, stream: str, wanted: JSON, address: Address, options: SubscribeOptions
    ) -> None:
        self.connection = connection
        self.unsettled: dict[str, _Settler] = {}
        self._stream, self._wanted, self._address, self._options = stream, wanted, address, options
        self._name = cast("str", wanted["name"])
        # A group of the mesh's own, which is for ever if one member says so.
        self._lasts = "deliver_subject" not in wanted and "inactive_threshold" not in wanted
        self._pulls = True
        self._ack_wait = 0.0
        self._ready: deque[tuple[Msg, int, _Settler]] = deque()
        self._asked = 0
        self._is_pattern = address.is_pattern
        self._lost = self._refused = self._stopping = False
        self._config: JSON = {}
        self._changed = asyncio.Event()
        self._subscription: Subscription | None = None
        self._subject = ""

    async def start(self) -> None:
        """Find or make the consumer, and listen."""
        self.connection.on_reconnect(self._on_reconnect)
        await self._ensure()

    async def _ensure(self) -> None:
        """Use the consumer that is there, or make it; and listen where it delivers to."""
        info_of = f"CONSUMER.INFO.{self._stream}.{self._name}"
        what = f"consumer {self._name} of stream {self._stream} on NATS at {self.connection.shown}"
        info = await self.connection.api(info_of, refusable=True)
        if error_code(info) == NO_CONSUMER:
            info = await self._declare(self._wanted, "create")
            if error_code(info) == CONSUMER_EXISTS:  # Another member was quicker.
                info = await self.connection.api(info_of)
        if cast("int", cast("JSON", info.get("error") or {}).get("code", 0)) >= INTERNAL:  # It may pass.
            raise BrokerUnavailableError(f"cannot use {what}: {cast('JSON', info['error']).get('description')}")
        check_api(info, f"cannot use {what}")
        config = check_consumer(self._stream, await self._filtered(info), self._wanted)
        if cast("int", config.get("max_deliver", -1)) > 0 and not self._subject:
            text = "%s delivers an event %d times at most, and then never again"
            logger.warning(text, what, config["max_deliver"])
        if self._lasts and config.pop("inactive_threshold", None):  # Made for a member who let the group expire.
            check_api(await self._declare(config, "update"), f"cannot keep {what} from expiring")
        deliver_to, group = str(config.get("deliver_subject") or ""), str(config.get("deliver_group") or "")
        self._config = config
        self._ack_wait = cast("int", config["ack_wait"]) / 1e9
        self._pulls = not deliver_to
        subject = deliver_to or self._subject or self.connection.client.new_inbox()
        if subject == self._subject:
            return
        if deliver_to and not group and info.get("push_bound"):
            raise BrokerUnavailableError(f"{what} delivers to another member already; with queueGroupName they share")
        if self._subscription is not None:
            await self.connection.leave(self._subscription)
        self._subject = subject
        self._subscription = await self.connection.subscribe(subject, self._receive, group)

    async def _filtered(self, info: JSON) -> JSON:
        """Have a consumer of a whole stream be one of its subject, where there is but one."""
        config = cast("JSON", info["config"])
        if config.get("filter_subject") or config.get("filter_subjects"):
            return info
        stream = check_api(await self.connection.api(f"STREAM.INFO.{self._stream}"), f"stream {self._stream}")
        wanted = self._wanted["filter_subject"]
        same = cast("JSON", stream["config"]).get("subjects") == [wanted]
        return {**info, "config": {**config, "filter_subject": wanted}} if same else info

    async def _declare(self, config: JSON, action: str) -> JSON:
        request: JSON = {"stream_name": self._stream, "config": config, "action": action}
        # With the filter in the subject, the server's permissions tell whose events may be read.
        create = f"CONSUMER.CREATE.{self._stream}.{self._name}.{self._wanted['filter_subject']}"
        return await self.connection.api(create, request, refusable=True)

    def _on_reconnect(self) -> None:
        """Forget what was asked for, as the server has; a push consumer says nothing when it is gone."""
        self._asked, self._lost = 0, not self._pulls
        self._changed.set()

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for deliveries."""
        while not self._stopping:
            if self._lost:
                await self._restore()
                continue
            if self._refused:
                self._refused = False
                await asyncio.sleep(RESTORE_WAIT)
                continue
            if self._ready:
                now = time.monotonic()
                return [self._taken(now, *self._ready.popleft()) for _ in range(min(room, len(self._ready)))]
            self._changed.clear()
            if self._pulls and self._asked <= room // 4:
                await self._ask(room - self._asked)
            try:
                async with asyncio.timeout(SILENCE):
                    await self._changed.wait()
            except TimeoutError:
                self._on_reconnect()  # A request, or the consumer, may be lost.
        return []

    def _taken(self, now: float, message: Msg, attempt: int, settler: _Settler) -> Taken:
        settler.hand(now)
        headers = dict(message.headers or ())
        identity = headers.pop("Nats-Msg-Id", None)
        if headers:
            headers = {name: value for name, value in headers.items() if not name.startswith("Nats-")}
        address = self._address
        if self._is_pattern:
            name = ".".join(map(encode_token, message.subject.split(".")))
            address = replace(address, name=name, label=message.subject)
        made = Message(headers, message.data, id=identity, metadata={"Topic": message.subject})
        return Taken(Delivery(made, address, attempt, settler), settler.release)

    async def _ask(self, count: int) -> None:
        count = self._most("max_batch", count)
        size = self._most("max_bytes", max(PULL_BYTES, self.connection.client.max_payload))
        expires = self._most("max_expires", int(PULL_EXPIRES * 1e9))
        beat = min(int(PULL_HEARTBEAT * 1e9), expires // 2)
        request = b'{"batch":%d,"max_bytes":%d,"expires":%d,"idle_heartbeat":%d}' % (count, size, expires, beat)
        subject = f"{self.connection.prefix}.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        with suppress(BrokerUnavailableError):  # Then `_on_reconnect` comes.
            await self.connection.send(subject, request, reply=self._subject)
            self._asked += count

    def _most(self, limit: str, wanted: int) -> int:
        """Ask for no more than a consumer allows that somebody else made."""
        return min(wanted, cast("int", self._config.get(limit) or wanted))

    async def _restore(self) -> None:
        """Make a consumer again that somebody deleted, or that went with its server's data."""
        try:
            await self._ensure()
            self._asked, self._lost = 0, False
        except BrokerError as error:
            logger.warning("consumer %s of stream %s is gone: %s", self._name, self._stream, error)
            await asyncio.sleep(RESTORE_WAIT)

    async def _receive(self, message: Msg) -> None:
        self._changed.set()
        if not message.reply.startswith("$JS.ACK."):
            await self._note(message)
            return
        attempt = attempt_of(message.reply)  # Raises for what is no delivery, which is left out so.
        self._asked = max(0, self._asked - 1)
        settler = _Settler(self, message.reply)
        if self._stopping or len(self._ready) >= MAX_READY:
            await settler.nack(0.0 if self._stopping else EXCESS_WAIT)
            return
        self.unsettled[message.reply] = settler
        self._ready.append((message, attempt, settler))

    async def _note(self, message: Msg) -> None:
        """Take what the server says of the consumer."""
        headers = message.headers or {}
        status = headers.get("Status")
        if status == "100":
            waits = message.reply or headers.get("Nats-Consumer-Stalled", "")
            if waits.startswith("$JS.FC."):
                with suppress(BrokerUnavailableError):
                    await self.connection.send(waits, b"")
            return
        unfilled = headers.get("Nats-Pending-Messages", "")
        self._asked = max(0, self._asked - int(unfilled)) if unfilled.isdecimal() else 0
        if status == "503" or "Deleted" in headers.get("Description", ""):
            self._lost = True
        elif (
            not unfilled
        ):  # It says how much is not there when a request ends; any other would be refused again at once.
            self._refused = True

    async def keep(self) -> None:
        """Keep what waits here; and what a handler has, where the server's patience is shorter than the mesh's."""
        while True:
            await asyncio.sleep(self._ack_wait / 3)
            patience = self._options.ack_wait if self._ack_wait < self._options.ack_wait else 0.0
            for settler in list(self.unsettled.values()):
                if not settler.handed or time.monotonic() - settler.seen < patience:
                    await settler.still_here()

    async def stop(self) -> None:
        """Ask for no more, and release what no handler has."""
        if not self._stopping:
            self._stopping = True
            self._changed.set()
            self.connection.forget_reconnect(self._on_reconnect)
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self.connection.leave(subscription)  # What arrives meanwhile is released in `_receive`.
        while self._ready:
            await self._ready.popleft()[2].release()

    async def leave(self) -> None:
        """End it, however far it came."""
        await self.stop()
        with suppress(BrokerUnavailableError, TimeoutError):
            if self._options.ephemeral and self.connection.connected.is_set():
                async with asyncio.timeout(LEAVE_WAIT):
                    await self.connection.api(f"CONSUMER.DELETE.{self._stream}.{self._name}")
            await self.connection.flush()
