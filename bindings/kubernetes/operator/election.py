"""One of several replicas leads: the holder of a Lease.

No clock of another machine is trusted: who does not hold the lease takes it once it has seen it unchanged for as long
as it lasts; who holds it stops in good time before that, counted from when it asked last.

Source: the Kubernetes documentation, "Leases"; coordination.k8s.io/v1.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from bindings.kubernetes.api import Cluster, ClusterError
from mesh.errors import MeshError
from mesh.tasks import task_group

__all__ = ["Election"]

logger = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
RENEW_SECONDS = 10.0
RETRY_SECONDS = 2.0
AFTER_FAILURE_SECONDS = 5.0


class LostError(Exception):
    """The lease is, or may be, another's."""


class Election:
    """Takes part in the election of a leader.

    Attributes:
        leads: Whether this one does.
        leader: Who does, as far as it is known.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, identity: str) -> None:
        """Take no part yet.

        Args:
            cluster: To ask.
            namespace: Of the Lease.
            name: Likewise.
            identity: Tells this replica from the others, and from one of before a restart.
        """
        self._cluster, self._identity = cluster, identity
        self._namespace, self._name = namespace, name
        self._many = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._one = f"{self._many}/{name}"
        self._seen: tuple[str, float] = ("", 0.0)
        self._lease: dict[str, Any] | None = None
        self._asked = 0.0
        self.leads = False
        self.leader = ""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work whenever this one leads, until it is cancelled; a work that is over gives the lease up."""
        try:
            while True:
                await self._acquire()
                await self._lead(work)
                await asyncio.sleep(AFTER_FAILURE_SECONDS)  # Another one may do better.
        finally:
            await self._release()

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        self.leads = True
        logger.info("%s leads", self._identity)
        try:
            async with task_group() as tasks:
                working = tasks.create_task(self._working(work), name="leader-work")
                keeping = tasks.create_task(self._keep(), name="leader-keep")
                working.add_done_callback(lambda _: keeping.cancel())
        except LostError as error:
            logger.warning("%s leads no more: %s", self._identity, error)
        finally:
            self.leads = False
            await self._release()

    async def _working(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (MeshError, ClusterError) as error:
            logger.warning("%s cannot lead: %s", self._identity, error)

    async def _acquire(self) -> None:
        told = ""
        while True:
            try:
                if await self._take():
                    return
                told = ""
            except ClusterError as error:
                if error.status == 409:
                    continue  # Somebody was faster: look who.
                if str(error) != told:
                    told = str(error)
                    logger.warning("the Lease %s cannot be had for now: %s", self._name, error)
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

    async def _take(self) -> bool:
        """Take the lease if it is free; tell whether it is this one's now."""
        loop = asyncio.get_running_loop()
        self._asked = loop.time()
        found = await self._cluster.get(self._one)
        if found is None:
            made = {"metadata": {"name": self._name}, "spec": self._spec({})}
            self._lease = await self._cluster.create(self._many, made)
            return True
        spec = found.get("spec") or {}
        version, self.leader = str(found["metadata"]["resourceVersion"]), str(spec.get("holderIdentity") or "")
        if version != self._seen[0]:
            self._seen = version, loop.time()
        lasts = float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
        if self.leader not in ("", self._identity) and loop.time() - self._seen[1] < lasts:
            return False
        self._lease = await self._cluster.replace(self._one, {**found, "spec": self._spec(spec)})
        return True

    async def _keep(self) -> None:
        """Renew the lease; raises ``LostError``."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            left = self._asked + RENEW_SECONDS - loop.time()
            try:
                async with asyncio.timeout(max(left, 0.0)):
                    await self._renew()
            except TimeoutError:
                raise LostError("the lease could not be renewed in time") from None
            except ClusterError as error:
                if error.status in (404, 409):
                    raise LostError("the lease is another's, or is gone") from None

    async def _renew(self) -> None:
        assert self._lease is not None
        asked = asyncio.get_running_loop().time()
        spec = {**self._lease["spec"], "renewTime": _now()}
        self._lease = await self._cluster.replace(self._one, {**self._lease, "spec": spec})
        self._asked = asked

    def _spec(self, former: dict[str, Any]) -> dict[str, Any]:
        now, count = _now(), int(former.get("leaseTransitions") or 0)
        same = former.get("holderIdentity") == self._identity
        self.leader = self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "acquireTime": former.get("acquireTime") or now if same else now,
            "renewTime": now,
            "leaseTransitions": count if same or not former else count + 1,
        }

    async def _release(self) -> None:
        """Give the lease up, if it is this one's, so that another one need not wait until it is over."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        with suppress(ClusterError, TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._cluster.replace(self._one, {**lease, "spec": spec})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
