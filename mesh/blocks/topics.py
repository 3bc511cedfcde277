"""A pub/sub component and what is published to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import msgspec
from msgspec.structs import replace

from mesh import address, telemetry
from mesh.blocks import envelope
from mesh.blocks.envelope import OVERRIDE, OVERRIDES, PublishOptions
from mesh.blocks.proofs import Proofs
from mesh.blocks.topic_scopes import TopicScopes
from mesh.blocks.wire import Wire
from mesh.broker import Broker, Features, Message
from mesh.errors import (
    BadArgumentError,
    EventError,
    MeshError,
    PermissionDeniedError,
    PublishFailedError,
)
from mesh.expressions import Match
from mesh.operation import Context, Method, Operation
from mesh.spans import Begun, SpanKind
from mesh.spelling import did_you_mean
from mesh.telemetry import NOT_TRACED, Observer, Tracing, nobody
from mesh.values import parse_bool, parse_duration, parse_instant

__all__ = [
    "BULK_PUBLISH",
    "PUBLISH",
    "BulkEntry",
    "BulkPublish",
    "Publish",
    "PubSubComponent",
    "Route",
    "capabilities",
    "is_raw",
    "spelled",
]

logger = logging.getLogger(__name__)

NO_METADATA: Mapping[str, str] = {}
PUBLISH_SECONDS = 30.0
METADATA = ("delay", "partitionKey", "rawPayload", "scheduledSendTime", "ttl", "ttlInSeconds")
_SPELLING = {name.lower(): name for name in (*METADATA, *(OVERRIDE + name for name in OVERRIDES))}
_SPELLING["israwpayload"] = "rawPayload"  # What an official page called it for a time.
_KNOWN = frozenset(_SPELLING.values())
MAX_TOLD = 100
CLOSE = 0.87  # Brokers have names of their own, which is no mistake: only what is nearly one of ours is refused.
MAX_NAME = 100

_Made = tuple[Message, Begun | None]  # An event, and the span of its publish where that is recorded here.
_Stored = tuple[Message, Begun | None, "PubSubComponent"]


class Publish(msgspec.Struct, frozen=True):
    """One event to store.

    Attributes:
        topic: As the application wrote it.
        body: Its data, or the whole event.
        content_type: Of the body.
        metadata: What else the publisher asks.
    """

    topic: str
    body: bytes
    content_type: str | None = None
    metadata: Mapping[str, str] = msgspec.field(default_factory=lambda: NO_METADATA)


class BulkEntry(msgspec.Struct, frozen=True):
    """One entry of a bulk publish; its metadata are the request's and its own."""

    entry_id: str
    content_type: str
    body: bytes
    metadata: Mapping[str, str]
    key: str | None = None


@dataclass(slots=True)
class BulkPublish:
    """Several events to store; of those that another attempt may store, ``entries`` keeps what is left."""

    topic: str
    entries: Sequence[BulkEntry]
    raw: bool = False
    metadata: Mapping[str, str] = field(default_factory=lambda: NO_METADATA)
    failed: dict[str, MeshError] = field(default_factory=dict)


def _topic(asked: Publish | BulkPublish, _: object) -> tuple[str, ...]:
    return (asked.topic,)


