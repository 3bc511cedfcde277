"""What watching and guarding cost: metrics, spans and signatures, each beside gateways without it."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from bench.app import ECHO_BODY
from bench.components_report import BUSY
from bench.load import BenchError, Client, Load, get, post
from bench.measure import Plan, Row, Variant, alternate, note
from bench.processes import Gateway, Peer, Stage
from bench.report import Goal, figures, machine, verdicts
from bench.rpc import EVENT

__all__ = ["OFF", "PLAN", "QUICK_PLAN", "SAMPLED", "SIGNED", "TRACED", "WATCHED", "WatchResults", "measure", "results"]

OFF, WATCHED = "all off", "metrics, 0 % sampled"
TRACED, SAMPLED, SIGNED = "the same, in traces not sampled", "the same, 100 % sampled", "the same, signed"
VARIANTS = (OFF, WATCHED, TRACED, SAMPLED, SIGNED)
RATES = {TRACED: "0.0000000001", SAMPLED: "1"}  # Elsewhere 0, which makes no spans.
CALLER, CALLEE = "caller", "callee"

PLAN = Plan(rounds=20, seconds=0.3)
QUICK_PLAN = Plan(rounds=3, seconds=0.2)
DRAIN_SECONDS = 30.0
POLL_SECONDS = 0.01
EXPORT_SECONDS = 1.2  # What waits is sent once a second.

MOST_PERCENT = 5.0
MOST_SAMPLED = 60.0
MOST_SIGNED = 120.0

HOW = f"""\
- **In turn.** Every variant is warmed up, then all are measured one after the other in each round, in
  another order; a figure is the median over the rounds, a goal and what is added the median of what each round
  gave. Compare variants of one run; absolute figures depend on the machine and what else it does.
- **{OFF}**: `--enable-metrics=false`, `samplingRate: "0"`, no `--trust-mode`; the node's own counts are always there.
  **{WATCHED}**: metrics are on, nobody scrapes them, and the rate is `"0"`. The others have that too, and are
  compared with it. **{TRACED}**: each call has ids of a trace, and none is recorded. **{SAMPLED}**:
  spans go to a process that takes them as Zipkin does; a round ends after the last is sent. **{SIGNED}**:
  `--trust-mode strict`, on a broker of its own.
- **CPU** is user + system time of all threads of the named gateways, divided by what they did; the broker, the
  application, the collector and the load generator are not in it. Everything runs on loopback, on the same cores.
- **publish** is 200 bytes of JSON to a topic at the caller, and each delivery to an application at the callee.
  **invoke** is GET of a small JSON at the caller, answered by the callee's application. **state** is GET of one key.
- **Load** is that of `bench/load.py`: 32 kept connections call again as soon as they are answered.
- **Checks.** Answers have the expected status and body. Each event is delivered once, counted by the application. A
  run where one of these fails prints no figures."""

_CONFIGURATION = """\
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {{name: bench}}
spec:
  tracing:
    samplingRate: "{rate}"
    zipkin: {{endpointAddress: "http://127.0.0.1:{port}/echo/spans"}}
