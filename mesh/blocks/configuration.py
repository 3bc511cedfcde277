"""Configuration: values that are read by key, and whose changes are told to the application.

A subscription is held by the node beside the application: it knows a digest of each value that was told, and asks the
component, wherever that is, to answer when one is no longer right. While the application is away nobody asks; when it
is back it is told what has changed meanwhile. A gateway that restarts without its application goes on where the one
before has ended, as far as that has outlived it (`mesh/blocks/remembered.py`).

Source: Dapr 1.18, the configuration API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast
from urllib.parse import quote

import orjson

from mesh.application import Application
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.blocks.components import ComponentService
from mesh.blocks.configuration_store import (
    GET,
    SET,
    WATCH,
    ConfigurationItem,
    ConfigurationStore,
    ConfigurationStoreComponent,
    Get,
    KeyValueConfigurationStore,
    Set,
    Watch,
    digest,
)
from mesh.blocks.following import SUBSCRIBE_STREAM, Follow, Followed, ToStream, follow
from mesh.blocks.records import on_backbone
from mesh.blocks.remembered import Subscribed
from mesh.delivery import SUCCESS, Attempt, Outcome
from mesh.errors import BadArgumentError, CircuitOpenError, MeshError, NotSpokenError, StreamEndedError
from mesh.guard import Guard
from mesh.operation import Arrival, Context, Method, Operation
from mesh.pipeline import InboundHandler
from mesh.policies import Policy, Timeout, Verdict
from mesh.registry import CONFIGURATION_ON_BACKBONE
from mesh.resources.component import Component
from mesh.spans import SpanKind
from mesh.streams import DRAINS
from mesh.tasks import task_group
from mesh.telemetry import UNTOLD, who_answered

__all__ = [
    "BLOCK",
    "GET",
    "SET",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "WATCH",
    "ConfigurationItem",
    "ConfigurationStore",
    "Get",
    "Set",
    "Watch",
    "described",
]

logger = logging.getLogger(__name__)

MAX_SUBSCRIPTIONS = 100
TELL_SECONDS = 60.0
MAX_REPLACED = 100
TAKE_OVER_SECONDS = 1.0
# There is no such path, or nothing is posted to it.
NOT_THERE = (404, 405, 501)

SUBSCRIBE = Method("configuration", "subscribe", Get, str)
UNSUBSCRIBE = Method("configuration", "unsubscribe", str, bool, guarded=False)
NO_CALLBACK = (
    "this application has no callback for a configuration: it follows one by SubscribeConfiguration, over gRPC"
)


def described(item: ConfigurationItem | None) -> dict[str, object]:
    """Give what an application is told of a value; what is empty is left out, and nothing is told of none."""
    if item is None:
        return {}
    told = {"value": item.value, "version": item.version, "metadata": item.metadata}
    return {name: value for name, value in told.items() if value}


@dataclass(eq=False, slots=True)
class _Subscription(Followed):
    """What the application asked to be told.

    Attributes:
        session: When it was made; the application was away between one and another. -1 = by a gateway before.
        restored: Whether it was made by a gateway before, and the application has not taken anything since.
    """

    session: int = -1
    restored: bool = False


@dataclass(slots=True)
class _Session:
    """The time in which the application is there."""

    application: Application
    tasks: asyncio.TaskGroup
    ways: dict[str, tuple[Policy, Guard, InboundHandler]] = field(default_factory=dict)


class Configuration:
    """The building block: reads for whoever asks, and follows changes for this node's application."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Use open components."""
        self.components = components
        self._service = ComponentService(block, parts, components)
        self._parts = parts
        self._subscriptions: dict[str, _Subscription] = {}
        self._streams: dict[str, Followed] = {}
        self._replaced: dict[str, None] = {}  # Ids that the application may still have.
        self._session: _Session | None = None
        self._sessions = 0
        self.find = self._service.find

    async def run(self, operation: Operation) -> object:
        """Do what is asked: here, or where the component is; subscriptions are always here."""
        if operation.method is SUBSCRIBE:
            return await self._subscribe(operation)
        if operation.method is UNSUBSCRIBE:
            return await self._unsubscribe(cast("str", operation.arguments))
        if operation.method is SUBSCRIBE_STREAM:
            await self._stream(operation)
            return None
        return await self._service.run(operation)

    def described(self) -> Mapping[str, object]:
        """Add nothing to the node's description."""
        return {}

    async def _subscribe(self, operation: Operation) -> str:
        """Begin with the values of now, which are not told; give the subscription's id.

        Raises:
            NotSpokenError: The application cannot be told.
            BadArgumentError: There are too many values, or subscriptions.
            MeshError: The component cannot be watched.
        """
        application = self._parts.application
        if application is not None and "change" not in application.kinds:
            raise NotSpokenError(NO_CALLBACK)
        asked = cast("Get", operation.arguments)
        found = await self._now(operation, Watch(asked.keys, asked.metadata))
        known = {key: digest(item) for key, item in found.items() if item is not None}
        self._restore()
        made = _Subscription(operation.target, asked, operation.context, known, session=self._sessions)
        equal = [each for each in self._subscriptions.values() if (each.store, each.wanted) == (made.store, asked)]
        for each in equal:
            # An application that was away subscribes again, and has forgotten the one before, or perhaps not.
            if each.session != made.session or len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
                self._end(each)
                self._replace(each.id)
        oldest = next((each for each in self._subscriptions.values() if each.restored), None)
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS and oldest is not None:
            # Perhaps nobody has it any more, and the application does not know what to end.
            self._end(oldest)
            logger.warning("configuration %s: a subscription of before the gateway's restart makes room", oldest.store)
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            raise BadArgumentError(f"an application has at most {MAX_SUBSCRIPTIONS} subscriptions; end some")
        self._subscriptions[made.id] = made
        self._start(made)
        await self.remember()
        return made.id

    async def _unsubscribe(self, subscription_id: str) -> bool:
        """End a subscription; tell whether there is one, or was one that another took the place of."""
        if subscription_id in self._streams:
            self._streams[subscription_id].stop()
            return True
        self._restore()
        found = self._subscriptions.get(subscription_id)
        if found is not None:
            self._end(found)
        elif subscription_id in self._replaced:
            del self._replaced[subscription_id]
        else:
            return False
        await self.remember()
        return True

    async def _stream(self, operation: Operation) -> None:
        """Tell whoever holds a stream open of changes from now on, until that or the subscription ends.

        Raises:
            StreamEndedError: The node drains.
            MeshError: The component cannot be watched.
        """
        asked, store, streams = cast("Follow", operation.arguments), operation.target, self._parts.streams
        with streams.one():
            found = await self._ask(store, Watch(asked.wanted.keys, asked.wanted.metadata), operation.context)
            known = {key: digest(item) for key, item in found.items() if item is not None}
            followed = Followed(store, asked.wanted, operation.context, known)
            self._streams[followed.id] = followed
            try:
                await asked.send(followed.id, {})
                async with task_group() as tasks:
                    following = follow(followed, self._ask, ToStream(followed, asked.send))
                    followed.task = tasks.create_task(following, name="configuration-follow")
                    ending = tasks.create_task(streams.ending.wait(), name="configuration-ending")
                    await asyncio.wait([followed.task, ending], return_when=asyncio.FIRST_COMPLETED)
                    followed.stop()
                    ending.cancel()
            finally:
                del self._streams[followed.id]
            if streams.ending.is_set():
                raise StreamEndedError(DRAINS)

    def _end(self, subscription: _Subscription) -> None:
        self._subscriptions.pop(subscription.id, None)
        subscription.stop()

    def _replace(self, subscription_id: str) -> None:
        self._replaced[subscription_id] = None
        if len(self._replaced) > MAX_REPLACED:
            del self._replaced[next(iter(self._replaced))]

    # What outlives this node

    def _restore(self) -> bool:
        """Take up what the application's gateway before had; tells whether another gateway still has it."""
        memory = self._parts.memory
        if memory is None:
            return False
        try:
            found = memory.take(make=bool(self._subscriptions))
        except BlockingIOError:
            return True
        if found is None:
            return False
        for subscription_id in found.replaced:
            self._replace(subscription_id)
        count, new = 0, [(each.store, each.wanted) for each in self._subscriptions.values()]
        for each in found.subscriptions:
            wanted = Get(each.keys, each.metadata)
            if (each.store, wanted) in new:
                self._replace(each.id)
                continue
            if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
                logger.warning("configuration %s: a subscription of before ends, there are too many", each.store)
                continue
            context = Context(self._parts.caller)
            restored = _Subscription(each.store, wanted, context, each.known, each.id, restored=True)
            self._subscriptions[each.id] = restored
            self._start(restored)
            count += 1
        if count:
            logger.info("configuration: subscriptions that go on after the gateway's restart: %d", count)
        return False

    async def remember(self) -> None:
        """Have the subscriptions outlive this node, as they are now."""
        if self._parts.memory is None or self._restore():
            return
        subscriptions = [
            Subscribed(each.id, each.store, each.wanted.keys, each.wanted.metadata, each.known)
            for each in self._subscriptions.values()
        ]
        await self._parts.memory.keep(subscriptions, tuple(self._replaced))

    async def _take_over(self) -> None:
        """Wait until another gateway no longer serves the application, as one that is just ending."""
        while self._restore():  # noqa: ASYNC110 - the kernel tells nobody that a lock is free
            await asyncio.sleep(TAKE_OVER_SECONDS)
        await self.remember()

    async def _now(self, operation: Operation, asked: Watch) -> Mapping[str, ConfigurationItem | None]:
        """Ask for the values of now: as a part of what is asked, around which the component's policy is already."""
        context = Context(operation.context.caller)
        part = Operation(WATCH, operation.target, asked, context, operation.deadline, waits=operation.waits)
        return cast("Mapping[str, ConfigurationItem | None]", await self._service.run(part))

    async def _ask(self, store: str, asked: Watch, context: Context) -> Mapping[str, ConfigurationItem | None]:
        operation = Operation(WATCH, store, asked, Context(context.caller))
        return cast("Mapping[str, ConfigurationItem | None]", await self._parts.run(operation))

    # Towards the application

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Follow the application's subscriptions."""
        return [Held("configuration changes", None, self._served(inbound.application))]

    @asynccontextmanager
    async def _served(self, application: Application) -> AsyncIterator[None]:
        async with task_group() as tasks:
            waits = self._restore()
            self._session = _Session(application, tasks)
            taking_over = tasks.create_task(self._take_over(), name="configuration-take-over") if waits else None
            for each in self._subscriptions.values():
                each.stopped = False
                self._start(each)
            try:
                yield
            finally:
                self._session = None
                self._sessions += 1
                if taking_over is not None:
                    taking_over.cancel()
                for each in self._subscriptions.values():
                    each.stop()

    def _start(self, subscription: _Subscription) -> None:
        if self._session is not None:
            following = follow(subscription, self._ask, _ToApplication(self, subscription, self._session))
            subscription.task = self._session.tasks.create_task(following, name="configuration-follow")

    async def drop(self, subscription: _Subscription, reason: str) -> None:
        """End, from within what follows it, a subscription that nobody seems to have any more."""
        subscription.stopped = True
        self._subscriptions.pop(subscription.id, None)
        text = "configuration %s: a subscription of before the gateway's restart ends: %s"
        logger.warning(text, subscription.store, reason)
        await self.remember()

    async def tell(
        self, subscription: _Subscription, session: _Session, key: str, item: ConfigurationItem | None
    ) -> Attempt:
        """Tell the application of one key."""
        store = subscription.store
        policy = self._parts.policies.for_component(store, "configuration", "inbound")
        if store not in session.ways or session.ways[store][0] != policy:
            session.ways[store] = policy, *self._way(store, policy, session.application)
        _, guard, deliver = session.ways[store]
        body = orjson.dumps({"id": subscription.id, "items": {key: described(item)}})
        span = self._parts.tracing.span(None)  # Who asked to be told has long had its answer.
        arrival = Arrival({}, None, (f"/configuration/{quote(store)}/{quote(key)}", span, body))
        try:
            with self._begun(subscription, span):
                return cast("Attempt", await guard.run(lambda: deliver(arrival), partial(_judge, subscription)))
        except MeshError as error:
            return Attempt(Outcome.RETRY, str(error))

    def _begun(self, subscription: _Subscription, span: str) -> AbstractContextManager[object]:
        tracing, asked = self._parts.tracing, subscription.context.traceparent
        if not tracing.records(span):
            return UNTOLD
        name, links = f"configuration/{subscription.store}", (asked,) if asked else ()
        return tracing.begin(span, None, name, SpanKind.CLIENT, {"db.name": subscription.store}, links=links)

    def _way(self, store: str, policy: Policy, application: Application) -> tuple[Guard, InboundHandler]:
        """Make the way to the application for a component's changes."""
        policy = replace(policy, timeout=policy.timeout or Timeout(TELL_SECONDS))
        inbound = self._parts.inbound

        async def call(arrival: Arrival) -> Attempt:
            path, span, body = arrival.what
            headers = [("Content-Type", "application/json"), *([("traceparent", span)] if span else [])]
            if arrival.passing is not None:
                arrival.passing.asked("POST", path, headers, body)
            status, answer = await application.post(path, headers, body, "change")
            if arrival.passing is not None:
                arrival.passing.answered(status, body=answer)
            reason = who_answered(status)
            return SUCCESS if status == 200 else Attempt(Outcome.RETRY, reason, status)

        labels = "change", store
        # Made first: the condition's breaker is that of the second.
        guard = Guard(Policy(retry=policy.retry), inbound.conditions.of(*labels))
        return guard, inbound.towards(call, *labels, policy=policy, until_reachable=application.until_reachable)


