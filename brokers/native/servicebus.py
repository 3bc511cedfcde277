"""``pubsub.azure.servicebus.topics`` and ``pubsub.azure.servicebus.queues``: entities of Azure Service Bus.

A group takes from the subscription of its name to a topic, or from the queue of the topic's name, which all groups
share. A message that is handled is locked, or the session that it is of; then it is completed, or abandoned, which the
service counts.

Source: Dapr 1.18, the Azure Service Bus pub/sub components; the documentation of Azure Service Bus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from azure.servicebus import NEXT_AVAILABLE_SESSION, ServiceBusMessage
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import (
    MessagingEntityNotFoundError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
)

from brokers.clients.azure import AzureSettings
from brokers.clients.azure_amqp import fields_of
from brokers.clients.servicebus import (
    AWAY,
    LIBRARY_ERRORS,
    MAX_TTL,
    Receiver,
    ServiceBusAdapter,
    connection_setting,
    make_message,
    namespace_setting,
    no_session,
)
from brokers.native._held import GoneError
from brokers.native._servicebus_member import Member
from brokers.native._servicebus_sessions import SUBSCRIBE_METADATA, Asked, NoSessionError, Sessions
from brokers.native._topics import NativeSettings, NativeTopics, Source
from brokers.native._transfers import in_transfers
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.limits import check_size
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError
from mesh.features import Features
from mesh.resources.settings import Setting, choice, ignored, setting, whole

__all__ = ["ServiceBusQueues", "ServiceBusTopics"]

logger = logging.getLogger(__name__)

CHECKED = "mesh-check"
FEATURES = Features(
    name="Azure Service Bus",
    event_prefix="cloudEvents_",
    layout="native",
    max_message_bytes=1024 * 1024,
    durable=True,
    shared=True,
    delay=True,
    release_counts=True,
    frames=False,
    expires=True,
    publish_metadata=("*",),
    subscribe_metadata=SUBSCRIBE_METADATA,
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
        "How often the lock of a message, or of a session, is renewed; less than the entity's own lock lasts.",
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


class ServiceBusTopics(NativeTopics, ServiceBusAdapter):
    """Topics of one namespace."""

    title = "Topics of Azure Service Bus, taken from subscriptions to them."
    tested = "a stand-in that speaks AMQP 1.0; not run against Azure"
    settings = ServiceBusSettings
    features = FEATURES
    told_group = True

    def __init__(self, settings: ServiceBusSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._left = False

    async def _enter(self) -> None:
        await self._connect(retry_total=0, socket_timeout=self._settings.timeout)
        namespace = self._client.fully_qualified_namespace
        self._shown = f"Azure Service Bus at {namespace}"
        self._outage = Outage(logger, "Azure Service Bus", namespace)
        try:
            async with asyncio.timeout(CONNECT_WAIT):
                await self.check()
        except TimeoutError as error:
            raise unavailable(self._shown, error) from None
        self._stack.callback(self._leave)

    def _leave(self) -> None:
        self._left = True

    def _check_open(self) -> None:
        if self._left:
            raise BrokerUnavailableError(f"the connection to {FEATURES.name} was closed")

    @contextmanager
    def _failures(self, entity: str) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except LIBRARY_ERRORS as error:
            text = self._reason(error)
            kind: type[BrokerError] = BrokerError
            if isinstance(error, MessagingEntityNotFoundError):
                kind, text = GoneError, f"is not there, and the mesh makes none: {text}"
            elif isinstance(error, ServiceBusAuthenticationError):
                kind = NotAdmittedError
            elif isinstance(error, (*AWAY, OSError)):
                kind = BrokerUnavailableError
            raise kind(f"{entity!r} of {self._shown}: {text}") from None

    @contextmanager
    def _session_failures(self, entity: str) -> Iterator[None]:
        with self._failures(entity):
            try:
                yield
            except OperationTimeoutError as error:
                if not no_session(error):
                    raise
                raise NoSessionError(f"{entity!r} of {self._shown}: {self._reason(error)}") from None

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
        return dict(fields_of(self._settings.connection)).get("entitypath") or None

    async def _opened(self, entity: str) -> None:
        """See that an entity takes messages."""
        with self._failures(entity):
            async with asyncio.timeout(self._settings.timeout):
                await self._check_entity(entity)

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
        headers, metadata = dict(message.headers), dict(message.metadata)
        check_size(message.body, {**metadata, **headers}, FEATURES.max_message_bytes)
        for beside in (headers, metadata):
            if (content_type := beside.pop("content-type", None)) is not None:
                metadata.setdefault("ContentType", content_type)
        try:
            return make_message(message.body, metadata, self._settings.ttl, headers)
        except ValueError as error:
            raise PublishRejectedError(str(error)) from None

    async def _send(self, entity: str, messages: list[ServiceBusMessage]) -> None:
        for pause in waits():
            self._check_open()
            try:
                with self._failures(entity):
                    async with self._senders.lend(entity) as sender, asyncio.timeout(self._settings.timeout):
                        await sender.send_messages(messages[0] if len(messages) == 1 else messages)
                self._outage.back()
                return
            except BrokerUnavailableError as error:
                self._outage.lost(error)
            except BrokerError as error:
                raise PublishRejectedError(str(error)) from error
            await asyncio.sleep(pause)

    # Taking

    def _limit(self, options: SubscribeOptions) -> int:
        settings: ServiceBusSettings = self._settings
        return min(options.max_in_flight, settings.most, settings.handlers or settings.most)

    def _receiver(self, entity: str, group: str, **options: Any) -> ServiceBusReceiver:
        return self._client.get_subscription_receiver(entity, group, **options)

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Source]:
        settings: ServiceBusSettings = self._settings
        entity, asked = address.label, Asked.read(address.label, options, self._limit(options))
        if options.dead_letters is not None:
            await self._opened(options.dead_letters.label)
        lasting = {"renewal": settings.renewal, "lease": options.ack_wait}
        if asked is None:
            with self._failures(entity):
                made = self._receiver(entity, options.group)
            receiver = Receiver(made, partial(self._failures, entity), settings.timeout)
            async with Member(receiver, address, self._outage, **lasting) as member:
                yield member
            return

        def session(wait: float) -> Receiver:
            failures = partial(self._session_failures, entity)
            with failures():
                wanted = {"session_id": NEXT_AVAILABLE_SESSION, "max_wait_time": wait}
                return Receiver(self._receiver(entity, options.group, **wanted), failures, settings.timeout)

        async with Sessions(session, address, self._outage, asked, **lasting) as sessions:
            yield sessions


class ServiceBusQueues(ServiceBusTopics):
    """Queues of one namespace: every topic is one, and all groups share it."""

    title = "Queues of Azure Service Bus; all who take from one share its events."

    def _receiver(self, entity: str, group: str, **options: Any) -> ServiceBusReceiver:
        return self._client.get_queue_receiver(entity, **options)
