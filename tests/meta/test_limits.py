"""What docs/limits.md says is so: numbers come from the code (docs/limits.py), names are those of the product."""

from __future__ import annotations

import re

import pytest

from docs.limits import TABLES
from gateway.cli.options import FLAGS
from gateway.routes import durable
from mesh.blocks import BLOCKS
from tests.meta.sources import ROOT

ROWS = [row for rows in TABLES.values() for row in rows]
FLAG_NAMES = {name for flag in FLAGS for name in flag.names} | {"--timeout", "--enable-app-health-check"}
HEADERS = {"mesh-timeout", *(getattr(durable, name) for name in ("WINDOW_HEADER", "DELAY_HEADER"))}


def test_every_table_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- generated: limits-([a-z]+) -->", page)) == set(TABLES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_a_row_names_is_there(row: tuple[str, ...]) -> None:
    """Flags, headers of ours, and codes of errors."""
    text = " ".join(row)
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= FLAG_NAMES
    assert {name for name in re.findall(r"`(mesh-[a-z-]+)`", text) if name != "mesh-attempt"} <= HEADERS
    errors = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert all(code in errors for code in re.findall(r"\bERR_[A-Z_]+", text))


def test_every_methods_limit_stands_there() -> None:
    """A new block says how long what it is asked may take."""
    limits = {row[1] for row in TABLES["asked"]}
    limited = {method.seconds for block in BLOCKS for method in block.methods} - {float("inf")}
    assert {f"{seconds:g} s" for seconds in limited} <= limits