@dataclass(frozen=True, slots=True)
class _ToApplication:
    """Tells the application by its callback."""

    block: Configuration
    subscription: _Subscription
    session: _Session

    async def tell(self, key: str, item: ConfigurationItem | None) -> bool:
        """Tell of one change; what the application answers is logged, unless that is 200."""
        attempt = await self.block.tell(self.subscription, self.session, key, item)
        if _unknown(self.subscription, attempt.status):
            await self.block.drop(self.subscription, attempt.reason)
            return False
        if attempt.outcome is Outcome.SUCCESS:
            self.subscription.restored = False
        else:
            text = "configuration %s: the change of %.100r was not taken: %s"
            logger.warning(text, self.subscription.store, key, attempt.reason)
        return True

    async def told(self) -> None:
        """Have that outlive the node."""
        await self.block.remember()

    async def missing(self, reason: str) -> bool:
        """Give up what perhaps nobody has any more."""
        if self.subscription.restored:
            await self.block.drop(self.subscription, f"nobody has had the component for long: {reason}")
        return not self.subscription.restored


def _judge(subscription: _Subscription, result: object, error: MeshError | None) -> Verdict:
    """Say what an attempt came to; one that nobody is subscribed to any more is the last."""
    if not isinstance(result, Attempt):
        return Verdict(worked=False, again=not subscription.stopped and not isinstance(error, CircuitOpenError))
    worked = result.outcome is Outcome.SUCCESS
    over = worked or subscription.stopped or _unknown(subscription, result.status)
    return Verdict(worked, not over, result.status)


def _unknown(subscription: _Subscription, status: int | None) -> bool:
    """Tell whether an answer says that the application of now knows nothing of a subscription made for one before."""
    return subscription.restored and status in NOT_THERE


async def open_store(component: Component, parts: Parts) -> ConfigurationStoreComponent:
    """Open a configuration store component; raises ``ConfigError``."""
    store: ConfigurationStore
    if component.type == CONFIGURATION_ON_BACKBONE:
        key_value = await on_backbone(component, parts, "configuration.redis")
        store = await parts.stack.enter_async_context(KeyValueConfigurationStore(key_value))
    else:
        adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
        store = await parts.stack.enter_async_context(adapter)
    return ConfigurationStoreComponent(store)


BLOCK = Block(
    "configuration",
    (GET, WATCH, SET),  # What others may ask; subscriptions are of this node's application alone.
    Configuration,
    kind="configuration",
    open=open_store,
    hosted=True,
    policy=lambda policies, target: policies.for_component(target, "configuration", "outbound"),
    called="configstore",
)
