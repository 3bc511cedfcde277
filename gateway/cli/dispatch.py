"""Which command was meant; each one is imported only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

from gateway.cli.terminal import complain, note, show
from mesh.errors import ConfigError, MeshError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.cli.parsing import Parser

__all__ = ["COMMANDS", "Command", "command", "main"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("run", "run an application with its gateway, or all of a template"),
    "list": ("listing", "list what runs"),
    "stop": ("stop", "stop applications and their gateways"),
    "invoke": ("invoke", "call a method of an application"),
    "publish": ("publish", "publish an event"),
    "host": ("host", "answer for components on the mesh, without an application"),
    "check": ("check", "check resources and templates"),
    "components": ("components", "list the components of running gateways"),
    "asyncapi": ("asyncapi", "describe the live mesh as an AsyncAPI document"),
    "status": ("status", "show the backbone and its gateways"),
    "init": ("init", "say that nothing has to be installed"),
    "uninstall": ("uninstall", "remove stored data"),
    "dashboard": ("dashboard", "say what there is instead, for now"),
    "completion": ("completion", "print a completion script for bash, zsh or fish"),
    "version": ("version", "print the version"),
}
"""Every command: its module below `gateway.cli`, and what it does."""

_USAGE = "usage: mesh COMMAND [options]"


class Command(Protocol):
    """What a command's module offers."""

    def parser(self) -> Parser:
        """Describe the words that it takes."""

    def run(self, words: Sequence[str]) -> int:
        """Run it and give the exit code."""


def command(name: str) -> Command:
    """Import a command."""
    return cast("Command", importlib.import_module(f"gateway.cli.{COMMANDS[name][0]}"))


def main(words: Sequence[str]) -> int:
    """Run a command line and give its exit code: 0, 1 for a failure, 2 for a wrong command line, 130."""
    try:
        return _run(words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter's last flush must not find that out again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ConfigError as error:
        for problem in error.problems:
            complain(str(problem))
        return 1
    except (MeshError, OSError) as error:
        complain(str(error) or type(error).__name__)
        return 1
    except SystemExit as end:
        # argparse leaves so after it has printed the help.
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:  # The end of the line: people get a sentence, developers may get more.
        if os.environ.get("MESH_DEBUG"):
            raise
        complain(f"this should not happen: {type(error).__name__}: {error}")
        note("  with MESH_DEBUG=1 it says where; please report it")
        return 1


def _run(words: Sequence[str]) -> int:
    # Accepted before the command as in dapr, where they belong to the runtime that it starts.
    while words and words[0].partition("=")[0] in ("--log-as-json", "--runtime-path"):
        words = words[2:] if words[0] == "--runtime-path" else words[1:]
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help", "help"):
        show(_help() if not rest else f"see: mesh {rest[0]} --help")
        return 0
    if name in ("-v", "--version"):
        name, rest = "version", []
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.6)
        complain(f"unknown command '{name}'" + (f"; did you mean {close[0]}?" if close else ""))
        note("  see: mesh --help")
        return 2
    # Imported here, so that `mesh --help` does not wait for argparse.
    from gateway.cli.parsing import UsageError

    try:
        return command(name).run(rest)
    except UsageError as error:
        complain(str(error))
        note(f"  see: mesh {name} --help")
        return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name.ljust(width)}  {what}" for name, (_, what) in COMMANDS.items())
    return "\n".join(
        (
            _USAGE,
            "",
            "The building blocks of a distributed application, with only a message broker behind them.",
            "",
            "commands:",
            *lines,
            "",
            "mesh COMMAND --help tells the options of a command. Data and the registry of what runs are in MESH_HOME;",
            "MESH_BACKBONE=nats://... uses a server that runs already.",
        )
    )
