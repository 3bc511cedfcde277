"""What actors, reminders and jobs take: calls and activations over gateways, registrations, bursts, and idling."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from bench.app import ECHO_BODY
from bench.components_report import BUSY
from bench.load import BenchError, Client, percentile, post
from bench.measure import Plan, Row, Variant, alternate, note
from bench.processes import ROOT, Gateway, Peer, Process, Stage
from bench.report import Goal, figures, machine, verdicts

__all__ = ["PLAN", "QUICK_PLAN", "ActorResults", "measure"]

PLAN = Plan(rounds=5, seconds=1.5, rate_seconds=2.0, events=20_000)
QUICK_PLAN = Plan(rounds=2, seconds=0.5, rate_seconds=0.6, events=2_000)
BROKERS = ("nats", "redis")
OWNERS = (
    1,
    2,
)  # Gateways of the application: on two cores, two fire faster, and what one is asked for may be the other's.
TYPE = "bench"
IDS = 1000  # Of actors that are called again and again.
RATE = 500.0
TYPES = 20
REMINDERS = 1_000_000
IDLE_SECONDS = 30.0
SETTLE_SECONDS = 5.0  # Until partitions have their owners, and what starting took is over.
JOBS_SHARE = 4  # Of reminders at one instant so many fewer jobs: it is the same code.
SLOWER = 2.5  # Than measured just before: so slow may a registration become on a busy machine.
AHEAD_SECONDS = 3.0  # Between the last registration and the instant.
BURST_SECONDS = 60.0
POLL_SECONDS = 0.02
LONG = '"24h"'

DISTINCT, ONE = f"{IDS:,} ids", "one id"

HOW = f"""\
- **Calls**: POST at a gateway without an application, answered by the application of another one, on NATS. 32 kept
  connections call again as soon as they are answered; both variants take turns, and a figure is the median of the
  rounds. CPU is that of the two gateways. All of {DISTINCT} are active before.
- **Activations**: the same at {RATE:g}/s, each call of an id that was never called. Latency is from the time a call
  was due (no coordinated omission); the figure is the median of the rounds' p90.
- **Registrations**: 32 kept connections at one gateway of the application; each is acknowledged when the store has it.
- **At one instant**: registered the same way, due at one instant, and fired over HTTP; the time is from that instant
  to the last, when the application, a bare asyncio protocol, has had all. Firings are how often it was called.
- **A million**: an owner's timers alone in a process, and a store that makes records as they are read; memory is what
  it takes more than before.
- **Idle ownership**: two gateways of one application share {TYPES} types of 256 partitions; the figure is the
  larger CPU of both, less that of a gateway without an application in the same {IDLE_SECONDS:g} seconds.
