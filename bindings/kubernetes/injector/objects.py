"""What a cluster has to be told for its API server to ask an injector.

Only pods that ask for a gateway come to it: no other object waits for an injector, or is changed by it. What happens to
a pod that asks while no injector answers is said by its namespace: it is refused, and made later by whatever makes it,
or it goes without.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from bindings.kubernetes.injector.annotations import ENABLED

__all__ = ["CONFIGURATION", "FAILURE_LABEL", "PATH", "PORT", "SERVICE", "bundle_of", "webhook_configuration"]

CONFIGURATION = SERVICE = "mesh-injector"
FAILURE_LABEL = "mesh.failure-policy"
PATH = "/inject"
PORT = 9443
SECONDS = 10
_SYSTEM = ("kube-system", "kube-node-lease")


def webhook_configuration(
    namespace: str,
    *,
    name: str = CONFIGURATION,
    service: str = SERVICE,
    failure_policy: str = "Fail",
    url: str = "",
    selector: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Give the MutatingWebhookConfiguration, but for whom the API server trusts, which an injector writes into it.

    Args:
        namespace: Where the injector is; its own pods never come to it.
        name: Of the object.
        service: Its Service, of which the port 443 leads to it.
        failure_policy: What becomes of pods that ask while no injector answers, in namespaces that do not say it.
        url: Where it is in place of a Service.
        selector: Further ``matchExpressions`` of namespaces, as a test has them.
        labels: Of the object.
    """
    where = {"url": url} if url else {"service": {"namespace": namespace, "name": service, "path": PATH, "port": 443}}
    excluded = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [namespace, *_SYSTEM]}
    hooks = []
    for kind, policy, operator, values in (
        ("default", failure_policy, "NotIn", ["fail", "ignore"]),
        ("fail", "Fail", "In", ["fail"]),
        ("ignore", "Ignore", "In", ["ignore"]),
    ):
        mode = {"key": FAILURE_LABEL, "operator": operator, "values": values}
        expressions = [excluded, mode, *(selector or {}).get("matchExpressions", ())]
        hooks.append(_hook(kind, policy, where, expressions))
    about: dict[str, Any] = {"name": name, **({"labels": dict(labels)} if labels else {})}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": about,
        "webhooks": hooks,
    }


def _hook(kind: str, policy: str, where: Mapping[str, Any], expressions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    return {
        "name": f"{kind}.injector.mesh.local",
        "admissionReviewVersions": ["v1"],
        "clientConfig": dict(where),
        "failurePolicy": policy,
        "matchConditions": [{"name": "asks", "expression": _asks()}],
        "matchPolicy": "Equivalent",
        "namespaceSelector": {"matchExpressions": list(expressions)},
        "reinvocationPolicy": "IfNeeded",
        "rules": [{**rule, "scope": "Namespaced"}],
        "sideEffects": "None",
        "timeoutSeconds": SECONDS,
    }


def _asks() -> str:
    """Give the condition (CEL): whoever says no is not asked either, and whoever says neither is refused."""
    value = f"object.metadata.annotations['{ENABLED}']"
    return f"has(object.metadata.annotations) && '{ENABLED}' in object.metadata.annotations && {value} != 'false'"


def bundle_of(configuration: Mapping[str, Any], pem: bytes) -> dict[str, Any] | None:
    """Give what says whom the API server trusts, for server-side apply; None = it is said already."""
    bundle = base64.b64encode(pem).decode()
    hooks: Sequence[Mapping[str, Any]] = configuration.get("webhooks") or ()
    if all(each["clientConfig"].get("caBundle") == bundle for each in hooks):
        return None
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": configuration["metadata"]["name"]},
        "webhooks": [{"name": each["name"], "clientConfig": {"caBundle": bundle}} for each in hooks],
    }
