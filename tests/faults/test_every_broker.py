"""Events and calls while brokers, connections, gateways and instances fail: the same on every broker, with real
processes.

What was answered 204 is compared with what was recorded, as sets. Duplicates are allowed, and counted: the numbers
are the table in docs/guarantees.md.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from mesh.broker import SubscribeOptions
from mesh.calls.asking import MARGIN
from mesh.calls.exchange import ASK_AFTER
from tests.faults.conftest import REPORTING, Figures, Site, everything_arrives, portion
from tests.support.eventually import eventually
from tests.support.load import Calling, Publishing
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.proxy import Proxy

EVENTS = portion(4_000)  # On the embedded broker they are 10,000: test_delivery_faults.py.
KILL_AT = (portion(1_200), portion(2_600))
SEVERAL = portion(2_000)
CUTS = 6
PATIENCE = SubscribeOptions("").ack_wait
CALL_RATE = 100.0 if REPORTING else 40.0  # A second. More take a processor for as long as a broker takes to start.
# Seconds until instances vouch for each other: of an earlier call they cannot say that nobody took it.
VOUCHED_AFTER = MARGIN * ASK_AFTER + 1.0
CALLS = int(CALL_RATE * (12 if REPORTING else 4))
# A call outlasts an outage that is shorter than its deadline. Two starts of a server took 45 s on a busy machine.
OUTAGE_TIMEOUT_SECONDS = 150.0
MAY_FAIL = {("kafka", "the broker restarts, and is killed"): 40}  # What was in flight.
IN_FLIGHT = {"seconds": 0.02}  # What a handler takes, so that there always are some at work.


def subscription(topic: str, **metadata: str) -> list[Mapping[str, object]]:
    # Events without a key follow each other otherwise, in the native layout of Kafka.
    metadata = {"ordered": "false", **metadata}
    return [{"pubsubname": "pubsub", "topic": topic, "route": f"/events/{topic}", "metadata": metadata}]


# Processes die


async def test_the_broker_is_killed_twice(site: Site, figures: Figures) -> None:
    """It comes back with all that it confirmed; publishers wait for it rather than fail."""
    async with (
        AppProcess(site.home, subscriptions=subscription(site.topic)) as app,
        site.gateway("publisher") as publisher,
        site.gateway("subscriber", app),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, site.topic, EVENTS, data=IN_FLIGHT)
        work = tasks.create_task(publishing.run())
        for count in KILL_AT:
            await publishing.until(count)
            await site.backend.restart(kill=True)
        await work
        await everything_arrives(publishing, app, figures, fault="the broker is killed", broker=site.name)
        assert publishing.failed == set()


async def test_the_subscribers_gateway_is_killed_twice(site: Site, figures: Figures) -> None:
    """What it had in flight comes again."""
    many = subscription(site.topic, maxInFlight="400")
    async with (
        AppProcess(site.home, subscriptions=many) as app,
        site.gateway("publisher") as publisher,
        site.gateway("subscriber", app) as subscriber,
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, site.topic, EVENTS, data={"seconds": 0.3})
        work = tasks.create_task(publishing.run())

        def at_work() -> set[str]:
            return set(app.recorded("begin")) - set(app.recorded(site.topic))

        interrupted: set[str] = set()
        for count in KILL_AT:
            await publishing.until(count)
            await eventually(lambda: _assert_at_least(len(at_work() - interrupted), 10), 40.0)
            await subscriber.kill()
            interrupted.update(at_work())
            await subscriber.start()
        await work
        await everything_arrives(publishing, app, figures, fault="the subscriber's gateway is killed", broker=site.name)
        assert publishing.failed == set()


async def test_the_publishers_gateway_is_killed_twice(site: Site, figures: Figures) -> None:
    """What it confirmed before it died is stored."""
    async with (
        AppProcess(site.home, subscriptions=subscription(site.topic)) as app,
        site.gateway("publisher") as publisher,
        site.gateway("subscriber", app),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, site.topic, EVENTS)
        work = tasks.create_task(publishing.run())
        for count in KILL_AT:
            await publishing.until(count)
            await publisher.kill()
            await publisher.start()
        await work
        await everything_arrives(publishing, app, figures, fault="the publisher's gateway is killed", broker=site.name)


# Connections break


async def cut(proxy: Proxy, size: int) -> None:
    """Cut a connection, and wait for the next one.

    Args:
        proxy: Where.
        size: The one that has carried so many more bytes to the broker; 0 for all at once.
    """
    before = proxy.accepted
    if size:
        proxy.cut_after(size)
    else:
        proxy.cut()

    def check() -> None:
        assert proxy.accepted > before

    await eventually(check, 40.0)


async def test_a_connection_is_cut_in_the_middle_of_publishes(site: Site, figures: Figures) -> None:
    """What was on its way is sent again."""
    async with (
        site.backend.proxy() as proxy,
        AppProcess(site.home, subscriptions=subscription(site.topic)) as app,
        site.gateway("publisher", url=site.backend.url_through(proxy)) as publisher,
        site.gateway("subscriber", app),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, site.topic, 1_000_000, connections=24)
        work = tasks.create_task(publishing.run())
        for number in range(CUTS):
            await publishing.until(len(publishing.confirmed) + SEVERAL // CUTS)
            await cut(proxy, (number % 3) * (5_000 + 1_237 * number))
        publishing.stop()
        await work
        await everything_arrives(publishing, app, figures, fault="the publisher's connection is cut", broker=site.name)
        assert publishing.failed == set()


async def test_a_connection_is_cut_in_the_middle_of_acks(site: Site, figures: Figures) -> None:
    """An ack that is lost is sent again, or its event comes again."""
    async with (
        site.backend.proxy() as proxy,
        AppProcess(site.home, subscriptions=subscription(site.topic)) as app,
        site.gateway("publisher") as publisher,
        site.gateway("subscriber", app, url=site.backend.url_through(proxy)),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, site.topic, 1_000_000, connections=24, data=IN_FLIGHT)
        work = tasks.create_task(publishing.run())
        for number in range(CUTS):
            done = len(app.recorded(site.topic))
            await eventually(lambda done=done: _assert_at_least(len(app.recorded(site.topic)), done + 100), 40.0)
            await cut(proxy, (number % 3) * (500 + 137 * number))
        publishing.stop()
        await work
        await everything_arrives(publishing, app, figures, fault="the subscriber's connection is cut", broker=site.name)


# Instances come and go


async def test_instances_join_and_leave_while_handlers_run(site: Site, figures: Figures) -> None:
    """Each that joins gets its share, and gives back what it has not handled when it leaves."""
    async with (
        AppProcess(site.home, subscriptions=subscription(site.topic)) as app,
        AppProcess(site.home, subscriptions=subscription(site.topic), records=app.records) as another,
        site.gateway("publisher") as publisher,
        site.gateway("subscriber", app),
        site.gateway("subscriber", app),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, site.topic, 1_000_000, connections=3, data={"seconds": 0.1})
        work = tasks.create_task(publishing.run())

        def handled() -> int:
            return sum(pid == another.pid for _, pid in app.recorded_by(site.topic))

        for _ in range(3):
            before = handled()
            async with site.gateway("subscriber", another) as joining:
                await eventually(lambda before=before: _assert_at_least(handled(), before + 50), 40.0)
                assert await joining.terminate() == 0
        publishing.stop()
        await work
        await everything_arrives(publishing, app, figures, fault="instances join and leave", broker=site.name)
        assert publishing.failed == set()


# Calls


@dataclass(frozen=True, slots=True)
class Called:
    """A callee with two instances, which is called all the time."""

    calling: Calling
    instances: tuple[GatewayProcess, GatewayProcess]


@asynccontextmanager
async def called(site: Site, figures: Figures, *, fault: str, timeout_seconds: float = 60.0) -> AsyncIterator[Called]:
    """Call at a steady rate meanwhile, and some time longer; each call runs at most once."""
    async with (
        AppProcess(site.home) as one,
        AppProcess(site.home, records=one.records) as two,
        site.gateway("caller") as caller,
        site.gateway("callee", one) as first,
        site.gateway("callee", two) as second,
    ):
        calling = Calling(caller, "callee", CALL_RATE, timeout_seconds=timeout_seconds)
        async with calling.running():
            await calls_made(calling, int(CALL_RATE * VOUCHED_AFTER))
            yield Called(calling, (first, second))
            await calls_made(calling, calling.made + CALLS // 2)
        failed = len(calling.failures)
        figures.fault(fault, site.name, calls=calling.made, failed=failed)
        figures.note(slowest_seconds=round(calling.slowest, 1))
        runs = Counter(one.recorded("call"))
        assert [call for call, count in runs.items() if count > 1] == []
        assert failed <= MAY_FAIL.get((site.name, fault), 0), calling.failures[:3]


async def calls_made(calling: Calling, count: int) -> None:
    await eventually(lambda: _assert_at_least(calling.made, count), 60.0)


async def at_once(do: Callable[[GatewayProcess], Awaitable[object]], instances: tuple[GatewayProcess, ...]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for instance in instances:
            tasks.create_task(_do(do, instance))


async def _do(do: Callable[[GatewayProcess], Awaitable[object]], instance: GatewayProcess) -> None:
    await do(instance)


async def test_calls_while_the_broker_restarts(site: Site, figures: Figures) -> None:
    """In good order, and by SIGKILL: what was lost on the way is asked for."""
    async with called(
        site, figures, fault="the broker restarts, and is killed", timeout_seconds=OUTAGE_TIMEOUT_SECONDS
    ):
        await site.backend.restart(kill=False)
        await asyncio.sleep(1.0)
        await site.backend.restart(kill=True)


async def test_calls_while_one_instance_restarts(site: Site, figures: Figures) -> None:
    """The other takes the calls."""
    async with called(site, figures, fault="one of two instances restarts") as callee:
        assert await callee.instances[0].terminate() == 0
        await callee.instances[0].start()


async def test_calls_while_all_instances_restart(site: Site, figures: Figures) -> None:
    """At the same time: the calls wait."""
    async with called(site, figures, fault="all instances restart together") as callee:
        await at_once(GatewayProcess.terminate, callee.instances)
        await at_once(GatewayProcess.start, callee.instances)


# Patience


@pytest.mark.slow
async def test_longer_than_the_brokers_patience(site: Site, figures: Figures) -> None:
    """A handler that works, a gateway that is dead, a connection that is silent: each for as long as that takes."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(a_slow_handler_is_not_disturbed(site))
        tasks.create_task(what_a_killed_gateway_held_comes_again(site, figures))
        tasks.create_task(a_silent_connection_is_left(site, figures))


