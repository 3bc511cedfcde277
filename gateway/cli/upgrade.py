"""``mesh upgrade``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gateway.cli.init import add_installation
from gateway.cli.parsing import Parser, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh upgrade", description="Change what is installed in a cluster; what is not given stays as it is."
    )
    add_installation(made)
    made.add_argument("--image-variant", help=argparse.SUPPRESS)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if not found.kubernetes:
        raise UsageError("on one machine there is one package: pip install it again; of a cluster: mesh upgrade -k")
    from gateway.cli import cluster

    return cluster.init(found) if found.output != "table" else cluster.upgrade(found)
