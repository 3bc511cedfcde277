"""What a node is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.resources.component import Component, HTTPEndpoint
from mesh.resources.configuration import Configuration
from mesh.resources.resiliency import Resiliency
from mesh.resources.subscription import Subscription
from mesh.resources.workflow_access import WorkflowAccessPolicy
from mesh.scopes import in_scope
from mesh.telemetry import Observer
from mesh.trust.identity import TrustSettings

__all__ = ["NodeSettings"]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node is made of.

    Attributes:
        app_id: The application it serves.
        namespace: The mesh's namespace.
        backbone: URL of the backbone.
        components: In scope or not; None = the defaults.
        builtin: Components that are there beside the defaults; beside configured ones they are among these.
        subscriptions: Declared ones, in scope or not.
        resiliencies: In scope or not.
        configuration: Merged.
        endpoints: Services outside of the mesh, in scope.
        workflow_access: Who else may use its workflows, in scope or not.
        namespace_given: Whether the namespace was set by the user (``keyPrefix: namespace`` asks).
        home: Where it keeps files of its own; None = it has none.
        single_host: Whether all nodes are on this machine, so that a file holds what a backbone without key/value
            cannot (``mesh/node/places.py``).
        observer: Is told of everything; in place of the node's own counters if it is such, else besides them.
        backbone_timeout: Seconds that a backbone which is not there is waited for at start.
        binding_seconds: How long the application may take to say whether it wants the events of a binding.
        asks_config: Whether the application is asked which actors and workflows it hosts.
        host_only: Whether it is there to host components: then it opens all of them, whatever their scopes.
        backbone_from: What the user has named the backbone by, for what is said of it; empty when nothing.
        application: Address of an application that may outlive the node; empty when there is none.
        withheld: Names of components that its files have for other applications, besides those of ``components``.
        trust: How it proves who it is; None = it does not, and asks nobody to.
    """

    app_id: str
    namespace: str
    backbone: str
    components: Sequence[Component] | None = None
    builtin: Sequence[Component] = ()
    subscriptions: Sequence[Subscription] = ()
    resiliencies: Sequence[Resiliency] = ()
    configuration: Configuration = field(default_factory=Configuration)
    endpoints: Sequence[HTTPEndpoint] = ()
    workflow_access: Sequence[WorkflowAccessPolicy] = ()
    namespace_given: bool = False
    home: Path | None = None
    single_host: bool = False
    observer: Observer | None = None
    backbone_timeout: float = 5.0
    binding_seconds: float = 3.0
    asks_config: bool = True
    host_only: bool = False
    backbone_from: str = ""
    application: str = ""
    withheld: frozenset[str] = frozenset()
    trust: TrustSettings | None = None

    @property
    def is_alone(self) -> bool:
        """Whether all nodes are on this machine, by the user's word or as the backbone is this user's alone."""
        return self.single_host or self.backbone.partition(":")[0] in ("embedded", "memory")

    @property
    def scoped(self) -> list[Component]:
        """Give the configured components that this node opens."""
        return [each for each in self.components or () if self.host_only or in_scope(each.scopes, self.app_id)]

    @property
    def not_for_it(self) -> frozenset[str]:
        """Give the names that its own files have for other applications alone: they are nobody's for this one."""
        named = self.withheld.union(each.name for each in self.components or ())
        return named.difference(each.name for each in self.scoped)