async def a_slow_handler_is_not_disturbed(site: Site) -> None:
    """It runs once, though there are others who could take its event."""
    async with (
        AppProcess(site.home, subscriptions=subscription("slow")) as app,
        site.gateway("patient", app) as gateway,
        site.gateway("patient", app),
    ):
        await publish(gateway, "slow", {"id": "slow", "seconds": PATIENCE + 3})
        await publish(gateway, "slow", {"id": "quick"})
        await eventually(lambda: _assert_equal(app.recorded("slow"), ["quick", "slow"]), PATIENCE + 30)
        assert app.recorded("begin") == ["slow"]


async def what_a_killed_gateway_held_comes_again(site: Site, figures: Figures) -> None:
    """To the other instance, with nobody asking for it."""
    async with (
        AppProcess(site.home, subscriptions=subscription("held")) as first,
        AppProcess(site.home, subscriptions=subscription("held"), records=first.records) as second,
        site.gateway("holder", first) as one,
        site.gateway("holder", second) as other,
    ):
        await publish(one, "held", {"id": "held", "hold": True})
        await eventually(lambda: _assert_equal(first.recorded("begin"), ["held"]), 40.0)
        [(_, pid)] = first.recorded_by("begin")
        killed, heir = (one, second) if pid == first.pid else (other, first)
        await killed.kill()
        since = time.monotonic()
        await eventually(lambda: _assert_equal(first.recorded("begin"), ["held", "held"]), PATIENCE + 30)
        seconds = round(time.monotonic() - since, 1)
        figures.fault("what a killed gateway held comes again", site.name, seconds=seconds)
        assert first.recorded_by("begin")[1] == ("held", heir.pid)
        await heir.release()
        await eventually(lambda: _assert_equal(first.recorded("held"), ["held"]))
        if killed is one:
            await one.start()  # It is left in good order, as the others are.


