"""What messages of Azure Service Bus hold, by the names that Dapr's metadata has for it; and how it is connected to.

Source: Dapr 1.18, the Azure Service Bus components; the documentation of Azure Service Bus.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from azure.core.exceptions import AzureError
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusError,
    ServiceBusServerBusyError,
)

from brokers.clients.azure import AzureAdapter
from brokers.clients.azure_amqp import connection_kind, plain, reason_of
from brokers.clients.azure_senders import Senders
from mesh.resources.settings import setting
from mesh.values import parse_instant, parse_whole

__all__ = [
    "AWAY",
    "BUSY_WAIT_SECONDS",
    "LIBRARY_ERRORS",
    "MAX_TTL",
    "WAIT_SECONDS",
    "Receiver",
    "ServiceBusAdapter",
    "connection_setting",
    "make_message",
    "namespace_setting",
    "no_session",
    "properties_of",
    "told",
]

MAX_TTL = 2**31 - 1
TIMEOUT = b"com.microsoft:timeout"  # Why a link was not made.
NOTHING: Mapping[str, str] = {}
WAIT_SECONDS = 1.0  # Less than a request is given when it is left: one that is cancelled breaks the connection.
BUSY_WAIT_SECONDS = 0.1  # What is settled waits for it.
CLOSE_SECONDS = 5.0
CONNECT_SECONDS = 2.0  # After which one that waits for a session has its connection.
LIBRARY_ERRORS = (AzureError, OSError, ValueError, RuntimeError)
AWAY = (ServiceBusConnectionError, ServiceBusCommunicationError, ServiceBusServerBusyError, OperationTimeoutError)
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
_TTL = "ttlinseconds"
_TOLD = {
    "DeliveryCount": "delivery_count",
    "LockToken": "lock_token",
    "SequenceNumber": "sequence_number",
    "EnqueuedTimeUtc": "enqueued_time_utc",
    "LockedUntilUtc": "locked_until_utc",
}
for _name in ("azure.servicebus", "uamqp"):
    logging.getLogger(_name).setLevel(logging.ERROR)  # Below, it writes each lost connection and frame.


def connection_setting() -> Any:
    """Declare how it is connected to."""
    return setting(
        "connectionString",
        "How it is connected to, and as whom; without it, as an identity of Microsoft Entra ID.",
        connection_kind,
        secret=True,
        suggested=True,
    )


def namespace_setting() -> Any:
    """Declare where it is."""
    return setting(
        "namespaceName",
        "Host name of the namespace, where there is no connection string.",
        example="shop.servicebus.windows.net",
    )


class ServiceBusAdapter(AzureAdapter):
    """An adapter to entities of one namespace, whose settings have ``connection`` and ``namespace``."""

    _client: ServiceBusClient
    _senders: Senders[ServiceBusSender]

    async def _connect(self, **options: Any) -> None:
        """Make the client, with the library's options; a connection is made when it is needed."""
        if self._settings.connection is not None:
            try:
                client = ServiceBusClient.from_connection_string(self._settings.connection, **options)
            except ValueError:  # Its text may quote it.
                raise self._problem("is no connection string", "connectionString") from None
        elif self._settings.namespace is not None:
            client = ServiceBusClient(self._settings.namespace, await self._identity(), **options)
        else:
            raise self._problem("connectionString or namespaceName is needed", "connectionString")
        self._client = await self._stack.enter_async_context(client)
        # A message that is too large was not sent.
        self._senders = Senders(client.get_topic_sender, _closed, (MessageSizeExceededError,))
        self._stack.push_async_callback(self._senders.close)

    async def _check_entity(self, entity: str) -> None:
        """See by a new connection that an entity takes messages; raises the library's errors."""
        sender = self._client.get_topic_sender(entity)
        try:
            await sender.__aenter__()
        finally:
            await _closed(sender)

    def _reason(self, error: Exception) -> str:
        """Give what an error of the library says, without the secrets of the connection string."""
        return reason_of(error, self._settings.connection)


