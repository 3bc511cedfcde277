"""The composition root: builds a node from its settings, starts it, drains it, stops it.

Start: connect the backbone → open components → declare → exchange and directory → blocks (outbound
calls work from here on) → wait for the application → read its subscriptions → serve and subscribe.
Stop is the reverse: no more fetching, what is in flight finishes, the rest is released; then the
caller closes HTTP, and leaving the runtime flushes and closes the brokers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mesh import address, telemetry
from mesh.application import Application
from mesh.blocks.durable import CALLS, DurableInvocation
from mesh.blocks.invocation import Invocation
from mesh.blocks.pubsub import PubSub, PubSubComponent, Route
from mesh.blocks.state import KeyValueStateStore, State, StateStore, StateStoreComponent, key_prefix
from mesh.broker import Broker, KeyValue, KeyValueProvider, Losable, Topology
from mesh.calls.exchange import Exchange
from mesh.errors import ConfigError, FeatureNotSupportedError, MeshError, Problem
from mesh.expressions import compile_match
from mesh.file_key_value import FileKeyValue
from mesh.guard import Guard
from mesh.node.description import described
from mesh.node.directory import Directory
from mesh.registry import BACKBONE_TYPES, PUBSUB_ON_BACKBONE, STATE_ON_BACKBONE, Registry
from mesh.resources.component import Component, TemplateTokens
from mesh.resources.configuration import Configuration
from mesh.resources.resiliency import Resiliency, ResiliencyPolicies
from mesh.resources.subscription import Subscription
from mesh.scopes import TopicScopes, in_scope
from mesh.tasks import task_group
from mesh.telemetry import Counters, Tracing
from mesh.urls import without_credentials

__all__ = ["BACKBONE_TYPES", "NodeSettings", "Runtime", "default_components"]

logger = logging.getLogger(__name__)

DEFAULT_SAMPLING_RATIO = 0.0001
SESSION_RETRY = 1.0
DEFAULT_PUBSUB = "pubsub"


def default_components() -> tuple[Component, ...]:
    """Give what a node has when nobody configured anything: pub/sub and state on the backbone."""
    return (Component("pubsub", PUBSUB_ON_BACKBONE), Component("statestore", STATE_ON_BACKBONE))


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node is made of.

    Attributes:
        app_id: The application it serves.
        namespace: The mesh's namespace.
        backbone: URL of the backbone.
        components: In scope or not.
        subscriptions: Declared ones, in scope or not.
        resiliencies: In scope or not.
        configuration: Merged.
        namespace_given: Whether the namespace was set by the user (``keyPrefix: namespace`` asks).
        home: Where a backbone without key/value keeps it in files; None refuses what needs it.
    """

    app_id: str
    namespace: str
    backbone: str
    components: Sequence[Component] = field(default_factory=default_components)
    subscriptions: Sequence[Subscription] = ()
    resiliencies: Sequence[Resiliency] = ()
    configuration: Configuration = field(default_factory=Configuration)
    namespace_given: bool = False
    home: Path | None = None


