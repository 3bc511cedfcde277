"""One subscription at work: reads an event, finds its route, hands it to the application, judges the answer."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import orjson
from msgspec.structs import replace

from mesh import telemetry
from mesh.application import Application
from mesh.blocks.batch import Batcher, delivery_tags, folded
from mesh.blocks.envelope import Envelope
from mesh.blocks.inbox import Inbox
from mesh.blocks.proofs import PROVEN_BY, UNKNOWN
from mesh.blocks.topics import PubSubComponent, Route
from mesh.blocks.wire import letter_headers
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.delivery import SUCCESS, Attempt, Outcome
from mesh.errors import AppFailedError, EventError, ExpressionError, HandlerFailedError, UnprovenError
from mesh.event import CLOUDEVENTS_JSON, decode_header_value, members_of
from mesh.passing import REPLAYED, Part, Passing
from mesh.resources.subscription import MAX_IN_FLIGHT, Subscription, asked
from mesh.spans import SpanKind
from mesh.telemetry import who_answered

__all__ = ["Consumer", "SubscriptionSettings", "about", "is_broadcast", "judge"]

logger = logging.getLogger(__name__)

MAX_TOLD = 100
MAX_ID = 300
MAX_READ_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class SubscriptionSettings:
    """What a subscription's metadata says."""

    options: SubscribeOptions
    raw: bool
    deduplicate: float
    accepts_unproven: bool
    dead_letters: bool

    @classmethod
    def read(cls, subscription: Subscription, component: PubSubComponent) -> SubscriptionSettings:
        """Read a subscription's metadata.

        Args:
            subscription: Whose.
            component: Of its topic.

        Raises:
            ValueError: A value makes no sense.
        """
        said, wrong = asked(subscription.metadata)
        if wrong:
            raise ValueError("; ".join(f"{name}: {message}" for name, message in wrong))
        group = said.group or component.group
        broadcast = said.delivery == "broadcast"
        limit = said.max_in_flight
        if subscription.bulk.enabled:
            limit = min(max(limit, subscription.bulk.max_messages), MAX_IN_FLIGHT)
        letters = subscription.dead_letter_topic
        options = SubscribeOptions(
            group=f"{group}-{secrets.token_hex(8)}" if broadcast else group,
            ephemeral=broadcast,
            max_in_flight=limit,
            ordered=said.ordered,
            expires=said.group_expires if subscription.origin == "STREAMING" and not broadcast else None,
            metadata=subscription.metadata,
            dead_letters=None if letters is None else component.address(letters),
        )
        return cls(options, said.raw, said.deduplicate, said.accepts_unproven, said.dead_letters)


def is_broadcast(subscription: Subscription) -> bool:
    """Tell whether every instance gets every event: then nothing keeps those that come while none is subscribed."""
    return any(name.lower() == "delivery" and value == "broadcast" for name, value in subscription.metadata.items())


