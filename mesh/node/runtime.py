"""A node: builds it from its settings, starts it, stops it.

Start: connect the backbone → exchange and directory → components, secret stores first → blocks and their
pipeline (outbound calls work from here on) → answer for components that are hosted here → wait for the
application → read its subscriptions → serve and subscribe (`mesh/node/inbound.py`).
Stop is the reverse: no more fetching, what is in flight finishes, the rest is released; then the
caller closes HTTP, and leaving the runtime flushes and closes the brokers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import chain
from typing import cast

from mesh import address
from mesh.access import Gate, TapRights
from mesh.application import Application
from mesh.application_config import ApplicationConfig
from mesh.blocks import BLOCKS
from mesh.blocks.block import Block, Opened, Parts, Serving
from mesh.blocks.middleware import check_pipelines
from mesh.blocks.records import RECORD_SECONDS, LazyRecords
from mesh.blocks.remembered import Memory
from mesh.blocks.telling import Telling
from mesh.broker import Broker
from mesh.calls.exchange import Exchange
from mesh.conditions import Conditions
from mesh.errors import BrokerUnavailableError, ConfigError, Problem
from mesh.host import Hosts
from mesh.hosting import Hosting
from mesh.life import Lives
from mesh.node.components import (
    Components,
    Entry,
    check_denied,
    check_installed,
    check_named,
    check_references,
    check_together,
    check_types,
    open_components,
    resolved_entries,
    tell_unanswered,
)
from mesh.node.description import ComponentDescription, NodeDescription
from mesh.node.directory import Directory
from mesh.node.health import ComponentStatus, Health
from mesh.node.inbound import Serve, inbound
from mesh.node.places import Places, file_component
from mesh.node.reload import Endpoints, Live, OpenEndpoint, Resources, Told, sampling_ratio
from mesh.node.remote import Remote
from mesh.node.settings import check_settings
from mesh.node.spec import NodeSettings
from mesh.observed import observed_application, observed_broker
from mesh.operation import Caller, Operation
from mesh.ownership.asking import OWNERS, Owners
from mesh.part import Part
from mesh.pipeline import InboundPipeline, Pipeline
from mesh.policies import Policy
from mesh.registry import PUBSUB_ON_BACKBONE, STATE_ON_BACKBONE, Registry
from mesh.resources.component import Component, MetadataEntry
from mesh.resources.resiliency import ResiliencyPolicies
from mesh.resources.subscription import Subscription, combined
from mesh.scopes import in_scope
from mesh.steps import Steps
from mesh.streams import Streams
from mesh.tap.tapping import Tapped, Tapping
from mesh.tap.wanted import Wanted
from mesh.tap.watches import Watches
from mesh.tasks import drained_within
from mesh.telemetry import Counters, Observer, Tracing, both
from mesh.trust.proving import proving
from mesh.urls import without_credentials
from mesh.workflows.access import Rules

__all__ = ["NodeSettings", "Runtime", "check"]

logger = logging.getLogger(__name__)

HAND_OVER_SECONDS = 2.0  # Where nothing hangs any more it is some milliseconds.
TELL_INTERVAL = 3.0
FIRST_WAIT, LONGEST_WAIT = 0.1, 1.0
LONG_WAIT = 24 * 3600.0  # Beyond that, nobody wants to know how long.


class Runtime(Steps):
    """One node. Entering makes its outbound calls work; ``inbound`` adds its application.

    Attributes:
        run: Passes an operation through the node's pipeline.
        caller: The node's own application.
        counters: Counts of what was observed.
        remote: Asks other nodes, and answers them.
        conditions: How what it asks, and what comes to its application, is now.
        parts: What its blocks are given, for what works beside them (``mesh/bridge``).
        methods: What the application answers, where that is known (``mesh/node/description.py``).
    """

    def __init__(
        self,
        settings: NodeSettings,
        registry: Registry,
        blocks: Sequence[Block] = BLOCKS,
        *,
        grace: Callable[[], float | None] = lambda: None,
        part: Part | None = None,
    ) -> None:
        """Prepare; entering connects.

        Args:
            settings: What it is made of.
            registry: What is installed.
            blocks: The table.
            grace: Gives the seconds for what is in flight at the end; None = as long as its deadlines say.
            part: Which of several processes that are the node this one is; None = it is the node.
        """
        super().__init__()
        self.settings = settings
        self._grace, self._part = grace, part
        self.caller = Caller(settings.namespace, settings.app_id)
        self.counters = settings.observer if isinstance(settings.observer, Counters) else Counters()
        self.conditions = Conditions(settings.observer)
        self._observer: Observer = self.counters
        if settings.observer not in (None, self.counters):
            self._observer = both(self.counters, settings.observer)
        self.methods: Sequence[str] | None = None
        self.broker: Broker
        self.exchange: Exchange
        self.remote: Remote
        self.services: dict[str, Serving] = {}
        self._registry, self._blocks = registry, blocks
        self._components = Components()
        self._health = Health(self._components)
        self._serve = Serve() if part is None else Serve(told=part.serves)
        self.parts: Parts
        self._places: Places
        self._directory: Directory
        self._tapping: Tapping
        self._pipeline: Pipeline
        self._live: Live

    @property
    def tracing(self) -> Tracing:
        """What makes spans on this node."""
        return self.parts.tracing

    @property
    def components(self) -> Mapping[str, Entry]:
        """What is open on this node, by name."""
        return self._components.entries

    @property
    def absent(self) -> Sequence[Component]:
        """What could not be opened."""
        return [each for each, _ in self._components.absent.values() if each.name not in self._components.entries]

    @property
    def others_components(self) -> Sequence[tuple[str, str, str]]:
        """Components of other nodes that this one has used: block, name, and the app ids of their hosts."""
        return self.parts.hosts.used

    @property
    def streams(self) -> Streams:
        """What clients hold open."""
        return self.parts.streams

    @property
    def serving(self) -> bool:
        """Whether the application is served now."""
        return self._serve.serving

    def rights(self, caller: Caller) -> TapRights:
        """Tell what another application may see of this node, and do by it."""
        return self.parts.access.tap(caller)

    def run(self, operation: Operation) -> Awaitable[object]:
        """Do what is asked; gives the method's result or raises a ``MeshError``."""
        return self._pipeline.run(operation)

    def tap(self, wanted: Wanted) -> AbstractAsyncContextManager[AsyncIterator[Tapped]]:
        """Have all nodes tell what passes them; see ``mesh.tap.tapping.Tapping.tap``."""
        return self._tapping.tap(wanted)

    async def _enter(self) -> None:
        """Connect and open everything.

        Raises:
            ConfigError: A component cannot be built; holds all problems.
            BrokerUnavailableError: The backbone does not answer.
        """
        settings, registry, blocks, enter = self.settings, self._registry, self._blocks, self._stack.enter_async_context
        if problems := check(settings, registry, blocks) + check_settings(settings, registry, blocks):
            raise ConfigError(problems)
        address.app(settings.namespace, settings.app_id)  # Names that are too long are refused at start.
        self.broker = await self._connect()
        named = settings.namespace, settings.app_id
        self._places = await enter(Places(self.broker, self._components, registry, settings))
        guard = await enter(proving(settings.trust, *named, registry, self._observer, self.conditions))
        self.exchange = await enter(Exchange(self.broker, guard=guard))
        self._directory = directory = Directory(self.exchange, settings.namespace, part=self._part)
        directory.describe = lambda: self.description.announced(problems=self.rights(self.caller).sights)
        await enter(directory.run())
        self.remote = Remote(self.exchange, directory, self.caller)
        hosts = await enter(Hosts(self.broker, self.exchange, settings.namespace, directory.node_id))
        gate, taps = await self._watched(directory.node_id)
        self.parts = parts = self._make_parts(directory, hosts, gate, taps)
        lives = await enter(Lives())
        hosts.withhold(settings.not_for_it)
        resources = self._resources(settings)
        await open_components(resources.components, self._blocks, parts, self._components, lives)
        here = {each.name: each.start(each, parts, self._of(each, "nearest", "local")) for each in self._blocks}
        self.services.update(here)
        by, observer = self._policy_of if settings.resiliencies else None, self._observer
        self._pipeline = Pipeline(here, policy_of=by, observer=observer, conditions=self.conditions, taps=taps)
        hosted = [each for each in blocks if each.hosted]
        answering = {each.name: each.start(each, parts, self._of(each, "nearest", "backbone")) for each in hosted}
        answer = Pipeline(answering, observer=observer, taps=taps, hosts=True).run
        entries = self._components.entries.values()
        if settings.host_only:
            tell_unanswered(entries)
        hosting = Hosting(self.broker, self.exchange, *named)
        answering_for = hosting.answering([entry.answer(answer, parts.tracing) for entry in entries if entry.hosted])
        await enter(drained_within(answering_for, self._grace, "operations of hosted components"))
        await enter(parts.later.run())  # What is owned is handed over before that ends.
        await enter(drained_within(parts.owners.run(), self._handing_over, "what it owns"))
        self._live = Live(
            app_id=settings.app_id,
            resources=resources,
            parts=parts,
            blocks=self._blocks,
            components=self._components,
            places=self._places,
            endpoints=Endpoints(parts, lives),
            lives=lives,
            hosting=hosting,
            answer=answer,
            pipeline=self._pipeline,
            policies=self._policy_of,
            serve=self._serve,
        )
        self._stack.callback(self._leave)

    async def _watched(self, node: str) -> tuple[Gate, Watches]:
        """Let others see what passes, by the rules, and this node what passes others."""
        settings, access = self.settings, self.settings.configuration.spec.access_control
        proves = settings.trust is not None
        gate = Gate(self.caller, access, self._observer, proves=proves, alone=settings.is_alone)
        taps = Watches(self.caller, gate, Telling(), self._observer)
        await self._stack.enter_async_context(taps.run(self.exchange, node))
        self._tapping = Tapping(self.exchange, self.caller, node)
        self._stack.callback(self._tapping.close)
        return gate, taps

    def _handing_over(self) -> float | None:
        """Give the seconds to hand over what is owned: what hung until now must not keep others from all else."""
        grace = self._grace()
        return None if grace is None else max(HAND_OVER_SECONDS, grace)

    def _leave(self) -> None:
        for entry in self._components.entries.values():
            entry.leave()

    async def _connect(self) -> Broker:
        """Enter the backbone; one that is not there yet is waited for, and that is said."""
        settings, loop = self.settings, asyncio.get_running_loop()
        until = loop.time() + settings.backbone_timeout
        told, wait = -TELL_INTERVAL, FIRST_WAIT
        origin = f" (from {settings.backbone_from})" if settings.backbone_from else ""
        while True:
            broker = self._backbone()
            try:
                return observed_broker(await self._stack.enter_async_context(broker), settings.observer)
            except BrokerUnavailableError as error:
                error.args = (f"{error}{origin}",)
                left = until - loop.time()
                if left <= 0 or not error.retryable:  # Wrong credentials do not become right.
                    raise
                if loop.time() - told >= TELL_INTERVAL:
                    told = loop.time()
                    most = f", {left:.0f} s at most" if left < LONG_WAIT else ""
                    logger.warning("waiting for the backbone%s: %s", most, error)
            await asyncio.sleep(min(wait, left))
            wait = min(wait * 2, LONGEST_WAIT)

    def _backbone(self) -> Broker:
        settings = self.settings
        try:
            adapter = self._registry.backbone(settings.backbone)
            broker: Broker = adapter.from_url(settings.backbone)  # type: ignore[attr-defined]  # as entry points promise
        except ConfigError as error:
            named = [replace(each, path=each.path or settings.backbone_from) for each in error.problems]
            raise ConfigError(named) from error
        return broker

    def _make_parts(self, directory: Directory, hosts: Hosts, gate: Gate, taps: Watches) -> Parts:
        settings = self.settings
        return Parts(
            caller=self.caller,
            namespace_given=settings.namespace_given,
            configuration=settings.configuration,
            subscriptions=settings.subscriptions,
            broker=self.broker,
            exchange=self.exchange,
            hosts=hosts,
            directory=directory,
            registry=self._registry,
            policies=ResiliencyPolicies(settings.resiliencies, settings.app_id),
            tracing=Tracing(sampling_ratio(settings.configuration)),
            observer=self._observer,
            own_observer=settings.observer,
            stack=self._stack,
            records=self._places.open,
            owners=Owners(
                self.broker,
                self.exchange,
                LazyRecords(OWNERS, self._places.open, RECORD_SECONDS),
                self.caller,
                directory.node_id,
            ),
            endpoints={},
            open_outside=None,
            run=self.run,
            inbound=InboundPipeline(settings.observer, self.conditions, taps),
            taps=taps,
            access=gate,
            workflow_access=Rules(settings.app_id, settings.workflow_access),
            config=ApplicationConfig(settings.app_id, asks=settings.asks_config),
            memory=self._memory(),
            marked=self._places.marked,
            binding_seconds=settings.binding_seconds,
        )

    def _memory(self) -> Memory | None:
        settings, home = self.settings, self.settings.home
        if not settings.application or home is None:
            return None
        # An address such as 127.0.0.1 is another application on each machine that shares the directory.
        of = settings.namespace, settings.app_id, settings.application, socket.gethostname()
        memory = Memory(home / "subscriptions", *of, *(() if self._part is None else (str(self._part.slot),)))
        self._stack.callback(memory.close)
        return memory

    def _resources(self, settings: NodeSettings) -> Resources:
        components = settings.scoped
        if settings.components is None:
            components = [each for each in self._default_components(settings) if each.name not in settings.withheld]
        return Resources(
            tuple(components),
            tuple(settings.subscriptions),
            tuple(settings.resiliencies),
            tuple(settings.endpoints),
            settings.configuration,
            tuple(settings.workflow_access),
        )

    async def reload(self, settings: NodeSettings) -> Told:
        """Put other resources to work, and leave the rest as it is (``mesh/node/reload.py``).

        Args:
            settings: With the resources. What else they say is of no account.
        """
        # What becomes this application's is no other node's until it is open, which may fail.
        becoming = self.settings.not_for_it.intersection(each.name for each in settings.scoped)
        self.parts.hosts.withhold(settings.not_for_it | becoming)
        told = await self._live.apply(self._resources(settings))
        withheld = settings.not_for_it | becoming.difference(self._components.entries)
        self.parts.hosts.withhold(withheld)
        applied = self._live.resources
        self.settings = replace(
            self.settings,
            components=None if settings.components is None else applied.components,
            subscriptions=applied.subscriptions,
            resiliencies=applied.resiliencies,
            endpoints=applied.endpoints,
            workflow_access=applied.workflow_access,
            configuration=self.parts.configuration,
            withheld=withheld,
        )
        return told

    def _default_components(self, settings: NodeSettings) -> Sequence[Component]:
        """Give what a node has when nobody configured anything: pub/sub and state, on the backbone where it can."""
        if self.broker.features.key_value:
            state = Component("statestore", STATE_ON_BACKBONE, (MetadataEntry("actorStateStore", "true"),))
        elif settings.single_host and settings.home is not None:
            state = file_component(settings.home, settings.namespace)
        else:  # Whoever uses it is told what to write.
            state = Component("statestore", STATE_ON_BACKBONE)
        return (Component("pubsub", PUBSUB_ON_BACKBONE), state, *settings.builtin)

    def _of(self, block: Block, *placements: str) -> Mapping[str, Opened]:
        return self._components.of(block, *placements)

    def _policy_of(self, block: str, target: str) -> Policy:
        found = next(each for each in self._blocks if each.name == block)
        return found.policy(self.parts.policies, target)

    @property
    def backbone(self) -> str:
        """The backbone's URL without credentials."""
        return without_credentials(self.settings.backbone)

    async def until_lost(self) -> str:
        """Return why, once the backbone's connection is over for good; a broker that always reconnects never is."""
        until_lost = getattr(self.broker, "until_lost", None)  # Of a ``Losable`` broker.
        if until_lost is not None:
            return cast("str", await until_lost())
        await asyncio.Event().wait()
        raise AssertionError

    # Services outside of the mesh

    async def open_endpoints(self, opening: OpenEndpoint) -> None:
        """Let the HTTPEndpoints be called by name, now and when they are changed; raises ``ConfigError``.

        Args:
            opening: Makes the client of one.
        """
        self._live.endpoints.open = opening
        for endpoint in self.settings.endpoints:
            await self._live.endpoints.put(endpoint)

    def allow_outside(self, opening: Callable[[str], AbstractAsyncContextManager[Application]]) -> None:
        """Let services be called by their absolute URL."""
        self.parts.open_outside = opening

    async def resolved(
        self, entries: Sequence[MetadataEntry], store: str | None, file: str | None
    ) -> tuple[MetadataEntry, ...]:
        """Close the references of a resource that is no component; raises ``ConfigError`` for what has no value."""
        return await resolved_entries(entries, store, file, self.parts, self._components)

    # The application

    def inbound(
        self, application: Application, programmatic: Callable[[], Awaitable[Sequence[Subscription]]]
    ) -> AbstractAsyncContextManager[None]:
        """Serve and subscribe for the application whenever it is there.

        Leaving stops fetching and waits for what is in flight; cancelled while it waits, it releases the rest.

        Args:
            application: The application beside this gateway.
            programmatic: Reads the application's own subscriptions.
        """
        if self.settings.observer is not None:
            application = observed_application(application, self.settings.observer)
        self.parts.application = application
        services = tuple(self.services.values())
        return inbound(self._serve, services, self._directory, self.settings.app_id, application, programmatic)

    async def health(self) -> list[ComponentStatus]:
        """Ask the components how they are; see ``mesh/node/health.py``."""
        return await self._health.look()

    @property
    def description(self) -> NodeDescription:
        """Tell what this node does; the one source of metadata, the directory and ``mesh list``."""
        told: dict[str, object] = dict(chain(*(each.described().items() for each in self.services.values())))
        if not self.serving:  # Those of streams are there without it.
            subscriptions = cast("Sequence[Subscription]", told.get("subscriptions", ()))
            told["subscriptions"] = tuple(each for each in subscriptions if each.origin == "STREAMING")
        components = tuple(
            ComponentDescription(each.name, each.type, each.version, tuple(opened.capabilities))
            for each, opened in self._components.all
        )
        return NodeDescription(
            self.settings.app_id,
            self.settings.namespace,
            components=components,
            methods=None if self.methods is None else tuple(self.methods),
            resiliencies=tuple(each.name for each in self.settings.resiliencies),
            workflow_access=tuple(each.name for each in self.settings.workflow_access),
            features=tuple(name for name, on in self.settings.configuration.features().items() if on),
            serves=self.parts.application is not None,
            problems=self.conditions.in_short(),
            absent=tuple((each.name, each.type, self._components.absent[each.name][1]) for each in self.absent),
            **told,  # type: ignore[arg-type]  # fields of the description, as the blocks promise
        )


def check(settings: NodeSettings, registry: Registry, blocks: Sequence[Block] = BLOCKS) -> list[Problem]:
    """Find what can be known to be wrong without connecting anywhere."""
    return [
        *check_types(settings.scoped, blocks),
        *check_references(settings.scoped, settings.endpoints),
        *check_named(settings.scoped, blocks),
        *(problem for _, problem in check_together(settings.scoped, blocks)),
        *chain(*check_installed(settings.scoped, blocks, registry)),
        *check_denied(settings.scoped, settings.configuration),
        *check_pipelines(settings.scoped, settings.not_for_it, settings.configuration),
        *combined(each for each in settings.subscriptions if in_scope(each.scopes, settings.app_id))[1],
    ]