class Runtime:
    """One node. Entering makes its outbound calls work; ``inbound`` adds its application.

    Attributes:
        methods: What the application answers, where that is known (``mesh/node/description.py``).
    """

    def __init__(self, settings: NodeSettings, registry: Registry) -> None:
        """Prepare; entering connects."""
        self.settings = settings
        self._registry = registry
        self._stack = AsyncExitStack()
        self.counters = Counters()
        self.policies = ResiliencyPolicies(settings.resiliencies, settings.app_id)
        spec = settings.configuration.spec
        ratio = DEFAULT_SAMPLING_RATIO
        if spec.tracing is not None and spec.tracing.sampling_rate is not None:
            ratio = spec.tracing.sampling_rate
        self.tracing = Tracing(ratio)
        self.components: list[Component] = []
        self.subscriptions: list[Subscription] = []
        self.methods: Sequence[str] | None = None
        self.serving = False
        self.broker: Broker
        self.exchange: Exchange
        self.directory: Directory
        self.pubsub: PubSub
        self.state: State
        self.invocation: Invocation
        self.durable: DurableInvocation

    async def __aenter__(self) -> Self:
        """Connect and open everything.

        Raises:
            ConfigError: A component cannot be built; holds all problems.
            BrokerUnavailableError: The backbone does not answer.
        """
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Flush and close."""
        await self._stack.aclose()

    async def _open(self) -> None:
        settings = self.settings
        problems = check(settings, self._registry)
        if problems:
            raise ConfigError(problems)
        scheme = settings.backbone.partition(":")[0]
        adapter = self._registry.load(f"backbone.{scheme}")
        broker: Broker = adapter.from_url(settings.backbone)  # type: ignore[attr-defined]  # what entry points promise
        self.broker = await self._stack.enter_async_context(broker)
        await self._open_components()
        self.exchange = await self._stack.enter_async_context(Exchange(self.broker))
        self.directory = Directory(self.exchange, settings.namespace)
        self.directory.describe = self._describe
        await self._stack.enter_async_context(self.directory.run())
        self.invocation = Invocation(
            self.exchange,
            self.directory,
            app_id=settings.app_id,
            namespace=settings.namespace,
            policy_for=self.policies.for_app,
            counters=self.counters,
        )
        await self.broker.declare(Topology(space=address.topic(settings.namespace, CALLS, "x").space))
        records = await self.key_value("invocations")
        self.durable = DurableInvocation(
            self.broker, records, self._publish_outcome, app_id=settings.app_id, namespace=settings.namespace
        )

    def _describe(self) -> Mapping[str, object]:
        """Tell what this node does, for whoever asks over the mesh."""
        subscribed = [
            (each.pubsub, each.topic, each.dead_letter_topic or "") for each in self.subscriptions if self.serving
        ]
        published = [key[1:3] for key in self.counters.snapshot() if key[0] == telemetry.EVENTS_PUBLISHED]
        return described(
            self.settings.app_id,
            subscriptions=subscribed,
            published=[(component, topic) for component, topic in published],
            methods=self.methods,
            components=[(each.name, each.type) for each in self.components],
        )

    @property
    def backbone(self) -> str:
        """The backbone's URL without credentials."""
        return without_credentials(self.settings.backbone)

    async def until_lost(self) -> str:
        """Return why, once the backbone's connection is over for good; a broker that always reconnects never is."""
        if isinstance(self.broker, Losable):
            return await self.broker.until_lost()
        await asyncio.Event().wait()
        raise AssertionError

    async def _open_components(self) -> None:
        """Open every component in scope; all problems at once."""
        pubsubs: dict[str, PubSubComponent] = {}
        stores: dict[str, StateStoreComponent] = {}
        problems: list[Problem] = []
        for component in self.settings.components:
            if not in_scope(component.scopes, self.settings.app_id):
                continue
            try:
                resolved = component.resolved(self._tokens(), os.environ, {})
                async with asyncio.timeout(component.init_timeout):
                    await self._open_component(resolved, pubsubs, stores)
                self.components.append(resolved)
            except (MeshError, TimeoutError) as error:
                if component.ignore_errors:
                    reason = str(error) or "its start took too long"
                    logger.warning("component %s is left out: %s", component.name, reason)
                elif isinstance(error, ConfigError):
                    problems.extend(error.problems)
                else:
                    reason = str(error) or f"its start took longer than {component.init_timeout:g} s"
                    problems.append(component.problem(f"component {component.name}: {reason}"))
        if problems:
            raise ConfigError(problems)
        self.pubsub = PubSub(
            pubsubs, self.settings.app_id, self.tracing, self.counters, lambda: self.key_value("deduplication")
        )
        self.state = State(stores)

    def _tokens(self) -> TemplateTokens:
        return TemplateTokens(self.settings.app_id, self.settings.namespace, os.environ.get("POD_NAME"))

    async def _open_component(
        self, component: Component, pubsubs: dict[str, PubSubComponent], stores: dict[str, StateStoreComponent]
    ) -> None:
        if component.block == "pubsub":
            pubsubs[component.name] = await self._open_pubsub(component)
        else:
            stores[component.name] = await self._open_state(component)

    async def _open_pubsub(self, component: Component) -> PubSubComponent:
        settings = self.settings
        if component.type == PUBSUB_ON_BACKBONE:
            broker = self.broker
        else:
            adapter = self._registry.load(component.type)
            built: Broker = adapter.from_component(component)  # type: ignore[attr-defined]
            broker = await self._stack.enter_async_context(built)
        await broker.declare(Topology(space=address.topic(settings.namespace, component.name, "x").space))
        original = next(each for each in settings.components if each.name == component.name)
        namespaced = any("{namespace}" in (entry.text() or "") for entry in original.metadata)
        return PubSubComponent(
            name=component.name,
            type=component.type,
            version=component.version,
            broker=broker,
            scopes=TopicScopes.from_component(component),
            group=component.setting("consumerID") or settings.app_id,
            namespace=settings.namespace,
            topic_prefix=settings.namespace if namespaced else "",
            guard=Guard.of(self.policies.for_component(component.name, "pubsub", "outbound")),
            inbound=self.policies.for_component(component.name, "pubsub", "inbound"),
        )

    async def _open_state(self, component: Component) -> StateStoreComponent:
        settings = self.settings
        store: StateStore
        if component.type == STATE_ON_BACKBONE:
            store = KeyValueStateStore(await self.key_value(component.name))
        else:
            store = self._registry.load(component.type)(component)
        prefix = key_prefix(component, settings.app_id, settings.namespace if settings.namespace_given else None)
        guard = Guard.of(self.policies.for_component(component.name, "statestore", "outbound"))
        return StateStoreComponent(component.name, component.type, component.version, store, prefix, guard)

    async def key_value(self, name: str) -> KeyValue:
        """Open a durable store: in the backbone, or, where it has none, in a file of this machine.

        Raises:
            FeatureNotSupportedError: The backbone has none, and there is no place for files.
        """
        full_name = f"{self.settings.namespace}-{name}"
        if isinstance(self.broker, KeyValueProvider) and self.broker.features.key_value:
            return await self.broker.key_value(full_name)
        if self.settings.home is None:
            raise FeatureNotSupportedError(self.broker.features.name, "key/value, and MESH_HOME is not set")
        file = self.settings.home / "state" / f"{address.encode_token(full_name)}.db"
        logger.warning("%s has no key/value: %s is kept in %s, on this machine", self.broker.features.name, name, file)
        return await self._stack.enter_async_context(FileKeyValue(file))

    # Inbound

    @asynccontextmanager
    async def inbound(
        self, application: Application, programmatic: Callable[[], Awaitable[Sequence[Subscription]]]
    ) -> AsyncIterator[None]:
        """Serve and subscribe for the application whenever it is there.

        Leaving stops fetching and waits for what is in flight; cancelled while it waits, it releases the rest.

        Args:
            application: The application beside this gateway.
            programmatic: Reads the application's own subscriptions.
        """
        self.invocation.use_local(application)
        self.directory.host(self.settings.app_id, ready=False)
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            supervising = tasks.create_task(
                self._supervise(application, programmatic, stopping), name="inbound-supervise"
            )
            try:
                yield
            finally:
                stopping.set()
                try:
                    await asyncio.shield(asyncio.wait([supervising]))
                except asyncio.CancelledError:
                    supervising.cancel()
                    raise

    async def _supervise(
        self,
        application: Application,
        programmatic: Callable[[], Awaitable[Sequence[Subscription]]],
        stopping: asyncio.Event,
    ) -> None:
        """Open a session when the application comes, end it when it goes."""
        while await _first(stopping.wait(), application.until_reachable()):
            async with asyncio.TaskGroup() as tasks:
                ended = asyncio.Event()
                session = tasks.create_task(self._sessions(application, programmatic, ended), name="inbound-session")
                if await _first(stopping.wait(), application.until_unreachable(), asyncio.wait([session])):
                    # Deliveries in flight go to other instances at once: this one's application is not there.
                    session.cancel()
                else:
                    ended.set()

    async def _sessions(
        self,
        application: Application,
        programmatic: Callable[[], Awaitable[Sequence[Subscription]]],
        ended: asyncio.Event,
    ) -> None:
        """Keep a session open; one that a broker's failure ends is opened again."""
        while not ended.is_set():
            try:
                await self._session(application, programmatic, ended)
            except* MeshError as group:
                logger.warning("cannot serve the application, trying again: %s", group.exceptions[0])
                await asyncio.sleep(SESSION_RETRY)

    async def _session(
        self,
        application: Application,
        programmatic: Callable[[], Awaitable[Sequence[Subscription]]],
        ended: asyncio.Event,
    ) -> None:
        app_id = self.settings.app_id
        self.subscriptions = self._effective(await programmatic())
        async with task_group() as tasks:
            for subscription in self.subscriptions:
                await _hold(tasks, self._subscribed(subscription, application), ended)
            await _hold(tasks, self.invocation.serve(application), ended)
            await _hold(tasks, self._durable_calls(application), ended)
            self.directory.host(app_id, ready=True)
            self.serving = True
            try:
                await ended.wait()
            finally:
                self.serving = False
                self.directory.host(app_id, ready=False)

    def _durable_calls(self, application: Application) -> AbstractAsyncContextManager[None]:
        def count(outcome: str) -> None:
            self.counters.add(telemetry.DURABLE_CALLS, self.settings.app_id, outcome)

        return self.durable.serve(application, self.policies.for_app(self.settings.app_id), count)

    async def _publish_outcome(self, where: str, event_id: str, body: bytes) -> None:
        """Publish what came of a durable call to ``topic`` or ``component/topic``."""
        name, _, topic = where.rpartition("/")
        component = self.pubsub.components.get(name or DEFAULT_PUBSUB)
        if component is None:
            logger.warning("the outcome of call %s goes nowhere: no pub/sub component %s", event_id, name)
            return
        options = self.pubsub.options(component, topic, {"cloudevent.id": event_id}, None, "")
        await self.pubsub.publish(component, options, "application/json", body)

    @asynccontextmanager
    async def _subscribed(self, subscription: Subscription, application: Application) -> AsyncIterator[None]:
        """Subscribe; what cannot be subscribed to is reported and left out, as Dapr does."""
        async with AsyncExitStack() as stack:
            try:
                routes = _routes(subscription)
                await stack.enter_async_context(self.pubsub.subscribe(subscription, routes, application))
                logger.info("subscribed to %s/%s", subscription.pubsub, subscription.topic)
            except (MeshError, ValueError) as error:
                if isinstance(error, MeshError) and error.retryable:
                    raise
                logger.warning("cannot subscribe to %s/%s: %s", subscription.pubsub, subscription.topic, error)
            yield

    def _effective(self, programmatic: Sequence[Subscription]) -> list[Subscription]:
        """Merge: the application's own replace declared ones; of two of a kind the first counts."""
        chosen: dict[tuple[str, str], Subscription] = {}
        for subscription in [*programmatic, *self.settings.subscriptions]:
            if not in_scope(subscription.scopes, self.settings.app_id):
                continue
            if subscription.pubsub not in self.pubsub.components:
                logger.warning("subscription to %s: no such pub/sub component", subscription.pubsub)
                continue
            chosen.setdefault((subscription.pubsub, subscription.topic), subscription)
        return list(chosen.values())


