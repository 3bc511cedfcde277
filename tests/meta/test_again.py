"""What of a whole run is tried again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.again import main, verdict
from tests.support.processes import ROOT

CONFTEST = """
from pathlib import Path
from tests.support.again import Failed

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failed(Path({path!r})))
"""
TESTS = """
import os
from pathlib import Path

import pytest

@pytest.mark.parametrize("tried", range(4))
def test_fails_first(tried):
    seen = Path(__file__).with_name(f"seen-{tried}")
    known = seen.exists()
    seen.touch()
    assert known

def test_passes():
    pass

def test_dies():
    os._exit(1)
"""


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (["tests/e2e/test_a.py::test_b"], None),
        (["tests/e2e/test_a.py::test_b", "tests/contract/test_a.py::test_b", "tests/http/test_a.py::test_c"], None),
        ([], "the run itself failed"),
        ([f"tests/e2e/test_a.py::test_{number}" for number in range(4)], "4 tests failed, more than 3"),
        (
            ["tests/e2e/test_a.py::test_b", "tests/faults/test_a.py::test_b"],
            "tests/faults/test_a.py::test_b is none that others can starve",
        ),
    ],
)
def test_what_is_tried_again(failed: list[str], reason: str | None) -> None:
    assert verdict(failed) == reason


@pytest.mark.costly
@pytest.mark.parametrize(
    ("chosen", "code", "says"),
    [
        ("test_passes or (fails_first and 1)", 0, "FLAKY"),
        ("test_passes or fails_first", 1, "4 tests failed, more than 3"),
        ("test_passes or test_dies", 1, "the run itself failed"),
    ],
    ids=["one", "many", "a process that dies"],
)
def test_a_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    chosen: str,
    code: int,
    says: str,
) -> None:
    path = tmp_path.with_name(f"{tmp_path.name}-failed")
    (tmp_path / "conftest.py").write_text(CONFTEST.format(path=str(path)))
    (tmp_path / "test_these.py").write_text(TESTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = (sys.executable, "-m", "pytest", "-n", "1", "--max-worker-restart", "0", "-k", chosen)
    assert subprocess.run(command, check=False).returncode != 0
    assert main(path) == code
    assert says in capfd.readouterr().out
