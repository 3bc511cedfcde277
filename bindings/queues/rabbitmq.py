"""``bindings.rabbitmq``: messages of a queue of RabbitMQ.

One connection serves calls and readings, since a queue may be its own (``exclusive``); what needs it connects, and so
does whoever finds it broken. A reading has a channel, and its messages are acknowledged once they were taken.

Source: Dapr 1.18, the RabbitMQ binding; docs/adr/0014-rabbitmq-client.md for what aiormq does when a connection ends.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast
from urllib.parse import quote_plus, urlsplit
from uuid import uuid4

import aiormq
from aiormq import spec
from aiormq.abc import AbstractChannel, DeliveredMessage
from yarl import URL

from bindings.queues._access import tls_of
from bindings.queues._reading import reading_by, stopped_within
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.errors import MeshError
from mesh.resources.settings import BOOLEAN, COUNT, VERBATIM, Kind, Setting, ignored, setting, whole
from mesh.tasks import task_group
from mesh.values import parse_duration, parse_whole

__all__ = ["RabbitMQBinding"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS, CLOSE_SECONDS = 10.0, 5.0
GIVEN_BACK_AFTER = 1.0
AT_ONCE = 10
HEARTBEAT = 10
_FAILURES = (aiormq.AMQPError, OSError, RuntimeError)
_Result = TypeVar("_Result")


def _url(text: str) -> URL:
    """Read the server's URL; its text may hold a password, so no error shows it."""
    try:
        parts = urlsplit(text)
        found = URL(text)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname or (parts.port or 1) < 1:
            raise ValueError
    except ValueError:
        raise ValueError("is amqp://user:password@host:port/vhost, or amqps://…") from None
    return found


def _name(text: str) -> str:
    if not 0 < len(text.encode()) < 256:
        raise ValueError("has 255 bytes at most")
    return text


_QUEUE = Kind("name of a queue", _name)


@dataclass(frozen=True, slots=True)
class RabbitMQBindingSettings:
    """What is read of a component."""

    ignored: ClassVar[tuple[Setting, ...]] = ignored(
        "a lost connection is tried again after 1 s, and then less and less often", "reconnectWaitInSeconds"
    )

    url: URL = setting(  # noqa: RUF009 - a frozen value
        "host",
        "The URL of the server: `amqp://user:password@host:port/vhost`, or `amqps://…`.",
        Kind("URL of RabbitMQ", _url),
        required=True,
        secret=True,
        aliases=("connectionString",),
    )
    queue: str = setting(
        "queueName", "The queue; declared as these settings say.", _QUEUE, required=True, example="orders"
    )
    routing_key: str = setting(
        "routingKey", "The queue that `create` writes to, if it is another one.", _QUEUE, default="", example="audit"
    )
    durable: bool = setting("durable", "Whether the queue outlives the server.", BOOLEAN, default=False)
    auto_delete: bool = setting(
        "deleteWhenUnused", "Whether the queue is deleted when its last reader is gone.", BOOLEAN, default=False
    )
    exclusive: bool = setting(
        "exclusive",
        "Whether the queue is of this component's connection alone, and ends with it.",
        BOOLEAN,
        default=False,
    )
    prefetch: int = setting(
        "prefetchCount",
        "How many messages are handed over at once; 1 keeps their order, 0 means 10.",
        whole(0, 65535),
        default=AT_ONCE,
    )
    priorities: int | None = setting(
        "maxPriority", "The highest priority that the queue knows, up to 255.", whole(0, 255), example="10"
    )
    ttl: int | None = setting("ttlInSeconds", "How long a message is kept in the queue.", COUNT, example="60")
    content_type: str = setting("contentType", "Of what is written.", default="text/plain")
    ca: str = setting("caCert", "For `amqps`: whom to trust, a PEM text or a path.", default="", example="ca.pem")
    certificate: str = setting(
        "clientCert", "For `amqps`: the client's certificate, a PEM text or a path.", default="", example="client.pem"
    )
    key: str = setting("clientKey", "Its private key, a PEM text or a path.", VERBATIM, default="", secret=True)
    external: bool = setting(
        "externalSasl",
        "Whether the client's certificate says who we are.",
        BOOLEAN,
        default=False,
        aliases=("saslExternal",),
    )


class _Connection(aiormq.Connection):
    """Never lets a settlement wait for the writer, which may have ended."""

    FRAME_BUFFER_SIZE = 0


