"""``mesh annotate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.cli.cluster import read_file
from gateway.cli.parsing import Parser
from gateway.cli.platform import load_platform
from gateway.cli.terminal import show

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]

_SHORT = {"--app-id": "-a", "--app-port": "-p", "--config": "-c"}
_SET = {"--enabled"}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh annotate",
        description="Write annotations that ask for a gateway into manifests of workloads; no cluster is asked.",
        epilog="mesh annotate -k -a orders -p 3000 deployment.yaml | kubectl apply -f -\n\n"
        "Each annotation has an option of its name: docs/kubernetes.md lists them.",
    )
    made.add_argument("file", metavar="FILE", help="YAML; - reads it here")
    made.add_kubernetes("of this namespace alone")
    made.add_argument("-r", "--resource", metavar="NAME", help="this workload alone")
    from argparse import SUPPRESS

    for option in load_platform().annotations():
        if option not in _SET:
            shown = option in _SHORT
            names = (_SHORT[option], option) if shown else (option,)
            made.add_argument(*names, metavar="VALUE", help=f"annotation {option[2:]}" if shown else SUPPRESS)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found, platform = vars(parser().parse(words)), load_platform()
    given = {
        name: found[key]
        for option, name in platform.annotations().items()
        if (key := option[2:].replace("-", "_")) in found and found[key] is not None
    }
    show(platform.annotated(read_file(found["file"]), given, found["resource"], found["namespace"]).rstrip())
    return 0
