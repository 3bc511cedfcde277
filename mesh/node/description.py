"""What every live node says about itself: its applications, their subscriptions, topics and methods.

Presence is broadcast all the time and small; this is only told when somebody asks. The question is an
announcement of nobody with ``"query": "describe"``, which an older node answers with its presence alone.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import orjson

from mesh import address
from mesh.broker import Broker, Frame, Message
from mesh.resources.subscription import Subscription

__all__ = ["DESCRIBE", "ComponentDescription", "Node", "NodeDescription", "collect"]

DESCRIBE = "describe"


@dataclass(frozen=True, slots=True)
class Node:
    """What one node said.

    Attributes:
        id: The node.
        apps: The applications that take calls through it now.
        subscriptions: Component, topic and dead letter topic (empty for none) of each.
        published: Component and topic of what was published through it since it started; at most 500.
        methods: What its application answers, each ``path`` or ``VERB path``; None when nobody knows, as over HTTP.
        components: Name and type of each.
        app_id: The application that it is for, whether that takes calls or only makes them; empty when it did not say.
    """

    id: str
    apps: tuple[str, ...]
    subscriptions: tuple[tuple[str, str, str], ...] = ()
    published: tuple[tuple[str, str], ...] = ()
    methods: tuple[str, ...] | None = None
    components: tuple[tuple[str, str], ...] = ()
    app_id: str = ""


@dataclass(frozen=True, slots=True)
class ComponentDescription:
    """A component of a node: what it is, and what metadata tells that it can do."""

    name: str
    type: str
    version: str
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """What a node tells about itself; ``metadata``, the directory and ``mesh list`` render this.

    Attributes:
        app_id: The application that it is for.
        components: Those that are open.
        subscriptions: Those that are active.
        published: Component and topic of what was published through it since it started; at most 500.
        methods: What its application answers, each ``path`` or ``VERB path``; None when nobody knows, as over HTTP.
        endpoints: Services outside of the mesh, by name.
        resiliencies: The Resiliency resources, by name.
        features: Those that are switched on.
    """

    app_id: str
    components: tuple[ComponentDescription, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    published: tuple[tuple[str, str], ...] = ()
    methods: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] = ()
    resiliencies: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def announced(self) -> Mapping[str, object]:
        """Give what is told to whoever asks over the mesh; `Node` says what each is."""
        return {
            "app": self.app_id,
            "subscriptions": [(each.pubsub, each.topic, each.dead_letter_topic or "") for each in self.subscriptions],
            "published": self.published,
            "methods": self.methods,
            "components": [(each.name, each.type) for each in self.components],
        }


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    return tuple((str(first), str(second)) for first, second in cast("Sequence[Sequence[object]]", value))


def read(body: bytes) -> Node | None:
    """Read an announcement; None when it is a question or malformed."""
    try:
        said = orjson.loads(body)
        if said.get("query"):
            return None
        about = said.get("about") or {}
        methods = about.get("methods")
        return Node(
            str(said["node"]),
            tuple(map(str, said["ready"])),
            tuple((str(a), str(b), str(c)) for a, b, c in about.get("subscriptions", ())),
            _pairs(about.get("published", ())),
            None if methods is None else tuple(map(str, methods)),
            _pairs(about.get("components", ())),
            str(about.get("app", "")),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


async def collect(broker: Broker, namespace: str, seconds: float) -> list[Node]:
    """Ask every node, and give those that answered in time, each once, by id.

    Args:
        broker: An entered one.
        namespace: Of the mesh.
        seconds: How long to listen.
    """
    found: dict[str, Node] = {}

    def receive(frame: Frame) -> None:
        node = read(frame.message.body) if frame.message is not None else None
        # A periodic announcement that comes after the answer says less.
        if node is not None and (node.id not in found or node.app_id):
            found[node.id] = node

    where = address.nodes(namespace)
    async with broker.listen(where, receive):
        question = {"node": secrets.token_hex(8), "query": DESCRIBE, "ready": [], "seen": {}}
        await broker.broadcast(where, Message({}, orjson.dumps(question)))
        await asyncio.sleep(seconds)
    return [found[each] for each in sorted(found)]
