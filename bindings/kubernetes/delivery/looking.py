"""What runs in a cluster: the parts of an installation, applications, resources, and what pods write."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.delivery.installing import SELECTED
from bindings.kubernetes.injector import CONTAINER
from bindings.kubernetes.operator.kinds import KINDS
from bindings.kubernetes.operator.trust import SECRET

__all__ = ["applications", "component_types", "logs", "parts", "pods_of", "resources", "roots"]

Record = dict[str, Any]
INJECTED = "dapr.io/sidecar-injected=true"
_PORTS = {"dapr-http": "httpPort", "dapr-grpc": "grpcPort", "dapr-metrics": "metricsPort"}


async def parts(cluster: Cluster, namespace: str) -> list[Record]:
    """Tell of each part of an installation how many pods it has, and whether they are ready."""
    found = []
    for plural in ("deployments", "statefulsets"):
        for each in await cluster.list(f"/apis/apps/v1/namespaces/{namespace}/{plural}", SELECTED):
            status, wanted = each.get("status") or {}, each["spec"].get("replicas", 1)
            ready = status.get("readyReplicas", 0)
            [container] = each["spec"]["template"]["spec"]["containers"]
            found.append(
                {
                    "name": each["metadata"]["name"],
                    "namespace": namespace,
                    "healthy": ready >= wanted,
                    "status": "Running" if ready else "Waiting",
                    "replicas": wanted,
                    "ready": ready,
                    "version": container["image"].rpartition(":")[2],
                    "age": seconds_since(each["metadata"]["creationTimestamp"]),
                    "created": each["metadata"]["creationTimestamp"],
                }
            )
    return found


def seconds_since(text: str) -> float:
    """Give how long ago an instant was."""
    return max((datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds(), 0.0)


async def pods_of(cluster: Cluster, namespace: str | None, selector: str = INJECTED) -> list[Record]:
    """List pods, of a namespace or of all."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return await cluster.list(f"/api/v1{within}/pods", {"labelSelector": selector})


async def applications(cluster: Cluster, namespace: str | None) -> list[Record]:
    """Tell of each pod that has a gateway."""
    return [_application(each) for each in await pods_of(cluster, namespace)]


def _application(pod: Record) -> Record:
    about, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    annotations: dict[str, str] = about.get("annotations") or {}
    gateways = [*(spec.get("initContainers") or ()), *spec["containers"]]
    gateway = next((each for each in gateways if each["name"] == CONTAINER), None)
    states = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    ports = {each["name"]: each["containerPort"] for each in (gateway or {}).get("ports") or ()}
    ready = [each["type"] for each in status.get("conditions") or () if each["status"] == "True"]
    return {
        "appId": about["labels"].get("dapr.io/app-id", ""),
        "namespace": about["namespace"],
        "pod": about["name"],
        "status": "Terminating" if about.get("deletionTimestamp") else status.get("phase", ""),
        "ready": "Ready" in ready,
        "restarts": sum(each["restartCount"] for each in states if each["name"] == CONTAINER),
        "appPort": int(annotations.get("dapr.io/app-port") or 0),
        **{name: ports.get(port, 0) for port, name in _PORTS.items()},
        "image": (gateway or {}).get("image", ""),
        "age": seconds_since(about["creationTimestamp"]),
        "created": about["creationTimestamp"],
    }


async def resources(cluster: Cluster, kind: str, namespace: str | None, name: str | None) -> list[Record]:
    """List resources of a kind, with what the operator says of each."""
    known = KINDS[kind]
    path = (
        known.path if namespace is None else known.path.replace(known.plural, f"namespaces/{namespace}/{known.plural}")
    )
    found = await cluster.get(path)
    if found is None:
        raise ClusterError(f"the cluster has no {kind} of dapr.io; see: mesh init -k", 404)
    return [
        {"apiVersion": f"dapr.io/{known.versions[0]}", "kind": kind, **each}
        for each in await cluster.list(path)
        if name in (None, each["metadata"]["name"])
    ]


async def logs(
    cluster: Cluster, app_id: str, pod: str | None, namespace: str, *, lines: int, follow: bool
) -> AsyncIterator[tuple[str, bytes]]:
    """Give what the gateways of an application write, line by line, each with its pod."""
    pods = await pods_of(cluster, namespace, f"{INJECTED},dapr.io/app-id={app_id}")
    wanted = [each["metadata"]["name"] for each in pods if pod in (None, each["metadata"]["name"])]
    if not wanted:
        where = f"no pod {pod}" if pod else "no pod with a gateway"
        raise ClusterError(f"{where} of {app_id} runs in {namespace}; see: mesh list -k", 404)
    lines_of: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue(1000)

    async def read(name: str) -> None:
        query = {"container": CONTAINER, "tailLines": str(lines), **({"follow": "true"} if follow else {})}
        rest = b""
        try:
            async with cluster.stream(f"/api/v1/namespaces/{namespace}/pods/{name}/log", query) as chunks:
                async for chunk in chunks:
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        await lines_of.put((name, line))
        except ClusterError as error:
            rest = str(error).encode()
        if rest:
            await lines_of.put((name, rest))
        await lines_of.put(None)

    async with asyncio.TaskGroup() as tasks:
        for each in wanted:
            tasks.create_task(read(each))
        ended = 0
        while ended < len(wanted):
            line = await lines_of.get()
            if line is None:
                ended += 1
            else:
                yield line


async def roots(cluster: Cluster, namespace: str) -> bytes | None:
    """Give the certificates of whom gateways trust, PEM; None: there are no identities."""
    found = await cluster.get(f"/api/v1/namespaces/{namespace}/secrets/{SECRET}")
    data: dict[str, str] = (found or {}).get("data") or {}
    return base64.b64decode(data["roots.pem"]) if "roots.pem" in data else None


def component_types(found: Sequence[Record]) -> list[Record]:
    """Give of components what a table shows."""
    return [
        {
            "name": each["metadata"]["name"],
            "namespace": each["metadata"]["namespace"],
            "type": each["spec"].get("type", ""),
            "version": each["spec"].get("version", ""),
            "scopes": ", ".join(each.get("scopes") or ()),
            "loadedBy": ((each.get("status") or {}).get("loadedBy") or {}).get("count", 0),
            "problems": len((each.get("status") or {}).get("problems") or ()),
            "age": seconds_since(each["metadata"]["creationTimestamp"]),
            "created": each["metadata"]["creationTimestamp"],
        }
        for each in found
    ]
