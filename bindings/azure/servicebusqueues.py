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
from typing import ClassVar

from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage

from bindings._polled import polling
from brokers.clients.azure import AzureSettings
from brokers.clients.azure_amqp import texts
from brokers.clients.servicebus import (
    AWAY,
    BUSY_WAIT_SECONDS,
    LIBRARY_ERRORS,
    MAX_TTL,
    WAIT_SECONDS,
    Receiver,
    ServiceBusAdapter,
    connection_setting,
    make_message,
    namespace_setting,
    properties_of,
    told,
)
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.resources.settings import Kind, Setting, ignored, setting, whole

__all__ = ["ServiceBusQueueBinding"]

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


class ServiceBusQueueBinding(ServiceBusAdapter):
    """A queue."""

    title = "Sends messages to a queue of Azure Service Bus, and takes them from there."
    tested = "a server written by hand from Microsoft's documentation; never ran against the real service"
    settings = ServiceBusQueueSettings
    operations = ("create",)

    async def _enter(self) -> None:
        """Prepare connections; one is made when it is needed."""
        settings: ServiceBusQueueSettings = self._settings
        await self._connect(
            retry_total=settings.retries,
            retry_backoff_factor=settings.first_wait / 1000,
            retry_backoff_max=settings.timeout,
            socket_timeout=settings.timeout,
        )

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn the library's errors into ours."""
        shown = f"the Service Bus queue {self._settings.queue!r}"
        try:
            yield
        except LIBRARY_ERRORS as error:
            raise BindingError(
                f"{shown}: {self._reason(error)}", retryable=isinstance(error, (*AWAY, OSError))
            ) from None

    async def invoke(self, asked: Invoke) -> None:
        """Send the data as they are."""
        settings: ServiceBusQueueSettings = self._settings
        message = _message(asked, settings.ttl)
        with self.failures():
            async with self._senders.lend(settings.queue) as sender:
                await sender.send_messages(message, timeout=settings.timeout)

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take messages while it is entered."""
        settings: ServiceBusQueueSettings = self._settings
        receiver = Receiver(self._client.get_queue_receiver(settings.queue), self.failures, settings.timeout)
        try:
            await receiver.open()
            async with polling(_Source(receiver, settings), reading):
                yield
        finally:
            await receiver.close()


class _Source:
    """What `polling` asks."""

    idle_seconds = 0.0  # The service was waited for.

    def __init__(self, receiver: Receiver, settings: ServiceBusQueueSettings) -> None:
        self._receiver = receiver
        self.hold_seconds = float(settings.renewal)
        self.at_once = settings.handlers or MAX_HANDLERS
        self._pause = 1 / settings.refusals if settings.refusals else 0.0
        self._pausing = asyncio.Lock()

    async def fetch(self, most: int) -> Sequence[ServiceBusReceivedMessage]:
        await self._receiver.open()  # Receiving would allow its wait for connecting, too.
        return await self._receiver.fetch(most, WAIT_SECONDS if most == self.at_once else BUSY_WAIT_SECONDS)

    def group(self, message: ServiceBusReceivedMessage) -> object:
        return message.lock_token

    def event(self, message: ServiceBusReceivedMessage) -> BindingEvent:
        return BindingEvent(texts(message.body), _told(message))

    async def hold(self, message: ServiceBusReceivedMessage) -> None:
        await self._receiver.renew(message)

    async def done(self, message: ServiceBusReceivedMessage) -> None:
        await self._receiver.complete(message)

    async def again(self, message: ServiceBusReceivedMessage, *, refused: bool) -> None:
        if refused and self._pause:
            async with self._pausing:  # So many a second in all.
                await asyncio.sleep(self._pause)
        await self._receiver.abandon(message)


def _message(asked: Invoke, ttl: int | None) -> ServiceBusMessage:
    metadata = {_ALIASES.get(name, name): value for name, value in asked.metadata.items()}
    try:
        return make_message(asked.data, metadata, ttl)
    except ValueError as error:
        raise BindingError(str(error)) from None


def _told(message: ServiceBusReceivedMessage) -> Mapping[str, str]:
    own = {name: value for name, value in properties_of(message).items() if name not in _TRACE}
    return {**own, **told(message)}
