"""What the fault tests share: a MESH_HOME in which nothing is left running, and the report of figures."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.eventually import eventually_sync
from tests.support.mesh import running_below
from tests.support.nats import NatsServer, find_nats_server

_FIGURES: dict[str, Mapping[str, object]] = {}


class Figures:
    """Notes what a test measured, for the summary and for the file that MESH_FAULT_REPORT names."""

    def __init__(self, test: str) -> None:
        self._test = test

    def note(self, **values: object) -> None:
        _FIGURES[self._test] = {**_FIGURES.get(self._test, {}), **values}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than 15 s, most of it waiting")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _FIGURES:
        return
    terminalreporter.section("figures")
    for test, values in _FIGURES.items():
        terminalreporter.write_line(f"{test}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    path = os.environ.get("MESH_FAULT_REPORT")
    if path:
        Path(path).write_text(json.dumps(_FIGURES, indent=2) + "\n")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    return Figures(request.node.name)


@pytest.fixture
def mesh_home(tmp_path: Path) -> Iterator[Path]:
    """An own MESH_HOME; when the test is over nothing runs there any more."""
    directory = tmp_path / "home"
    directory.mkdir()

    def check() -> None:
        assert running_below(directory) == []

    yield directory
    try:
        eventually_sync(check, 15.0)
    finally:
        for line in running_below(directory):
            with suppress(ProcessLookupError):
                os.kill(int(line.partition(":")[0]), signal.SIGKILL)


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """An external nats-server."""
    if find_nats_server() is None:
        if os.environ.get("CI"):
            pytest.fail("nats-server is not installed")
        pytest.skip("nats-server is not installed")
    async with NatsServer(tmp_path / "nats") as server:
        yield server
