"""What every live node says about itself: its applications, their subscriptions, topics and methods.

It is told when somebody asks, and to nobody else: the question is broadcast to all nodes and names an address,
where only the one who asked listens. It also says how long that one waits; each node answers at some moment of
the first half of it, so that many answers do not come at once.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

import orjson

from mesh import address
from mesh.broker import Broker, Frame, Message
from mesh.errors import BrokerError
from mesh.resources.subscription import Subscription
from mesh.tasks import task_group

__all__ = ["ComponentDescription", "Node", "NodeDescription", "answering", "collect"]

MAX_ASKERS = 16
MAX_WITHIN = 10.0
MAX_ABSENT, MAX_LINE = 20, 300


@dataclass(frozen=True, slots=True)
class Node:
    """What one node said.

    Attributes:
        id: The node.
        apps: The applications that take calls through it now.
        subscriptions: Component, topic and dead letter topic (empty for none) of each.
        published: Component and topic of what was published through it since it started; at most 500.
        methods: What its application answers, each ``path`` or ``VERB path``; None when nobody knows, as over HTTP.
        components: Name and type of each, also of those that could not be opened; `problems` tells which these are.
        app_id: The application that it is for, whether that takes calls or only makes them; empty when it did not say.
        actors: The types that its application hosts, and how many are active of each.
        serves: Whether it has an application that takes calls, once that is ready.
        problems: Targets that are not well now, and how they are; at most 20.
    """

    id: str
    apps: tuple[str, ...]
    subscriptions: tuple[tuple[str, str, str], ...] = ()
    published: tuple[tuple[str, str], ...] = ()
    methods: tuple[str, ...] | None = None
    components: tuple[tuple[str, str], ...] = ()
    app_id: str = ""
    actors: tuple[tuple[str, int], ...] = ()
    serves: bool = True
    problems: tuple[tuple[str, str], ...] = ()


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

    ``mesh list`` asks no node: it reads what each gateway of the machine noted of this, beside its process and ports.

    Attributes:
        app_id: The application that it is for.
        namespace: Of the mesh.
        components: Those that are open.
        subscriptions: Those that are active.
        published: Component and topic of what was published through it since it started; at most 500.
        methods: What its application answers, each ``path`` or ``VERB path``; None when nobody knows, as over HTTP.
        endpoints: Services outside of the mesh, by name.
        resiliencies: The Resiliency resources, by name.
        workflow_access: The WorkflowAccessPolicy resources, by name.
        workers: How many workers of workflows are attached.
        features: Those that are switched on.
        actors: The types that its application hosts, and how many are active of each.
        actors_enabled: Whether it may host any: there is a place for their state, or it does host some.
        serves: Whether it has an application that takes calls, once that is ready.
        problems: Targets that are not well now, and how they are; at most 20.
        absent: Name and type of components that could not be opened, and why.
    """

    app_id: str
    namespace: str
    components: tuple[ComponentDescription, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    published: tuple[tuple[str, str], ...] = ()
    methods: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] = ()
    resiliencies: tuple[str, ...] = ()
    workflow_access: tuple[str, ...] = ()
    workers: int = 0
    features: tuple[str, ...] = ()
    actors: tuple[tuple[str, int], ...] = ()
    actors_enabled: bool = False
    serves: bool = True
    problems: tuple[tuple[str, str], ...] = ()
    absent: tuple[tuple[str, str, str], ...] = ()

    def announced(self, *, problems: bool = True) -> Mapping[str, object]:
        """Give what is told to whoever asks over the mesh; `Node` says what each is.

        Args:
            problems: Whether others may know what is not well, and why.
        """
        absent: list[tuple[str, str]] = []
        for name, _, why in self.absent[:MAX_ABSENT]:
            of = f"component {name}"
            reason = why.partition(f"{of}: ")[2] or why  # Where it stands in its file, its resource tells.
            absent.append((of, f"absent: {reason}"[:MAX_LINE]))
        return {
            "app": self.app_id,
            "subscriptions": [(each.pubsub, each.topic, each.dead_letter_topic or "") for each in self.subscriptions],
            "published": self.published,
            "methods": self.methods,
            "components": [*((each.name, each.type) for each in self.components), *(each[:2] for each in self.absent)],
            "actors": self.actors,
            "serves": self.serves,
            "problems": [*absent, *self.problems] if problems else [],
        }


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    return tuple((str(first), str(second)) for first, second in cast("Sequence[Sequence[object]]", value))


def read(body: bytes) -> Node | None:
    """Read an answer; None when it is malformed."""
    try:
        said = orjson.loads(body)
        about = said["about"]
        methods = about.get("methods")
        return Node(
            str(said["node"]),
            tuple(map(str, said["ready"])),
            tuple((str(a), str(b), str(c)) for a, b, c in about.get("subscriptions", ())),
            _pairs(about.get("published", ())),
            None if methods is None else tuple(map(str, methods)),
            _pairs(about.get("components", ())),
            str(about.get("app", "")),
            tuple((str(type_), int(count)) for type_, count in about.get("actors", ())),
            about.get("serves") is not False,
            _pairs(about.get("problems", ())),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


@asynccontextmanager
async def answering(
    broker: Broker, namespace: str, answer: Callable[[], Awaitable[Mapping[str, object] | None]]
) -> AsyncIterator[None]:
    """Answer whoever asks all nodes, while entered.

    Args:
        broker: An entered one.
        namespace: Of the mesh.
        answer: Gives ``node``, ``ready`` (applications that take calls through it now), and ``about``;
            None = another process of the node answers.
    """
    pending: set[asyncio.Task[None]] = set()

    async def tell(where: address.Address, delay: float) -> None:
        await asyncio.sleep(delay)
        told = await answer()
        if told is not None:
            with suppress(BrokerError):
                await broker.broadcast(where, Message({}, orjson.dumps(told)))

    def receive(frame: Frame) -> None:
        try:
            asked = orjson.loads(frame.message.body if frame.message is not None else b"")
            where = address.asker(namespace, str(asked["answer_to"]))
            within = min(max(0.0, float(asked["within"])), MAX_WITHIN)
            delay = random.uniform(0.0, within / 2)  # noqa: S311 - it only spreads
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return
        if len(pending) < MAX_ASKERS:
            task = tasks.create_task(tell(where, delay), name="description-tell")
            pending.add(task)
            task.add_done_callback(pending.discard)

    async with task_group() as tasks:
        try:
            async with broker.listen(address.nodes(namespace), receive):
                yield
        finally:
            for task in pending:
                task.cancel()


async def collect(broker: Broker, namespace: str, seconds: float) -> list[Node]:
    """Ask every node, and give those that answered in time, each once, by id.

    Args:
        broker: An entered one.
        namespace: Of the mesh.
        seconds: How long to listen; while answers still come, up to twice as long.
    """
    loop = asyncio.get_running_loop()
    found: dict[str, Node] = {}
    heard_at = 0.0

    def receive(frame: Frame) -> None:
        nonlocal heard_at
        node = read(frame.message.body) if frame.message is not None else None
        if node is not None:
            found[node.id] = node
            heard_at = loop.time()

    me = secrets.token_hex(8)
    async with broker.listen(address.asker(namespace, me), receive):
        question = {"answer_to": me, "within": seconds}
        await broker.broadcast(address.nodes(namespace), Message({}, orjson.dumps(question)))
        asked_at = loop.time()
        await asyncio.sleep(seconds)
        while loop.time() < min(heard_at + seconds / 4, asked_at + 2 * seconds):  # noqa: ASYNC110 - time, no event
            await asyncio.sleep(seconds / 8)
    return [found[each] for each in sorted(found)]
