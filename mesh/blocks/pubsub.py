"""Publish and subscribe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, cast

from mesh import address, telemetry
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.blocks.components import ComponentService
from mesh.blocks.consumer import Consumer, SubscriptionSettings, is_broadcast
from mesh.blocks.event_stream import SUBSCRIBE_STREAM, EventStream, SubscribeStream
from mesh.blocks.inbox import Inbox
from mesh.blocks.native import ContentMode, NativeWire
from mesh.blocks.proofs import Proofs
from mesh.blocks.records import RECORD_SECONDS, LazyRecords
from mesh.blocks.topic_scopes import SETTINGS, TopicScopes
from mesh.blocks.topics import BULK_PUBLISH, PUBLISH, BulkPublish, Publish, PubSubComponent, Route, capabilities
from mesh.blocks.wire import MeshWire, Wire
from mesh.broker import Backlog, Broker, Delivery, SubscribeOptions, Topology
from mesh.delivery import Attempt, Counted, Outcome, Settlement
from mesh.errors import (
    BadArgumentError,
    ComponentNotFoundError,
    MeshError,
    PermissionDeniedError,
    StreamEndedError,
    UnprovenError,
)
from mesh.expressions import compile_match
from mesh.observed import observed_broker
from mesh.registry import PUBSUB_ON_BACKBONE
from mesh.resources.component import MetadataEntry
from mesh.resources.subscription import BROKERS_OWN, Subscription, combined
from mesh.scopes import in_scope
from mesh.streams import DRAINS
from mesh.tasks import only_error, until_any

if TYPE_CHECKING:
    from mesh.application import Application
    from mesh.life import Life
    from mesh.operation import Operation
    from mesh.policies import Policy, Retry
    from mesh.registry import Registry
    from mesh.resources.component import Component

__all__ = ["BLOCK", "PubSub", "broker_of", "component_on"]

logger = logging.getLogger(__name__)

MAX_TOPICS = 500
LEAVE_SECONDS = 10.0
AGAIN_SECONDS = 1.0
MAX_LETTERED = 1000
GROUP_SETTINGS = ("consumerID",)


class PubSub:
    """The building block: publishes for whoever asks, subscribes for this node's application."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Use open components."""
        self._service = ComponentService(block, parts, components)
        self.components = cast("Mapping[str, PubSubComponent]", components)
        self._app_id = parts.caller.app_id
        self._parts = parts
        self._handled = LazyRecords("mesh:deduplication", parts.records, RECORD_SECONDS)
        self._published: dict[tuple[str, str], None] = {}
        self._subscriptions: list[Subscription] = []
        self._streaming: dict[EventStream, Subscription] = {}
        self._lettered: set[tuple[str, str]] = set()  # Letters may come when what they are of has ended.
        # Longer than an application lives: it may have ended in the middle.
        self._counted: dict[str, tuple[object, Counted]] = {}
        self.find = self._service.find
        parts.topics.give(self.taking)

    async def run(self, operation: Operation) -> object:
        """Publish, or hand events to a stream for as long as that lasts."""
        if operation.method is SUBSCRIBE_STREAM:
            await self._stream(operation)
            return None
        result = await self._service.run(operation)
        topic = operation.target, cast("Publish | BulkPublish", operation.arguments).topic
        if topic not in self._published and len(self._published) < MAX_TOPICS:
            self._published[topic] = None
        return result

    def described(self) -> Mapping[str, object]:
        """Tell of subscriptions, and of topics that were published to since the start, at most 500."""
        streaming = [each for each in self._streaming.values() if each not in self._subscriptions]
        subscriptions = (*self._subscriptions, *dict.fromkeys(streaming))
        return {"subscriptions": subscriptions, "published": tuple(sorted(self._published))}

    def backlogs(self) -> list[tuple[str, str, Callable[[], Awaitable[Backlog]]]]:
        """Give what tells how much a subscription has before it, by component and topic, where its broker can."""
        found: list[tuple[str, str, Callable[[], Awaitable[Backlog]]]] = []
        for each in dict.fromkeys((*self._subscriptions, *self._streaming.values())):
            component = self.components.get(each.pubsub)
            backlog = getattr(component and component.broker, "backlog", None)  # Of a ``Measurable`` one.
            if component is None or backlog is None or is_broadcast(each):
                continue
            try:
                options = SubscriptionSettings.read(each, component).options
            except ValueError:  # It was told, and is not subscribed.
                continue
            where = component.address(each.topic, pattern=component.broker.features.wildcard)
            found.append((each.pubsub, each.topic, partial(backlog, where, options)))
        return found

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Give a subscription for each topic: the application's own replace declared ones."""
        own, problems = combined(self._usable(inbound.subscriptions))
        for problem in problems:
            logger.warning("%s", problem)
        chosen = {(each.pubsub, each.topic): each for each in own}
        together: dict[tuple[str, str], str] = {}
        declared = self._usable(self._parts.subscriptions)
        for each in declared:
            key, what = (each.pubsub, each.topic), f"{each.pubsub}/{each.topic}"
            if key in chosen:
                logger.info("%s: the application's own subscription replaces the declared %s", what, each.told)
            elif key in together:
                logger.info("%s: the rules of %s apply after those of %s", what, each.told, together[key])
            together.setdefault(key, each.told)
        for each in combined(declared)[0]:  # What they differ in was refused at start.
            chosen.setdefault((each.pubsub, each.topic), each)
        self._subscriptions = list(chosen.values())
        return [self._held(each, inbound.application) for each in self._subscriptions]

    def _held(self, subscription: Subscription, application: Application) -> Held:
        """Say what a subscription depends on; one that broadcasts has nothing that keeps events while it is changed."""
        name = subscription.pubsub
        component = self.components[name]
        policy = self._inbound_policy(name)
        context = self._subscribed(subscription, component, policy, self._parts.lives[name], application)
        overlaps = is_broadcast(subscription)
        return Held(f"{name}/{subscription.topic}", (subscription, component, policy), context, overlaps)

    def _inbound_policy(self, pubsub: str) -> Policy:
        return self._parts.policies.for_component(pubsub, "pubsub", "inbound")

    def _usable(self, subscriptions: Sequence[Subscription]) -> list[Subscription]:
        """Leave out what is for other applications, or on a component that is not there."""
        usable = [each for each in subscriptions if in_scope(each.scopes, self._app_id)]
        for name in sorted({each.pubsub for each in usable} - self.components.keys()):
            logger.warning("subscription to %s: no such pub/sub component", name)
        return [each for each in usable if each.pubsub in self.components]

    @asynccontextmanager
    async def _subscribed(
        self,
        subscription: Subscription,
        component: PubSubComponent,
        policy: Policy,
        life: Life,
        application: Application,
    ) -> AsyncIterator[None]:
        """Subscribe; what cannot be subscribed to is reported and left out, as Dapr does."""
        with life:
            async with AsyncExitStack() as stack:
                try:
                    subscribing = self._subscribe(subscription, component, policy, application)
                    await stack.enter_async_context(subscribing)
                    logger.info("subscribed to %s/%s", subscription.pubsub, subscription.topic)
                except (MeshError, ValueError) as error:
                    if isinstance(error, MeshError) and error.retryable:
                        raise
                    logger.warning("cannot subscribe to %s/%s: %s", subscription.pubsub, subscription.topic, error)
                yield

    @asynccontextmanager
    async def _subscribe(
        self, subscription: Subscription, component: PubSubComponent, policy: Policy, application: Application
    ) -> AsyncIterator[None]:
        """Deliver a subscription's events to the application.

        Raises:
            PermissionDeniedError: A scope refuses the topic.
            BrokerError: The broker could not start it.
        """
        if not component.scopes.may_subscribe(self._app_id, subscription.topic):
            raise PermissionDeniedError(f"topic {subscription.topic} is not allowed for app id {self._app_id}")
        settings = SubscriptionSettings.read(subscription, component)
        self._tell_useless(subscription, component)
        letters = subscription.dead_letter_topic
        if letters and len(self._lettered) < MAX_LETTERED:
            self._lettered.add((component.name, letters))
        if component.proofs is not None and letters and not component.scopes.may_publish(self._app_id, letters):
            text = "app id %s may not publish to %s: who reads dead letters there does not believe that they are"
            logger.warning(text, self._app_id, letters)
        consumer = Consumer(
            component,
            subscription,
            _routes(subscription),
            application,
            raw=settings.raw,
            accepts_unproven=settings.accepts_unproven,
            inbox=self._inbox(component, subscription, settings),
            holds_letters=lambda topic: settings.dead_letters or self._gets_letters(component.name, topic),
        )
        label = f"{component.name}/{subscription.topic}"
        deliver = self._parts.inbound.towards(
            lambda arrival: consumer.attempt(arrival.what, arrival.passing),
            "event",
            label,
            policy=policy,
            until_reachable=application.until_reachable,
        )
        condition = self._parts.inbound.conditions.of("event", label)
        condition.resource = policy.resource
        condition.advice = 'the answer {"status":"DROP"} or 404 ends it, see docs/pubsub.md'
        give_up = consumer.dead_letter if letters else consumer.reject if component.broker.features.rejects else None
        settlement = Settlement(
            deliver,
            retry=policy.retry,
            dead_letter=give_up,
            count=consumer.count,
            ack_wait=settings.options.ack_wait,
            condition=condition,
            counted=self._counts(label, policy.retry, dead_letter=give_up is not None),
            taps=self._parts.taps,
        )
        where = component.address(subscription.topic, pattern=component.broker.features.wildcard)
        subscribed = component.broker.subscribe(where, settings.options, settlement)
        async with consumer.batching(), settlement.extending(), subscribed:
            yield

    async def _stream(self, operation: Operation) -> None:
        """Subscribe for a stream until it ends, also while its component is changed and its broker fails.

        Raises:
            StreamEndedError: The node drains.
            MeshError: It cannot be subscribed, or its component was removed.
        """
        asked, name, streams = cast("SubscribeStream", operation.arguments), operation.target, self._parts.streams
        stream, subscription = asked.stream, asked.subscription(operation.target)
        try:
            with streams.one():
                while not stream.ended.is_set():
                    component = cast("PubSubComponent", await self.find(name, operation.context.caller))
                    try:
                        with only_error():
                            await self._stream_from(component, subscription, stream)
                    except MeshError as error:
                        if not (error.retryable and stream.begun.is_set()):
                            raise
                        logger.warning("a stream of %s/%s fails, trying again: %s", name, asked.topic, error)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(AGAIN_SECONDS):
                                await until_any(stream.ended, streams.ending)
                    if streams.ending.is_set():
                        raise StreamEndedError(DRAINS)
        finally:
            self._streaming.pop(stream, None)
            stream.end()

    async def _stream_from(self, component: PubSubComponent, subscription: Subscription, stream: EventStream) -> None:
        """Subscribe until the stream ends, or its component or policy is another; what is in flight is finished."""
        name, streams = component.name, self._parts.streams
        policy = self._inbound_policy(name)
        limit = asyncio.timeout(None)
        try:
            with self._parts.lives[name]:
                async with limit, self._subscribe(subscription, component, policy, stream):
                    self._streaming[stream] = subscription
                    stream.begun.set()
                    over = (stream.ended, component.leaving, streams.ending)
                    while not any(each.is_set() for each in over) and policy == self._inbound_policy(name):
                        await until_any(*over, streams.renewed)
                    if not streams.ending.is_set():  # When the node drains, it knows how long that may take.
                        limit.reschedule(asyncio.get_running_loop().time() + LEAVE_SECONDS)
        except TimeoutError:
            if not limit.expired():
                raise
        except ValueError as error:
            raise BadArgumentError(str(error)) from None

    def _gets_letters(self, pubsub: str, topic: str) -> bool:
        """Tell whether a subscription of this application has, or had, its dead letters there."""
        every = chain(self._subscriptions, self._streaming.values())
        declared = any(each.dead_letter_topic == topic and each.pubsub == pubsub for each in every)
        return declared or (pubsub, topic) in self._lettered

    def _counts(self, label: str, retry: Retry | None, *, dead_letter: bool) -> Counted:
        """Give what counts attempts; it goes on for as long as what it depends on is the same."""
        made_of = retry, dead_letter
        kept = self._counted.get(label)
        if kept is None or kept[0] != made_of:
            kept = self._counted[label] = made_of, Counted(retry, dead_letter=dead_letter)
        return kept[1]

    @asynccontextmanager
    async def taking(
        self, pubsub: str, topic: str, group: str, attempt: Callable[[Delivery], Awaitable[Attempt]]
    ) -> AsyncIterator[asyncio.Event]:
        """Take a topic's messages for another block of this node; see ``Taking``."""
        component = self.components.get(pubsub)
        if component is None:
            raise ComponentNotFoundError(pubsub, f"this node has no pubsub component {pubsub!r}")
        labels, options, proofs = ("event", f"{pubsub}/{topic}"), SubscribeOptions(group), component.proofs

        async def attempt_own(delivery: Delivery) -> Attempt:
            if proofs is not None:
                try:
                    proofs.check_own(component.wire.signed(delivery))
                except UnprovenError as error:
                    return Attempt(Outcome.DROP, str(error))
            return await attempt(delivery)

        settlement = Settlement(
            self._parts.inbound.towards(lambda arrival: attempt_own(arrival.what), *labels),
            retry=None,
            dead_letter=None,
            count=lambda outcome: None,
            ack_wait=options.ack_wait,
            condition=self._parts.inbound.conditions.of(*labels),
        )
        subscribed = component.broker.subscribe(component.address(topic), options, settlement)
        with self._parts.lives[pubsub]:
            async with settlement.extending(), subscribed:
                yield component.leaving

    @staticmethod
    def _tell_useless(subscription: Subscription, component: PubSubComponent) -> None:
        """Log what a subscription says to brokers of another kind."""
        known = {name.casefold() for name in component.broker.features.subscribe_metadata}
        useless = [name for name in subscription.metadata if name.casefold() in BROKERS_OWN.keys() - known]
        if useless:
            text = "subscription to %s/%s: the metadata %s have no effect on %s, %s layout"
            features, told = component.broker.features, ", ".join(map(repr, sorted(useless)))
            logger.warning(text, component.name, subscription.topic, told, features.name, features.layout)

    def _inbox(
        self, component: PubSubComponent, subscription: Subscription, settings: SubscriptionSettings
    ) -> Inbox | None:
        """Deduplicate, if the subscription asks for it."""
        if settings.deduplicate <= 0:
            return None
        observer, labels = component.observer, (component.name, subscription.topic)
        return Inbox(
            self._handled,
            f"{component.name}/{subscription.topic}/{settings.options.group}",
            settings.deduplicate,
            component.broker.features.event_prefix,
            lambda: observer(telemetry.EVENTS_DUPLICATE, labels),
        )


