"""Child processes: each in a group of its own, its output followed, its end noticed at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.cli.guard import Guard, Role, group_alive, signal_group
from gateway.cli.keyboard import pass_on
from mesh.tasks import task_group

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from gateway.cli.output import Stream

__all__ = ["Child", "Start", "Stdin", "exit_code", "exit_text", "first_of", "started"]

_CHUNK_BYTES = 64 * 1024
_POLL = 0.02
_QUESTION_AFTER = 0.1
_STDIN = {"nothing": subprocess.DEVNULL, "ours": None, "keyboard": subprocess.PIPE}
# Output of processes that left the group may keep the pipe open; it is not waited for longer.
_OUTPUT_WITHIN = 1.0


Stdin = Literal["nothing", "ours", "keyboard"]
"""What a process reads: nothing, our standard input as it is, or what is typed at our terminal."""


@dataclass(frozen=True, slots=True)
class Start:
    """What to start.

    Attributes:
        role: For the guard.
        command: Program and arguments.
        environment: All of it.
        directory: Where it runs.
        stdin: What it reads.
        over: Tells whether the keyboard is not ours to read any more.
    """

    role: Role
    command: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    stdin: Stdin = "nothing"
    over: Callable[[], bool] = lambda: False


class Child:
    """A running child process. Made by `started`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.ended = asyncio.Event()
        self._output_ended = asyncio.Event()
        self._process = process
        # asyncio's own subprocess reports the end only when the pipe is closed too, which a grandchild may
        # hold open for ever; and a thread of the executor would be missing there.
        threading.Thread(target=self._wait, args=(asyncio.get_running_loop(),), daemon=True).start()

    @property
    def returncode(self) -> int | None:
        """The exit code, or a negative signal number; None while it runs."""
        return self._process.returncode

    def send(self, number: int) -> None:
        """Send a signal to it, and to none of those that it started; nothing if it has ended."""
        self._process.send_signal(number)

    async def end(self, grace: float, hurry: asyncio.Event) -> None:
        """Ask its whole group to end, and insist when the time is over.

        Args:
            grace: Seconds.
            hurry: When set, nothing is waited for.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                if signal_group(self.pid, signal.SIGTERM) and not hurry.is_set():
                    await first_of(self.ended, hurry)
                # Those it started may take longer than itself, and nobody tells when they end.
                while group_alive(self.pid) and not hurry.is_set():  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(_POLL)
        signal_group(self.pid, signal.SIGKILL)
        await self.ended.wait()

    async def follow(self, stream: Stream) -> None:
        """Read its output until the end."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout)
        try:
            while chunk := await _chunk(reader, stream):
                stream.feed(chunk)
        finally:
            transport.close()
            self._output_ended.set()

    async def last_output(self, within: float) -> None:
        """Wait until its output was read to the end.

        Args:
            within: Seconds; a process that left the group may keep it open.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._output_ended.wait()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        # The loop has gone if this process is ending in a hurry.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self.ended.set)


async def _chunk(reader: asyncio.StreamReader, stream: Stream) -> bytes:
    """Read some output; a line that is not ended may be a question, and is shown when nothing follows."""
    if stream.asks and stream.unfinished:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUESTION_AFTER):
                return await reader.read(_CHUNK_BYTES)
        stream.ask()
    return await reader.read(_CHUNK_BYTES)


@asynccontextmanager
async def started(start: Start, stream: Stream, guard: Guard) -> AsyncIterator[Child]:
    """Run a process; leaving kills what is left of its group.

    Raises:
        OSError: It can not be started, or its log file can not be created.
    """
    stream.open()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - asyncio forks as well; running it is what we are for
            start.command,
            env=start.environment,
            cwd=start.directory,
            stdin=_STDIN[start.stdin],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        guard.watch(start.role, process.pid)
        child = Child(process)
        async with task_group() as tasks:
            following = tasks.create_task(child.follow(stream), name=f"{start.role}-output")
            typing = tasks.create_task(_passed_on(process, stream, start.over), name=f"{start.role}-input")
            try:
                yield child
            finally:
                signal_group(child.pid, signal.SIGKILL)
                await child.ended.wait()
                guard.forget(start.role, child.pid)
                typing.cancel()
                await child.last_output(_OUTPUT_WITHIN)
                following.cancel()
                stream.end()
                if process.stdin is not None:
                    process.stdin.close()
    finally:
        stream.close()


async def _passed_on(process: subprocess.Popen[bytes], stream: Stream, over: Callable[[], bool]) -> None:
    pipe = process.stdin
    if pipe is not None and await pass_on(sys.stdin.fileno(), pipe.fileno(), stream.console.typed, over):
        pipe.close()


async def first_of(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(event.wait(), name="first-of") for event in events]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()


def exit_code(returncode: int) -> int:
    """Give the code that a shell would give for it."""
    return 128 - returncode if returncode < 0 else returncode


def exit_text(returncode: int) -> str:
    """Say how a process ended."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
