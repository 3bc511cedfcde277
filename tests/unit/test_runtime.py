"""What a node does with its subscriptions, on a broker of memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from brokers.memory import MemoryBroker
from mesh.address import Address
from mesh.application import AppResponse, Headers
from mesh.broker import Handler, SubscribeOptions
from mesh.node.runtime import NodeSettings, Runtime
from mesh.registry import Registry
from mesh.resources.subscription import Subscription
from tests.support.eventually import eventually

TOPICS = ("a", "b", "c")


class Joining(MemoryBroker):
    """A broker on which nobody joins a group before as many do as a node has subscriptions, calls included."""

    barrier = asyncio.Barrier(len(TOPICS) + 1)

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        await self.barrier.wait()
        async with super().subscribe(address, options, handler):
            yield


class JoiningRegistry(Registry):
    def load(self, name: str) -> type:
        return Joining if name == "backbone.memory" else super().load(name)


class App:
    """An application that is there."""

    def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AppResponse]:
        raise NotImplementedError

    async def post(self, path: str, headers: Headers, body: bytes) -> tuple[int, bytes]:
        raise NotImplementedError

    async def until_reachable(self) -> None:
        return

    async def until_unreachable(self) -> None:
        await asyncio.Event().wait()


async def test_groups_of_a_node_are_joined_at_once() -> None:
    async def programmatic() -> Sequence[Subscription]:
        return [Subscription("", "pubsub", topic, default_path=f"/{topic}") for topic in TOPICS]

    runtime = Runtime(NodeSettings("app", "default", "memory:"), JoiningRegistry())

    def serving() -> None:
        assert runtime.serving

    async with runtime, runtime.inbound(App(), programmatic):
        await eventually(serving)
