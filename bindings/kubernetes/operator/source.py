"""What an operator knows of a cluster, as gateways are given it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from bindings.kubernetes.api import Cluster
from bindings.kubernetes.injector import app_id_of
from bindings.kubernetes.operator.resource import Resource
from bindings.kubernetes.operator.resources import Resources
from bindings.kubernetes.operator.status import Statuses
from bindings.kubernetes.operator.trust import Trust
from mesh.errors import SecretStoreAwayError, UnprovenError
from mesh.supply.source import Pod, Supplied
from mesh.supply.wire import Report
from mesh.trust.folder import Issued
from mesh.trust.identity import Identity

__all__ = ["AUDIENCE", "ClusterSource"]

AUDIENCE = "mesh"
MAX_SUPPLIES = 4096
MAX_NAMES_LENGTH = 1024  # Of Configurations: what was made is kept by them, and anybody may name any.
REVISION_DIGITS = 40
_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCOUNT = "system:serviceaccount:"
CONFIGURATION = "dapr.io/config"
_OVER = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class _Made:
    """What was made for a pod.

    Attributes:
        count: Of the changes of its namespace until then.
        supplied: What it is given.
        generations: Of its resources, by their keys.
    """

    count: int
    supplied: Supplied
    generations: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ClusterPod(Pod):
    """A pod, and the Configurations that its gateway is to take.

    Attributes:
        configurations: Their names, by the pod's annotation.
    """

    configurations: tuple[str, ...] = ()


class ClusterSource:
    """Answers for a cluster (``mesh.supply.source.Source``)."""

    def __init__(self, cluster: Cluster, trust: Trust, *, identities: bool = True) -> None:
        """Read nothing yet.

        Args:
            cluster: To ask; its errors have to be ``ClusterError``.
            trust: Issues certificates.
            identities: Whether gateways are given any.
        """
        self._cluster, self._trust, self._identities = cluster, trust, identities
        self.changed: Callable[[str], None] = _nobody
        self.resources = Resources(cluster, self._changed, self._left_out)
        self.statuses = Statuses(cluster, self.resources)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._supplies: OrderedDict[tuple[str, str, tuple[str, ...]], _Made] = OrderedDict()

    def own(self) -> Issued:
        """Give the operator's certificate."""
        return self._trust.issued

    async def authenticate(self, token: str, pod: str) -> Pod:
        """Ask the cluster whose token it is; raises ``UnprovenError``, or ``ClusterError``."""
        review = {"spec": {"token": token, "audiences": [AUDIENCE]}}
        found = (await self._cluster.create(_REVIEWS, review)).get("status") or {}
        if found.get("authenticated") is not True or AUDIENCE not in (found.get("audiences") or ()):
            raise UnprovenError(f"the cluster does not know the token, or not for the audience {AUDIENCE}")
        namespace, account, name, uid = _bound(found.get("user") or {})
        if name != pod:
            raise UnprovenError(f"the token is of another pod than {pod}")
        item = await self._cluster.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        if item is None or item["metadata"]["uid"] != uid or (item.get("status") or {}).get("phase") in _OVER:
            raise UnprovenError(f"there is no such pod {name} any more")
        named = str((item["metadata"].get("annotations") or {}).get(CONFIGURATION) or "")
        names = tuple(filter(None, map(str.strip, named[:MAX_NAMES_LENGTH].split(","))))
        return ClusterPod(namespace, app_id_of(item), account, name, uid, names)

    async def supplied(self, pod: Pod) -> Supplied:
        """Give what is a pod's, as of now."""
        names = pod.configurations if isinstance(pod, ClusterPod) else ()
        key = pod.namespace, pod.app_id, names
        made = self._supplies.get(key)
        if made is None or made.count != self._counts[pod.namespace]:
            await self.resources.secrets.settled(pod.namespace)
            count = self._counts[pod.namespace]
            every = sorted(self.resources.of(pod.namespace).items())
            chosen = [each for _, each in every if not each.refused and _is_for(each, pod.app_id, names)]
            unread = self.resources.secrets.unread(pod.namespace, {name for each in chosen for name, _ in each.secrets})
            if unread:  # Without it they would lose what they have of it.
                raise SecretStoreAwayError(unread)
            supplied = await asyncio.to_thread(self._supply, pod.namespace, chosen)
            made = self._supplies[key] = _Made(count, supplied, {each.key: each.generation for each in chosen})
        self._supplies.move_to_end(key)
        while len(self._supplies) > MAX_SUPPLIES:
            self._supplies.popitem(last=False)
        self.statuses.gave(pod.namespace, made.supplied.revision, made.generations)
        return made.supplied

    def _supply(self, namespace: str, chosen: Sequence[Resource]) -> Supplied:
        revision = hashlib.sha256()
        secrets: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        for resource in chosen:
            revision.update(len(resource.data).to_bytes(4, "big") + resource.data)
        for name, entry in sorted({each for resource in chosen for each in resource.secrets}):
            found = self.resources.secrets.value(namespace, name, entry)
            if found is not None:
                secrets[name][entry] = found[1]
                revision.update(orjson.dumps([name, entry, found[0]]))
        documents = [self.resources.document(each) for each in chosen]
        usable = [each for each in documents if not each.problem]  # One that is not keeps no others from gateways.
        return Supplied(revision.hexdigest()[:REVISION_DIGITS], usable, dict(secrets))

    async def issue(self, pod: Pod, key: ed25519.Ed25519PublicKey) -> Sequence[x509.Certificate] | None:
        """Issue a certificate for a pod's key; None when identities are off."""
        if not self._identities:
            return None
        root = self._trust.root
        identity = Identity(self._trust.trust_domain, pod.namespace, pod.app_id)
        return [await asyncio.to_thread(root.certify, identity, key)]

    def report(self, pod: Pod, report: Report) -> None:
        """Note what a gateway made of what it has."""
        self.statuses.heard(pod, report)

    def _changed(self, namespace: str) -> None:
        self._counts[namespace] += 1
        self.changed(namespace)

    def _left_out(self, namespace: str, key: str) -> None:
        self.statuses.left_out(namespace, key)


def _nobody(namespace: str) -> None:
    """Tell nobody: this replica does not lead."""


def _is_for(resource: Resource, app_id: str, configurations: Sequence[str]) -> bool:
    """Tell whether a resource is for an application; a Configuration is for those that name it."""
    if resource.kind == "Configuration":
        return resource.name in configurations
    return resource.admits(app_id)


def _bound(user: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Read namespace, service account, pod and its uid from whose token it is; raises ``UnprovenError``."""
    name, extra = str(user.get("username") or ""), user.get("extra") or {}
    namespace, _, account = name.removeprefix(_ACCOUNT).partition(":")
    pod, uid = ((extra.get(f"authentication.kubernetes.io/{each}") or [""])[0] for each in ("pod-name", "pod-uid"))
    if not name.startswith(_ACCOUNT) or not account or not pod or not uid:
        raise UnprovenError("the token is of no pod: it has to be projected into one, for its service account")
    return namespace, account, pod, uid
