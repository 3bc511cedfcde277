"""Actors, reminders and jobs while owners, connections and the broker fail: one property, on every backbone.

Each turn of a counter writes, beside its count, a key that no other turn has (``tests/support/apps/counters.py``). So
the store itself says what it ever accepted, and it must be one chain: numbers without a gap, none twice, and no owner
of before after the next one. Applications of two owners may be at work at once for a moment, since nothing takes back
what a stopped process does when it goes on; that is counted, and not promised to be zero.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from mesh.node.runtime import Runtime
from mesh.resources.component import Component
from mesh.store import StateStore
from tests.faults.conftest import REPORTING, Figures, Site
from tests.support.counting import Calling, Scheduling, doubled, read_written, records_of
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nodes import component, node
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.slow
ORDINARY = ("nats",)  # The report has all of the brokers; this one takes a minute and a half.
ACTORS = [f"a{number}" for number in range(24)]
SHARE = 1.0 if REPORTING else 0.5  # Of the load; all of it takes a processor for itself.
CALL_RATE = 30.0 * SHARE
REMINDER_RATE = 5.0 * SHARE
JOB_RATE = 10.0 * SHARE
DUE = 1.5
SESSION = 10.0
STILL = SESSION + 3.0
ELSEWHERE_WITHIN = 12.0
TOLERANCE = 12.0  # Both processors are busy: what is due is done later.
RECOVERS_WITHIN = 45.0
BEFORE = 0.5  # What is under way when it happens began under its name.
STORE = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.redis
  version: v1
  metadata:
    - {name: redisHost, value: "%s"}
    - {name: actorStateStore, value: "true"}
"""


@dataclass(slots=True)
class Counters:
    """An application of three instances which hosts counters, called all the time from elsewhere.

    Attributes:
        hosts: The gateways beside them. The first has started what is embedded, the last one's connection goes
            through the proxy.
        apps: The instances; their records are one file.
        proxy: To the broker; None = there is none for the embedded server.
        calling: The calls.
        reminders: Registered meanwhile.
        jobs: Likewise.
        stop: Begins no more, and waits for what was begun.
    """

    site: Site
    arguments: Sequence[str]
    hosts: list[GatewayProcess]
    apps: list[AppProcess]
    proxy: Proxy | None
    calling: Calling
    reminders: Scheduling
    jobs: Scheduling
    stop: Callable[[], Awaitable[None]]

    @asynccontextmanager
    async def during(self, fault: str) -> AsyncIterator[None]:
        """Call so what happens, until each actor has answered a call that began after it."""
        self.calling.fault = fault
        await asyncio.sleep(BEFORE)
        yield
        since = time.monotonic()
        await eventually(lambda: self.calling.answered_after(since), RECOVERS_WITHIN)


def instance(
    site: Site, records: Path, arguments: Sequence[str], url: str | None = None
) -> tuple[AppProcess, GatewayProcess]:
    """Prepare one more instance of the application, and its gateway."""
    port = free_port()
    app = AppProcess(site.home, "counters", gateway_port=port, records=records)
    return app, site.gateway("counters", app, url=url, arguments=arguments, http_port=port)


@pytest.fixture
async def store(site: Site, tmp_path: Path) -> AsyncIterator[Component | None]:
    """The store that is marked for actors, where the backbone does not keep records itself."""
    if site.name in ("nats", "redis"):
        yield None
        return
    async with RedisServer(tmp_path / "store") as server:
        yield component("statestore", "state.redis", redisHost=f"127.0.0.1:{server.port}", actorStateStore="true")


