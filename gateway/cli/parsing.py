"""Reading words into options: argparse with our messages, single dashes, and a command among the options."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from gateway.cli.options import DEPRECATED, FLAGS, IGNORED, NOT_OF_RUN, OLD_SIZES, Flag, GatewayOptions
from gateway.cli.reference import as_typed
from gateway.cli.terminal import note
from mesh.values import parse_bool, parse_whole

__all__ = [
    "Parser",
    "Split",
    "UsageError",
    "add_gateway_flags",
    "gateway_options",
    "split_command",
    "warnings_about",
]

# No other program has these, so nobody has to be told that they are read as ours.
_UNMISTAKABLE = ("--app-", "--dapr-", "--resources-path", "--components-path", "--enable-api-logging")
_NO_KUBERNETES = "this command does nothing with a cluster of Kubernetes; those with -k are on docs/kubernetes.md"
_NEAR = 0.85
_BOOLEANS = ("true", "false")
# Switches that mean something when they are off.
_ON = frozenset(name for flag in FLAGS if flag.kind == "switch" and flag.on is not False for name in flag.names)


class UsageError(Exception):
    """The command line is wrong."""

    def __init__(self, message: str, command: str = "mesh") -> None:
        self.command = command
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class _Names:
    """Options by each of their names: how words are read as them.

    Attributes:
        kinds: See `Flag`; all but ``switch`` have a value.
        choices: What the value may be, where that is a short list.
    """

    kinds: Mapping[str, str]
    choices: Mapping[str, Sequence[str]]

    def named(self, word: str, *, single: bool = True) -> tuple[str, str | None] | None:
        """Give the option that a word names, and its value behind ``=``; None = it is none of these.

        Args:
            word: Such as ``--app-port=3000``.
            single: Whether one dash may stand for two, as for daprd.
        """
        name, equals, value = word.partition("=")
        for known in (name, f"-{name}") if single else (name,):
            if known in self.kinds and word.startswith("-"):
                return known, value if equals else None
        return None

    def read(self, word: str) -> list[tuple[str, str | None]]:
        """Give all options of a word, for it may hold several switches (``-kA``), or a value (``-p3000``).

        A value that begins with a letter stands apart: ``-app-prot`` is a misspelt option and no app id.
        """
        if found := self.named(word):
            return [found]
        short, rest = word[:2], word[2:]
        letters = [f"-{letter}" for letter in word[1:]]
        if all(self.kinds.get(letter) == "switch" for letter in letters):
            return [(letter, None) for letter in letters]
        kind = self.kinds.get(short, "switch")
        pattern = r"-?\d+" if kind == "number" else r"[^A-Za-z].*"
        if kind != "switch" and (re.fullmatch(pattern, rest, re.DOTALL) or rest in self.choices.get(short, ())):
            return [(short, rest)]
        return []


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` and never exits; reads words as Go's programs do, and single dashes as daprd does.

    Attributes:
        for_clusters: Whether the command does something with ``-k``.
    """

    def __init__(self, prog: str, **texts: str) -> None:
        self.for_clusters = False
        super().__init__(
            prog=as_typed(prog),
            allow_abbrev=False,
            conflict_handler="resolve",
            formatter_class=_formatter,
            **{name: as_typed(text) for name, text in texts.items()},  # type: ignore[arg-type]  # Usage, epilog…
        )
        # dapr takes these with every command.
        self.add_argument("--log-as-json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        _add(self, IGNORED["--runtime-path"][0])

    def add_kubernetes(self, namespace: str = "", *names: str) -> None:
        """Take ``-k``, and the name of a namespace.

        Args:
            namespace: What it is, if it is not known already.
            names: Of the option for it.
        """
        self.for_clusters = True
        self.add_argument(
            "-k", "--kubernetes", action="store_true", help="of a cluster of Kubernetes: docs/kubernetes.md"
        )
        if namespace:
            self.add_argument(*(names or ("-n", "--namespace")), metavar="NAME", help=namespace)

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process."""
        raise UsageError(message, self.prog)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Read all words; old names are said.

        Raises:
            UsageError: A word is unknown, or a value is missing or wrong.
        """
        plain, used = self._plain(words)
        # Where all words have a place of their own, options may stand between them.
        placed = all(each.nargs in (None, "?", "*") for each in self._get_positional_actions())
        found, unknown = (self.parse_known_intermixed_args if placed else self.parse_known_args)(plain)
        if unknown:
            hint = "; a switch has its value behind '=', such as --app-ssl=false" if unknown[0] in _BOOLEANS else ""
            raise UsageError(f"unexpected '{unknown[0]}'{hint}", self.prog)
        if getattr(found, "kubernetes", False) and not self.for_clusters:
            raise UsageError(_NO_KUBERNETES, self.prog)
        for name in dict.fromkeys(used):
            # A command may have an option of its own that is called so.
            if name in DEPRECATED and re.split(r"[ ,]", DEPRECATED[name])[0] in self._option_string_actions:
                note(f"warning: {name} is an old name; use {DEPRECATED[name]}")
        return found

    def _plain(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Rewrite words so that argparse understands them; give the names of the options as well."""
        names = self._names()
        plain: list[str] = []
        used: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--":
                return [*plain, word, *rest], used
            if word == "-" or not word.startswith("-"):
                plain.append(word)
                continue
            options = names.read(word)
            if not options:
                raise UsageError(self._unknown(word), self.prog)
            for name, value in options:
                used.append(name)
                if names.kinds[name] == "switch":
                    plain += [name] if self._switched(name, value) else [f"--no-{name[2:]}"] * (name in _ON)
                    continue
                given = next(rest, None) if value is None else value
                if given is None or (value is None and (given == "--" or names.named(given))):
                    self.error(f"{name} needs a value")
                # As one word: a value may begin with a dash.
                plain.append(f"{name}={given}")
        return plain, used

    def _switched(self, name: str, value: str | None) -> bool:
        try:
            return value is None or parse_bool(value)
        except ValueError as error:
            raise UsageError(f"{name}: {error}", self.prog) from None

    def _names(self) -> _Names:
        kinds: dict[str, str] = {}
        choices: dict[str, Sequence[str]] = {}
        for action in self._actions:
            kind = "switch" if action.nargs == 0 else "number" if action.type is int else "text"
            kinds |= dict.fromkeys(action.option_strings, kind)
            choices |= {name: tuple(action.choices or ()) for name in action.option_strings}
        return _Names(kinds, choices)

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        known = [name for action in self._actions if action.help != argparse.SUPPRESS for name in action.option_strings]
        close = difflib.get_close_matches(f"--{name.lstrip('-')}", known, n=1, cutoff=0.7)
        if not close and word[:2] in known and word[2:].isalnum():
            return f"unknown option {name}; a value of {word[:2]} stands apart: {word[:2]} {word[2:]}"
        return f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else "")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=36, width=100)


def add_gateway_flags(parser: argparse.ArgumentParser) -> None:
    """Add every option of a gateway, its old names, and those of daprd that have no effect."""
    sections: dict[str, argparse._ArgumentGroup] = {"options": parser._optionals}
    for flag in FLAGS:
        if flag.section not in sections:
            sections[flag.section] = parser.add_argument_group(flag.section)
        _add(sections[flag.section], flag)
    for name, (to_field, unit) in OLD_SIZES.items():
        parser.add_argument(
            name, dest=to_field, type=_with_unit(unit), default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
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
            if flag.on is not False:
                off, hidden_text = f"--no-{long[2:]}", argparse.SUPPRESS
                target.add_argument(off, dest=destination, action="store_false", default=hidden_text, help=hidden_text)
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


def _with_unit(unit: str) -> Callable[[str], str | None]:
    """Make a reader of the whole numbers that an old name of a size takes; -1 is the default, as for daprd."""

    def read(text: str) -> str | None:
        try:
            return None if text == "-1" else f"{parse_whole(text, least=1)}{unit}"
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def gateway_options(found: argparse.Namespace) -> GatewayOptions:
    """Take the options of a gateway from what was parsed."""
    given = vars(found)
    values = {flag.to_field: given[flag.to_field] for flag in FLAGS if flag.to_field in given}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return GatewayOptions(**plain)  # type: ignore[arg-type]  # argparse made them by the flags of these fields.


def warnings_about(found: argparse.Namespace) -> list[str]:
    """Say which of the given options do not what their names say, and why."""
    given = (name.removeprefix("ignored ") for name in vars(found) if name.startswith("ignored "))
    return [f"{name} has no effect: {IGNORED[name][1]}" for name in given]


class Split(NamedTuple):
    """The words of ``mesh run``, divided.

    Attributes:
        own: Its options.
        command: The application's.
        late: Options that stand in the command and were read as ours, although other programs may have them.
    """

    own: list[str]
    command: list[str]
    late: list[str]


def split_command(words: Sequence[str], own: Mapping[str, str]) -> Split:
    """Divide the words of ``mesh run`` into its own options and the command of the application.

    As for dapr, an option that it knows is its own wherever it stands before ``--``, and what follows ``--`` is the
    command's. An option that it does not know is the command's once that has begun, where dapr refuses it.

    Args:
        words: What follows ``mesh run``.
        own: Further options by name: their kind (see `Flag`).
    """
    flags = {name: flag.kind for flag in FLAGS for name in flag.names}
    ignored = {name: flag.kind for name, (flag, _) in IGNORED.items()}
    names = _Names({**flags, **ignored, **dict.fromkeys(OLD_SIZES, "number"), **own}, {})
    found = Split([], [], [])
    rest = iter(words)
    for word in rest:
        if word == "--":
            found.command.extend(rest)
        elif word == "-" or not word.startswith("-"):
            found.command.append(word)
        else:
            # Programs in Go and Java have options with one dash: in a command those are not ours.
            option = names.named(word, single=not found.command)
            if found.command and (option is None or option[0] in NOT_OF_RUN) and not _misspelt(word, names):
                found.command.append(word)
                continue
            if found.command and not word.startswith(_UNMISTAKABLE):
                found.late.append(word)
            found.own.append(word)
            if option is not None and option[1] is None and names.kinds[option[0]] != "switch":
                found.own.extend(value for value in [next(rest, None)] if value is not None)
    return found


def _misspelt(word: str, names: _Names) -> bool:
    """Tell whether a word of the command is an option of ours but for a letter or two; the parser refuses it."""
    name = word.partition("=")[0]
    if name in names.kinds or not name.startswith(("--app-", "--dapr-")):
        return False
    return bool(difflib.get_close_matches(name, names.kinds, n=1, cutoff=_NEAR))
