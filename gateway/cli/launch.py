"""``mesh run``: several applications side by side, until all have ended or are told to stop.

Start: each gateway, then, once its API answers, its application. End: the gateway first, which takes no more
work and finishes what is in flight while the application is still there, then the application. Whichever of the
two ends by itself ends the other; several applications of one template do not end each other.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import nullcontext
from typing import TYPE_CHECKING

from gateway.cli.app_spec import AppSpec
from gateway.cli.one_app import LaunchError, Surroundings, run_app
from mesh.tasks import task_group

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = ["launch"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


async def launch(specs: Sequence[AppSpec], around: Surroundings, *, dashboard: bool = False) -> int:
    """Run applications, and a dashboard beside them if that is wanted; give the exit code.

    One that can not be started ends all of them.
    """
    codes: list[int] = []
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        if around.stop.is_set():
            around.hurry.set()
        else:
            around.voice.stopping(number)
            around.stop.set()

    async def one(spec: AppSpec) -> None:
        try:
            codes.append(await run_app(spec, around))
        except LaunchError as error:
            codes.append(1)
            around.voice.failed(str(error))
            around.stop.set()

    # Nobody sees what they write any more.
    around.console.when_broken = around.stop.set
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGUSR1, around.pass_on, signal.SIGUSR1)  # The level of their logs.
    try:
        async with _beside(specs, around) if dashboard else nullcontext(), task_group() as tasks:
            for spec in specs:
                tasks.create_task(one(spec), name=f"run-{spec.app_id}")
    finally:
        for number in (*_SIGNALS, signal.SIGUSR1):
            loop.remove_signal_handler(number)
    return around.voice.exit_code(codes, interrupted=signal.SIGINT in signals)


def _beside(specs: Sequence[AppSpec], around: Surroundings) -> AbstractAsyncContextManager[None]:
    from gateway.cli.beside import dashboard_beside  # Most runs have none.

    return dashboard_beside(specs, around)
