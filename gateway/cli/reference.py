"""What differs when the program is called as ``dapr``: the words it says, and its exit codes.

Scripts, test harnesses and pages wait for status lines. They are those of the dapr CLI, written where it writes them.

Source: dapr CLI 1.18.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ALIASES",
    "INSTEAD",
    "Sign",
    "as_dapr",
    "as_typed",
    "check_style",
    "failed_for_dapr",
    "program",
    "signed",
    "succeeded",
]

Sign = Literal["success", "failure", "warning", "info"]

_SIGNS: Mapping[Sign, str] = {"success": "✅", "failure": "❌", "warning": "⚠", "info": "ℹ️"}
_STYLES = ("mesh", "dapr")
_OURS = re.compile(
    r"\bmesh(?= (?:run|list|stop|invoke|publish|host|actors|check|components?|trust|broker|asyncapi|status|init"
    r"|upgrade|configurations|mtls|annotate|operator|bridge"
    r"|uninstall|completion|version|jobs|doctor|dlq|workflow|dashboard|logs|tap|record|replay|service|COMMAND)\b)"
)

ALIASES: Mapping[str, str] = {"build-info": "version", "wf": "workflow"}
"""Commands of dapr that have another name here."""

INSTEAD: Mapping[str, str] = {
    "mcpservers": "MCP servers are not there yet",
    "sched": "mesh jobs lists, shows, deletes and runs the jobs of an application; reminders are not there yet",
    "scheduler": "mesh jobs lists, shows, deletes and runs the jobs of an application; reminders are not there yet",
}
"""Commands of dapr that are not here, and what there is instead."""


def as_dapr(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether to speak as dapr does: by ``MESH_OUTPUT``, else by the name the program is called with."""
    return (environ.get("MESH_OUTPUT") or program()) == "dapr"


def check_style(environ: Mapping[str, str] = os.environ) -> None:
    """Check ``MESH_OUTPUT``.

    Raises:
        ConfigError: It is something else.
    """
    style = environ.get("MESH_OUTPUT")
    if style and style not in _STYLES:
        raise ConfigError(f"MESH_OUTPUT: '{style}' is none of {', '.join(_STYLES)}")


def program() -> str:
    """Give the name that people have typed."""
    return "dapr" if Path(sys.argv[0]).stem == "dapr" else "mesh"


def as_typed(text: str) -> str:
    """Name the program in its own texts as people have typed it: the next command is to be typed so as well."""
    return text if program() == "mesh" else _OURS.sub(program(), text)


def signed(sign: Sign, text: str) -> str:
    """Give a status line; what comes before its first word stays before the sign's line."""
    return f"{_SIGNS[sign]}  {text}"


def succeeded(text: str) -> bool:
    """Write a status line if we are to speak as dapr does, and tell whether we are."""
    if as_dapr():
        _write(sys.stdout, signed("success", text))
        return True
    return False


def failed_for_dapr(text: str) -> bool:
    """Write what went wrong if we are to speak as dapr does, and tell whether we are."""
    if as_dapr():
        _write(sys.stderr, signed("failure", text))
        return True
    return False


def _write(stream: TextIO, text: str) -> None:
    # A terminal without these signs gets question marks, not an error.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
