"""docs/running.md has every command and every option, and no others."""

from __future__ import annotations

import argparse
import re

import pytest

from tests.meta.sources import ROOT

pytest.importorskip("gateway.cli.dispatch", reason="the command line is not there")

from gateway.cli.dispatch import COMMANDS, command
from gateway.cli.options import FLAGS, IGNORED, OLD_SIZES

_PAGE = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
_OPTION = re.compile(r"`(--?[A-Za-z][A-Za-z0-9-]*)`")


def _section(name: str) -> str:
    found = re.search(rf"^### mesh {name}\n(.*?)(?=^##|\Z)", _PAGE, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def test_every_command_is_documented() -> None:
    """The table has each command, and ``mesh gateway``."""
    rows = re.findall(r"^\| `mesh (\w+)[^`]*` \|", _PAGE, re.MULTILINE)
    assert sorted(rows) == sorted([*COMMANDS, "gateway"])


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "run"])
def test_every_option_of_a_command_is_documented(name: str) -> None:
    """What the help shows stands in the command's section, and nothing else does."""
    actions = command(name).parser()._actions
    shown = {
        option
        for action in actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
        if option not in ("-h", "--help")
    }
    known = {option for action in actions for option in action.option_strings}
    documented = set(_OPTION.findall(_section(name)))
    assert shown <= documented <= known


def test_every_flag_of_a_gateway_is_documented() -> None:
    """Each name of each flag stands on the page, and each has a meaning there."""
    names = {name for flag in FLAGS for name in flag.names} | set(IGNORED) | set(OLD_SIZES)
    assert names <= set(_OPTION.findall(_PAGE))
    rows = re.findall(r"^\| (`--[^|]*) \| (.*) \|$", _PAGE, re.MULTILINE)
    assert not [flags for flags, meaning in rows if not meaning.strip()]
