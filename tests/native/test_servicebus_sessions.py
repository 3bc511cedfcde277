"""Sessions of Azure Service Bus: who has one, in which order its events come, and what becomes of it.

The server is a stand-in that speaks AMQP 1.0: nothing here ran against Azure. It reads by sessions what has a name
that begins so, and makes a subscription when it is first read.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from azure.servicebus import NEXT_AVAILABLE_SESSION
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver

from brokers.native.servicebus import ServiceBusTopics
from mesh import address
from mesh.address import Address
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import BrokerError
from mesh.registry import Registry
from tests.support.azure_servers import ServiceBusServer
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.nodes import component, unique
from tests.support.proxy import Proxy

TOPICS, QUEUES = "pubsub.azure.servicebus.topics", "pubsub.azure.servicebus.queues"
SESSIONS = {"requireSessions": "true", "sessionIdleTimeoutInSec": "1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceBusServer]:
    async with ServiceBusServer(tmp_path_factory.mktemp("servicebus")) as server:
        yield server


@pytest.fixture
def orders() -> Address:
    return address.topic("test", "shop", unique("sessions"))


def broker_of(connection: str, kind: str = QUEUES) -> ServiceBusTopics:
    given = {"connectionString": connection, "lockRenewalInSec": "1"}
    return Registry().load(kind).from_component(component("shop", kind, **given))  # type: ignore[attr-defined, no-any-return]


def asked(**metadata: str) -> SubscribeOptions:
    return SubscribeOptions("app", metadata={**SESSIONS, **metadata})


async def publish(broker: ServiceBusTopics, orders: Address, events: Sequence[str]) -> None:
    """Publish events whose first letter is their session."""
    made = [Message({}, each.encode(), metadata={"SessionId": each[0]}) for each in events]
    assert await broker.publish_many(orders, made) == [None] * len(made)


def by_session(bodies: Sequence[bytes]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for each in bodies:
        found[each.decode()[0]].append(each.decode())
    return found


@asynccontextmanager
async def theirs(server: ServiceBusServer, queue: str) -> AsyncIterator[ServiceBusReceiver]:
    """Read the next session by the vendor's own means."""
    async with (
        ServiceBusClient.from_connection_string(server.connection) as azure,
        azure.get_queue_receiver(queue, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=20) as receiver,
    ):
        yield receiver


async def test_order_holds_within_a_session_through_retries(server: ServiceBusServer, orders: Address) -> None:
    """What waits to be tried again, for longer than a lock lasts, holds up its session and no other."""
    seen: list[tuple[str, int, float]] = []

    async def settle(delivery: Delivery) -> None:
        name = delivery.message.body.decode()
        seen.append((name, delivery.attempt, time.monotonic()))
        if name == "a0" and delivery.attempt == 1:
            await delivery.nack(server.lock_seconds * 1.5)
        elif name == "b1" and delivery.attempt < 3:
            await delivery.nack()
        else:
            await delivery.ack()

    async with broker_of(server.connection) as broker:
        await publish(broker, orders, [f"{each}{number}" for number in range(4) for each in "abc"])
        async with broker.subscribe(orders, asked(), Inbox(settle)):
            await eventually(lambda: _count(seen, 15), 30)
    came = {each: [(name, attempt) for name, attempt, _ in seen if name[0] == each] for each in "abc"}
    assert came["a"] == [("a0", 1), ("a0", 2), ("a1", 1), ("a2", 1), ("a3", 1)]
    assert came["b"] == [("b0", 1), ("b1", 1), ("b1", 2), ("b1", 3), ("b2", 1), ("b3", 1)]
    assert came["c"] == [(f"c{number}", 1) for number in range(4)]
    again = next(at for name, attempt, at in seen if (name, attempt) == ("a0", 2))
    assert all(at < again for name, _, at in seen if name[0] != "a")


def _count(seen: Sequence[object], count: int) -> None:
    assert len(seen) >= count


async def test_sessions_at_once_are_bounded(server: ServiceBusServer, orders: Address) -> None:
    """Others come when one of those at work has been without an event for a while."""
    working: set[str] = set()
    most = 0
    inbox = Inbox()

    async def settle(delivery: Delivery) -> None:
        nonlocal most
        working.add(delivery.message.metadata["metadata.SessionId"])
        most = max(most, len(working))
        await asyncio.sleep(0.05)
        working.remove(delivery.message.metadata["metadata.SessionId"])
        await inbox(delivery)

    async with broker_of(server.connection) as broker:
        await publish(broker, orders, [f"{each}{number}" for number in range(3) for each in "abcd"])
        async with broker.subscribe(orders, asked(maxConcurrentSessions="2"), settle):
            await inbox.holds(12)
    assert most <= 2
    assert by_session(inbox.bodies) == {each: [f"{each}{number}" for number in range(3)] for each in "abcd"}


