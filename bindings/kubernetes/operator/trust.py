"""The root of a cluster's identities, in a Secret, and the operator's own certificate by it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from bindings.kubernetes.api import FIELD_MANAGER, Cluster, ClusterError
from bindings.kubernetes.informer import Informer, Key
from mesh.errors import ConfigError
from mesh.supply.names import OPERATOR
from mesh.trust.certificates import make_root, read_certificates, read_key, trust_domain_of
from mesh.trust.folder import ROOT_TTL, Issued, Root
from mesh.trust.identity import Identity
from mesh.trust.secret import texts_of

__all__ = ["SECRET", "Trust"]

logger = logging.getLogger(__name__)

SECRET = "mesh-trust"
LOOK_SECONDS = 60.0
_ROOTS, _KEY = "roots.pem", "root.key"


class Trust:
    """Follows the Secret, whoever writes it: ``mesh trust`` makes and rotates what is in it.

    Attributes:
        ready: Is set once there is a root.
        changed: Is called when who is trusted is another.
    """

    def __init__(self, cluster: Cluster, namespace: str, trust_domain: str) -> None:
        """Read nothing yet.

        Args:
            cluster: To ask.
            namespace: The operator's.
            trust_domain: Of a root that is to be made; one that is there has its own.
        """
        self._cluster = cluster
        self._namespace, self._trust_domain = namespace, trust_domain
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self.changed: Callable[[], None] = _nothing
        self._root: Root | None = None
        self._issued: Issued | None = None
        self.ready, self._gone = asyncio.Event(), asyncio.Event()
        query = {"fieldSelector": f"metadata.name={SECRET}"}
        self._informer = Informer(cluster, self._path, self._read, self._changed, query)

    @property
    def root(self) -> Root:
        """What certificates are issued by; raises ``ConfigError`` as long as there is none."""
        if self._root is None:
            raise ConfigError(f"there is no root yet in the Secret {SECRET} of the namespace {self._namespace}")
        return self._root

    @property
    def issued(self) -> Issued:
        """The operator's own certificate; raises ``ConfigError`` as long as there is no root."""
        if self._issued is None:
            self._issued = self._issue(self.root)
        return self._issued

    @property
    def trust_domain(self) -> str:
        """Of the root, or of the one that is to be made."""
        return self._trust_domain if self._root is None else trust_domain_of(self._root.roots[0])

    async def run(self) -> None:
        """Follow the Secret, and renew the certificate, until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._informer.run(), name="trust-follow")
            tasks.create_task(self._renew(), name="trust-renew")

    async def keep(self) -> None:
        """Make a root where there is none, and write the Secret again when it is deleted, until it is cancelled.

        Raises:
            ClusterError: It may not be written, or the API server is away.
        """
        await self._informer.synced.wait()
        while True:
            self._gone.clear()
            if not self._informer.kept and await self._cluster.get(f"{self._path}/{SECRET}") is None:
                await self._make()
            await self._gone.wait()

    async def _make(self) -> None:
        try:
            await self._cluster.create(self._path, await asyncio.to_thread(self._manifest))
        except ClusterError as error:
            if error.status != 409:
                raise
        else:
            text = "the Secret %s is written, with a root of the trust domain %s"
            logger.info(text, SECRET, self.trust_domain)

    def _manifest(self) -> Mapping[str, Any]:
        root = self._root
        if root is None:
            made, key = make_root(self._trust_domain, ROOT_TTL)
            root = Root([made], key, SECRET, SECRET)
        return {
            "metadata": {"name": SECRET, "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER}},
            "type": "Opaque",
            "stringData": texts_of(root),
        }

    def _read(self, secret: Mapping[str, Any]) -> Root | None:
        where = f"the Secret {SECRET} of the namespace {self._namespace}"
        try:
            data = secret.get("data") or {}
            roots, key = (base64.b64decode(data[name], validate=True) for name in (_ROOTS, _KEY))
            root = Root(
                read_certificates(roots, f"{_ROOTS} of {where}"), read_key(key, f"{_KEY} of {where}"), where, where
            )
            root.own()
        except (KeyError, binascii.Error):
            logger.warning("%s has no %s and %s; mesh trust init --output json makes both", where, _ROOTS, _KEY)
        except ConfigError as error:
            logger.warning("%s is of no use, the former root counts: %s", where, error)
        else:
            return root
        return self._root

    def _changed(self, key: Key, root: Root | None) -> None:
        if root is None:
            logger.warning(
                "the Secret %s of the namespace %s is gone; the root that was in it counts on", SECRET, key[0]
            )
            self._gone.set()
            return
        self._root = root
        self._issued = self._kept(root) or self._issue(root)
        self.ready.set()
        self.changed()

    def _kept(self, root: Root) -> Issued | None:
        """Give the certificate that there is as long as it is trusted: gateways may not know a new root yet."""
        if self._issued is not None:
            kept = replace(self._issued, roots=root.roots)
            with suppress(ConfigError):
                kept.check(self._identity(root), SECRET)
                return kept
        return None

    def _issue(self, root: Root) -> Issued:
        return root.issue(self._identity(root))

    def _identity(self, root: Root) -> Identity:
        return Identity(trust_domain_of(root.roots[0]), self._namespace, OPERATOR)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._issued is not None and datetime.datetime.now(datetime.UTC) >= self._issued.half():
                self._issued = self._issue(self.root)
                logger.info("the operator's certificate is renewed")


def _nothing() -> None:
    """Tell nobody: this replica does not lead."""
