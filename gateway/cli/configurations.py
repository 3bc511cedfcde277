"""``mesh configurations``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import add_output_option

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh configurations", description="List the Configurations of a cluster of Kubernetes.")
    made.add_argument("-n", "--name", metavar="NAME", help="only of this name")
    made.add_kubernetes("only of this namespace", "--namespace")
    add_output_option(made)
    made.add_argument("-A", "--all-namespaces", action="store_true", help="all, as without it")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if not found.kubernetes:
        raise UsageError(
            "a Configuration is a file here: mesh check FILE reads it; of a cluster: mesh configurations -k"
        )
    from gateway.cli import cluster

    return cluster.configurations(found)
