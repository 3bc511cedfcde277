"""The dashboard beside the applications of a ``mesh run``: there for as long as they are, and no reason to end them."""

from __future__ import annotations

import asyncio
import secrets
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.dashboard import APP_ID, PORT, TOKEN_VARIABLE, address
from gateway.cli.output import LogTarget, Stream
from gateway.cli.processes import Child, Start, exit_text, started
from gateway.config import CLOSE_SECONDS, GatewayConfig
from gateway.runs import Run, find_run
from mesh.tasks import task_group

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.cli.app_spec import AppSpec
    from gateway.cli.one_app import Surroundings

__all__ = ["dashboard_beside"]

_POLL = 0.1


@asynccontextmanager
async def dashboard_beside(specs: Sequence[AppSpec], around: Surroundings) -> AsyncIterator[None]:
    """Run a dashboard while entered, and say where it is; what becomes of it is said, and ends nothing else.

    Args:
        specs: The applications.
        around: What they share.
    """
    token = around.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    words = [sys.executable, "-P", "-m", "gateway.cli", "dashboard", "--app-id", APP_ID]
    if PORT in _ports(specs):  # It is free now, and an application is to have it.
        words += ["--port", "0"]
    start = Start("gateway", words, {**around.environ, TOKEN_VARIABLE: token}, Path.cwd())
    stream = Stream("GATEWAY", APP_ID, LogTarget(console=False), around.console)
    async with task_group() as tasks:
        over = asyncio.Event()
        showing = tasks.create_task(_show(specs[0].config, start, stream, around, over), name="run-dashboard")
        try:
            yield
        finally:
            over.set()
            await asyncio.wait([showing])


async def _show(config: GatewayConfig, start: Start, stream: Stream, around: Surroundings, over: asyncio.Event) -> None:
    try:
        async with started(start, stream, around.guard) as child:
            async with task_group() as tasks:
                telling = tasks.create_task(_tell(config, start, child, around), name="run-dashboard-tell")
                ends = [tasks.create_task(each.wait(), name="run-dashboard-end") for each in (child.ended, over)]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                silent = not telling.done()
                for each in (telling, *ends):
                    each.cancel()
            if not over.is_set():
                await child.last_output(CLOSE_SECONDS)
                how = exit_text(child.returncode or 0)
                around.voice.note(f"warning: the dashboard ended ({how}){stream.last_lines()}")
            elif silent:
                around.voice.note(f"warning: the dashboard did not come up{stream.last_lines()}")
            await child.end(config.drain + CLOSE_SECONDS, around.hurry)
    except OSError as error:
        around.voice.note(f"warning: cannot start the dashboard: {error}")


async def _tell(config: GatewayConfig, start: Start, child: Child, around: Surroundings) -> None:
    """Say where it is, once it is there."""
    run: Run | None = None
    while run is None:  # Either it listens, or it ends.
        await asyncio.sleep(_POLL)
        run = await asyncio.to_thread(find_run, config.home, child.pid)
    around.voice.dashboard(address(run.host, run.http_port, start.environment[TOKEN_VARIABLE]))


def _ports(specs: Sequence[AppSpec]) -> set[int | None]:
    """Give the ports that the applications and their gateways are told to have, and may not have yet."""
    configs = [spec.config for spec in specs]
    return {each for config in configs for each in (config.app_port, config.http_port, config.grpc_port)}
