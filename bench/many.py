"""``python -m bench.many``: several applications in one gateway, and one gateway over several workers.

Workers are compared where load and broker leave room: each worker's processor is made a slow one, by a quota of its own
(cgroup), so that the rest of the machine has enough left for all others. With ``--results`` writes
``bench/RESULTS-many.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from bench.app import ECHO_BODY
from bench.load import BenchError, Client, post
from bench.processes import Gateway, Stage
from bench.report import machine

RESULTS = Path(__file__).parent / "RESULTS-many.md"
BODY = b'{"orderId":"41","status":"stored","total":12.5,"items":["book","pen"]}'
WORKS = {"publish": ("/v1.0/publish/pubsub/orders", 204), "invoke": ("/v1.0/invoke/callee/method/echo", 200)}
APPLICATIONS = (1, 2, 5, 10, 20)
MOST_MB = 120
LEAST_RATIO = 1.7
CONNECTIONS = 32
QUOTA, PERIOD_US = 0.1, 10_000
"""Of one processor, for each worker; and how often it is dealt out."""
WARM_SECONDS, SECONDS = 1.0, 4.0
SETTLE_SECONDS = 3.0
ROUNDS = 4
ROOM = 0.9
"""Of its quota, that a worker must have used: else others took the processor, and the round says nothing of workers."""
SHARES = ((2, 4), (2, 8), (2, 32), (4, 8), (4, 32), (8, 32), (8, 128))
TRIALS = 4000
CGROUPS = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
HOW = f"""\
- **Memory**: resident size of the gateway's process {SETTLE_SECONDS:g} s after its last application was up. Each
  application listens, has a subscription, and has taken an event and a call; all have metrics, and gRPC ports that
  nobody used.
