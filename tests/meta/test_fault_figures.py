"""What docs/guarantees.md says about faults is what the fault tests measured, all of them, on every broker."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.meta.sources import ROOT

# Called with the fault's name as first argument, or with fault=…
NOTED = r"figures\.fault\(\s*|\.during\(|\bfault="
SERVERS = ("nats", "redis", "rabbitmq", "kafka")
NOT_ON_MQTT = {"the broker is killed", "instances join and leave"}
# tests/faults/test_every_native_broker.py has these of test_every_broker.py.
NATIVE = NOT_ON_MQTT | {
    "a connection is silent, then cut",
    "a silent connection is replaced",
    "the publisher's connection is cut",
    "the publisher's gateway is killed",
    "the subscriber's connection is cut",
    "the subscriber's gateway is killed",
}


def _rows() -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((ROOT / "docs" / "faults.json").read_text(encoding="utf-8"))
    return {(row["fault"], row["broker"]): row for row in rows}


def _faults(name: str) -> set[str]:
    text = (ROOT / "tests" / "faults" / f"test_{name}.py").read_text(encoding="utf-8")
    found = set(re.findall(rf'(?:{NOTED})"([^"]+)"', text))
    assert found, name
    return found


def test_every_fault_is_measured_on_every_broker() -> None:
    """The figures are those of the tests that are there: none is left out, none is of a test that is gone."""
    everywhere = _faults("every_broker") | _faults("actors") | _faults("clocks")
    embedded = _faults("delivery_faults") | _faults("actors_embedded") | _faults("actors") | _faults("clocks")
    wanted = {(fault, server) for fault in everywhere for server in SERVERS}
    native = {(fault, f"{server}-native") for fault in NATIVE for server in SERVERS}
    mqtt = {(fault, "mqtt-native") for fault in NATIVE - NOT_ON_MQTT}
    assert set(_rows()) == wanted | native | mqtt | {(fault, "embedded") for fault in embedded}


def test_nothing_is_missing() -> None:
    """A run that lost an event, a reminder or a job is no report, nor is one whose store accepted a stale write."""
    never = ("missing", "lost", "early", "stale")
    lost = [key for key, row in _rows().items() if any(row.get(name, 0) != 0 for name in never)]
    assert not lost
    assert all(
        {"confirmed", "missing", "duplicates"} <= row.keys()
        or row.keys() & {"seconds", "calls", "asked", "kept", "moves", "set", "writes"}
        for row in _rows().values()
    )


def test_what_is_promised_of_actors_was_measured() -> None:
    """A figure that is worse than what the page says of it is no figure to print."""
    rows = _rows()
    planned = [
        row["refused"] for (fault, _), row in rows.items() if fault in ("owners restart", "owners join and leave")
    ]
    assert planned
    assert set(planned) == {0}
    killed = [row["seconds"] for (fault, _), row in rows.items() if fault.startswith("all actors of a killed owner")]
    assert max(killed) <= 12.0


def test_the_page_shows_the_figures() -> None:
    """The tables are on the page; that they are up to date is tested with the other generated parts."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    for (fault, broker), row in _rows().items():
        if not row.keys() & {"kept", "moves", "set", "writes"}:
            assert f"| {fault}{', native layout' if broker.endswith('-native') else ''} |" in page
        if "missing" in row:
            assert f" {row['confirmed']:,} / {row['missing']} / {row['duplicates']} |" in page
