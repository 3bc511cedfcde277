"""docs/running.md has every command and every option, and no others."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from tests.meta.sources import ROOT

pytest.importorskip("gateway.cli.dispatch", reason="the command line is not there")

from gateway.cli.dispatch import COMMANDS, command
from gateway.cli.options import DEPRECATED, FLAGS, IGNORED, OLD_SIZES
from gateway.cli.reference import ALIASES, INSTEAD
from gateway.cli.run import OLD_FIELDS

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


_DAPR = (ROOT / "docs" / "dapr-cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "flags"), re.findall(r"^\| `dapr ([a-z-]+)` \|(.*--.*)$", _DAPR, re.MULTILINE), ids=lambda text: text[:12]
)
def test_flags_of_dapr_are_those_of_the_command(name: str, flags: str) -> None:
    """What the page lists for a command is taken by it."""
    if name in INSTEAD:
        return
    known = {option for action in command(name).parser()._actions for option in action.option_strings}
    assert set(_OPTION.findall(flags)) <= known


def test_every_command_of_dapr_is_on_its_page() -> None:
    """Those of dapr 1.18: they are here, or something is said instead."""
    reference = (
        "annotate build-info completion components configurations dashboard init invoke list logs mcpservers mtls"
        " publish run scheduler sched status stop uninstall upgrade version wf workflow"
    )
    rows = re.findall(r"^\| `dapr ([a-z-]+)` \|", _DAPR, re.MULTILINE)
    assert sorted(rows) == sorted(reference.split())
    assert set(rows) <= {*COMMANDS, *INSTEAD, *ALIASES}


def test_every_flag_of_a_gateway_is_documented() -> None:
    """Each name of each flag stands on the page, and each has a meaning there."""
    names = {name for flag in FLAGS for name in flag.names} | set(IGNORED) | set(OLD_SIZES)
    assert names <= set(_OPTION.findall(_PAGE))
    rows = re.findall(r"^\| (`--[^|]*) \| (.*) \|$", _PAGE, re.MULTILINE)
    assert not [flags for flags, meaning in rows if not meaning.strip()]


_SHOWN = [*(ROOT / "examples").rglob("*.md"), *(ROOT / "examples").rglob("*.yaml"), ROOT / "README.md"]


@pytest.mark.parametrize("file", _SHOWN, ids=lambda file: str(file.relative_to(ROOT)))
def test_examples_use_no_old_names(file: Path) -> None:
    """What people copy brings no warning."""
    words = set(re.split(r"[\s`=:]+", file.read_text(encoding="utf-8")))
    assert not words & {*DEPRECATED, "--payload", *OLD_FIELDS}
