"""NATS JetStream in the native layout: subjects and streams as they stand there.

================  ==================================================================================
ours              on NATS
================  ==================================================================================
topic             the subject of that name, in whatever stream has it; one is made only if the component says so
event             its bytes; ``Nats-Msg-Id`` is the envelope's id, and of a raw event there is none
metadata          not sent
binary mode       ``ce-…`` headers and ``content-type``
group             a durable pull consumer per (group, topic), which outlives its members
``durableName``   one push consumer, with ``queueGroupName`` as its deliver group: the reference's, so that sidecars
                  of both kinds share it; one of that name that is there already is used as it is, pull or push
attempt           ``num_delivered``, an upper bound; settled as in the mesh layout
delivered         ``Topic``, and the message's headers without the server's own (``Nats-…``)
================  ==================================================================================

The connection is the mesh layout's (``brokers/nats/_client.py``), which is less code than plain nats-py would need.
That loses cancellations, ends its reader at a header it cannot read, logs in without the TLS that was asked for, and
gives up a publish when the connection breaks. It also publishes at less than half the rate.

Source: Dapr 1.18 as it was seen on NATS; docs.nats.io (JetStream wire API).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import ClassVar, Self, cast

import orjson

from brokers.native._jetstream import JetStreamSettings, stream_named, subject_of, wanted_consumer
from brokers.native._jetstream_inspection import Inspection
from brokers.native._jetstream_member import Member
from brokers.native._topics import NativeTopics, Source
from brokers.nats._client import Connection
from brokers.nats._config import NatsConfig
from brokers.nats._consumer import backlog_of
from brokers.nats._errors import JSON, NoStreamError, RightMissingError, check_api, error_code
from brokers.shared.limits import check_size, refusal
from brokers.shared.settings import Reading
from mesh.address import Address
from mesh.broker import Backlog, Features, Message, SubscribeOptions, Topology
from mesh.errors import BrokerError, BrokerUnavailableError, MeshError
from mesh.resources.component import Component
from mesh.tasks import task_group
from mesh.values import parse_bool

__all__ = ["JetStreamTopics"]

logger = logging.getLogger("brokers.nats")

HEADER_OVERHEAD_BYTES = 256
MAX_KNOWN = 4096
ASKED_WAIT = 1.0
NO_STREAM = 10059
DEDUP_WINDOW_NS = 120 * 1_000_000_000


class JetStreamTopics(Inspection, NativeTopics):
    """A user's streams."""

    title = "Events in streams of NATS JetStream."
    tested = "nats-server 2.12 and later, one and a cluster of three"
    settings = JetStreamSettings
    layouts: ClassVar = {"mesh": "brokers.nats:NatsBroker"}
    group_settings = ("durableName", "queueGroupName", "consumerID")
    features = Features(
        name="nats",
        layout="native",
        durable=True,
        shared=True,
        delay=True,
        dedup=True,
        wildcard=True,
        ephemeral=True,
        release_counts=True,
        frames=False,
    )
    _settings: JetStreamSettings

    def __init__(self, settings: JetStreamSettings, config: NatsConfig) -> None:
        """Prepare; entering connects.

        Args:
            settings: The component's.
            config: How to reach the servers.
        """
        super().__init__(settings)
        self._config = config
        self._connection = Connection(list(config.servers), config.options(), settings.api_prefix)
        self._topology = Topology("")
        self._known: set[str] = set()  # Subjects that a stream has.

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        reading = Reading(component, JetStreamSettings)
        config = NatsConfig.of(reading)
        reading.found.check(reading)
        reading.finish()
        if useless := reading.found.useless(reading.text):
            text = "component %s: %s has no effect on what it reads (see docs/brokers/nats.md)"
            logger.warning(text, component.name, ", ".join(useless))
        made = cls(reading.found, config)
        made._component = component
        return made

    async def _enter(self) -> None:
        connection = self._connection
        await connection.open(self._config.connect_wait, self._config.ping_interval)
        self._stack.push_async_callback(connection.close)
        await self._has_jetstream()
        self.features = replace(self.features, max_message_bytes=connection.client.max_payload - HEADER_OVERHEAD_BYTES)
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._stack.callback(tasks.create_task(connection.repeat_overdue(), name="nats-work").cancel)

    async def _has_jetstream(self) -> None:
        """Find out now what would be waited for in vain later: that there is no JetStream, or not for this account."""
        connection, silent = self._connection, True
        asked = f"{connection.prefix}.INFO"
        try:
            async with asyncio.timeout(ASKED_WAIT):
                while (answer := await connection.call(asked, b"", refusable=True)).status == "503":
                    silent = False
                    await asyncio.sleep(ASKED_WAIT / 10)
        except RightMissingError:  # Whoever may only publish, or only read, need not be told.
            return
        except TimeoutError:
            if silent:  # A cluster that elects its leader; what comes next waits for that.
                return
            text = f"JetStream on NATS at {connection.shown} does not answer: is it switched on there?"
            raise BrokerUnavailableError(text) from None
        check_api(orjson.loads(answer.body), f"cannot use JetStream on NATS at {connection.shown}")

    async def check(self) -> None:
        """Ask the server for a sign of life."""
        await self._connection.flush()

    async def declare(self, topology: Topology) -> None:
        """Note what a stream is to be like that has to be made."""
        self._topology = topology

    def _subject(self, address: Address, *, pattern: bool = False) -> str:
        return subject_of(address, self._settings.api_prefix, pattern=pattern)

    # Streams

    async def _stream_of(self, subject: str) -> str:
        """Find the stream that has a subject, or make it.

        Raises:
            NoStreamError: There is none, and the component does not say that one is made.
            BrokerError: There are several, or it cannot be made.
        """
        connection, settings = self._connection, self._settings
        if (stream := await self._found(subject)) is not None:
            return stream
        where = f"no stream on NATS at {connection.shown} has the subject {subject!r}"
        if not settings.creates:
            raise NoStreamError(
                f"{where}: make one there (nats stream add {stream_named(subject)} --subjects={subject}), "
                'or set createStream: "true" on the component'
            )
        name, topology = settings.stream or stream_named(subject), self._topology
        max_age_ns = int((topology.max_age or 0) * 1e9)
        wanted: JSON = {
            "name": name,
            "subjects": [subject],
            "retention": "limits",
            "discard": "new",
            "storage": "memory" if settings.memory else "file",
            "max_age": max_age_ns,
            "max_bytes": -1 if topology.max_bytes is None else topology.max_bytes,
            "num_replicas": settings.copies or self._config.replicas or topology.replicas,
            "duplicate_window": min(DEDUP_WINDOW_NS, max_age_ns or DEDUP_WINDOW_NS),
        }
        answer = await connection.api(f"STREAM.CREATE.{name}", wanted, refusable=True)
        if (error := cast("JSON | None", answer.get("error"))) is not None:
            raise NoStreamError(f"{where}, and it cannot be made as stream {name}: {error.get('description')}")
        logger.info("made stream %s for %s on NATS at %s", name, subject, connection.shown)
        return name

    async def _known_to_store(self, subject: str) -> None:
        """Have a stream take what is published; asked once for each subject, since a mere listener answers nothing."""
        if subject in self._known:
            return
        with suppress(RightMissingError):  # Who may publish need not be allowed to look.
            await self._stream_of(subject)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(subject)

    async def publish(self, address: Address, message: Message) -> None:
        """Store a message; the PubAck confirms it."""
        subject, headers = self._subject(address), dict(message.headers)
        if message.id is not None and not _is_raw(message):
            headers["Nats-Msg-Id"] = message.id
        check_size(message.body, headers, self.features.max_message_bytes)
        try:
            await self._store(subject, message.body, headers)
        except NoStreamError:  # It may have been deleted since: look again, and say so.
            await self._store(subject, message.body, headers)

    async def _store(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        await self._known_to_store(subject)
        try:
            await self._connection.store(subject, body, headers, refusable=True)
        except BaseException:
            self._known.discard(subject)
            raise

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several: sent in order, confirmed as the server gets to them."""
        try:
            await self._known_to_store(
                self._subject(address)
            )  # Else each would wait for that on its own, in any order.
        except MeshError as error:
            return [refusal(error)] * len(messages)
        return await super().publish_many(address, messages)

    # Groups

    def _limit(self, options: SubscribeOptions) -> int:
        return 1 if self._settings.concurrency == "single" else options.max_in_flight

    async def _stream_to_read(self, subject: str) -> str:
        named = self._settings.stream
        if not named:
            return await self._stream_of(subject)
        answer = await self._connection.api(f"STREAM.INFO.{named}", refusable=True)
        if "error" in answer and self._settings.creates:
            return await self._stream_of(subject)
        if error_code(answer) == NO_STREAM:
            where = f"there is no stream {named} (streamName) on NATS at {self._connection.shown}"
            raise NoStreamError(f'{where}: make it there, or set createStream: "true" on the component')
        check_api(answer, f"cannot use stream {named} (streamName) on NATS at {self._connection.shown}")
        return named

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Source]:
        subject = self._subject(address, pattern=True)
        if options.dead_letters is not None:
            await self._known_to_store(self._subject(options.dead_letters))
        stream = await self._stream_to_read(subject)
        inbox = self._connection.client.new_inbox()
        wanted = wanted_consumer(self._settings, subject, options, inbox)
        member = Member(self._connection, stream, wanted, address, options)
        async with task_group() as tasks:
            try:
                await member.start()
                keeping = tasks.create_task(member.keep(), name="nats-keep")
                try:
                    yield member
                finally:
                    keeping.cancel()
            finally:
                await member.leave()

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Ask for the group's consumer, and for the time of the first message that is not settled."""
        subject = self._subject(address, pattern=True)
        stream = await self._stream_to_read(subject)
        name = cast("str", wanted_consumer(self._settings, subject, options, "")["name"])
        what = f"group {options.group!r} of {subject}"
        return await backlog_of(self._connection, stream, name, subject, what)


def _is_raw(message: Message) -> bool:
    """Tell whether it was published as ``rawPayload``: then the reference writes no id."""
    said = next((value for name, value in message.metadata.items() if name.lower() == "rawpayload"), "false")
    return parse_bool(said)
