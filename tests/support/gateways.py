"""The command ``mesh`` in tests: run to its end, or started and watched."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.eventually import eventually_sync
from tests.support.mesh import running_below
from tests.support.processes import NO_AUTHORITIES, nothing_forgotten

__all__ = ["MeshHome", "MeshRun"]

MESH = (sys.executable, "-c", "import sys; from gateway.cli import main; sys.exit(main())")
_LINES_WITHIN = 90.0


class MeshRun:
    """A running ``mesh`` command, whose lines are collected."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading = [threading.Thread(target=self._read, args=(pipe,)) for pipe in (process.stdout, process.stderr)]
        for thread in self._reading:
            thread.start()

    def _read(self, pipe: object) -> None:
        for line in pipe:  # type: ignore[attr-defined]
            self.lines.append(line.decode(errors="backslashreplace").rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str, within: float = _LINES_WITHIN) -> re.Match[str]:
        """Wait for a line that matches, and give the match."""

        def check() -> re.Match[str]:
            found = re.search(pattern, self.text, re.MULTILINE)
            if found is None and self.process.poll() is not None:
                self._joined()
                found = re.search(pattern, self.text, re.MULTILINE)
                if found is None:
                    raise RuntimeError(f"ended with {self.process.returncode} before {pattern!r}:\n{self.text}")
            assert found is not None, f"no {pattern!r} in:\n{self.text}"
            return found

        return eventually_sync(check, within)

    def send(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, within: float = 40.0) -> int:
        """Wait for the end and give the exit code."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {within} s:\n{self.text}") from None
        self._joined()
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return self.wait()

    def _joined(self) -> None:
        for thread in self._reading:
            thread.join(10)


class MeshHome:
    """A ``MESH_HOME`` of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def environ(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DAPR_", "MESH_", "APP_"))}
        return {**kept, **NO_AUTHORITIES, "MESH_HOME": str(self.path), **(more or {})}

    def mesh(
        self,
        *words: str,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        text: str | None = None,
        within: float = 40.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; ``text`` is its standard input."""
        return subprocess.run(
            [*MESH, *words],
            env=self.environ(environ),
            cwd=cwd,
            input=text or "",
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )

    @contextmanager
    def run(self, *words: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Iterator[MeshRun]:
        """Start ``mesh run`` with these words; it is stopped when left."""
        with self.started([*MESH, "run", *words], self.environ(environ), cwd) as running:
            yield running

    @contextmanager
    def started(self, command: Sequence[str], environ: Mapping[str, str], cwd: Path | None) -> Iterator[MeshRun]:
        """Start a command that runs ``mesh run``; it is stopped when left."""
        process = subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A signal to the test's own group, as by Ctrl-C, is for the test to pass on.
            start_new_session=True,
        )
        running = MeshRun(process)
        try:
            yield running
        except BaseException:
            print(running.text)
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            running._joined()
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            process.stderr.close()
        nothing_forgotten(running.text)

    def until_nothing_runs(self, within: float = 40.0) -> None:
        """Wait until no process of this home is left."""

        def check() -> None:
            assert running_below(self.path) == []

        eventually_sync(check, within)


def words(line: str) -> Sequence[str]:
    """Split a command line as a shell does, without the program."""
    import shlex

    return shlex.split(line)[1:]
