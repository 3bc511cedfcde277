"""The objects of an installation: pure functions of its settings, used by ``mesh init -k`` and by the chart alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bindings.kubernetes.delivery.nats import nats_objects
from bindings.kubernetes.delivery.settings import Settings
from bindings.kubernetes.injector.objects import CONFIGURATION, PORT, SERVICE, webhook_configuration
from bindings.kubernetes.operator.rights import CLUSTER_RULES, NAMESPACE_RULES
from bindings.kubernetes.operator.trust import SECRET

__all__ = ["DASHBOARD", "LABELS", "OPERATOR", "WHEN", "Part", "When", "crds", "namespace", "objects", "parts"]

Manifest = dict[str, Any]
When = Literal["always", "several", "nats", "alone", "three", "five", "disk", "memory", "dashboard"]

OPERATOR, DASHBOARD = "mesh-operator", "mesh-dashboard"
HEALTH_PORT, DASHBOARD_PORT = 8080, 8080
LABELS = {"app.kubernetes.io/part-of": "brokermesh", "app.kubernetes.io/managed-by": "brokermesh"}
USER = 65532
ROOTS = "roots.pem"
_GIVEN = "/var/run/secrets/mesh"
# Whom the API server trusts for an injector, the injector itself writes.
_INJECTOR_RULE = {
    "apiGroups": ["admissionregistration.k8s.io"],
    "resources": ["mutatingwebhookconfigurations"],
    "resourceNames": [CONFIGURATION],
    "verbs": ["get", "patch"],
}

WHEN: Mapping[When, Callable[[Settings], bool]] = {
    "always": lambda _: True,
    "several": lambda settings: settings["replicas"] > 1,
    "nats": lambda settings: not settings["backbone"],
    "alone": lambda settings: not settings["backbone"] and settings["nats.replicas"] == 1,
    "three": lambda settings: not settings["backbone"] and settings["nats.replicas"] == 3,
    "five": lambda settings: not settings["backbone"] and settings["nats.replicas"] == 5,
    "disk": lambda settings: not settings["backbone"] and bool(settings["nats.storage"]),
    "memory": lambda settings: not settings["backbone"] and not settings["nats.storage"],
    "dashboard": lambda settings: bool(settings["dashboard"]),
}
"""On which settings it depends that an object is there."""


@dataclass(frozen=True, slots=True)
class Part:
    """An object, and when it is one of the installation."""

    manifest: Manifest
    when: When = "always"


def objects(name: str, settings: Settings) -> list[Manifest]:
    """Give all objects but the definitions of resources, in the order in which they are applied."""
    return [each.manifest for each in parts(name, settings) if WHEN[each.when](settings)]


def namespace(name: str) -> Manifest:
    """Give the namespace itself, which a chart leaves to whoever installs it."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(LABELS)}}


def crds() -> list[Manifest]:
    """Give the definitions of resources."""
    from bindings.kubernetes.operator.definitions import definitions

    made = definitions()
    for each in made:
        each["metadata"]["labels"] = {**each["metadata"].get("labels", {}), **LABELS}
    return made


def parts(name: str, settings: Settings) -> list[Part]:
    """Give every object, each with when it is there; ``settings`` may hold what a template puts its values into.

    Args:
        name: Of the namespace.
        settings: See `SETTINGS`, and besides ``gatewayBackbone``: the broker's URL.
    """
    about = _about(name, OPERATOR)
    subject = {"kind": "ServiceAccount", "name": OPERATOR, "namespace": name}
    role_group = "rbac.authorization.k8s.io"
    return [
        Part({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about}),
        Part(
            {
                "apiVersion": f"{role_group}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": OPERATOR, "labels": dict(LABELS)},
                "rules": [*CLUSTER_RULES, _INJECTOR_RULE],
            }
        ),
        Part(
            {
                "apiVersion": f"{role_group}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": OPERATOR, "labels": dict(LABELS)},
                "roleRef": {"apiGroup": role_group, "kind": "ClusterRole", "name": OPERATOR},
                "subjects": [subject],
            }
        ),
        Part(
            {
                "apiVersion": f"{role_group}/v1",
                "kind": "Role",
                "metadata": about,
                "rules": list(NAMESPACE_RULES),
            }
        ),
        Part(
            {
                "apiVersion": f"{role_group}/v1",
                "kind": "RoleBinding",
                "metadata": about,
                "roleRef": {"apiGroup": role_group, "kind": "Role", "name": OPERATOR},
                "subjects": [subject],
            }
        ),
        *(Part(manifest, when) for manifest, when in nats_objects(name, settings)),
        Part(_service(name)),
        Part(_operator(name, settings)),
        Part(_budget(name, OPERATOR), "several"),
        Part(_dashboard(name, settings), "dashboard"),
        Part(webhook_configuration(name, labels=LABELS)),
    ]


def _about(namespace: str, name: str) -> Manifest:
    return {"name": name, "namespace": namespace, "labels": {**LABELS, "app.kubernetes.io/name": name}}


