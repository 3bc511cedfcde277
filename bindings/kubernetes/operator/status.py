"""The status of resources: by which nodes each is loaded, and what is wrong with it there.

It is about one generation of a resource. Until a node has reported on that one, the status is of the one before.
"""

from __future__ import annotations

import asyncio
import datetime
import heapq
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.informer import Informer, Key
from bindings.kubernetes.operator.kinds import KINDS
from bindings.kubernetes.operator.resource import Resource
from bindings.kubernetes.operator.resources import Resources
from mesh.supply.source import Pod
from mesh.supply.wire import Report, Reported

__all__ = ["INJECTED", "LOADED", "Statuses"]

logger = logging.getLogger(__name__)

INJECTED = "dapr.io/sidecar-injected=true"
LOADED = "Loaded"
MAX_NODES = 20
MAX_PROBLEMS = 20
MAX_REVISIONS = 8192
MAX_MESSAGE = 1024
GATHER_SECONDS = 1.0
WRITES_PER_SECOND = 10.0
WITHIN_SECONDS = 900.0  # Gateways ask every five minutes or so.
LOOK_SECONDS = 60.0

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Said:
    """What a node made of a resource."""

    generation: int
    problems: Sequence[Reported] = ()


@dataclass(slots=True)
class _Node:
    name: str
    namespace: str
    at: float
    said: dict[str, _Said] = field(default_factory=dict)


