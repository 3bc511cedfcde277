"""What is asked of every way to log in at a broker: it carries everything, or is refused in a way that helps."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from mesh import address
from mesh.broker import Broker, Frame, SubscribeOptions, Topology
from mesh.errors import BrokerUnavailableError
from mesh.resources.component import Component, MetadataEntry, Secret
from tests.support.contract import Inbox, text
from tests.support.eventually import eventually
from tests.support.server import missing

__all__ = ["TOPIC", "component", "missing", "nodes", "reaches", "refused", "works"]

TOPIC = address.topic("test", "secured", "orders")
APP = address.app("test", "secured")
WITHIN = 60.0  # Kafka's first group of all takes a while.


def component(kind: str, **settings: str) -> Component:
    """A component whose settings all come from a secret store."""
    entries = (MetadataEntry(name, Secret(value), f"spec.metadata[{name}]") for name, value in settings.items())
    return Component("secured", kind, tuple(entries), file="secured.yaml", line=1)


@asynccontextmanager
async def nodes(make: Callable[[], Broker], count: int) -> AsyncIterator[list[Broker]]:
    """Nodes that have declared the topic's space."""
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(make()) for _ in range(count)]
        for node in made:
            await node.declare(Topology(TOPIC.space))
        yield made


async def reaches(make: Callable[[], Broker]) -> None:
    """An event gets to the broker, and is confirmed."""
    async with nodes(make, 1) as [node]:
        await node.publish(TOPIC, text("x"))


async def works(make: Callable[[], Broker]) -> None:
    """An event, and where there are frames a call with its answer, get to the broker and back."""
    async with nodes(make, 1) as [node]:
        inbox = Inbox()
        async with node.subscribe(TOPIC, SubscribeOptions(f"g{time.monotonic_ns()}"), inbox):
            body = f"{time.monotonic_ns()}"
            await node.publish(TOPIC, text(body))

            def delivered() -> None:
                assert body.encode() in inbox.bodies

            await eventually(delivered, WITHIN)
        if not node.features.frames:
            return
        calls: list[Frame] = []
        answers: list[Frame] = []
        node.on_frame(answers.append)
        async with node.serve(APP, "g", calls.append):
            await node.send(APP, text("question"), f"{node.inbox}.t1")

            def called() -> None:
                assert [frame.reply_to for frame in calls] == [f"{node.inbox}.t1"]

            await eventually(called, WITHIN)
            await node.send(calls[0].reply_to, text("answer"))

            def answered() -> None:
                assert [frame.message and frame.message.body for frame in answers] == [b"answer"]

            await eventually(answered, WITHIN)


async def refused(broker: Broker, reason: str, *secrets: str, within: float = 40.0) -> None:
    """It cannot be entered, says so soon and why, and does not give away what it was told."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match=reason) as raised:
        async with broker:
            pytest.fail("entered")
    assert time.monotonic() - began < within
    error: BaseException | None = raised.value
    while error is not None:
        for secret in secrets:
            assert secret not in f"{error} {error!r}"
        error = error.__cause__
