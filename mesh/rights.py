"""What a node does on its backbone, by our names: what a broker is asked to allow it, and nothing else.

It is made of an app id and its resources without starting anything. The adapter of a broker writes it down as rights of
its own kind (``permissions`` of its class). A name of an application or component that is ``*`` stands for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mesh import address
from mesh.blocks.durable import CALLS
from mesh.blocks.durable_outcome import queue_of
from mesh.clusters import bridge_of, bridged_by, cluster_of
from mesh.large import bodies_name
from mesh.registry import (
    CONFIGURATION_ON_BACKBONE,
    LOCK_ON_BACKBONE,
    PUBSUB_ON_BACKBONE,
    STATE_ON_BACKBONE,
)

if TYPE_CHECKING:
    from mesh.resources.component import Component

__all__ = ["ALL", "CALLS", "WILD", "Permitting", "Rights", "rights_of", "taker_of"]

ALL = "*"
WILD = (ALL, ">")
OUTCOMES = "mesh:invocations"
OWNERS, TIMERS = "mesh:owners", "mesh:timers"
WORKFLOWS = ("mesh:workflows", "mesh:workflows-ended")
_SHARED = ("nodes", "hosts", "keepers", "readers", "triggered", "taps")
_NAMED = ("asker", "keepers", "owners", "seen", "back", "taps")
_OF_A_NODE = ("owner", "work", "node")
_NEWS = ("jobs", "workflows")
DEFAULTS = (("pubsub", PUBSUB_ON_BACKBONE), ("statestore", STATE_ON_BACKBONE))


@dataclass(frozen=True, slots=True)
class Rights:
    """What one application's node does.

    Attributes:
        namespace: Of the mesh.
        app_id: The application.
        calls: App ids that it may call, at once or by the broker; ``*`` for all. There may be none. For applications of
            another cluster stands ``@west``.
        pubsub: Names of pub/sub components on the backbone.
        stores: Names of key/value stores in the backbone.
        hosted: Names of components that it answers for.
        control: The namespace of the operator that it asks for its resources; empty = it asks none.
    """

    namespace: str
    app_id: str
    calls: tuple[str, ...] = (ALL,)
    pubsub: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    hosted: tuple[str, ...] = ()
    control: str = ""

    @property
    def queue(self) -> str:
        """The stored calls that it takes: its application's, or as a bridge those to the other cluster."""
        return queue_of(cluster) if (cluster := bridged_by(self.app_id)) else self.app_id

    def space(self, *names: str) -> str:
        """Write a dotted address of the namespace; ``*`` and ``>`` stay what they are."""
        tokens = [name if name in WILD else address.encode_token(name) for name in (self.namespace, *names)]
        return ".".join(("mesh", *tokens))

    @property
    def told(self) -> list[str]:
        """Addresses of those that it sends frames to, or broadcasts to; ``*`` is any one token."""
        clusters = [app[1:] for app in self.calls if app[0] == "@"] + [ALL] * (ALL in self.calls)
        calls = [app for app in self.calls if app[0] != "@"]
        names = [("app", app) for app in calls] + [("bridge", cluster) for cluster in clusters]
        found = [each for name in names for each in (self.space(*name), self.space(*name, "members"))]
        found.append(self.space("app", self.app_id, "members"))  # To the other instances of its own application.
        if cluster := bridged_by(self.app_id):
            found.append(self.space("bridge", cluster, "members"))
        for app in dict.fromkeys((*calls, self.app_id)):
            for what in _OF_A_NODE:
                found += [self.space(what, app, "*"), self.space(what, app, "*", "members")]
        found += [self.space("component", "*"), self.space("component", "*", ">")]
        found += [self.space(name) for name in _SHARED]
        found += [self.space(name, "*") for name in (*_NAMED, "bindings")]
        found += [self.space(name, self.app_id) for name in _NEWS]
        return [*found, address.supply(self.control).text] if self.control else found

    @property
    def heard(self) -> list[str]:
        """Addresses that it serves, or listens to."""
        own = self.space("app", self.app_id)
        found = [own, f"{own}.members"]
        if cluster := bridged_by(self.app_id):
            found += [self.space("bridge", cluster), self.space("bridge", cluster, "members")]
        for what in _OF_A_NODE:
            asked = self.space(what, self.app_id, "*")
            found += [asked, f"{asked}.members"]
        found += [self.space(name, self.app_id) for name in ("bindings", *_NEWS)]
        for name in self.hosted:
            found += [self.space("component", name), self.space("component", name, ">")]
        found += [*(self.space(name) for name in _SHARED), *(self.space(name, "*") for name in _NAMED)]
        return [*found, address.supplied(self.control, self.namespace).text] if self.control else found


def taker_of(queue: str) -> str:
    """Give the app id of those who take stored calls."""
    return bridge_of(queue[1:]) if queue[0] == "@" else queue


class Permitting(Protocol):
    """What the class of an adapter offers that can write rights down."""

    @staticmethod
    def permissions(rights: Rights) -> str:
        """Write what the broker's administrator enters."""


def rights_of(
    namespace: str,
    app_id: str,
    components: Sequence[Component] | None,
    calls: Iterable[str] = (ALL,),
    control: str = "",
) -> Rights:
    """Make the rights of an application whose node opens these components; None = those that are always there."""
    named = DEFAULTS if components is None else [(each.name, each.type) for each in components]
    kept = (LOCK_ON_BACKBONE, CONFIGURATION_ON_BACKBONE)
    stores = [OUTCOMES, "mesh:deduplication", "bindings", OWNERS, TIMERS, *WORKFLOWS]
    stores += [name for name, kind in named if kind == STATE_ON_BACKBONE]
    stores += [f"{kind.partition('.')[0]}:{name}" for name, kind in named if kind in kept]
    pubsub = tuple(name for name, kind in named if kind == PUBSUB_ON_BACKBONE)
    large = [bodies_name(address.topic(namespace, name, "x").space) for name in (*pubsub, CALLS)]
    return Rights(
        namespace,
        app_id,
        tuple(dict.fromkeys(queue_of(cluster) if (cluster := cluster_of(each)) else each for each in calls)),
        pubsub,
        (*(address.store(namespace, name) for name in stores), *large),
        tuple(name for name, kind in named if kind.partition(".")[0] != "pubsub"),
        control,
    )