PUBLISH = Method("pubsub", "publish", Publish, seconds=PUBLISH_SECONDS, told=_topic)
BULK_PUBLISH = Method("pubsub", "bulk_publish", BulkPublish, seconds=PUBLISH_SECONDS, told=_topic)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a matching event is posted; the last of a subscription matches everything.

    Attributes:
        match: None for every event.
        path: Where.
        place: Where the rule stands, for people.
    """

    match: Match | None
    path: str
    place: str = ""


@lru_cache(maxsize=512)
def _ttl_seconds(text: str) -> float:
    seconds = parse_duration(text, bare="s")
    if seconds <= 0:
        raise ValueError(f"ttlInSeconds must be positive, not {text!r}")
    return seconds


def ttl_of(metadata: Mapping[str, str]) -> float | None:
    """Read ``ttlInSeconds`` (or ``ttl``): seconds, or a duration.

    Raises:
        ValueError: It is neither, or not positive.
    """
    text = metadata.get("ttlInSeconds", metadata.get("ttl"))
    return None if text is None else _ttl_seconds(text)


def not_before_of(metadata: Mapping[str, str]) -> float | None:
    """Read ``delay`` (seconds, or a duration) or ``scheduledSendTime`` (RFC 3339) as Unix time.

    Raises:
        ValueError: It is neither, or both are given.
    """
    delay, scheduled = metadata.get("delay"), metadata.get("scheduledSendTime")
    if delay is not None and scheduled is not None:
        raise ValueError("delay and scheduledSendTime exclude each other")
    if delay is not None:
        return time.time() + parse_duration(delay, bare="s")
    return None if scheduled is None else max(0.0, parse_instant(scheduled))  # As ``DateTime.MinValue``: now.


@lru_cache(maxsize=512)
def _meant(name: str) -> str | None:
    """Find the known name of which one is a misspelling; what follows ``cloudevent.`` is compared alone."""
    lowered = name.lower()
    if lowered.startswith(OVERRIDE):
        guess = did_you_mean(lowered[len(OVERRIDE) :], OVERRIDES, CLOSE)
        return guess and OVERRIDE + guess
    return did_you_mean(name, _SPELLING.values(), CLOSE)


def spelled(metadata: Mapping[str, str], others: Sequence[str] = ()) -> Mapping[str, str]:
    """Give publish metadata with known names as they are read here; their case does not count.

    Args:
        metadata: As it was given.
        others: Names that the broker knows, ``*`` for all.

    Raises:
        BadArgumentError: A name is nearly a known one. The event would be stored without what its publisher asked.
    """
    found: dict[str, str] = {}
    for name, value in metadata.items():
        known = _SPELLING.get(name.lower())
        strange = known is None and "*" not in others and name not in others
        if strange and len(name) <= MAX_NAME and (guess := _meant(name)):
            raise BadArgumentError(f"unknown metadata {name!r}; did you mean {guess!r}?")
        found[known or name] = value
    return found


def _end(begun: Begun | None, error: MeshError | None) -> None:
    """End the span of a publish, unless that is tried again."""
    if begun is not None and not (error is not None and error.retryable):
        begun.error = "" if error is None else f"{error.code}: {error}"
        begun.end()


def is_raw(metadata: Mapping[str, str]) -> bool:
    """Read ``rawPayload`` of `spelled` metadata.

    Raises:
        BadArgumentError: It is no boolean.
    """
    try:
        return "rawPayload" in metadata and parse_bool(metadata["rawPayload"])
    except ValueError:
        text = f"rawPayload value must be a valid boolean: actual is {metadata['rawPayload']!r}"
        raise BadArgumentError(text) from None


def capabilities(features: Features) -> Sequence[str]:
    """Give what metadata tells of a component on a broker."""
    wildcards = features.wildcard or features.own_wildcards
    told = {"SUBSCRIBE_WILDCARDS": wildcards, "MESSAGE_TTL": features.expires, "BULK_PUBSUB": True}
    return tuple(name for name, so in told.items() if so)


@dataclass(frozen=True, slots=True)
class PubSubComponent:
    """A configured pub/sub component; its functions are the block's methods.

    Attributes:
        name: As applications call it.
        broker: Where it stores.
        wire: What stands there for an event.
        scopes: Who may use which topic.
        group: The consumer group of this application (``consumerID``).
        namespace: The mesh's namespace.
        topic_prefix: Put before every topic (``{namespace}`` in the component's settings).
        tracing: Makes spans.
        observer: Is told what is published.
        told: Publish metadata that has no effect, each once.
        leaving: Set when it is about to be closed.
        proofs: Proves what is published, and asks that of what is delivered; None = nobody does.
    """

    name: str
    broker: Broker
    wire: Wire
    scopes: TopicScopes
    group: str
    namespace: str
    topic_prefix: str = ""
    tracing: Tracing = NOT_TRACED
    observer: Observer = nobody
    told: set[str] = field(default_factory=set)
    leaving: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    proofs: Proofs | None = field(default=None, compare=False)

    def leave(self) -> None:
        """Have those go who take messages of it for themselves."""
        self.leaving.set()

    def address(self, topic: str, *, pattern: bool = False) -> address.Address:
        """Address one of its topics."""
        whole = self.topic_prefix + topic
        if self.broker.features.layout == "native" and address.is_own(whole):
            raise BadArgumentError(f"the topic {topic!r} has a name of the mesh's own on a broker")
        return address.topic(self.namespace, self.name, whole, pattern=pattern)

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells about it."""
        return capabilities(self.broker.features)

    async def publish(self, operation: Operation) -> None:
        """Store one event; return once the broker has confirmed it.

        Raises:
            BadArgumentError: The metadata make no sense.
            PermissionDeniedError: A scope refuses the topic.
            EventError: The application's own event is not one.
            BrokerError: Not stored, or with DeadlineExceededError, unknown.
        """
        asked = cast("Publish", operation.arguments)
        if operation.kept is None:
            event = self._event(operation.context, asked)
            self._check_publish(operation.context, asked.topic)
            operation.kept = event  # Only what may be published is there for another attempt.
        message, begun, _ = cast("_Stored", operation.kept)
        try:
            await self.broker.publish(self.address(asked.topic), message)
        except MeshError as error:
            _end(begun, error)
            raise
        _end(begun, None)
        self._count(asked.topic, 1)

    def envelope(self, message: Message, topic: str) -> bytes | None:
        """Give a message that was made here as applications receive it; None for one that is no event."""
        try:
            return self.wire.read(message, topic, raw=False, batch=False).body
        except EventError:
            return None

    def _event(self, context: Context, asked: Publish) -> _Stored:
        metadata = spelled(asked.metadata, self.wire.publish_metadata) if asked.metadata else NO_METADATA
        raw = bool(metadata) and is_raw(metadata)
        self._tell_unknown(metadata)
        options = self._options(context, asked.topic, metadata)
        key = metadata.get("partitionKey") if metadata else None
        message = self._message(options, asked.content_type, asked.body, asked.metadata, raw=raw, key=key)
        return message, None if context.own else self._begun(context, options, "publish"), self

    async def bulk_publish(self, operation: Operation) -> None:
        """Store several.

        Raises:
            PublishFailedError: Some were not stored; holds the error of each.
            PermissionDeniedError: A scope refuses the topic; nothing was stored.
            EventError: An entry's own event is not one; nothing was stored.
        """
        asked = cast("BulkPublish", operation.arguments)
        if operation.kept is None:
            self._tell_unknown({name for entry in asked.entries for name in entry.metadata})
            made = {entry.entry_id: self._entry(operation.context, asked, entry) for entry in asked.entries}
            self._check_publish(operation.context, asked.topic)
            operation.kept = made
        events = cast("Mapping[str, _Made]", operation.kept)
        messages = [events[entry.entry_id][0] for entry in asked.entries]
        try:
            results = await self.broker.publish_many(self.address(asked.topic), messages)
        except MeshError as failure:
            for _, begun in events.values():
                _end(begun, failure)
            raise
        for entry, error in zip(asked.entries, results, strict=True):
            _end(events[entry.entry_id][1], error)
        self._count(asked.topic, sum(error is None for error in results))
        left = [(entry, error) for entry, error in zip(asked.entries, results, strict=True) if error is not None]
        failed = asked.failed | {entry.entry_id: error for entry, error in left}
        asked.failed |= {entry.entry_id: error for entry, error in left if not error.retryable}
        asked.entries = [entry for entry, error in left if error.retryable]
        if failed:
            raise PublishFailedError(failed)

    def _entry(self, context: Context, asked: BulkPublish, entry: BulkEntry) -> _Made:
        options = self._options(replace(context, own=False) if context.own else context, asked.topic, entry.metadata)
        metadata = spelled(entry.metadata, self.wire.publish_metadata)
        if "*" in self.wire.publish_metadata and asked.metadata:  # Such a broker has those of the request with each.
            metadata = {**asked.metadata, **metadata}
        message = self._message(options, entry.content_type, entry.body, metadata, raw=asked.raw, key=entry.key)
        return message, self._begun(context, options, "publish/bulk")

    def _begun(self, context: Context, options: PublishOptions, path: str) -> Begun | None:
        """Begin the span of a publish that is not the gateway's own of a call of its API."""
        if not self.tracing.records(options.traceparent):
            return None
        name = f"/v1.0/{path}/{self.name}/{options.topic}"
        tags = {
            "messaging.system": "pubsub",
            "messaging.destination.name": options.topic,
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
        }
        return self.tracing.begin(
            options.traceparent, context.traceparent, name, SpanKind.PRODUCER, tags, tracestate=context.tracestate
        )

    def _check_publish(self, context: Context, topic: str) -> None:
        if not self.scopes.may_publish(context.caller.app_id, topic):
            raise PermissionDeniedError(f"topic {topic} is not allowed for app id {context.caller.app_id}")

    def _count(self, topic: str, count: int) -> None:
        self.observer(telemetry.EVENTS_PUBLISHED, (self.name, topic), count)

    def _options(self, context: Context, topic: str, metadata: Mapping[str, str]) -> PublishOptions:
        """Collect what a publish says besides its body."""
        app_id, span = context.caller.app_id, context.traceparent or ""
        if not (context.own and span):
            span = self.tracing.span(context.traceparent)
        if not metadata:
            return PublishOptions(app_id, self.name, topic, span, context.tracestate, baggage=context.baggage)
        try:
            ttl, not_before = ttl_of(metadata), not_before_of(metadata)
        except ValueError as error:
            raise BadArgumentError(str(error)) from None
        return PublishOptions(
            app_id,
            self.name,
            topic,
            span,
            context.tracestate,
            envelope.overrides(metadata),
            None if ttl is None else time.time() + ttl,
            not_before,
            context.baggage,
        )

    def _tell_unknown(self, names: Iterable[str]) -> None:
        """Log each name once that has no effect; those of a request together."""
        others = self.wire.publish_metadata
        new = () if "*" in others else sorted({*names} - _KNOWN - self.told - {*others})[: MAX_TOLD - len(self.told)]
        if new:
            self.told.update(new)
            told, known = ", ".join(repr(name[:MAX_NAME]) for name in new), ", ".join((*METADATA, *others))
            logger.warning(
                "%s: the publish metadata %s have no effect; known: %s, %s…", self.name, told, known, OVERRIDE
            )

    def _message(
        self,
        options: PublishOptions,
        content_type: str | None,
        body: bytes,
        metadata: Mapping[str, str],
        *,
        raw: bool,
        key: str | None,
    ) -> Message:
        message = self.wire.compose(options, content_type, body, metadata, raw=raw, key=key)
        if self.proofs is None:
            return message
        return self.wire.sign(self.proofs.prove, self.address(options.topic), message)
