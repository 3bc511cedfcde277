"""Nodes on a broker in memory that loses what a test says, for calls whose request or answer is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.address import Address
from mesh.broker import Message, Sink
from mesh.calls.exchange import Exchange, Request
from mesh.calls.link import FRAME_HEADER
from tests.support.guards import Guards, no_guards, strict_guards

__all__ = ["APP", "ASK_AFTER", "BOTH", "KNOWN", "Mesh", "Node", "mesh_of", "soon"]

APP = address.app("default", "app")
ASK_AFTER = 0.1
BOTH = pytest.mark.parametrize("mesh", [False, True], ids=["claimed", "proven"], indirect=True)
KNOWN = 5 * ASK_AFTER  # Until a member vouches for who the others are.


class Node(MemoryBroker):
    """A node whose frames are looked at on their way out, and which may be deaf to what is broadcast."""

    def __init__(self, hub: MemoryHub) -> None:
        super().__init__(hub)
        self.loses: Callable[[str | Address, Message], bool] = lambda to, message: False
        self.lost: list[tuple[str | Address, Message, str]] = []
        self.deaf = False
        self.confirms_late = False
        self._on_restored: list[Callable[[], None]] = []

    def on_restored(self, callback: Callable[[], None]) -> None:
        self._on_restored.append(callback)

    def restore(self) -> None:
        """Hear again what is broadcast, as after an outage."""
        self.deaf = False
        for callback in self._on_restored:
            callback()

    def listen(self, address: Address, sink: Sink) -> AbstractAsyncContextManager[None]:
        return super().listen(address, lambda frame: None if self.deaf else sink(frame))

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        if self.loses(to, message):
            self.lost.append((to, message, reply_to))
        else:
            await super().send(to, message, reply_to)

    async def broadcast(self, address: Address, message: Message) -> None:
        if not self.loses(address, message):
            await super().broadcast(address, message)
        for _ in range(20 if self.confirms_late else 0):
            await asyncio.sleep(0)  # Whoever hears it answers meanwhile.

    def lose_next(self, kind: str | None, *, served: bool = False) -> None:
        """Lose the next frame of a kind: one to an inbox, or to whoever serves."""

        def loses(to: str | Address, message: Message) -> bool:
            if message.headers.get(FRAME_HEADER) != kind or isinstance(to, Address) is not served:
                return False
            self.loses = lambda to, message: False
            return True

        self.loses = loses


class Mesh:
    """Nodes of one hub, with what each ran."""

    def __init__(self, stack: AsyncExitStack, guards: Guards) -> None:
        self._guards = guards
        self._hub = MemoryHub()
        self._stack = stack
        self.ran: list[bytes] = []

    async def node(self) -> tuple[Node, Exchange]:
        broker = await self._stack.enter_async_context(Node(self._hub))
        return broker, await self._stack.enter_async_context(
            Exchange(
                broker,
                ping_interval=0.05,
                silence_limit=1.0,  # Longer than a busy machine may stop for.
                stall_limit=1.0,
                ask_after=ASK_AFTER,
                guard=self._guards("app"),
            )
        )

    async def answer(self, request: Request) -> None:
        self.ran.append(request.body)
        await request.reply({}, request.body)


@asynccontextmanager
async def mesh_of(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    """Give a mesh without proofs; with them for a test that is parametrized so."""
    guards = strict_guards("default") if getattr(request, "param", False) else no_guards
    async with AsyncExitStack() as stack:
        yield Mesh(stack, guards)


def soon(seconds: float = 5.0) -> float:
    return time.time() + seconds