async def a_silent_connection_is_left(site: Site, figures: Figures) -> None:
    """Nothing passes any more, and nobody says so: the adapter notices, and makes a new one."""
    async with (
        site.backend.proxy() as proxy,
        AppProcess(site.home, subscriptions=subscription("stalled")) as app,
        site.gateway("stalled", app, url=site.backend.url_through(proxy)) as gateway,
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(gateway, "stalled", 1_000_000, connections=8, data=IN_FLIGHT)
        work = tasks.create_task(publishing.run())
        await publishing.until(300)
        before = proxy.accepted
        proxy.stall()
        since = time.monotonic()
        await eventually(lambda: _assert_at_least(proxy.accepted, before + 1), 90.0)  # MQTT: twice its keep-alive.
        confirmed = len(publishing.confirmed)
        await eventually(lambda: _assert_at_least(len(publishing.confirmed), confirmed + 300), 60.0)
        seconds = round(time.monotonic() - since, 1)
        figures.fault("a silent connection is replaced", site.name, seconds=seconds)
        proxy.cut()
        publishing.stop()
        await work
        await everything_arrives(publishing, app, figures, fault="a connection is silent, then cut", broker=site.name)


# Helpers


async def publish(gateway: GatewayProcess, topic: str, event: Mapping[str, object]) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.api}/publish/pubsub/{topic}", json=event) as response,
    ):
        assert response.status == 204, await response.text()


def _assert_equal(found: object, wanted: object) -> None:
    assert found == wanted


def _assert_at_least(found: int, wanted: int) -> None:
    assert found >= wanted
