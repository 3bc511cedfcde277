"""``pubsub.solace.amqp``: topics and queues of a server that speaks AMQP 1.0.

==============  ===================================================================================
ours            in AMQP 1.0
==============  ===================================================================================
topic           the address ``topic://<topic>``; ``queue:<name>`` = ``queue://<name>``
event           a message: one data section = the envelope, the application properties = the metadata
group           a durable subscription that is shared, ``<consumerID>.<topic>``; of a queue, all who take from it
member          a link with as much credit as it has room for
attempt         the delivery count
ack, reject     accepted
nack(delay)     kept by the member, then modified: delivery failed
release         released, which counts no attempt
unreadable      modified: delivery failed, undeliverable here
extend          nothing: a message is its link's for as long as that is there
==============  ===================================================================================

Source: OASIS AMQP 1.0; Dapr's documentation of the component; Apache Qpid's mapping of JMS, for shared subscriptions.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, Self

import orjson
import proton
from proton import Delivery as Outcome
from proton import ProtonException

from brokers.native._amqp_client import Client, LinkRefusedError, Receiver, Wire
from brokers.native._amqp_config import Config
from brokers.native._amqp_settings import AMQPSettings, Reader
from brokers.native._topics import Delays, NativeTopics, Source, Taken
from brokers.shared.limits import check_size
from mesh.address import Address
from mesh.broker import Delivery, Features, Message, SubscribeOptions
from mesh.errors import BrokerUnavailableError, PublishRejectedError, TopologyMismatchError
from mesh.resources.component import Component
from mesh.tasks import task_group
from mesh.values import parse_whole

__all__ = ["AMQPSettings", "AMQPTopics"]

logger = logging.getLogger("brokers.amqp")

MAX_MESSAGE_BYTES = 10 * 1024 * 1024
HIGHEST_PRIORITY = 9
DESCRIBED, DATA = b"\x00", b"\x00\x53\x75"  # How each section begins, and how one of data does.


class AMQPTopics(NativeTopics):
    """Topics and queues of an AMQP 1.0 server."""

    title = "Events in topics and queues of a server that speaks AMQP 1.0, such as Solace PubSub+ or ActiveMQ Artemis."
    tested = "ActiveMQ Artemis 2.40, not Solace"
    settings: ClassVar[type[AMQPSettings]] = AMQPSettings
    features = Features(
        name="amqp",
        event_prefix="cloudEvents_",
        max_message_bytes=MAX_MESSAGE_BYTES,
        durable=True,
        shared=True,
        delay=True,
        attempts=False,
        retention=False,
        reassigns=False,
        expires=True,
        frames=False,
        layout="native",
        publish_metadata=("*",),
    )

    def __init__(self, settings: AMQPSettings, config: Config) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._client = Client(config)

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        reader = Reader(component, cls.settings)
        config = reader.config()
        made = cls(reader.found, config)
        made._component = component
        return made

    async def _enter(self) -> None:
        await self._stack.enter_async_context(self._client.connected())

    async def check(self) -> None:
        """Have the server answer."""
        await self._client.check()

    async def publish(self, address: Address, message: Message) -> None:
        """Send a message; that the server accepted it confirms it."""
        beside = {**message.metadata, **message.headers}
        check_size(message.body, beside, MAX_MESSAGE_BYTES)
        content_type = beside.pop("content-type", None)
        made = proton.Message(message.body, durable=True, inferred=True, properties=beside)
        if content_type is not None:
            made.content_type = content_type
        _mark(made, message)
        target, _ = self._settings.address(address.label)
        shown = f"AMQP at {self._client.config.shown}"
        try:
            state, condition = await self._client.until_sent(target, made.encode())
        except LinkRefusedError as error:
            raise PublishRejectedError(f"{shown} refuses {target}: {error}") from error
        if state != Outcome.ACCEPTED:
            why = "" if condition is None else f": {condition.name} {condition.description or ''}"
            raise PublishRejectedError(f"{shown} did not accept it{why}")

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Source]:
        member = _Member(self._client, self._settings, address, options.group)
        async with task_group() as tasks:
            attending = tasks.create_task(member.attend(), name="amqp-attend")
            try:
                await member.there.wait()  # What is published from now on is for this group.
                async with member.delays:
                    yield member
            finally:
                member.stopping = True
                attending.cancel()


class _Member:
    """Takes from an address."""

    def __init__(self, client: Client, settings: AMQPSettings, address: Address, group: str) -> None:
        self._client, self._address = client, address
        self._source, queue = settings.address(address.label)
        self._shared = not queue
        self._name = f"{group}.{self._source}|{secrets.token_hex(6)}"
        self.delays = Delays()
        self._link: Receiver | None = None
        self._wire: Wire | None = None
        self._asked = 0
        self._ready: deque[Taken] = deque()
        self._wake = asyncio.Event()
        self.there = asyncio.Event()
        self.stopping = False

    async def attend(self) -> None:
        """Be there, on one connection after another."""
        while True:
            try:
                wire = self._wire = await self._client.wire()
            except BrokerUnavailableError:  # The adapter is left, and this with it.
                return
            self._asked = 0

            def take(body: bytes, delivery: Any, wire: Wire = wire) -> None:
                self._take(wire, body, delivery)

            link = self._link = wire.receive(self._name, self._source, shared=self._shared, take=take)
            try:
                await asyncio.wait(link.either, return_when=asyncio.FIRST_COMPLETED)
                if link.opened.done():
                    self.there.set()
                self._wake.set()
                ended = await asyncio.shield(link.ended)
            finally:
                self._link = None
                wire.detach(link, shared=self._shared)
            if isinstance(ended, LinkRefusedError):
                shown = self._client.config.shown
                raise TopologyMismatchError(f"nothing can be taken from {self._source} at {shown}: {ended}")
            self._ready.clear()  # It comes again.

    def _take(self, wire: Wire, body: bytes, delivery: Any) -> None:
        self._asked -= 1
        made = _decoded(body)
        if made is None:
            # Rejected, it would be gone where the server has no place for dead letters; others may understand it.
            logger.warning(
                "AMQP at %s: a message of %s, of %d bytes, cannot be read, and is left to others",
                *(self._client.config.shown, self._source, len(body)),
            )
            wire.settle(delivery, Outcome.MODIFIED, failed=True, elsewhere=True)
            self._wake.set()  # There is room for another one.
            return
        settler = _Settler(self, wire, delivery)
        if self.stopping:
            wire.settle(delivery, Outcome.RELEASED)
            return
        handed = Delivery(_message(made), self._address, int(made.delivery_count) + 1, settler)
        self._ready.append(Taken(handed, settler.release))
        self._wake.set()

    async def take(self, room: int) -> Sequence[Taken]:
        while not self._ready and not self.stopping:
            self._wake.clear()
            if self._link is not None and self._wire is not None and room > self._asked:
                self._link.link.flow(room - self._asked)
                self._asked = room
                self._wire.turn()
            await self._wake.wait()
        return [self._ready.popleft() for _ in range(min(room, len(self._ready)))]

    async def stop(self) -> None:
        self.stopping = True
        self._wake.set()
        if self._link is not None and self._wire is not None:
            await self._wire.drain(self._link)
        while self._ready:
            await self._ready.popleft().release()


class _Settler:
    """Settles one delivery."""

    def __init__(self, member: _Member, wire: Wire, delivery: Any) -> None:
        self._member, self._wire, self._delivery = member, wire, delivery

    async def ack(self) -> None:
        self._wire.settle(self._delivery, Outcome.ACCEPTED)

    async def reject(self) -> None:
        self._wire.settle(self._delivery, Outcome.ACCEPTED)

    async def extend(self) -> None:
        """Nothing: the server takes nothing back from a link that is there."""

    async def nack(self, delay: float) -> None:
        await self._member.delays.after(delay, self._fail)

    async def _fail(self) -> None:
        self._wire.settle(self._delivery, Outcome.MODIFIED, failed=True)

    async def release(self) -> None:
        self._wire.settle(self._delivery, Outcome.RELEASED)


def _mark(made: proton.Message, message: Message) -> None:
    """Say in the header what the publisher asks of the server.

    Raises:
        PublishRejectedError: It is no number.
    """
    asked: Mapping[str, str] = message.metadata
    for name, mark, most in (("ttlInSeconds", "ttl", None), ("priority", "priority", HIGHEST_PRIORITY)):
        if text := asked.get(name):
            try:
                setattr(made, mark, parse_whole(text, least=0, most=most))
            except ValueError as error:
                raise PublishRejectedError(f"the metadata {name} is {error}") from None


def _decoded(body: bytes) -> proton.Message | None:
    """Read a message; None if that cannot be. The library takes what it cannot read for an empty one."""
    made = proton.Message()
    with suppress(ProtonException):
        made.decode(body)
        if body.startswith(DESCRIBED) and (made.body is not None or DATA not in body):
            return made
    return None


def _message(made: proton.Message) -> Message:
    found: Mapping[Any, Any] | None = made.properties
    metadata = {str(name): value if isinstance(value, str) else _text(value) for name, value in (found or {}).items()}
    if (content_type := str(made.content_type or "")) not in ("", "None"):
        metadata.setdefault("content-type", content_type)
    return Message(metadata, _body(made.body), metadata.get("partitionKey"), metadata=metadata)


def _body(body: Any) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    return b"" if body is None else body.encode() if isinstance(body, str) else _text(body).encode()


def _text(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode(errors="replace")
    with suppress(TypeError):
        return orjson.dumps(value).decode()
    return str(value)
