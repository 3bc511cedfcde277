"""The NATS cluster that an installation brings where no broker is named."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from bindings.kubernetes.delivery.settings import Settings

__all__ = ["NATS", "nats_objects", "nats_url"]

Manifest = dict[str, Any]
NATS = "mesh-nats"
CLIENTS, ROUTES, MONITOR = 4222, 6222, 8222
USER = 65532
LABELS = {"app.kubernetes.io/part-of": "brokermesh", "app.kubernetes.io/managed-by": "brokermesh"}
SELECTOR = {"app.kubernetes.io/name": NATS}

_CONFIGURATION = f"""\
server_name: $POD_NAME
port: {CLIENTS}
http_port: {MONITOR}
pid_file: /data/nats.pid
lame_duck_grace_period: 5s
lame_duck_duration: 30s
jetstream {{
  store_dir: /data
}}
"""


def nats_url(namespace: str, replicas: object) -> str:
    """Give where gateways find it, and how many copies its streams have."""
    return f"nats://{NATS}.{namespace}.svc:{CLIENTS}?replicas={replicas}"


def nats_objects(
    namespace: str, settings: Settings
) -> list[tuple[Manifest, Literal["nats", "alone", "three", "five", "disk", "memory"]]]:
    """Give its objects, and when each is there."""
    about = {"name": NATS, "namespace": namespace, "labels": {**LABELS, **SELECTOR}}
    names = (("clients", CLIENTS), ("routes", ROUTES), ("monitor", MONITOR))
    return [
        (
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": about,
                "spec": {
                    # Servers find each other by name before they are ready; a client tries the next one.
                    "clusterIP": "None",
                    "publishNotReadyAddresses": True,
                    "selector": SELECTOR,
                    "ports": [{"name": name, "port": port} for name, port in names],
                },
            },
            "nats",
        ),
        (_map(about, _CONFIGURATION), "alone"),
        (_map(about, _CONFIGURATION + _routes(namespace, 3)), "three"),
        (_map(about, _CONFIGURATION + _routes(namespace, 5)), "five"),
        (_set(about, settings, on_disk=True), "disk"),
        (_set(about, settings, on_disk=False), "memory"),
        (
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": about,
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": SELECTOR}},
            },
            "nats",
        ),
        (_policy(about), "nats"),
    ]


def _map(about: Manifest, text: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"nats.conf": text}}


def _routes(namespace: str, servers: int) -> str:
    routes = ", ".join(f"nats://{NATS}-{number}.{NATS}.{namespace}.svc:{ROUTES}" for number in range(servers))
    return f"""\
cluster {{
  name: {NATS}
  port: {ROUTES}
  # One connection to each other server: of several, which both sides open at once, one was seen to stay missing, and
  # with it all of an account between two servers.
  pool_size: -1
  routes: [{routes}]
}}
"""


def _version(replicas: object) -> str:
    """Give what is another when the configuration is, so that the servers are started anew, one after the other."""
    digest = hashlib.sha256((_CONFIGURATION + _routes("", 5)).encode()).hexdigest()
    return f"{digest[:12]}-{replicas}"


def _container(settings: Settings) -> Manifest:
    return {
        "name": "nats",
        "image": settings["nats.image"],
        "imagePullPolicy": settings["imagePullPolicy"],
        "args": ["--config=/etc/nats/nats.conf"],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "ports": [{"name": "clients", "containerPort": CLIENTS}, {"name": "monitor", "containerPort": MONITOR}],
        # Leaders of streams are moved, and clients sent elsewhere, before it ends.
        "lifecycle": {"preStop": {"exec": {"command": ["nats-server", "-sl=ldm=/data/nats.pid"]}}},
        "startupProbe": _probe("/healthz?js-enabled-only=true", 1, 120),
        "livenessProbe": _probe("/healthz?js-enabled-only=true", 10, 6),
        "readinessProbe": _probe("/healthz?js-server-only=true", 2, 3),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "volumeMounts": [
            {"name": "configuration", "mountPath": "/etc/nats"},
            {"name": "data", "mountPath": "/data"},
        ],
    }


def _set(about: Manifest, settings: Settings, *, on_disk: bool) -> Manifest:
    container = _container(settings)
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": SELECTOR},
    }
    volumes: list[Manifest] = [{"name": "configuration", "configMap": {"name": NATS}}]
    spec: Manifest = {
        "replicas": settings["nats.replicas"],
        "serviceName": NATS,
        # None of them waits for another: a cluster is ready once most are there.
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": SELECTOR},
        "template": {
            "metadata": {
                "labels": {**LABELS, **SELECTOR},
                "annotations": {"mesh.configuration": _version(settings["nats.replicas"])},
            },
            "spec": {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 60,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "fsGroup": USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "topologySpreadConstraints": [spread],
                "containers": [container],
                "volumes": volumes,
            },
        },
    }
    if on_disk:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": settings["nats.storage"]}},
            "storageClassName": settings["nats.storageClass"],
        }
        if claim["storageClassName"] == "":
            del claim["storageClassName"]
        spec["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": claim}]
    else:
        volumes.append({"name": "data", "emptyDir": {}})
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": about, "spec": spec}


def _policy(about: Manifest) -> Manifest:
    """Let gateways and our own pods in, where the cluster's network knows policies."""
    gateways = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"dapr.io/sidecar-injected": "true"}}}
    own = {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "brokermesh"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": about,
        "spec": {
            "podSelector": {"matchLabels": SELECTOR},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [gateways, own], "ports": [{"port": CLIENTS}]},
                {"from": [own], "ports": [{"port": ROUTES}]},
            ],
        },
    }


def _probe(path: str, period: int, failures: int) -> Manifest:
    asked = {"path": path, "port": MONITOR}
    return {"httpGet": asked, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 3}
