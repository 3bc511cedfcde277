"""What an operator implements: who asks, and what is theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from mesh.supply.wire import Document, Report
from mesh.trust.folder import Issued

__all__ = ["Pod", "Source", "Supplied"]

NOTHING: Mapping[str, Mapping[str, bytes]] = {}


@dataclass(frozen=True, slots=True)
class Pod:
    """Who asks, as the cluster says.

    Attributes:
        namespace: Where it runs.
        app_id: By its annotations.
        service_account: Its name.
        name: The pod's.
        uid: The pod's; another pod of that name has another one.
    """

    namespace: str
    app_id: str
    service_account: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Supplied:
    """What a pod is given.

    Attributes:
        revision: Another one whenever anything of it is; at most 128 characters. A digest does.
        documents: Those of the pod's namespace whose scopes admit its application.
        secrets: Values of the Secrets that these documents refer to, by name and key, and nothing else of them.
    """

    revision: str
    documents: Sequence[Document]
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=lambda: NOTHING, repr=False)


class Source(Protocol):
    """Knows the cluster. What it raises that is no error of the mesh is logged, and the gateway asks again later."""

    def own(self) -> Issued:
        """Give the operator's certificate, of ``spiffe://<trust domain>/ns/<control namespace>/mesh-operator``.

        With its key, and the roots that gateways are to trust from now on, the newest first. It is called often and
        must not block: a renewed one, or a further root, is another object.
        """

    async def authenticate(self, token: str, pod: str) -> Pod:
        """Find whose token it is.

        Args:
            token: As a gateway sent it.
            pod: Its name, as the gateway says; the token must be bound to it.

        Raises:
            UnprovenError: It is of no living pod, of another pod, or for another audience. The gateway is told why.
        """

    async def supplied(self, pod: Pod) -> Supplied:
        """Give what is a pod's; made anew only when something has changed."""

    async def issue(self, pod: Pod, key: ed25519.Ed25519PublicKey) -> Sequence[x509.Certificate] | None:
        """Issue a certificate of ``spiffe://<trust domain>/ns/<namespace>/<app id>`` for a key (``Root.certify``).

        Returns:
            The chain, the pod's own first, which must lead to one of the roots of ``own``; None = identities are off.
        """

    def report(self, pod: Pod, report: Report) -> None:
        """Note what a gateway made of what it has; must not block."""