def check(settings: NodeSettings, registry: Registry) -> list[Problem]:
    """Find what can be known to be wrong without connecting anywhere."""
    problems = [
        component.problem(registry.not_installed(component.type))
        for component in settings.components
        if in_scope(component.scopes, settings.app_id)
        and not component.ignore_errors
        and component.type not in BACKBONE_TYPES
        and registry.find(component.type) is None
    ]
    spec, configuration = settings.configuration.spec, settings.configuration
    refused = {
        "accessControl": spec.access_control is not None,
        "httpPipeline": spec.http_pipeline is not None and bool(spec.http_pipeline.handlers),
        "appHttpPipeline": spec.app_http_pipeline is not None and bool(spec.app_http_pipeline.handlers),
    }
    problems.extend(
        Problem(
            f"{name} is not supported yet, and ignoring it would be unsafe",
            f"spec.{name}",
            configuration.file,
            configuration.line,
            1,
        )
        for name, given in refused.items()
        if given
    )
    denied = {kind.lower() for kind in spec.components.deny} if spec.components is not None else set()
    problems.extend(
        component.problem(f"component type {component.type!r} is denied by Configuration {configuration.name!r}")
        for component in settings.components
        if in_scope(component.scopes, settings.app_id)
        and denied & {component.type, f"{component.type}/{component.version}"}
    )
    return problems


def _routes(subscription: Subscription) -> list[Route]:
    routes = [Route(compile_match(rule.match) if rule.match else None, rule.path) for rule in subscription.rules]
    if subscription.default_path is not None:
        routes.append(Route(None, subscription.default_path))
    return routes


async def _hold(tasks: asyncio.TaskGroup, context: AbstractAsyncContextManager[None], ended: asyncio.Event) -> None:
    """Enter it in a task of its own that leaves it at the end, so that all stop fetching before any has drained."""
    entered = asyncio.Event()

    async def hold() -> None:
        async with context:
            entered.set()
            await ended.wait()

    tasks.create_task(hold(), name="inbound-hold")
    await entered.wait()


async def _first(stop: Awaitable[object], *others: Awaitable[object]) -> bool:
    """Wait for any; tell whether it was another one than ``stop``."""
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(_await(each), name="inbound-wait") for each in (stop, *others)]
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
    return waiting[0] not in done


async def _await(what: Awaitable[object]) -> None:
    await what
