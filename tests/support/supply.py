"""An operator whose cluster is a table: what supply is tested with, over real brokers."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from mesh.broker import Broker
from mesh.calls.exchange import Exchange
from mesh.errors import UnprovenError
from mesh.supply.answering import Answering, answering
from mesh.supply.names import OPERATOR
from mesh.supply.source import Pod, Supplied
from mesh.supply.wire import Document, Report
from mesh.trust.certificates import as_pem, make_root
from mesh.trust.folder import Issued, Root
from mesh.trust.identity import Identity

__all__ = ["DOMAIN", "Table", "component", "operating", "root"]

DOMAIN = "cluster.example"
LIFE = datetime.timedelta(days=1)


def root() -> Root:
    """Make a root of the trust domain."""
    made, key = make_root(DOMAIN, LIFE)
    return Root([made], key, "the test", "the test")


def component(name: str, namespace: str, kind: str = "state.in-memory", **settings: str) -> Document:
    """Write a Component."""
    lines = [f"  - name: {key}\n    value: '{value}'" for key, value in settings.items()]
    metadata = "\n".join(["  metadata:", *lines]) if lines else "  metadata: []"
    text = (
        f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
        f"spec:\n  type: {kind}\n  version: v1\n{metadata}\n"
    )
    return Document("Component", name, namespace, text)


@dataclass
class Table:
    """A ``Source``.

    Attributes:
        control: The operator's namespace.
        root: Issues everything.
        pods: By token.
        documents: Of each namespace.
        secrets: That they refer to.
        identities: Whether pods get certificates.
        ttl: Of those.
        reports: What gateways said, by pod.
        asked: How often it was asked who somebody is.
    """

    control: str
    root: Root = field(default_factory=root)
    pods: dict[str, Pod] = field(default_factory=dict)
    documents: dict[str, list[Document]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    identities: bool = True
    ttl: datetime.timedelta = LIFE
    reports: dict[str, Report] = field(default_factory=dict)
    asked: int = 0
    _own: Issued | None = None

    def admit(self, namespace: str, app_id: str, name: str = "") -> str:
        """Let there be a pod; gives its token."""
        name = name or f"{app_id}-0"
        token = f"token-of-{namespace}-{name}"
        self.pods[token] = Pod(namespace, app_id, "default", name, f"uid-{namespace}-{name}")
        return token

    @property
    def roots_pem(self) -> str:
        return as_pem(self.root.roots).decode()

    def rotate(self) -> None:
        """Make another root beside the former ones, and a certificate of it."""
        self.root, self._own = self.root.rotated(LIFE), None

    def trust_newest(self) -> None:
        """Trust the former ones no longer."""
        self.root, self._own = replace(self.root, roots=[self.root.own()]), None

    def own(self) -> Issued:
        if self._own is None:
            self._own = self.root.issue(Identity(DOMAIN, self.control, OPERATOR))
        return self._own

    async def authenticate(self, token: str, pod: str) -> Pod:
        self.asked += 1
        found = self.pods.get(token)
        if found is None or found.name != pod:
            raise UnprovenError("the token is of no pod of that name")
        return found

    async def supplied(self, pod: Pod) -> Supplied:
        documents = tuple(self.documents.get(pod.namespace, ()))
        revision = hashlib.sha256(repr((documents, self.secrets)).encode()).hexdigest()
        return Supplied(revision, documents, self.secrets)

    async def issue(self, pod: Pod, key: ed25519.Ed25519PublicKey) -> Sequence[x509.Certificate] | None:
        if not self.identities:
            return None
        return (self.root.certify(Identity(DOMAIN, pod.namespace, pod.app_id), key, self.ttl),)

    def report(self, pod: Pod, report: Report) -> None:
        self.reports[pod.name] = report


@asynccontextmanager
async def operating(broker: Broker, table: Table) -> AsyncIterator[Answering]:
    """Serve a table over a broker while entered."""
    async with Exchange(broker) as exchange, answering(exchange, table.control, table) as found:
        yield found
