"""``mesh init``."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import show
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]

_SWITCHES = ("--dev", "--wait", "-s --slim", "--enable-mtls", "--enable-ha", "--redis-stack")
_VALUES = (
    "--timeout",
    "--runtime-version",
    "-n --namespace",
    "--network",
    "--from-dir",
    "--image-variant",
    "--image-registry",
    "--container-runtime",
    "--scheduler-volume",
    "--scheduler-override-broadcast-host-port",
    "--set",
)


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh init", description="Say that nothing has to be installed; options of dapr init are accepted.")
    for names in _SWITCHES:
        made.add_argument(*names.split(), action="store_true", help=argparse.SUPPRESS)
    for names in _VALUES:
        made.add_argument(*names.split(), help=argparse.SUPPRESS)
    made.add_argument("-k", "--kubernetes", action="store_true", help="not supported")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    if parser().parse(words).kubernetes:
        raise UsageError("Kubernetes is not supported; run the gateway as a container beside the application")
    show(
        "Nothing has to be installed: the first gateway starts the backbone, the last one stops it.\n"
        f"Data is kept in {mesh_home(os.environ)}.\n"
        "Next: mesh run --app-id myapp -- COMMAND"
    )
    return 0