def _routes(subscription: Subscription) -> list[Route]:
    routes = [
        Route(compile_match(rule.match) if rule.match else None, rule.path, rule.place) for rule in subscription.rules
    ]
    if subscription.default_path is not None:
        routes.append(Route(None, subscription.default_path))
    return routes


def broker_of(component: Component, app_id: str, registry: Registry) -> tuple[Broker, str]:
    """Make the broker of a component that is not on the backbone, which is not entered yet, and name its group.

    Raises:
        ConfigError: Its settings are wrong.
    """
    adapter = registry.load(component.type, component.known("layout"))
    groups: Sequence[str] = getattr(adapter, "group_settings", GROUP_SETTINGS)
    if getattr(adapter, "told_group", False) and not component.setting(groups[0]):
        given = MetadataEntry(groups[0], app_id)
        component = replace(component, metadata=(*component.metadata, given))
    built: Broker = adapter.from_component(component)  # type: ignore[attr-defined]  # as entry points promise
    return built, _group(component, groups, app_id)


def _group(component: Component, settings: Sequence[str], app_id: str) -> str:
    return next(filter(None, map(component.setting, settings)), app_id)


def component_on(broker: Broker, component: Component, namespace: str, group: str) -> PubSubComponent:
    """Describe a component on its broker, which is entered, for whoever proves and counts nothing."""
    wire: Wire = MeshWire(broker.features, component.name)
    if broker.features.layout == "native":
        mode = component.setting("cloudevents") or "structured"  # The adapter has read it, and refused another one.
        wire = NativeWire(broker.features, component.name, cast("ContentMode", mode.strip().lower()))
    return PubSubComponent(
        name=component.name,
        broker=broker,
        wire=wire,
        scopes=TopicScopes.from_component(component),
        group=group,
        namespace=namespace,
        topic_prefix=namespace if component.namespaced else "",
    )


