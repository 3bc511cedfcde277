"""``mesh tap``: what passes the mesh, as it passes."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser
from gateway.cli.sight_line import content_lines, sight_line
from gateway.cli.tapping import Event, add_filter_options, asked_of, events, size_option, tap_gateway
from gateway.cli.terminal import colours_wanted, complain, note
from mesh.tap.wire import DROPPED, REFUSED, sight_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["parser", "run", "tell_beside"]

_PROGRAM = "mesh tap"


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        _PROGRAM,
        description="Show calls, events, operations of components, turns of actors and steps of workflows as they pass,"
        "\nat all nodes of the mesh. Ctrl-C ends it.",
        epilog="mesh tap                                 everything\n"
        "mesh tap --app orders                    what orders asks, gets and does\n"
        "mesh tap --topic orders --values         events of a topic, with what they hold\n"
        "mesh tap --block invocation --where 'event.data.seconds > 0.5'\n"
        'mesh tap --where \'event.data.outcome != "ok" && event.data.outcome != "success"\'\n'
        "mesh tap -n 10 -o json                   the next ten, as CloudEvents",
    )
    add_filter_options(made)
    made.add_argument("--values", action="store_true", help="headers and bodies, too, where access rules let them")
    made.add_argument("--max-body", type=size_option, metavar="SIZE", help="so much of each body (64Ki)")
    made.add_argument("-n", "--count", type=int, metavar="COUNT", help="end after so many")
    made.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how it is written")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command; its exit code is 0 when it has shown what was asked for, or is ended by Ctrl-C."""
    found = parser().parse(words)
    if found.count is not None and found.count < 1:
        parser().error("--count is at least 1")
    gateway = tap_gateway(found, os.environ)
    asked = asked_of(found)
    if found.values:
        asked["values"] = "true"
    if found.max_body is not None:
        asked["maxBody"] = found.max_body
    try:
        for told in events(gateway, asked, _PROGRAM):
            if _show(told, found):
                return 0
    except KeyboardInterrupt:
        return 0
    complain(f"the gateway of {gateway.app_id} has ended; another one goes on: {_PROGRAM}")
    return 1


def _show(told: Sequence[tuple[bytes, Event]], found: argparse.Namespace) -> bool:
    """Write what came; tells whether that was all that is wanted."""
    out = sys.stdout
    colours = colours_wanted(os.environ, terminal=out.isatty())
    for line, event in told:
        sight = sight_of(event)
        if found.output == "json":
            out.write(line.decode() + "\n")
        elif sight is None:
            tell_beside(event)
        else:
            out.write(sight_line(sight, colours=colours) + "\n")
            out.writelines(f"{each}\n" for each in (content_lines(sight) if found.values else ()))
        if sight is not None and found.count is not None:
            found.count -= 1
            if not found.count:
                break
    out.flush()
    return bool(found.count == 0)


def tell_beside(event: Event) -> None:
    """Say what is not told, and why."""
    data = event["data"]
    if event["type"] == DROPPED:
        note(f"{data['count']} more were left out at {data['app']}: they come faster than they are taken")
    elif event["type"] == REFUSED:
        note(f"{data['app']} tells less than was asked for: {data['reason']}")
