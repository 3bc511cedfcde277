"""``python -m tests.support.crowd BACKBONE``: many nodes in one process, that tell of themselves and are tapped.

Each has what a gateway has to be seen: an exchange, a directory and a tap, on one connection for all. Only what passes
them is made up: what its applications would publish and get, by the same dice each time.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack

from mesh.access import Gate
from mesh.broker import Broker
from mesh.calls.exchange import Exchange
from mesh.node.description import ComponentDescription, NodeDescription
from mesh.node.directory import Directory
from mesh.operation import Caller
from mesh.passing import Passing
from mesh.registry import Registry
from mesh.resources.subscription import Subscription
from mesh.tap.watches import Watches
from mesh.telemetry import Counters

__all__ = ["APPS", "NAMESPACE", "TOPICS"]

APPS, TOPICS = 200, 2_000
PUBLISHED, SUBSCRIBED, CALLED = TOPICS // APPS, 20, 2
NAMESPACE = "default"
COMPONENTS = (
    ComponentDescription("pubsub", "pubsub.mesh", "v1"),
    ComponentDescription("statestore", "state.mesh", "v1"),
)
FAILING = 0.02


class _Member:
    """A node."""

    def __init__(self, number: int, dice: random.Random) -> None:
        self._dice = dice
        self._own = Caller(NAMESPACE, f"app-{number:03}")
        self._published = [f"topic-{number * PUBLISHED + each:04}" for each in range(PUBLISHED)]
        self._subscribed = [f"topic-{each:04}" for each in sorted(dice.sample(range(TOPICS), SUBSCRIBED))]
        self._called = [f"app-{each:03}" for each in dice.sample(range(APPS), CALLED)]
        self._taps = Watches(self._own, Gate(self._own, None, Counters(), alone=True), lambda *_: None)

    def describe(self) -> NodeDescription:
        """Say what it has."""
        return NodeDescription(
            self._own.app_id,
            NAMESPACE,
            COMPONENTS,
            tuple(Subscription("", "pubsub", topic) for topic in self._subscribed),
            tuple(("pubsub", topic) for topic in self._published),
        )

    async def enter(self, broker: Broker, stack: AsyncExitStack) -> None:
        """Be seen until the stack is left."""
        exchange = await stack.enter_async_context(Exchange(broker))
        directory = Directory(exchange, NAMESPACE)
        directory.describe = self.describe().announced
        await stack.enter_async_context(directory.run())
        directory.host(self._own.app_id, ready=True)
        await stack.enter_async_context(self._taps.run(exchange, directory.node_id))

    def pass_by(self) -> None:
        """Let about a second's traffic pass, if anybody looks."""
        if self._taps.on:
            for each in self._traffic():
                each.seconds = self._dice.expovariate(200)
                each.outcome = each.outcome or ("ok" if each.seen == "asked" else "success")
                self._taps.tell(each)

    def _traffic(self) -> Iterator[Passing]:
        for topic in self._published:
            yield Passing("asked", "pubsub", "publish", f"pubsub/{topic}", self._own.app_id)
        for topic in self._subscribed:
            passing = Passing("arrived", "pubsub", "deliver", f"pubsub/{topic}")
            passing.outcome = "retry" if self._dice.random() < FAILING else ""
            yield passing
        for app in self._called:
            yield Passing("asked", "invocation", "invoke", app, self._own.app_id)
        yield Passing("asked", "state", "get", "statestore", self._own.app_id)


async def main(backbone: str) -> None:
    """Go on until it is told to end."""
    dice = random.Random(200)
    members = [_Member(number, dice) for number in range(APPS)]
    async with AsyncExitStack() as stack:
        broker: Broker = await stack.enter_async_context(Registry().backbone(backbone).from_url(backbone))  # type: ignore[attr-defined]
        for member in members:
            await member.enter(broker, stack)
        print("all are there", flush=True)
        while True:
            for member in members:
                member.pass_by()
                await asyncio.sleep(1 / APPS)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
