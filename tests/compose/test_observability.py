"""The stack of examples/observability, but for Grafana: all gateways are scraped, and an order is one trace.

Only `make compose-test` runs it; `tests/e2e/test_observability.py` has the same applications, gateways and rules.
"""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.compose.engine import GATEWAY, ROOT, compose_command, prepare, run, say
from tests.support.eventually import eventually_sync
from tests.support.processes import free_port

pytestmark = pytest.mark.timeout(600, func_only=True)

EXAMPLE = ROOT / "examples" / "observability"
WITHIN = 240.0  # Zipkin's virtual machine starts slowly where others work.
APPLICATIONS = {"shop", "orders", "mailer"}


@pytest.fixture
def ports() -> Iterator[dict[str, str]]:
    """Start the stack; give the ports that it publishes, by variable."""
    if os.environ.get("COMPOSE_TEST") != "true":
        pytest.skip("`make compose-test` runs this")
    services: dict[str, Any] = yaml.safe_load((EXAMPLE / "compose.yaml").read_text(encoding="utf-8"))["services"]
    started = services.keys() - {"grafana"}
    prepare((), *sorted({services[name]["image"] for name in started} - {GATEWAY}))
    environ = {name: str(free_port()) for name in ("PROMETHEUS_PORT", "ZIPKIN_PORT", "GRAFANA_PORT")}
    compose = [*compose_command(), "--project-name=brokermesh-test-observability", f"--file={EXAMPLE / 'compose.yaml'}"]
    try:
        run(*compose, "up", "--detach", "--no-build", *sorted(started), within=WITHIN, environ=environ)
        yield environ
        print(run(*compose, "logs", "--no-color", "--tail=40", environ=environ))  # Shown when the test fails.
    finally:
        run(*compose, "down", "--timeout=10", "--volumes", within=WITHIN, environ=environ)


def test_what_gateways_do_is_shown(ports: dict[str, str]) -> None:
    """Prometheus reaches each gateway and has read the rules; Zipkin has an order's way through all applications."""

    def asked(port: str, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{ports[port]}/api/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except OSError as error:
            raise AssertionError(url) from error

    def scraped() -> None:
        up = asked("PROMETHEUS_PORT", "v1/query", query='up{job="mesh"} == 1')["data"]["result"]
        assert {each["metric"]["instance"] for each in up} == {f"{name}-gateway:9090" for name in APPLICATIONS}
        groups = asked("PROMETHEUS_PORT", "v1/rules")["data"]["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}

    def traced() -> None:
        traces = asked("ZIPKIN_PORT", "v2/traces", serviceName="mailer", limit="20")
        through = [{span["localEndpoint"]["serviceName"] for span in trace} for trace in traces]
        assert APPLICATIONS in through, through

    eventually_sync(scraped, WITHIN)
    say("observability: all gateways are scraped")
    eventually_sync(traced, WITHIN)
    say("observability: an order is one trace")
