"""``bindings.azure.servicebusqueues``: messages of a queue of Azure Service Bus, in and out.

A message that is handled is locked, and the lock is renewed until the application has taken it; then it is completed.
One that was not taken is abandoned, which the queue counts. What a reader that was killed held comes again when its
lock is over.

Source: Dapr 1.18, the Azure Service Bus Queues binding; the documentation of Azure Service Bus.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from azure.core.exceptions import AzureError
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender

from bindings._polled import polling
from bindings._service import safe
from bindings.azure._client import AzureAdapter
from brokers.clients.azure import AzureSettings
from brokers.clients.azure_amqp import secrets_of, texts
from brokers.clients.servicebus import (
    AWAY,
    BUSY_WAIT_SECONDS,
    MAX_TTL,
    WAIT_SECONDS,
    closed,
    connection_setting,
    make_message,
    namespace_setting,
    properties_of,
    told,
)
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.resources.settings import Kind, Setting, ignored, setting, whole

__all__ = ["ServiceBusQueueBinding"]

MAX_SENDERS = 8
MAX_HANDLERS = 100  # Where none are said.
_ALIASES = {"id": "MessageId", "correlationID": "CorrelationId"}
_TRACE = ("traceparent", "tracestate", "baggage")


@dataclass(frozen=True, slots=True)
class ServiceBusQueueSettings(AzureSettings):
    """Settings of ``bindings.azure.servicebusqueues``."""

    connection: str | None = connection_setting()
    namespace: str | None = namespace_setting()
    queue: str = setting(
        "queueName", "Name of the queue, which must be there.", Kind("text", str.lower), required=True, example="orders"
    )
    ttl: int | None = setting(
        "ttlInSeconds", "How long messages stay in the queue, unless a call says.", whole(1, MAX_TTL)
    )
    timeout: int = setting("timeoutInSec", "How many seconds a request may take.", whole(1, 3600), default=60)
    renewal: int = setting("lockRenewalInSec", "How often the lock of a message is renewed.", whole(1), default=20)
    handlers: int = setting(
        "maxConcurrentHandlers", "How many messages are handled at once, 0 = up to 100.", whole(0, 1000), default=1
    )
    refusals: int = setting(
        "maxRetriableErrorsPerSec", "How many messages that were not taken go back in a second.", whole(0), default=10
    )
    retries: int = setting(
        "publishMaxRetries", "How often a request is tried again that the service could not do.", whole(), default=5
    )
    first_wait: int = setting(
        "publishInitialRetryIntervalInMs", "Milliseconds before the first such attempt.", whole(1), default=500
    )

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("queues are not made", "disableEntityManagement", anyway=("true",)),
        *ignored(
            "queues are not made",
            *("lockDurationInSec", "autoDeleteOnIdleInSec", "defaultMessageTimeToLiveInSec", "maxDeliveryCount"),
            anyway=("0",),
        ),
        *ignored("an application has as long as the resiliency policies say", "handlerTimeoutInSec", anyway=("0",)),
        *ignored("a message is fetched when it is handled", "maxActiveMessages"),
        *ignored("the waits are those of every binding", "minConnectionRecoveryInSec", "maxConnectionRecoveryInSec"),
    )


class ServiceBusQueueBinding(AzureAdapter):
    """A queue."""

    title = "Sends messages to a queue of Azure Service Bus, and takes them from there."
    tested = "a server written by hand from Microsoft's documentation; never ran against the real service"
    settings = ServiceBusQueueSettings
    operations = ("create",)
    _client: ServiceBusClient

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._idle: list[ServiceBusSender] = []
        self._senders = asyncio.Semaphore(MAX_SENDERS)

    async def _enter(self) -> None:
        """Prepare connections; one is made when it is needed."""
        settings: ServiceBusQueueSettings = self._settings
        options: dict[str, Any] = {
            "retry_total": settings.retries,
            "retry_backoff_factor": settings.first_wait / 1000,
            "retry_backoff_max": settings.timeout,
            "socket_timeout": settings.timeout,
        }
        if settings.connection is not None:
            try:
                client = ServiceBusClient.from_connection_string(settings.connection, **options)
            except ValueError:  # Its text may quote it.
                raise self._problem("is no connection string", "connectionString") from None
        elif settings.namespace is not None:
            client = ServiceBusClient(settings.namespace, await self._identity(), **options)
        else:
            raise self._problem("connectionString or namespaceName is needed", "connectionString")
        self._client = await self._stack.enter_async_context(client)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn the library's errors into ours."""
        shown = f"the Service Bus queue {self._settings.queue!r}"
        try:
            yield
        except (AzureError, OSError, ValueError, RuntimeError) as error:
            reason = safe(str(error).partition("\n")[0] or type(error).__name__, secrets_of(self._settings.connection))
            raise BindingError(f"{shown}: {reason}", retryable=isinstance(error, (*AWAY, OSError))) from None

    async def invoke(self, asked: Invoke) -> None:
        """Send the data as they are."""
        message = _message(asked, self._settings.ttl)
        async with self._sender() as sender:
            await sender.send_messages(message, timeout=self._settings.timeout)

    @asynccontextmanager
    async def _sender(self) -> AsyncIterator[ServiceBusSender]:
        """Lend a sender: each serves one call at a time, and one that failed or was cancelled is not used again."""
        async with self._senders:
            sender = self._idle.pop() if self._idle else self._client.get_queue_sender(self._settings.queue)
            try:
                with self.failures():
                    yield sender
            except BaseException:
                await closed(sender)
                raise
            self._idle.append(sender)

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take messages while it is entered."""
        settings: ServiceBusQueueSettings = self._settings
        receiver = self._client.get_queue_receiver(settings.queue)
        try:
            with self.failures():
                async with asyncio.timeout(settings.timeout):
                    await receiver.__aenter__()
            async with polling(_Source(self, receiver, settings), reading):
                yield
        finally:
            await closed(receiver)


class _Source:
    """What `polling` asks."""

    idle_seconds = 0.0  # The service was waited for.

    def __init__(
        self, binding: ServiceBusQueueBinding, receiver: ServiceBusReceiver, settings: ServiceBusQueueSettings
    ) -> None:
        self._failures, self._receiver = binding.failures, receiver
        self._one = asyncio.Lock()  # The library connects again for each that finds it broken, all at once.
        self.hold_seconds, self._seconds = float(settings.renewal), settings.timeout
        self.at_once = settings.handlers or MAX_HANDLERS
        self._pause = 1 / settings.refusals if settings.refusals else 0.0
        self._pausing = asyncio.Lock()

    async def fetch(self, most: int) -> Sequence[ServiceBusReceivedMessage]:
        wait = WAIT_SECONDS if most == self.at_once else BUSY_WAIT_SECONDS
        with self._failures():
            async with self._one:
                async with asyncio.timeout(self._seconds):
                    await self._receiver.__aenter__()  # Receiving would allow `wait` for connecting again, too.
                return await self._receiver.receive_messages(max_message_count=most, max_wait_time=wait)

    def group(self, message: ServiceBusReceivedMessage) -> object:
        return message.lock_token

    def event(self, message: ServiceBusReceivedMessage) -> BindingEvent:
        return BindingEvent(texts(message.body), _told(message))

    async def hold(self, message: ServiceBusReceivedMessage) -> None:
        with self._failures():
            async with self._one, asyncio.timeout(self._seconds):
                await self._receiver.renew_message_lock(message)

    async def done(self, message: ServiceBusReceivedMessage) -> None:
        with self._failures():
            async with self._one, asyncio.timeout(self._seconds):
                await self._receiver.complete_message(message)

    async def again(self, message: ServiceBusReceivedMessage, *, refused: bool) -> None:
        if refused and self._pause:
            async with self._pausing:  # So many a second in all.
                await asyncio.sleep(self._pause)
        with self._failures():
            async with self._one, asyncio.timeout(self._seconds):
                await self._receiver.abandon_message(message)


def _message(asked: Invoke, ttl: int | None) -> ServiceBusMessage:
    metadata = {_ALIASES.get(name, name): value for name, value in asked.metadata.items()}
    try:
        return make_message(asked.data, metadata, ttl)
    except ValueError as error:
        raise BindingError(str(error)) from None


def _told(message: ServiceBusReceivedMessage) -> Mapping[str, str]:
    own = {name: value for name, value in properties_of(message).items() if name not in _TRACE}
    return {**own, **told(message)}
