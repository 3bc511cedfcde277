"""The fixtures of the fault tests, a MESH_HOME in which nothing is left running and a server; and one for commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import mesh_home, nats_server
from tests.support.gateways import MeshHome

__all__ = ["home", "mesh_home", "nats_server"]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[MeshHome]:
    """Give one to run commands with; when it is left, nothing that they started runs."""
    made = MeshHome(tmp_path / "home")
    yield made
    made.until_nothing_runs()
