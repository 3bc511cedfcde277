"""``mesh gateway`` and ``python -m gateway``: one gateway process, told by the flags of daprd.

Nothing of the command line is imported here but the options, for this process lives long.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gateway.cli.configure import gateway_config
from gateway.cli.parsing import Parser, UsageError, add_gateway_flags, gateway_options, warnings_about
from gateway.cli.terminal import complain, note, show
from mesh.errors import ConfigError, MeshError, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from gateway.config import GatewayConfig

__all__ = ["MAX_WORKERS", "main", "parse_gateway", "serve"]

# Python looks for garbage whenever so many objects more have come than gone. Its 700 are a few requests in flight, and
# took a tenth of the time of each. What waits for a look are cycles: a request leaves none, nor does one that fails.
YOUNG_OBJECTS = 10_000
MAX_WORKERS = 64  # `gateway.descriptors.MAX_SLOTS`.
VARIABLE = "MESH_WORKER"
"""Tells a process which of several workers it is; the one that starts them sets it."""
_SEVERAL = "one of several applications, with options of its own behind commas: docs/many.md"


def parse_gateway(words: Sequence[str], environ: Mapping[str, str]) -> tuple[list[GatewayConfig], int, list[str]]:
    """Give the configuration of each application, how many workers there are to be, and what has no effect.

    Raises:
        UsageError: A flag is unknown, or a value is missing or wrong.
        ConfigError: A value makes no sense.
    """
    parser = Parser("mesh gateway", description="Run one gateway process; mesh run does so beside an application.")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--build-info", action="store_true", help="print the version")
    parser.add_argument(
        "--app", action="append", metavar="ID=PORT[,…]", help="one of several applications, " + _SEVERAL
    )
    parser.add_argument("--apps", metavar="FILE", help="a file of several: a template as for mesh run -f")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the work (1)")
    add_gateway_flags(parser)
    # Compose files name the program of the image they were written for.
    found = parser.parse(words[1:] if words and Path(words[0]).name == "daprd" else words)
    if found.version or found.build_info:
        from gateway.cli.version import version

        show(version())
        raise SystemExit(0)
    warnings, options = warnings_about(found), gateway_options(found)
    if not 1 <= found.workers <= MAX_WORKERS:
        raise ConfigError(Problem(f"expected a number from 1 to {MAX_WORKERS}, got {found.workers}", "--workers"))
    if found.app or found.apps:
        from gateway.cli.several import several

        return several(found.app or (), found.apps, options, environ, warnings), found.workers, warnings
    return [gateway_config(options, environ)], found.workers, warnings


def main(words: Sequence[str]) -> int:
    """Run a gateway until it is told to stop; give the exit code."""
    try:
        configs, workers, warnings = parse_gateway(words, os.environ)
    except SystemExit:
        # argparse leaves so after the help.
        return 0
    except UsageError as error:
        complain(str(error))
        note("  see: mesh gateway --help")
        return 2
    except ConfigError as error:
        for problem in error.problems:
            complain(str(problem))
        return 2
    for warning in warnings:
        note(f"warning: {warning}")
    if workers > 1 and VARIABLE not in os.environ:
        return _with_workers(configs, words, workers)
    return serve(*configs)


def _with_workers(configs: Sequence[GatewayConfig], words: Sequence[str], workers: int) -> int:
    for config in configs:
        if config.backbone.partition(":")[0] == "memory":
            complain("--workers: memory: is a broker in one process, and workers are several; name another")
            return 2
    from gateway.workers.parent import run_workers

    try:
        return asyncio.run(run_workers(configs, words, workers))
    except KeyboardInterrupt:
        return 130


def serve(*configs: GatewayConfig) -> int:
    """Run a gateway of each application until it is told to stop; give the exit code."""
    try:
        return _run(configs)
    except MeshError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _run(configs: Sequence[GatewayConfig]) -> int:
    gc.disable()  # What is imported stays: to look through it again and again takes a tenth of the start.
    # By name, since importing the server is what takes long, and wrong flags are to be refused at once.
    run = cast("Callable[..., Awaitable[int]]", importlib.import_module("gateway.process").run)
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.enable()

    async def running() -> int:
        worker = None
        if VARIABLE in os.environ:
            from gateway.workers.child import worker_of

            worker = worker_of(os.environ)
        return await run(*configs, worker=worker)

    try:
        import uvloop
    except ImportError:
        return asyncio.run(running())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(running())
