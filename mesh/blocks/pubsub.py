"""Publish and subscribe."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import cast

import orjson

from mesh import address, telemetry
from mesh.application import AppFailedError, Application
from mesh.blocks import envelope
from mesh.blocks.batch import Batcher, folded
from mesh.blocks.envelope import Envelope, PublishOptions
from mesh.broker import Broker, Delivery, Message, SubscribeOptions
from mesh.delivery import NOT_BEFORE_HEADER, SUCCESS, Attempt, Outcome, Settlement
from mesh.durations import parse_duration
from mesh.errors import EventError, ExpressionError, MeshError, PermissionDeniedError
from mesh.event import encode_header_value, is_structured
from mesh.expressions import Match
from mesh.guard import Guard
from mesh.policies import Policy
from mesh.resources.subscription import Subscription
from mesh.scopes import TopicScopes
from mesh.telemetry import Counters, Tracing

__all__ = ["BulkEntry", "PubSub", "PubSubComponent", "Route", "ttl_of"]

DEFAULT_MAX_IN_FLIGHT = 64
MAX_IN_FLIGHT = 10_000
NO_POLICY = Policy()
DEAD_LETTER_HEADERS = ("mesh-dead-letter-reason", "mesh-dead-letter-attempts", "mesh-dead-letter-topic")


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
        self, components: Mapping[str, PubSubComponent], app_id: str, tracing: Tracing, counters: Counters
    ) -> None:
        """Use entered brokers.

        Args:
            components: By name.
            app_id: Who publishes.
            tracing: Makes spans.
            counters: Where to count.
        """
        self.components = components
        self._app_id = app_id
        self._tracing = tracing
        self._counters = counters

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
        settings = _SubscriptionSettings.read(subscription, component.group)
        consumer = _Consumer(self, component, subscription, routes, application, raw=settings.raw)
        settlement = Settlement(
            consumer.attempt,
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


def _is_dead_letter(message: Message) -> bool:
    return DEAD_LETTER_HEADERS[0] in message.headers


@dataclass(frozen=True, slots=True)
class _SubscriptionSettings:
    """What a subscription's metadata says."""

    options: SubscribeOptions
    raw: bool

    @classmethod
    def read(cls, subscription: Subscription, group: str) -> _SubscriptionSettings:
        metadata = {name.lower(): value for name, value in subscription.metadata.items()}
        limit = int(metadata.get("maxinflight", DEFAULT_MAX_IN_FLIGHT))
        if subscription.bulk.enabled:
            limit = max(limit, subscription.bulk.max_messages)
        options = SubscribeOptions(
            group=group,
            max_in_flight=max(1, min(limit, MAX_IN_FLIGHT)),
            ordered=envelope.parse_bool(metadata.get("ordered", "false")),
        )
        return cls(options, envelope.parse_bool(metadata.get("rawpayload", "false")))


