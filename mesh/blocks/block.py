"""What a building block is to the rest: a row of the table in ``mesh/blocks/__init__.py``.

A block's module exports one `Block`. The node opens the components of its kind, starts its service, and
hands it operations through the pipeline; nothing else of the product knows the block's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mesh.errors import Problem
from mesh.operation import Caller, Method
from mesh.pipeline import Handler, InboundPipeline, Service
from mesh.policies import Policy
from mesh.streams import Streams
from mesh.tasks import Later

if TYPE_CHECKING:
    from mesh.access import Gate
    from mesh.application import Application
    from mesh.application_config import ApplicationConfig
    from mesh.blocks.remembered import Memory
    from mesh.broker import Broker, Delivery
    from mesh.calls.exchange import Exchange
    from mesh.delivery import Attempt
    from mesh.host import Hosts
    from mesh.life import Life
    from mesh.ownership.asking import Owners
    from mesh.part import Part
    from mesh.passing import Taps
    from mesh.registry import Registry
    from mesh.resources.component import Component
    from mesh.resources.configuration import Configuration
    from mesh.resources.resiliency import ResiliencyPolicies
    from mesh.resources.settings import Setting
    from mesh.resources.subscription import Subscription
    from mesh.store import StateStore
    from mesh.telemetry import Observer, Tracing
    from mesh.workflows.access import Rules

__all__ = ["Block", "Held", "Inbound", "OpenRecords", "Opened", "Parts", "Presence", "Serving", "Topics", "no_policy"]


class Opened(Protocol):
    """A component that can be used; one that is open on this node has a function for each method of its block.

    One with operations that wait for something to happen also has ``leave()``, which has them answer at once.
    """

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells of it."""


class Known(Protocol):
    """A node, as it tells of itself (``mesh/node/description.py``)."""

    @property
    def id(self) -> str:
        """The node's."""

    @property
    def actors(self) -> tuple[tuple[str, int], ...]:
        """The types that its application hosts, and how many are active of each."""


class Presence(Protocol):
    """What this node knows of others (``mesh/node/directory.py``)."""

    node_id: str
    part: Part | None

    def host(self, app_id: str, *, ready: bool) -> None:
        """Say that this node has an application, and whether it takes calls now."""

    def saw(self, app_id: str) -> None:
        """Note that an application answered."""

    async def was_seen(self, app_id: str, deadline: float) -> bool:
        """Tell whether anybody saw an application within the last minute; asks until ``deadline`` (Unix time)."""

    async def nodes(self, seconds: float) -> Sequence[Known]:
        """Ask all nodes what they do, and give those that answered within so many seconds."""

    async def until_news(self, app_id: str) -> None:
        """Wait until an application may be back."""


class Serving(Service, Protocol):
    """A service that also reaches this node's application."""

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Give what is to be held open while the application is there; all are entered before any counts.

        It is asked again when resources have changed: then what is held already is left as it is, as far as it would
        be made of the same.
        """

    def described(self) -> Mapping[str, object]:
        """Give what it adds to the node's description, by the fields of ``NodeDescription``."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something that is held open towards the application.

    Attributes:
        name: Of it, among those of the node.
        made_of: Whatever it depends on: while that is equal, it need not be made again.
        context: Enters and leaves it; not entered when it is held already.
        overlaps: Whether another one of its name begins before it is left; else the broker keeps what comes meanwhile.
    """

    name: str
    made_of: object
    context: AbstractAsyncContextManager[None]
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class Inbound:
    """The application, for the time that it is there.

    Attributes:
        application: It.
        subscriptions: What it wants to receive by its own word.
    """

    application: Application
    subscriptions: Sequence[Subscription]


class Taking(Protocol):
    """Takes the messages of a topic for a block of this node, not for its application."""

    def __call__(
        self, pubsub: str, topic: str, group: str, attempt: Callable[[Delivery], Awaitable[Attempt]]
    ) -> AbstractAsyncContextManager[asyncio.Event]:
        """Give what takes them while it is entered, by the rules of any delivery (``mesh/delivery.py``).

        Entered, it gives what is set when the component is about to be closed: then it is to be left, and there may be
        another one of its name. Where it is set already, the node drains, and there is none.

        Raises:
            ComponentNotFoundError: On entering; this node has no such pub/sub component.
            BrokerError: The broker could not start it, or the connection broke for good.
        """


class Topics:
    """How a block takes messages of a topic: the block that has pub/sub components gives it, once operations work."""

    def __init__(self) -> None:
        """Wait for it."""
        self._given = asyncio.Event()
        self._taking: Taking

    def give(self, taking: Taking) -> None:
        """Say how."""
        self._taking = taking
        self._given.set()

    async def taking(self) -> Taking:
        """Give it, when it is there."""
        await self._given.wait()
        return self._taking


class OpenRecords(Protocol):
    """Opens a store of the mesh's own by its name."""

    def __call__(self, name: str, *, dotted: bool = False) -> Awaitable[StateStore]:
        """Open it.

        Args:
            name: What is remembered.
            dotted: Whether its keys are dotted paths of encoded tokens, so that to scan below one is cheap.

        Raises:
            RecordsMissingError: There is no place for it.
        """


