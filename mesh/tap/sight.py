"""What a node tells of what passed it: one `Sight` for each operation, arrival, actor's turn and workflow's step."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["BUCKETS", "OTHERS", "Content", "Dropped", "Edge", "Rates", "Refused", "Seen", "Sight", "Value"]

Value = str | int | float | bool
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # Seconds; one more for the rest.
OTHERS = "(other)"  # The edge of everything beyond the bound on edges.


class Seen(StrEnum):
    """Where it was seen."""

    ASKED = "asked"  # By this node's application, its API or the mesh itself.
    HOSTED = "hosted"  # Run here for another node.
    ARRIVED = "arrived"  # Handed to this node's application.
    TURN = "turn"  # Of an actor that is here.
    STEP = "step"  # Of a workflow: a turn, or an activity that runs here.


class Content(msgspec.Struct, frozen=True, array_like=True):
    """A request or what it was answered, an event or what the application said to it.

    Attributes:
        headers: Names and values; those named as secrets have the value ``(hidden)``. None = hidden.
        content_type: Of the body; "" = not said.
        size: Of the body, in bytes; -1 = not known, as of a stream.
        body: It, or what of it is told; None = hidden, or a stream.
        cut: Whether the body is longer than what is told of it.
    """

    headers: tuple[tuple[str, str], ...] | None = None
    content_type: str = ""
    size: int = -1
    body: bytes | None = None
    cut: bool = False


class Sight(msgspec.Struct, frozen=True, array_like=True, tag="sight", kw_only=True):
    """One thing that passed a node, told when it was over.

    Attributes:
        id: Its own, unique among all.
        time: When it was over, Unix time in seconds.
        seconds: How long it took.
        seen: Where it was seen.
        block: The building block (``pubsub``).
        method: What was asked of it (``publish``).
        target: Of whom: a component, an app id, an actor as ``type/id``, of events ``component/topic``.
        source: The app id of who asked or sent; "" = not known.
        app: The app id of the node that saw it.
        node: That node.
        outcome: ``ok``, an error's code, ``CANCELLED``, or what came of an event: ``success``, ``retry``, ``drop``.
        traceparent: Of its span; "" = untraced.
        details: What is said besides that is nobody's value: verb, path, status, topic, attempt, settlement, reason…
        request: What was asked with; None = it has no content.
        reply: What came of it; None = nothing did, or it has no content.
        hidden: Whether headers and values were left out for want of the right to see them.
    """

    id: str
    time: float
    seconds: float
    seen: Seen
    block: str
    method: str
    target: str
    source: str
    app: str
    node: str
    outcome: str
    traceparent: str = ""
    details: dict[str, Value] = {}
    request: Content | None = None
    reply: Content | None = None
    hidden: bool = False


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag="dropped"):
    """So many sights were left out at a node since it last said so, as whoever asked was slower than they came."""

    app: str
    node: str
    count: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """A node does not tell what was asked, or not all of it; ``reason`` names what would allow it."""

    app: str
    node: str
    reason: str


class Edge(msgspec.Struct, frozen=True, array_like=True):
    """What passed between two since the last time: a line of the map.

    Attributes:
        seen: As of a `Sight`, like the next four.
        block: "".
        source: Who asked or sent.
        target: Of whom; ``OTHERS`` = everything beyond the bound on edges.
        app: Of the node that saw it.
        count: How many.
        errors: How many of them failed, of events how many are to come again or were dropped.
        seconds: How long they took together.
        longest: The longest of them, in seconds.
        buckets: How many took at most ``BUCKETS[n]`` seconds and more than the one before; the last one has the rest.
    """

    seen: Seen
    block: str
    source: str
    target: str
    app: str
    count: int
    errors: int
    seconds: float
    longest: float
    buckets: tuple[int, ...]


class Rates(msgspec.Struct, frozen=True, array_like=True, tag="rates"):
    """What passed a node within the last ``seconds``, by edges; the node tells it also when nothing did."""

    app: str
    node: str
    seconds: float
    edges: tuple[Edge, ...] = ()
