"""What was probably meant by a name that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(wrong: str, known: Iterable[str]) -> str | None:
    """Find the known name that was probably meant."""
    by_case = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(wrong.casefold(), by_case, n=1, cutoff=0.65)
    return by_case[close[0]] if close else None
