"""Who taps is killed, or stands still: what it watches goes on, and is watched no longer than its lease."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from mesh.blocks.state import SAVE, Save
from mesh.node.runtime import Runtime
from mesh.store import Item
from mesh.tap import watch
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.nodes import ask, component, node, unique

LEASE = 4.0  # More than the asker's three seconds.
LARGE = bytes(20_000)


class Tapper:
    """The process, and what it was told."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.told: list[str] = []

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.told.append(line.decode().strip())

    def until(self, count: int) -> Callable[[], None]:
        def check() -> None:
            assert len([each for each in self.told if each.startswith("Sight")]) >= count

        return check


@asynccontextmanager
async def tapper(url: str, namespace: str) -> AsyncIterator[Tapper]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.tapper", url, namespace, stdout=PIPE
    )
    made = Tapper(process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.read())
        try:
            yield made
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Runtime, Tapper]]:
    """A node, and a process that watches it."""
    monkeypatch.setattr(watch, "LEASE_SECONDS", LEASE)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(tmp_path / "nats"))
        namespace, store = unique("taps"), component("store", "state.in-memory")
        runtime = await stack.enter_async_context(node(server.url, namespace, store, app_id="a", single_host=True))
        tapping = await stack.enter_async_context(tapper(server.url, namespace))
        await eventually(lambda: _watched(runtime, 1))
        yield runtime, tapping


def _watched(runtime: Runtime, count: int) -> None:
    assert cast("Any", runtime).parts.taps.count == count


async def _save(runtime: Runtime, value: bytes = b"1") -> None:
    await ask(runtime, SAVE, "store", Save([Item("k", value)]))


async def test_who_taps_is_killed(watched: tuple[Runtime, Tapper]) -> None:
    runtime, tapping = watched
    await _save(runtime)
    await eventually(tapping.until(1))
    tapping.process.kill()
    await tapping.process.wait()
    await eventually(lambda: _watched(runtime, 0))
    assert not cast("Any", runtime).parts.taps.on


async def test_who_taps_stands_still(watched: tuple[Runtime, Tapper]) -> None:
    """Nothing waits for it; it is told again when it comes to itself."""
    runtime, tapping = watched
    tapping.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(2000):
        await _save(runtime, LARGE)
    took = time.monotonic() - began
    await eventually(lambda: _watched(runtime, 0))
    tapping.process.send_signal(signal.SIGCONT)
    await eventually(lambda: _watched(runtime, 1))
    before = len(tapping.told)

    async def told() -> None:
        await _save(runtime)
        assert len(tapping.told) > before

    await eventually(told)
    assert took < 10  # Some ms each would be a wait; without any it is a part of one.
