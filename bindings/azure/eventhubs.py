"""``bindings.azure.eventhubs``: events of an event hub of Azure, in and out.

The partitions of a hub are read each by one node of the mesh at a time, in order: an event after the application has
taken the one before. How far that is, is noted in the mesh's own store, for each consumer group and partition. A group
that is new goes on where checkpoints of another reader in blobs say, and else begins with what comes after it was there
for the first time.

Readers have no owner level. It would not keep out what a turn lets pass, a process that stood still: of two readers of
one level the later one wins. Whoever reads beside under the same group would be thrown out, which is what applications
that read for themselves, and people who look, do. What one that stood still has read is refused as it is noted.

Source: Dapr 1.18, the Azure Event Hubs binding; the documentation of Azure Event Hubs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import urlsplit

from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient, EventHubProducerClient

from bindings.azure._checkpoints import CheckpointPlace
from bindings.azure._client import AzureAdapter
from bindings.azure._hub_reader import HubReader
from brokers.clients.azure_amqp import reason_of
from brokers.clients.azure_senders import Senders
from brokers.clients.eventhubs import (
    ASK_SECONDS,
    MAX_KEY,
    SEND_SECONDS,
    SILENT_SECONDS,
    CheckpointSettings,
    arriving,
    checkpoint_place,
    closed,
    half_of_a_place,
    host_and_hub,
    make_client,
    refused,
)
from mesh.blocks.binding_contract import BindingError, Invoke, Reading
from mesh.errors import ConfigError
from mesh.resources.component import Component
from mesh.resources.settings import Setting, ignored, setting
from mesh.store import StateStore
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners

__all__ = ["EventHubsBinding"]

LARGE = 200_000  # Every hub takes what is smaller.
DEFAULT_GROUP = "$Default"


@dataclass(frozen=True, slots=True)
class EventHubsSettings(CheckpointSettings):
    """Settings of ``bindings.azure.eventhubs``."""

    hub: str | None = setting(
        "eventHub",
        "Name of the hub, which must be there, where the connection string has no `EntityPath`.",
        example="clicks",
        suggested=True,
    )
    group: str = setting(
        "consumerGroup",
        "The consumer group, which must be there; if not set, `$Default`, and each application reads for itself.",
        default="",
        aliases=("consumerID",),
        example="shop",
    )
    partition: str | None = setting(
        "partitionID", "The only partition that is read, and sent to by a call without `partitionKey`.", example="0"
    )
    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("hubs and consumer groups are not made", "enableEntityManagement", anyway=("false",)),
        *ignored(
            "hubs and consumer groups are not made",
            *("resourceGroupName", "subscriptionID", "partitionCount", "messageRetentionInDays"),
        ),
        *ignored("each partition is read in order", "enableInOrderMessageDelivery", anyway=("true",)),
    )


class EventHubsBinding(AzureAdapter):
    """A hub."""

    title = "Sends events to an event hub of Azure, and reads them, each partition in order."
    tested = "a server written by hand from Microsoft's documentation; never ran against the real service"
    settings = EventHubsSettings
    operations = ("create",)

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._senders = Senders(lambda _: self._client(EventHubProducerClient), closed)
        self._records: StateStore
        self._owners: Owners
        self._credential: Any = None
        self._before: CheckpointPlace | None = None
        self.host = self.hub = ""

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = super().from_component(component)
        half = half_of_a_place(made._settings)
        if half is not None:
            name, reason = half
            raise ConfigError(component.problem(f"{name} {reason}", setting=name))
        return made

    def remember_in(self, name: str, records: StateStore) -> None:
        """Note there how far partitions were read."""
        self._records = records

    def share_by(self, owners: Owners, timers: StateStore) -> None:
        """Read each partition at one host at a time."""
        self._owners = owners

    async def _enter(self) -> None:
        """Find out where the hub is; a connection is made when it is needed."""
        settings: EventHubsSettings = self._settings
        host, said = host_and_hub(settings)
        self.host = urlsplit(f"//{host}").hostname or ""
        if settings.connection is None and settings.namespace:
            self._credential = await self._identity()
        elif not self.host:
            lacks = (
                "is no connection string" if settings.connection else "connectionString or eventHubNamespace is needed"
            )
            raise self._problem(lacks, "connectionString")
        self.hub = settings.hub or said
        if not self.hub:
            raise self._problem("the name of the hub is needed", "eventHub")
        if said and self.hub != said:
            raise self._problem("the connection string is for another hub", "eventHub")
        self._before = await self._checkpoints()
        self._stack.push_async_callback(self._senders.close)

    @property
    def shown(self) -> str:
        """What is asked, for people."""
        return f"the event hub {self.hub!r}"

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # those of the library's inner layers have no public names
            raise self.failed(error) from None

    def failed(self, error: BaseException) -> BindingError:
        """Make our error of the library's."""
        if isinstance(error, BindingError):
            return error
        reason = reason_of(error, self._settings.connection)
        return BindingError(f"{self.shown}: {reason}", retryable=not refused(error))

    def _client(self, kind: Any, **more: Any) -> Any:
        settings: EventHubsSettings = self._settings
        with self.failures():
            return make_client(kind, settings, self.host, self.hub, self._credential, **more)

    async def invoke(self, asked: Invoke) -> None:
        """Send the data as they are."""
        key = asked.metadata.get("partitionKey")
        if key and len(key) > MAX_KEY:
            raise BindingError(f"partitionKey has at most {MAX_KEY} characters")
        event = EventData(asked.data)
        if content := asked.metadata.get("contentType"):
            event.content_type = content
        where = {"partition_key": key} if key else {"partition_id": self._settings.partition or None}
        with self.failures():
            async with asyncio.timeout(SEND_SECONDS):
                try:
                    await self._send(event, where, len(asked.data) > LARGE)
                except Exception as error:
                    if not self.failed(error).retryable:
                        raise
                    await self._send(event, where, len(asked.data) > LARGE, fresh=True)

    async def _send(self, event: EventData, where: Mapping[str, Any], large: bool, *, fresh: bool = False) -> None:
        async with self._senders.lend(self.hub, fresh=fresh) as sender:
            if large:
                await _check_size(sender, event)
            await sender.send_event(event, timeout=SEND_SECONDS, **where)

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Read the partitions while it is entered."""
        settings: EventHubsSettings = self._settings
        now = time.time()
        reader = partial(
            self._client,
            EventHubConsumerClient,
            consumer_group=settings.group or DEFAULT_GROUP,
            idle_timeout=SILENT_SECONDS,
        )
        client = reader()
        source = _Source(self, client, reader, settings)
        try:
            described = await source.described()
            # A hub that was deleted and made again has other events.
            made = described["created_at"].timestamp()
            place = f"{self.host}||{self.hub}||{made:.0f}||{settings.group or f'of {reading.app_id}'}"
            hub = HubReader(source, reading, self._owners, self._records, place)
            await hub.begin(described["partition_ids"], self._before, now)
            async with task_group() as tasks:
                looking = tasks.create_task(hub.look(tasks), name="eventhubs-look")
                try:
                    yield
                finally:
                    looking.cancel()
                    hub.leave()
        finally:
            await closed(client)

    async def _checkpoints(self) -> CheckpointPlace | None:
        settings: EventHubsSettings = self._settings
        keyless = settings.container and not (settings.storage_connection or settings.storage_key)
        credential = self._credential or await self._identity() if keyless else None
        return checkpoint_place(settings, credential)


class _Source:
    """What `HubReader` asks."""

    def __init__(
        self,
        binding: EventHubsBinding,
        client: EventHubConsumerClient,
        reader: Callable[[], EventHubConsumerClient],
        settings: EventHubsSettings,
    ) -> None:
        self._binding, self._client, self._reader, self._settings = binding, client, reader, settings
        self.host, self.hub, self.group = binding.host, binding.hub, settings.group or DEFAULT_GROUP
        self.shown, self.properties, self.failed = binding.shown, settings.properties, binding.failed

    async def described(self) -> Mapping[str, Any]:
        with self._binding.failures():
            async with asyncio.timeout(ASK_SECONDS):
                return await self._client.get_eventhub_properties()

    async def partitions(self) -> Sequence[str]:
        listed: Sequence[str] = (await self.described())["partition_ids"]
        only = self._settings.partition
        if only and only not in listed:
            raise BindingError(f"partitionID: {self.shown} has no partition {only!r}")
        return [only] if only else listed

    def arriving(self, partition: str, after: str | int | datetime) -> AbstractAsyncContextManager[asyncio.Queue[Any]]:
        return arriving(self._reader, partition, after)


async def _check_size(sender: EventHubProducerClient, event: EventData) -> None:
    batch = await sender.create_batch()
    try:
        batch.add(event)
    except ValueError:
        raise BindingError(f"the event is larger than the {batch.max_size_in_bytes} bytes that the hub takes") from None
