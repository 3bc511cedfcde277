"""What costs without any load: memory, start, the command line."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.load import BenchError
from bench.measure import Plan, note
from bench.processes import ROOT, Stage

__all__ = ["Idle", "idle"]

IDLE_SECONDS = 5.0
HELP_RUNS = 10


@dataclass(frozen=True)
class Idle:
    """Figures without load.

    Attributes:
        rss: MB of a gateway after five seconds, by kind.
        ready: Seconds from the start of the process until ``healthz/outbound`` is 204, each start.
        help: Seconds of ``mesh --help``, each run; empty when there is no command.
    """

    rss: dict[str, float]
    ready: list[float]
    help: list[float]

    def as_json(self) -> dict[str, object]:
        """Give everything."""
        return {
            "idle_rss_mb": {name: round(value, 1) for name, value in self.rss.items()},
            "ready_s": [round(value, 3) for value in self.ready],
            "help_s": [round(value, 3) for value in self.help],
        }


async def idle(stage: Stage, plan: Plan) -> Idle:
    """Measure."""
    note("idle …")
    app = await stage.peer("app")
    gateways = {
        "with an application": await stage.gateway("idle-app", app.http_port),
        "without": await stage.gateway("idle-alone"),
    }
    await asyncio.sleep(IDLE_SECONDS)
    rss = {name: gateway.rss() for name, gateway in gateways.items()}
    await stage.stop(*gateways.values(), app)
    ready = []
    for number in range(plan.starts):
        started = time.perf_counter()
        gateway = await stage.gateway(f"start-{number}", path="healthz/outbound")
        ready.append(time.perf_counter() - started)
        await stage.stop(gateway)
    note(f"  ready after {statistics.median(ready):.2f} s, idle at {max(rss.values()):.0f} MB")
    return Idle(rss, ready, _help())


def _help() -> list[float]:
    command = Path(sys.executable).parent / "mesh"
    if not command.exists():
        return []
    times = []
    for _ in range(HELP_RUNS):
        started = time.perf_counter()
        done = subprocess.run([command, "--help"], capture_output=True, timeout=10, cwd=ROOT, env={**os.environ})
        times.append(time.perf_counter() - started)
        if done.returncode != 0 or b"run" not in done.stdout:
            raise BenchError(f"mesh --help failed: {done.stderr.decode()[-500:]}")
    note(f"  mesh --help {statistics.median(times):.2f} s")
    return times
