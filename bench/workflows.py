"""What workflows take: activities a second by worker, store and shape, what is left in the third run, and idling."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import nats

from bench.components_report import BUSY
from bench.load import BenchError, Client, percentile, post
from bench.measure import Row, note
from bench.processes import ROOT, Gateway, Peer, Stage
from bench.report import Goal, machine, verdicts

__all__ = ["PLAN", "QUICK_PLAN", "STORES", "WorkflowPlan", "WorkflowResults", "measure"]

STORES = ("memory", "nats", "redis", "postgresql")
WORKERS: Mapping[str, Sequence[str]] = {
    "http": (sys.executable, "-m", "bench.workflow_app"),
    "python sdk": (str(ROOT / "tests/sdk/.python/bin/python"), "bench/workflow_worker.py"),
    "node sdk": ("node", "bench/workflow_worker.js"),
}
HTTP, PYTHON = "http", "python sdk"
CHAIN, FAN = "chain", "fan"
SHAPES = ((CHAIN, 3), (CHAIN, 50), (FAN, 100), (FAN, 1000))
STUB, STUB_TOGETHER = "stub", "stub, results together"
STUB_OPEN = {(CHAIN, 3): 30, (CHAIN, 50): 10, (FAN, 100): 4, (FAN, 1000): 1}
ROUNDS = 3  # Without a restart: the third is to be as fast as the first.
RATE = 50.0
AT_ONCE = 2.0**-7  # Seconds in which all are due; a power of two, so that none is lost in rounding.
WITHIN = 240.0
POLL_SECONDS = 0.02
SETTLE_SECONDS = 5.0
CHECKED = 10  # Instances of each round that are asked for.
DECAY = 5.0  # Percent.

HOW = f"""\
- **Activities a second**: instances of one shape are all started over 32 kept connections as fast as they are taken,
  and the time runs from the first start to the last end, as the worker sees it. There are {ROUNDS} rounds in one life
  of gateway, worker and store, and nothing is purged between them; a figure is their median, and *third* what the last
  one was of the first. CPU is per activity, of the gateway, the worker and the NATS server.
- **Shapes**: a chain calls one activity after the other, a fan all at once; activities give back what they are given.
- **Workers**: a bare asyncio protocol in Python over HTTP, which the gateway calls; the official SDKs for Python and
  Node, unmodified. Over HTTP the whole history goes with each turn.
- **The workers' own ceiling** (*{STUB}*): the same program, and a server in the gateway's place that stores nothing.
  It begins a turn whenever there is something new and none is out, and hands everything out in the order in which it
  came: a turn behind all activities that wait. A turn runs the code again, so how many there are counts:
  *{STUB_TOGETHER}* is the same server, which lets results wait until all of an instance are there. That is the
  least work there can be; but who waits for the first of many would wait for the last.
- **Turns** are how often the worker ran the code of an instance.
- **Stores**: NATS with its file store, Redis as the backbone, both as durable as they come; PostgreSQL in a component
  that is marked by `actorStateStore`, beside RabbitMQ, which keeps no records; and the gateway's own memory.
- **Latency**: a chain of 3 is started {RATE:g} times a second over HTTP, and asked for until it has ended; it is the
  time from the start's request to that answer.
