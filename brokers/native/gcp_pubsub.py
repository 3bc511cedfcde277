"""``pubsub.gcp.pubsub``: a topic is one of Google Cloud Pub/Sub, and a group takes from a subscription to it.

A message that is handled is leased, which is renewed until it is settled. One that is tried again later stays leased
until then.

Source: Dapr 1.18, the GCP Pub/Sub pub/sub component; Pub/Sub's REST reference, v1.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from brokers.clients.gcp import GCPAdapter, GCPSettings
from brokers.clients.gcp_pubsub import PubSubService, endpoint_setting
from brokers.native._pulled import MAX_ATTRIBUTE, InvalidError, Pulled
from brokers.native._topics import NativeSettings, NativeTopics
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.limits import check_size
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    PublishRejectedError,
    TopologyMismatchError,
)
from mesh.features import Features
from mesh.resources.settings import BOOLEAN, Kind, Setting, choice, ignored, lasting, setting, whole

__all__ = ["GCPPubSubTopics"]

logger = logging.getLogger(__name__)

MAX_TOPICS = 10_000
BATCH = 1000  # Messages of a request.
_NAME = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")

FEATURES = Features(
    name="Google Cloud Pub/Sub",
    layout="native",
    max_message_bytes=10_000_000,
    durable=True,
    shared=True,
    delay=True,
    attempts=False,
    release_counts=True,
    retention=False,
    frames=False,
    publish_metadata=("orderingKey",),
)


def _deadline(text: str) -> object:
    seconds = lasting(600, bare="s").parse(text)
    if not isinstance(seconds, float) or seconds < 10:
        raise ValueError("is from 10 s to 600 s")
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class GCPPubSubSettings(NativeSettings, GCPSettings):
    """Settings of ``pubsub.gcp.pubsub``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *GCPSettings.ignored,
        *ignored("nothing needs it to ask for a token", "identityProjectId"),
        *ignored(
            "a lost connection is tried again for as long as it takes",
            *("maxReconnectionAttempts", "connectionRecoveryInSec"),
        ),
        *ignored("what is at work at once is limited by number", "maxOutstandingBytes"),
        *ignored("one request at a time takes a subscription's events", "maxConcurrentConnections"),
    )

    layout: str = setting(
        "layout", "Topics are as every other program there has them.", choice("native"), default="native"
    )
    endpoint: str = endpoint_setting()
    group: str | None = setting(
        "consumerID", "The consumer group, with which names of subscriptions begin; by default the application's id."
    )
    ordering: bool = setting("enableMessageOrdering", "Events of one key stay in order.", BOOLEAN, default=False)
    ordering_key: str | None = setting(
        "orderingKey", "With `enableMessageOrdering`, the key of events without an own one."
    )
    deadline: float = setting(
        "ackDeadline",
        "Time without a sign of life of who holds an event until it is handed out again.",
        Kind("seconds, or a duration", _deadline),
        default=20.0,
    )
    dead_letters: str | None = setting(
        "deadLetterTopic", "Topic to which Pub/Sub itself moves what it handed out `maxDeliveryAttempts` times."
    )
    max_attempts: int = setting("maxDeliveryAttempts", "See `deadLetterTopic`.", whole(5, 100), default=5)
    most: int | None = setting(
        "maxOutstandingMessages",
        "Most events of a subscription at work at once; 0 or less = as it says itself.",
        whole(-(2**31)),
    )
    unmanaged: bool = setting(
        "disableEntityManagement", "Create no topics and subscriptions: they are there.", BOOLEAN, default=False
    )