@asynccontextmanager
async def counting(site: Site, store: Component | None) -> AsyncIterator[Counters]:
    """Have it run, and be called."""
    arguments: list[str] = []
    if store is not None:
        resources = site.home / "resources"
        resources.mkdir()
        (resources / "store.yaml").write_text(STORE % store.setting("redisHost"))
        arguments = ["--resources-path", str(resources)]
    records = site.home / "records.txt"
    async with AsyncExitStack() as stack:
        proxy, through = None, None
        if site.backend.port is not None:
            proxy = await stack.enter_async_context(site.backend.proxy())
            through = site.backend.url_through(proxy)
        urls = (None, None, through)
        made = [instance(site, records, arguments, url) for url in urls]
        apps, hosts = [app for app, _ in made], [gateway for _, gateway in made]
        caller = site.gateway("caller", arguments=arguments)
        async with asyncio.TaskGroup() as tasks:
            for app in apps:
                tasks.create_task(stack.enter_async_context(app))
        for gateway in (*hosts, caller):
            await stack.enter_async_context(gateway)
        calling = Calling(caller, ACTORS, CALL_RATE)
        reminders = Scheduling("/actors/counter/{actor}/reminders/{name}", hosts, REMINDER_RATE, DUE)
        jobs = Scheduling("/jobs/{name}", hosts, JOB_RATE, DUE)
        load = await stack.enter_async_context(AsyncExitStack())
        await load.enter_async_context(calling.running())
        await load.enter_async_context(reminders.running(ACTORS))
        await load.enter_async_context(jobs.running())
        yield Counters(site, arguments, hosts, apps, proxy, calling, reminders, jobs, load.aclose)


# What is done


async def an_owner_restarts(counters: Counters) -> None:
    """In good order."""
    assert await counters.hosts[0].terminate() == 0
    await counters.hosts[0].start()


async def an_owner_is_killed(counters: Counters) -> float:
    """Its actors answer elsewhere; gives the seconds until all do."""
    killed_at = time.monotonic()
    await counters.hosts[0].kill()
    seconds = await eventually(lambda: counters.calling.answered_after(killed_at), RECOVERS_WITHIN) - killed_at
    await counters.hosts[0].start()
    return seconds


async def an_owner_stands_still(counters: Counters) -> None:
    """Beyond its session, while the connection of another one is silent if it can be; then both go on."""
    counters.hosts[1].signal(signal.SIGSTOP)
    if counters.proxy is not None:
        counters.proxy.stall()
    await asyncio.sleep(STILL)
    counters.hosts[1].signal(signal.SIGCONT)
    if counters.proxy is not None:
        counters.proxy.resume()


async def a_connection_is_cut(counters: Counters) -> None:
    """Three times."""
    proxy = counters.proxy
    assert proxy is not None
    for _ in range(3):
        await eventually(lambda: _assert_at_least(proxy.cut(), 1), RECOVERS_WITHIN)


async def instances_join_and_leave(counters: Counters) -> None:
    """One more comes, and one of those before leaves for good."""
    app, gateway = instance(counters.site, counters.apps[0].records, counters.arguments)
    async with app, gateway:
        assert await counters.hosts[1].terminate() == 0
        since = time.monotonic()
        await eventually(lambda: counters.calling.answered_after(since), RECOVERS_WITHIN)
    await counters.hosts[1].start()


async def the_broker_restarts(counters: Counters) -> None:
    """By SIGKILL."""
    await counters.site.backend.restart(kill=True)


async def test_the_versions_of_a_state_are_one_chain(site: Site, store: Component | None, figures: Figures) -> None:
    """Whatever happens to owners; and nothing that was promised for later is lost."""
    async with counting(site, store) as counters:
        calling = counters.calling
        await eventually(lambda: calling.answered_after(0.0), RECOVERS_WITHIN)
        async with counters.during("an owner restarts"):
            await an_owner_restarts(counters)
        async with counters.during("an owner is killed"):
            seconds = await an_owner_is_killed(counters)
        async with counters.during("an owner stands still, and another one's connection is silent"):
            await an_owner_stands_still(counters)
        async with counters.during("an owner's connection is cut"):
            await a_connection_is_cut(counters)
        async with counters.during("owners join and leave"):
            await instances_join_and_leave(counters)
        async with counters.during("the broker is killed, under actors"):
            await the_broker_restarts(counters)
        await counters.stop()
        failures = it_is_told(counters, figures)
        await nothing_is_lost(counters, figures)
        await it_is_one_chain(counters, store, figures)
    those_of_the_killed_one(seconds, failures, site, figures)


