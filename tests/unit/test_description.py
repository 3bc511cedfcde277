"""What nodes say about themselves when somebody asks all of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.blocks.pubsub import MAX_TOPICS
from mesh.broker import Frame, Message
from mesh.calls.exchange import Exchange
from mesh.node.description import MAX_ASKERS, ComponentDescription, NodeDescription, answering, collect
from mesh.node.directory import Directory
from mesh.resources.subscription import Subscription
from tests.support.eventually import eventually


@asynccontextmanager
async def _directory(hub: MemoryHub, app_id: str) -> AsyncIterator[None]:
    async with MemoryBroker(hub) as broker, Exchange(broker) as exchange:
        directory = Directory(exchange, "default")
        directory.host(app_id, ready=True)
        directory.describe = NodeDescription(
            app_id,
            "default",
            components=(ComponentDescription("pubsub", "pubsub.mesh", "v1"),),
            subscriptions=(Subscription("", "pubsub", "orders"),),
            published=tuple(("pubsub", f"t{number:04}") for number in range(MAX_TOPICS)),
            methods=("price",),
        ).announced
        async with directory.run():
            yield


async def test_nodes_answer_a_question_with_what_they_do() -> None:
    """Only the one who asked, and once; what is no question is ignored."""
    hub = MemoryHub()
    heard: list[bytes] = []
    async with MemoryBroker(hub) as broker, _directory(hub, "shop"), _directory(hub, "stock"):
        where = address.nodes("default")
        async with broker.listen(where, lambda frame: heard.append(frame.message.body if frame.message else b"")):
            junk = (b"", b"[]", b"1", b'{"answer_to":"x"}', b'{"answer_to":"x","within":"y"}')
            for body in junk:
                await broker.broadcast(where, Message({}, body))
            shop, stock = sorted(await collect(broker, "default", 0.2), key=lambda node: node.app_id)
            assert (shop.app_id, shop.apps) == ("shop", ("shop",))
            assert shop.subscriptions == (("pubsub", "orders", ""),)
            assert len(shop.published) == MAX_TOPICS
            assert shop.methods == ("price",)
            assert stock.app_id == "stock"
            assert await collect(broker, "other", 0.05) == []
        assert len(heard) == len(junk) + 1


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"node":"x"}', b'{"node":"x","ready":[],"about":1}'])
async def test_what_is_no_answer_is_ignored(body: bytes) -> None:
    """From whoever answers nonsense, beside those who do not."""
    async with MemoryBroker() as broker:

        def nonsense(frame: Frame) -> None:
            assert frame.message is not None
            asked.append(json.loads(frame.message.body)["answer_to"])

        asked: list[str] = []
        async with broker.listen(address.nodes("default"), nonsense), asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(collect(broker, "default", 0.2))
            await eventually(lambda: _is(bool(asked)))
            for answer in (body, b'{"node":"y","ready":["a"],"about":{}}'):
                await broker.broadcast(address.asker("default", asked[0]), Message({}, answer))
        assert [node.id for node in collecting.result()] == ["y"]


async def test_many_answers_do_not_come_at_once() -> None:
    """They are spread over the first half of the time, and all of them arrive."""
    hub, moments = MemoryHub(), []
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(MemoryBroker(hub))
        answers = [{"node": f"n{number:03}", "ready": [], "about": {}} for number in range(200)]

        async def answer(number: int) -> dict[str, object]:
            moments.append(time.monotonic())
            return answers[number]

        for number in range(len(answers)):
            await stack.enter_async_context(answering(broker, "default", lambda number=number: answer(number)))
        found = await collect(broker, "default", 0.5)
    assert [node.id for node in found] == [each["node"] for each in answers]
    assert max(moments) - min(moments) > 0.15


async def test_those_who_ask_all_the_time_are_bounded() -> None:
    """A node answers some of them, and remembers no more."""
    hub, answered = MemoryHub(), 0

    async def answer() -> dict[str, object]:
        nonlocal answered
        answered += 1
        return {}

    async with MemoryBroker(hub) as broker, answering(broker, "default", answer):
        for _ in range(10 * MAX_ASKERS):
            await broker.broadcast(address.nodes("default"), Message({}, b'{"answer_to":"x","within":0.1}'))
        await eventually(lambda: _is(answered >= MAX_ASKERS))
        await asyncio.sleep(0.1)  # As long as any of them may wait: nothing more comes.
    assert answered == MAX_ASKERS


def _is(true: bool) -> None:
    assert true
