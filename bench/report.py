"""Goals, tables and ``RESULTS.md``."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from bench.idle import Idle
from bench.measure import Row, ratio
from bench.native import CLIENTS

__all__ = ["Goal", "Results", "figures", "goals", "machine", "show", "verdicts"]

HOW = """\
- **In turn.** Every variant is warmed up, then all are measured one after the other in each round, in
  another order; a figure is the median over the rounds, a ratio the median of the ratios within each round.
  Compare variants of one run; absolute figures depend on the machine and what else it does.
- **Goals** compare with the cheaper of two, in every round: the bare work in one piece, and the sum of its bare
  parts, each measured alone.
- **CPU** is user + system time of the named processes (on Linux each one's CPU clock, else psutil), divided by
  the requests they served; the broker, the application and the load generator are not in it. Everything runs on
  loopback, on the same cores.
- **Load** is our own asyncio generator (`bench/load.py`), not wrk: it counts and checks every answer. At
  saturation 32 kept connections call again as soon as they are answered, so latencies there are queueing. At
  500/s calls begin at fixed times, and latency counts from the time a call was due (no coordinated omission).
- **Checks.** Every 204 to a publish or save is a message in the stream, counted by the broker. Every stored
  event is delivered once, counted by the application, and acked, by the broker. Answers have the expected
  status and body. A run where one of these fails prints no figures.
- **publish**: POST of 200 bytes of JSON. Bare: aiohttp's low-level server with a nats-py JetStream publish,
  awaiting its PubAck, with a gateway's event headers, in one process; and the two parts each alone.
- **deliver**: the events are in the stream before; the application (a bare asyncio protocol) lets the first 64
  go at once, and the time runs until it has had all. Bare: nats-py pull consumer, 64 posts at once with
  aiohttp, then ack. At 500/s: latency from the publish to the application.
- **invoke**: GET and POST of small JSON in turn, through two gateways. Bare parts: aiohttp handler, nats-py
  request and reply (both ends, with a gateway's headers), aiohttp call to the application; and their chain: the
  three composed, in two processes. *Added* is the gateway's latency less that of the direct call in the same
  round.
- **state**: 200 bytes of JSON under 100 keys, one item per save. Bare: aiohttp handler with nats-py KV put and
  get.
- **grpc**: the same get, publish and call over gRPC and over HTTP, through the same gateways; 32 at once, over one
  connection of HTTP/2 or 32 of HTTP/1.1. Bare: a server that answers the bytes of the same reply, of httpunk
  (what the gateway stands on) and of grpcio. A call that is passed on is unary, to an application that speaks gRPC.
- **idle**: 5 s after start, without traffic. **ready**: from the start of the process to 204 of
  `healthz/outbound`, with a running broker. **`mesh --help`**: the whole process."""


@dataclass(frozen=True)
class Goal:
    """A goal and what came of it.

    Attributes:
        text: What is measured.
        limit: At most this.
        value: What it was.
        unit: Of both.
        least: The limit is at least, not at most.
    """

    text: str
    limit: float
    value: float
    unit: str
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def as_json(self) -> dict[str, object]:
        """Give it with whether it was met."""
        return {
            "goal": self.text, "limit": self.limit, "value": round(self.value, 3), "unit": self.unit, "met": self.met
        }  # fmt: skip


@dataclass(frozen=True)
class Results:
    """A whole run."""

    rows: Sequence[Row]
    idle: Idle | None
    machine: dict[str, str]
    load: tuple[float, float]

    @property
    def goals(self) -> list[Goal]:
        """What the goals came to."""
        return goals(self.rows, self.idle)

    def as_json(self) -> dict[str, object]:
        """Give everything."""
        return {
            "machine": self.machine,
            "load_average": {"before": self.load[0], "after": self.load[1]},
            "works": [row.as_json() for row in self.rows],
            "idle": None if self.idle is None else self.idle.as_json(),
            "goals": [goal.as_json() for goal in self.goals],
        }

    def markdown(self) -> str:
        """Write the page."""
        lines = [
            "# Measurements",
            "",
            "Written by `python -m bench`; do not edit. Each backbone beside its own client:",
        ]
        lines += [", ".join(f"[{name}](RESULTS-{name}.md)" for name in CLIENTS) + ";"]
        lines += ["[components](RESULTS-components.md) beside their drivers;"]
        lines += ["[metrics, spans and signatures](RESULTS-watch.md) beside gateways without them;"]
        lines += ["[actors, reminders and jobs](RESULTS-actors.md);"]
        lines += ["[workflows](RESULTS-workflows.md), by worker and by store.", ""]
        lines += [f"- {name}: {value}" for name, value in self.machine.items()]
        lines += [f"- load average before and after: {self.load[0]:.1f}, {self.load[1]:.1f}", ""]
        lines += ["## Goals", "", *verdicts(self.goals), "", "## Figures", "", *figures(self.rows)]
        if self.idle is not None:
            lines += ["", "| without load | |", "| --- | ---: |"]
            lines += [f"| {name} | {value} |" for name, value in idle_cells(self.idle)]
        lines += ["", "## How each figure is taken", "", HOW, ""]
        return "\n".join(lines)


RPC_WORKS = {"grpc get state": "GetState", "grpc publish": "PublishEvent", "grpc invoke": "call passed on"}
COLUMNS = ("work", "variant", "per second", "p50 ms", "p90 ms", "p99 ms", "CPU ms per 1,000", "RSS MB")


def verdicts(found: Sequence[Goal]) -> list[str]:
    """Write goals as a table."""
    lines = ["| goal | limit | measured | |", "| --- | ---: | ---: | --- |"]
    for goal in found:
        word = "met" if goal.met else "**missed**"
        limit = f"{'≥ ' if goal.least else ''}{goal.limit:,g} {goal.unit}"
        lines.append(f"| {goal.text} | {limit} | {goal.value:,.2f} {goal.unit} | {word} |")
    return lines


def figures(rows: Sequence[Row]) -> list[str]:
    """Write rows as a table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- |" + " ---: |" * 6]
    return lines + ["| " + " | ".join(cells) + " |" for cells in map(row_cells, rows)]


def row_cells(row: Row) -> list[str]:
    """Give a row's cells."""
    latencies = [f"{value:.2f}" for value in row.latencies] or ["–"] * 3
    cpu = row.cpu
    cpu_text = f"{row.cpu_sum:.1f}"
    if len(cpu) > 1:
        cpu_text += " (" + " + ".join(f"{value:.1f}" for value in cpu.values()) + ")"
    rss = " + ".join(f"{value:.0f}" for value in row.rss.values())
    return [row.work, row.variant, f"{row.per_second:,.0f}", *latencies, cpu_text, rss]


def idle_cells(idle: Idle) -> list[tuple[str, str]]:
    """Give the figures without load."""
    cells = [(f"idle RSS of a gateway, {name}", f"{value:.1f} MB") for name, value in idle.rss.items()]
    spread = f"{min(idle.ready):.2f} to {max(idle.ready):.2f}"
    cells.append(("gateway ready (median)", f"{statistics.median(idle.ready):.2f} s ({spread})"))
    if idle.help:
        spread = f"{min(idle.help):.2f} to {max(idle.help):.2f}"
        cells.append(("`mesh --help` (median)", f"{statistics.median(idle.help):.2f} s ({spread})"))
    return cells


def goals(rows: Sequence[Row], idle: Idle | None) -> list[Goal]:
    """Compute every goal whose figures there are."""
    by_name = {(row.work, row.variant): row for row in rows}
    found: list[Goal] = []

    def cpu(text: str, work: str, *bare: Sequence[str]) -> None:
        if (work, "gateway") in by_name:
            ways = [[by_name[work, name] for name in names] for names in bare]
            found.append(Goal(text, 1.5, ratio(by_name[work, "gateway"], *ways), "×"))

    def added(text: str, limit: float, index: int) -> None:
        if ("invoke at 500/s", "gateway") in by_name:
            ours, direct = by_name["invoke at 500/s", "gateway"], by_name["invoke at 500/s", "direct call"]
            value = statistics.median(
                mine.latencies[index] - theirs.latencies[index]
                for mine, theirs in zip(ours.samples, direct.samples, strict=True)
            )
            found.append(Goal(text, limit, value, "ms"))

    cpu(
        "CPU per published event, by bare handler + publish",
        "publish",
        ["bare: handler + publish"],
        ["part: aiohttp handler", "part: nats-py publish"],
    )
    cpu(
        "CPU per delivered event, by bare consume + post",
        "deliver",
        ["bare: consume + post"],
        ["part: nats-py consume", "part: aiohttp post"],
    )
    cpu(
        "CPU per invocation, both gateways, by the sum of the bare parts",
        "invoke",
        ["bare: chain of the parts"],
        ["part: aiohttp handler", "part: nats-py request", "part: aiohttp call"],
    )
    for work, text in RPC_WORKS.items():
        if (work, "gateway") in by_name:
            value = ratio(by_name[work, "gateway"], [by_name[work, "gateway, over HTTP"]])
            found.append(Goal(f"CPU per {text} over gRPC, by the same over HTTP", 1.6, value, "×"))
    added("added p50 of an invocation at 500/s", 1.5, 0)
    added("added p99 of an invocation at 500/s", 5.0, 2)
    if idle is not None:
        found.append(Goal("idle RSS of a gateway", 70.0, max(idle.rss.values()), "MB"))
        if idle.help:
            found.append(Goal("`mesh --help`", 0.3, statistics.median(idle.help), "s"))
        found.append(Goal("gateway ready after its start, broker running", 1.0, statistics.median(idle.ready), "s"))
    return found


PACKAGES = ("aiohttp", "nats-py", "uvloop", "orjson")


def machine(*more: str, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Describe where and with what it ran.

    Args:
        more: Further servers with their versions.
        packages: Whose versions matter.
    """
    cpu = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        names = [line.partition(":")[2].strip() for line in about.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    server = Path(sys.executable).parent / "nats-server"
    nats = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    versions = [f"Python {platform.python_version()}", nats, *more, *(f"{name} {version(name)}" for name in packages)]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores, {cpu}, {platform.system()} {platform.release()}",
        "versions": ", ".join(versions),
        "command": f"`{' '.join(['python -m bench', *sys.argv[1:]])}`",
    }


class Shown(Protocol):
    """What can be printed."""

    machine: dict[str, str]
    rows: Sequence[Row]
    idle: Idle | None

    @property
    def goals(self) -> list[Goal]: ...


def show(results: Shown) -> None:
    """Print the tables."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    for name, value in results.machine.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print("load generator: our own asyncio clients (bench/load.py), 32 connections", highlight=False)
    if results.rows:
        console.print(_figures(results.rows))
    if results.idle is not None:
        for name, value in idle_cells(results.idle):
            console.print(f"{name}: {value}", highlight=False)
    if results.goals:
        reached = Table("goal", "limit", "measured", "")
        for goal in results.goals:
            limit = f"{'≥ ' if goal.least else ''}{goal.limit:,g} {goal.unit}"
            value = f"{goal.value:,.2f} {goal.unit}"
            reached.add_row(goal.text, limit, value, "met" if goal.met else "missed")
        console.print(reached)


def _figures(rows: Sequence[Row]) -> Table:
    table = Table(*COLUMNS)
    for column in table.columns[2:]:
        column.justify = "right"
    for before, row in zip([rows[0], *rows], rows, strict=False):
        if row.work != before.work:
            table.add_section()
        table.add_row(*row_cells(row))
    return table
