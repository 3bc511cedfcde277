"""``mesh dashboard``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser
from gateway.cli.terminal import complain, note

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh dashboard", description="Say what there is instead: the dashboard is not there yet.")
    for names in ("-p --port", "-a --address", "-n --namespace"):
        made.add_argument(*names.split(), help=argparse.SUPPRESS)
    made.add_argument("-k", "--kubernetes", action="store_true", help=argparse.SUPPRESS)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    parser().parse(words)
    complain("the dashboard is not there yet")
    note("  what runs:    mesh list\n  components:   mesh components\n  the backbone: mesh status")
    return 1
