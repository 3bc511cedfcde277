"""Publish and subscribe."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import cast

from mesh import address, telemetry
from mesh.application import Application
from mesh.blocks import envelope
from mesh.blocks.consumer import Consumer, SubscriptionSettings
from mesh.blocks.envelope import PublishOptions
from mesh.blocks.inbox import Inbox
from mesh.broker import Broker, Delivery, KeyValue, Message
from mesh.delivery import NOT_BEFORE_HEADER, Attempt, Settlement
from mesh.durations import parse_duration
from mesh.errors import FeatureNotSupportedError, MeshError, PermissionDeniedError
from mesh.event import encode_header_value, is_structured
from mesh.expressions import Match
from mesh.guard import Guard
from mesh.policies import Policy
from mesh.resources.subscription import Subscription
from mesh.scopes import TopicScopes
from mesh.telemetry import Counters, Tracing

__all__ = ["BulkEntry", "PubSub", "PubSubComponent", "Route", "ttl_of"]

NO_POLICY = Policy()


@dataclass(frozen=True, slots=True)
class PubSubComponent:
    """A configured pub/sub component.

    Attributes:
        name: As applications call it.
        type: Its component type.
        version: Its component version.
        broker: Where it stores.
        scopes: Who may use which topic.
        group: The consumer group of this application (``consumerID``).
        namespace: The mesh's namespace.
        topic_prefix: Put before every topic (``{namespace}`` in the component's settings).
        guard: The policy around publishing; None when there is none.
        inbound: Policy around deliveries.
    """

    name: str
    type: str
    version: str
    broker: Broker
    scopes: TopicScopes
    group: str
    namespace: str
    topic_prefix: str = ""
    guard: Guard | None = None
    inbound: Policy = NO_POLICY

    def address(self, topic: str, *, pattern: bool = False) -> address.Address:
        """Address one of its topics."""
        return address.topic(self.namespace, self.name, self.topic_prefix + topic, pattern=pattern)

    @property
    def capabilities(self) -> list[str]:
        """What metadata tells about it."""
        features = self.broker.features
        wildcards = ["SUBSCRIBE_WILDCARDS"] if features.wildcard else []
        return [*wildcards, "BULK_PUBSUB"]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a matching event is posted; the last of a subscription matches everything."""

    match: Match | None
    path: str


@dataclass(frozen=True, slots=True)
class BulkEntry:
    """One entry of a bulk publish; ``options`` and the partition key differ per entry."""

    entry_id: str
    content_type: str
    body: bytes
    options: PublishOptions
    key: str | None = None


@lru_cache(maxsize=512)
def _ttl_seconds(text: str) -> float:
    seconds = float(text) if text.isdigit() else parse_duration(text)
    if seconds <= 0:
        raise ValueError(f"ttlInSeconds must be positive, not {text!r}")
    return seconds


def ttl_of(metadata: Mapping[str, str]) -> float | None:
    """Read ``ttlInSeconds`` (or ``ttl``): whole seconds, or a Go duration.

    Raises:
        ValueError: It is neither, or not positive.
    """
    text = metadata.get("ttlInSeconds", metadata.get("ttl"))
    return None if text is None else _ttl_seconds(text)


def not_before_of(metadata: Mapping[str, str]) -> float | None:
    """Read ``delay`` (whole seconds, or a duration) or ``scheduledSendTime`` (RFC 3339) as Unix time.

    Raises:
        ValueError: It is neither, or both are given.
    """
    delay, scheduled = metadata.get("delay"), metadata.get("scheduledSendTime")
    if delay is not None and scheduled is not None:
        raise ValueError("delay and scheduledSendTime exclude each other")
    if delay is not None:
        return time.time() + (float(delay) if delay.isdigit() else parse_duration(delay))
    if scheduled is None:
        return None
    try:
        at = datetime.fromisoformat(scheduled)
    except ValueError:
        raise ValueError(f"scheduledSendTime is not RFC 3339: {scheduled!r}") from None
    if at.tzinfo is None:
        raise ValueError(f"scheduledSendTime has no time zone: {scheduled!r}")
    return at.timestamp()


class PubSub:
    """The building block."""

    def __init__(
        self,
        components: Mapping[str, PubSubComponent],
        app_id: str,
        tracing: Tracing,
        counters: Counters,
        open_records: Callable[[], Awaitable[KeyValue]],
    ) -> None:
        """Use entered brokers.

        Args:
            components: By name.
            app_id: Who publishes.
            tracing: Makes spans.
            counters: Where to count.
            open_records: Opens the store of deduplicating subscriptions, if there are any.
        """
        self.components = components
        self._app_id = app_id
        self._tracing = tracing
        self._counters = counters
        self._open_records = open_records
        self._inbox_records: KeyValue | None = None

    def _check_publish(self, component: PubSubComponent, topic: str) -> None:
        if not component.scopes.may_publish(self._app_id, topic):
            raise PermissionDeniedError(f"topic {topic} is not allowed for app id {self._app_id}")

    def options(
        self,
        component: PubSubComponent,
        topic: str,
        metadata: Mapping[str, str],
        traceparent: str | None,
        tracestate: str,
    ) -> PublishOptions:
        """Collect what a publish request says besides its body.

        Raises:
            ValueError: The time to live, or the time of delivery, is malformed.
        """
        if not metadata:
            return PublishOptions(self._app_id, component.name, topic, self._tracing.span(traceparent), tracestate)
        ttl = ttl_of(metadata)
        return PublishOptions(
            self._app_id,
            component.name,
            topic,
            self._tracing.span(traceparent),
            tracestate,
            envelope.overrides(metadata),
            None if ttl is None else time.time() + ttl,
            not_before_of(metadata),
        )

    async def publish(
        self,
        component: PubSubComponent,
        options: PublishOptions,
        content_type: str | None,
        body: bytes,
        *,
        raw: bool = False,
        key: str | None = None,
    ) -> None:
        """Store one event; return once the broker has confirmed it.

        Raises:
            PermissionDeniedError: A scope refuses the topic.
            EventError: The application's own event is not one.
            BrokerError: Not stored, or with DeadlineExceededError, unknown.
        """
        message = _message(component, options, content_type, body, raw=raw, key=key)
        self._check_publish(component, options.topic)
        where = component.address(options.topic)
        if component.guard is None:
            await component.broker.publish(where, message)
        else:
            await component.guard.run(lambda: component.broker.publish(where, message))
        self._counters.add(telemetry.EVENTS_PUBLISHED, component.name, options.topic)

    async def publish_bulk(
        self, component: PubSubComponent, topic: str, entries: Sequence[BulkEntry], *, raw: bool
    ) -> dict[str, MeshError]:
        """Store several; give the errors by entry id.

        Raises:
            PermissionDeniedError: A scope refuses the topic; nothing was stored.
            EventError: An entry's own event is not one; nothing was stored.
        """
        messages = [
            _message(component, entry.options, entry.content_type, entry.body, raw=raw, key=entry.key)
            for entry in entries
        ]
        self._check_publish(component, topic)
        results = await _publish_all(component, component.address(topic), messages)
        failed = {entry.entry_id: error for entry, error in zip(entries, results, strict=True) if error is not None}
        self._counters.add(telemetry.EVENTS_PUBLISHED, component.name, topic, by=len(entries) - len(failed))
        return failed

    @asynccontextmanager
    async def subscribe(
        self, subscription: Subscription, routes: Sequence[Route], application: Application
    ) -> AsyncIterator[None]:
        """Deliver a subscription's events to the application.

        Raises:
            PermissionDeniedError: A scope refuses the topic.
            BrokerError: The broker could not start it.
        """
        component = self.components[subscription.pubsub]
        if not component.scopes.may_subscribe(self._app_id, subscription.topic):
            raise PermissionDeniedError(f"topic {subscription.topic} is not allowed for app id {self._app_id}")
        settings = SubscriptionSettings.read(subscription, component.group)
        consumer = Consumer(self, component, subscription, routes, application, raw=settings.raw)
        attempt: Callable[[Delivery], Awaitable[Attempt]] = consumer.attempt
        if settings.deduplicate > 0:
            attempt = await self._deduplicated(component, subscription, settings, attempt)
        settlement = Settlement(
            attempt,
            policy=component.inbound,
            dead_letter=consumer.dead_letter if subscription.dead_letter_topic else None,
            until_reachable=application.until_reachable,
            count=consumer.count,
            ack_wait=settings.options.ack_wait,
            label=f"{component.name}/{subscription.topic}",
        )
        where = component.address(subscription.topic, pattern=component.broker.features.wildcard)
        subscribed = component.broker.subscribe(where, settings.options, settlement)
        async with consumer.batching(), settlement.extending(), subscribed:
            yield

    async def _deduplicated(
        self,
        component: PubSubComponent,
        subscription: Subscription,
        settings: SubscriptionSettings,
        attempt: Callable[[Delivery], Awaitable[Attempt]],
    ) -> Callable[[Delivery], Awaitable[Attempt]]:
        if self._inbox_records is None:
            self._inbox_records = await self._open_records()
        inbox = Inbox(
            self._inbox_records,
            f"{component.name}/{subscription.topic}/{settings.options.group}",
            settings.deduplicate,
            component.broker.features.event_prefix,
            lambda: self.count(telemetry.EVENTS_DUPLICATE, component.name, subscription.topic),
        )
        return lambda delivery: inbox.attempt(delivery, attempt)

    def new_span(self, traceparent: str) -> str:
        """Give a delivery's span."""
        return self._tracing.span(traceparent or None)

    def count(self, name: str, component: str, topic: str, *more: str) -> None:
        """Count something about a topic."""
        self._counters.add(name, component, topic, *more)


async def _publish_all(
    component: PubSubComponent, where: address.Address, messages: Sequence[Message]
) -> list[MeshError | None]:
    """Publish, and by the component's policy again what failed; give the error of each."""
    if component.guard is None:
        return [*await component.broker.publish_many(where, messages)]
    results: list[MeshError | None] = [None] * len(messages)
    left = list(range(len(messages)))

    async def attempt() -> None:
        nonlocal left
        outcome = await component.broker.publish_many(where, [messages[index] for index in left])
        for index, result in zip(left, outcome, strict=True):
            results[index] = result
        left = [index for index in left if (error := results[index]) is not None and error.retryable]
        if left:
            raise cast("MeshError", results[left[0]])

    try:
        await component.guard.run(attempt)
    except MeshError as error:
        for index in left:
            results[index] = error
    return results


def _message(
    component: PubSubComponent,
    options: PublishOptions,
    content_type: str | None,
    body: bytes,
    *,
    raw: bool,
    key: str | None,
) -> Message:
    if options.not_before is not None and not component.broker.features.delay:
        raise FeatureNotSupportedError(component.broker.features.name, "delayed events")
    # The id is ours, not the event's: an application may reuse its event ids, and none may be swallowed.
    identity = secrets.token_hex(12)
    scheduled = {} if options.not_before is None else {NOT_BEFORE_HEADER: str(int(options.not_before * 1000))}
    if raw:
        return Message(scheduled, body, key, identity)
    prefix = component.broker.features.event_prefix
    if content_type is not None and is_structured(content_type) and envelope.is_json_event(content_type):
        headers, body = envelope.build_structured(options, body, prefix)
    else:
        headers, body = envelope.build_binary(options, content_type, body, prefix)
        if key is not None:
            headers[prefix + "partitionkey"] = encode_header_value(key)
    if scheduled:
        headers |= scheduled
    return Message(headers, body, key, identity)
