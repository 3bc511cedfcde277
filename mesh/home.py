"""Where brokermesh keeps its files on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["mesh_home"]


def mesh_home(environ: Mapping[str, str]) -> Path:
    """Return where brokermesh keeps its files: MESH_HOME, or a directory among the user's data."""
    if home := environ.get("MESH_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "brokermesh"
    data = Path(environ.get("XDG_DATA_HOME", ""))
    # A relative XDG_DATA_HOME is to be ignored (XDG Base Directory Specification).
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "brokermesh"
