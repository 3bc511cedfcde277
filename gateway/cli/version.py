"""The version of this installation."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

__all__ = ["version"]


def version() -> str:
    """Give the version of the installed distribution."""
    try:
        return installed("brokermesh")
    except PackageNotFoundError:
        return "unknown"