"""


@dataclass(frozen=True)
class _Pair:
    """Two gateways of one variant."""

    variant: str
    caller: Gateway
    callee: Gateway
    app: Peer
    topic: str

    async def delivered(self) -> int:
        """Give how many events its application had."""
        counts = (await self.app.ask(do="counts"))["counts"]
        assert isinstance(counts, dict)
        return int(counts.get(f"/events/{self.topic}", 0))

    async def settled(self, load: Load) -> Load:
        """Wait until its spans are sent; gives what it was given."""
        if self.variant == SAMPLED:
            await asyncio.sleep(EXPORT_SECONDS)
        return load


async def _pair(stage: Stage, variant: str, number: int, collector: int) -> _Pair:
    topic = f"t{number}"
    app = await stage.peer("app", subscriptions=[{"pubsubname": "pubsub", "topic": topic, "route": f"/events/{topic}"}])
    configuration = stage.directory / f"{topic}.yaml"
    configuration.write_text(_CONFIGURATION.format(rate=RATES.get(variant, "0"), port=collector))
    further = ["--config", str(configuration)]
    further += ["--enable-metrics=false"] if variant == OFF else ["--metrics-port", "0"]
    if variant == SIGNED:
        from mesh.trust.folder import Folder  # With cryptography, which is an extra.

        Folder(stage.directory / "trust").init("public")
        further += ["--trust-mode", "strict", "--trust-dir", str(stage.directory / "trust")]
    callee = await stage.gateway(f"{CALLEE}{number}", app.http_port, further=further)
    caller = await stage.gateway(f"{CALLER}{number}", further=further)
    return _Pair(variant, caller, callee, app, topic)


async def _published(pair: _Pair, client: Client, seconds: float) -> Load:
    """Publish, and wait until all was delivered."""
    expected = await pair.delivered()
    load = await client.saturate(seconds)
    expected += load.count
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while await pair.delivered() < expected:
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise BenchError(f"{pair.variant}: an event was not delivered within {DRAIN_SECONDS:g} s") from None
    return await pair.settled(load)


async def _called(pair: _Pair, client: Client, seconds: float) -> Load:
    return await pair.settled(await client.saturate(seconds))


async def _client(stack: AsyncExitStack, pair: _Pair, request: bytes, status: int, body: bytes | None = None) -> Client:
    return await stack.enter_async_context(Client(pair.caller.http_port, [request], [status], body).connected())


async def _publish(stack: AsyncExitStack, pair: _Pair) -> Variant:
    client = await _client(stack, pair, post(f"/v1.0/publish/pubsub/{pair.topic}", EVENT.encode()), 204)
    return Variant(pair.variant, partial(_published, pair, client), [pair.caller, pair.callee], pair.delivered)


async def _invoke(stack: AsyncExitStack, pair: _Pair) -> Variant:
    path = f"/v1.0/invoke/{pair.callee.name.removeprefix('gateway-')}/method/echo"
    client = await _client(stack, pair, get(path), 200, ECHO_BODY)
    return Variant(pair.variant, partial(_called, pair, client), [pair.caller, pair.callee])


async def _state(stack: AsyncExitStack, pair: _Pair) -> Variant:
    saving = await _client(
        stack, pair, post("/v1.0/state/statestore", f'[{{"key":"k","value":{EVENT}}}]'.encode()), 204
    )
    await saving.saturate(0.0)
    client = await _client(stack, pair, get("/v1.0/state/statestore/k"), 200, EVENT.encode())
    return Variant(pair.variant, partial(_called, pair, client), [pair.caller])


WORKS: dict[str, Callable[[AsyncExitStack, _Pair], Awaitable[Variant]]] = {
    "state": _state,
    "publish": _publish,
    "invoke": _invoke,
}


async def measure(plan: Plan) -> list[Row]:
    """Measure every work of every variant."""
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage())
        proven = await stack.enter_async_context(Stage())
        collector = (await stage.peer("app")).http_port
        pairs = [
            await _pair(proven if variant == SIGNED else stage, variant, number, collector)
            for number, variant in enumerate(VARIANTS)
        ]
        for name, work in WORKS.items():
            note(f"{name} …")
            async with AsyncExitStack() as connections:
                variants = [await work(connections, pair) for pair in pairs]
                rows += (await alternate(name, variants, plan.rounds, plan.seconds)).values()
    return rows


def _each(row: Row) -> dict[str, list[float]]:
    """Give the microseconds of each gateway in every round."""
    columns = zip(*(sample.cpu.values() for sample in row.samples), strict=True)
    return {name: list(column) for name, column in zip((CALLER, CALLEE), columns, strict=False)}


def _operations(row: Row) -> dict[str, list[float]]:
    """Give the microseconds of each operation in every round: a call is one over both gateways."""
    return {"both": [sample.cpu_sum for sample in row.samples]} if row.work == "invoke" else _each(row)


def _added(row: Row, base: Row) -> dict[str, float]:
    """Give the microseconds that each gateway takes more than the same of another variant."""
    theirs = _each(base)
    return {
        name: statistics.median(ours - other for ours, other in zip(mine, theirs[name], strict=True))
        for name, mine in _each(row).items()
    }


@dataclass(frozen=True)
class WatchResults:
    """A whole run."""

    rows: Sequence[Row]
    machine: dict[str, str]
    load: tuple[float, float]
    idle: None = None

    @property
    def goals(self) -> list[Goal]:
        """What the goals came to."""
        found: list[Goal] = []
        by_name = {(row.work, row.variant): row for row in self.rows}
        for work in dict.fromkeys(row.work for row in self.rows):
            off, watched = (_operations(by_name[work, variant]) for variant in (OFF, WATCHED))
            for name, mine in watched.items():
                percent = 100 * statistics.median(ours / bare - 1 for ours, bare in zip(mine, off[name], strict=True))
                found.append(Goal(f"{work}, {name}: CPU more with metrics, 0 % sampled", MOST_PERCENT, percent, "%"))
        for work in dict.fromkeys(row.work for row in self.rows):
            for name, more in _added(by_name[work, SAMPLED], by_name[work, WATCHED]).items():
                found.append(Goal(f"{work}, {name}: CPU more with 100 % sampled", MOST_SAMPLED, more, "µs"))
        if ("invoke", SIGNED) in by_name:
            signed = zip(by_name["invoke", SIGNED].samples, by_name["invoke", WATCHED].samples, strict=True)
            more = statistics.median(ours.cpu_sum - bare.cpu_sum for ours, bare in signed)
            found.append(Goal("invoke, both: CPU more when signed", MOST_SIGNED, more, "µs"))
        return found

    @property
    def added(self) -> list[tuple[str, str, str, float]]:
        """What each variant adds: work, variant, gateway, microseconds of CPU."""
        by_name = {(row.work, row.variant): row for row in self.rows}
        return [
            (row.work, row.variant, name, more)
            for row in self.rows
            if row.variant != OFF
            for name, more in _added(row, by_name[row.work, OFF if row.variant == WATCHED else WATCHED]).items()
        ]

    def as_json(self) -> dict[str, object]:
        """Give everything."""
        names = ("work", "variant", "gateway", "added_us")
        return {
            "machine": self.machine,
            "load_average": {"before": self.load[0], "after": self.load[1]},
            "works": [row.as_json() for row in self.rows],
            "added": [dict(zip(names, (*of, round(more, 2)), strict=True)) for *of, more in self.added],
            "goals": [goal.as_json() for goal in self.goals],
        }

    def markdown(self) -> str:
        """Write the page."""
        return "\n".join(
            [
                "# Measurements of watching and guarding",
                "",
                "Written by `python -m bench --only watch`; do not edit.",
                "[RESULTS.md](RESULTS.md) has the gateway beside the same work without it.",
                "",
                *(f"- {name}: {value}" for name, value in self.machine.items()),
                f"- load average before and after: {self.load[0]:.1f}, {self.load[1]:.1f}",
                *([BUSY] if self.load[0] > 1 else []),
                *("", "## Goals", "", *verdicts(self.goals), ""),
                *("## What each adds", "", "| work | variant | gateway | CPU more |", "| --- | --- | --- | ---: |"),
                *(f"| {work} | {variant} | {name} | {more:.1f} µs |" for work, variant, name, more in self.added),
                *("", "## Figures", "", *figures(self.rows), ""),
                *("## How each figure is taken", "", HOW, ""),
            ]
        )


def results(rows: Sequence[Row], before: float) -> WatchResults:
    """Make the page of a run; ``before`` is the load average as it began."""
    return WatchResults(rows, machine(), (before, os.getloadavg()[0]))