async def open_pubsub(component: Component, parts: Parts) -> PubSubComponent:
    """Open a pub/sub component.

    Raises:
        ConfigError: Its settings are wrong.
    """
    caller, broker = parts.caller, parts.broker
    group = _group(component, GROUP_SETTINGS, caller.app_id)
    on_backbone = component.type == PUBSUB_ON_BACKBONE
    if not on_backbone:
        built, group = broker_of(component, caller.app_id, parts.registry)
        broker = observed_broker(await parts.stack.enter_async_context(built), parts.own_observer, component.name)
    space = address.topic(caller.namespace, component.name, "x").space
    from mesh.large import carrying  # Who only names a block needs none of it.

    broker = carrying(broker)
    await broker.declare(Topology(space=space))
    made, guard = component_on(broker, component, caller.namespace, group), parts.exchange.guard
    proofs = None if guard is None else Proofs(guard.kept, caller, on_backbone, space, made.topic_prefix, made.scopes)
    return replace(made, tracing=parts.tracing, observer=parts.observer, proofs=proofs)


BLOCK = Block(
    "pubsub",
    (PUBLISH, BULK_PUBLISH),
    PubSub,
    kind="pubsub",
    open=open_pubsub,
    settings=SETTINGS,
    check=TopicScopes.from_component,
    policy=lambda policies, target: policies.for_component(target, "pubsub", "outbound"),
    called="pubsub",
    abilities=lambda adapter: capabilities(adapter.features) if hasattr(adapter, "features") else (),
)