async def test_a_member_that_leaves_gives_its_sessions_back(server: ServiceBusServer, orders: Address) -> None:
    """Also while one holds an event back; the next member has the events in order, long before a lock is over."""
    first = Inbox(lambda delivery: delivery.nack(600))
    async with broker_of(server.connection) as broker:
        await publish(broker, orders, ["a0", "a1", "b0"])
        async with broker.subscribe(orders, asked(sessionIdleTimeoutInSec="600"), first):
            await first.holds(2)
        async with broker.subscribe(orders, asked(), second := Inbox()):
            await second.holds(3)
    assert sorted(first.bodies) == [b"a0", b"b0"]
    assert by_session(second.bodies) == {"a": ["a0", "a1"], "b": ["b0"]}
    assert {each.message.body: each.attempt for each in second.deliveries} == {b"a0": 2, b"a1": 1, b"b0": 2}


async def test_a_session_is_shared_with_programs_of_others(server: ServiceBusServer, orders: Address) -> None:
    """What they have locked is theirs alone; what is left of it comes from them."""
    inbox = Inbox()
    async with broker_of(server.connection) as broker:
        await publish(broker, orders, ["a0", "a1"])
        async with theirs(server, orders.label) as receiver:
            (got,) = await receiver.receive_messages(max_message_count=1, max_wait_time=20)
            async with broker.subscribe(orders, asked(), inbox):
                await publish(broker, orders, ["b0"])
                async with asyncio.timeout(30):
                    while not inbox.bodies:
                        await receiver.session.renew_lock()
                        await asyncio.sleep(0.1)
                assert inbox.bodies == [b"b0"]
                await receiver.complete_message(got)
                await receiver.close()
                await inbox.holds(2)
    assert b"".join(got.body) == b"a0"
    assert inbox.bodies == [b"b0", b"a1"]


async def test_a_lost_connection_is_ridden_out(server: ServiceBusServer, orders: Address) -> None:
    """The session is locked anew; what was at work comes again, before what is behind it."""
    begun, cut = asyncio.Event(), asyncio.Event()
    inbox = Inbox()

    async def settle(delivery: Delivery) -> None:
        if delivery.message.body == b"a0" and not begun.is_set():
            begun.set()
            await cut.wait()
        await inbox(delivery)

    async with Proxy(server.port) as proxy, broker_of(ServiceBusServer.at(proxy.port)) as broker:
        await publish(broker, orders, ["a0", "a1", "a2"])
        async with broker.subscribe(orders, asked(), settle):
            await begun.wait()
            assert proxy.cut()
            cut.set()
            await inbox.holds(4)
    assert inbox.bodies == [b"a0", b"a0", b"a1", b"a2"]


async def test_a_lost_lock_is_ridden_out(server: ServiceBusServer, orders: Address) -> None:
    """A handler without a sign of life keeps no session; it has ended before its member goes on with that."""
    came: list[tuple[str, int]] = []

    async def settle(delivery: Delivery) -> None:
        came.append((delivery.message.body.decode(), delivery.attempt))
        if len(came) == 1:
            await asyncio.sleep(server.lock_seconds * 2)
            came.append(("ended", 1))
        await delivery.ack()

    options = SubscribeOptions("app", metadata=SESSIONS, ack_wait=0.1)
    async with broker_of(server.connection) as broker:
        await publish(broker, orders, ["a0", "a1"])
        async with broker.subscribe(orders, options, settle):
            await eventually(lambda: _count(came, 4), 30)
    assert came == [("a0", 1), ("ended", 1), ("a0", 2), ("a1", 1)]


async def test_a_service_that_does_not_wait_for_a_session(
    server: ServiceBusServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again, and no connection is told to be lost."""
    hurried, inbox = address.topic("test", "shop", unique("sessionshurried")), Inbox()
    async with Proxy(server.port) as proxy, broker_of(ServiceBusServer.at(proxy.port)) as broker:
        before = proxy.accepted

        def asked_again() -> None:
            assert proxy.accepted - before >= 2

        async with broker.subscribe(hurried, asked(), inbox):
            await eventually(asked_again, 30)
            await publish(broker, hurried, ["a0"])
            await inbox.holds(1)
    assert "lost the connection" not in caplog.text


async def test_a_member_that_fails_waits_for_no_handler(server: ServiceBusServer, orders: Address) -> None:
    """What it handed out comes again."""
    async with broker_of(server.connection) as broker:
        await publish(broker, orders, ["a0"])
        with pytest.raises(RuntimeError):
            async with asyncio.timeout(20), broker._joined(orders, asked()) as source:
                assert len(await source.take(1)) == 1
                raise RuntimeError
        async with broker.subscribe(orders, asked(), second := Inbox()):
            await second.holds(1)


async def test_an_entity_without_sessions_is_refused(server: ServiceBusServer) -> None:
    plain = address.topic("test", "shop", unique("plain"))
    async with broker_of(server.connection) as broker:
        with pytest.raises(BrokerError, match="does not require sessions"):
            async with asyncio.timeout(20), broker.subscribe(plain, asked(), Inbox()):
                await asyncio.Event().wait()


async def test_an_entity_with_sessions_is_refused_to_who_asks_for_none(
    server: ServiceBusServer, orders: Address
) -> None:
    async with broker_of(server.connection, TOPICS) as broker:
        with pytest.raises(BrokerError, match="requires sessions"):
            async with asyncio.timeout(20), broker.subscribe(orders, SubscribeOptions("app"), Inbox()):
                await asyncio.Event().wait()
