"""A mesh whose nodes prove who they are, and one node on its broker that may do everything there."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.address import Address
from mesh.broker import Broker, Frame, Message
from mesh.calls.exchange import Exchange
from mesh.trust.folder import Folder
from mesh.trust.guard import Guard
from mesh.trust.identity import Identity, TrustSettings

__all__ = ["NAMESPACE", "STOCK", "Hostile", "Mesh", "Sent", "Tapped", "soon"]

NAMESPACE = "default"
STOCK = address.app(NAMESPACE, "stock")


Sent = tuple[str | Address, Message, str]


def soon() -> float:
    return time.time() + 20


class Tapped:
    """A node all of whose frames are seen on their way out, and may be held back, or become others.

    Attributes:
        sent: What it has sent.
        held: Tells what is held back.
        kept: That.
        made_of: Gives what becomes of a frame.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.sent: list[Sent] = []
        self.held: Callable[[Message], bool] = lambda message: False
        self.kept: asyncio.Queue[Sent] = asyncio.Queue()
        self.made_of: Callable[[Message], Sequence[Message]] = lambda message: (message,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def __aenter__(self) -> Broker:
        await self._broker.__aenter__()
        return cast("Broker", self)

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._broker.__aexit__(*exc_info)

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        self.sent.append((to, message, reply_to))
        if self.held(message):
            self.kept.put_nowait((to, message, reply_to))
            return
        for each in self.made_of(message):
            await self._broker.send(to, each, reply_to)


class Hostile:
    """A node with the right to send, serve and hear everything."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.got: list[Frame] = []
        broker.on_frame(self.got.append)

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        await self.broker.send(to, message, reply_to)

    @property
    def inbox(self) -> str:
        return f"{self.broker.inbox}.mesh-evil"


class Mesh:
    """A caller, a callee, and a hostile node.

    Attributes:
        counts: What was refused, by what it was and why.
        stock: Where the callee serves.
    """

    def __init__(self, folder: Path, make: Callable[[], Broker] | None = None, namespace: str = NAMESPACE) -> None:
        Folder(folder).init("public")
        self.folder, self.namespace = folder, namespace
        self.stock = address.app(namespace, "stock")
        self.make = make or partial(MemoryBroker, MemoryHub())
        self.caller_broker, self.callee_broker = Tapped(self.make()), Tapped(self.make())
        self.evil_broker = self.make()
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.caller: Exchange
        self.callee: Exchange
        self.evil: Hostile

    def count(self, name: str, labels: tuple[str, ...], *_: object) -> None:
        self.counts[labels] += 1

    def guard(self, app_id: str, mode: str = "strict", *, began: float | None = 0.0, **settings: object) -> Guard:
        """Make a guard that takes what is signed at once, as one does that has run for a while; by None it has not."""
        made = Guard(TrustSettings(mode, folder=self.folder, **settings), self.count, began)  # type: ignore[arg-type]
        identity = Identity("public", self.namespace, app_id)
        made.take(Folder(self.folder).issue(identity), identity)
        return made

    @asynccontextmanager
    async def running(
        self,
        caller: str | None = "strict",
        callee: str | None = "strict",
        *,
        ask_after: float = 30.0,
        **settings: object,
    ) -> AsyncIterator[Mesh]:
        """Run it; a mode of None proves nothing."""
        async with AsyncExitStack() as stack:
            brokers = [
                await stack.enter_async_context(each)
                for each in (self.caller_broker, self.callee_broker, self.evil_broker)
            ]
            self.evil = Hostile(self.evil_broker)
            guards = [
                None if mode is None else self.guard(name, mode, **settings)
                for name, mode in (("shop", caller), ("stock", callee))
            ]
            made = [
                await stack.enter_async_context(Exchange(broker, guard=each, ask_after=ask_after))
                for broker, each in zip(brokers, guards, strict=False)
            ]
            self.caller, self.callee = made
            yield self