class Statuses:
    """Gathers reports, and writes what is another into the cluster."""

    def __init__(self, cluster: Cluster, resources: Resources) -> None:
        """Know nothing yet.

        Args:
            cluster: To write to; its errors have to be ``ClusterError``.
            resources: Whose status it is.
        """
        self._cluster, self._resources = cluster, resources
        self._given: OrderedDict[tuple[str, str], Mapping[str, int]] = OrderedDict()
        self._nodes: dict[str, _Node] = {}
        self._uids: dict[Key, str] = {}
        self._by: defaultdict[Place, set[str]] = defaultdict(set)
        self._due: dict[Place, None] = {}
        self._work = asyncio.Event()
        self._without: dict[str, float] = {}
        self._pods = Informer(
            cluster, "/api/v1/pods", _uid, self._pod_changed, {"labelSelector": INJECTED}, metadata=True
        )

    def left_out(self, namespace: str, key: str) -> None:
        """Have it stand in the status of a resource that no gateway is given it."""
        self._due[namespace, key] = None
        self._work.set()

    def gave(self, namespace: str, revision: str, generations: Mapping[str, int]) -> None:
        """Note of which generations the resources of a revision are, by their keys."""
        self._given[namespace, revision] = generations
        self._given.move_to_end((namespace, revision))
        while len(self._given) > MAX_REVISIONS:
            self._given.popitem(last=False)

    def heard(self, pod: Pod, report: Report) -> None:
        """Note what a node reports; of a revision that nobody remembers it is heard later."""
        generations = self._given.get((pod.namespace, report.revision))
        if generations is None:
            return
        problems: defaultdict[str, list[Reported]] = defaultdict(list)
        for each in report.problems:
            problems[f"{each.kind}/{each.name}"].append(each)
        known = {*report.loaded, *problems} & generations.keys()
        said = {key: _Said(generations[key], tuple(problems.get(key, ()))) for key in known}
        node = self._nodes.get(pod.uid)
        if node is None:
            self._forget(self._uids.get((pod.namespace, pod.name), ""))  # One of the same name, before it.
            node = self._nodes[pod.uid] = _Node(pod.name, pod.namespace, 0.0)
            self._uids[pod.namespace, pod.name] = pod.uid
        node.at = time.monotonic()
        self._say(pod.uid, node, said)

    async def run(self) -> None:
        """Write statuses until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pods.run(), name="status-pods")
            tasks.create_task(self._write_all(), name="status-write")
            tasks.create_task(self._look(), name="status-look")

    def _say(self, uid: str, node: _Node, said: dict[str, _Said]) -> None:
        for key in node.said.keys() | said.keys():
            if node.said.get(key) != said.get(key):
                place = node.namespace, key
                (self._by[place].add if key in said else self._by[place].discard)(uid)
                if not self._by[place]:
                    del self._by[place]
                self._due[place] = None
                self._work.set()
        node.said = said

    def _pod_changed(self, key: Key, uid: str | None) -> None:
        known = self._uids.get(key, uid)
        if known is not None and known != uid:
            self._forget(known)

    def _forget(self, uid: str) -> None:
        node = self._nodes.pop(uid, None)
        if node is not None:
            self._say(uid, node, {})
            if self._uids.get((node.namespace, node.name)) == uid:
                del self._uids[node.namespace, node.name]

    async def _look(self) -> None:
        """Forget who reports no more, and what was written of nodes that nobody has heard of since."""
        unheard = time.monotonic() + WITHIN_SECONDS
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for uid in [uid for uid, node in self._nodes.items() if now - node.at > WITHIN_SECONDS]:
                self._forget(uid)
            if now > unheard:
                unheard = float("inf")
                self.look_at_all()

    def look_at_all(self) -> None:
        """Write every status anew that is not as it should be."""
        for namespace in self._resources.namespaces:
            self._due |= {(namespace, key): None for key in self._resources.of(namespace)}
        self._work.set()

    async def _write_all(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            await asyncio.sleep(GATHER_SECONDS)  # Nodes report one after the other.
            while self._due:
                place = next(iter(self._due))
                del self._due[place]
                resource = self._resources.of(place[0]).get(place[1])
                if resource is None or self._without.get(resource.kind, 0.0) > time.monotonic():
                    continue
                status = self._status(place, resource)
                if status is not None:
                    await self._write(resource, status)
                    await asyncio.sleep(1 / WRITES_PER_SECOND)

    async def _write(self, resource: Resource, status: Mapping[str, Any]) -> None:
        path = f"{KINDS[resource.kind].path_of(resource.namespace, resource.name)}/status"
        try:
            await self._cluster.patch(path, {"status": status})
        except ClusterError as error:
            if error.status == 404:  # It is gone, or its kind has no status: the CRD is another one than ours.
                if self._resources.of(resource.namespace).get(resource.key) is not None:
                    self._without[resource.kind] = time.monotonic() + WITHIN_SECONDS
                return
            logger.warning("the status of %s in %s is not written: %s", resource.key, resource.namespace, error)
            if error.retryable:
                self._due[resource.namespace, resource.key] = None
                await asyncio.sleep(error.retry_after or 2 * GATHER_SECONDS)

    def _status(self, place: Place, resource: Resource) -> Mapping[str, Any] | None:
        """Make a resource's status; None: it is so already, or nobody has said anything of this generation."""
        now = resource.generation
        nodes = [self._nodes[uid] for uid in self._by.get(place, ())]
        said = [(node.name, node.said[place[1]]) for node in nodes if node.said[place[1]].generation == now]
        former = resource.status
        if not said and not resource.refused and former.get("observedGeneration") != now:
            return None
        names = [name for name, each in said if not each.problems]
        problems = [_shown(name, each) for name, those in sorted(said, key=_by_name) for each in those.problems]
        if resource.refused:
            refused = Reported(resource.kind, resource.name, "", 0, f"no gateway is given it: {resource.refused}")
            names, problems = [], [_shown("", refused)]
        made = {
            "observedGeneration": now,
            "loadedBy": {"count": len(names), "nodes": heapq.nsmallest(MAX_NODES, names)},
            "problems": problems[:MAX_PROBLEMS],
        }
        made["conditions"] = [_condition(now, names, problems, former)]
        same = all(former.get(name) == value for name, value in made.items())
        return None if same else made


def _by_name(said: tuple[str, _Said]) -> str:
    return said[0]


def _shown(node: str, problem: Reported) -> Mapping[str, Any]:
    return {"node": node, "field": problem.field, "line": problem.line, "text": problem.text}


def _condition(
    generation: int, names: Sequence[str], problems: Sequence[Mapping[str, Any]], former: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Say in one word whether it is in use: ``kubectl wait --for=condition=Loaded`` waits for that."""
    if problems:
        first = problems[0]
        where = f" (line {first['line']})" if first["line"] else ""
        text = f"{first['field']}: {first['text']}" if first["field"] else str(first["text"])
        state, reason, message = "False", "Problem", f"{text}{where}"
    elif names:
        state, reason, message = "True", "InUse", ""
    else:
        state, reason, message = "Unknown", "NoNode", "no node reports that it uses it"
    made = {
        "type": LOADED,
        "status": state,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
    }
    known = former.get("conditions")
    ours = (
        [each for each in known if isinstance(each, dict) and each.get("type") == LOADED]
        if isinstance(known, list)
        else []
    )
    last: Mapping[str, Any] = ours[0] if ours else {}
    since = last.get("lastTransitionTime") if last.get("status") == state else None
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**made, "lastTransitionTime": since or stamp}


def _uid(item: Mapping[str, Any]) -> str:
    return str(item["metadata"]["uid"])
