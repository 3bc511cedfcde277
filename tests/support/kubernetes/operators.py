"""Operators that have the rights of an installation and no others, and pods that have tokens without running."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bindings.kubernetes.api import Cluster
from bindings.kubernetes.operator.definitions import definitions
from bindings.kubernetes.operator.rights import CLUSTER_RULES, NAMESPACE_RULES
from bindings.kubernetes.operator.running import Operator, OperatorSettings, operating
from brokers.nats import NatsBroker
from mesh.calls.exchange import Exchange
from mesh.supply.asking import Operator as Asked
from mesh.supply.asking import Who
from mesh.supply.wire import Answer, Report
from tests.support.eventually import eventually
from tests.support.kubernetes.node import LocalCluster

__all__ = ["Installed", "component", "establish", "secret", "write_kubeconfig"]

RBAC = "rbac.authorization.k8s.io"


def component(namespace: str, name: str, *entries: Any, kind: str = "state.in-memory", **beside: Any) -> dict[str, Any]:
    """Write a Component with these entries of ``spec.metadata``."""
    return {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Component",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": kind, "version": "v1", "metadata": list(entries)},
        **beside,
    }


def secret(namespace: str, name: str, **entries: str) -> dict[str, Any]:
    """Write a Secret."""
    about = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": about, "stringData": entries}


async def establish(cluster: Cluster) -> None:
    """Define the kinds of resources, unless they are, and wait until they can be used."""
    for each in definitions():
        path = await cluster.path_of(each)
        await cluster.apply(each, path=path)

        async def check(path: str = path) -> None:
            found = await cluster.get(path)
            conditions = ((found or {}).get("status") or {}).get("conditions") or ()
            assert any(one["type"] == "Established" and one["status"] == "True" for one in conditions)

        await eventually(check)


async def write_kubeconfig(node: LocalCluster, admin: Cluster, namespace: str, account: str, file: Path) -> None:
    """Write a kubeconfig file of a service account."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    token = (await admin.create(path, {"spec": {"expirationSeconds": 3600}}))["status"]["token"]
    admins = yaml.safe_load(node.kubeconfig.read_text())
    user = {"name": admins["users"][0]["name"], "user": {"token": token}}
    file.write_text(yaml.safe_dump({**admins, "users": [user]}))


@dataclass(frozen=True)
class Installed:
    """What an installation has made in a cluster: a namespace, an account, its rights.

    Attributes:
        node: The cluster.
        admin: Asks it as an administrator.
        namespace: The operator's.
        settings: Of an operator.
    """

    node: LocalCluster
    admin: Cluster
    namespace: str
    settings: OperatorSettings

    @classmethod
    @asynccontextmanager
    async def make(cls, node: LocalCluster, namespace: str, directory: Path, backbone: str) -> AsyncIterator[Installed]:
        """Make it; left, the namespace goes, and so do rights."""
        async with Cluster(str(node.kubeconfig)) as admin:
            await establish(admin)
            file = directory / f"{namespace}.kubeconfig"
            objects = _objects(namespace)
            for each in objects:
                await admin.apply(each)
            body = {"spec": {"expirationSeconds": 3600}}
            path = f"/api/v1/namespaces/{namespace}/serviceaccounts/mesh-operator/token"
            token = (await admin.create(path, body))["status"]["token"]
            admins = yaml.safe_load(node.kubeconfig.read_text())
            file.write_text(
                yaml.safe_dump({**admins, "users": [{"name": admins["users"][0]["name"], "user": {"token": token}}]})
            )
            settings = OperatorSettings(
                namespace=namespace,
                backbone=backbone,
                name="one",
                host="127.0.0.1",
                health_port=0,
                kubeconfig=str(file),
            )
            try:
                yield cls(node, admin, namespace, settings)
            finally:
                for each in reversed(objects):
                    await admin.delete(await admin.path_of(each))

    @asynccontextmanager
    async def operator(self, name: str = "one") -> AsyncIterator[Operator]:
        """Run a replica."""
        async with operating(replace(self.settings, name=name)) as operator:
            yield operator

    async def space(self, name: str) -> str:
        """Make a namespace."""
        await self.admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

        async def account() -> None:
            assert await self.admin.get(f"/api/v1/namespaces/{name}/serviceaccounts/default") is not None

        await eventually(account)
        return name

    async def pod(self, namespace: str, name: str, **annotations: str) -> Pending:
        """Make a pod that waits forever, and a token of it."""
        about = {
            "name": name,
            "namespace": namespace,
            "annotations": {f"dapr.io/{key.replace('_', '-')}": value for key, value in annotations.items()},
            "labels": {"dapr.io/sidecar-injected": "true"},
        }
        spec = {"schedulerName": "nobody", "containers": [{"name": "app", "image": "none"}]}
        made = await self.admin.create(f"/api/v1/namespaces/{namespace}/pods", {"metadata": about, "spec": spec})
        uid = made["metadata"]["uid"]
        return Pending(
            self, namespace, name, uid, annotations.get("app_id", name), await self.token(namespace, name, uid)
        )

    async def token(self, namespace: str, pod: str, uid: str, audience: str = "mesh") -> str:
        """Have the cluster make a token that is bound to a pod."""
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}
        body = {"spec": {"audiences": [audience], "boundObjectRef": bound, "expirationSeconds": 3600}}
        made = await self.admin.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token", body)
        return str(made["status"]["token"])


@dataclass(frozen=True)
class Pending:
    """A pod that never runs, whose gateway the test is."""

    installed: Installed
    namespace: str
    name: str
    uid: str
    app_id: str
    token: str

    async def ask(self, operator: Operator, have: str = "", report: Report | None = None, **more: Any) -> Answer:
        """Ask as its gateway does, over the backbone."""
        roots, settings = operator.trust.issued.roots, self.installed.settings
        async with NatsBroker.from_url(settings.backbone) as broker, Exchange(broker) as exchange:
            asked = Asked(settings.namespace, operator.trust.trust_domain, roots)
            who = Who(self.namespace, self.app_id, self.name, more.pop("token", self.token))
            return await asked.ask(exchange, who, 10.0, have=have, report=report, **more)


def _objects(namespace: str) -> Sequence[dict[str, Any]]:
    about = {"name": "mesh-operator", "namespace": namespace}
    wide = {"name": f"mesh-operator-{namespace}"}
    subjects = [{"kind": "ServiceAccount", **about}]
    return (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about},
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": wide, "rules": list(CLUSTER_RULES)},
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": about, "rules": list(NAMESPACE_RULES)},
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": wide,
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": wide["name"]},
            "subjects": subjects,
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": about,
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "mesh-operator"},
            "subjects": subjects,
        },
    )
