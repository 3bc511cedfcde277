"""What the components of Azure Event Hubs have in common: where a hub is, how a partition is read, what events hold.

Source: Dapr 1.18, the Azure Event Hubs components; the documentation of Azure Event Hubs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from azure.core.exceptions import ClientAuthenticationError
from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient, EventHubProducerClient
from azure.eventhub.exceptions import AuthenticationError, EventDataError

from brokers.clients.azure import AzureSettings
from brokers.clients.azure_amqp import account_kind, connection_kind, fields_of, plain, texts
from brokers.clients.azure_checkpoints import CheckpointPlace
from brokers.clients.azure_storage import key_kind
from mesh.resources.settings import BOOLEAN, setting
from mesh.tasks import task_group

__all__ = [
    "ASK_SECONDS",
    "MAX_KEY",
    "QUIET_SECONDS",
    "SEND_SECONDS",
    "SILENT_SECONDS",
    "CheckpointSettings",
    "HubSettings",
    "arriving",
    "body_of",
    "checkpoint_place",
    "closed",
    "half_of_a_place",
    "host_and_hub",
    "make_client",
    "properties_of",
    "refused",
    "told",
]

SEND_SECONDS = 60.0
ASK_SECONDS = 15.0
LOGIN_SECONDS = 10
CLOSE_SECONDS = 5.0
SILENT_SECONDS = 20.0  # Without a frame, a connection is lost: the library's ticks are of its own clock.
TICK_SECONDS = 5.0  # Longer than it takes to find that a partition cannot be opened.
QUIET_SECONDS = 15.0  # Without a tick, the partition cannot be opened.
MAX_KEY = 128
PREFETCH, BATCH = 50, 25  # Of each partition that is read so many are in memory, and of the latter up to thrice.
_REFUSED = (
    *("not-found", "unauthorized-access", "not-allowed", "argument-error", "argument-out-of-range"),
    "link:message-size-exceeded",
)
_SUFFIXES = {
    "AZUREPUBLICCLOUD": ("servicebus.windows.net", "core.windows.net"),
    "AZURECHINACLOUD": ("servicebus.chinacloudapi.cn", "core.chinacloudapi.cn"),
    "AZUREUSGOVERNMENTCLOUD": ("servicebus.usgovcloudapi.net", "core.usgovcloudapi.net"),
}
_IOT = (
    "iothub-connection-device-id",
    "iothub-connection-auth-generation-id",
    "iothub-connection-auth-method",
    "iothub-connection-module-id",
    "iothub-enqueuedtime",
)
for _name in ("azure.eventhub", "uamqp"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # Below, it writes each lost connection and frame.


@dataclass(frozen=True, slots=True)
class HubSettings(AzureSettings):
    """What every component of Event Hubs has."""

    connection: str | None = setting(
        "connectionString",
        "How it is connected to, and as whom; without it, as an identity of Microsoft Entra ID.",
        connection_kind,
        secret=True,
        suggested=True,
    )
    namespace: str | None = setting(
        "eventHubNamespace",
        "The namespace or its host name, where there is no connection string.",
        example="shop.servicebus.windows.net",
    )
    properties: bool = setting(
        "getAllMessageProperties",
        "Whether the metadata of an event have the properties of its application.",
        BOOLEAN,
        default=False,
    )


@dataclass(frozen=True, slots=True)
class CheckpointSettings(HubSettings):
    """What every component of Event Hubs has that knows checkpoints in blobs."""

    storage_account: str | None = setting(
        "storageAccountName", "Storage account with the checkpoints of those who read the hub.", example="shop"
    )
    storage_key: str | None = setting(
        "storageAccountKey",
        "Key of that account; without it, as the identity of Microsoft Entra ID.",
        key_kind,
        secret=True,
    )
    storage_connection: str | None = setting(
        "storageConnectionString",
        "How that account is connected to, in place of its name and key.",
        account_kind,
        secret=True,
    )
    container: str | None = setting("storageContainerName", "Container of those checkpoints.", example="checkpoints")


def host_and_hub(settings: HubSettings) -> tuple[str, str]:
    """Give the namespace's host, as libraries name it in blobs, and the only hub that the connection string is for.

    Both are empty where nothing is said; the former is where the connection string is none.
    """
    if settings.connection is not None:
        named = dict(fields_of(settings.connection))
        return urlsplit(named.get("endpoint", "")).netloc.lower(), named.get("entitypath", "")
    name = settings.namespace or ""
    return (name if "." in name or not name else f"{name}.{_SUFFIXES[settings.cloud][0]}"), ""


def checkpoint_place(settings: CheckpointSettings, credential: Any) -> CheckpointPlace | None:
    """Give where checkpoints are, if that is said.

    Args:
        settings: See `half_of_a_place`.
        credential: The identity, for an account without a key.
    """
    if not settings.container:
        return None
    if settings.storage_connection:
        return CheckpointPlace(settings.storage_connection, None, settings.container)
    if settings.storage_key:
        credential = {"account_name": settings.storage_account, "account_key": settings.storage_key}
    url = f"https://{settings.storage_account}.blob.{_SUFFIXES[settings.cloud][1]}"
    return CheckpointPlace(url, credential, settings.container)


def half_of_a_place(settings: CheckpointSettings) -> tuple[str, str] | None:
    """Find what is said of checkpoints by halves: the setting, and what is wrong with it."""
    account, key, connection = settings.storage_account, settings.storage_key, settings.storage_connection
    if settings.container and not (account or connection):
        return "storageContainerName", "needs storageAccountName or storageConnectionString as well"
    if (account or connection) and not settings.container:
        name = "storageAccountName" if account else "storageConnectionString"
        return name, "needs storageContainerName as well"
    if key and not account:
        return "storageAccountKey", "needs storageAccountName as well"
    identity = settings.connection is None or settings.client or settings.tenant
    if account and not (key or connection or identity):
        return "storageAccountName", "needs storageAccountKey, storageConnectionString or azureClientId as well"
    return None


def make_client(kind: Any, settings: HubSettings, host: str, hub: str, credential: Any, **more: Any) -> Any:
    """Make one of the library's clients, which tries nothing again, but that it sends once more after an error.

    It would try what was refused, too, and its readers where they began, behind what they gave before. That a sender
    tries once more, by a new connection, cannot be switched off: events whose answer was lost may be there twice.

    Raises:
        ValueError: The connection string is none, or for another hub.
    """
    options = {
        "retry_total": 0,
        "retry_backoff_factor": 0,
        "auth_timeout": LOGIN_SECONDS,
        "eventhub_name": hub,
        **more,
    }
    if settings.connection is not None:
        return kind.from_connection_string(settings.connection, **options)
    return kind(fully_qualified_namespace=host, credential=credential, **options)


def refused(error: BaseException) -> bool:
    """Tell whether the service would not do it again either."""
    of_its_kind = isinstance(error, AuthenticationError | ClientAuthenticationError | EventDataError | ValueError)
    return of_its_kind or getattr(error, "error", None) in _REFUSED


@asynccontextmanager
async def arriving(
    make: Callable[[], EventHubConsumerClient],
    partition: str,
    after: str | int | datetime,
    owner_level: int | None = None,
) -> AsyncIterator[asyncio.Queue[Any]]:
    """Give what comes in a partition: lists of events, an empty one every few seconds without, and errors.

    An error is the end. Where the library cannot open the partition, it tells nothing: then nothing comes.

    Args:
        make: Makes a client of the consumer group. Each reading has its own: one that is still being closed, or did not
            close, has its client refuse another reading of the partition.
        partition: Which one.
        after: Behind what.
        owner_level: Keeps out readers of a lower level, or of none, and those of the same one that came before.
    """
    client = make()  # It has no connection beside that of the reading, which ends with it.
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)

    async def put(_: object, what: Any) -> None:
        await queue.put(what)

    async def receive() -> None:
        try:
            await client.receive_batch(
                put,
                on_error=put,
                partition_id=partition,
                starting_position=after,
                max_wait_time=TICK_SECONDS,
                max_batch_size=BATCH,
                prefetch=PREFETCH,
                owner_level=owner_level,
            )
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends this reading, and nothing else
            await queue.put(error)

    async with task_group() as tasks:
        receiving = tasks.create_task(receive(), name="eventhubs-receive")
        try:
            yield queue
        finally:
            receiving.cancel()
            await asyncio.wait([receiving], timeout=CLOSE_SECONDS)
            receiving.cancel()  # Out of waiting for connections that do not close.
            while not queue.empty():
                queue.get_nowait()  # A task of the library's may wait for room.


async def closed(used: EventHubProducerClient | EventHubConsumerClient) -> None:
    """Close what may be broken."""
    with suppress(Exception):  # Nobody waits for what it does.
        async with asyncio.timeout(CLOSE_SECONDS):
            await used.close()


def body_of(event: EventData) -> bytes:
    """Give the data of an event; what is no bytes and no text is JSON."""
    try:
        return texts(event.body)
    except ValueError:  # It has none.
        return b""


def told(event: EventData) -> dict[str, str]:
    """Give what the service says of an event."""
    system = {str(plain(name)): plain(value) for name, value in (event.system_properties or {}).items()}
    found = {
        "x-opt-sequence-number": event.sequence_number,
        "x-opt-offset": plain(event.offset),
        "x-opt-enqueued-time": _instant(event.enqueued_time) if event.enqueued_time else None,
        "x-opt-partition-key": plain(event.partition_key),
        "message-id": plain(event.message_id),
        **{name: system.get(name) for name in _IOT},
    }
    return {name: _text(value) for name, value in found.items() if value is not None}


def properties_of(event: EventData) -> Mapping[str, str]:
    """Give the properties that its application has given an event."""
    given: Mapping[Any, Any] = event.properties or {}
    return {str(plain(name)): _text(plain(value)) for name, value in given.items() if value is not None}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _instant(value) if isinstance(value, datetime) else str(value)


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