def _service(namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _about(namespace, SERVICE),
        "spec": {
            "selector": {"app.kubernetes.io/name": OPERATOR},
            "ports": [{"name": "webhook", "port": 443, "targetPort": PORT}],
        },
    }


def _budget(namespace: str, name: str) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _about(namespace, name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/name": name}}},
    }


def _operator(namespace: str, settings: Settings) -> Manifest:
    words = [
        "operator",
        f"--namespace={namespace}",
        f"--gateway-image={settings['image']}",
        f"--gateway-image-pull-policy={settings['imagePullPolicy']}",
        f"--trust-domain={settings['trustDomain']}",
        f"--identities={_word(settings['identities'])}",
        f"--health-port={HEALTH_PORT}",
        f"--log-level={settings['logLevel']}",
        f"--log-as-json={_word(settings['logAsJson'])}",
    ]
    names = {"POD_NAME": "metadata.name", "NAMESPACE": "metadata.namespace"}
    container = {
        "name": "operator",
        "command": ["mesh"],
        "args": words,
        "env": [
            *({"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in names.items()),
            *_backbone(settings),
        ],
        "ports": [{"name": "webhook", "containerPort": PORT}, {"name": "health", "containerPort": HEALTH_PORT}],
        "startupProbe": _probe("/healthz", 1, 60),
        "livenessProbe": _probe("/healthz", 5, 6),
        "readinessProbe": _probe("/readyz", 2, 3),
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}},
    }
    return _deployment(namespace, OPERATOR, container, settings, settings["replicas"], account=OPERATOR)


def _dashboard(namespace: str, settings: Settings) -> Manifest:
    given = {
        "NAMESPACE": namespace,
        "MESH_SUPPLY": namespace,
        "MESH_SUPPLY_DIR": "/var/lib/mesh/supply",
        "MESH_SUPPLY_TOKEN_FILE": f"{_GIVEN}/token",
        "MESH_SUPPLY_ROOTS_FILE": f"{_GIVEN}/{ROOTS}",
        "MESH_TRUST_DOMAIN": settings["trustDomain"],
    }
    env: list[Manifest] = [{"name": name, "value": value} for name, value in given.items()]
    env += [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, *_backbone(settings)]
    container = {
        "name": "dashboard",
        "command": ["mesh"],
        # Of its pod alone, so that only who may forward a port of it sees it.
        "args": ["dashboard", f"--port={DASHBOARD_PORT}", "--no-token", f"--log-level={settings['logLevel']}"],
        "env": env,
        "resources": {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}},
    }
    made = _deployment(namespace, DASHBOARD, container, settings, 1)
    # It is supplied as any gateway, and proves who it is as one.
    template = made["spec"]["template"]
    template["metadata"]["annotations"] = {"dapr.io/app-id": DASHBOARD}
    token = {"serviceAccountToken": {"audience": "mesh", "expirationSeconds": 3600, "path": "token"}}
    roots = {"secret": {"name": SECRET, "items": [{"key": ROOTS, "path": ROOTS}]}}
    template["spec"]["volumes"].append({"name": "given", "projected": {"sources": [token, roots]}})
    [only] = template["spec"]["containers"]
    only["volumeMounts"] = [*only["volumeMounts"], {"name": "given", "mountPath": _GIVEN, "readOnly": True}]
    return made


def _backbone(settings: Settings) -> list[Manifest]:
    """Give the broker's URL: of a Secret, as one with a password is, or of the settings."""
    secret = {"name": "mesh-backbone", "key": "url", "optional": True}
    return [
        {"name": "MESH_BACKBONE", "valueFrom": {"secretKeyRef": secret}},
        {"name": "MESH_BACKBONE_DEFAULT", "value": settings["gatewayBackbone"]},
    ]


def _deployment(
    namespace: str, name: str, container: Manifest, settings: Settings, replicas: object, account: str = ""
) -> Manifest:
    selector = {"app.kubernetes.io/name": name}
    secured = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector},
    }
    container = {
        "image": settings["image"],
        "imagePullPolicy": settings["imagePullPolicy"],
        "securityContext": secured,
        "volumeMounts": [{"name": "home", "mountPath": "/var/lib/mesh"}, {"name": "temporary", "mountPath": "/tmp"}],  # noqa: S108 - of the container.
        **container,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _about(namespace, name),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector},
            "template": {
                "metadata": {"labels": {**LABELS, **selector}},
                "spec": {
                    **({"serviceAccountName": account} if account else {"automountServiceAccountToken": False}),
                    "securityContext": pod_security(USER),
                    "topologySpreadConstraints": [spread],
                    "containers": [container],
                    "volumes": [{"name": each, "emptyDir": {}} for each in ("home", "temporary")],
                },
            },
        },
    }


def pod_security(user: int) -> Manifest:
    """Give what no container of a pod of ours may do."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _probe(path: str, period: int, failures: int) -> Manifest:
    asked = {"path": path, "port": HEALTH_PORT}
    return {"httpGet": asked, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 3}


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
