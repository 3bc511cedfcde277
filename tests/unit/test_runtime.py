"""What a node does with its components and its subscriptions, on a broker of memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from brokers.memory import MemoryBroker
from mesh.address import Address
from mesh.application import AppResponse, Headers
from mesh.broker import Handler, SubscribeOptions
from mesh.errors import ConfigError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry
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


def one(kind: str, **settings: str) -> NodeSettings:
    entries = [
        MetadataEntry(name, value, f"spec.metadata[{n}]", 9 + n, 3) for n, (name, value) in enumerate(settings.items())
    ]
    component = Component("c", kind, tuple(entries), file="c.yaml", line=1)
    return NodeSettings("app", "default", "memory:", components=(component,))


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [
        ("state.in-memory", "keyPrefx", "keyPrefix"),
        ("state.mesh", "keyPrefixes", "keyPrefix"),
        ("state.sqlite", "conectionString", "connectionString"),
        ("secretstores.local.env", "prefx", "prefix"),
        ("secretstores.local.file", "secretFile", "secretsFile"),
        ("pubsub.mesh", "consumerId2", "consumerID"),
        ("pubsub.in-memory", "alowedTopics", "allowedTopics"),
        ("pubsub.redis", "redisHosts", "redisHost"),
    ],
)
async def test_a_misspelt_setting_is_an_error(kind: str, wrong: str, meant: str) -> None:
    place = rf"c.yaml:9:3: spec.metadata\[0\] \({wrong}\): unknown setting; did you mean '{meant}'\?"
    with pytest.raises(ConfigError, match=place):
        async with Runtime(one(kind, **{wrong: "x"}), Registry()):
            pass


@pytest.mark.parametrize("kind", ["state.in-memory", "state.mesh", "secretstores.local.env", "pubsub.mesh"])
async def test_a_setting_that_nothing_reads_is_one_warning(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with Runtime(one(kind, redisHost="somewhere"), Registry()):
            pass
    place = "c.yaml:9:3: spec.metadata[0] (redisHost): unknown setting, which nothing reads"
    assert [record.getMessage() for record in caplog.records] == [place]
