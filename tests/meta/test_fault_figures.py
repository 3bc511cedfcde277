"""What docs/guarantees.md says about faults is what the fault tests measured, all of them, on every broker."""

from __future__ import annotations

import json
import re

from tests.meta.sources import ROOT

# Called with the fault's name as first argument, or with fault=…
_FAULT = re.compile(r"(?:figures\.fault\(\s*|\bfault=)\"([^\"]+)\"")
SERVERS = ("nats", "redis", "rabbitmq", "kafka")


def _rows() -> dict[tuple[str, str], dict[str, object]]:
    rows = json.loads((ROOT / "docs" / "faults.json").read_text(encoding="utf-8"))
    return {(row["fault"], row["broker"]): row for row in rows}


def test_every_fault_is_measured_on_every_broker() -> None:
    """The figures are those of the tests that are there: none is left out, none is of a test that is gone."""
    everywhere = set(_FAULT.findall((ROOT / "tests" / "faults" / "test_every_broker.py").read_text(encoding="utf-8")))
    embedded = set(_FAULT.findall((ROOT / "tests" / "faults" / "test_delivery_faults.py").read_text(encoding="utf-8")))
    assert everywhere
    assert embedded
    wanted = {(fault, server) for fault in everywhere for server in SERVERS}
    assert set(_rows()) == wanted | {(fault, "embedded") for fault in embedded}


def test_nothing_is_missing() -> None:
    """A run that lost an event is no report."""
    lost = [key for key, row in _rows().items() if row.get("missing", 0) != 0]
    assert not lost
    assert all(
        {"confirmed", "missing", "duplicates"} <= row.keys() or row.keys() & {"seconds", "calls"}
        for row in _rows().values()
    )


def test_the_page_shows_the_figures() -> None:
    """Both tables are on the page; that they are up to date is tested with the other generated parts."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    for (fault, _), row in _rows().items():
        assert f"| {fault} |" in page
        if "missing" in row:
            assert f" {row['confirmed']:,} / {row['missing']} / {row['duplicates']} |" in page
