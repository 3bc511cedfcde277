"""What was probably meant by a name that nothing has, and whether it may be ignored."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["did_you_mean", "protects"]

_PROTECTING = re.compile(
    r"access|allow|auth|cert|cred|crypt|den[iy]|key$|passw|pipeline|protect|sasl|scope|secret|secur|ssl|tls|token|verif",
    re.IGNORECASE,
)


def did_you_mean(wrong: str, known: Iterable[str], least: float = 0.65) -> str | None:
    """Find the known name that was probably meant.

    Args:
        wrong: What nothing has.
        known: What there is.
        least: How alike they have to be, from 0 to 1.
    """
    by_case = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(wrong.casefold(), by_case, n=1, cutoff=least)
    return by_case[close[0]] if close else None


def protects(name: str) -> bool:
    """Tell whether a setting that nothing knows may be what makes something safe: then it must not be ignored."""
    return _PROTECTING.search(name) is not None