- **Checks.** Answers have the expected status and body. A run where one of these fails, or where one was not fired or
  fired early, prints no figures. Everything runs on loopback, the load generator on the same cores."""


@dataclass(frozen=True)
class Burst:
    """What came of many that were due at one instant.

    Attributes:
        broker: Which.
        what: Reminders or jobs.
        owners: Gateways of the application, which share them.
        registered: For each second, while they were registered.
        count: How many were due.
        seconds: From that instant to the last.
        firings: How often the application was called.
    """

    broker: str
    what: str
    owners: int
    registered: float
    count: int
    seconds: float
    firings: int

    @property
    def at(self) -> str:
        """Where that was."""
        return f"{self.broker}, {self.owners} gateway{'s' * (self.owners > 1)}"


@dataclass(frozen=True)
class ActorResults:
    """A whole run.

    Attributes:
        rows: Calls.
        activation: p50, p90 and p99 in ms, at a fixed rate.
        bursts: Registered, and fired at one instant.
        million: MB, uses of the store, and percent of a core.
        owners: Percent of a core of each gateway that idles, by its name.
        machine: What it ran on.
        load: Load average before and after.
    """

    rows: Sequence[Row]
    activation: Sequence[float]
    bursts: Sequence[Burst]
    million: dict[str, float]
    owners: dict[str, float]
    machine: dict[str, str]
    load: tuple[float, float]
    idle: None = None

    @property
    def goals(self) -> list[Goal]:
        """What the goals came to."""
        calls = {row.variant: row.per_second for row in self.rows}
        owners = max(value for name, value in self.owners.items() if name != "alone")
        found = [
            Goal("actor calls, distinct ids", 3000, calls[DISTINCT], "/s", least=True),
            Goal("actor calls, one id", 1500, calls[ONE], "/s", least=True),
            Goal(f"activation at {RATE:g}/s, p90", 4, self.activation[1], "ms"),
        ]
        return [
            *found,
            *(
                Goal(f"{each.what} registered, {each.at}", 5000, each.registered, "/s", least=True)
                for each in self.bursts
            ),
            *(
                Goal(f"{each.count:,} {each.what} at one instant, {each.at}", 4, each.seconds, "s")
                for each in self.bursts
                if each.what == "reminders"
            ),
            Goal("a million reminders, memory", 300, self.million["mb"], "MB"),
            Goal("a million reminders, idle: uses of the store", 0, self.million["asked"], ""),
            Goal(f"idle owner of {TYPES} types", 1, owners - self.owners["alone"], "% of a core"),
        ]

    def as_json(self) -> dict[str, object]:
        """Give everything."""
        return {
            "machine": self.machine,
            "load_average": {"before": self.load[0], "after": self.load[1]},
            "works": [row.as_json() for row in self.rows],
            "activation_ms": dict(zip(("p50", "p90", "p99"), self.activation, strict=True)),
            "bursts": [asdict(each) for each in self.bursts],
            "million": self.million,
            "idle_percent": self.owners,
            "goals": [goal.as_json() for goal in self.goals],
        }

    def markdown(self) -> str:
        """Write the page."""
        p50, p90, p99 = self.activation
        mb, percent = self.million["mb"], self.million["cpu_percent"]
        return "\n".join(
            [
                "# Measurements of actors, reminders and jobs",
                "",
                "Written by `python -m bench --only actors`; do not edit.",
                "",
                *(f"- {name}: {value}" for name, value in self.machine.items()),
                f"- load average before and after: {self.load[0]:.1f}, {self.load[1]:.1f}",
                *([BUSY] if self.load[0] > 1 else []),
                *("", "## Goals", "", *verdicts(self.goals), ""),
                *("## Calls", "", *figures(self.rows), ""),
                f"Activations at {RATE:g}/s: p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms.",
                *("", "## Registered, and due at one instant", ""),
                "| broker | gateways | what | registered per second | due | all fired after | firings |",
                "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
                *(
                    f"| {each.broker} | {each.owners} | {each.what} | {each.registered:,.0f} | {each.count:,} "
                    f"| {each.seconds:.2f} s | {each.firings:,} |"
                    for each in self.bursts
                ),
                *("", "## Idle", ""),
                f"A million reminders take {mb:.0f} MB and {percent:.3f} % of a core.",
                *("", "| gateway | % of a core |", "| --- | ---: |"),
                *(f"| {name} | {value:.2f} |" for name, value in self.owners.items()),
                *("", "## How each figure is taken", "", HOW, ""),
            ]
        )


def _call(of: str) -> bytes:
    return post(f"/v1.0/actors/{TYPE}/{of}/method/m", b"{}")


async def _app(stage: Stage, types: Sequence[str] = (TYPE,)) -> Peer:
    return await stage.peer("app", config={"entities": types})


async def _once(gateway: Gateway, request: bytes, status: int) -> None:
    """Send one request, and see that it is answered so: from then on all is there that it needs."""
    async with Client(gateway.http_port, [request], [status]).connected(1) as client:
        await client.saturate(0.0)


async def _calls(plan: Plan) -> tuple[list[Row], list[float]]:
    note("calls …")
    async with Stage() as stage, AsyncExitStack() as stack:
        owner = await stage.gateway("owner", (await _app(stage)).http_port)
        caller = await stage.gateway("caller")
        await _once(caller, _call("0"), 200)

        async def client(requests: Sequence[bytes] | Iterator[bytes]) -> Client:
            return await stack.enter_async_context(
                Client(caller.http_port, requests, [200], expected_body=ECHO_BODY).connected()
            )

        distinct = await client([_call(str(number)) for number in range(IDS)])
        one = await client([_call("0")])
        await distinct.saturate(plan.seconds)
        variants = [Variant(name, each.saturate, [caller, owner]) for name, each in ((DISTINCT, distinct), (ONE, one))]
        rows = list((await alternate("actor call", variants, plan.rounds, plan.seconds)).values())
        fresh = await client(_call(f"n{number}") for number in itertools.count())
        await fresh.at_rate(RATE, plan.rate_seconds / 2)
        rounds = [(await fresh.at_rate(RATE, plan.rate_seconds)).latencies for _ in range(plan.rounds)]
        shares = [[percentile(each, share) * 1e3 for each in rounds] for share in (50, 90, 99)]
        return rows, [statistics.median(share) for share in shares]


def _registration(what: str, name: str, due: str) -> bytes:
    if what == "jobs":
        return post(f"/v1.0-alpha1/jobs/{name}", f'{{"dueTime":{due},"overwrite":true}}'.encode())
    return post(f"/v1.0/actors/{TYPE}/{name}/reminders/r", f'{{"dueTime":{due}}}'.encode())


async def _registered(gateway: Gateway, what: str, of: str, due: str, count: int | None, seconds: float) -> float:
    """Register so many, each once or again, or for so long; gives how many in a second."""
    names = itertools.count() if count is None else itertools.cycle(range(count))
    requests = (_registration(what, f"{of}{number}", due) for number in names)
    done, began = 0, time.perf_counter()
    async with Client(gateway.http_port, requests, [204]).connected() as client:
        while done == 0 or (count is not None and done < count):
            done += (await client.saturate(seconds)).count
    return done / (time.perf_counter() - began)


async def _burst(broker: str, what: str, owners: int, plan: Plan, gateway: Gateway, app: Peer) -> Burst:
    count = plan.events if what == "reminders" else plan.events // JOBS_SHARE
    rate = await _registered(gateway, what, "far", LONG, None, 2 * plan.seconds)
    due = float(int(time.time() + SLOWER * count / rate + AHEAD_SECONDS))
    instant = datetime.fromtimestamp(due, UTC).strftime('"%Y-%m-%dT%H:%M:%SZ"')
    before = await app.ask(do="fired")
    await _registered(gateway, what, "now", instant, count, 0.25)
    if time.time() > due:
        raise BenchError(f"{broker}: {count} {what} were not registered before they were due")
    async with asyncio.timeout(due - time.time() + BURST_SECONDS):
        while True:
            told = await app.ask(do="fired")
            different, firings = (int(str(told[name])) - int(str(before[name])) for name in ("different", "firings"))
            if time.time() < due and firings:
                raise BenchError(f"{broker}: {what} were fired early")
            if different == count:
                break
            await asyncio.sleep(POLL_SECONDS)
    found = Burst(broker, what, owners, rate, count, float(str(told["last"])) - due, firings)
    note(f"  {found.at}: {rate:.0f} {what}/s registered; {count} fired {found.seconds:.2f} s after their time")
    return found


async def _bursts(plan: Plan) -> list[Burst]:
    found: list[Burst] = []
    for broker, owners in itertools.product(BROKERS, OWNERS):
        note(f"reminders and jobs on {broker} …")
        async with Stage() as stage, stage.server(broker) as url:
            app = await _app(stage)
            gateways = [await stage.gateway("owner", app.http_port, backbone=url) for _ in range(owners)]
            await _once(gateways[0], _call("0"), 200)
            if owners > 1:
                await asyncio.sleep(SETTLE_SECONDS)
            found += [await _burst(broker, what, owners, plan, gateways[0], app) for what in ("reminders", "jobs")]
    return found


async def _million() -> dict[str, float]:
    note("a million reminders …")
    command = [sys.executable, "-m", "bench.timers", str(REMINDERS), str(SETTLE_SECONDS)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    told, _ = await process.communicate()
    if process.returncode:
        raise BenchError("bench.timers failed")
    found: dict[str, float] = json.loads(told)
    return found


async def _idle(seconds: float) -> dict[str, float]:
    note(f"idle owners of {TYPES} types …")
    types = [f"type{number}" for number in range(TYPES)]
    async with Stage() as stage:
        idle: dict[str, Process] = {"alone": await stage.gateway("alone")}
        for name in ("one owner", "the other"):
            idle[name] = await stage.gateway("owner", (await _app(stage, types)).http_port)
        await asyncio.sleep(SETTLE_SECONDS)
        before = {name: process.cpu() for name, process in idle.items()}
        await asyncio.sleep(seconds)
        return {name: 100 * (process.cpu() - before[name]) / seconds for name, process in idle.items()}


async def measure(plan: Plan) -> ActorResults:
    """Measure everything."""
    before = os.getloadavg()[0]
    rows, activation = await _calls(plan)
    bursts = await _bursts(plan)
    million = await _million()
    owners = await _idle(IDLE_SECONDS if plan is PLAN else SETTLE_SECONDS)
    return ActorResults(rows, activation, bursts, million, owners, machine(), (before, os.getloadavg()[0]))
