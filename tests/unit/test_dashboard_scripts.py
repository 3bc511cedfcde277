"""What the dashboard's pages work out by themselves: pictures of histories and traces, and the place of a problem."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import gateway.dashboard

ASSETS = Path(gateway.dashboard.__file__).parent / "assets"
CALL = """
import { readFileSync } from "node:fs";
const [module, name, values] = JSON.parse(readFileSync(0, "utf8"));
const { [name]: found } = await import(module);
process.stdout.write(JSON.stringify(found(...values) ?? null));
"""
YAML = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: store
spec:
  type: state.redis
  metadata:
  - name: redisHost
    value: 'a: b'
  - name: redisDB
    value: '1'
    nested:
    - x
    - y: 3
      z: 4
scopes:
- one
- two
"""


Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Call what a module of the pages exports; they lie where Node takes them for modules, as a browser does."""
    folder = tmp_path_factory.mktemp("scripts")
    shutil.copytree(ASSETS, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')

    def called(module: str, name: str, *values: object) -> Any:
        given = json.dumps([(folder / "app" / module).as_uri(), name, values])
        command = ["node", "--input-type=module", "-e", CALL]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return called


def event(kind: str, second: float, **members: object) -> dict[str, object]:
    """Make an event of a history."""
    return {"event": kind, "at": f"2030-01-01T00:00:{second:06.3f}Z", **members}


HISTORY = [
    event("turn", 0.001),
    event("started", 0, workflow="order"),
    event("scheduled", 0.002, task=1, activity="charge", input=7),
    event("retrying", 0.5, task=1, attempt=2, error={"type": "OSError", "message": "away"}),
    event("completed", 1, task=1, result="paid"),
    event("child", 1.2, task=2, workflow="ship", instanceID="o:2"),
    event("suspended", 2, reason="lunch"),
    event("resumed", 3),
    event("timer", 3.1, task=3, fireAt="2030-01-02T00:00:00Z"),
    event("raised", 3.5, name="approve", data=True),
    event("childFailed", 4, task=2, error={"type": "KeyError", "message": "7"}),
]


def laid_out(call: Call, **more: object) -> dict[str, Mapping[str, Any]]:
    told = {"workflowName": "order", "runtimeStatus": "RUNNING", "events": HISTORY, **more}
    laid = call("history.js", "layOut", told)
    return {row["label"]: row for row in laid["rows"]} | {"whole": laid}


def spans(row: Mapping[str, Any], since: float) -> Sequence[tuple[float, float | None, str]]:
    """Give the bars of a row, in seconds after the start."""
    return [
        (round(bar["from"] - since, 3), None if bar["to"] is None else round(bar["to"] - since, 3), bar["state"])
        for bar in row["bars"]
    ]


def test_a_history_is_a_bar_for_each_thing_that_took_time(call: Call) -> None:
    """With its outcome, attempts that failed, events that came, and when it was suspended."""
    rows = laid_out(call, waitsForEvents=[{"name": "pack", "since": "2030-01-01T00:00:03.200Z"}])
    since = rows["whole"]["since"]
    assert spans(rows["charge"], since) == [(0.002, 1, "done")]
    assert [mark["text"] for mark in rows["charge"]["marks"]] == ["attempt 1 failed"]
    assert spans(rows["ship"], since) == [(1.2, 4, "failed")]
    assert spans(rows["timer"], since) == [(3.1, None, "open")]
    assert spans(rows["order"], since) == [(0, None, "open"), (2, 3, "paused")]
    assert [mark["state"] for mark in rows["event approve"]["marks"]] == ["raised"]
    assert spans(rows["event pack"], since) == [(3.2, None, "open")]
    assert (rows["whole"]["open"], round(rows["whole"]["until"] - since, 3)) == (True, 4)


def test_what_was_open_when_it_ended_reaches_to_its_end(call: Call) -> None:
    """It was let go, and looks otherwise than what came to an end."""
    rows = laid_out(call, runtimeStatus="TERMINATED", endedAt="2030-01-01T00:00:06Z")
    since = rows["whole"]["since"]
    assert spans(rows["timer"], since) == [(3.1, 6, "dropped")]
    assert spans(rows["order"], since)[0] == (0, 6, "failed")


def test_a_history_as_a_table_says_what_the_picture_shows(call: Call) -> None:
    """How long each step took, and what came of it."""
    rows = call("history.js", "tableOf", HISTORY)
    assert [(row["subject"], row["what"]) for row in rows[3:6]] == [
        ("charge #1", "attempt 1 failed"),
        ("charge #1", "completed"),
        ("ship #2", "child started"),
    ]
    assert [round(row["took"], 3) for row in rows if row["took"] is not None] == [0.998, 2.8]
    assert [row["value"] for row in rows if row["bad"]] == ["OSError: away", "KeyError: 7"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("spec.metadata[1].value", "    value: '1'"),
        ("spec.metadata[0]", "  - name: redisHost"),
        ("spec.metadata[1].nested[1].z", "      z: 4"),
        ("metadata.name", "  name: store"),
        ("scopes[1]", "- two"),
        ("spec.version", "spec:"),
        ("spec.metadata[7].value", "  metadata:"),
        ("", None),
        ("nothing", None),
    ],
)
def test_a_problem_stands_at_the_line_that_its_path_leads_to(call: Call, path: str, line: str | None) -> None:
    """Or as far as that leads."""
    lines = YAML.splitlines()
    at = call("yaml.js", "lineAt", lines, path)
    assert (lines[at] if at >= 0 else None) == line


def seen(span: int, end: float, seconds: float, **data: object) -> dict[str, object]:
    told = {"from": "shop", "app": "shop", "outcome": "ok", "seconds": seconds, "details": {}, **data}
    parent = f"00-{'a' * 32}-{span:016x}-01"
    return {"id": str(span), "time": f"2030-01-01T00:00:{end:06.3f}Z", "traceparent": parent, "data": told}


def test_sights_of_one_trace_are_one_waterfall(call: Call) -> None:
    """What lies within the time of another stands below it; what is in no trace is left out."""
    other = {**seen(9, 3, 1), "traceparent": f"00-{'b' * 32}-{9:016x}-01"}
    sights = [seen(2, 1.5, 0.5, app="billing"), other, {**seen(4, 1, 1), "traceparent": ""}]
    sights += [seen(3, 1.4, 0.2, app="billing", outcome="ERR_X"), seen(1, 2, 2)]
    newest, trace = call("traces.js", "tracesOf", sights)
    assert newest["trace"] == "b" * 32
    assert [(each["event"]["id"], each["depth"]) for each in trace["spans"]] == [("1", 0), ("2", 1), ("3", 2)]
    assert (trace["failed"], trace["apps"]) == (1, ["shop", "billing"])
    assert round(trace["until"] - trace["since"], 3) == 2


@pytest.mark.parametrize(
    ("template", "address"),
    [
        ("http://zipkin:9411/zipkin/traces/{traceId}", "http://zipkin:9411/zipkin/traces/abc"),
        ("javascript:alert('{traceId}')", None),
        ("", None),
    ],
)
def test_a_trace_links_to_an_address_of_the_web_alone(call: Call, template: str, address: str | None) -> None:
    """Made of the template that the dashboard was started with."""
    assert call("traces.js", "traceAddress", template, "abc") == address


def test_the_tracing_of_a_configuration_is_shown_without_the_rest(call: Call) -> None:
    """As far as it is indented."""
    tracing = ["tracing:", "  samplingRate: '1'", "  zipkin:", "    endpointAddress: a"]
    text = "\n".join(["kind: Configuration", "spec:", *(f"  {line}" for line in tracing), "  metric: {}", ""])
    assert call("traces.js", "tracingLines", text) == "\n".join(tracing)
    assert call("traces.js", "tracingLines", "kind: Configuration\nspec: {}\n") == ""
