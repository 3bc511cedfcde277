"""``mesh version``."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser
from gateway.cli.reference import as_dapr
from gateway.cli.terminal import show

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run", "version"]


def version() -> str:
    """Give the version of the installed distribution."""
    try:
        return installed("brokermesh")
    except PackageNotFoundError:
        return "unknown"


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh version", description="Print the version.")
    made.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how it is written")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    output = parser().parse(words).output
    number = version()
    if output == "json":
        # Scripts that read the versions of dapr find both of its members.
        show(json.dumps({"Cli version": number, "Runtime version": number}))
    elif as_dapr():
        show(f"CLI version: {number} \nRuntime version: {number}")
    else:
        show(f"brokermesh {number}")
    return 0
