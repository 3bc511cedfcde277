"""``mesh status``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from gateway.cli.backbone import embedded_status
from gateway.cli.parsing import Parser
from gateway.cli.terminal import add_output_option, show
from gateway.runs import list_runs
from mesh.home import mesh_home
from mesh.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["parser", "run"]

_KIBI = 1024


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh status", description="Show the backbone, where its data is, and how many gateways use it.")
    add_output_option(made)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    output = parser().parse(words).output
    facts = _facts(os.environ)
    if output == "json":
        show(json.dumps(facts, indent=2))
    elif output == "yaml":
        import yaml

        show(yaml.safe_dump(facts, sort_keys=False).rstrip())
    else:
        size = facts["dataBytes"]
        facts["dataBytes"] = _size(size) if isinstance(size, int) else None
        titles = {
            "backbone": "backbone",
            "state": "state",
            "url": "address",
            "serverPid": "server pid",
            "home": "home",
            "dataDirectory": "data",
            "dataBytes": "size",
            "gateways": "gateways",
        }
        shown = [(title, facts[key]) for key, title in titles.items() if facts[key] is not None]
        show("\n".join(f"{title:<12}{value}" for title, value in shown))
    return 0


def _facts(environ: Mapping[str, str]) -> dict[str, object]:
    home = mesh_home(environ)
    backbone = environ.get("MESH_BACKBONE") or "embedded:"
    facts: dict[str, object] = {
        "backbone": without_credentials(backbone),
        "state": "yours",
        "url": None,
        "serverPid": None,
        "home": str(home),
        "dataDirectory": None,
        "dataBytes": None,
        "gateways": len(list_runs(home)),
    }
    if backbone.partition(":")[0] == "embedded":
        server = embedded_status(home)
        data = home / "backbone" / "data"
        facts |= {
            "state": "running" if server else "stopped; it starts with the first gateway",
            "url": server.url if server else None,
            "serverPid": server.pid if server else None,
            "dataDirectory": str(data),
            "dataBytes": _bytes_below(data),
        }
    return facts


def _bytes_below(directory: Path) -> int:
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                # The server removes files while we look.
                continue
    return total


def _size(number: int) -> str:
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIBI or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIBI
    return f"{number} B"
