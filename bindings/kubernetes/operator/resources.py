"""All resources of a cluster, with the entries of Secrets that they refer to."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bindings.kubernetes.api import Cluster
from bindings.kubernetes.informer import Informer, Key
from bindings.kubernetes.operator.kinds import KINDS, Kind
from bindings.kubernetes.operator.resource import Resource, resource_of, text_of
from bindings.kubernetes.operator.secrets import Secrets
from mesh.supply.wire import Document

__all__ = ["Resources"]

logger = logging.getLogger(__name__)

PAGE = 50  # Of a list: an object may take more than a megabyte.
MAX_NAMESPACE_BYTES = 32 * 2**20  # Twice what one gateway is given.
MAX_REFUSED = 1000  # Of a namespace, whose status says that no gateway is given them.


class Resources:
    """Follows the resources of all namespaces."""

    def __init__(self, cluster: Cluster, changed: Callable[[str], None], left_out: Callable[[str, str], None]) -> None:
        """Read nothing yet.

        Args:
            cluster: To ask.
            changed: Is told the namespace of which something is another for gateways.
            left_out: Is told namespace and key of what they are not given.
        """
        self._told, self._left_out = changed, left_out
        self._of: defaultdict[str, dict[str, Resource]] = defaultdict(dict)
        self._sizes: Counter[str] = Counter()
        self._documents: dict[tuple[str, str], tuple[Resource, Document]] = {}
        self.secrets = Secrets(cluster, changed)
        self._informers = [
            Informer(cluster, kind.path, partial(self._kept, kind), partial(self._changed, kind), limit=PAGE)
            for kind in KINDS.values()
        ]

    async def run(self) -> None:
        """Follow them until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.secrets.run(), name="secrets")
            for kind, informer in zip(KINDS, self._informers, strict=True):
                tasks.create_task(informer.run(), name=f"follow-{kind}")

    def retry(self) -> None:
        """Try again at once what failed."""
        for informer in (*self._informers, self.secrets.informer):
            informer.retry()

    async def settled(self) -> None:
        """Wait until all was read once, but for Secrets: whoever needs those of a namespace waits for them."""
        for informer in self._informers:
            await informer.synced.wait()
        await self.secrets.informer.synced.wait()

    @property
    def failed(self) -> str:
        """Why not all is followed at present; empty while it is."""
        every = [*self._informers, self.secrets.informer]
        return next((each.failed for each in every if each.failed), "")

    @property
    def namespaces(self) -> list[str]:
        """Those with resources."""
        return list(self._of)

    def of(self, namespace: str) -> Mapping[str, Resource]:
        """Give those of a namespace, by their keys."""
        return self._of.get(namespace, {})

    def document(self, resource: Resource) -> Document:
        """Give a resource as a gateway is given it; blocks for a moment when it is another one."""
        key = resource.namespace, resource.key
        known = self._documents.get(key)
        if known is None or not resource.is_shown_as(known[0]):
            document = _document(resource, text_of(resource))
            if document.problem:
                logger.warning("gateways in %s are not given one resource: %s", resource.namespace, document.problem)
            known = self._documents[key] = resource, document
        return known[1]

    def _kept(self, kind: Kind, item: Mapping[str, Any]) -> Resource | None:
        """Read a resource; one namespace has its share of the memory and no more."""
        resource = resource_of(kind, item)
        former = self.of(resource.namespace).get(resource.key)
        size = self._sizes[resource.namespace] + len(resource.data) - (len(former.data) if former else 0)
        refused = resource.refused or _document(resource, resource.data.decode()).problem
        if not refused and size > MAX_NAMESPACE_BYTES:
            refused = f"the namespace has more than {MAX_NAMESPACE_BYTES} bytes of resources"
        if not refused:
            return resource
        logger.warning("%s in %s is not given to gateways: %s", resource.key, resource.namespace, refused)
        others = [each for each in self.of(resource.namespace).values() if each.refused and each.key != resource.key]
        return resource.without(refused) if len(others) < MAX_REFUSED else None

    def _changed(self, kind: Kind, key: Key, resource: Resource | None) -> None:
        namespace, own = key[0], f"{kind.name}/{key[1]}"
        former = self._of[namespace].pop(own, None)
        self._sizes[namespace] += (len(resource.data) if resource else 0) - (len(former.data) if former else 0)
        self.secrets.want(namespace, former.secrets if former else (), resource.secrets if resource else ())
        if resource is not None:
            self._of[namespace][own] = resource
        else:
            self._documents.pop((namespace, own), None)
            if not self._of[namespace]:
                del self._of[namespace], self._sizes[namespace]
        if resource is None or not resource.is_shown_as(former):
            self._told(namespace)
        if resource is not None and resource.refused:
            self._left_out(namespace, own)


def _document(resource: Resource, text: str) -> Document:
    return Document(resource.kind, resource.name, resource.namespace, text)
