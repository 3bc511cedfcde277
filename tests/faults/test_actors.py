"""Actors, reminders and jobs while owners, connections and the broker fail: one property, on every backbone.

Each turn of a counter writes, beside its count, a key that no other turn has (``tests/support/apps/counters.py``). So
the store itself says what it ever accepted, and it must be one chain: numbers without a gap, none twice, and no owner
of before after the next one. Applications of two owners may be at work at once for a moment, since nothing takes back
what a stopped process does when it goes on; that is counted, and not promised to be zero.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from mesh.node.runtime import Runtime
from mesh.resources.component import Component
from mesh.store import StateStore
from tests.faults.conftest import REPORTING, Figures, Site, arguments_for
from tests.support.counting import Call, Calling, Holding, Scheduling, doubled, read_written, records_of
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nodes import component, node
from tests.support.processes import free_port
from tests.support.proxy import Proxy

pytestmark = pytest.mark.slow
ORDINARY = ("nats",)  # The report has all of the brokers; this one takes a minute and a half.
ACTORS = [f"a{number}" for number in range(24)]
HELD = [f"h{number}" for number in range(72 if REPORTING else 24)]  # Who are called all the time while owners restart.
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
SETTLES = 1.0  # Seconds in which those that come back get their share.
BEFORE = 0.5  # What is under way when it happens began under its name.


@dataclass(slots=True)
class Counters:
    """An application of three instances which hosts counters, called all the time from elsewhere.

    Attributes:
        hosts: The gateways beside them. The first has started what is embedded, the last one's connection goes
            through the proxy.
        apps: The instances; their records are one file.
        proxy: To the broker.
        caller: The gateway elsewhere.
        calling: The calls.
        reminders: Registered meanwhile.
        jobs: Likewise.
        stop: Begins no more, and waits for what was begun.
        phases: What happened, with the Unix time of its beginning.
        holding: The calls of actors that are called all the time while owners restart.
    """

    site: Site
    arguments: Sequence[str]
    hosts: list[GatewayProcess]
    apps: list[AppProcess]
    proxy: Proxy
    caller: GatewayProcess
    calling: Calling
    reminders: Scheduling
    jobs: Scheduling
    stop: Callable[[], Awaitable[None]]
    phases: list[tuple[str, float]] = field(default_factory=list)
    holding: Holding = field(init=False)

    def __post_init__(self) -> None:
        self.holding = Holding(self.caller, HELD)

    @asynccontextmanager
    async def during(self, fault: str) -> AsyncIterator[None]:
        """Call so what happens, until each actor has answered a call that began after it, and no earlier one waits."""
        self.calling.happens(fault)
        self.phases.append((fault, time.time()))
        await asyncio.sleep(BEFORE)
        yield
        since = time.monotonic()
        await eventually(lambda: self.calling.answered_after(since), RECOVERS_WITHIN)
        await eventually(lambda: self.calling.ended_before(since), RECOVERS_WITHIN)

    def calls(self, fault: str) -> list[Call]:
        """Give those that began while something happened."""
        return [call for call in self.calling.calls if call.fault == fault]


@asynccontextmanager
async def counting(site: Site, store: Component | None) -> AsyncIterator[Counters]:
    """Have it run, and be called."""
    arguments = arguments_for(site, store)
    records = site.home / "records.txt"
    ports = [free_port() for _ in range(3)]
    apps = [AppProcess(site.home, "counters", gateway_port=port, records=records) for port in ports]
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as tasks:
            for app in apps:
                tasks.create_task(stack.enter_async_context(app))
        hosts: list[GatewayProcess] = []

        async def begin(url: str | None = None) -> None:
            number = len(hosts)
            host = site.gateway("counters", apps[number], url=url, arguments=arguments, http_port=ports[number])
            hosts.append(await stack.enter_async_context(host))

        await begin()  # It starts what is embedded; before, there is nothing to reach through a proxy.
        await begin()
        proxy = await stack.enter_async_context(site.backend.proxy())
        await begin(site.backend.url_through(proxy))
        caller = await stack.enter_async_context(site.gateway("caller", arguments=arguments))
        calling = Calling(caller, ACTORS, CALL_RATE)
        reminders = Scheduling("/actors/counter/{actor}/reminders/{name}", hosts, REMINDER_RATE, DUE)
        jobs = Scheduling("/jobs/{name}", hosts, JOB_RATE, DUE)
        load = await stack.enter_async_context(AsyncExitStack())
        await load.enter_async_context(calling.running())
        await load.enter_async_context(reminders.running(ACTORS))
        await load.enter_async_context(jobs.running())
        yield Counters(site, arguments, hosts, apps, proxy, caller, calling, reminders, jobs, load.aclose)


# What is done


async def owners_restart(counters: Counters) -> None:
    """One after the other, in good order, while a call of each held actor is under way at any time."""
    async with counters.holding.running():
        for host in counters.hosts if REPORTING else counters.hosts[:1]:
            assert await host.terminate() == 0
            await host.start()
            await asyncio.sleep(SETTLES)


async def an_owner_is_killed(counters: Counters) -> float:
    """Its actors answer elsewhere; gives the seconds until all do."""
    killed_at = time.monotonic()
    await counters.hosts[0].kill()
    seconds = await eventually(lambda: counters.calling.answered_after(killed_at), RECOVERS_WITHIN) - killed_at
    await counters.hosts[0].start()
    return seconds


async def an_owner_stands_still(counters: Counters) -> None:
    """Beyond its session, while the connection of another one is silent; then both go on."""
    counters.hosts[1].signal(signal.SIGSTOP)
    counters.proxy.stall()
    await asyncio.sleep(STILL)
    counters.hosts[1].signal(signal.SIGCONT)
    counters.proxy.resume()


async def a_connection_is_cut(counters: Counters) -> None:
    """Three times."""
    for _ in range(3):
        await eventually(lambda: _assert_at_least(counters.proxy.cut(), 1), RECOVERS_WITHIN)


async def instances_join_and_leave(counters: Counters) -> None:
    """One more comes, and one of those before leaves for good."""
    site, port = counters.site, free_port()
    app = AppProcess(site.home, "counters", gateway_port=port, records=counters.apps[0].records)
    async with app, site.gateway("counters", app, arguments=counters.arguments, http_port=port):
        assert await counters.hosts[1].terminate() == 0
        since = time.monotonic()
        await eventually(lambda: counters.calling.answered_after(since), RECOVERS_WITHIN)
    await counters.hosts[1].start()


async def the_broker_restarts(counters: Counters) -> None:
    """By SIGKILL."""
    await counters.site.backend.restart(kill=True)


async def everything_fails(counters: Counters) -> float:
    """One after the other; gives the seconds until all actors of a killed owner answer elsewhere."""
    async with counters.during("an owner is killed"):
        seconds = await an_owner_is_killed(counters)
    async with counters.during("owners restart"):
        await owners_restart(counters)
    async with counters.during("an owner stands still, and another one's connection is silent"):
        await an_owner_stands_still(counters)
    async with counters.during("an owner's connection is cut"):
        await a_connection_is_cut(counters)
    async with counters.during("owners join and leave"):
        await instances_join_and_leave(counters)
    async with counters.during("the broker is killed, under actors"):
        await the_broker_restarts(counters)
    return seconds


async def test_the_versions_of_a_state_are_one_chain(site: Site, store: Component | None, figures: Figures) -> None:
    """Whatever happens to owners; and nothing that was promised for later is lost."""
    async with counting(site, store) as counters:
        await eventually(lambda: counters.calling.answered_after(0.0), RECOVERS_WITHIN)
        seconds = await everything_fails(counters)
        await counters.stop()
        await nothing_is_lost(counters, figures)
        late = it_is_told(counters, figures)
        await it_is_one_chain(counters, store, figures)
    what_was_promised(counters, seconds, late, figures)


# What came of it


def it_is_told(counters: Counters, figures: Figures) -> dict[str, float]:
    """Note how many calls there were, how many failed, how long the longest took; give how late what was due came."""
    app, late = counters.apps[0], {}
    reminders, jobs = came_at(app, "begin", "reminder:"), came_at(app, "job", "")
    ends = [at for _, at in counters.phases[1:]] + [math.inf]
    for (fault, since), until in zip(counters.phases, ends, strict=True):
        made = counters.calls(fault)
        failed = [call.problem for call in made if call.problem]
        late[fault] = max(
            counters.reminders.latest(reminders, since, until), counters.jobs.latest(jobs, since, until), 0.0
        )
        figures.fault(
            fault,
            counters.site.name,
            asked=len(made),
            refused=len(failed),
            longest=round(max(call.seconds for call in made), 1),
            late=round(late[fault], 1),
        )
        if failed:
            figures.note(problems=sorted({each[:200] for each in failed})[:3])
    return late


def what_was_promised(counters: Counters, seconds: float, late: Mapping[str, float], figures: Figures) -> None:
    """A killed owner is replaced in time; what is planned fails nothing, and how long calls wait for it is noted."""
    site, holding = counters.site, counters.holding
    figures.fault("all actors of a killed owner answer elsewhere", site.name, seconds=round(seconds, 1))
    waits = [round(wait * 1000) for wait in holding.waits(records_of(counters.apps[0], "begin"))]
    figures.fault(
        "actors that move",
        site.name,
        moves=len(waits),
        median=waits[len(waits) // 2],
        most=waits[len(waits) * 99 // 100],
        longest=waits[-1],
    )
    planned = [*counters.calls("owners restart"), *counters.calls("owners join and leave")]
    assert [call.problem for call in planned if call.problem] == holding.problems == []
    assert max(seconds, late["an owner is killed"]) <= ELSEWHERE_WITHIN + TOLERANCE


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
    marked = reader.parts.marked()
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