class Consumer:
    """Makes one subscription's calls to the application."""

    def __init__(
        self,
        component: PubSubComponent,
        subscription: Subscription,
        routes: Sequence[Route],
        application: Application,
        *,
        raw: bool,
        accepts_unproven: bool = False,
        holds_letters: Callable[[str], bool] = lambda topic: False,
        inbox: Inbox | None = None,
    ) -> None:
        """Prepare.

        Args:
            component: Of the topic.
            subscription: What was asked for.
            routes: Where events go, by rules; the first that matches counts.
            application: Takes them.
            raw: Whether events have no envelope.
            accepts_unproven: Whether those are taken whose publisher is not proven.
            holds_letters: Tells whether a topic holds dead letters.
            inbox: Knows what was handled already; None = nothing is looked up.
        """
        self._component = component
        self._subscription = subscription
        self._routes = routes
        self._only_path = routes[0].path if len(routes) == 1 and routes[0].match is None else None
        self._application = application
        self._raw = raw
        self._accepts_unproven = accepts_unproven
        self._holds_letters = holds_letters
        self._inbox = inbox
        self._prefix = component.broker.features.event_prefix
        self._batcher: Batcher | None = None
        self._skip = len(component.topic_prefix)
        self._told: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def batching(self) -> AsyncIterator[None]:
        """Collect deliveries into batches while entered, if the subscription asks for it."""
        bulk = self._subscription.bulk
        if not bulk.enabled:
            yield
            return
        component, post = self._component, self._application.post
        told = component.observer, component.tracing
        self._batcher = Batcher(component.name, bulk.max_messages, bulk.max_wait, post, *told)
        async with self._batcher:
            yield

    def count(self, outcome: str) -> None:
        """Count an outcome of this subscription."""
        names = {"dead_letter": telemetry.EVENTS_DEAD_LETTERED, "dropped": telemetry.EVENTS_DROPPED}
        labels = self._component.name, self._subscription.topic
        if outcome in names:
            self._component.observer(names[outcome], labels)
        else:
            self._component.observer(telemetry.EVENTS_DELIVERED, (*labels, outcome))

    async def attempt(self, delivery: Delivery, passing: Passing | None = None) -> Attempt:
        """Hand the event to the application once, unless it was handled; ``passing`` collects what is told of it."""
        try:
            proven = self._proven(delivery)
        except UnprovenError as error:
            return Attempt(Outcome.DROP, str(error))
        if self._inbox is None:
            return await self._deliver(delivery, proven, passing)
        by = proven.get(PROVEN_BY, UNKNOWN)
        told = "" if by == UNKNOWN else by
        return await self._inbox.attempt(delivery.message, told, lambda: self._deliver(delivery, proven, passing))

    async def _deliver(self, delivery: Delivery, proven: Mapping[str, str], passing: Passing | None) -> Attempt:
        message, component = delivery.message, self._component
        topic = self._topic(delivery)
        try:
            event = self._read(message, topic)
        except EventError as error:
            return Attempt(Outcome.DROP, str(error))
        if passing is not None:
            self._note(passing, topic, message, event)
        # A dead letter that expired is there to be looked at.
        if event.expires_at is not None and event.expires_at <= time.time() and not letter_headers(message):
            self._component.observer(telemetry.EVENTS_EXPIRED, (self._component.name, topic))
            return Attempt(Outcome.DROP, "expired")
        path = self._only_path
        if path is None:
            try:
                path = self._route(event)
            except (EventError, ExpressionError) as error:
                return Attempt(Outcome.DROP, str(error))
            if path is None:
                return Attempt(Outcome.DROP, "no rule matched")
        if passing is not None:
            passing.details["route"] = path
        if self._batcher is not None:
            if passing is not None:
                passing.details["bulk"] = True
            metadata = {**component.wire.told(message), "mesh-attempt": str(delivery.attempt), **proven}
            return await self._batcher.call(path, topic, event.body, metadata, event.traceparent, raw=self._raw)
        tracing = self._component.tracing
        span = tracing.span(event.traceparent or None)
        if not tracing.records(span):
            return await self._hand_over(path, delivery, event, span, proven, passing)
        tags = {**delivery_tags(topic), "messaging.consumer.group.name": self._component.group}
        tags["mesh.attempt"] = str(delivery.attempt)
        parent, state = event.traceparent, event.tracestate
        with tracing.begin(span, parent, f"pubsub/{topic}", SpanKind.CLIENT, tags, tracestate=state) as begun:
            attempt = await self._hand_over(path, delivery, event, span, proven, passing)
            begun.error = "" if attempt.outcome is Outcome.SUCCESS else attempt.reason
        return attempt

    def _note(self, passing: Passing, topic: str, message: Message, event: Envelope) -> None:
        """Note for those who watch what is handed over."""
        name = self._component.name
        passing.target, passing.traceparent = f"{name}/{topic}", event.traceparent
        passing.details |= {"pubsub": name, "topic": topic}
        passing.request = Part((), "application/octet-stream" if event.raw else CLOUDEVENTS_JSON, event.body)
        passing.source = about(passing, message, self._prefix, b"" if event.raw else event.body)

    def _proven(self, delivery: Delivery) -> dict[str, str]:
        """Give the header that says who has published an event, where somebody asks for that."""
        proofs = self._component.proofs
        if proofs is None:
            return {}
        letters = self._holds_letters(self._topic(delivery))
        signed = self._component.wire.signed(delivery)
        return {PROVEN_BY: proofs.publisher(signed, lenient=self._accepts_unproven, letters=letters)}

    async def _hand_over(
        self,
        path: str,
        delivery: Delivery,
        event: Envelope,
        span: str,
        proven: Mapping[str, str],
        passing: Passing | None,
    ) -> Attempt:
        headers = [*self._headers(delivery, event, span), *proven.items()]
        try:
            status, answer = await self._application.post(path, headers, event.body, "event")
        except HandlerFailedError as error:
            return Attempt(Outcome.RETRY, str(error), error.status)
        except AppFailedError as error:
            return Attempt(Outcome.RETRY, str(error), broken=True)
        except EventError as error:  # It cannot be told to this application.
            return Attempt(Outcome.DROP, str(error))
        if passing is not None:
            passing.request = Part(headers, CLOUDEVENTS_JSON, event.body)
            passing.answered(status, body=answer)
        return judge(status, answer)

    def _read(self, message: Message, topic: str) -> Envelope:
        batch = self._batcher is not None
        wire = self._component.wire
        try:
            event = wire.read(message, topic, raw=self._raw, batch=batch)
        except EventError:
            if not letter_headers(message) and not self._holds_letters(topic):
                raise
            # What could not be read there is what dead letter topics are for: it is shown as any raw message is.
            event = replace(wire.read(message, topic, raw=True, batch=False), raw=False)  # It has an envelope.
        if batch and not self._raw:
            members_of(event.body)  # One that is no JSON would spoil its whole batch.
        return event

    def _route(self, event: Envelope) -> str | None:
        # A raw event of a batch is no CloudEvent: rules see its text.
        raw_text = event.raw and self._batcher is not None
        value = event.body.decode("utf-8", "replace") if raw_text else members_of(event.body)
        for route in self._routes:
            try:
                if route.match is None or route.match.matches(value):
                    return route.path
            except ExpressionError as error:
                self._tell(route, error, value)
                if self._subscription.dead_letter_topic is not None:
                    raise
                # Nobody is there to look at it, and no other attempt gives another result: it is no match.
        return None

    def _tell(self, route: Route, error: ExpressionError, value: Mapping[str, object] | str) -> None:
        """Log that a rule cannot read events of a kind, once."""
        text = str(error)
        if (route.place, text) not in self._told and len(self._told) < MAX_TOLD:
            self._told.add((route.place, text))
            event_id = "without an id" if isinstance(value, str) else repr(value.get("id"))
            topic = f"{self._component.name}/{self._subscription.topic}"
            logger.warning("%s: %s: %s, for the event %s and perhaps for others", topic, route.place, text, event_id)

    def _topic(self, delivery: Delivery) -> str:
        """Give the topic as applications name it."""
        return delivery.address.label[self._skip :]

    def _headers(self, delivery: Delivery, event: Envelope, span: str) -> list[tuple[str, str]]:
        headers = [
            ("Content-Type", CLOUDEVENTS_JSON),
            ("pubsubName", self._component.name),
            ("mesh-attempt", str(delivery.attempt)),
        ]
        if span:
            headers.append(("traceparent", span))
        if event.tracestate:
            headers.append(("tracestate", event.tracestate))
        headers.extend(self._component.wire.told(delivery.message).items())
        return headers

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int) -> None:
        """Publish the message as it is to the dead letter topic, with the reason in its headers."""
        topic = self._subscription.dead_letter_topic
        assert topic is not None
        component, where = self._component, self._component.address(topic)
        letter = component.wire.letter(delivery.message, reason, attempts, self._topic(delivery), component.group)
        if component.proofs is not None:
            letter = component.wire.sign(component.proofs.move, where, letter)
        await component.broker.publish(where, letter)

    @staticmethod
    async def reject(delivery: Delivery, reason: str, attempts: int) -> None:
        """Leave a message that no dead letter topic takes to the broker's own dead letters."""
        await delivery.reject()


def about(passing: Passing, message: Message, prefix: str, event: bytes) -> str:
    """Note for those who watch which event it is, and give its source, as far as that is known without much work."""
    found: Mapping[str, object] = {}
    headers = message.headers
    if f"{prefix}id" in headers:
        found = {name: decode_header_value(headers.get(prefix + name, "")) for name in ("id", "type", "source")}
    elif len(event) <= MAX_READ_BYTES:
        with suppress(EventError):
            found = members_of(event)
    passing.details |= {name: str(found[name])[:MAX_ID] for name in ("id", "type", REPLAYED) if name in found}
    return str(found.get("source", ""))[:MAX_ID]


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
            return Attempt(Outcome.DROP, who_answered("DROP"), status)
        return Attempt(Outcome.RETRY, who_answered(said[:40]))
    if status == 404:
        return Attempt(Outcome.DROP, who_answered(404), status)
    return Attempt(Outcome.RETRY, who_answered(status), status)
