"""`make` says what is missing before it makes anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("unfinished", [False, True], ids=["nothing", "an unfinished .venv"])
def test_an_old_python_is_refused_first(tmp_path: Path, *, unfinished: bool) -> None:
    """Also where a `.venv` is there that can not install."""
    venv = tmp_path / "venv"
    if unfinished:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to("/nowhere/python")
    words = ["make", "demo", "PYTHON=false", f"VENV={venv}"]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode
    assert "error: false is not there, or older than 3.11; name another one: make demo PYTHON=python3" in made.stdout
    assert venv.exists() == unfinished
    assert "installing" not in made.stdout
