"""What messages of Azure Service Bus hold, by the names that Dapr's metadata has for it; and how it is connected to.

Source: Dapr 1.18, the Azure Service Bus components; the documentation of Azure Service Bus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusError,
    ServiceBusServerBusyError,
)

from brokers.clients.azure_amqp import connection_kind, plain
from mesh.resources.settings import setting
from mesh.values import parse_instant, parse_whole

__all__ = [
    "AWAY",
    "BUSY_WAIT_SECONDS",
    "MAX_TTL",
    "WAIT_SECONDS",
    "closed",
    "connection_setting",
    "make_message",
    "namespace_setting",
    "properties_of",
    "told",
]

MAX_TTL = 2**31 - 1
WAIT_SECONDS = 1.0  # Less than a request is given when it is left: one that is cancelled breaks the connection.
BUSY_WAIT_SECONDS = 0.1  # What is settled waits for it.
CLOSE_SECONDS = 5.0
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


async def closed(used: ServiceBusReceiver | ServiceBusSender) -> None:
    """Close what may be broken."""
    with suppress(ServiceBusError, OSError, ValueError, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await used.close()


def make_message(data: bytes, metadata: Mapping[str, str], ttl: int | None = None) -> ServiceBusMessage:
    """Make a message: what of the metadata is no field of it is a property of its own.

    Args:
        data: Its body.
        metadata: What is asked for.
        ttl: Seconds that it lives, unless the metadata say.

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