- **Workers**: a gateway of one process and one of two workers, in turn, until {{rounds}} rounds count, or twice as many
  were made; the median of their ratios. One counts where each worker used {ROOM:.0%} of its quota: else other work on
  the machine held it up. Two workers cannot be more than twice as fast: what is above 2 is the machine's doing.
  {CONNECTIONS} connections call without a pause. Each worker has {QUOTA:.0%} of a processor (`cpu.cfs_quota_us`, dealt
  out every {PERIOD_US // 1000} ms), whatever else the machine does: so the load's own process, the broker, the callee
  with its gateway and the parent have the rest, as they have on a machine with more processors. CPU per operation is
  what the workers and their parent used, by their clocks.
- **Without passing on** is simulated: connections fall on workers by the kernel's hash, {TRIALS} times; what is told is
  the share of the rate of all workers that is left when the busiest of them is full.
- **More workers** is calculated, and no measurement: workers divided by the CPU time of an operation, which grows with
  each further worker by what it grew with the second one.
"""


@dataclass
class Ran:
    """One run of load.

    Attributes:
        rate: Operations a second.
        micros: CPU of the gateway's processes for each, in µs.
        used: Share of its quota that each worker used.
    """

    rate: float
    micros: float
    used: list[float]

    @property
    def had_room(self) -> bool:
        """Whether nothing but its quota held up any of them."""
        return min(self.used) >= ROOM


@dataclass
class Found:
    """All figures."""

    memory: dict[int, float] = field(default_factory=dict)
    runs: dict[str, list[tuple[Ran, Ran]]] = field(default_factory=dict)
    limited: bool = True


@contextmanager
def limited(pids: Sequence[int], share: float) -> Iterator[bool]:
    """Give processes a share of a processor each, while entered; tells whether that can be done here."""
    root = next((each for each in CGROUPS if (each / "cpu.cfs_quota_us").exists()), None)
    if root is None:
        yield False
        return
    made: list[Path] = []
    try:
        for pid in pids:
            group = root / f"brokermesh-bench-{os.getpid()}-{pid}"
            group.mkdir()
            made.append(group)
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(int(PERIOD_US * share)))
            (group / "cgroup.procs").write_text(str(pid))
        yield True
    except PermissionError:
        yield False
    finally:
        for group in made:
            for pid_text in (group / "cgroup.procs").read_text().split():
                (root / "cgroup.procs").write_text(pid_text)
            group.rmdir()


async def _workers(gateway: Gateway, count: int) -> list[int]:
    """Give the processes that answer clients."""
    if count == 1:
        return [gateway.pid]
    async with aiohttp.ClientSession() as session:
        for _ in range(100):
            async with session.get(f"http://127.0.0.1:{gateway.http_port}/v1.0/mesh/node") as response:
                found = [each["pid"] for each in (await response.json())["workers"]]
            if len(found) == count:
                return found
            await asyncio.sleep(0.1)
    raise BenchError(f"there are not {count} workers")


async def _run(gateway: Gateway, pids: Sequence[int], work: str) -> Ran:
    path, status = WORKS[work]
    expected = ECHO_BODY if work == "invoke" else None
    processes = [psutil.Process(each) for each in {gateway.pid, *pids}]

    def spent() -> dict[int, float]:
        return {each.pid: sum(each.cpu_times()[:2]) for each in processes}

    async with Client(gateway.http_port, [post(path, BODY)], [status], expected).connected(CONNECTIONS) as client:
        with limited(pids, QUOTA):
            await client.saturate(WARM_SECONDS)
            before, started = spent(), time.perf_counter()
            load = await client.saturate(SECONDS)
            took, after = time.perf_counter() - started, spent()
    used = [(after[each] - before[each]) / took / QUOTA for each in pids]
    total = sum(after.values()) - sum(before.values())
    return Ran(load.count / load.seconds, total / load.count * 1e6, used)


async def _memory(stage: Stage, found: Found) -> None:
    apps = [await stage.peer("app", subscriptions=_subscriptions(number)) for number in range(max(APPLICATIONS))]
    for count in APPLICATIONS:
        words = [word for n in range(count) for word in ("--app", f"app{n}={apps[n].http_port},http-port={_port(n)}")]
        gateway = await stage.several([*words, "-G", str(_port(500))], _port(0))
        async with aiohttp.ClientSession() as session:
            for number in range(count):
                url = f"http://127.0.0.1:{_port(number)}/v1.0"
                async with session.post(f"{url}/publish/pubsub/topic{number}", json={"id": 1}) as response:
                    assert response.status == 204, await response.text()
                async with session.post(f"{url}/invoke/app{count - 1}/method/echo", data=BODY) as response:
                    assert response.status == 200, await response.text()
        await asyncio.sleep(SETTLE_SECONDS)
        found.memory[count] = gateway.rss()
        await stage.stop(gateway)
    await stage.stop(*apps)


_first: list[int] = []


def _port(number: int) -> int:
    if not _first:
        _first.append(random.randrange(20_000, 28_000))
    return _first[0] + number


def _subscriptions(number: int) -> list[dict[str, str]]:
    return [{"pubsubname": "pubsub", "topic": f"topic{number}", "route": "/events/x"}]


async def _of_workers(stage: Stage, found: Found, rounds: int) -> None:
    app = await stage.peer("app")
    callee = await stage.gateway("callee", app.http_port)
    with limited([], QUOTA) as found.limited:
        pass
    for work in WORKS:
        pairs = found.runs[work] = []
        for number in range(2 * rounds):
            if len(_counting(pairs)) == rounds:
                break
            ran: dict[int, Ran] = {}
            for count in (1, 2) if number % 2 else (2, 1):
                gateway = await stage.gateway("caller", further=["--workers", str(count)])
                ran[count] = await _run(gateway, await _workers(gateway, count), work)
                await stage.stop(gateway)
            pairs.append((ran[1], ran[2]))
    await stage.stop(callee, app)


def _counting(pairs: Sequence[tuple[Ran, Ran]]) -> list[tuple[Ran, Ran]]:
    """Give the rounds in which load and broker left room."""
    return [(one, two) for one, two in pairs if one.had_room and two.had_room]


def left_by_hash(workers: int, connections: int) -> float:
    """Give the share of the rate of all workers that is left where the kernel alone divides the connections."""
    choose = random.Random(1)
    shares = []
    for _ in range(TRIALS):
        busiest = max(Counter(choose.randrange(workers) for _ in range(connections)).values())
        shares.append(connections / workers / busiest)
    return statistics.mean(shares)


def _page(found: Found, loads: tuple[float, float], rounds: int) -> str:
    lines = ["# Measurements of many applications and many workers", ""]
    lines += ["Written by `python -m bench.many --results`; do not edit.", ""]
    about = {**machine(packages=("aiohttp", "uvloop")), "command": "`python -m bench.many --results`"}
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += [f"- load average before and after: {loads[0]:.1f}, {loads[1]:.1f}"]
    if max(loads) > (os.cpu_count() or 1):
        lines.append("- the machine was busy with other work, so rates are lower than on one that is quiet")
    lines += ["", "## Goals", "", "| goal | limit | measured | |", "| --- | ---: | ---: | --- |"]
    if found.memory:
        most = max(found.memory)
        met = "met" if found.memory[most] <= MOST_MB else "**missed**"
        lines.append(
            f"| {most} applications in one gateway, RSS | {MOST_MB} MB | {found.memory[most]:.0f} MB | {met} |"
        )
    for work, pairs in found.runs.items():
        counting = _counting(pairs)
        ratio = statistics.median(two.rate / one.rate for one, two in counting or pairs)
        met = "not shown: no room" if not counting else "met" if ratio >= LEAST_RATIO else "**missed**"
        lines.append(f"| {work}: rate of two workers by that of one | {LEAST_RATIO} | {ratio:.2f} | {met} |")
    if found.memory:
        lines += ["", "## Applications in one gateway", "", "| applications | RSS | each further one |"]
        lines.append("| ---: | ---: | ---: |")
        first = found.memory[min(found.memory)]
        for count, size in found.memory.items():
            more = f"{(size - first) / (count - 1):.2f} MB" if count > 1 else ""
            lines.append(f"| {count} | {size:.1f} MB | {more} |")
    lines += _about_workers(found)
    return "\n".join([*lines, "", "## How each figure is taken", "", HOW.format(rounds=rounds)])


def _about_workers(found: Found) -> list[str]:
    if not found.runs:
        return []
    lines = ["", "## Workers", ""]
    if not found.limited:
        lines += [
            "There was no quota here (no cgroup that may be written), so load and broker took from the workers.",
            "",
        ]
    lines += ["| work | one process | two workers | ratio | CPU per operation | of their quota used | |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | --- | --- |")
    for work, pairs in found.runs.items():
        for one, two in pairs:
            used = ", ".join(f"{each:.0%}" for each in (*one.used, *two.used))
            lines.append(
                f"| {work} | {one.rate:.0f}/s | {two.rate:.0f}/s | {two.rate / one.rate:.2f} "
                f"| {one.micros:.0f} → {two.micros:.0f} µs | {used} "
                f"| {'counts' if _counting([(one, two)]) else 'others took the processor'} |"
            )
    lines += ["", "### Without passing on", ""]
    lines += [
        "| workers | connections | left of the rate by the hash alone | passed on |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for workers, connections in SHARES:
        even = connections / workers / -(-connections // workers)
        lines.append(f"| {workers} | {connections} | {left_by_hash(workers, connections):.0%} | {even:.0%} |")
    lines += ["", "### More workers", "", "| work | 2 | 4 | 8 |", "| --- | ---: | ---: | ---: |"]
    for work, pairs in found.runs.items():
        counting = _counting(pairs) or pairs
        one = statistics.median(pair[0].micros for pair in counting)
        grown = max(0.0, statistics.median(two.micros / first.micros for first, two in counting) - 1)
        rates = [f"{count / (1 + grown * (count - 1)):.2f} ×" for count in (2, 4, 8)]
        lines.append(f"| {work} ({one:.0f} µs with one) | {' | '.join(rates)} |")
    return lines


async def _all(only: Sequence[str], rounds: int) -> str:
    before, found = os.getloadavg()[0], Found()
    async with Stage() as stage:
        if "memory" in only:
            await _memory(stage, found)
        if "workers" in only:
            await _of_workers(stage, found, rounds)
    return _page(found, (before, os.getloadavg()[0]), rounds)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser("python -m bench.many", description=__doc__)
    parser.add_argument("--only", default="memory,workers", help="memory, workers, or both")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args(words)
    page = asyncio.run(_all(asked.only.split(","), asked.rounds))
    print(page)
    if asked.results:
        RESULTS.write_text(page)


if __name__ == "__main__":
    main()
