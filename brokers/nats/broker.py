"""The adapter class; what maps to what stands in the package's docstring."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from nats.aio.msg import Msg

from brokers.nats._client import TOO_MANY_CONSUMERS, Connection
from brokers.nats._config import NatsConfig, NatsSettings
from brokers.nats._consumer import Consumer, backlog_of, consumer_name, stream_of
from brokers.nats._errors import JSON, RightMissingError, check_api, error_code
from brokers.nats._inspection import NO_LANE, Inspection, differences, lanes_of, stream_config, subject_of
from brokers.nats._kv import NatsKeyValue
from brokers.nats._trim import Trimmer
from brokers.shared.adapter import Adapter
from brokers.shared.inboxes import Inboxes
from brokers.shared.limits import check_size, publish_each
from mesh.address import Address, Kind, decode_token, encode_token
from mesh.broker import Backlog, Features, Frame, Handler, KeyValue, Message, Sink, SubscribeOptions, Topology
from mesh.errors import BrokerError, BrokerUnavailableError, TopologyMismatchError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.rights import Rights

__all__ = ["NatsBroker", "NatsConfig"]

logger = logging.getLogger("brokers.nats")

INBOX = r"_INBOX(?:\.[^\s.*>]+)+"
LOOKS_AT_ONCE = 6
TRIM_INTERVAL = 60.0
SWEEP_INTERVAL = 60.0
# The server's own limit is 1,000 since 2.15. A whole mesh shares the stream of a component, and an ordered group has 17
# consumers for each topic.
MAX_CONSUMERS = 10_000
MIN_VERSION = (2, 12)
NO_RESPONDER_HEADERS = frozenset({"Status", "Description", "Nats-Subject"})
HEADER_OVERHEAD_BYTES = 256
# How long the server's marker of what has expired stays: for ever, as far as it goes (ADR 53).
EXPIRED_MARKER_NS = 100 * 365 * 24 * 3600 * 1_000_000_000
UPDATE_WAIT = 5.0


class NatsBroker(Inspection, Adapter):
    """A connection to NATS with JetStream."""

    title = "Events in streams of NATS JetStream."
    tested = "nats-server 2.12 and later, one and a cluster of three"
    configuration = NatsConfig
    settings = NatsSettings
    _config: NatsConfig

    features = Features(
        name="nats",
        durable=True,
        shared=True,
        ordering=True,
        delay=True,
        dedup=True,
        wildcard=True,
        key_value=True,
        ephemeral=True,
        release_counts=True,
    )

    def __init__(self, config: NatsConfig) -> None:
        """Prepare; entering connects."""
        super().__init__(config)
        self._prepare(config)
        self._sink: Sink | None = None
        self._inboxes = Inboxes("NATS", INBOX)
        self._stores: dict[tuple[str, bool], NatsKeyValue] = {}
        self.inbox = ""

    def _prepare(self, config: NatsConfig) -> None:
        self._config = config
        self._connection = Connection(list(config.servers), config.options())
        self._connection.on_refused = self._refuse
        self._trimmer = Trimmer(self._connection)

    async def _enter(self) -> None:
        """Connect, and start to receive frames."""
        connection = self._connection
        await connection.open(self._config.connect_wait, self._config.ping_interval)
        self._stack.push_async_callback(connection.close)
        version = connection.client.connected_server_version
        if (version.major, version.minor) < MIN_VERSION:
            raise BrokerUnavailableError(
                f"NATS at {connection.shown} is version {version.major}.{version.minor}; "
                f"{MIN_VERSION[0]}.{MIN_VERSION[1]} or later is needed"
            )
        limit = connection.client.max_payload
        self.features = replace(self.features, max_message_bytes=limit - HEADER_OVERHEAD_BYTES)
        self.inbox = connection.client.new_inbox()
        await connection.subscribe(f"{self.inbox}.*", self._receive)
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        for work in (self._trim(), self._sweep(), connection.repeat_overdue()):
            self._stack.callback(tasks.create_task(work, name="nats-work").cancel)

    @staticmethod
    def permissions(rights: Rights) -> str:
        """Write what a user of the server has to be allowed."""
        from brokers.nats._permissions import permissions

        return permissions(rights)

    async def check(self) -> None:
        """Ask the server for a sign of life."""
        await self._connection.flush()

    async def until_lost(self) -> str:
        """Wait until the server has closed the connection for good, say since it takes back the credentials."""
        assert self._connection.closed is not None
        await asyncio.shield(self._connection.closed)
        return f"NATS at {self._connection.shown} has closed the connection for good"

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back whenever the client has reconnected, and subscribed again."""
        self._connection.outage.on_back(callback)

    # Stored messages

    async def declare(self, topology: Topology) -> None:
        """Create a space's stream, or check that it is as wanted."""
        wanted = stream_config(topology, self._config.replicas)
        await self._ensure_stream(wanted, {"max_consumers": MAX_CONSUMERS})

    def max_age(self, topology: Topology) -> float | None:
        """Give the seconds after which the server removes events of a space, whoever has them; None for never."""
        return topology.max_age

    async def _ensure_stream(self, wanted: JSON, wished: JSON | None = None, added: JSON | None = None) -> None:
        """Create a stream; one that is there may differ in what is wished, and is changed to what is added."""
        wished = {**(wished or {}), **(added or {})}
        name = cast("str", wanted["name"])
        answer = await self._connection.api(f"STREAM.CREATE.{name}", {**wanted, **wished})
        if error_code(answer) == TOO_MANY_CONSUMERS:  # More than this account may have.
            answer = await self._connection.api(f"STREAM.CREATE.{name}", wanted)
        if "error" not in answer:
            return
        existing = await self._connection.api(f"STREAM.INFO.{name}")
        if "error" in existing:
            check_api(answer, f"cannot create stream {name} on NATS at {self._connection.shown}")
        config = cast("JSON", existing["config"])
        if sides := differences(config, wanted):
            raise TopologyMismatchError(
                f"stream {name} on NATS at {self._connection.shown} differs: {sides}; "
                "change it there, or the component's settings here"
            )
        if added and any(config.get(key) != value for key, value in added.items()):
            await self._update_stream(name, {**config, **added}, added)

    async def _update_stream(self, name: str, config: JSON, added: JSON) -> None:
        """Change a stream that an earlier version made, if this user may."""
        try:
            async with asyncio.timeout(UPDATE_WAIT):
                answer = await self._connection.api(f"STREAM.UPDATE.{name}", config, refusable=True)
            if "error" not in answer:
                return
            why = str(cast("JSON", answer["error"]).get("description"))
        except TimeoutError:
            why = "it does not answer"
        except RightMissingError as error:
            why = str(error)
        setting = ", ".join(f"{key} to {value}" for key, value in added.items())
        logger.warning("cannot set %s of stream %s on NATS at %s: %s", setting, name, self._connection.shown, why)

    async def publish(self, address: Address, message: Message) -> None:
        """Store a message; the PubAck confirms it."""
        headers = dict(message.headers)
        if message.id is not None:
            headers["Nats-Msg-Id"] = f"{address.name} {message.id}"  # NATS compares it over the whole space.
        check_size(message.body, headers, self.features.max_message_bytes)
        await self._connection.store(subject_of(address, message.key), message.body, headers)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several: sent in order, confirmed as the server gets to them."""
        return await publish_each(self.publish, address, messages)

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        """Pull for a durable consumer (17 of them when ordered)."""
        lanes = lanes_of(options)
        await self._check_order(address, options)
        permits = asyncio.Semaphore(options.max_in_flight) if options.ordered else None
        consumers = [self._consumer(address, lane, options, handler, permits) for lane in lanes]
        try:
            async with task_group() as tasks:
                try:
                    async with task_group() as starting:
                        for consumer in consumers:
                            starting.create_task(consumer.start(tasks), name="nats-start")
                    with self._trimmer.reading(stream_of(address.space), consumers):
                        yield
                finally:  # All of them, before any handler is waited for.
                    async with task_group() as stopping:
                        for consumer in consumers:
                            stopping.create_task(consumer.stop(), name="nats-stop")
        finally:
            for consumer in consumers:
                await consumer.release()
            with suppress(BrokerUnavailableError):
                await self._connection.flush()

    async def _check_order(self, address: Address, options: SubscribeOptions) -> None:
        """Refuse a group that exists with the other order: it would get everything stored a second time."""
        lane = "*" if options.ordered else NO_LANE
        name = consumer_name(options.group, f"{address.space}.{lane}.{address.name}")
        found = await self._connection.api(f"CONSUMER.INFO.{stream_of(address.space)}.{name}")
        if "error" not in found:
            raise TopologyMismatchError(
                f"group {options.group!r} of {address} exists with ordered={not options.ordered}, wanted "
                f"{options.ordered}; delete its consumers of stream {stream_of(address.space)} to change that"
            )

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Ask for the group's consumers, and for the time of the first message that is not settled."""
        lanes = lanes_of(options)
        permits = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def look(lane: str) -> Backlog:
            async with permits:
                return await self._backlog(address, f"{address.space}.{lane}.{address.name}", options)

        async with task_group() as tasks:
            looking = [tasks.create_task(look(lane), name="nats-backlog") for lane in lanes]
        found = [each.result() for each in looking]
        oldest = min((each.oldest for each in found if each.oldest is not None), default=None)
        return Backlog(sum(each.waiting for each in found), sum(each.taken or 0 for each in found), oldest)

    async def _backlog(self, address: Address, subject: str, options: SubscribeOptions) -> Backlog:
        name = consumer_name(options.group, subject)
        what = f"group {options.group!r} of {address}"
        return await backlog_of(self._connection, stream_of(address.space), name, subject, what)

    def _consumer(
        self,
        address: Address,
        lane: str,
        options: SubscribeOptions,
        handler: Handler,
        permits: asyncio.Semaphore | None,
    ) -> Consumer:
        one_by_one = options.ordered and lane != NO_LANE
        subject = f"{address.space}.{lane}.{address.name}"
        return Consumer(
            self._connection,
            stream=stream_of(address.space),
            name=consumer_name(options.group, subject),
            subject=subject,
            max_in_flight=1 if one_by_one else options.max_in_flight,
            max_ack_pending=1 if one_by_one else -1,
            ack_wait=options.ack_wait,
            address_of=_address_of,
            handler=handler,
            permits=permits,
            ephemeral=options.ephemeral,
            expires=options.expires,
        )

    async def _trim(self) -> None:
        while True:
            # Nodes that begin together look at different times.
            await asyncio.sleep(TRIM_INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            for stream in self._trimmer.streams:
                try:
                    await self._trimmer.look(stream)
                except BrokerError as error:
                    logger.warning("cannot trim %s: %s", stream, error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            for store in list(self._stores.values()):
                await store.sweeper.sweep_if_due()

    # Frames

    def on_frame(self, sink: Sink) -> None:
        """Set the inbox sink."""
        self._sink = sink

    async def _receive(self, message: Msg) -> None:
        if self._sink is not None:
            self._sink(self._frame(message, message.subject.rpartition(".")[2]))

    def _frame(self, message: Msg, token: str) -> Frame:
        headers = message.headers or {}
        if headers.get("Status") == "503" and not message.data and headers.keys() <= NO_RESPONDER_HEADERS:
            return Frame(None, token, "")
        return Frame(Message(headers, message.data), token, self._inboxes.reply_to(message.reply))

    def _refuse(self, subject: str) -> None:
        if self._sink is not None:
            self._sink(Frame(None, "", "", subject))

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        """Send over core NATS."""
        check_size(message.body, message.headers, self.features.max_message_bytes)
        subject = self._inboxes.check(to) if isinstance(to, str) else to.text
        await self._connection.send(subject, message.body, cast("dict[str, str]", message.headers), reply_to)

    @asynccontextmanager
    async def serve(self, address: Address, group: str, sink: Sink) -> AsyncIterator[None]:
        """Join a queue group."""

        async def receive(message: Msg) -> None:
            sink(self._frame(message, ""))

        subscription = await self._connection.subscribe(address.text, receive, encode_token(group))
        try:
            yield
        finally:
            await self._connection.leave(subscription)

    async def broadcast(self, address: Address, message: Message) -> None:
        """Send to every subscriber of core NATS."""
        await self.send(address, message)

    @asynccontextmanager
    async def listen(self, address: Address, sink: Sink) -> AsyncIterator[None]:
        """Subscribe without a queue group."""

        async def receive(message: Msg) -> None:
            sink(self._frame(message, ""))

        subscription = await self._connection.subscribe(address.text, receive)
        try:
            yield
        finally:
            await self._connection.leave(subscription)

    async def key_value(self, name: str, *, dotted: bool = False) -> KeyValue:
        """Open a bucket."""
        bucket = encode_token(name)
        await self._ensure_stream(
            {
                "name": f"KV_{bucket}",
                "subjects": [f"$KV.{bucket}.>"],
                "retention": "limits",
                "discard": "new",
                "storage": "file",
                "max_msgs_per_subject": 1,
                "num_replicas": self._config.replicas or 1,
                "allow_direct": True,
                "allow_msg_ttl": True,
                "allow_atomic": True,
                "allow_rollup_hdrs": True,
            },
            added={"subject_delete_marker_ttl": EXPIRED_MARKER_NS},
        )
        if (bucket, dotted) not in self._stores:
            self._stores[bucket, dotted] = NatsKeyValue(self._connection, bucket, dotted=dotted)
        return self._stores[bucket, dotted]


@lru_cache(maxsize=4096)
def _address_of(subject: str) -> Address:
    """Read an address back from a subject: four tokens of space, the lane, the topic."""
    tokens = subject.split(".")
    label = ".".join(decode_token(token) for token in tokens[5:])
    return Address(Kind.TOPIC, ".".join(tokens[:4]), ".".join(tokens[5:]), label)
