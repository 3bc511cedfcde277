"""Rounds: every variant in turn, its CPU, its latencies; medians at the end."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.load import BenchError, Load, percentile
from bench.processes import Peer, Process

__all__ = ["Measured", "Plan", "Row", "Sample", "Variant", "alternate", "note", "peer_load", "ratio"]


def note(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """How long everything takes.

    Attributes:
        rounds: Of every variant.
        seconds: Of load at saturation, each round.
        rate_seconds: Of load at a fixed rate, each round.
        events: Stored and delivered, each round.
        starts: Of a gateway.
    """

    rounds: int = 5
    seconds: float = 1.6
    rate_seconds: float = 3.0
    events: int = 20_000
    starts: int = 10


QUICK = Plan(rounds=3, seconds=0.6, rate_seconds=0.8, events=4_000, starts=4)


@dataclass(frozen=True)
class Sample:
    """One round of one variant.

    Attributes:
        count: Requests.
        per_second: Of them.
        latencies: p50, p90 and p99 in ms; empty when it has none.
        cpu: Of each process, in ms per 1,000 requests.
        lag_p99: How late the load generator was, in ms, at a fixed rate.
    """

    count: int
    per_second: float
    latencies: tuple[float, ...]
    cpu: dict[str, float]
    lag_p99: float | None = None

    @property
    def cpu_sum(self) -> float:
        return sum(self.cpu.values())


@dataclass
class Variant:
    """A way to do a work.

    Attributes:
        name: As in the table.
        run: One round of so many seconds.
        processes: Whose CPU counts.
        counted: Gives what was really done so far, to be compared; None has nothing to compare.
    """

    name: str
    run: Callable[[float], Awaitable[Load]]
    processes: Sequence[Process]
    counted: Callable[[], Awaitable[int]] | None = None

    async def sample(self, seconds: float) -> Sample:
        """Run one round."""
        already = await self.counted() if self.counted is not None else 0
        before = [process.cpu() for process in self.processes]
        load = await self.run(seconds)
        cpu = [process.cpu() - start for process, start in zip(self.processes, before, strict=True)]
        count = load.count
        if count == 0:
            raise BenchError(f"{self.name}: nothing was done")
        if self.counted is not None and (done := await self.counted() - already) != count:
            raise BenchError(f"{self.name}: {count} were answered, but {done} were done")
        ms = [value * 1e3 for value in load.latencies if value >= 0]
        return Sample(
            count,
            count / load.seconds,
            tuple(percentile(ms, share) for share in (50, 90, 99)) if ms else (),
            {process.name: used * 1e6 / count for process, used in zip(self.processes, cpu, strict=True)},
            percentile(load.lag, 99) * 1e3 if load.lag else None,
        )


@dataclass
class Row:
    """A variant's figures: medians over its rounds."""

    work: str
    variant: str
    samples: list[Sample] = field(default_factory=list)
    rss: dict[str, float] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return statistics.median(sample.per_second for sample in self.samples)

    @property
    def latencies(self) -> list[float]:
        return [
            statistics.median(column) for column in zip(*(sample.latencies for sample in self.samples), strict=True)
        ]

    @property
    def cpu(self) -> dict[str, float]:
        names = self.samples[0].cpu
        return {name: statistics.median(sample.cpu[name] for sample in self.samples) for name in names}

    @property
    def cpu_sum(self) -> float:
        return statistics.median(sample.cpu_sum for sample in self.samples)

    def as_json(self) -> dict[str, object]:
        """Give everything of it."""
        names = ("p50", "p90", "p99")
        return {
            "work": self.work,
            "variant": self.variant,
            "requests": sum(sample.count for sample in self.samples),
            "per_second": round(self.per_second, 1),
            "latency_ms": dict(zip(names, (round(value, 3) for value in self.latencies), strict=False)),
            "cpu_ms_per_1000": {name: round(value, 2) for name, value in self.cpu.items()},
            "rss_mb": {name: round(value, 1) for name, value in self.rss.items()},
            "rounds": [
                {
                    "count": sample.count,
                    "per_second": round(sample.per_second, 1),
                    "latency_ms": [round(value, 3) for value in sample.latencies],
                    "cpu_ms_per_1000": round(sample.cpu_sum, 2),
                    "generator_lag_p99_ms": None if sample.lag_p99 is None else round(sample.lag_p99, 3),
                }
                for sample in self.samples
            ],
        }


async def alternate(work: str, variants: Sequence[Variant], rounds: int, seconds: float) -> dict[str, Row]:
    """Warm every variant up, then measure them in turn, each round from another one on.

    Each second lap of so many rounds goes backwards, so that none always follows the same one. Of more than two none
    comes twice in a row, with warm caches; two take turns at being the first.
    """
    rows = {variant.name: Row(work, variant.name) for variant in variants}
    for variant in variants:
        await variant.sample(seconds / 2)
        rows[variant.name].rss = {process.name: process.rss() for process in variant.processes}
    for number in range(rounds):
        began = time.monotonic()
        lap, first = divmod(number, len(variants))
        turn = variants[::-1] if lap % 2 else variants
        for variant in (*turn[first:], *turn[:first]):
            rows[variant.name].samples.append(await variant.sample(seconds))
        figures = ", ".join(f"{name} {row.samples[-1].cpu_sum:.0f}" for name, row in rows.items())
        note(f"  {work} {number + 1}/{rounds}: CPU ms/1000: {figures} ({time.monotonic() - began:.1f} s)")
    return rows


def ratio(ours: Row, *bare: Sequence[Row]) -> float:
    """Give the median over the rounds of our CPU by theirs, each within one round.

    Args:
        ours: Through gateways.
        bare: Ways to do the same work, each a sum of rows; in every round the cheapest counts.
    """
    ratios = []
    for number, mine in enumerate(ours.samples):
        theirs = min(sum(row.samples[number].cpu_sum for row in rows) for rows in bare)
        ratios.append(mine.cpu_sum / theirs)
    return statistics.median(ratios)


def peer_load(peer: Peer, **more: object) -> Callable[[float], Awaitable[Load]]:
    """Let a peer load itself, told more than how long."""

    async def run(seconds: float) -> Load:
        told = await peer.ask(seconds=seconds, **more)
        load = Load(float(str(told["seconds"])))
        load.latencies.extend(told["latencies"])  # type: ignore[arg-type]
        return load

    return run


@dataclass(frozen=True)
class Measured:
    """What was found out about one backbone or component.

    Attributes:
        name: Of the broker, or of the part.
        rows: Every work.
        load: The machine's load average before and after.
    """

    name: str
    rows: list[Row]
    load: tuple[float, float]
