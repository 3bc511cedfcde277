"""What the operator may do in a cluster, right by right: nothing else is asked for, and a gateway may do nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["CLUSTER", "OWN_NAMESPACE"]

Rule = dict[str, Any]


def _may(group: str, resources: str, verbs: str, *names: str) -> Rule:
    rule: Rule = {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split()}
    return {**rule, "resourceNames": list(names)} if names else rule


CLUSTER: list[Rule] = [
    # Resources, and what it says of them.
    _may(
        "dapr.io",
        "components configurations httpendpoints resiliencies subscriptions workflowaccesspolicies",
        "get list watch",
    ),
    _may(
        "dapr.io",
        "components/status configurations/status httpendpoints/status resiliencies/status subscriptions/status "
        "workflowaccesspolicies/status",
        "get patch",
    ),
    # Which kinds there are, and which of them have a status.
    _may("apiextensions.k8s.io", "customresourcedefinitions", "get list watch"),
    # What resources refer to; rights on secrets that are not named cannot be narrower.
    _may("", "secrets", "get list watch"),
    # Who asks: a pod's token, and what the pod says of itself.
    _may("authentication.k8s.io", "tokenreviews", "create"),
    _may("", "pods", "get"),
    # The certificate by which the API server knows the injector.
    _may("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "get patch", "mesh-injector"),
]
"""Everywhere."""

OWN_NAMESPACE: list[Rule] = [
    _may("coordination.k8s.io", "leases", "create"),
    _may("coordination.k8s.io", "leases", "get update patch", "mesh-operator"),
    _may("", "secrets", "create"),
    _may("", "secrets", "update patch", "mesh-trust"),
]
"""In the namespace of the operator alone."""
