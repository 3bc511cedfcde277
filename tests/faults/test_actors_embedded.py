"""Actors, reminders and jobs on the embedded server while owners and the server fail: as in ``test_actors.py``.

An owner that reaches it through a proxy has its URL and token: a connection by the loopback is silent, or cut, by no
other means.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from brokers.embedded_server import read_status
from tests.faults.conftest import REPORTING, Figures, Site
from tests.faults.test_actors import (
    RECOVERS_WITHIN,
    Counters,
    counting,
    everything_fails,
    it_is_one_chain,
    it_is_told,
    nothing_is_lost,
    what_was_promised,
)
from tests.support.backends import EmbeddedBackend
from tests.support.eventually import eventually

pytestmark = pytest.mark.slow


async def the_supervisor_is_killed(counters: Counters) -> None:
    """The embedded server ends with it; those who use it start both again."""
    status = await asyncio.to_thread(read_status, counters.site.home)
    assert status is not None
    os.kill(status.supervisor_pid, signal.SIGKILL)


async def test_the_versions_of_a_state_on_the_embedded_server_are_one_chain(
    mesh_home: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the gateway that has started it is killed, and when it ends with its supervisor.

    The report has all, which takes a minute and a half; else there is the last, in seconds.
    """
    monkeypatch.setenv("MESH_HOME", str(mesh_home))  # For who reads what is kept.
    site = Site("embedded", EmbeddedBackend(mesh_home), mesh_home, "default")
    async with counting(site, None) as counters:
        await eventually(lambda: counters.calling.answered_after(0.0), RECOVERS_WITHIN)
        seconds = await everything_fails(counters) if REPORTING else None
        async with counters.during("the broker is killed with its supervisor"):
            await the_supervisor_is_killed(counters)
        await counters.stop()
        await nothing_is_lost(counters, figures)
        late = it_is_told(counters, figures)
        await it_is_one_chain(counters, None, figures)
    if seconds is not None:
        what_was_promised(counters, seconds, late, figures)
