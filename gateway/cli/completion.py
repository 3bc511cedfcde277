"""``mesh completion``: scripts made from the descriptions of the commands."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from gateway.cli.dispatch import COMMANDS, command
from gateway.cli.parsing import Parser
from gateway.cli.terminal import show
from gateway.runs import list_runs
from mesh.home import mesh_home
from mesh.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]

_APP_ID_OPTIONS = ("-a", "--app-id", "--app", "-i", "--publish-app-id", "--via")
_TAKES_APP_ID = (
    *("invoke", "publish", "components", "stop", "jobs", "actors", "doctor", "dlq", "workflow", "wf"),
    *("tap", "record", "replay"),
)
_WORKFLOW = "list show history start run raise raise-event terminate suspend resume purge rerun"
_FIRST = {
    "jobs": "list show delete run",
    "actors": "list show deactivate",
    "dlq": "list show replay purge",
    "service": "install remove status",
    "workflow": _WORKFLOW,
    "wf": _WORKFLOW,
}

_BASH = """\
# bash completion for mesh; to use it: source <(mesh completion bash)
_mesh() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" options=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "${{COMP_WORDS[1]}} $before" in
        {app_id_cases}) COMPREPLY=($(compgen -W "$(mesh completion app-ids 2>/dev/null)" -- "$word")); return ;;
        "component component") COMPREPLY=($(compgen -W "types new" -- "$word")); return ;;
{first_cases}
        "component types"|"component new") COMPREPLY=($(compgen -W "$(mesh completion types 2>/dev/null)" -- "$word"))
            return ;;
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    esac
}}
complete -o default -F _mesh mesh
"""

_ZSH = """\
#compdef mesh
# zsh completion for mesh; to use it: source <(mesh completion zsh)
_mesh() {{
    local -a commands options
    commands=({commands})
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    case "$words[2]" in
{cases}
    esac
    case "$words[2] $words[CURRENT-1]" in
        {app_id_cases}) compadd -- $(mesh completion app-ids 2>/dev/null); return ;;
        "component component") compadd -- types new; return ;;
{first_cases}
        "component types"|"component new") compadd -- $(mesh completion types 2>/dev/null); return ;;
    esac
    if [[ "$words[CURRENT]" == -* ]]; then
        _describe option options
    else
        _files
    fi
}}
compdef _mesh mesh
"""


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh completion",
        description="Print a completion script.",
        epilog="bash: source <(mesh completion bash)\n"
        "zsh:  source <(mesh completion zsh)\n"
        "fish: mesh completion fish > ~/.config/fish/completions/mesh.fish",
    )
    made.add_argument(
        "shell", choices=("bash", "zsh", "fish", "app-ids", "types"), metavar="bash|zsh|fish", help="your shell"
    )
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    shell = parser().parse(words).shell
    # Two are for the scripts themselves.
    if shell == "types":
        show("\n".join(Registry().types()))
    elif shell == "app-ids":
        show("\n".join(sorted({each.app_id for each in list_runs(mesh_home(os.environ))})))
    else:
        show({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]().rstrip())
    return 0


def _options(name: str) -> list[tuple[tuple[str, ...], str]]:
    """List the shown options of a command with their help."""
    actions = command(name).parser()._actions
    shown = (action for action in actions if action.option_strings and action.help != argparse.SUPPRESS)
    return [(tuple(action.option_strings), (action.help or "").replace("%%", "%")) for action in shown]


def _app_id_cases() -> str:
    pairs = [f'"{name} {option}"' for name in _TAKES_APP_ID for option in _APP_ID_OPTIONS]
    return "|".join([*pairs, '"stop "*'])


def _bash() -> str:
    cases = "\n".join(
        f'        {name}) options="{" ".join(option for names, _ in _options(name) for option in names)}" ;;'
        for name in COMMANDS
    )
    first = "\n".join(
        f'        "{name} {name}") COMPREPLY=($(compgen -W "{words}" -- "$word")); return ;;'
        for name, words in _FIRST.items()
    )
    return _BASH.format(commands=" ".join(COMMANDS), cases=cases, app_id_cases=_app_id_cases(), first_cases=first)


def _zsh() -> str:
    def quoted(text: str, help_text: str) -> str:
        return "'" + f"{text}:{help_text}".replace("'", "'\\''") + "'"

    cases = "\n".join(
        f"        {name}) options=({' '.join(quoted(o, text) for names, text in _options(name) for o in names)}) ;;"
        for name in COMMANDS
    )
    commands = " ".join(quoted(name, what) for name, (_, what) in COMMANDS.items())
    first = "\n".join(f'        "{name} {name}") compadd -- {words}; return ;;' for name, words in _FIRST.items())
    return _ZSH.format(commands=commands, cases=cases, app_id_cases=_app_id_cases(), first_cases=first)


def _fish() -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ["# fish completion for mesh; to use it: mesh completion fish > ~/.config/fish/completions/mesh.fish"]
    for name, (_, what) in COMMANDS.items():
        lines.append(f"complete -c mesh -n __fish_use_subcommand -f -a {name} -d {quoted(what)}")
        for names, text in _options(name):
            long = "".join(f" -l {option[2:]}" for option in names if option.startswith("--"))
            short = "".join(f" -s {option[1:]}" for option in names if not option.startswith("--"))
            values = (
                " -x -a '(mesh completion app-ids)'" if name in _TAKES_APP_ID and names[-1] in _APP_ID_OPTIONS else ""
            )
            lines.append(
                f"complete -c mesh -n '__fish_seen_subcommand_from {name}'{short}{long}{values} -d {quoted(text)}"
            )
    lines.append("complete -c mesh -n '__fish_seen_subcommand_from stop' -f -a '(mesh completion app-ids)'")
    for name, words in (("component", "types new (mesh completion types)"), *_FIRST.items()):
        lines.append(f"complete -c mesh -n '__fish_seen_subcommand_from {name}' -f -a '{words}'")
    return "\n".join(lines)
