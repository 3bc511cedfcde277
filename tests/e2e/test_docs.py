"""The pages do what they say: their files are written, their commands run, their output is compared.

Blocks of these pages by their info line:

=========================  ==========================================================================
``python file=NAME``       written to a file, as ``javascript file=NAME`` and ``yaml file=NAME`` are
``bash background=NAME``   started, and left running until the next of that name, or the end
``bash test``              run to its end, successfully; a ``text`` block after it is its output, where … is anything
``bash test stops=NAME``   the same, once what runs in the background has ended
``text shows=NAME``        appears in the output of what runs in the background
``bash``                   not run: set-up of a clone
=========================  ==========================================================================
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.meta.sources import ROOT, Block, blocks
from tests.support.processes import free_port

TUTORIALS = [ROOT / "docs" / name for name in ("tutorial.md", "tutorial-actors.md", "tutorial-workflows.md")]
PAGES = [
    *TUTORIALS,
    *(ROOT / "docs" / name for name in ("actors.md", "bridge.md", "jobs.md", "replay.md", "workflow-http.md")),
]
WITHIN = 30.0
_PORTS = ("3000", "3001", "3002", "3500", "3501", "3502", "4222", "4223")
# The application answers, or the NATS server does, or a command works.
_UP = re.compile(
    r"application at \S+ is up|frontend listens on|Server is ready|^records into|bridge between", re.MULTILINE
)


class Session:
    """A directory, a mesh and a set of ports of its own, in which blocks are run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ports = {text: str(free_port()) for text in _PORTS}
        beside = Path(sys.executable).parent
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "DAPR_", "APP_"))}
        self._environ = {
            **kept,
            "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
            "MESH_HOME": str(directory / "home"),
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Path] = {}

    def mapped(self, text: str) -> str:
        """Replace the page's ports by free ones."""
        return re.sub(rf"\b({'|'.join(_PORTS)})\b", lambda found: self._ports[found[1]], text)

    def write(self, name: str, text: str) -> None:
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def run(self, script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.mapped(script)],
            cwd=self.directory,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}\n{self.everything()}"
        return done.stdout

    def start(self, name: str, script: str) -> None:
        self.stop(name)
        log = self._logs[name] = self.directory / f"{name}-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            self._running[name] = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self.mapped(script)],
                cwd=self.directory,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._until(lambda: _UP.search(self.output(name)) is not None, f"{name} is up")

    def output(self, name: str) -> str:
        return self._logs[name].read_text(errors="replace")

    def everything(self) -> str:
        return "\n".join(f"--- {name}\n{self.output(name)}" for name in self._logs)

    def shows(self, name: str, lines: list[str]) -> None:
        self._until(lambda: all(line in self.output(name) for line in lines), f"{name} shows {lines}")

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WITHIN
        while not holds():
            assert time.monotonic() < deadline, f"not within {WITHIN:g} s: {what}\n{self.everything()}"
            time.sleep(0.05)

    def stop(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(15)
                return
            except ProcessLookupError:
                process.wait(15)
                return
            except subprocess.TimeoutExpired:
                continue

    def close(self) -> None:
        for name in list(self._running):
            self.stop(name)


@contextmanager
def session(directory: Path) -> Iterator[Session]:
    """Open a session; everything in it has ended when it is left."""
    opened = Session(directory)
    try:
        yield opened
    finally:
        opened.close()


def _options(block: Block) -> dict[str, str]:
    words = block.info.split()[1:]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _in(output: str, line: str) -> bool:
    return re.search(".*".join(map(re.escape, line.split("…"))), output) is not None


@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages use curl")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_works(page: Path, tmp_path: Path) -> None:
    """Whoever follows it sees what it shows."""
    output: str | None = None
    with session(tmp_path) as opened:
        for block in (each for each in blocks() if each.page == page):
            options = _options(block)
            match block.language:
                case "python" | "yaml" | "javascript":
                    opened.write(options["file"], block.text)
                case "bash" if "background" in options:
                    opened.start(options["background"], block.text)
                case "bash" if "test" in options:
                    opened.stop(options.get("stops", ""))
                    output = opened.run(block.text)
                case "text" if "shows" in options:
                    opened.shows(options["shows"], block.text.splitlines())
                case "text":
                    assert output is not None, block
                    missing = [line for line in block.text.splitlines() if not _in(output, line)]
                    assert not missing, f"{block}: {output}"
                    output = None


def test_every_block_of_the_tutorials_has_a_part() -> None:
    """No example of theirs goes unchecked but its set-up."""
    loose = [
        str(block)
        for block in blocks()
        if block.page in TUTORIALS
        and not _options(block).keys() & {"file", "background", "test", "shows"}
        and block.language != "text"
    ]
    assert len(loose) == 1, loose


def test_workers_on_the_pages_are_the_examples() -> None:
    """Whoever copies one has what the other one is."""
    pages = [ROOT / "docs" / name for name in ("workflow-http.md", "tutorial-workflows.md")]
    shown = [block.text for block in blocks() if block.page in pages and "file" in _options(block)]
    python, node = (ROOT / "examples" / name for name in ("workflow-python/app.py", "workflow-node/app.mjs"))
    assert sorted(shown) == sorted(each.read_text(encoding="utf-8") for each in (python, python, node))