@dataclass(slots=True)
class Parts:
    """What a node gives its blocks.

    Attributes:
        caller: This node's own application.
        namespace_given: Whether the user set the namespace.
        configuration: The node's, merged.
        subscriptions: The declared ones, in scope or not.
        broker: The backbone, entered.
        exchange: Calls over it.
        hosts: Who answers for components that are not here.
        directory: Who is there.
        registry: What is installed.
        policies: Of the Resiliency resources.
        tracing: Makes spans.
        observer: Is told what happens.
        own_observer: What the user brought, who is told of brokers and the application too; None = nobody.
        stack: Holds what lives as long as the node; for a component that is being opened, as long as that.
        records: Opens the mesh's own store.
        later: Holds what a block begins once it is used, as long as the node lives.
        owners: What this node owns, and whom it asks for what others own.
        endpoints: Services outside of the mesh by name (HTTPEndpoint resources); they are called directly.
        open_outside: Opens a service that is named by its absolute URL; None refuses such names.
        scopes: Of each open component, by name; empty = all apps.
        lives: Of each open component, by name; entered around each use of it.
        configured: Names of the blocks that have an open component on this node.
        application: This node's application, once there is one; it may not be reachable now.
        topics: How a block takes messages of a topic itself.
        run: The pipeline, for what a block asks of another one.
        inbound: What everything for the application passes.
        taps: Who watches the node.
        access: Who may call it.
        workflow_access: Which others may use its workflows and activities.
        config: What the application says of itself.
        memory: What outlives this node, of an application that does; None = nothing.
        streams: Of clients, as long as they are open.
        marked: Gives the state store that is marked for actors, if there is one: its name, the store, its life.
        binding_seconds: How long the application may take to say whether it wants the events of a binding.
    """

    caller: Caller
    namespace_given: bool
    configuration: Configuration
    subscriptions: Sequence[Subscription]
    broker: Broker
    exchange: Exchange
    hosts: Hosts
    directory: Presence
    registry: Registry
    policies: ResiliencyPolicies
    tracing: Tracing
    observer: Observer
    own_observer: Observer | None
    stack: AsyncExitStack
    records: OpenRecords
    owners: Owners
    endpoints: dict[str, Application]
    open_outside: Callable[[str], AbstractAsyncContextManager[Application]] | None
    run: Handler
    inbound: InboundPipeline
    taps: Taps
    access: Gate
    workflow_access: Rules
    config: ApplicationConfig
    marked: Callable[[], tuple[str, StateStore, Life] | None] = lambda: None
    later: Later = field(default_factory=Later)
    scopes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
    configured: set[str] = field(default_factory=set)
    application: Application | None = None
    topics: Topics = field(default_factory=Topics)
    memory: Memory | None = None
    streams: Streams = field(default_factory=Streams)
    binding_seconds: float = 3.0


def no_policy(policies: ResiliencyPolicies, target: str) -> Policy:
    """Apply nothing."""
    return Policy()


def capabilities_of(adapter: type) -> Sequence[str]:
    """Give the capabilities that an adapter has whatever its settings are."""
    found = getattr(adapter, "capabilities", ())
    return tuple(found) if isinstance(found, (tuple, list)) else ()


def no_clashes(components: Sequence[Component]) -> Sequence[tuple[Component, Problem]]:
    """Find none: any number of components goes together."""
    return ()


@dataclass(frozen=True, slots=True)
class Block:
    """A building block.

    Attributes:
        name: As in ``Operation.method.block``.
        methods: What it can be asked.
        start: Makes its service, with its open components by name.
        kind: The part before the dot in the ``type`` of its components; None = it has none.
        open: Opens a component whose references are closed.
        settings: What it reads of every component itself, whatever the adapter.
        check: Reads them without opening anything, so that what is wrong with them is known before.
        refers: Gives what a component's settings say of others of its node: by setting, their kind and name.
        together: Finds those of its components that one node may not have beside others.
        hosted: Whether other nodes may be answered over the backbone.
        policy: Which policy is around an operation on a target.
        called: How a component of it is usually named, for a file that is written for somebody.
        abilities: What metadata will tell of a component whose adapter this is.
    """

    name: str
    methods: tuple[Method, ...]
    start: Callable[[Block, Parts, Mapping[str, Opened]], Serving]
    kind: str | None = None
    open: Callable[[Component, Parts], Awaitable[Opened]] | None = None
    settings: tuple[Setting, ...] = ()
    check: Callable[[Component], object] | None = None
    refers: Callable[[Component], Mapping[str, tuple[str, str]]] | None = None
    together: Callable[[Sequence[Component]], Sequence[tuple[Component, Problem]]] = no_clashes
    hosted: bool = False
    policy: Callable[[ResiliencyPolicies, str], Policy] = no_policy
    called: str = ""
    abilities: Callable[[type], Sequence[str]] = capabilities_of
