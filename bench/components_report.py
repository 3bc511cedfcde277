"""Goals for components, and their page."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.components import BACKBONE, BARE, DRIVER, HANDLER, NEAREST, PACE, PARTS, Measured, Part, Work
from bench.measure import Row
from bench.report import Goal, figures, machine, verdicts

__all__ = ["ComponentResults", "described"]

BUSY = "- **the machine did other work meanwhile**: these figures are of a busy one; measure again on a quiet one"
PACKAGES = ("aiohttp", "uvloop", "orjson", "nats-py", "redis", "hiredis", "asyncpg", "sqlalchemy")
HOW = f"""\
- **In turn.** Every variant is warmed up, then all are measured one after the other in each round, in
  another order; a figure is the median over the rounds, a goal the median of what each round gave.
  Compare variants of one run; absolute figures depend on the machine and what else it does.
- **{NEAREST}**: the application's gateway has the component. **{BACKBONE}**: the application's gateway has
  none, and the one before, over NATS, does the work; the CPU is that of both, the application's own first.
- **{BARE}**: aiohttp's low-level server and the driver in one process, without SQLAlchemy; it reads the request's JSON,
  and answers with the same status and value. **{HANDLER}**: it reads the body and answers at once. **{DRIVER}**: 32
  calls at once, in a process without HTTP.
- **CPU** is user + system time of the named processes, divided by the requests they served; servers, broker and load
  generator are not in it. Everything runs on loopback, on the same cores.
- **Goals.** CPU of *nearest*, by that of the driver alone and 1.2 times that of the handler alone, in the same round.
  p50 at {PACE:g}/s through the backbone, less that of *nearest* in the same round: calls begin at fixed times, and
  latency counts from the time a call was due; where a store does not keep up, it is queueing. *Per core* is requests
  by CPU seconds of the gateway.
- **State**: 200 bytes of JSON under 100 keys. A save has one item, a transaction two upserts and a deletion.
  Redis: redis-py with hiredis; HMGET, and one script for every write; `appendonly yes`, `appendfsync always`.
  PostgreSQL: asyncpg, four connections on either side, a jsonb column, xmin as the etag; the server's default
  settings. SQLite: sqlite3 in one thread; a write-ahead log, `synchronous=FULL`.
- **Secret**: one of `secretstores.local.file`; the bare driver is a look into a dict, whose CPU counts as none.
  **Configuration**: one key of `configuration.redis`; MGET. **Lock**: a lock of `lock.redis` that nobody holds, a new
  name each time; SET with NX and PX, without a fencing token.
- **Checks.** Answers have the expected status and body, also those of a bare handler. A run where one of these fails
  prints no figures."""


@dataclass(frozen=True)
class ComponentResults:
    """A whole run."""

    measured: Sequence[Measured]
    machine: dict[str, str]
    title: str = "components"
    command: str = "--components"
    how: str = HOW
    parts: Mapping[str, Part] = field(default_factory=lambda: PARTS)
    idle: None = None

    @property
    def rows(self) -> list[Row]:
        return [row for each in self.measured for row in each.rows]

    @property
    def goals(self) -> list[Goal]:
        """What the goals came to."""
        return [goal for each in self.measured for goal in _goals(each, self.parts[each.name].works)]

    def as_json(self) -> dict[str, object]:
        """Give everything."""
        return {
            "machine": self.machine,
            "load_average": {each.name: {"before": each.load[0], "after": each.load[1]} for each in self.measured},
            "works": [row.as_json() for row in self.rows],
            "goals": [goal.as_json() for goal in self.goals],
        }

    def markdown(self) -> str:
        """Write the page."""
        loads = "; ".join(f"{each.name} {each.load[0]:.1f}, {each.load[1]:.1f}" for each in self.measured)
        return "\n".join(
            [
                f"# Measurements of {self.title}",
                "",
                f"Written by `python -m bench {self.command}`; do not edit.",
                "[RESULTS.md](RESULTS.md) has the gateway on NATS, part by part.",
                "",
                *(f"- {name}: {value}" for name, value in self.machine.items()),
                f"- load average before and after: {loads}",
                *([BUSY] if max(max(each.load) for each in self.measured) > (os.cpu_count() or 1) else []),
                "",
                *("## Goals", "", *verdicts(self.goals), ""),
                *("## Figures", "", *figures(self.rows), ""),
                *("## How each figure is taken", "", self.how, ""),
            ]
        )


def _goals(measured: Measured, works: Sequence[Work]) -> list[Goal]:
    rows = {(row.work, row.variant): row for row in measured.rows}
    found = []
    for work in (each.name for each in works):
        near, handler = (rows[work, variant].samples for variant in (NEAREST, HANDLER))
        driver = [each.cpu_sum for each in rows[work, DRIVER].samples] if (work, DRIVER) in rows else [0.0] * len(near)
        cost = statistics.median(
            ours.cpu_sum / (alone + 1.2 * bare.cpu_sum) for ours, bare, alone in zip(near, handler, driver, strict=True)
        )
        found.append(Goal(f"{work}: CPU of nearest, by driver + 1.2 × handler", 1.0, cost, "×"))
        here, there = (rows[f"{work} at {PACE:g}/s", variant].samples for variant in (NEAREST, BACKBONE))
        added = statistics.median(far.latencies[0] - close.latencies[0] for far, close in zip(there, here, strict=True))
        found.append(Goal(f"{work} at {PACE:g}/s: p50 added by the backbone", 0.6, added, "ms"))
        if work in ("redis save", "redis get"):
            rate = 1e6 / rows[work, NEAREST].cpu_sum
            found.append(Goal(f"{work}: requests per core of gateway", 10_000, rate, "/s", least=True))
    return found


def _version(program: str, word: int) -> list[str]:
    """Ask a server's program which it is."""
    path = shutil.which(program)
    if path is None:
        return []
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split()
    return [f"{program} {told[word].removeprefix('v=')}"] if len(told) > word else []


def described(names: Sequence[str]) -> dict[str, str]:
    """Describe where and with what it ran."""
    kinds = {name.partition(" ")[0] for name in names}
    servers = _version("redis-server", 2) if {"redis", "configuration", "lock"} & kinds else []
    servers += _version("psql", 2) if "postgresql" in kinds else []
    return machine(*servers, packages=PACKAGES)
