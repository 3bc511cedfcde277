"""The rights that an operator needs in a cluster, and no other ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bindings.kubernetes.operator.kinds import GROUP, KINDS

__all__ = ["CLUSTER_RULES", "LEASE", "NAMESPACE_RULES"]

LEASE = "mesh-operator"
"""The name of the Lease that tells who leads."""

_PLURALS = [each.plural for each in KINDS.values()]
_FOLLOW = ["get", "list", "watch"]

Rule = Mapping[str, Sequence[str]]

CLUSTER_RULES: Sequence[Rule] = (
    {"apiGroups": [GROUP], "resources": _PLURALS, "verbs": _FOLLOW},
    {"apiGroups": [GROUP], "resources": [f"{each}/status" for each in _PLURALS], "verbs": ["patch"]},
    # All are watched by their metadata; read are those that resources refer to.
    {"apiGroups": [""], "resources": ["secrets"], "verbs": _FOLLOW},
    {"apiGroups": [""], "resources": ["pods"], "verbs": _FOLLOW},
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
)
"""Of the ClusterRole."""

NAMESPACE_RULES: Sequence[Rule] = (
    # Who may make one cannot be told its name.
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [LEASE],
        "verbs": ["get", "update"],
    },
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
)
"""Of the Role in the operator's namespace: there it makes the Secret of the root (``mesh-trust``)."""
