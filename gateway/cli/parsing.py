"""Reading words into options: argparse with our messages, and a command that may stand among the options."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gateway.cli.options import FLAGS, IGNORED, Flag, GatewayOptions
from mesh.values import parse_bool

__all__ = ["Parser", "UsageError", "add_gateway_flags", "gateway_options", "ignored_warnings", "split_command"]

# After the command's first word only these are read as ours: no other program has them.
_UNMISTAKABLE = ("--app-", "--dapr-", "--resources-path", "--components-path", "--enable-api-logging")


class UsageError(Exception):
    """The command line is wrong; the exit code is 2."""

    def __init__(self, message: str, command: str = "mesh") -> None:
        self.command = command
        super().__init__(message)


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` and never exits; takes ``--switch=true`` as Go does."""

    def __init__(self, prog: str, **kwargs: object) -> None:
        super().__init__(
            prog=prog,
            allow_abbrev=False,
            formatter_class=_formatter,
            **kwargs,  # type: ignore[arg-type]  # Passed on as it came.
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process."""
        raise UsageError(message, self.prog)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Read all words.

        Raises:
            UsageError: A word is unknown, or a value is missing or wrong.
        """
        found, unknown = self.parse_known_args(self._plain(words))
        if unknown:
            raise UsageError(self._unknown(unknown[0]), self.prog)
        return found

    def _plain(self, words: Sequence[str]) -> list[str]:
        """Rewrite ``--switch=true``, which argparse does not know."""
        switches = {name for action in self._actions if action.nargs == 0 for name in action.option_strings}
        plain: list[str] = []
        for index, word in enumerate(words):
            name, equals, value = word.partition("=")
            if word == "--":
                return plain + list(words[index:])
            if not equals or name not in switches:
                plain.append(word)
                continue
            try:
                plain += [name] if parse_bool(value) else []
            except ValueError as error:
                raise UsageError(f"{name}: {error}", self.prog) from None
        return plain

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected '{word}'"
        known = [name for action in self._actions if action.help != argparse.SUPPRESS for name in action.option_strings]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        return f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else "")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=36, width=100)


def add_gateway_flags(parser: argparse.ArgumentParser) -> None:
    """Add every option of a gateway, and those of daprd that have no effect."""
    sections: dict[str, argparse._ArgumentGroup] = {"options": parser._optionals}
    for flag in FLAGS:
        if flag.section not in sections:
            sections[flag.section] = parser.add_argument_group(flag.section)
        _add(sections[flag.section], flag)
    for flag in {id(flag): flag for flag, _ in IGNORED.values()}.values():
        _add(parser, flag)


def _add(target: argparse._ActionsContainer, flag: Flag) -> None:
    long, *others = flag.names
    help_text = flag.help.replace("%", "%%") or argparse.SUPPRESS
    # Only the short name is shown beside the long one; old names work, and are not advertised.
    shown = [long, *(name for name in others if not name.startswith("--"))]
    hidden = [name for name in others if name.startswith("--")]
    destination = flag.to_field or f"ignored {long}"
    for names, text in ((shown, help_text), (hidden, argparse.SUPPRESS)):
        if not names:
            continue
        if flag.kind == "switch":
            target.add_argument(*names, dest=destination, action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        target.add_argument(
            *names,
            dest=destination,
            action="append" if flag.kind == "list" else "store",
            type=int if flag.kind == "number" else str,
            metavar=flag.metavar,
            default=argparse.SUPPRESS,
            help=text,
        )


def gateway_options(found: argparse.Namespace) -> GatewayOptions:
    """Take the options of a gateway from what was parsed."""
    given = vars(found)
    values = {flag.to_field: given[flag.to_field] for flag in FLAGS if flag.to_field in given}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return GatewayOptions(**plain)  # type: ignore[arg-type]  # argparse made them by the flags of these fields.


def ignored_warnings(found: argparse.Namespace) -> list[str]:
    """Say which of the given options have no effect, and why."""
    given = (name.removeprefix("ignored ") for name in vars(found) if name.startswith("ignored "))
    return [f"{name} has no effect: {IGNORED[name][1]}" for name in given]


@dataclass(frozen=True, slots=True)
class _Reach:
    """How far an option reaches: 1 word, or 2 with its value."""

    kinds: Mapping[str, str]

    def words(self, word: str) -> int:
        """Count the words of the option that begins here; 0 = it is none of ours."""
        name, equals, _ = word.partition("=")
        kind = self.kinds.get(name)
        if kind is None and word[:1] == "-" and word[1:2] not in ("-", ""):
            # A short option with its value in the same word: -p3000.
            kind, equals = self.kinds.get(word[:2]), "="
        if kind is None:
            return 0
        return 1 if equals or kind == "switch" else 2


def split_command(words: Sequence[str], own: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Divide the words of ``mesh run`` into its own options and the command of the application.

    All that follows ``--`` is the command. Without it, the command begins at the first word that is no
    option, and has everything from there on; only if an option that no other program has (``--app-...``,
    ``--dapr-...``, ``--resources-path``) follows, all from there on is read as ours, as dapr does. A value
    that the command needs to see although it looks like ours is protected by ``--``.

    Args:
        words: What follows ``mesh run``.
        own: Further options by name: their kind (see `Flag`).

    Raises:
        UsageError: Our options follow the command, and something else follows them.
    """
    kinds = {name: flag.kind for flag in FLAGS for name in flag.names}
    reach = _Reach({**kinds, **{name: flag.kind for name, (flag, _) in IGNORED.items()}, **own})
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
        # An unknown option is left to the parser, which refuses it.
        at += reach.words(words[at]) or 1
    if words[at : at + 1] == ["--"]:
        return list(words[:at]), list(words[at + 1 :])
    # A later '--' belongs to the command: npm has one of its own.
    end = list(words).index("--", at) if "--" in words[at:] else len(words)
    tail = next((i for i in range(at, end) if words[i].startswith(_UNMISTAKABLE)), len(words))
    if tail == len(words):
        return list(words[:at]), list(words[at:])
    if not _only_options(words[tail:], reach):
        message = (
            f"'{words[tail]}' stands after the command, and is followed by words that are not options of mesh;"
            " put options first, then '--', then the command"
        )
        raise UsageError(message, "mesh run")
    return [*words[:at], *words[tail:]], list(words[at:tail])


def _only_options(words: Sequence[str], reach: _Reach) -> bool:
    """Tell whether all words are options of ours with their values."""
    at = 0
    while at < len(words):
        length = reach.words(words[at])
        if not length or at + length > len(words):
            return False
        at += length
    return True