# What came of it


def it_is_told(counters: Counters, figures: Figures) -> dict[str, list[str]]:
    """Note how many calls there were, how many failed, and how long the longest took; give why they failed."""
    failures: dict[str, list[str]] = {}
    for fault, calls in groupby(counters.calling.calls, key=lambda call: call.fault):
        if fault:
            made = list(calls)
            failures[fault] = [call.problem for call in made if call.problem]
            longest = max(call.seconds for call in made)
            figures.fault(
                fault, counters.site.name, asked=len(made), refused=len(failures[fault]), longest=round(longest, 1)
            )
    return failures


def those_of_the_killed_one(seconds: float, failures: dict[str, list[str]], site: Site, figures: Figures) -> None:
    """They answered elsewhere in time; and what was planned failed nothing."""
    figures.fault("all actors of a killed owner answer elsewhere", site.name, seconds=round(seconds, 1))
    assert failures["an owner restarts"] == failures["owners join and leave"] == []
    assert seconds <= ELSEWHERE_WITHIN + TOLERANCE


async def nothing_is_lost(counters: Counters, figures: Figures) -> None:
    """Each reminder and job that was registered has come, and none before its time."""
    app = counters.apps[0]

    def check() -> None:
        assert reminders.lost(came_at(app, "begin", "reminder:")) == []
        assert jobs.lost(came_at(app, "job", "")) == []

    reminders, jobs = counters.reminders, counters.jobs
    try:
        await eventually(check, RECOVERS_WITHIN)
    finally:
        site = counters.site
        figures.fault("reminders", site.name, **reminders.told(came_at(app, "begin", "reminder:")))
        figures.fault("jobs", site.name, **jobs.told(came_at(app, "job", "")))
    assert reminders.early(came_at(app, "begin", "reminder:")) == jobs.early(came_at(app, "job", "")) == []


def came_at(app: AppProcess, kind: str, prefix: str) -> dict[str, float]:
    """Give when each reminder or job came first."""
    found: dict[str, float] = {}
    for each in records_of(app, kind):
        by = str(each["by"])
        if by.startswith(prefix):
            found.setdefault(by.removeprefix(prefix), float(str(each["at"])))
    return found


def marked_of(reader: Runtime) -> StateStore:
    """Give the store in which actors keep their state."""
    marked = reader._marked()
    assert marked is not None
    return marked[1]


async def it_is_one_chain(counters: Counters, store: Component | None, figures: Figures) -> None:
    """By the store's own record: what it accepted follows one from the other, and is what was answered."""
    site, app, calls = counters.site, counters.apps[0], counters.calling.calls
    keeping = store or component("statestore", "state.mesh", actorStateStore="true")
    async with node(site.backend.url, site.namespace, keeping) as reader:
        written = await read_written(marked_of(reader), "counters", ACTORS)
    stale = [text for each in written.values() for text in each.stale()]
    accepted = {f"{actor} {key}" for actor, each in written.items() for key in each.keys}
    done, tried = ({f"{each['actor']} {each['key']}" for each in records_of(app, kind)} for kind in ("done", "try"))
    by = sum((each.by for each in written.values()), Counter[str]())
    overlaps = doubled(records_of(app, "begin"), records_of(app, "end"))
    figures.fault(
        "actors",
        site.name,
        writes=len(accepted),
        stale=len(stale),
        doubled=len(overlaps),
        unanswered=len(accepted - done),
    )
    figures.note(overlaps=[str(each) for each in overlaps[:3]])
    assert stale == []
    assert done <= accepted <= tried
    assert sum(each.count for each in written.values()) == len(accepted)
    for number, call in enumerate(calls):
        assert by[f"call:{number}"] == 1 if call.answered else by[f"call:{number}"] <= 1, (number, call)
    assert [name for name in counters.reminders.kept_at if not by[f"reminder:{name}"]] == []


def _assert_at_least(found: int, wanted: int) -> None:
    assert found >= wanted
