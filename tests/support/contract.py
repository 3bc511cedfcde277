"""What the contract tests are written with."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from mesh import address
from mesh.address import Address
from mesh.broker import Broker, Delivery, KeyValue, Message, SubscribeOptions, Topology, Write
from mesh.errors import MeshError
from tests.support.backends import Backend
from tests.support.eventually import eventually

__all__ = ["Inbox", "Place", "came_to", "no_tasks_besides", "text"]

# Less than a default `ack_wait`: what comes in time was not merely redelivered.
DELIVERED_WITHIN = 12.0

_numbers = itertools.count()


@dataclass
class Place:
    """Names that no other test uses, on brokers that are left when the test is over."""

    backend: Backend
    number: int = field(default_factory=lambda: next(_numbers))
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    brokers: dict[Broker, AsyncExitStack] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        """Whether topics have no space of their own: what others write is there too."""
        return getattr(self.backend, "native", False)

    def topic(self, name: str = "orders", *, pattern: bool = False) -> Address:
        own = f"p{os.getpid()}-{self.number}"
        return address.topic("test", own, f"{own}.{name}" if self.native else name, pattern=pattern)

    @property
    def namespace(self) -> str:
        return f"test{os.getpid()}-{self.number}"

    def app(self, app_id: str = "app") -> Address:
        return address.app(self.namespace, app_id)

    def nodes(self) -> Address:
        return address.nodes(self.namespace)

    def topology(self, **settings: object) -> Topology:
        return Topology(self.topic().space, **settings)  # type: ignore[arg-type]

    async def begin(self, broker: Broker, options: SubscribeOptions, name: str = "orders") -> None:
        """Have a group be there before anything is published: it need not get what came earlier."""
        async with broker.subscribe(self.topic(name), options, Inbox()):
            return

    async def connect(self, broker: Broker | None = None) -> Broker:
        """Enter one more node; it has declared the space of this test's topics."""
        stack = AsyncExitStack()
        entered = await stack.enter_async_context(broker or self.backend.broker())
        self.brokers[entered] = stack
        self.stack.push_async_callback(stack.aclose)
        await entered.declare(self.topology())
        return entered

    async def leave(self, broker: Broker) -> None:
        """Leave a node before the test is over."""
        await self.brokers.pop(broker).aclose()


class Inbox:
    """A handler that keeps what it got, and acks it."""

    def __init__(self, settle: Callable[[Delivery], Awaitable[None]] | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self._settle = settle

    async def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if self._settle is None:
            await delivery.ack()
        else:
            await self._settle(delivery)

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.message.body for delivery in self.deliveries]

    async def holds(self, count: int, within: float = DELIVERED_WITHIN) -> None:
        """Wait for at least so many."""

        def check() -> None:
            assert len(self.deliveries) >= count, self.bodies[-20:]

        await eventually(check, within)


def text(value: object, **settings: object) -> Message:
    """A message with a body that says something."""
    return Message({}, str(value).encode(), **settings)  # type: ignore[arg-type]


async def no_tasks_besides(before: set[asyncio.Task[object]]) -> None:
    """Wait until only the tasks from before are there."""

    def check() -> None:
        left = {task for task in asyncio.all_tasks() if task not in before and not task.done()}
        assert not left, left

    await eventually(check)


async def came_to(store: KeyValue, writes: Sequence[Write]) -> list[MeshError | None]:
    """Write all at the same time, each for itself."""

    async def write(each: Write) -> MeshError | None:
        try:
            await store.apply([each])
        except MeshError as error:
            return error
        return None

    async with asyncio.TaskGroup() as tasks:
        writing = [tasks.create_task(write(each)) for each in writes]
    return [each.result() for each in writing]
