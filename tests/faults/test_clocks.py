"""Reminders and jobs while the clock of their owner is set: none is lost, none early by that clock."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from mesh.resources.component import Component
from tests.faults.conftest import SERVERS, Figures, Site, arguments_for
from tests.support.counting import records_of
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.processes import ROOT, free_port

pytestmark = pytest.mark.slow
ORDINARY = ("nats",)
EVERYWHERE = ("embedded", *SERVERS)
HOUR = 3600.0
RATE = 20.0  # Of reminders a second, and of jobs.
DUE = 1.0
AT_EACH = 2.0  # Seconds, until the clock is set again: so some are due before that, and some behind it.
ATTEMPT_SECONDS, AGAIN_AFTER = 5.0, 0.1
WITHIN = 60.0


class Clock:
    """The clock of an owner, and of the application beside it (``tests/support/clock``).

    Attributes:
        environ: What gives it to a process.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._jumps: list[tuple[float, float]] = []  # When, and so many seconds ahead from then on.
        file.write_bytes(bytes(8))
        self.jump(0.0)
        self.environ = {"PYTHONPATH": f"{ROOT / 'tests/support/clock'}{os.pathsep}{ROOT}", "CLOCK": str(file)}

    def jump(self, ahead: float) -> None:
        """Set it so many seconds ahead of this process's."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("d", ahead))
        self._jumps.append((time.time(), ahead))

    def earliest(self) -> Callable[[], float]:
        """Give what tells later the least that it has shown since now."""
        now, first = time.time(), len(self._jumps) - 1
        return lambda: now + min(ahead for _, ahead in self._jumps[first:])

    def was_set_back_at(self, due: float) -> bool:
        """Tell whether it was set back soon after a time: what was fired at that may have been recorded behind it."""
        jumps = itertools.pairwise(self._jumps)
        return any(was > ahead and 0.0 <= jumped + was - due < AT_EACH for (_, was), (jumped, ahead) in jumps)


class Registering:
    """Registers at a steady rate what is due soon, at one owner or the other, and again until that was answered.

    Attributes:
        due: From when on each may come that was answered with 204, by the clock of the owner that was asked.
    """

    def __init__(self, path: str, owners: Sequence[tuple[GatewayProcess, Clock]]) -> None:
        self.due: dict[str, float] = {}
        self._path = path
        self._owners = itertools.cycle(owners)
        self._over = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Register while entered; leaving waits until all are."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._work())
            try:
                yield
            finally:
                self._over.set()

    async def _work(self) -> None:
        begun = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=ATTEMPT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            for number in itertools.count():
                await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))
                if self._over.is_set():
                    return
                tasks.create_task(self._register(session, f"n{number}"))

    async def _register(self, session: aiohttp.ClientSession, name: str) -> None:
        body = {"dueTime": f"{DUE}s", "overwrite": True, "failurePolicy": {"constant": {"interval": "500ms"}}}
        tried: list[Callable[[], float]] = []
        while name not in self.due:
            gateway, clock = next(self._owners)
            tried.append(clock.earliest())
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(gateway.api + self._path.format(name=name), json=body) as response:
                    if response.status == 204:  # One whose answer was lost may have come first.
                        self.due[name] = min(earliest() for earliest in tried) + DUE
                        return
            await asyncio.sleep(AGAIN_AFTER)


async def test_a_clock_that_jumps(site: Site, store: Component | None, tmp_path: Path, figures: Figures) -> None:
    """That of one of two owners: an hour ahead, one back, and right again; at last all clocks are far enough ahead."""
    arguments, records = arguments_for(site, store), site.home / "records.txt"
    clocks = [Clock(tmp_path / f"clock-{number}") for number in range(2)]
    owners: list[tuple[GatewayProcess, Clock]] = []
    apps: list[AppProcess] = []
    async with AsyncExitStack() as stack:
        for clock in clocks:
            port = free_port()
            app = AppProcess(site.home, "counters", gateway_port=port, records=records, environ=clock.environ)
            gateway = site.gateway("counters", app, arguments=arguments, http_port=port, environ=clock.environ)
            apps.append(await stack.enter_async_context(app))
            owners.append((await stack.enter_async_context(gateway), clock))
        reminders = Registering("/actors/counter/{name}/reminders/{name}", owners)
        jobs = Registering("/jobs/{name}", owners)
        async with reminders.running(), jobs.running():
            for ahead in (0.0, HOUR, -HOUR, 0.0):
                clocks[0].jump(ahead)
                await asyncio.sleep(AT_EACH)
        for clock in clocks:
            clock.jump(2 * HOUR)
        jumped = time.time() + 2 * HOUR
        came = await _all_came(apps[0], "begin", "reminder:", reminders)
        _it_is_told(came, reminders, clocks[0], jumped, figures, site, fault="reminders while a clock jumps")
        came = await _all_came(apps[0], "job", "", jobs)
        _it_is_told(came, jobs, clocks[0], jumped, figures, site, fault="jobs while a clock jumps")


async def _all_came(app: AppProcess, kind: str, prefix: str, registering: Registering) -> dict[str, float]:
    """Give when each came first, by the clock of the owner that it came from."""

    def check() -> dict[str, float]:
        found = [(str(each["by"]).removeprefix(prefix), float(str(each["at"]))) for each in records_of(app, kind)]
        came = dict(reversed(found))
        assert registering.due.keys() <= came.keys(), sorted(registering.due.keys() - came.keys())
        return came

    return await eventually(check, WITHIN)


def _it_is_told(
    came: dict[str, float],
    registering: Registering,
    clock: Clock,
    jumped: float,
    figures: Figures,
    site: Site,
    *,
    fault: str,
) -> None:
    early = [name for name, due in registering.due.items() if came[name] < due and not clock.was_set_back_at(due)]
    lost = registering.due.keys() - came.keys()
    last = round(max(came.values()) - jumped, 1)
    figures.fault(fault, site.name, set=len(registering.due), lost=len(lost), early=len(early), last=last)
    assert len(registering.due) > RATE * AT_EACH
    assert max(came.values()) > time.time() + HOUR, "the clocks have jumped"
    assert early == []
