"""How much passed, by edges: who asked whom through which building block, how often it failed, how long it took."""

from __future__ import annotations

from bisect import bisect_left

from mesh.passing import Passing
from mesh.tap.sight import BUCKETS, OTHERS, Edge, Seen

__all__ = ["Counted", "edge_target"]

MAX_EDGES = 2000
_GOOD = frozenset({"ok", "success"})
_MANY = frozenset({"actors", "workflows"})


def edge_target(passing: Passing) -> str:
    """Give whom an edge leads to: of actors and workflows the type or name, since each has ids without number."""
    return passing.target.partition("/")[0] if passing.block in _MANY else passing.target


class _Edge:
    __slots__ = ("buckets", "count", "errors", "longest", "seconds")

    def __init__(self) -> None:
        self.count = self.errors = 0
        self.seconds = self.longest = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)


class Counted:
    """What passed since it was last taken."""

    def __init__(self, app: str) -> None:
        """Count for a node.

        Args:
            app: The node's app id.
        """
        self._app = app
        self._edges: dict[tuple[str, str, str, str], _Edge] = {}

    def add(self, passing: Passing) -> None:
        """Count something that is over."""
        key = passing.seen, passing.block, passing.source, edge_target(passing)
        edge = self._edges.get(key)
        if edge is None:
            if len(self._edges) >= MAX_EDGES:
                key = passing.seen, passing.block, "", OTHERS
            edge = self._edges.setdefault(key, _Edge())
        seconds = passing.seconds
        edge.count += 1
        edge.errors += passing.outcome not in _GOOD
        edge.seconds += seconds
        edge.longest = max(edge.longest, seconds)
        edge.buckets[bisect_left(BUCKETS, seconds)] += 1

    def take(self) -> tuple[Edge, ...]:
        """Give it, and begin anew."""
        edges, self._edges = self._edges, {}
        return tuple(
            Edge(
                Seen(seen),
                block,
                source,
                target,
                self._app,
                each.count,
                each.errors,
                each.seconds,
                each.longest,
                tuple(each.buckets),
            )
            for (seen, block, source, target), each in edges.items()
        )
