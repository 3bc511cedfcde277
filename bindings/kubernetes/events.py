"""``bindings.kubernetes``: the Events of a namespace of a cluster, as they come, change and go.

One node of the mesh at a time follows them for an application, in the order of the API server: an event after the
application has taken the one before. How far that is, is noted in the mesh's own store. Who goes on begins where the
former one was, as long as the API server remembers that; else with what has come or changed since. A consumer that is
new begins with what is there.

Source: Dapr 1.18, the Kubernetes Events binding; the Kubernetes API, Event and watching.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import orjson

from bindings._in_order import InOrder, Notes, patiently
from bindings.kubernetes.api import Change, Cluster, ClusterError
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, BindingEvent, Reading
from mesh.ownership.turns import in_turn
from mesh.resources.settings import Setting, ignored, setting
from mesh.store import StateStore
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners

__all__ = ["KubernetesEventsBinding"]

_SAID = {"ADDED": "add", "MODIFIED": "update", "DELETED": "delete"}
# What Go writes of an Event that is none.
_NONE: Mapping[str, object] = {
    "metadata": {"creationTimestamp": None},
    "involvedObject": {},
    "source": {},
    "firstTimestamp": None,
    "lastTimestamp": None,
    "eventTime": None,
    "reportingComponent": "",
    "reportingInstance": "",
}


@dataclass(frozen=True, slots=True)
class KubernetesEventsSettings:
    """Settings of ``bindings.kubernetes``."""

    namespace: str = setting("namespace", "The namespace whose Events come.", required=True, example="default")
    path: str | None = setting(
        "kubeconfigPath",
        "Path of a kubeconfig file; without it the pod's own access is used.",
        example="kubeconfig.yaml",
    )

    ignored: ClassVar[tuple[Setting, ...]] = ignored(
        "nothing is listed again and again: the API server tells of what changes", "resyncPeriodInSec"
    )


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far Events have been read: a version of theirs; empty = not at all."""

    version: str = ""

    def before(self, other: Mark) -> bool:
        """Tell whether the other one is further."""
        return _number(self.version) < _number(other.version)


class KubernetesEventsBinding(ComponentAdapter):
    """Events of a namespace."""

    title = "Reads the Events of a namespace of a Kubernetes cluster."
    tested = "Kubernetes 1.37"
    settings = KubernetesEventsSettings

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self.cluster = Cluster(settings.path)
        self.path = f"/api/v1/namespaces/{settings.namespace}/events"
        self._records: StateStore
        self.owners: Owners

    def remember_in(self, name: str, records: StateStore) -> None:
        """Note there how far Events were read."""
        self._records = records

    def share_by(self, owners: Owners, timers: StateStore) -> None:
        """Read at one host at a time."""
        self.owners = owners

    async def _enter(self) -> None:
        try:
            await self._stack.enter_async_context(self.cluster)
        except ClusterError as error:
            raise failed(error) from error
        await self.check()

    async def check(self) -> None:
        """Ask whether Events may be read."""
        try:
            await self.cluster.get(self.path, {"limit": "1"}, absent=())
        except ClusterError as error:
            raise failed(error) from error

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Read them while it is entered."""
        await self.check()
        notes = Notes(self._records, f"{self.path}||{reading.app_id}", Mark())
        leaving = asyncio.Event()
        reader = _Reader(self, InOrder(notes, "events", reading, leaving, f"the Events at {self.path}"))
        turn = f"{reading.component}||{self.path}||{reading.app_id}"
        async with task_group() as tasks:
            work = tasks.create_task(in_turn(self.owners, turn, reader.read, leaving), name="kubernetes-events")
            try:
                yield
            finally:
                leaving.set()
                if not reader.in_order.handling:
                    work.cancel()


class _Reader:
    """Follows Events from where the last one was taken.

    Attributes:
        in_order: Hands them over.
    """

    def __init__(self, binding: KubernetesEventsBinding, in_order: InOrder[Mark]) -> None:
        self._binding, self.in_order = binding, in_order
        self._known: dict[str, dict[str, Any]] = {}

    async def read(self) -> None:
        """Read on until it is left."""
        await self.in_order.begin()
        forgotten = True
        while not self.in_order.leaving.is_set():
            if forgotten and not await patiently(self._go_on):
                await self._begin_anew()
            forgotten = await patiently(self._follow)

    async def _go_on(self) -> bool:
        """Know what was there when the last one was taken; tell whether the API server remembers that."""
        version = self.in_order.mark.version
        if not version:
            return False
        try:
            at = {"resourceVersion": version, "resourceVersionMatch": "Exact"}
            self._know(
                [item async for page in self._binding.cluster.pages(self._binding.path, at) for item in page.items]
            )
        except ClusterError as error:
            if error.status == 410:
                return False
            raise failed(error) from error
        return True

    async def _begin_anew(self) -> None:
        """Hand over what is there and was not taken."""
        listed, version = await patiently(self._list)
        self._know(listed)
        last = _number(self.in_order.mark.version)
        for item in sorted(listed, key=_version):
            if _version(item) > last and not await self._take(Change("ADDED", item), {}):
                return
        if self.in_order.mark.before(Mark(version)):
            self.in_order.mark = Mark(version)

    async def _list(self) -> tuple[list[dict[str, Any]], str]:
        listed: list[dict[str, Any]] = []
        version = ""
        try:
            async for page in self._binding.cluster.pages(self._binding.path):
                listed += page.items
                version = page.version
        except ClusterError as error:
            raise failed(error) from error
        return listed, version

    async def _follow(self) -> bool:
        """Hand over what changes until the API server ends the stream; tell whether it remembers too little."""
        try:
            async with self._binding.cluster.watch(self._binding.path, self.in_order.mark.version) as changes:
                async for change in changes:
                    if not await self._changed(change):
                        break
        except ClusterError as error:
            if error.status != 410:
                raise failed(error) from error
            return True
        return False

    async def _changed(self, change: Change) -> bool:
        if change.kind == "BOOKMARK":
            self.in_order.mark = Mark(change.version)
            await self.in_order.note()
            return True
        uid = str(change.item["metadata"]["uid"])
        former = self._known.pop(uid, {})
        if change.kind != "DELETED":
            self._known[uid] = change.item
        return await self._take(change, former)

    async def _take(self, change: Change, former: Mapping[str, Any]) -> bool:
        """Hand one over, and note that it was taken; tell whether it was, before this is left."""
        old, new = (former, change.item) if change.kind != "DELETED" else (change.item, {})
        told = {"event": _SAID[change.kind], "oldVal": old or _NONE, "newVal": new or _NONE}
        with self.in_order.whole():
            taken = await self.in_order.take([(BindingEvent(orjson.dumps(told)), Mark(change.version))])
            await self.in_order.note()
        return taken

    def _know(self, items: Sequence[dict[str, Any]]) -> None:
        self._known = {str(item["metadata"]["uid"]): item for item in items}


def failed(error: ClusterError) -> BindingError:
    """Make what users of bindings know."""
    return BindingError(str(error), retryable=error.retryable)


def _version(item: Mapping[str, Any]) -> int:
    return _number(str(item["metadata"]["resourceVersion"]))


def _number(version: str) -> int:
    return int(version or "0")
