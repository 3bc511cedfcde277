"""Putting an installation into a cluster, looking whether it works, and taking it away again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.delivery.nats import nats_url
from bindings.kubernetes.delivery.objects import LABELS, OPERATOR, crds, namespace, objects
from bindings.kubernetes.delivery.settings import Settings
from bindings.kubernetes.operator.trust import SECRET
from mesh.errors import ConfigError

__all__ = ["SELECTED", "complete", "install", "manifests", "settings_of", "uninstall", "wait"]

Manifest = dict[str, Any]
SELECTED = {"labelSelector": ",".join(f"{key}={value}" for key, value in LABELS.items())}
SETTINGS_ANNOTATION = "mesh.settings"
OLDEST = (1, 29)
RETRY_SECONDS, LOOK_SECONDS = 0.5, 0.5
RETRIED_WITHIN = 60.0
# What was applied last is removed first: no pod comes to an injector that goes.
_REMOVED = (
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "/apis/apps/v1/namespaces/{0}/deployments",
    "/apis/apps/v1/namespaces/{0}/statefulsets",
    "/apis/policy/v1/namespaces/{0}/poddisruptionbudgets",
    "/apis/networking.k8s.io/v1/namespaces/{0}/networkpolicies",
    "/api/v1/namespaces/{0}/services",
    "/api/v1/namespaces/{0}/configmaps",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{0}/rolebindings",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{0}/roles",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "/api/v1/namespaces/{0}/serviceaccounts",
)
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def complete(name: str, settings: Settings) -> dict[str, Any]:
    """Add what follows from settings: the broker's URL."""
    url = settings["backbone"] or nats_url(name, settings["nats.replicas"])
    return {**settings, "gatewayBackbone": url}


def manifests(name: str, settings: Settings) -> list[Manifest]:
    """Give everything, in the order in which it is applied; the operator's deployment keeps the settings."""
    import orjson

    made = [namespace(name), *crds(), *objects(name, complete(name, settings))]
    for each in made:
        if each["kind"] == "Deployment" and each["metadata"]["name"] == OPERATOR:
            kept = orjson.dumps(dict(settings), option=orjson.OPT_SORT_KEYS).decode()
            each["metadata"] = {**each["metadata"], "annotations": {SETTINGS_ANNOTATION: kept}}
    return made


async def settings_of(cluster: Cluster, name: str) -> dict[str, Any] | None:
    """Read what an installation was made with; None: there is none in this namespace."""
    import orjson

    found = await cluster.get(f"/apis/apps/v1/namespaces/{name}/deployments/{OPERATOR}")
    if found is None:
        return None
    kept: dict[str, Any] = orjson.loads((found["metadata"].get("annotations") or {}).get(SETTINGS_ANNOTATION, "{}"))
    return kept


async def install(cluster: Cluster, made: Sequence[Manifest], *, dry_run: bool) -> AsyncIterator[str]:
    """Apply objects; tell of each what was done.

    Definitions of resources that are there already, of whoever, are used and not replaced. A dry run has the API server
    check all that it can without them.

    Raises:
        ConfigError: The cluster is too old.
    """
    if (version := await cluster.version()) < OLDEST:
        found, needed = (".".join(map(str, each)) for each in (version, OLDEST))
        raise ConfigError(
            f"the cluster is Kubernetes {found}, and needs to be {needed}: older ones drop conditions of a webhook, "
            "so that no pod at all could be made while the operator is away"
        )
    missing: set[str] = set()
    for each in made:
        called = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "CustomResourceDefinition":
            there = await cluster.get(f"{_DEFINITIONS}/{each['metadata']['name']}")
            if there is not None and not _ours(there):
                yield f"{called}: used as it is, for others have made it"
                continue
        if dry_run and each["metadata"].get("namespace") in missing:
            yield f"{called}: not checked, for its namespace is not there yet"
            continue
        name = each["metadata"]["name"]
        if dry_run and each["kind"] == "Namespace" and await cluster.get(f"/api/v1/namespaces/{name}") is None:
            missing.add(name)
        await _applied(cluster, each, dry_run=dry_run)
        yield f"{called}: {'would be applied' if dry_run else 'applied'}"


async def _applied(cluster: Cluster, manifest: Manifest, *, dry_run: bool) -> None:
    """Apply one, again while the API server says that it may go later: it starts, or a webhook of others does."""
    begin = time.monotonic()
    while True:
        try:
            await cluster.apply(manifest, dry_run=dry_run)
        except ClusterError as error:
            if not error.retryable or time.monotonic() > begin + RETRIED_WITHIN:
                raise
            await asyncio.sleep(error.retry_after or RETRY_SECONDS)
        else:
            return


async def wait(cluster: Cluster, made: Sequence[Manifest], within: float) -> None:
    """Return once all that runs is there in the version of now.

    Raises:
        TimeoutError: With what is not.
    """
    begin = time.monotonic()
    waiting = [each for each in made if each["kind"] in ("Deployment", "StatefulSet")]
    while True:
        found = [await cluster.get(await cluster.path_of(each)) for each in waiting]
        missing = [
            f"{each['metadata']['name']}: {_count(now)} of {(now or each)['spec']['replicas']} are ready"
            for each, now in zip(waiting, found, strict=True)
            if not _rolled_out(now)
        ]
        if not missing:
            return
        if time.monotonic() > begin + within:
            raise TimeoutError(f"not within {within:g} s: {'; '.join(missing)}")
        await asyncio.sleep(LOOK_SECONDS)


def _rolled_out(found: Manifest | None) -> bool:
    if found is None:
        return False
    status, wanted = found.get("status") or {}, found["spec"]["replicas"]
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
    return status.get("observedGeneration", 0) >= found["metadata"]["generation"] and counts == [wanted] * len(counts)


def _count(found: Manifest | None) -> int:
    return int(((found or {}).get("status") or {}).get("readyReplicas", 0))


async def uninstall(cluster: Cluster, name: str, *, everything: bool) -> AsyncIterator[str]:
    """Remove what an installation has made, and nothing else; tell of each object.

    Args:
        cluster: Where.
        name: Of the namespace.
        everything: Also what holds data: the definitions of resources that are ours and with them all resources, the
            root of identities, the disks of NATS, and the namespace.
    """
    paths = [each.format(name) for each in _REMOVED]
    if everything:
        paths += [_DEFINITIONS, f"/api/v1/namespaces/{name}/persistentvolumeclaims"]
    for path in paths:
        selected = SELECTED if not path.endswith("claims") else {"labelSelector": "app.kubernetes.io/name=mesh-nats"}
        for each in await cluster.list(path, selected):
            if await cluster.delete(f"{path}/{each['metadata']['name']}"):
                yield f"{path.rpartition('/')[2]} {each['metadata']['name']}: deleted"
    if everything:
        if await cluster.delete(f"/api/v1/namespaces/{name}/secrets/{SECRET}"):
            yield f"secrets {SECRET}: deleted"
        there = await cluster.get(f"/api/v1/namespaces/{name}")
        if there is not None and _ours(there) and await cluster.delete(f"/api/v1/namespaces/{name}"):
            yield f"namespaces {name}: deleted"


def _ours(found: Manifest) -> bool:
    labels = found["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in LABELS.items())