- **Idle**: instances that wait for an event, CPU in the seconds before and after they were started.
- **Checks.** Every start is answered 202, each activity has been run once, and some instances of each round are asked
  for: they are completed, with the right output. A run where one of these fails prints no figures. Everything runs on
  loopback, the load generator on the same cores."""


@dataclass(frozen=True)
class WorkflowPlan:
    """How much is done.

    Attributes:
        activities: Of each round.
        latency_seconds: Of starts at a fixed rate.
        idle: Instances that wait.
        idle_seconds: How long their CPU is measured.
        ceiling_seconds: Of each shape at the stub.
    """

    activities: int = 3000
    latency_seconds: float = 10.0
    idle: int = 100_000
    idle_seconds: float = 30.0
    ceiling_seconds: float = 2.0


PLAN = WorkflowPlan()
QUICK_PLAN = WorkflowPlan(600, 3.0, 2000, 5.0, 1.0)


@dataclass(frozen=True)
class Figure:
    """What came of one shape.

    Attributes:
        store: Which.
        worker: Which.
        shape: Workflow and size.
        rates: Activities a second, of each round.
        cpu: Microseconds an activity, by process.
        turns: How many an instance had.
        writes: Messages that the store took an activity; None = it was not counted.
    """

    store: str
    worker: str
    shape: str
    rates: Sequence[float]
    cpu: dict[str, float]
    turns: float
    writes: float | None = None

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def kept(self) -> float:
        """Percent of the first round that the last one was."""
        return 100 * self.rates[-1] / self.rates[0]


@dataclass(frozen=True)
class WorkflowResults:
    """A whole run.

    Attributes:
        figures: By store, worker and shape.
        latency: p50, p90 and p99 in ms, by store.
        waiting: How many instances, percent of a core before and after, MB, and seconds that the starts took.
        machine: What it ran on.
        load: Load average before and after.
    """

    figures: Sequence[Figure]
    latency: dict[str, Sequence[float]]
    waiting: dict[str, float]
    machine: dict[str, str]
    load: tuple[float, float]
    rows: Sequence[Row] = ()
    idle: None = None

    @property
    def goals(self) -> list[Goal]:
        """What the goals came to."""
        found = []
        by_name = {(each.store, each.worker, each.shape): each for each in self.figures}
        for worker, shape in itertools.product((HTTP, PYTHON), (f"{CHAIN}-3", f"{FAN}-100")):
            if (each := by_name.get(("nats", worker, shape))) is not None:
                found.append(Goal(f"activities, {worker}, {shape}, NATS", 2000, each.rate, "/s", least=True))
        found += [
            Goal(f"p50 of a chain of 3 at {RATE:g}/s, {store}", 25, values[0], "ms")
            for store, values in self.latency.items()
        ]
        found += [
            Goal(f"third run by the first, {each.shape}, {each.store}", 100 - DECAY, each.kept, "%", least=True)
            for each in self.figures
            if each.worker == HTTP and each.shape == f"{CHAIN}-3"
        ]
        if self.waiting:
            more = self.waiting["after"] - self.waiting["before"]
            found.append(Goal(f"{self.waiting['instances']:,.0f} instances that wait", 1, more, "% of a core"))
        return found

    def as_json(self) -> dict[str, object]:
        """Give everything."""
        return {
            "machine": self.machine,
            "load_average": {"before": self.load[0], "after": self.load[1]},
            "figures": [asdict(each) for each in self.figures],
            "latency_ms": {
                store: dict(zip(("p50", "p90", "p99"), each, strict=True)) for store, each in self.latency.items()
            },
            "waiting": self.waiting,
            "goals": [goal.as_json() for goal in self.goals],
        }

    def markdown(self) -> str:
        """Write the page."""
        lines = ["# Measurements of workflows", "", "Written by `make bench WORKFLOWS=all`; do not edit.", ""]
        lines += [f"- {name}: {value}" for name, value in self.machine.items()]
        lines += [f"- load average before and after: {self.load[0]:.1f}, {self.load[1]:.1f}"]
        lines += [BUSY] if self.load[0] > 1 else []
        lines += ["", "## Goals", "", *verdicts(self.goals), "", "## Activities a second", ""]
        lines += [
            "| store | worker | shape | activities/s | third | turns an instance | CPU µs an activity |"
            " messages to the store an activity |"
        ]
        lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
        lines += [_line(each) for each in self.figures]
        lines += ["", "## Latency", "", f"A chain of 3, {RATE:g} a second:", ""]
        lines += ["| store | p50 ms | p90 ms | p99 ms |", "| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {store} | {' | '.join(f'{each:.1f}' for each in values)} |" for store, values in self.latency.items()
        ]
        if self.waiting:
            of = self.waiting
            lines += ["", "## Idle", "", f"{of['instances']:,.0f} instances wait for an event, started in"]
            lines += [f"{of['seconds']:.0f} s; gateway and NATS server take {of['before']:.2f} % of a core before,"]
            lines += [f"{of['after']:.2f} % after, and the gateway {of['mb']:.0f} MB more."]
        return "\n".join([*lines, "", "## How each figure is taken", "", HOW, ""])


def _line(each: Figure) -> str:
    cpu = " + ".join(f"{name} {value:.0f}" for name, value in each.cpu.items())
    kept = f"{each.kept:.0f} %" if each.store not in (STUB, STUB_TOGETHER) else "–"
    writes = "–" if each.writes is None else f"{each.writes:.2f}"
    cells = (each.store, each.worker, each.shape, f"{each.rate:,.0f}", kept, f"{each.turns:.1f}", cpu, writes)
    return f"| {' | '.join(cells)} |"


class Site:
    """A gateway with a worker, on a store."""

    def __init__(self, stage: Stage, store: str, gateway: Gateway, worker: Peer, name: str) -> None:
        self.store, self.gateway, self.worker, self.worker_name = store, gateway, worker, name
        self._stage = stage
        self._numbers = itertools.count()
        self._processes = {"gateway": gateway, "worker": worker} | ({"nats": stage.broker} if store == "nats" else {})

    def cpu(self) -> dict[str, float]:
        """Seconds so far, by process."""
        return {name: process.cpu() for name, process in self._processes.items()}

    def starts(self, workflow: str, size: int, count: int) -> tuple[list[str], Client]:
        """Make so many starts."""
        names = [f"{workflow}-{size}-{next(self._numbers)}" for _ in range(count)]
        requests = [post(f"/v1.0/workflows/dapr/{workflow}/start?instanceID={name}", b"%d" % size) for name in names]
        return names, Client(self.gateway.http_port, iter(requests), [202])

    async def round(self, workflow: str, size: int, count: int) -> float:
        """Run so many instances to their end; gives the seconds."""
        before = await self.worker.ask(do="counts")
        names, client = self.starts(workflow, size, count)
        async with client.connected() as connected:
            began = time.perf_counter()
            async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as tasks:
                tasks.create_task(connected.at_rate(count / AT_ONCE, AT_ONCE))
                while True:
                    told = await self.worker.ask(do="counts")
                    if int(str(told["ended"])) - int(str(before["ended"])) >= count:
                        break
                    await asyncio.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - began
        if (done := int(str(told["tasks"])) - int(str(before["tasks"]))) != count * size:
            raise BenchError(f"{self.store}, {self.worker_name}: {done} activities were run, not {count * size}")
        await self._check(random.Random(count).sample(names, min(CHECKED, count)), str(size))
        return seconds

    async def _check(self, names: Sequence[str], output: str) -> None:
        url = f"http://127.0.0.1:{self.gateway.http_port}/v1.0/mesh/workflows"
        async with aiohttp.ClientSession() as session:
            for name in names:
                async with session.get(f"{url}/{name}?wait=30s") as response:
                    told = await response.json()
                if (told.get("runtimeStatus"), str(told.get("output"))) != ("COMPLETED", output):
                    raise BenchError(f"{self.store}, {self.worker_name}: {name} is {told}")

    async def latencies(self, seconds: float) -> list[float]:
        """Start chains of 3 at a fixed rate; gives ms until each was seen to have ended."""
        url = f"http://127.0.0.1:{self.gateway.http_port}/v1.0"
        found: list[float] = []

        async def once(number: int, due: float) -> None:
            await asyncio.sleep(due - time.perf_counter())
            name = f"paced-{next(self._numbers)}"
            async with session.post(f"{url}/workflows/dapr/chain/start?instanceID={name}", data=b"3") as response:
                if response.status != 202:
                    raise BenchError(f"a start was answered {response.status}: {await response.text()}")
            async with session.get(f"{url}/mesh/workflows/{name}?wait=30s") as response:
                told = await response.json()
            if told.get("runtimeStatus") != "COMPLETED":
                raise BenchError(f"{name} is {told}")
            if number >= RATE:  # After a second of them.
                found.append((time.perf_counter() - due) * 1e3)

        began = time.perf_counter()
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            for number in range(int(RATE * (seconds + 1))):
                tasks.create_task(once(number, began + number / RATE))
        return found

    async def messages(self) -> int:
        """Count what the server's streams have taken so far."""
        connection = await nats.connect(self._stage.nats_url)
        try:
            return sum(each.state.last_seq for each in await connection.jetstream().streams_info())
        finally:
            await connection.close()

    async def figure(self, workflow: str, size: int, activities: int) -> Figure:
        """Measure one shape."""
        count = max(1, activities // size)
        await self.round(workflow, size, max(1, count // 10))
        used, sent = self.cpu(), await self.messages()
        turns = -int(str((await self.worker.ask(do="counts"))["turns"]))
        seconds = [await self.round(workflow, size, count) for _ in range(ROUNDS)]
        done = count * size
        turns += int(str((await self.worker.ask(do="counts"))["turns"]))
        cpu = {name: (value - used[name]) * 1e6 / (done * ROUNDS) for name, value in self.cpu().items()}
        writes = (await self.messages() - sent) / (done * ROUNDS) if self.store == "nats" else None
        rates = [done / each for each in seconds]
        found = Figure(self.store, self.worker_name, f"{workflow}-{size}", rates, cpu, turns / (count * ROUNDS), writes)
        told = ", ".join(f"{rate:.0f}" for rate in rates)
        note(f"  {self.store}, {self.worker_name}, {found.shape}: {told} activities/s")
        return found


async def _place(stage: Stage, stack: AsyncExitStack, store: str) -> tuple[str | None, Path | None]:
    """Start what keeps records; gives the backbone's URL, and a folder of resources where a component keeps them."""
    if store == "nats":
        return None, None
    if store == "memory":
        return "memory:", None
    if store == "redis":
        return await stack.enter_async_context(stage.server("redis")), None
    from tests.support.postgresql_server import PostgreSQLServer  # With its driver.

    server = await stack.enter_async_context(PostgreSQLServer(stage.directory / "postgresql"))
    metadata = {"connectionString": server.connection_string, "actorStateStore": "true"}
    spec = {
        "type": "state.postgresql",
        "version": "v1",
        "metadata": [{"name": name, "value": value} for name, value in metadata.items()],
    }
    component = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": "records"}, "spec": spec}
    folder = stage.directory / "resources"
    folder.mkdir()
    (folder / "records.yaml").write_text(json.dumps(component))
    return await stack.enter_async_context(stage.server("rabbitmq")), folder


@asynccontextmanager
async def _site(store: str, worker: str) -> AsyncIterator[Site]:
    """Run a gateway with a worker on a store."""
    async with Stage() as stage, AsyncExitStack() as stack:
        backbone, resources = await _place(stage, stack, store)
        if worker == HTTP:
            peer = await stage.program(worker, WORKERS[worker])
            gateway = await stage.gateway("shop", peer.http_port, backbone=backbone, resources=resources)
        else:
            gateway = await stage.gateway("shop", backbone=backbone, resources=resources)
            peer = await stage.program(worker, [*WORKERS[worker], str(gateway.grpc_port)])
        yield Site(stage, store, gateway, peer, worker)


async def _ceiling(worker: str, seconds: float) -> list[Figure]:
    """Measure a worker beside a server that stores nothing."""
    found = []
    async with Stage() as stage:
        stub = await stage.program("stub", [sys.executable, "-m", "bench.taskhub"])
        peer = await stage.program(worker, [*WORKERS[worker], str(stub.http_port)])
        plain = [(STUB, *shape) for shape in SHAPES]
        fans = [(STUB_TOGETHER, *shape) for shape in SHAPES if shape[0] == FAN]
        for kind, workflow, size in (plain[0], *plain, *fans):  # The first one is to warm it up.
            used = {"stub": stub.cpu(), "worker": peer.cpu()}
            asked = {"workflow": workflow, "input": size, "open": STUB_OPEN[workflow, size], "seconds": seconds}
            answer = await stub.ask(**asked, together=kind == STUB_TOGETHER)
            told = {name: float(str(value)) for name, value in answer.items()}
            now = {"stub": stub.cpu(), "worker": peer.cpu()}
            cpu = {name: (value - used[name]) * 1e6 / told["tasks"] for name, value in now.items()}
            rate, turns = told["tasks"] / told["seconds"], told["turns"] / told["ended"]
            found.append(Figure(kind, worker, f"{workflow}-{size}", [rate], cpu, turns))
            note(f"  {kind}, {worker}, {workflow}-{size}: {rate:.0f} activities/s, {turns:.1f} turns")
    return found[1:]


async def _idle(plan: WorkflowPlan) -> dict[str, float]:
    """Measure instances that wait for an event, on NATS."""
    note(f"{plan.idle:,} instances that wait …")

    async def percent() -> float:
        await asyncio.sleep(SETTLE_SECONDS)
        used = site.cpu()
        await asyncio.sleep(plan.idle_seconds)
        now = site.cpu()
        return 100 * sum(now[name] - used[name] for name in ("gateway", "nats")) / plan.idle_seconds

    async with _site("nats", HTTP) as site:
        await site.round(CHAIN, 3, 1)
        before, rss = await percent(), site.gateway.rss()
        names = (f"/v1.0/workflows/dapr/wait/start?instanceID=wait-{number}" for number in itertools.count())
        done, began = 0, time.perf_counter()
        async with Client(site.gateway.http_port, (post(name, b"1") for name in names), [202]).connected() as client:
            while done < plan.idle:
                done += (await client.saturate(0.25)).count
        seconds = time.perf_counter() - began
        after = await percent()
        mb = site.gateway.rss() - rss
        return {"instances": done, "before": before, "after": after, "seconds": seconds, "mb": mb}


async def measure(plan: WorkflowPlan, stores: Sequence[str] = STORES) -> WorkflowResults:
    """Measure everything, on some stores."""
    before = os.getloadavg()[0]
    figures: list[Figure] = []
    latency: dict[str, Sequence[float]] = {}
    for worker in list(WORKERS)[1:]:
        note(f"the ceiling of a worker, {worker} …")
        figures += await _ceiling(worker, plan.ceiling_seconds)
    for store in stores:
        for worker in WORKERS if store == "nats" else (HTTP,):
            note(f"{worker} on {store} …")
            async with _site(store, worker) as site:
                figures += [await site.figure(*shape, plan.activities) for shape in SHAPES]
                if worker == HTTP:
                    found = await site.latencies(plan.latency_seconds)
                    latency[store] = [percentile(found, share) for share in (50, 90, 99)]
    idle = await _idle(plan) if "nats" in stores else {}
    return WorkflowResults(figures, latency, idle, machine(), (before, os.getloadavg()[0]))
