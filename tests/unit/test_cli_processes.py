"""Child processes of ``mesh run``, with real ones."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.cli.guard import Guard, group_alive
from gateway.cli.output import Console, LogTarget, Stream
from gateway.cli.processes import Child, Start, exit_code, exit_text, started
from tests.support.eventually import eventually


class _Told(Guard):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def _tell(self, line: str) -> None:
        self.lines.append(line)


@asynccontextmanager
async def _shell(script: str, *, guard: Guard | None = None) -> AsyncIterator[tuple[Child, io.BytesIO]]:
    out = io.BytesIO()
    stream = Stream("APP", "a", LogTarget(), Console(out, io.BytesIO(), colours=False))
    start = Start("app", ["sh", "-c", script], dict(os.environ), Path.cwd())
    async with started(start, stream, guard or _Told()) as child:
        yield child, out


async def _printed(out: io.BytesIO, text: str) -> None:
    def check() -> None:
        assert text in out.getvalue().decode()

    await eventually(check)


async def test_output_and_end_are_noticed() -> None:
    guard = _Told()
    async with _shell("echo one; printf two >&2; exit 3", guard=guard) as (child, out):
        await child.ended.wait()
        await child.last_output(5)
        assert child.returncode == 3
    assert out.getvalue() == b"== APP - a == one\n== APP - a == two\n"
    assert guard.lines == [f"+ app {child.pid}\n", f"- app {child.pid}\n"]


async def test_end_waits_for_the_process() -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    async with _shell(script) as (child, out):
        await _printed(out, "up")
        await child.end(10, asyncio.Event())
        assert child.returncode == 0
    assert b"bye" in out.getvalue()


async def test_process_that_does_not_end_is_killed() -> None:
    async with _shell("trap '' TERM; echo up; while :; do sleep 0.01; done") as (child, out):
        await _printed(out, "up")
        await child.end(0.2, asyncio.Event())
        assert child.returncode == -signal.SIGKILL


async def test_hurry_kills_at_once() -> None:
    async with _shell("trap '' TERM; echo up; while :; do sleep 0.01; done") as (child, out):
        await _printed(out, "up")
        hurry = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, hurry.set)
        began = time.monotonic()
        await child.end(30, hurry)
        assert time.monotonic() - began < 10
        assert child.returncode == -signal.SIGKILL


async def test_whole_group_ends_with_its_leader() -> None:
    """A child that outlives the command, such as the server that npm has started, is stopped too."""
    async with _shell("sh -c 'echo up; while :; do sleep 0.01; done' & wait $! & sleep 0.1; exit 0") as (child, out):
        await _printed(out, "up")
        await child.ended.wait()
        assert group_alive(child.pid)
        await child.end(5, asyncio.Event())
        assert not group_alive(child.pid)


async def test_leaving_kills_the_group() -> None:
    async with _shell("trap '' TERM; sh -c 'while :; do sleep 0.01; done' & while :; do sleep 0.01; done") as (
        child,
        _,
    ):
        pass
    assert child.returncode == -signal.SIGKILL

    def check() -> None:
        assert not group_alive(child.pid)

    await eventually(check)


async def test_output_that_stays_open_is_not_waited_for() -> None:
    """A process that left the group keeps the pipe; the run ends all the same."""
    script = (
        f"{sys.executable} -c 'import os,time; os.setsid(); print(os.getpid(), flush=True); time.sleep(60)' & read x"
    )
    async with asyncio.timeout(20):
        async with _shell(script) as (child, out):
            await child.ended.wait()

            def check() -> int:
                assert out.getvalue().endswith(b"\n")
                return int(out.getvalue().split()[-1])

            pid = await eventually(check, 40)
        os.kill(pid, signal.SIGKILL)


async def test_program_that_is_not_there_is_an_error() -> None:
    stream = Stream("APP", "a", LogTarget(), Console(io.BytesIO(), io.BytesIO(), colours=False))
    with pytest.raises(FileNotFoundError):
        async with started(Start("app", ["no-such-program"], dict(os.environ), Path.cwd()), stream, _Told()):
            pass


@pytest.mark.parametrize(
    ("returncode", "code", "text"),
    [(0, 0, "exit code 0"), (3, 3, "exit code 3"), (-9, 137, "signal SIGKILL"), (-35, 163, "signal 35")],
)
def test_ends_are_named(returncode: int, code: int, text: str) -> None:
    assert exit_code(returncode) == code
    assert exit_text(returncode) == text or returncode == -35
