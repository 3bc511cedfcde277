"""``bindings.azure.servicebusqueues``: messages of a queue of Azure Service Bus, in and out.

A message that is handled is locked, and the lock is renewed until the application has taken it; then it is completed.
One that was not taken is abandoned, which the queue counts. What a reader that was killed held comes again when its
lock is over.

Source: Dapr 1.18, the Azure Service Bus Queues binding; the documentation of Azure Service Bus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

from azure.core.exceptions import AzureError
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusError,
    ServiceBusServerBusyError,
)

from bindings._polled import polling
from bindings._service import safe, said
from bindings.azure._amqp import connection_kind, plain, secrets_of, texts
from bindings.azure._client import AzureAdapter
from bindings.azure._identity import AzureSettings
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.resources.settings import Kind, Setting, ignored, setting, whole
from mesh.values import parse_instant, parse_whole

__all__ = ["ServiceBusQueueBinding"]

MAX_SENDERS = 8
MAX_TTL = 2**31 - 1
MAX_HANDLERS = 100  # Where none are said.
WAIT_SECONDS = 1.0  # Less than a request is given when it is left: one that is cancelled breaks the connection.
BUSY_WAIT_SECONDS = 0.1  # What is settled waits for it.
CLOSE_SECONDS = 5.0
_AWAY = (ServiceBusConnectionError, ServiceBusCommunicationError, ServiceBusServerBusyError, OperationTimeoutError)
_ALIASES = {"id": "MessageId", "correlationID": "CorrelationId"}
# Of a message, in the library's words.
_TEXTS = {
    "MessageId": "message_id",
    "CorrelationId": "correlation_id",
    "SessionId": "session_id",
    "Label": "subject",
    "ReplyTo": "reply_to",
    "To": "to",
    "PartitionKey": "partition_key",
    "ContentType": "content_type",
    "ReplyToSessionId": "reply_to_session_id",
}
_SCHEDULED = "ScheduledEnqueueTimeUtc"
_TOLD = {
    "DeliveryCount": "delivery_count",
    "LockToken": "lock_token",
    "SequenceNumber": "sequence_number",
    "EnqueuedTimeUtc": "enqueued_time_utc",
    "LockedUntilUtc": "locked_until_utc",
}
_TRACE = ("traceparent", "tracestate", "baggage")


@dataclass(frozen=True, slots=True)
class ServiceBusQueueSettings(AzureSettings):
    """Settings of ``bindings.azure.servicebusqueues``."""

    connection: str | None = setting(
        "connectionString",
        "How it is connected to, and as whom; without it, as an identity of Microsoft Entra ID.",
        connection_kind,
        secret=True,
        suggested=True,
    )
    namespace: str | None = setting(
        "namespaceName",
        "Host name of the namespace, where there is no connection string.",
        example="shop.servicebus.windows.net",
    )
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
            raise BindingError(f"{shown}: {reason}", retryable=isinstance(error, (*_AWAY, OSError))) from None

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
                await _closed(sender)
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
            await _closed(receiver)


async def _closed(used: ServiceBusReceiver | ServiceBusSender) -> None:
    with suppress(ServiceBusError, OSError, ValueError, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await used.close()


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
    """Make a message: what of the metadata is no field of it is a property of its own."""
    fields: dict[str, Any] = {}
    properties: dict[str | bytes, Any] = {}
    for name, value in asked.metadata.items():
        known = _ALIASES.get(name, name)
        if known in _TEXTS:
            if value or known == "SessionId":
                fields.setdefault(_TEXTS[known], value)
        elif known == _SCHEDULED:
            fields["scheduled_enqueue_time_utc"] = _time(value)
        elif known.casefold() != "ttlinseconds" and value:
            properties[known] = value
    try:
        text = said(asked.metadata, "ttlInSeconds")
        seconds = parse_whole(text, least=1, most=MAX_TTL) if text else ttl
    except ValueError as error:
        raise BindingError(f"ttlInSeconds is {error}") from None
    if seconds is not None:
        fields["time_to_live"] = timedelta(seconds=seconds)
    if {"session_id", "partition_key"} <= fields.keys() and fields["session_id"] != fields["partition_key"]:
        raise BindingError("SessionId and PartitionKey are equal where there are both")
    try:
        return ServiceBusMessage(asked.data, application_properties=properties, **fields)
    except ValueError as error:
        raise BindingError(f"the message cannot be sent: {error}") from None


def _time(text: str) -> datetime:
    try:
        return datetime.fromtimestamp(parse_instant(text), UTC)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        raise BindingError(f"{_SCHEDULED} is a time as of RFC 3339 or RFC 1123") from None


def _told(message: ServiceBusReceivedMessage) -> Mapping[str, str]:
    told: dict[str, str] = {}
    for name, value in (message.application_properties or {}).items():
        shown, text = plain(name), plain(value)
        if isinstance(shown, str) and isinstance(text, str) and shown not in _TRACE:
            told[shown] = text
    for ours, theirs in {**_TEXTS, **_TOLD, _SCHEDULED: "scheduled_enqueue_time_utc"}.items():
        value = getattr(message, theirs)
        if value is not None:
            told[ours] = _instant(value) if isinstance(value, datetime) else str(plain(value))
    return told


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


for _name in ("azure.servicebus", "uamqp"):
    logging.getLogger(_name).setLevel(logging.ERROR)  # Below, it writes each lost connection and frame.