class Receiver:
    """Asks a receiver of the library, one request at a time: it connects again for each that finds it broken.

    Raises what the caller makes of the library's errors.
    """

    def __init__(
        self, receiver: ServiceBusReceiver, failures: Callable[[], AbstractContextManager[None]], seconds: float
    ) -> None:
        """Prepare.

        Args:
            receiver: The library's.
            failures: Turns its errors into the caller's.
            seconds: How many a request may take.
        """
        self._receiver, self._failures, self._seconds = receiver, failures, seconds
        self._one = asyncio.Lock()
        self._drop_forgotten = _remembering(receiver)

    async def _asked(self, request: Callable[..., Any], *arguments: Any, wait: float = 0.0, **named: Any) -> Any:
        with self._failures():
            async with self._one, asyncio.timeout(self._seconds + wait):
                return await request(*arguments, **named)

    @property
    def session(self) -> str | None:
        """The session that it has locked, where it is for one."""
        found: object = self._receiver.session.session_id
        return found if isinstance(found, str) else None  # Before, it is which one is wanted.

    async def open(self, wait: float = 0.0) -> None:
        """Connect, if it is not; may take so many seconds more, which a session is waited for."""
        began = time.monotonic()
        opening = asyncio.ensure_future(self._asked(self._receiver.__aenter__, wait=wait))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Cancelled while it connects, the library would leave the connection to the garbage collector.
            try:
                left = began + (CONNECT_SECONDS if wait else CLOSE_SECONDS) - time.monotonic()
                await asyncio.wait([opening], timeout=max(0.0, left))
            finally:
                opening.cancel()
                opening.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait([opening], timeout=CLOSE_SECONDS)
            raise

    async def fetch(self, most: int, wait: float) -> Sequence[ServiceBusReceivedMessage]:
        """Wait so many seconds for messages."""
        found: Sequence[ServiceBusReceivedMessage] = await self._asked(
            self._receiver.receive_messages, max_message_count=most, max_wait_time=wait, wait=wait
        )
        return found

    async def renew(self, message: ServiceBusReceivedMessage) -> None:
        """Have the lock of a message hold on."""
        await self._asked(self._receiver.renew_message_lock, message)

    async def renew_session(self) -> None:
        """Have the lock of the session hold on."""
        await self._asked(self._receiver.session.renew_lock)

    async def complete(self, message: ServiceBusReceivedMessage) -> None:
        """Have done with a message."""
        await self._asked(self._receiver.complete_message, message)

    async def abandon(self, message: ServiceBusReceivedMessage) -> None:
        """Give a message back; the service counts it."""
        await self._asked(self._receiver.abandon_message, message)

    async def close(self) -> None:
        """Close it, which may be broken."""
        try:
            await _closed(self._receiver)
        finally:
            self._drop_forgotten()


def _remembering(used: ServiceBusReceiver) -> Callable[[], None]:
    """Give what closes the connections that the library forgets: of an opening or a closing that is cancelled."""
    create, made = used._create_handler, list[Any]()

    def drop() -> None:
        for handler in made:
            writer = None if handler._connection is None else getattr(handler._connection._transport, "writer", None)
            if writer is not None:
                writer.close()
        made.clear()

    def remember(auth: Any) -> None:
        drop()  # Connections are opened one after the other, so the one before is over.
        create(auth)
        made.append(used._handler)

    used._create_handler = remember  # type: ignore[method-assign]
    return drop


async def _closed(used: ServiceBusReceiver | ServiceBusSender) -> None:
    with suppress(ServiceBusError, OSError, ValueError, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await used.close()


def no_session(error: OperationTimeoutError) -> bool:
    """Tell whether the service itself said that the time was over, in which no session came.

    The library has the same error for a connection or a token that was waited for.
    """
    told = [getattr(each, "inner_exception", None) for each in (error, error.__cause__)]
    return any(getattr(each, "condition", None) == TIMEOUT for each in told)


def make_message(
    data: bytes, metadata: Mapping[str, str], ttl: int | None = None, headers: Mapping[str, str] = NOTHING
) -> ServiceBusMessage:
    """Make a message: what of the metadata is no field of it is a property of its own, unless it is empty.

    Args:
        data: Its body.
        metadata: What is asked for.
        ttl: Seconds that it lives, unless the metadata say.
        headers: Its properties besides, as they are.

    Raises:
        ValueError: The metadata cannot be had.
    """
    fields: dict[str, Any] = {}
    properties: dict[str | bytes, Any] = {}
    for name, value in metadata.items():
        if name in _TEXTS:
            if value or name == "SessionId":
                fields.setdefault(_TEXTS[name], value)
        elif name == _SCHEDULED:
            fields["scheduled_enqueue_time_utc"] = _time(value)
        elif name.casefold() == _TTL:
            try:
                ttl = parse_whole(value, least=1, most=MAX_TTL) if value else ttl
            except ValueError as error:
                raise ValueError(f"ttlInSeconds is {error}") from None
        elif value:
            properties[name] = value
    properties.update(headers)
    if ttl is not None:
        fields["time_to_live"] = timedelta(seconds=ttl)
    if {"session_id", "partition_key"} <= fields.keys() and fields["session_id"] != fields["partition_key"]:
        raise ValueError("SessionId and PartitionKey are equal where there are both")
    try:
        return ServiceBusMessage(data, application_properties=properties, **fields)
    except ValueError as error:
        raise ValueError(f"the message cannot be sent: {error}") from None


def _time(text: str) -> datetime:
    try:
        return datetime.fromtimestamp(parse_instant(text), UTC)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        raise ValueError(f"{_SCHEDULED} is a time as of RFC 3339 or RFC 1123") from None


def properties_of(message: ServiceBusReceivedMessage) -> dict[str, str]:
    """Give a message's own properties that are text."""
    found = {plain(name): plain(value) for name, value in (message.application_properties or {}).items()}
    return {name: text for name, text in found.items() if isinstance(name, str) and isinstance(text, str)}


def told(message: ServiceBusReceivedMessage) -> dict[str, str]:
    """Give a message's fields."""
    found: dict[str, str] = {}
    for ours, theirs in {**_TEXTS, **_TOLD, _SCHEDULED: "scheduled_enqueue_time_utc"}.items():
        value = getattr(message, theirs)
        if value is not None:
            found[ours] = _instant(value) if isinstance(value, datetime) else str(plain(value))
    return found


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
