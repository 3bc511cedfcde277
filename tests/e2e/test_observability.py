"""The example with dashboards and alerts: its rules, its queries, and the whole of it with a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics.table import METRICS
from mesh import errors, telemetry
from tests.e2e.test_example_shapes import EXAMPLES, LIBRARIES, copied
from tests.support.eventually import eventually
from tests.support.gateways import MeshHome
from tests.support.processes import free_port
from tests.support.prometheus_server import PrometheusServer, find_prometheus

EXAMPLE = EXAMPLES / "observability"
RULES = EXAMPLE / "prometheus" / "rules.yml"
PANELS: list[dict[str, Any]] = json.loads((EXAMPLE / "grafana/dashboards/mesh.json").read_text("utf-8"))["panels"]
SHOWING = {panel["title"]: panel["targets"] for panel in PANELS if panel["type"] != "row"}
QUIET = {"Refused: not proven", "Calls blocked by access control"}
"""Nobody does wrong in the example."""

ALERTS = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
OF_EACH = {"app_id", "instance", "job"}  # The last two are Prometheus's.
LABELS = {
    name: OF_EACH | set(each.labels) | ({"le"} if each.kind == "histogram" else set())
    for each in METRICS
    for name in (
        [f"{each.name}_{end}" for end in ("bucket", "sum", "count")] if each.kind == "histogram" else [each.name]
    )
}
PROCESS = {"cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds"}
LABELS |= {f"process_{name}": {"instance", "job"} for name in PROCESS}
METRIC = re.compile(r"\b((?:dapr|mesh|process)_\w+)(?:\{([^}]*)\})?")


@pytest.fixture
def prometheus() -> None:
    if not find_prometheus():
        assert "CI" not in os.environ, "Prometheus is missing: tests/provision/prometheus.sh"
        pytest.skip("Prometheus is not installed: make provision")


def expressions() -> Iterator[tuple[str, str, list[str]]]:
    """Give each query: of what, the query, and the texts that name its labels."""
    for title, targets in SHOWING.items():
        for target in targets:
            yield title, target["expr"], [target["legendFormat"]]
    for rule in ALERTS:
        yield rule["alert"], rule["expr"], list(rule["annotations"].values())


def test_queries_are_about_what_is_told() -> None:
    """Metrics and labels are those of the table of metrics, and texts name labels that are left."""
    for title, expression, texts in expressions():
        there: set[str] = set()
        for name, chosen in METRIC.findall(expression):
            assert name in LABELS, (title, name)
            there |= LABELS[name]
            assert set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", chosen)) <= LABELS[name], (title, name)
        kept = [set(names.split(", ")) for names in re.findall(r"\bby \(([^)]*)\)", expression)]
        assert all(names <= there for names in kept), (title, kept)
        named = {name for text in texts for name in re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", text)}
        left = set.union(*kept) - {"le"} if kept else there | {"instance"}  # That of ``up``.
        assert named <= left, (title, named - left)


def test_outcomes_of_operations_exist() -> None:
    """What the rule about components leaves out are outcomes as they are told."""
    [rule] = (each for each in ALERTS if each["alert"] == "MeshComponentFailing")
    [left_out] = re.findall(r'outcome!~"([^"]*)"', rule["expr"])
    codes = {each.code for each in vars(errors).values() if hasattr(each, "code")}
    assert set(left_out.split("|")) <= codes | {telemetry.OK, telemetry.CANCELLED}


def test_the_table_is_that_of_the_files() -> None:
    """The page of the example names every alert, and no other."""
    page = (EXAMPLE / "README.md").read_text("utf-8")
    assert re.findall(r"^\| `(Mesh\w+)` \|", page, re.MULTILINE) == [each["alert"] for each in ALERTS]


def test_rules(prometheus: None) -> None:
    """By promtool: they can be read, and fire when they should and only then."""
    for words in (["check", "config", "prometheus.yml"], ["test", "rules", "rules.test.yml"]):
        done = subprocess.run(
            ["promtool", *words], cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_one_of_grafanas(tmp_path: Path) -> None:
    """By the types that Grafana publishes: no field that it does not know, no value that it does not take."""
    installed = LIBRARIES / "grafana" / "node_modules"
    if not (installed / ".installed").exists():
        assert "CI" not in os.environ, "Grafana's types are missing: tests/provision/examples.sh"
        pytest.skip("Grafana's types are not installed: make provision")
    (tmp_path / "node_modules").symlink_to(installed)
    shutil.copy(Path(__file__).parent / "grafana" / "dashboard.ts", tmp_path)
    checked = tmp_path / "mesh.ts"
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext"]
    made = (EXAMPLE / "grafana/dashboards/mesh.json").read_text("utf-8")
    for text, wrong in ((made, ""), (made.replace('"gridPos"', '"gridpos"', 1), '"gridpos"')):
        checked.write_text(f'import type {{ Given }} from "./dashboard.js";\nexport const made: Given = {text};\n')
        command = [installed / ".bin" / "tsc", *options, checked]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode == 0) is (not wrong), done.stdout
        assert wrong in done.stdout


def asked(expression: str) -> str:
    """Give a query as the dashboard makes it."""
    return expression.replace("$__rate_interval", "1m").replace("$app_id", ".*")


async def test_the_whole(home: MeshHome, prometheus: None, tmp_path: Path) -> None:
    """As in the stack, with a port for each container; each panel shows something, and a dead letter is an alert."""
    services = yaml.safe_load((EXAMPLE / "compose.yaml").read_text("utf-8"))["services"]
    directory = copied("observability", tmp_path)
    config = directory / "settings" / "config.yaml"
    config.write_text(config.read_text().replace("zipkin:9411", f"127.0.0.1:{free_port()}"))
    scraping = directory / "prometheus" / "prometheus.yml"
    text = scraping.read_text().replace("interval: 5s", "interval: 1s")
    runs, api = {}, {}
    with ExitStack() as stack:
        for name in ("mailer", "orders", "shop"):
            ports = {number: str(free_port()) for number in ("8000", "3500", "9090")}
            options = []
            for option in services[f"{name}-gateway"]["command"]:
                flag, _, value = option.partition("=")
                options.append(f"{flag}={ports.get(value, value.removeprefix('/'))}")
            assert services[name]["network_mode"] == f"service:{name}-gateway"
            script = services[name]["command"][1]
            run = home.run(*options, "--", sys.executable, script, cwd=directory)
            runs[name], api[name] = stack.enter_context(run), f"http://127.0.0.1:{ports['3500']}/v1.0"
            assert f'"{name}-gateway:9090"' in text
            text = text.replace(f"{name}-gateway:9090", f"127.0.0.1:{ports['9090']}")
        scraping.write_text(text)
        async with PrometheusServer(tmp_path / "prometheus", scraping) as server:
            runs["mailer"].until(r"there is no address")
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(f"{api['shop']}/state/none/key")

            def firing() -> None:
                assert server.found('ALERTS{alertname="MeshDeadLetters", alertstate="firing", app_id="mailer"}')

            def shown() -> None:
                missing = {
                    title
                    for title, targets in SHOWING.items()
                    if not [found for each in targets for found in server.found(asked(each["expr"]))]
                }
                assert missing <= QUIET, missing

            await eventually(firing, within=60)
            await eventually(shown, within=60)
            up = {each["metric"]["app_id"] for each in server.found("mesh_gateway_info")}
            assert up == {"mailer", "orders", "shop"}
            [ratio] = server.found(asked(SHOWING["Gateways"][0]["expr"]))
            assert ratio["value"][1] == "1"
            for group in server.asked("/rules")["groups"]:
                assert {rule["health"] for rule in group["rules"]} == {"ok"}, group
        for each in runs.values():
            each.stop()
