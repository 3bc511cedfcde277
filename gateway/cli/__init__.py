"""The command ``mesh``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code.

    Args:
        arguments: Without the program's name; None = those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A gateway process lives long and has a memory budget: it imports nothing of the command line.
    if words[:1] == ["gateway"]:
        from gateway.cli.serve import main as serve

        return serve(words[1:])
    from gateway.cli.dispatch import main as dispatch

    return dispatch(words)
