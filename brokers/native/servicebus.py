"""``pubsub.azure.servicebus.topics`` and ``pubsub.azure.servicebus.queues``: entities of Azure Service Bus.

A group takes from the subscription of its name to a topic, or from the queue of the topic's name, which all groups
share. A message that is handled is locked; then it is completed, or abandoned, which the service counts.

Source: Dapr 1.18, the Azure Service Bus pub/sub components; the documentation of Azure Service Bus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from azure.core.exceptions import AzureError
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
)

from brokers.clients.azure import AzureAdapter, AzureSettings
from brokers.clients.azure_amqp import secrets_of
from brokers.clients.servicebus import AWAY, MAX_TTL, closed, connection_setting, make_message, namespace_setting
from brokers.native._azure_senders import Senders, in_transfers
from brokers.native._held import GoneError
from brokers.native._servicebus_member import Member
from brokers.native._topics import NativeSettings, NativeTopics
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.limits import check_size
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError
from mesh.features import Features, not_in_layout
from mesh.resources.settings import Setting, choice, ignored, setting, whole

__all__ = ["ServiceBusQueues", "ServiceBusTopics"]

logger = logging.getLogger(__name__)

CHECKED = "mesh-check"
FEATURES = Features(
    name="Azure Service Bus",
    event_prefix="cloudEvents_",
    layout="native",
    both_layouts=False,
    max_message_bytes=1024 * 1024,
    durable=True,
    shared=True,
    release_counts=True,
    frames=False,
    expires=True,
    publish_metadata=("*",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceBusSettings(NativeSettings, AzureSettings):
    """Settings of both."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("entities are not made: they are there", "disableEntityManagement", anyway=("true",)),
        *ignored(
            "entities are not made: they are there",
            *("lockDurationInSec", "autoDeleteOnIdleInSec", "maxDeliveryCount"),
        ),
        *ignored("an application has as long as the resiliency policies say", "handlerTimeoutInSec", anyway=("0",)),
        *ignored("a retry waits as the resiliency policies say", "maxRetriableErrorsPerSec"),
        *ignored(
            "a lost connection is tried again for as long as it takes, at least every 2 s",
            *("minConnectionRecoveryInSec", "maxConnectionRecoveryInSec"),
        ),
        *ignored(
            "what the service could not do is tried again until the caller's deadline",
            *("publishMaxRetries", "publishInitialRetryIntervalInMs", "publishInitialRetryInternalInMs"),
        ),
    )

    layout: str = setting(
        "layout", "Entities are as every other program there has them.", choice("native"), default="native"
    )
    connection: str | None = connection_setting()
    namespace: str | None = namespace_setting()
    group: str | None = setting(
        "consumerID",
        "The consumer group: the name of its subscription to each topic; by default the application's id.",
    )
    timeout: int = setting("timeoutInSec", "How many seconds a request may take.", whole(1, 3600), default=60)
    renewal: int = setting(
        "lockRenewalInSec",
        "How often the lock of a message is renewed; less than the entity's own lock lasts.",
        whole(1, 300),
        default=20,
    )
    most: int = setting("maxActiveMessages", "Most events of a subscription at work at once.", whole(1), default=1000)
    handlers: int = setting(
        "maxConcurrentHandlers", "Most that the application has at once, 0 = no limit of its own.", whole(0), default=0
    )
    ttl: int | None = setting(
        "defaultMessageTimeToLiveInSec",
        "How many seconds an event lives whose publisher gives no `ttlInSeconds`.",
        whole(1, MAX_TTL),
    )