class RabbitMQBinding(ComponentAdapter):
    """A queue of RabbitMQ."""

    title = "Reads and writes a queue of RabbitMQ."
    tested = "RabbitMQ 3.10"
    settings: ClassVar[type[RabbitMQBindingSettings]] = RabbitMQBindingSettings
    operations = ("create",)

    def __init__(self, settings: RabbitMQBindingSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        url = settings.url
        self._shown = f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"
        self._tls: ssl.SSLContext | None = None
        self._connecting, self._opening = asyncio.Lock(), asyncio.Lock()
        self._connection: _Connection | None = None
        self._writer: AbstractChannel | None = None

    async def _enter(self) -> None:
        """Read certificates; the server is connected to when it is needed."""
        settings: RabbitMQBindingSettings = self._settings
        if settings.url.scheme == "amqps":
            given = settings.ca, settings.certificate, settings.key
            try:
                self._tls = await asyncio.to_thread(tls_of, *given)
            except ValueError as error:
                raise self._problem(str(error), "caCert" if settings.ca else "clientCert") from None
        self._stack.push_async_callback(self._close)

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(TimeoutError, *_FAILURES):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await kept(connection.close())

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except aiormq.DeliveryError as error:
            raise BindingError(f"RabbitMQ at {self._shown}: {what}: it is refused", retryable=True) from error
        except TimeoutError:
            raise BindingError(f"RabbitMQ at {self._shown} does not answer in time: {what}", retryable=True) from None
        except _FAILURES as error:
            reason = str(error) or type(error).__name__
            raise BindingError(f"RabbitMQ at {self._shown}: {what}: {reason}", retryable=True) from error

    async def _connected(self) -> _Connection:
        """Give the connection; the caller holds the lock."""
        settings: RabbitMQBindingSettings = self._settings
        if self._connection is not None and not self._connection.is_closed:
            return self._connection
        url = settings.url.update_query({"heartbeat": str(HEARTBEAT)})
        url = url.update_query({"auth": "external"}) if settings.external else url
        connection = _Connection(url, context=self._tls, client_properties={"product": "brokermesh"})
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.connect()
        self._connection, self._writer = connection, None
        return connection

    async def _channel(self) -> AbstractChannel:
        """Open a channel, on which the queue is declared; bounded in time."""
        settings: RabbitMQBindingSettings = self._settings
        arguments: dict[str, Any] = {}
        if settings.ttl is not None:
            arguments["x-message-ttl"] = settings.ttl * 1000
        if settings.priorities is not None:
            arguments["x-max-priority"] = settings.priorities
        async with self._connecting:
            connection = await self._connected()
            async with asyncio.timeout(CONNECT_SECONDS):
                channel = await kept(connection.channel(publisher_confirms=True, on_return_raises=False))
                declared = channel.queue_declare(
                    settings.queue,
                    durable=settings.durable,
                    exclusive=settings.exclusive,
                    auto_delete=settings.auto_delete,
                    arguments=arguments,
                )
                await kept(declared)
        return channel

    # Out

    async def invoke(self, asked: Invoke) -> None:
        """Write a message; the server has confirmed it then."""
        settings: RabbitMQBindingSettings = self._settings
        queue = asked.metadata.get("routingKey") or settings.routing_key or settings.queue
        properties = self._properties(asked.metadata)
        with self._errors(f"nothing is written to {queue}"):
            async with self._opening:
                if self._writer is None or self._writer.is_closed:
                    self._writer = await self._channel()
                writer = self._writer
            sent = writer.basic_publish(asked.data, routing_key=queue, properties=properties, mandatory=True)
            try:
                answer = await kept(sent)
            except (ValueError, TypeError) as error:
                raise BindingError(f"the metadata cannot be written as headers: {error}") from None
        if isinstance(answer, DeliveredMessage):
            raise BindingError(f"RabbitMQ at {self._shown} has no queue {queue}")

    def _properties(self, metadata: Mapping[str, str]) -> spec.Basic.Properties:
        settings: RabbitMQBindingSettings = self._settings
        told = {name.lower(): value for name, value in metadata.items()}
        expiration = priority = None
        try:
            if "ttlinseconds" in told:
                expiration = str(int(parse_duration(told["ttlinseconds"], bare="s") * 1000))
        except ValueError as error:
            raise BindingError(f"ttlInSeconds {error}") from None
        try:
            if "priority" in told:
                priority = parse_whole(told["priority"], least=0, most=255)
        except ValueError as error:
            raise BindingError(f"priority {error}") from None
        if wrong := next((name for name in metadata if len(name.encode()) > 128), None):
            raise BindingError(f"the metadata {wrong[:20]}… has a name of more than 128 bytes, which no header has")
        return spec.Basic.Properties(
            content_type=told.get("contenttype") or settings.content_type,
            delivery_mode=2,
            expiration=expiration,
            headers=dict(metadata),
            message_id=uuid4().hex,  # By it the library knows what is returned.
            priority=priority,
        )

    # In

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take the queue's messages while it is entered."""
        async with reading_by(lambda *events: self._read(reading, *events)):
            yield

    async def _read(self, reading: Reading, connected: asyncio.Event, stopping: asyncio.Event) -> None:
        settings: RabbitMQBindingSettings = self._settings
        with self._errors(f"{settings.queue} is not read"):
            channel = await self._channel()
            reader = _Reader(channel, reading, stopping)
            try:
                async with task_group() as tasks:
                    await kept(channel.basic_qos(prefetch_count=settings.prefetch or AT_ONCE))
                    consumer = await kept(channel.basic_consume(settings.queue, reader.take))
                    watching = tasks.create_task(reader.fail_when_closed(), name="rabbitmq-watch")
                    pumping = tasks.create_task(reader.hand_over(tasks), name="rabbitmq-pump")
                    connected.set()
                    await stopping.wait()
                    pumping.cancel()
                    watching.cancel()
                    await reader.leave(cast("str", consumer.consumer_tag))
            finally:
                with suppress(TimeoutError, *_FAILURES):
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await kept(channel.close())


class _Reader:
    """Hands over what the queue's consumer is sent."""

    def __init__(self, channel: AbstractChannel, reading: Reading, stopping: asyncio.Event) -> None:
        self._channel, self._reading, self._stopping = channel, reading, stopping
        self._waiting: asyncio.Queue[DeliveredMessage] = asyncio.Queue()  # Bounded by what is prefetched.
        self._cancelled = asyncio.Event()
        channel.on_consumer_cancel_callbacks.add(lambda _: self._cancelled.set())

    async def take(self, message: DeliveredMessage) -> None:
        """Note a message."""
        self._waiting.put_nowait(message)

    async def hand_over(self, tasks: asyncio.TaskGroup) -> None:
        """Hand messages over, each by a task of its own."""
        while True:
            message = await self._waiting.get()
            tasks.create_task(self._hand(message), name="rabbitmq-hand")

    async def leave(self, consumer: str) -> None:
        """Be sent nothing further, and give back what is not at work: that may take long, and others can take it."""
        with suppress(TimeoutError, *_FAILURES):
            async with asyncio.timeout(CLOSE_SECONDS):
                await kept(self._channel.basic_cancel(consumer))
                while not self._waiting.empty():
                    tag = cast("int", self._waiting.get_nowait().delivery_tag)
                    await kept(self._channel.basic_nack(tag, requeue=True, wait=False))

    async def _hand(self, message: DeliveredMessage) -> None:
        tag = cast("int", message.delivery_tag)
        headers = message.header.properties.headers or {}
        told = {quote_plus(name): quote_plus(value) for name, value in headers.items() if isinstance(value, str)}
        try:
            await self._reading.handle(BindingEvent(message.body, told))
        except MeshError as error:
            logger.debug("binding %s: a message was not taken: %s", self._reading.component, error)
            await stopped_within(self._stopping, GIVEN_BACK_AFTER)
            settled = self._channel.basic_nack(tag, requeue=True, wait=False)
        else:
            settled = self._channel.basic_ack(tag, wait=False)
        with suppress(*_FAILURES):  # The channel was closed: the message comes again.
            await kept(settled)

    async def fail_when_closed(self) -> None:
        """Raise once the channel is closed, or its queue was deleted."""
        closing = self._channel.closing
        async with task_group() as tasks:
            gone = tasks.create_task(self._cancelled.wait(), name="rabbitmq-gone")
            await asyncio.wait([closing, gone], return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
        if self._cancelled.is_set():
            raise BindingError("RabbitMQ has ended the reading: the queue is not there any more", retryable=True)
        error = None if closing.cancelled() else closing.exception()
        raise BindingError(f"RabbitMQ has closed the channel: {error or 'the connection was lost'}", retryable=True)


async def kept(answer: Awaitable[_Result]) -> _Result:
    """Await an answer of the library; whoever is cancelled leaves it to come, as else its channel would be closed.

    The library ends what waits for a connection that is lost by a CancelledError, too.
    """
    task = asyncio.current_task()
    assert task is not None
    before, answering = task.cancelling(), asyncio.ensure_future(answer)
    answering.add_done_callback(_retrieve)
    try:
        return await asyncio.shield(answering)
    except asyncio.CancelledError:
        if task.cancelling() > before:
            raise
        raise ConnectionResetError("the connection was lost") from None


def _retrieve(answering: asyncio.Future[Any]) -> None:
    if not answering.cancelled():
        answering.exception()
