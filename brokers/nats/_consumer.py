"""A durable pull consumer: asks for as many messages as there is room for, and settles them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2s
from typing import cast

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from brokers.nats._client import TOO_MANY_CONSUMERS, Connection, unix_time
from brokers.nats._errors import JSON, check_api, error_code
from brokers.shared.handling import run_handler
from mesh.address import Address, encode_token
from mesh.broker import Backlog, Delivery, Handler, Message
from mesh.errors import BrokerError, BrokerUnavailableError, TopologyMismatchError

__all__ = ["Consumer", "NatsSettler", "attempt_of", "backlog_of", "consumer_name", "parted", "stream_of"]

logger = logging.getLogger("brokers.nats")

PULL_EXPIRES = 30.0
PULL_HEARTBEAT = 5.0
# A server hangs up on whoever reads slower than it sends, at 64 MiB by default (``max_pending``).
PULL_BYTES = 16 * 1024 * 1024
MISSED_HEARTBEATS = 2.5
RECREATE_WAIT = 0.5
EPHEMERAL_SECONDS = 60.0  # Outlives a lost connection, but not a process that died.
THRESHOLD = "inactive_threshold"
EXCESS_WAIT = 1.0
CONSUMER_EXISTS = 10148


@lru_cache(maxsize=1024)
def stream_of(space: str) -> str:
    """Name the stream of a space."""
    return space.replace(".", "_")


def consumer_name(group: str, subject: str) -> str:
    """Name the consumer that a group has for a subject."""
    return f"{encode_token(group)[:120]}-{blake2s(f'{group} {subject}'.encode(), digest_size=8).hexdigest()}"


class Consumer:
    """Pulls for one durable consumer of one stream.

    Attributes:
        received: How many messages came.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        name: str,
        subject: str,
        max_in_flight: int,
        max_ack_pending: int,
        ack_wait: float,
        address_of: Callable[[str], Address],
        handler: Handler,
        permits: asyncio.Semaphore | None = None,
        ephemeral: bool = False,
        expires: float | None = None,
    ) -> None:
        self.received = 0
        self._connection = connection
        self._stream = stream
        self._name = name
        self._subject = subject
        self._max_in_flight = max_in_flight
        self._max_ack_pending = max_ack_pending
        self._ack_wait = ack_wait
        self._address_of = address_of
        self._handler = handler
        self._permits = permits
        self._ephemeral = ephemeral
        self._expires = EPHEMERAL_SECONDS if ephemeral else expires
        self._queued: set[asyncio.Task[None]] = set()
        self._not_begun: dict[str, bool] = {}
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._inbox = ""
        self._asked = 0
        self._in_flight = 0
        self._stopping = False
        self._lost = False
        self._heard_at = 0.0
        self._changed = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None

    async def _create(self) -> None:
        wanted: JSON = {
            "durable_name": self._name,
            "name": self._name,
            "ack_policy": "explicit",
            "ack_wait": int(self._ack_wait * 1e9),
            "deliver_policy": "new" if self._ephemeral else "all",
            "filter_subject": self._subject,
            "max_ack_pending": self._max_ack_pending,
            "max_deliver": -1,
            "replay_policy": "instant",
        }
        expires: JSON = {} if self._expires is None else {THRESHOLD: int(self._expires * 1e9)}
        answer = await self._declare({**wanted, **expires}, "create")
        code = error_code(answer)
        if code == CONSUMER_EXISTS:
            existing = check_api(
                await self._connection.api(f"CONSUMER.INFO.{self._stream}.{self._name}"), f"consumer {self._name}"
            )
            config = cast("JSON", existing["config"])
            if all(config.get(key) == value for key, value in wanted.items()):
                # Whoever lets a group expire changes none: it would undo what another just took away.
                if self._expires is None and config.pop(THRESHOLD, None):
                    lasting = await self._declare(config, "update")
                    check_api(lasting, f"cannot keep consumer {self._name} of stream {self._stream} from expiring")
                return
            sides = ", ".join(
                f"{key} is {config.get(key)!r} and should be {value!r}"
                for key, value in wanted.items()
                if config.get(key) != value
            )
            raise TopologyMismatchError(f"consumer {self._name} of stream {self._stream} differs: {sides}")
        if code == TOO_MANY_CONSUMERS:
            raise BrokerError(
                f"cannot create consumer {self._name}: stream {self._stream} has as many as it may, which go on; "
                "delete those that nobody uses, have groups that only streams use end sooner (groupExpires), or allow "
                f"more: nats stream edit {self._stream} --max-consumers=…"
            )
        check_api(answer, f"cannot create consumer {self._name} of stream {self._stream}")

    async def _declare(self, config: JSON, action: str) -> JSON:
        request: JSON = {"stream_name": self._stream, "config": config, "action": action}
        # With the filter in the subject, the server's permissions tell whose events may be read.
        return await self._connection.api(f"CONSUMER.CREATE.{self._stream}.{self._name}.{self._subject}", request)

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to fetch; deliveries are handled in ``tasks``."""
        await self._create()
        self._tasks = tasks
        self._inbox = self._connection.client.new_inbox()
        self._subscription = await self._connection.subscribe(self._inbox, self._receive)
        self._connection.on_reconnect(self._ask_anew)
        self._fetching = tasks.create_task(self._fetch(), name="nats-fetch")

    async def stop(self) -> None:
        """Stop fetching, and release what no handler has begun."""
        self._stopping = True
        for queued in self._queued:
            queued.cancel()
        if self._fetching is not None:
            self._fetching.cancel()
            self._connection.forget_reconnect(self._ask_anew)
        if self._subscription is not None:
            await self._connection.leave(self._subscription)  # What arrives meanwhile is released in _receive.
        await self.release()
        if self._ephemeral and self._connection.client.is_connected:
            await self._connection.api(f"CONSUMER.DELETE.{self._stream}.{self._name}")

    async def release(self) -> None:
        """Release what waits for its turn, or came to a task that was cancelled before its first step."""
        while self._not_begun:
            await NatsSettler(self._connection, self._not_begun.popitem()[0]).nack(0.0)

    def _ask_anew(self) -> None:
        """Forget what was asked for: the server has, too."""
        self._asked = 0
        self._changed.set()

    async def _fetch(self) -> None:
        """Keep asking for what there is room for; take silence for a lost request."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        while True:
            self._changed.clear()
            if self._lost:
                await self._restore()
            room = self._max_in_flight - self._in_flight - self._asked
            if room > 0 and (self._asked <= self._max_in_flight // 4):
                await self._ask(room)
            try:
                async with asyncio.timeout(PULL_HEARTBEAT * MISSED_HEARTBEATS):
                    await self._changed.wait()
            except TimeoutError:
                if self._asked and loop.time() - self._heard_at > PULL_HEARTBEAT * MISSED_HEARTBEATS:
                    self._asked = 0

    async def _ask(self, room: int) -> None:
        request = b'{"batch":%d,"max_bytes":%d,"expires":%d,"idle_heartbeat":%d}' % (
            room,
            max(PULL_BYTES, self._connection.client.max_payload),
            int(PULL_EXPIRES * 1e9),
            int(PULL_HEARTBEAT * 1e9),
        )
        if not self._connection.client.is_connected:
            return  # _ask_anew comes with the connection; what is buffered until then would ask twice.
        try:
            await self._connection.send(self._next, request, reply=self._inbox)
        except BrokerUnavailableError:
            return
        self._asked += room

    async def _restore(self) -> None:
        """Recreate a consumer that somebody deleted, or that went with its server's data."""
        try:
            await self._create()
            self._lost = False
            self._asked = 0
        except BrokerError as error:
            logger.warning("consumer %s is gone: %s", self._name, error)
            await asyncio.sleep(RECREATE_WAIT)
            self._changed.set()

    async def _receive(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        headers = message.headers or {}
        status = headers.get("Status")
        if status is not None and not message.reply:
            self._note_status(status, headers)
            return
        if self._asked > 0:
            self._asked -= 1
        if self._stopping or self._in_flight >= self._max_in_flight:
            # More than there is room for comes when a request was taken for lost, and was only late.
            await NatsSettler(self._connection, message.reply).nack(0.0 if self._stopping else EXCESS_WAIT)
            return
        tasks = cast("asyncio.TaskGroup", self._tasks)
        self.received += 1
        self._in_flight += 1
        self._not_begun[message.reply] = True
        if self._permits is None:
            tasks.create_task(self._handle(message), name="nats-delivery")
        else:
            tasks.create_task(self._handle_in_turn(message, self._permits), name="nats-delivery")

    def _note_status(self, status: str, headers: dict[str, str]) -> None:
        if status == "100":
            return
        description = headers.get("Description", "")
        unfilled = headers.get("Nats-Pending-Messages")
        self._asked = max(0, self._asked - int(unfilled)) if unfilled is not None else 0
        if status == "503" or "Deleted" in description:
            self._lost = True
        self._changed.set()

    async def _handle_in_turn(self, message: Msg, permits: asyncio.Semaphore) -> None:
        """Handle it once this member has room; signs of life keep it here until then."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._queued.add(task)
        try:
            while True:
                try:
                    async with asyncio.timeout(self._ack_wait / 2):
                        await permits.acquire()
                    break
                except TimeoutError:
                    await NatsSettler(self._connection, message.reply).extend()
        finally:
            self._queued.discard(task)
        try:
            await self._handle(message)
        finally:
            permits.release()

    async def _handle(self, message: Msg) -> None:
        if not self._not_begun.pop(message.reply, False):
            return  # Released already.
        headers, identity = parted(message.headers or {})
        delivery = Delivery(
            Message(headers, message.data, id=identity),
            self._address_of(message.subject),
            attempt_of(message.reply),
            NatsSettler(self._connection, message.reply),
        )
        try:
            await run_handler(self._handler, delivery, delivery.nack)
        finally:
            self._in_flight -= 1
            if not self._changed.is_set() and self._asked <= self._max_in_flight // 4:
                self._changed.set()


def parted(headers: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    """Give a stored message's headers without the server's own, which it adds when it copies streams, and its id."""
    identity = headers.get("Nats-Msg-Id")  # Ours, not the publisher's: the topic, a blank, Message.id.
    own = {name: value for name, value in headers.items() if not name.startswith("Nats-")}
    return own, None if identity is None else identity[identity.find(" ") + 1 :]


def attempt_of(reply: str) -> int:
    """Read the delivery count from ``$JS.ACK.<stream>.<consumer>.<count>…`` (or the longer form with domain)."""
    tokens = reply.split(".")
    return int(tokens[4] if len(tokens) == 9 else tokens[6])


async def backlog_of(connection: Connection, stream: str, name: str, subject: str, what: str) -> Backlog:
    """Ask for a consumer, and for the time of the first message that is not settled."""
    answer = await connection.api(f"CONSUMER.INFO.{stream}.{name}", refusable=True)
    check_api(answer, f"cannot look at {what}")
    waiting, taken = cast("int", answer["num_pending"]), cast("int", answer["num_ack_pending"])
    if not waiting + taken:
        return Backlog(0, 0)
    first = cast("dict[str, int]", answer["ack_floor"])["stream_seq"] + 1
    asked: JSON = {"seq": first, "next_by_subj": subject}
    stored = await connection.api(f"STREAM.MSG.GET.{stream}", asked, refusable=True)
    told = cast("JSON", stored.get("message", {})).get("time")
    return Backlog(waiting, taken, None if told is None else unix_time(cast("str", told)))


class NatsSettler:
    """Settles by publishing to the delivery's reply subject."""

    __slots__ = ("_connection", "_reply")

    def __init__(self, connection: Connection, reply: str) -> None:
        self._connection = connection
        self._reply = reply

    async def _send(self, body: bytes) -> None:
        if self._connection.connected.is_set():
            try:
                await self._connection.send(self._reply, body)
            except BrokerUnavailableError:
                return  # As without a connection, the delivery comes again, to whoever is there then.

    async def ack(self) -> None:
        await self._send(b"+ACK")

    async def nack(self, delay: float) -> None:
        await self._send(b"-NAK" if delay <= 0 else b"-NAK " + orjson.dumps({"delay": int(delay * 1e9)}))

    async def reject(self) -> None:
        await self._send(b"+TERM")

    async def extend(self) -> None:
        await self._send(b"+WPI")
