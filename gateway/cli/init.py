"""``mesh init``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser, UsageError
from gateway.cli.reference import program, succeeded
from gateway.cli.terminal import note, show
from mesh.errors import ConfigError
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["add_installation", "parser", "run"]

_SWITCHES = ("--dev", "-s --slim", "--enable-mtls", "--redis-stack")
_VALUES = (
    "--network",
    "--from-dir",
    "--image-variant",
    "--container-runtime",
    "--scheduler-volume",
    "--scheduler-override-broadcast-host-port",
    "--ca-root-certificate",
    "--issuer-private-key",
    "--issuer-public-certificate",
)


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh init",
        description="Install into a cluster of Kubernetes; on one machine, say that nothing has to be installed.",
        epilog="mesh init -k                              an operator, and NATS of three servers\n"
        "mesh init -k --set backbone=URL           with the broker that is there\n"
        "mesh init -k -o yaml                      the objects, for other tools to apply\n\n"
        "Options of dapr init are accepted.",
    )
    made.add_argument("--as-dapr", metavar="DIR", help="make a link in this folder by which the program is called dapr")
    for names in _SWITCHES:
        made.add_argument(*names.split(), action="store_true", help=argparse.SUPPRESS)
    for names in _VALUES:
        made.add_argument(*names.split(), help=argparse.SUPPRESS)
    add_installation(made)
    made.add_argument("--wait", action="store_true", help="with -k: return once all of it runs")
    made.add_argument("--enable-ha", action="store_true", help="with -k: three operators in place of two")
    return made


def add_installation(made: Parser) -> None:
    """Add what says how an installation in a cluster is to be."""
    made.add_kubernetes("with -k: where it goes (mesh-system)")
    made.add_argument("--set", action="append", metavar="NAME=VALUE", help="with -k: a setting; repeatable")
    made.add_argument(
        "--dry-run", action="store_true", help="with -k: have the API server check it, and change nothing"
    )
    made.add_argument("--timeout", metavar="SECONDS", help="with -k: how long to wait (300)")
    made.add_argument("--runtime-version", metavar="TAG", help="with -k: tag of the image")
    made.add_argument("--image-registry", metavar="HOST", help="with -k: where images are loaded from")
    made.add_argument(
        "-o", "--output", choices=("table", "json", "yaml"), default="table", help="with -k: print the objects"
    )


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if found.kubernetes:
        from gateway.cli import cluster

        # It is a switch of dapr, which is on.
        off = [word for word in words if word.lstrip("-") in ("enable-mtls=false", "enable-mtls=0")]
        found.set = [*(["identities=false"] if off else []), *(found.set or ())]
        return cluster.init(found)
    if found.set or found.dry_run or found.output != "table":
        raise UsageError("--set, --dry-run and --output are for a cluster: mesh init -k", "mesh init")
    if found.as_dapr is not None:
        _link(Path(found.as_dapr).expanduser().absolute())
        return 0
    succeeded("Success! Dapr is up and running.")
    show(
        "Nothing has to be installed: the first gateway starts the backbone, the last one stops it.\n"
        f"Data is kept in {mesh_home(os.environ)}.\n"
        f"Next: {program()} run --app-id myapp -- COMMAND"
    )
    return 0


def _link(folder: Path) -> None:
    """Make ``dapr`` in a folder, a link to this program.

    Raises:
        ConfigError: Something else has the name, or this program is no file.
        OSError: The link can not be made.
    """
    ours = _program()
    link = folder / "dapr"
    if (link.exists() or link.is_symlink()) and link.resolve() != ours:
        raise ConfigError(f"{link} is there already, and is not ours; choose another folder, or remove it")
    if not link.exists():
        folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ours)
    show(f"{link} is {ours}: called so, it takes the command lines of dapr and answers with its status lines")
    first = shutil.which("dapr")
    if first is None:
        note(f"it is not found by its name: put {folder} into PATH")
    elif Path(first).resolve() != ours:
        note(f"another comes first in PATH: {first}; put {folder} before it")


def _program() -> Path:
    # Beside the Python that runs us is where pip puts it; what was called may be a module, or the link itself.
    for candidate in (Path(sys.executable).with_name("mesh"), Path(sys.argv[0])):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.resolve()
    raise ConfigError("the program mesh is not installed as a file: pip install of a clone makes it, see README.md")