class _Consumer:
    """Makes one subscription's calls to the application."""

    def __init__(
        self,
        block: PubSub,
        component: PubSubComponent,
        subscription: Subscription,
        routes: Sequence[Route],
        application: Application,
        *,
        raw: bool,
    ) -> None:
        self._block = block
        self._component = component
        self._subscription = subscription
        self._routes = routes
        self._only_path = routes[0].path if len(routes) == 1 and routes[0].match is None else None
        self._application = application
        self._raw = raw
        self._prefix = component.broker.features.event_prefix
        self._batcher: Batcher | None = None
        self._skip = len(component.topic_prefix)

    @asynccontextmanager
    async def batching(self) -> AsyncIterator[None]:
        bulk = self._subscription.bulk
        if not bulk.enabled:
            yield
            return
        self._batcher = Batcher(self._component.name, bulk.max_messages, bulk.max_wait, self._application.post)
        async with self._batcher:
            yield

    def count(self, outcome: str) -> None:
        names = {"dead_letter": telemetry.EVENTS_DEAD_LETTERED, "dropped": telemetry.EVENTS_DROPPED}
        component, topic = self._component.name, self._subscription.topic
        if outcome in names:
            self._block.count(names[outcome], component, topic)
        else:
            self._block.count(telemetry.EVENTS_DELIVERED, component, topic, outcome)

    async def attempt(self, delivery: Delivery) -> Attempt:
        """Hand the event to the application once."""
        message = delivery.message
        topic = delivery.address.label[self._skip :]
        try:
            event = self._read(message, topic)
        except EventError as error:
            return Attempt(Outcome.DROP, str(error))
        # A dead letter that expired is there to be looked at.
        if event.expires_at is not None and event.expires_at <= time.time() and not _is_dead_letter(message):
            self._block.count(telemetry.EVENTS_EXPIRED, self._component.name, topic)
            return Attempt(Outcome.DROP, "expired")
        path = self._only_path
        if path is None:
            try:
                path = self._route(event)
            except ExpressionError as error:
                return Attempt(Outcome.RETRY, str(error))
            except EventError as error:
                return Attempt(Outcome.DROP, str(error))
            if path is None:
                return Attempt(Outcome.DROP, "no rule matched")
        headers = self._headers(delivery, event)
        if self._batcher is not None:
            return await self._batcher.call(path, topic, event.body, raw=self._raw)
        try:
            status, answer = await self._application.post(path, headers, event.body)
        except AppFailedError as error:
            return Attempt(Outcome.RETRY, str(error), broken=True)
        return judge(status, answer)

    def _read(self, message: Message, topic: str) -> Envelope:
        name = self._component.name
        if not self._raw:
            event = envelope.read(message.headers, message.body, pubsub=name, topic=topic, prefix=self._prefix)
            if self._batcher is not None:
                envelope.parse_event(event.body)  # One that is no JSON would spoil its whole batch.
            return event
        body, traceparent = message.body, ""
        if self._prefix + "specversion" in message.headers:
            whole = envelope.read(message.headers, body, pubsub=name, topic=topic, prefix=self._prefix)
            body, traceparent = whole.body, whole.traceparent
        if self._batcher is None:
            body = envelope.wrap_raw(body, pubsub=name, topic=topic, traceparent=traceparent)
        return Envelope(body, traceparent, raw=True)

    def _route(self, event: Envelope) -> str | None:
        # A raw event of a batch is no CloudEvent: rules see its text.
        raw_text = event.raw and self._batcher is not None
        value = event.body.decode("utf-8", "replace") if raw_text else envelope.parse_event(event.body)
        for route in self._routes:
            if route.match is None or route.match.matches(value):
                return route.path
        return None

    def _headers(self, delivery: Delivery, event: Envelope) -> list[tuple[str, str]]:
        headers = [
            ("Content-Type", "application/cloudevents+json"),
            ("pubsubName", self._component.name),
            ("mesh-attempt", str(delivery.attempt)),
        ]
        span = self._block.new_span(event.traceparent)
        if span:
            headers.append(("traceparent", span))
        if event.tracestate:
            headers.append(("tracestate", event.tracestate))
        given = delivery.message.headers
        headers.extend((name, given[name]) for name in DEAD_LETTER_HEADERS if name in given)
        return headers

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int) -> None:
        """Publish the message as it is to the dead letter topic, with the reason in its headers."""
        topic = self._subscription.dead_letter_topic
        assert topic is not None
        message = delivery.message
        values = (encode_header_value(reason[:500]), str(attempts), delivery.address.text)
        headers = {**message.headers, **dict(zip(DEAD_LETTER_HEADERS, values, strict=True))}
        identity = f"dead-{message.id}-{self._component.group}" if message.id else secrets.token_hex(12)
        await self._component.broker.publish(
            self._component.address(topic), Message(headers, message.body, message.key, identity)
        )


def judge(status: int, answer: bytes) -> Attempt:
    """Read an application's answer to a delivery."""
    if 200 <= status < 300:
        if not answer or answer == b"{}":
            return SUCCESS
        try:
            members = orjson.loads(answer)
        except orjson.JSONDecodeError:
            return SUCCESS
        said = folded(members).get("status")
        if not isinstance(said, str) or said in ("", "SUCCESS"):
            return SUCCESS
        if said == "DROP":
            return Attempt(Outcome.DROP, "the application answered DROP", status)
        return Attempt(Outcome.RETRY, f"the application answered {said[:40]}")
    if status == 404:
        return Attempt(Outcome.DROP, "the application answered 404", status)
    return Attempt(Outcome.RETRY, f"the application answered {status}", status)
