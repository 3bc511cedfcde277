"""Actors, reminders and jobs on the embedded server while owners and the server fail: as in ``test_actors.py``.

No connection is cut: the server is reached by the loopback of one machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from brokers.embedded_server import read_status
from tests.faults.conftest import Figures, Site
from tests.faults.test_actors import (
    RECOVERS_WITHIN,
    Counters,
    an_owner_is_killed,
    an_owner_restarts,
    an_owner_stands_still,
    counting,
    instances_join_and_leave,
    it_is_one_chain,
    it_is_told,
    nothing_is_lost,
    the_broker_restarts,
    those_of_the_killed_one,
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
    seconds, whole = 0.0, "MESH_FAULT_REPORT" in os.environ
    async with counting(site, None) as counters:
        await eventually(lambda: counters.calling.answered_after(0.0), RECOVERS_WITHIN)
        if whole:
            seconds = await all_else(counters)
        async with counters.during("the broker is killed with its supervisor"):
            await the_supervisor_is_killed(counters)
        await counters.stop()
        failures = it_is_told(counters, figures)
        await nothing_is_lost(counters, figures)
        await it_is_one_chain(counters, None, figures)
    if whole:
        those_of_the_killed_one(seconds, failures, site, figures)


async def all_else(counters: Counters) -> float:
    """Give the seconds until all actors of a killed owner answer elsewhere."""
    async with counters.during("an owner is killed"):
        seconds = await an_owner_is_killed(counters)
    async with counters.during("an owner restarts"):
        await an_owner_restarts(counters)
    async with counters.during("an owner stands still"):
        await an_owner_stands_still(counters)
    async with counters.during("owners join and leave"):
        await instances_join_and_leave(counters)
    async with counters.during("the broker is killed, under actors"):
        await the_broker_restarts(counters)
    return seconds
