"""``python -m bench.taps``: what it costs that a node can be watched, and what it costs while it is.

One process, on the embedded memory backbone; prints, and with ``--results`` writes ``bench/RESULTS-tap.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from bench.components_report import BUSY
from bench.report import machine
from mesh import address, pipeline
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.blocks.topics import PUBLISH, Publish
from mesh.broker import Frame, Message
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Context, Method, Operation
from mesh.registry import Registry
from mesh.resources.component import Component
from mesh.store import Item
from mesh.tap.wanted import Wanted
from mesh.tap.watch import Question

RESULTS = Path(__file__).parent / "RESULTS-tap.md"
NAMESPACE = "bench"
BODY = b'{"order":7,"total":12.5,"items":["a","b","c"],"note":"%s"}' % (b"x" * 150)
WITHOUT, OFF = "without the stage", "nobody watches"
WATCHED = {
    "rates": Wanted(sights=False, rates=1.0),
    "another block": Wanted(blocks=("lock",)),
    "1 % sampled": Wanted(sample=0.01),
    "sights": Wanted(),
    "sights, values": Wanted(values=True),
    "sights, where": Wanted(where="event.data.seconds > 1.0"),
}
ROUNDS, OPERATIONS = 24, 500
MOST_RATIO = 1.02

HOW = f"""\
- **One process, in turn.** Each variant does {OPERATIONS} operations in each of {ROUNDS} rounds, in another order each
  time; a figure is the median over the rounds, a ratio the median of what each round gave. Time is the CPU time of the
  process, with what is sent to whoever watches; the collector of garbage is off meanwhile.
- **{WITHOUT}**: the pipeline as it would be without the check whether anybody watches.
- **get**: a key of a store in this process, which is about the cheapest operation there is: through a gateway, one
  costs some hundred µs. **publish**: {len(BODY)} bytes of JSON to a topic on the backbone of this process.
- Whoever watches reads frames, and does nothing with them: what it costs to read them is another process's."""

Block = Callable[[], Awaitable[None]]


def _former(name: str, labels: Any, proceed: Any, passing: Any) -> Any:
    """Do what the outermost stage did when nobody could watch."""
    if not pipeline.logger.isEnabledFor(logging.DEBUG):
        return proceed(passing)
    raise AssertionError


def _without(runtime: Runtime) -> Callable[[Operation], Awaitable[object]]:
    """Give a node's pipeline without the check."""
    outermost: partial[Any] = runtime._pipeline.run  # type: ignore[assignment]
    _, _, *rest = outermost.args
    return partial(_former, *rest)


async def _block(run: Callable[[Operation], Awaitable[object]], method: Method, target: str, asked: object) -> None:
    context = Context(run_as)
    for _ in range(OPERATIONS):
        await run(Operation(method, target, asked, context))


async def _watching(stack: AsyncExitStack, runtime: Runtime, tap: str, wanted: Wanted) -> Callable[[bool], Any]:
    """Prepare a watch; gives what begins or ends it, and waits until it has."""
    taps: Any = runtime.parts.taps
    at = address.taps(NAMESPACE)

    def ignore(_: Frame) -> None:
        """Read it."""

    await stack.enter_async_context(runtime.broker.listen(address.taps(NAMESPACE, tap), ignore))

    async def switch(on: bool) -> None:
        question = Question(tap, runtime.caller.app_id, wanted, over=not on)
        await runtime.broker.broadcast(at, Message({}, msgspec.msgpack.encode(question)))
        while taps.on != on:
            await asyncio.sleep(0.001)

    return switch


async def _settled(runtime: Runtime) -> None:
    """Wait until all is sent."""
    taps: Any = runtime.parts.taps
    while any(each.waits for each in taps._watches.values()):
        await asyncio.sleep(0.005)


async def _sample(runtime: Runtime, block: Block) -> float:
    """Give µs of CPU for one operation."""
    gc.collect()
    gc.disable()
    try:
        began = time.process_time()
        await block()
        await _settled(runtime)
        return (time.process_time() - began) / OPERATIONS * 1e6
    finally:
        gc.enable()


async def _measure(runtime: Runtime, rounds: int) -> dict[str, dict[str, list[float]]]:
    works = {
        "get": (GET, "store", Get("key")),
        "publish": (PUBLISH, "pubsub", Publish("orders", BODY, "application/json")),
    }
    ways = {WITHOUT: _without(runtime), OFF: runtime._pipeline.run}
    found: dict[str, dict[str, list[float]]] = {}
    async with AsyncExitStack() as stack:
        switches = {
            name: await _watching(stack, runtime, f"t{n}", each) for n, (name, each) in enumerate(WATCHED.items())
        }
        for work, asked in works.items():
            names = [WITHOUT, OFF, *WATCHED]
            samples: dict[str, list[float]] = {name: [] for name in names}
            for number in range(rounds + 2):
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    if name in switches:
                        await switches[name](True)
                    samples[name].append(await _sample(runtime, partial(_block, ways.get(name, ways[OFF]), *asked)))
                    if name in switches:
                        await switches[name](False)
            found[work] = {name: each[2:] for name, each in samples.items()}  # The first are warming up.
    return found


def _page(found: dict[str, dict[str, list[float]]], loads: Sequence[float]) -> str:
    about = machine(packages=("msgspec", "orjson", "common-expression-language"))
    about["command"] = "`python -m bench.taps --results`"
    lines = ["# Measurements of the tap", "", "Written by `python -m bench.taps --results`; do not edit.", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += [f"- load average before and after: {', '.join(f'{each:.1f}' for each in loads)}"]
    if max(loads) > (os.cpu_count() or 1):
        lines.append(BUSY)
    lines += ["", "## Goals", "", "| goal | limit | measured | |", "| --- | ---: | ---: | --- |"]
    for work, rows in found.items():
        ratio = _ratio(rows, OFF, WITHOUT)
        met = "met" if ratio <= MOST_RATIO else "**missed**"
        lines.append(f"| {work}: CPU when nobody watches, by that {WITHOUT} | {MOST_RATIO:g} | {ratio:.3f} | {met} |")
    lines += ["", "## Figures", "", "| work | variant | CPU per operation | more than when nobody watches |"]
    lines.append("| --- | --- | ---: | ---: |")
    for work, rows in found.items():
        for name in rows:
            more = statistics.median(a - b for a, b in zip(rows[name], rows[OFF], strict=True))
            lines.append(f"| {work} | {name} | {statistics.median(rows[name]):.2f} µs | {more:+.2f} µs |")
    return "\n".join([*lines, "", "## How each figure is taken", "", HOW, ""])


def _ratio(rows: dict[str, list[float]], name: str, by: str) -> float:
    return statistics.median(a / b for a, b in zip(rows[name], rows[by], strict=True))


async def _run(rounds: int) -> str:
    before = os.getloadavg()[0]
    components = Component("store", "state.in-memory"), Component("pubsub", "pubsub.mesh")
    async with Runtime(NodeSettings("app", NAMESPACE, "memory:", components), Registry()) as runtime:
        global run_as
        run_as = runtime.caller
        await runtime.run(Operation(SAVE, "store", Save([Item("key", BODY)]), Context(runtime.caller)))
        found = await _measure(runtime, rounds)
    return _page(found, (before, os.getloadavg()[0]))


run_as: Any = None


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser("python -m bench.taps", description=__doc__)
    parser.add_argument("--results", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args(words)
    page = asyncio.run(_run(asked.rounds))
    print(page)
    if asked.results:
        RESULTS.write_text(page)


if __name__ == "__main__":
    main()
