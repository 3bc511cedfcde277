"""What docs/guarantees.md says about faults is what the fault tests measured, all of them, on every broker."""

from __future__ import annotations

import json
import re

from tests.meta.sources import ROOT

# Called with the fault's name as first argument, or with fault=…
NOTED = r"figures\.fault\(\s*"
ANY = rf"{NOTED}|\.during\(|\bfault="
SERVERS = ("nats", "redis", "rabbitmq", "kafka")


def _rows() -> dict[tuple[str, str], dict[str, object]]:
    rows = json.loads((ROOT / "docs" / "faults.json").read_text(encoding="utf-8"))
    return {(row["fault"], row["broker"]): row for row in rows}


def _faults(name: str, how: str = ANY) -> set[str]:
    text = (ROOT / "tests" / "faults" / f"test_{name}.py").read_text(encoding="utf-8")
    found = set(re.findall(rf'(?:{how})"([^"]+)"', text))
    assert found, name
    return found


def test_every_fault_is_measured_on_every_broker() -> None:
    """The figures are those of the tests that are there: none is left out, none is of a test that is gone."""
    everywhere = _faults("every_broker") | _faults("actors")
    # What comes of actors is noted there for all.
    embedded = _faults("delivery_faults") | _faults("actors_embedded") | _faults("actors", NOTED)
    wanted = {(fault, server) for fault in everywhere for server in SERVERS}
    assert set(_rows()) == wanted | {(fault, "embedded") for fault in embedded}


def test_nothing_is_missing() -> None:
    """A run that lost an event, a reminder or a job is no report, nor is one whose store accepted a stale write."""
    never = ("missing", "lost", "early", "stale")
    lost = [key for key, row in _rows().items() if any(row.get(name, 0) != 0 for name in never)]
    assert not lost
    assert all(
        {"confirmed", "missing", "duplicates"} <= row.keys()
        or row.keys() & {"seconds", "calls", "asked", "kept", "writes"}
        for row in _rows().values()
    )


def test_the_page_shows_the_figures() -> None:
    """The tables are on the page; that they are up to date is tested with the other generated parts."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    for (fault, _), row in _rows().items():
        if not row.keys() & {"kept", "writes"}:
            assert f"| {fault} |" in page
        if "missing" in row:
            assert f" {row['confirmed']:,} / {row['missing']} / {row['duplicates']} |" in page
