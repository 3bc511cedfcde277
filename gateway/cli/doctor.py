"""``mesh doctor``: what is on brokers and stores, beside what resources ask for."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from gateway.cli.opening import Looked, add_options
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import Progress, colours_wanted, show, table
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.cli.examination import Check

__all__ = ["parser", "run"]

WITHIN = 15.0
_COLOURS = {"ok": 32, "note": 33, "problem": 31}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh doctor",
        description="Compare resources with what is on their brokers and stores; say what is wrong, and what to do.",
        epilog="mesh doctor -d resources -a shop            a table; the exit code is 1 when something is wrong\n"
        "mesh doctor -d resources --max-lag 1000     also when a group has more than that before it\n"
        "mesh doctor -d resources -o json            for scripts",
    )
    add_options(made)
    made.add_argument(
        "--timeout", type=float, default=WITHIN, metavar="SECONDS", help=f"that each component may take ({WITHIN:g})"
    )
    made.add_argument("--max-lag", type=int, metavar="N", help="most messages that a group may have before it")
    made.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how it is written")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if not 0 < found.timeout <= 3600:
        raise UsageError("--timeout is from 0 to 3600 seconds", "mesh doctor")
    if found.max_lag is not None and found.max_lag < 0:
        raise UsageError("--max-lag is 0 or more", "mesh doctor")
    from gateway.cli.examination import Check, examine  # Here, so that completion and help are quick.

    try:
        looked = Looked.read(found)
    except ConfigError as error:
        if found.output != "json":
            raise
        step = "correct it; mesh check says whether more is wrong"
        _show_json([Check("", "resources", each.file or "", "problem", str(each), step) for each in error.problems])
        return 1
    with Progress(wanted=found.output == "table") as tell:

        def done(count: int, of: int) -> None:
            tell(f"looked at {count} of {of}")

        checks = asyncio.run(examine(looked, found.timeout, found.max_lag, done))
    if found.output == "json":
        _show_json(checks)
    else:
        _show(checks)
    return int(any(each.status == "problem" for each in checks))


def _show_json(checks: Sequence[Check]) -> None:
    problems = sum(each.status == "problem" for each in checks)
    show(json.dumps({"problems": problems, "checks": [asdict(each) for each in checks]}, indent=2))


def _show(checks: Sequence[Check]) -> None:
    problems = [each for each in checks if each.status == "problem"]
    rows = [("STATUS", "COMPONENT", "WHAT", "NAME", "FOUND")]
    rows += [(each.status, each.component, each.what, each.name, each.told) for each in checks]
    heading, *lines = table(rows).splitlines()
    show(heading)
    coloured = colours_wanted(os.environ, terminal=sys.stdout.isatty())
    for each, line in zip(checks, lines, strict=True):
        rest = line.removeprefix(each.status)
        show(f"\x1b[{_COLOURS[each.status]}m{each.status}\x1b[0m{rest}" if coloured else line)
    for each in problems:
        show(table([(f"next, {each.component} {each.what} {each.name}:", each.next)]))
    show(f"{len(problems)} problem{'' if len(problems) == 1 else 's'}" if problems else "nothing is wrong")
