"""Which command was meant; each one is imported only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

from gateway.cli.reference import ALIASES, INSTEAD, as_dapr, as_typed, check_style, program
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
    "tap": ("tap", "show what passes the mesh, as it passes"),
    "record": ("record", "write what passes the mesh into a file"),
    "replay": ("replay", "send what was recorded again, and compare the answers"),
    "host": ("host", "answer for components on the mesh, without an application"),
    "bridge": ("bridge", "join the meshes of two clusters"),
    "dashboard": ("dashboard", "show the mesh in a browser"),
    "logs": ("logs", "show what applications and gateways write, together"),
    "actors": ("actors", "list who hosts actors, show one, or deactivate one"),
    "check": ("check", "check resources and templates"),
    "doctor": ("doctor", "compare resources with what is on their brokers and stores"),
    "dlq": ("dlq", "look at dead letters, send them back, or delete them"),
    "components": ("components", "list the components of running gateways"),
    "component": ("component", "list the types of components, and write a file of one"),
    "jobs": ("jobs", "list, show, delete or run the jobs of an application"),
    "workflow": ("workflow", "list, show, start, steer and purge the workflows of an application"),
    "trust": ("trust", "make a root, and certificates that prove who an application is"),
    "service": ("service", "have systemd run gateways, or applications with theirs"),
    "asyncapi": ("asyncapi", "describe the live mesh as an AsyncAPI document"),
    "broker": ("broker", "print the rights that a gateway needs on the broker"),
    "status": ("status", "show the backbone and its gateways"),
    "configurations": ("configurations", "list the Configurations of a cluster"),
    "annotate": ("annotate", "write annotations that ask for a gateway into manifests"),
    "mtls": ("mtls", "show, export or renew whom the gateways of a cluster trust"),
    "upgrade": ("upgrade", "change what is installed in a cluster"),
    "operator": ("operator", "supply gateways of a cluster, and add them to pods"),
    "init": ("init", "say that nothing has to be installed, or make a link that is called dapr"),
    "uninstall": ("uninstall", "remove stored data"),
    "completion": ("completion", "print a completion script for bash, zsh or fish"),
    "version": ("version", "print the version"),
}
"""Every command: its module below `gateway.cli`, and what it does."""

# What other programs call it.
_MEANT: Mapping[str, str] = {
    **dict.fromkeys(("start", "up"), "run, or init"),
    **dict.fromkeys(("ps", "ls"), "list"),
    **dict.fromkeys(("down", "kill", "shutdown"), "stop"),
    **dict.fromkeys(("install", "setup"), "init"),
    **dict.fromkeys(("call", "send"), "invoke, or publish"),
}
_EVERYWHERE = ("log-as-json", "runtime-path", "dapr-path")
_WRONG = {False: 2, True: 255}
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
    """Run a command line and give its exit code: 0, 1 for a failure, 2 for a wrong command line, 130.

    As dapr, 255 for a wrong command line.
    """
    try:
        check_style()
        return _WRONG[as_dapr()] if (code := _run(words)) is None else code
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


def _run(words: Sequence[str]) -> int | None:
    """Give the exit code; None for a command line that is wrong."""
    everywhere, words = _taken_everywhere(words)
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "-help", "--help", "help"):
        if not rest:
            show(as_typed(_help()))
            return 0
        name, rest = rest[0], ["--help"]
    if name in ("-v", "-version", "--version"):
        name, rest = "version", []
    name = ALIASES.get(name, name)
    if name == "gateway":
        from gateway.cli.serve import main as serve

        return serve([*everywhere, *rest])
    if name in INSTEAD:
        complain(f"{name}: {INSTEAD[name]}")
        return None
    if name not in COMMANDS:
        import difflib

        close = _MEANT.get(name) or "".join(difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.6))
        complain(f"unknown command '{name}'" + (f"; did you mean {close}?" if close else ""))
        note(f"  see: {program()} --help")
        return None
    # Imported here, so that `mesh --help` does not wait for argparse.
    from gateway.cli.parsing import UsageError

    try:
        return command(name).run([*everywhere, *rest])
    except UsageError as error:
        complain(str(error))
        note(f"  see: {program()} {name} --help")
        return None


def _taken_everywhere(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide off the options that dapr takes before the command as well as behind it."""
    at = 0
    while at < len(words):
        name, equals, _ = words[at].partition("=")
        if not name.startswith("-") or name.lstrip("-") not in _EVERYWHERE:
            break
        at += 1 if equals or name.lstrip("-") == "log-as-json" else 2
    return list(words[:at]), list(words[at:])


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
