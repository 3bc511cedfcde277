"""``pubsub.azure.eventhubs``: event hubs of Azure.

A topic is the hub of its name, a group the consumer group of its name. Members share the partitions of a hub, and note
how far these were taken, in blobs, as the vendor's libraries do; so members of other kinds can be in the group.

===============  =====================================================================================================
ours             theirs
===============  =====================================================================================================
publish          an event, by its partition key if there is one; done when the hub has accepted it
group            a consumer group; a new one begins with what comes from then on
delivery         an event; those of one partition key follow each other
ack              all up to it is noted once nothing before it is unsettled
nack(delay)      held by the member; events of its key wait, and no more than a window of others goes on
===============  =====================================================================================================

Source: Dapr 1.18, the Azure Event Hubs pub/sub component; the documentation of Azure Event Hubs.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Self

from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient, EventHubProducerClient
from azure.eventhub.exceptions import AuthenticationError

from brokers.clients.azure import AzureAdapter
from brokers.clients.azure_amqp import plain, reason_of
from brokers.clients.azure_checkpoints import BEGINNING, Checkpoint, CheckpointPlace, Checkpoints
from brokers.clients.azure_senders import Senders
from brokers.clients.eventhubs import (
    ASK_SECONDS,
    MAX_KEY,
    SEND_SECONDS,
    SILENT_SECONDS,
    body_of,
    checkpoint_place,
    closed,
    half_of_a_place,
    host_and_hub,
    make_client,
    properties_of,
    refused,
    told,
)
from brokers.native._eventhubs_member import Member, Pace
from brokers.native._eventhubs_settings import NOT_MADE, EventHubsTopicsSettings
from brokers.native._held import GoneError
from brokers.native._topics import NativeTopics
from brokers.native._transfers import in_transfers
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.limits import check_size
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Backlog, Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, ConfigError, PublishRejectedError
from mesh.features import Features
from mesh.resources.component import Component
from mesh.tasks import task_group
from mesh.values import parse_bool

__all__ = ["EventHubsTopics"]

logger = logging.getLogger(__name__)

CHECKED = "mesh-check"
MAX_ASKED = 8  # At once; each makes a connection.
_Written = tuple[EventData, str | None]
_UNSAFE = re.compile(r"[^a-zA-Z0-9-]")


class EventHubsTopics(NativeTopics, AzureAdapter):
    """Hubs of one namespace."""

    title = "Event hubs of Azure, in consumer groups that note in blobs how far they are."
    tested = "a server written by hand from Microsoft's documentation, and Azurite; never ran against the real service"
    settings = EventHubsTopicsSettings
    features = Features(
        name="Azure Event Hubs",
        event_prefix="cloudEvents_",
        layout="native",
        max_message_bytes=1_000_000,  # A hub takes 1 MiB with what the protocol adds.
        durable=True,
        shared=True,
        ordering=True,
        delay=True,
        attempts=False,
        retention=False,
        reassigns=False,
        frames=False,
        publish_metadata=("partitionKey",),
        subscribe_metadata=("requireAllProperties",),
    )
    group_settings = ("consumerGroup", "consumerID")
    told_group = True
    pace = Pace()
    _host: str
    _outage: Outage

    def __init__(self, settings: EventHubsTopicsSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._left = False
        self._only = ""
        self._credential: Any = None
        self._senders = Senders(partial(self._client, EventHubProducerClient), closed)

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = super().from_component(component)
        if made._settings.makes:
            problem = f"enableEntityManagement: {NOT_MADE}; make them, and leave it out"
            raise ConfigError(component.problem(problem, setting="enableEntityManagement"))
        half = half_of_a_place(made._settings)
        if half is not None:
            name, reason = half
            raise ConfigError(component.problem(f"{name} {reason}", setting=name))
        return made

    async def _enter(self) -> None:
        settings: EventHubsTopicsSettings = self._settings
        self._host, self._only = host_and_hub(settings)
        if not self._host:
            lacks = "connectionString or eventHubNamespace is needed"
            raise self._problem("is no connection string" if settings.connection else lacks, "connectionString")
        keyless = settings.container and not (settings.storage_connection or settings.storage_key)
        if settings.connection is None or keyless:
            self._credential = await self._identity()
        self._shown = f"Azure Event Hubs at {self._host}"
        self._outage = Outage(logger, "Azure Event Hubs", self._host)
        try:
            async with asyncio.timeout(CONNECT_WAIT):
                await self.check()
        except TimeoutError as error:
            raise unavailable(self._shown, error) from None
        self._stack.push_async_callback(self._leave)

    async def _leave(self) -> None:
        self._left = True
        await self._senders.close()

    def _check_open(self) -> None:
        if self._left:
            raise BrokerUnavailableError(f"the connection to {self.features.name} was closed")

    def _failed(self, hub: str, error: BaseException) -> BrokerError:
        """Make our error of the library's."""
        if isinstance(error, BrokerError):
            return error
        text = reason_of(error, self._settings.connection)
        kind: type[BrokerError] = BrokerUnavailableError
        if getattr(error, "error", None) == "not-found":
            kind, text = GoneError, f"is not there, and the mesh makes none: {text}"
        elif isinstance(error, AuthenticationError):
            kind = NotAdmittedError
        elif refused(error):
            kind = BrokerError
        return kind(f"{hub!r} of {self._shown}: {text}")

    @contextmanager
    def _failures(self, hub: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  # those of the library's inner layers have no public names
            raise self._failed(hub, error) from None

    def _client(self, kind: Any, hub: str, **more: Any) -> Any:
        self._check_open()
        if self._only and hub != self._only:
            raise BrokerError(
                f"{hub!r} of {self._shown}: connectionString is for {self._only!r} alone, by its EntityPath"
            )
        with self._failures(hub):
            return make_client(kind, self._settings, self._host, hub, self._credential, **more)

    async def check(self) -> None:
        """Ask whether the service answers, and knows the credentials; whether a hub is there does not matter."""
        hub = self._only or CHECKED
        producer = self._client(EventHubProducerClient, hub)
        try:
            with self._failures(hub):
                async with asyncio.timeout(ASK_SECONDS):
                    await producer.get_eventhub_properties()
        except NotAdmittedError as error:
            if self._settings.connection is not None:
                raise
            logger.debug("%s", error)  # An identity that is known may have rights on other hubs alone.
        except BrokerUnavailableError:
            raise
        except BrokerError as error:
            logger.debug("%s", error)
        finally:
            await closed(producer)

    # Publishing

    async def publish(self, address: Address, message: Message) -> None:
        """Send an event; while the service is away, again until cancelled."""
        await self._send(address.label, [self._written(message)])

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Send several, in order, many in one transfer; a refusal is one of all in it."""

        def made(message: Message) -> tuple[_Written, object]:
            written = self._written(message)
            return written, written[1]

        return await in_transfers(messages, made, partial(self._send, address.label))

    def _written(self, message: Message) -> _Written:
        """Make an event; give its partition key as well."""
        check_size(message.body, message.headers, self.features.max_message_bytes)
        key = message.key or message.metadata.get("partitionKey") or None
        if key is not None and len(key) > MAX_KEY:
            raise PublishRejectedError(f"partitionKey has at most {MAX_KEY} characters")
        event = EventData(message.body)
        properties: dict[Any, Any] = dict(message.headers)
        if (content_type := properties.pop("content-type", None)) is not None:
            event.content_type = content_type
        event.properties = properties
        return event, key

    async def _send(self, hub: str, written: Sequence[_Written]) -> None:
        """Send events of one partition key."""
        events: list[Any] = [event for event, _ in written]
        for number, pause in enumerate(waits()):
            self._check_open()
            try:
                with self._failures(hub):
                    async with self._senders.lend(hub) as sender, asyncio.timeout(SEND_SECONDS):
                        await sender.send_batch(events, partition_key=written[0][1], timeout=SEND_SECONDS)
                self._outage.back()
                return
            except NotAdmittedError as error:
                raise PublishRejectedError(str(error)) from error
            except BrokerUnavailableError as error:
                if number:  # A sender that was idle may have been left by the service.
                    self._outage.lost(error)
            except BrokerError as error:
                raise PublishRejectedError(str(error)) from error
            await asyncio.sleep(pause)

    # Taking

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Member]:
        settings: EventHubsTopicsSettings = self._settings
        if options.dead_letters is not None:
            async with self._hub(options.dead_letters.label, options.group) as letters:
                await letters.partitions()
        asked = {name.casefold(): value for name, value in options.metadata.items()}
        whole = settings.properties or parse_bool(asked.get("requireallproperties", "false"))

        def lane(event: EventData) -> str | int | None:
            if settings.in_order:
                return None
            key = plain(event.partition_key)
            return str(key) if key is not None else None if options.ordered else int(event.sequence_number or 0)

        async with self._hub(address.label, options.group) as hub, self._checkpoints(address.label, options) as notes:
            member = Member(
                *(hub, partial(self._reader, address.label, options.group), notes, address, self._outage),
                pace=self.pace,
                lane=lane,
                read=lambda event, partition: _read(event, address.label, partition, whole=whole),
            )
            async with member.joined():
                yield member

    def _reader(self, hub: str, group: str) -> EventHubConsumerClient:
        made: EventHubConsumerClient = self._client(
            EventHubConsumerClient, hub, consumer_group=group, idle_timeout=SILENT_SECONDS
        )
        return made

    @asynccontextmanager
    async def _hub(self, name: str, group: str) -> AsyncIterator[_Hub]:
        client = self._reader(name, group)
        try:
            yield _Hub(self, name, client)
        finally:
            await closed(client)

    @asynccontextmanager
    async def _checkpoints(self, hub: str, options: SubscribeOptions) -> AsyncIterator[Checkpoints]:
        place: CheckpointPlace | None = checkpoint_place(self._settings, self._credential)
        if place is None:
            lacks = "storageContainerName is needed to subscribe, with storageAccountName or storageConnectionString"
            raise self._problem(f"{lacks}: members note there how far they are")
        async with Checkpoints.opened(place, self._host, hub, options.group, BrokerUnavailableError) as notes:
            yield notes

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Compare what the group has noted with the ends of the hub's partitions.

        A partition of which only an offset is noted, as old libraries do, is left out: how many events are behind it,
        the hub does not tell.
        """
        async with self._hub(address.label, options.group) as hub, self._checkpoints(address.label, options) as notes:
            read = await notes.read()
            noted = {name: each for name, each in read.items() if each.number >= 0 or each == BEGINNING}
            async with task_group() as tasks:
                ends = {name: tasks.create_task(hub.end(name), name="eventhubs-end") for name in noted}
        return Backlog(sum(max(0, end.result().number - noted[name].number) for name, end in ends.items()))


class _Hub:
    """What a member asks of one."""

    def __init__(self, topics: EventHubsTopics, name: str, client: EventHubConsumerClient) -> None:
        self._topics, self._name, self._client = topics, name, client
        self._few = asyncio.Semaphore(MAX_ASKED)

    def failed(self, error: BaseException) -> BrokerError:
        return self._topics._failed(self._name, error)

    async def partitions(self) -> Sequence[str]:
        with self._topics._failures(self._name):
            async with asyncio.timeout(ASK_SECONDS):
                return await self._client.get_partition_ids()

    async def end(self, name: str) -> Checkpoint:
        with self._topics._failures(self._name):
            async with self._few, asyncio.timeout(ASK_SECONDS):
                found = await self._client.get_partition_properties(name)
        if found["is_empty"]:
            return BEGINNING
        return Checkpoint(str(plain(found["last_enqueued_offset"])), int(found["last_enqueued_sequence_number"]))


def _read(event: EventData, hub: str, partition: str, *, whole: bool) -> Message:
    headers = dict(properties_of(event))
    metadata = {_UNSAFE.sub("-", name): value for name, value in headers.items()} if whole else {}
    metadata |= {**told(event), "x-opt-partition-id": partition}
    if event.content_type is not None:
        headers.setdefault("content-type", str(plain(event.content_type)))
    key = plain(event.partition_key)
    identity = f"{hub}/{partition}/{event.sequence_number}"
    return Message(headers, body_of(event), None if key is None else str(key), identity, metadata)
