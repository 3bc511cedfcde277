"""Places among the calls of an application that may be made at once, and who waits for one."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

__all__ = ["WAITS"]

WAITS: ContextVar[Callable[[bool], None]] = ContextVar("waits", default=lambda _: None)
"""Told by a call of the application whether it waits for its place: that is no time of the application's."""