class ServiceBusTopics(NativeTopics, AzureAdapter):
    """Topics of one namespace."""

    title = "Topics of Azure Service Bus, taken from subscriptions to them."
    tested = "a stand-in that speaks AMQP 1.0; not run against Azure"
    settings = ServiceBusSettings
    features = FEATURES
    told_group = True
    _client: ServiceBusClient

    def __init__(self, settings: ServiceBusSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._left = False
        # A message that is too large was not sent.
        self._senders = Senders(self._sender, closed, self._failures, (MessageSizeExceededError,))

    async def _enter(self) -> None:
        settings: ServiceBusSettings = self._settings
        options: dict[str, Any] = {"retry_total": 0, "socket_timeout": settings.timeout}
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
        self._shown = f"Azure Service Bus at {client.fully_qualified_namespace}"
        self._outage = Outage(logger, "Azure Service Bus", client.fully_qualified_namespace)
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
            raise BrokerUnavailableError(f"the connection to {FEATURES.name} was closed")

    @contextmanager
    def _failures(self, entity: str) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except (AzureError, OSError, ValueError, RuntimeError) as error:
            text = str(error).partition("\n")[0] or type(error).__name__
            for secret in secrets_of(self._settings.connection):
                text = text.replace(secret, "***") if secret else text
            kind: type[BrokerError] = BrokerError
            if isinstance(error, MessagingEntityNotFoundError):
                kind, text = GoneError, f"is not there, and the mesh makes none: {text}"
            elif isinstance(error, ServiceBusAuthenticationError):
                kind = NotAdmittedError
            elif isinstance(error, (*AWAY, OSError)):
                kind = BrokerUnavailableError
            raise kind(f"{entity!r} of {self._shown}: {text}") from None

    async def check(self) -> None:
        """Ask whether the service answers, and knows the credentials; whether an entity is there does not matter."""
        self._check_open()
        entity = self._entity_path() or CHECKED
        try:
            await self._opened(entity)
        except (BrokerUnavailableError, NotAdmittedError):
            raise
        except BrokerError as error:
            logger.debug("%s", error)

    def _entity_path(self) -> str | None:
        """Give the only entity that the connection string is for, if it names one."""
        for part in (self._settings.connection or "").split(";"):
            name, _, value = part.partition("=")
            if name.strip().casefold() == "entitypath":
                return value.strip() or None
        return None

    async def _opened(self, entity: str) -> None:
        """See that an entity takes messages."""
        with self._failures(entity):
            sender = self._client.get_topic_sender(entity)
            try:
                async with asyncio.timeout(self._settings.timeout):
                    await sender.__aenter__()
            finally:
                await closed(sender)

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back when the service is back."""
        self._outage.on_back(callback)

    # Publishing

    async def publish(self, address: Address, message: Message) -> None:
        """Send a message; while the service is away, or has too much to do, again until cancelled."""
        await self._send(address.label, [self._written(message)])

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Send several, in order, many in one transfer; a refusal is one of all in it."""

        def made(message: Message) -> tuple[ServiceBusMessage, object]:
            each = self._written(message)
            return each, (each.session_id, each.partition_key, each.scheduled_enqueue_time_utc)

        return await in_transfers(messages, made, partial(self._send, address.label))

    def _written(self, message: Message) -> ServiceBusMessage:
        beside = {**message.metadata, **message.headers}
        check_size(message.body, beside, FEATURES.max_message_bytes)
        if (content_type := beside.pop("content-type", None)) is not None:
            beside.setdefault("ContentType", content_type)
        try:
            return make_message(message.body, beside, self._settings.ttl)
        except ValueError as error:
            raise PublishRejectedError(str(error)) from None

    async def _send(self, entity: str, messages: list[ServiceBusMessage]) -> None:
        for pause in waits():
            self._check_open()
            try:
                async with self._senders.lent(entity) as sender:
                    given = messages[0] if len(messages) == 1 else messages
                    async with asyncio.timeout(self._settings.timeout):
                        await sender.send_messages(given)
                self._outage.back()
                return
            except BrokerUnavailableError as error:
                self._outage.lost(error)
            except BrokerError as error:
                raise PublishRejectedError(str(error)) from error
            await asyncio.sleep(pause)

    def _sender(self, entity: str) -> ServiceBusSender:
        return self._client.get_topic_sender(entity)

    # Taking

    def _limit(self, options: SubscribeOptions) -> int:
        settings: ServiceBusSettings = self._settings
        return min(options.max_in_flight, settings.most, settings.handlers or settings.most)

    def _check(self, address: Address, options: SubscribeOptions) -> None:
        super()._check(address, options)
        if options.metadata.get("requireSessions", "").casefold() in ("true", "1", "yes"):
            raise not_in_layout(self.features, "subscriptions with sessions")

    def _receiver(self, entity: str, group: str) -> ServiceBusReceiver:
        return self._client.get_subscription_receiver(entity, group)

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Member]:
        settings: ServiceBusSettings = self._settings
        if options.dead_letters is not None:
            await self._opened(options.dead_letters.label)
        entity = address.label
        with self._failures(entity):
            receiver = self._receiver(entity, options.group)
        async with Member(
            receiver,
            partial(self._failures, entity),
            address,
            self._outage,
            seconds=settings.timeout,
            renewal=settings.renewal,
            lease=options.ack_wait,
        ) as member:
            yield member


class ServiceBusQueues(ServiceBusTopics):
    """Queues of one namespace: every topic is one, and all groups share it."""

    title = "Queues of Azure Service Bus; all who take from one share its events."

    def _receiver(self, entity: str, group: str) -> ServiceBusReceiver:
        return self._client.get_queue_receiver(entity)
