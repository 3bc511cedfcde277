"""``python -m bench``: measure, print, write ``bench/RESULTS.md``.

With ``--backbone``, ``--components``, ``--workflows``, or ``--only`` one of ``bindings``, ``watch`` and ``actors``,
write ``bench/RESULTS-….md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nats.errors
import uvloop

from bench import actors, bindings, components, components_report, watch_and_guard, workflows
from bench.actors import ActorResults
from bench.backbone_report import BackboneResults, described
from bench.backbones import PLAN, QUICK_PLAN, measure
from bench.components import PARTS, Part
from bench.components_report import ComponentResults
from bench.idle import idle
from bench.load import BenchError
from bench.measure import QUICK, Plan, Row, note
from bench.native import CLIENTS
from bench.processes import Stage
from bench.report import Results, machine, show
from bench.watch_and_guard import WatchResults
from bench.workflows import WorkflowResults
from bench.works import WORKS, measured

RESULTS = Path(__file__).parent / "RESULTS.md"
FULL_SECONDS = 440.0
BACKBONE_SECONDS = 120.0
COMPONENT_SECONDS = 180.0
WATCH_SECONDS = 300.0
ACTOR_SECONDS = 300.0
WORKFLOW_SECONDS = 900.0
QUICK_SECONDS = 115.0
NAMES = (*WORKS, "idle")
ALONE = ("bindings", "watch", "actors")


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        default=",".join(NAMES),
        metavar="WORK,…",
        help=f"some of {', '.join(NAMES)}; or {' or '.join(ALONE)} alone",
    )
    parser.add_argument(
        "--backbone", choices=(*CLIENTS, "all"), help="measure adapters and gateways over a backbone, or over each"
    )
    parser.add_argument(
        "--components",
        nargs="?",
        const=",".join(PARTS),
        metavar="PART,…",
        help=f"measure components beside their drivers: all, or some of {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--workflows",
        nargs="?",
        const=",".join(workflows.STORES),
        metavar="STORE,…",
        help=f"measure workflows on all stores, or on some of {', '.join(workflows.STORES)}",
    )
    parser.add_argument("--quick", action="store_true", help="short rounds, for a first look")
    parser.add_argument("--output", choices=("table", "json"), default="table", help="what goes to stdout")
    parser.add_argument(
        "--results",
        type=Path,
        help=f"write the page here; a whole run writes its own by itself: {RESULTS.name} or {RESULTS.stem}-….md",
    )
    found = parser.parse_args(words)
    found.only = [name.strip() for name in found.only.split(",")]
    if found.components is not None:
        found.components = [name.strip() for name in found.components.split(",")]
    if found.workflows is not None:
        found.workflows = [name.strip() for name in found.workflows.split(",")]
    found.alone = found.only[0] if len(found.only) == 1 and found.only[0] in ALONE else None
    known_works = ALONE if found.alone else NAMES
    for what, named, known in (
        ("work", found.only, known_works),
        ("part", found.components or (), tuple(PARTS)),
        ("store", found.workflows or (), workflows.STORES),
    ):
        if unknown := set(named) - set(known):
            parser.error(f"unknown {what}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if sum(each is not None for each in (found.backbone, found.components, found.workflows)) > 1:
        parser.error("--backbone, --components and --workflows are runs of their own")
    return found


async def _measure(only: list[str], plan: Plan, seconds: float) -> Results:
    rows: list[Row] = []
    quiet = None
    before = os.getloadavg()[0]
    try:
        async with asyncio.timeout(seconds) as limit, Stage() as stage:
            if "idle" in only:
                quiet = await idle(stage, plan)
            for name in WORKS:
                if name in only:
                    rows += await measured(name, stage, plan)
    except TimeoutError:
        if not limit.expired():
            raise
        raise BenchError(f"not done within {seconds:g} s") from None
    return Results(rows, quiet, machine(), (before, os.getloadavg()[0]))


async def _measure_backbones(names: Sequence[str], plan: Plan) -> BackboneResults:
    measured = []
    for name in names:
        try:
            async with asyncio.timeout(BACKBONE_SECONDS) as limit, Stage() as stage:
                measured.append(await measure(name, stage, plan))
        except TimeoutError:
            if not limit.expired():
                raise
            raise BenchError(f"{name}: not done within {BACKBONE_SECONDS:g} s") from None
    return BackboneResults(measured, described(names))


async def _measure_components(parts: Mapping[str, Part], plan: Plan) -> list[components.Measured]:
    measured = []
    for name, part in parts.items():
        try:
            async with asyncio.timeout(COMPONENT_SECONDS) as limit, Stage() as stage:
                measured.append(await components.measure(name, part, stage, plan))
        except TimeoutError:
            if not limit.expired():
                raise
            raise BenchError(f"{name}: not done within {COMPONENT_SECONDS:g} s") from None
    return measured


async def _measure_watch(plan: Plan) -> WatchResults:
    before = os.getloadavg()[0]
    try:
        async with asyncio.timeout(WATCH_SECONDS) as limit:
            return watch_and_guard.results(await watch_and_guard.measure(plan), before)
    except TimeoutError:
        if not limit.expired():
            raise
        raise BenchError(f"not done within {WATCH_SECONDS:g} s") from None


async def _measure_actors(plan: Plan) -> ActorResults:
    try:
        async with asyncio.timeout(ACTOR_SECONDS) as limit:
            return await actors.measure(plan)
    except TimeoutError:
        if not limit.expired():
            raise
        raise BenchError(f"not done within {ACTOR_SECONDS:g} s") from None


async def _measure_workflows(stores: Sequence[str], plan: workflows.WorkflowPlan) -> WorkflowResults:
    try:
        async with asyncio.timeout(WORKFLOW_SECONDS) as limit:
            return await workflows.measure(plan, stores)
    except TimeoutError:
        if not limit.expired():
            raise
        raise BenchError(f"not done within {WORKFLOW_SECONDS:g} s") from None


async def _main(
    options: argparse.Namespace,
) -> Results | BackboneResults | ComponentResults | WatchResults | ActorResults | WorkflowResults:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    if options.backbone is not None:
        names = list(CLIENTS) if options.backbone == "all" else [options.backbone]
        return await _measure_backbones(names, QUICK_PLAN if options.quick else PLAN)
    if options.workflows is not None:
        return await _measure_workflows(options.workflows, workflows.QUICK_PLAN if options.quick else workflows.PLAN)
    if options.alone == "watch":
        return await _measure_watch(watch_and_guard.QUICK_PLAN if options.quick else watch_and_guard.PLAN)
    if options.alone == "actors":
        return await _measure_actors(actors.QUICK_PLAN if options.quick else actors.PLAN)
    plan = components.QUICK_PLAN if options.quick else components.PLAN
    if options.components is not None:
        named = {name: PARTS[name] for name in options.components}
        return ComponentResults(await _measure_components(named, plan), components_report.described(list(named)))
    if options.alone == "bindings":
        return bindings.results(await _measure_components(bindings.PARTS, plan))
    plan, seconds = (QUICK, QUICK_SECONDS) if options.quick else (Plan(), FULL_SECONDS)
    return await _measure(options.only, plan, seconds)


def main(words: list[str]) -> int:
    """Run; give the exit code."""
    options = _parse(words)
    started = time.monotonic()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results = runner.run(_main(options))
    except (BenchError, OSError, nats.errors.Error) as error:  # Of what ran; a bug of the run itself shows its trace.
        note(f"error: {error or type(error).__name__}")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        note("stopped")
        return 130
    note(f"done in {time.monotonic() - started:.0f} s")
    pages: dict[Path, str] = {}
    if options.results is not None:
        pages = {options.results: results.markdown()}
    elif isinstance(results, BackboneResults) and not options.quick:
        pages = {RESULTS.with_stem(f"{RESULTS.stem}-{name}"): page for name, page in results.pages().items()}
    elif options.workflows is not None:
        if set(options.workflows) == set(workflows.STORES) and not options.quick:
            pages = {RESULTS.with_stem(f"{RESULTS.stem}-workflows"): results.markdown()}
    elif options.alone is not None:
        pages = {} if options.quick else {RESULTS.with_stem(f"{RESULTS.stem}-{options.alone}"): results.markdown()}
    elif isinstance(results, ComponentResults):
        if set(options.components) == set(PARTS) and not options.quick:
            pages = {RESULTS.with_stem(f"{RESULTS.stem}-components"): results.markdown()}
    elif set(options.only) == set(NAMES) and not options.quick:
        pages = {RESULTS: results.markdown()}
    for path, page in pages.items():
        path.write_text(page)
        note(f"wrote {path}")
    if options.output == "json":
        print(json.dumps(results.as_json(), indent=1))
    else:
        show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