class GCPPubSubTopics(NativeTopics, GCPAdapter):
    """Topics of one project."""

    title = "Topics of Google Cloud Pub/Sub."
    tested = "Google's own stand-in for Pub/Sub, and its emulator; never ran against the real service"
    settings = GCPPubSubSettings
    features = FEATURES
    told_group = True

    def __init__(self, settings: GCPPubSubSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        if settings.ordering:
            self.features = replace(self.features, ordering=True)
        self._service = PubSubService(settings, settings.endpoint, BrokerError, BrokerUnavailableError)
        self._outage = Outage(logger, "Google Cloud Pub/Sub", settings.endpoint)
        self._left = False
        self._managing = asyncio.Lock()
        self._topics: set[str] = set()

    async def _enter(self) -> None:
        await self._stack.enter_async_context(self._service)
        if self._service.project is None:
            raise self._problem("no project is known: set project_id")
        try:
            async with asyncio.timeout(CONNECT_WAIT):
                await self.check()
        except TimeoutError as error:
            raise unavailable(f"Pub/Sub at {self._settings.endpoint}", error) from error
        self._stack.callback(self._leave)

    def _leave(self) -> None:
        self._left = True

    def _check_open(self) -> None:
        if self._left:
            raise BrokerUnavailableError(f"the connection to {FEATURES.name} was closed")

    async def check(self) -> None:
        """Ask whether the service answers, and knows the credentials; whether the topic is there does not matter."""
        self._check_open()
        answer = await self._service.get("topics", "mesh-check")
        if answer.status not in (200, 403, 404):
            raise NotAdmittedError(f"Pub/Sub answered {answer.reason()}")

    # Topics and subscriptions: what is there is used as it is, what lacks is made

    async def _topic(self, name: str) -> str:
        """See that a topic is there; gives its full name."""
        full = f"projects/{self._service.project}/topics/{name}"
        if name in self._topics or self._settings.unmanaged:
            return full
        if not _NAME.fullmatch(name):
            text = "3 to 255 letters, digits and -._~+%, the first one a letter, and does not begin with goog"
            raise BrokerError(f"the name of a topic of Pub/Sub is {text}: not {name!r}")
        async with self._managing:
            if name not in self._topics:
                await self._made("topics", name, {})
                if len(self._topics) >= MAX_TOPICS:
                    self._topics.clear()
                self._topics.add(name)
        return full

    async def _made(self, kind: str, name: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give what there is by a name; it is made if it is not there."""
        answer = await self._service.get(kind, name)
        if answer.status == 404:
            if self._settings.unmanaged:
                raise BrokerError(f"Pub/Sub has no {name!r} among its {kind}, and disableEntityManagement is set")
            answer = await self._service.make(kind, name, body)
            if answer.status == 409:  # Somebody else was faster.
                answer = await self._service.get(kind, name)
        if answer.status == 403 and self._settings.unmanaged:  # Who may take from it need not have the right to look.
            return body
        return self._service.taken(answer, f"{name!r} of {kind}")

    async def _subscription(self, topic: str, options: SubscribeOptions) -> str:
        """See that a group's subscription to a topic is there; gives its name."""
        settings: GCPPubSubSettings = self._settings
        wanted: dict[str, Any] = {"topic": await self._topic(topic), "ackDeadlineSeconds": round(settings.deadline)}
        if settings.ordering:
            wanted["enableMessageOrdering"] = True
        if settings.dead_letters is not None:
            letters = await self._kept(settings.dead_letters)
            wanted["deadLetterPolicy"] = {"deadLetterTopic": letters, "maxDeliveryAttempts": settings.max_attempts}
        name = f"{options.group}-{topic}"
        there = await self._made("subscriptions", name, wanted)
        for what in wanted.keys() - {"ackDeadlineSeconds"}:
            if there.get(what) != wanted[what]:
                text = f"{what} is {there.get(what)!r}, and the settings say {wanted[what]!r}"
                raise TopologyMismatchError(f"the subscription {name!r} is another one: {text}")
        return name

    async def _kept(self, name: str) -> str:
        """See that dead letters are kept: a topic without a subscription drops them. Gives the full name of theirs."""
        full = await self._topic(name)
        answer = await self._service.get("topics", name, "/subscriptions")
        if answer.status == 403 and self._settings.unmanaged:
            return full
        if not self._service.taken(answer, f"subscriptions to {name!r}").get("subscriptions"):
            await self._made("subscriptions", f"{name}-kept", {"topic": full, "expirationPolicy": {}})
        return full

    # Publishing

    async def publish(self, address: Address, message: Message) -> None:
        """Publish; while the service is away, or has too much to do, again until cancelled."""
        await self._publish(address.label, [self._written(message)])

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Publish several, in order, many with one request."""
        results: list[BrokerError | None] = [None] * len(messages)
        for batch in self._batches(messages, results):
            await self._publish_batch(address.label, batch, results)
        return results

    async def _publish_batch(
        self, topic: str, batch: Sequence[tuple[int, dict[str, Any]]], results: list[BrokerError | None]
    ) -> None:
        """Publish some; where one of them is not what the topic takes, in halves, until it is alone."""
        try:
            await self._publish(topic, [each for _, each in batch])
        except BrokerError as error:
            if isinstance(error, InvalidError) and (half := len(batch) // 2):
                await self._publish_batch(topic, batch[:half], results)
                await self._publish_batch(topic, batch[half:], results)
                return
            for index, _ in batch:
                results[index] = error

    def _batches(
        self, messages: Sequence[Message], results: list[BrokerError | None]
    ) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        batch: list[tuple[int, dict[str, Any]]] = []
        size = 0
        for index, message in enumerate(messages):
            try:
                written = self._written(message)
            except BrokerError as error:
                results[index] = error
                continue
            more = len(written["data"]) + sum(map(len, (*message.headers, *message.headers.values())))
            if batch and (len(batch) == BATCH or size + more > FEATURES.max_message_bytes):
                yield batch
                batch, size = [], 0
            batch.append((index, written))
            size += more
        if batch:
            yield batch

    async def _publish(self, topic: str, messages: Sequence[Mapping[str, Any]]) -> None:
        for pause in waits():
            self._check_open()
            try:
                await self._topic(topic)
                answer = await self._service.post("topics", topic, "publish", {"messages": messages})
                self._outage.back()
                if answer.status == 200:
                    return
                if answer.status != 404 or self._settings.unmanaged:
                    kind = InvalidError if answer.status == 400 else PublishRejectedError
                    raise kind(f"Pub/Sub, publish to {topic!r}: {answer.reason()}")
                self._topics.discard(topic)  # It was deleted.
            except BrokerUnavailableError as error:
                self._outage.lost(error)
            await asyncio.sleep(pause)

    def _written(self, message: Message) -> dict[str, Any]:
        check_size(message.body, message.headers, FEATURES.max_message_bytes)
        written: dict[str, Any] = {"data": base64.b64encode(message.body).decode()}
        if attributes := dict(_attributes(message.headers)):
            written["attributes"] = attributes
        elif not message.body:
            raise BrokerError(f"{FEATURES.name} takes no message without a body and without attributes")
        if self._settings.ordering:
            key = message.metadata.get("orderingKey") or message.key or self._settings.ordering_key
            if key:
                written["orderingKey"] = key
        return written

    # Taking

    def _limit(self, options: SubscribeOptions) -> int:
        most = self._settings.most
        return options.max_in_flight if most is None or most <= 0 else min(options.max_in_flight, most)

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Pulled]:
        if options.dead_letters is not None:
            await self._kept(options.dead_letters.label)
        name = await self._subscription(address.label, options)
        lease = round(max(self._settings.deadline, options.ack_wait))
        async with Pulled(self._service, name, address, lease, self._outage) as pulled:
            yield pulled


def _attributes(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Write headers as attributes: what is too long for one is continued in others."""
    for name, value in headers.items():
        for start in range(0, len(value), MAX_ATTRIBUTE):
            number = start // MAX_ATTRIBUTE + 1
            yield name if number == 1 else f"{name}.{number}", value[start : start + MAX_ATTRIBUTE]
