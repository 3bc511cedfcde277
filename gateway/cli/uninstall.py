"""``mesh uninstall``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from typing import TYPE_CHECKING

from gateway.cli.backbone import embedded_status
from gateway.cli.parsing import Parser
from gateway.cli.reference import as_dapr, program, succeeded
from gateway.cli.terminal import complain, note, show
from gateway.runs import list_runs
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]

# What brokermesh makes there; nothing else is touched, whatever MESH_HOME names.
_OURS = ("backbone", "run", "state", "subscriptions")


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh uninstall", description="Remove stored data of the embedded backbone, or what is installed in a cluster."
    )
    made.add_argument("--all", action="store_true", help="remove the data; without it nothing is removed")
    made.add_argument("-y", "--yes", action="store_true", help="do not ask")
    made.add_argument("--dev", action="store_true", help=argparse.SUPPRESS)
    made.add_kubernetes("with -k: where it is installed (mesh-system)")
    for names in ("--timeout", "--network", "--container-runtime"):
        made.add_argument(*names.split(), help=argparse.SUPPRESS)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if found.kubernetes:
        from gateway.cli import cluster

        return cluster.uninstall(found)
    home = mesh_home(os.environ)
    if not found.all:
        name = program()
        show(f"Nothing was removed. The data in {home}: {name} uninstall --all.\nThe program: pip uninstall brokermesh")
        return 0
    runs = list_runs(home)
    if runs:
        names = " ".join(sorted({each.app_id for each in runs}))
        complain(f"applications are running; stop them first: mesh stop {names}")
        return 1
    if embedded_status(home) is not None:
        complain("the backbone is still running; it stops soon after its last gateway")
        return 1
    ours = [home / name for name in _OURS if (home / name).exists()]
    if not ours:
        show(f"There is no data in {home}.")
        return 0
    # dapr does not ask.
    if not found.yes and not as_dapr() and not _confirmed(f"Remove all state and events in {home}?"):
        note("nothing was removed")
        return 1
    for directory in ours:
        shutil.rmtree(directory)
    if not any(home.iterdir()):
        home.rmdir()
    if not succeeded("Dapr has been removed successfully"):
        show(f"Removed the data in {home}.")
    return 0


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        complain("there is nobody to ask; --yes removes without asking")
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
