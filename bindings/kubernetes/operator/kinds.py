"""The kinds of resources that a cluster keeps for the mesh, and the versions that they are read in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GROUP", "KINDS", "Kind"]

GROUP = "dapr.io"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of custom resources.

    Attributes:
        name: As in their ``kind``.
        plural: As in paths.
        versions: That are served, the one that is stored and read first.
    """

    name: str
    plural: str
    versions: tuple[str, ...] = ("v1alpha1",)

    @property
    def path(self) -> str:
        """Of all of the cluster."""
        return f"/apis/{GROUP}/{self.versions[0]}/{self.plural}"

    def path_of(self, namespace: str, name: str) -> str:
        """Of one."""
        return f"/apis/{GROUP}/{self.versions[0]}/namespaces/{namespace}/{self.plural}/{name}"


KINDS: Mapping[str, Kind] = {
    each.name: each
    for each in (
        Kind("Component", "components"),
        Kind("Configuration", "configurations"),
        Kind("HTTPEndpoint", "httpendpoints"),
        Kind("Resiliency", "resiliencies"),
        Kind("Subscription", "subscriptions", ("v2alpha1", "v1alpha1")),
        Kind("WorkflowAccessPolicy", "workflowaccesspolicies"),
    )
}
