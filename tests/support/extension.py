"""The example of a component type of one's own, installed as its users would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT

__all__ = ["install"]


def install(directory: Path) -> Path:
    """Build it and install it into a folder below a directory, without a network; gives the folder."""
    source, target = directory / "source", directory / "installed"
    shutil.copytree(ROOT / "examples" / "component", source)
    how = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *how, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target
