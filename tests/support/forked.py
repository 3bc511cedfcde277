"""Processes of ours as forks of one that has imported what nearly all of them import: most of what a start takes.

They are processes like any other, with a session, an environment and descriptors of their own. How one starts from
nothing, as people have it, is tested where ``mesh run`` is.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path

from tests.support.processes import NO_AUTHORITIES, ROOT

__all__ = ["Forked", "Process", "forks", "launch", "python"]

# They start no thread, and read nothing of the environment but what is compared.
IMPORTED = ("gateway.app", "gateway.cli.serve", "mesh.resources.loader", "brokers.nats", "uvloop")
# What ours are told; whatever else is in an environment may be read where a process starts, or by a library.
OURS = ("APP_", "DAPR_", "MESH_", "NAMESPACE", "PYTEST_")
MESSAGE_BYTES = 1 << 18
_forks: dict[int, Forked] = {}  # All that may still run, by number.
_starting = threading.Lock()


class Forked:
    """A process, as :class:`asyncio.subprocess.Process` is; its parent keeps its number until its end was seen.

    Attributes:
        pid: Its number.
        command: The program and its arguments; the system tells those of what it is a fork of.
        environ: Its environment, likewise.
    """

    def __init__(self, parent: _Parent, pid: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.pid, self.command, self.environ = pid, command, environ
        self._parent = parent
        self._end = os.pidfd_open(pid)
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None and select.select([self._end], [], [], 0)[0]:
            self._code = self._parent.ask({"ended": self.pid})
            os.close(self._end)
        return self._code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._end, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        while (code := self.returncode) is None:
            ended, loop, end = asyncio.Event(), asyncio.get_running_loop(), os.dup(self._end)  # Several may wait.
            loop.add_reader(end, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(end)
                os.close(end)
        return code


def forks() -> Mapping[int, Forked]:
    """Give those that run, by number."""
    for pid in [pid for pid, each in _forks.items() if each.returncode is not None]:
        del _forks[pid]
    return _forks


async def launch(
    command: Sequence[str], environ: Mapping[str, str], output: int, errors: int | None = None
) -> asyncio.subprocess.Process | Forked:
    """Start a program in a session of its own, in the project's folder, without input.

    Args:
        command: The program and its arguments.
        environ: All of its environment.
        output: Descriptor of the file that it writes to.
        errors: The same for its errors; None is the same file.
    """
    errors = output if errors is None else errors
    program, *words = command
    # What is measured for people is measured as people start it.
    if (
        sys.platform == "linux"
        and program == sys.executable
        and environ.get("PYTHONPATH") in (str(ROOT), os.environ.get("PYTHONPATH"))
        and "MESH_FAULT_REPORT" not in os.environ
    ):
        parent = await asyncio.to_thread(_one_parent)
        if parent.environ == _compared(environ):
            pid = parent.ask({"words": words, "environ": dict(environ)}, output, errors)
            _forks[pid] = Forked(parent, pid, command, environ)
            return _forks[pid]
    return await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        # A signal to the test's own group, as by Ctrl-C, is for the test to pass on.
        start_new_session=True,
    )


class Process:
    """A running process whose output is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process | Forked, output: asyncio.StreamReader) -> None:
        self._process = process
        self._output = output
        self.pid = process.pid

    async def line(self) -> str:
        """Give the next line of its output, or fail with what it wrote when it ended."""
        line = await self._output.readline()
        assert line, f"the process ended with {await self._process.wait()}"
        return line.decode().rstrip("\n")

    async def kill(self) -> None:
        """End it as a power cut would (kill -9), and return when it is gone."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def python(module: str, arguments: Sequence[str], environ: Mapping[str, str]) -> AsyncIterator[Process]:
    """Run a module of this project in a process of its own; it is dead when left.

    Args:
        module: As for ``python -m``.
        arguments: Its arguments.
        environ: What it has in its environment besides ours.
    """
    end, written = os.pipe()
    output = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), os.fdopen(end, "rb", 0)
    )
    try:
        try:
            command = (sys.executable, "-m", module, *arguments)
            process = await launch(command, {**os.environ, **NO_AUTHORITIES, **environ}, written, errors=2)
        finally:
            os.close(written)
        running = Process(process, output)
        try:
            yield running
        finally:
            await running.kill()
    finally:
        # Its transport is closed by the loop's next turns; unclosed ones are warnings, hence errors.
        transport.close()
        await asyncio.sleep(0)


def _compared(environ: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith(OURS) and name != "PYTHONPATH"}


class _Parent:
    """What forks; it ends with the process that asks it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = _compared(environ)
        self._asking = threading.Lock()
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                (sys.executable, "-m", __name__, str(other.fileno())),
                cwd=ROOT,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                start_new_session=True,
            )
        atexit.register(self._close)
        self._answer()

    def _close(self) -> None:
        """End it: it goes on as long as this end of the socket is open."""
        self._socket.close()
        self._process.wait()

    def ask(self, question: object, *descriptors: int) -> int:
        with self._asking:
            socket.send_fds(self._socket, [json.dumps(question).encode()], descriptors)
            return self._answer()

    def _answer(self) -> int:
        answer = self._socket.recv(MESSAGE_BYTES)
        assert answer, "what forks has ended"
        return int(answer)


def _one_parent() -> _Parent:
    with _starting:  # Several may ask for the first one at a time.
        return _parent()


@cache
def _parent() -> _Parent:
    return _Parent({**os.environ, **NO_AUTHORITIES})


def _serve(control: socket.socket) -> Callable[[], object]:
    """Answer until nobody asks any more; return in each fork, with what it is to do."""
    for name in IMPORTED:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lack the other threads"
    gc.freeze()  # The pages of what nobody looks through stay shared.
    control.send(b"0")
    while True:
        told, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
        if not told:
            return bool
        asked = json.loads(told)
        if "ended" in asked:
            control.send(str(os.waitstatus_to_exitcode(os.waitpid(asked["ended"], 0)[1])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            control.close()
            os.setsid()
            for number, given in enumerate(descriptors, 1):
                os.dup2(given, number)
                os.close(given)
            os.environ.clear()
            os.environ.update(asked["environ"])
            return partial(_become, asked["words"])
        for given in descriptors:
            os.close(given)
        control.send(str(pid).encode())


def _become(words: Sequence[str]) -> None:
    """Run a module, code or a script as the interpreter does."""
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(words)
        sys.path[0] = str(Path(words[0]).parent)
        sys.path.append(str(ROOT))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))()
