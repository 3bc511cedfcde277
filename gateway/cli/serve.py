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
from mesh.errors import ConfigError, MeshError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from gateway.config import GatewayConfig

__all__ = ["main", "parse_gateway", "serve"]

# Python looks for garbage whenever so many objects more have come than gone. Its 700 are a few requests in flight, and
# took a tenth of the time of each. What waits for a look are cycles: a request leaves none, nor does one that fails.
YOUNG_OBJECTS = 10_000


def parse_gateway(words: Sequence[str], environ: Mapping[str, str]) -> tuple[GatewayConfig, list[str]]:
    """Give the configuration, and warnings about what has no effect.

    Raises:
        UsageError: A flag is unknown, or a value is missing or wrong.
        ConfigError: A value makes no sense.
    """
    parser = Parser("mesh gateway", description="Run one gateway process; mesh run does so beside an application.")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--build-info", action="store_true", help="print the version")
    add_gateway_flags(parser)
    # Compose files name the program of the image they were written for.
    found = parser.parse(words[1:] if words and Path(words[0]).name == "daprd" else words)
    if found.version or found.build_info:
        from gateway.cli.version import version

        show(version())
        raise SystemExit(0)
    return gateway_config(gateway_options(found), environ), warnings_about(found)


def main(words: Sequence[str]) -> int:
    """Run a gateway until it is told to stop; give the exit code."""
    try:
        config, warnings = parse_gateway(words, os.environ)
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
    return serve(config)


def serve(config: GatewayConfig) -> int:
    """Run a gateway until it is told to stop; give the exit code."""
    try:
        return _run(config)
    except MeshError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _run(config: GatewayConfig) -> int:
    gc.disable()  # What is imported stays: to look through it again and again takes a tenth of the start.
    # By name, since importing the server is what takes long, and wrong flags are to be refused at once.
    run = cast("Callable[[GatewayConfig], Awaitable[int]]", importlib.import_module("gateway.process").run)
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.enable()

    async def running() -> int:
        return await run(config)

    try:
        import uvloop
    except ImportError:
        return asyncio.run(running())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(running())
