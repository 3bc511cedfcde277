"""Presence over this broker: who was there, who never was, who is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from mesh.broker import Broker
from mesh.calls.exchange import Exchange
from mesh.node.description import collect
from mesh.node.directory import Directory
from tests.support.contract import Place
from tests.support.eventually import eventually

pytestmark = pytest.mark.requires("frames")

Start = Callable[[Broker], AbstractAsyncContextManager[Directory]]


@pytest.fixture
def start(place: Place) -> Start:
    """Start a node on a connection."""

    @asynccontextmanager
    async def start(broker: Broker) -> AsyncIterator[Directory]:
        async with Exchange(broker) as exchange:
            directory = Directory(exchange, place.app().text)
            async with directory.run():
                yield directory

    return start


async def knows(directory: Directory, app_id: str) -> bool:
    return await directory.was_seen(app_id, time.time() + 60)


async def test_who_was_there_is_known(place: Place, broker: Broker, other: Broker, start: Start) -> None:
    """While it starts, and after it has left; to one who comes later; and nobody else is."""
    async with start(await place.connect()) as bystander:
        async with start(other) as callee:
            began = time.monotonic()
            assert not await knows(bystander, "app")
            assert time.monotonic() - began < 30  # Long before the deadline.
            callee.host("app", ready=False)
            async with start(broker) as caller:

                async def known() -> None:
                    assert await knows(caller, "app")

                await eventually(known)
        async with start(broker) as late:
            assert await knows(late, "app")
            assert not await knows(late, "nobody")


async def test_who_waits_hears_that_it_is_back(broker: Broker, other: Broker, start: Start) -> None:
    async with start(broker) as caller, start(other) as callee:
        callee.host("app", ready=False)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(caller.until_news("app")) for _ in range(3)]

            def heard() -> None:  # What is said before anybody listens is lost, so it is said again.
                callee.host("app", ready=False)
                callee.host("app", ready=True)
                assert all(each.done() for each in waiting)

            await eventually(heard)


async def test_nodes_are_found(place: Place, broker: Broker, other: Broker, start: Start) -> None:
    async with start(broker) as one, start(other) as two:
        one.host("app", ready=True)
        two.host("app", ready=False)
        asking = await place.connect()

        async def all_are_found() -> None:
            found = await collect(asking, place.app().text, 0.5)
            assert {node.id: node.apps for node in found} == {one.node_id: ("app",), two.node_id: ()}

        await eventually(all_are_found)
