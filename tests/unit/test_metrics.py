"""Metrics without a gateway: the table against Dapr's, bounds of labels, patterns of paths, rules, and the text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.cli.check import check
from gateway.config import GatewayConfig
from gateway.http.response import Response
from gateway.http.stages import _measuring
from gateway.metrics.endpoint import breaker_states
from gateway.metrics.exposition import Told, exposed
from gateway.metrics.recording import MAX_LABEL, MAX_SERIES, Recorder, Series
from gateway.metrics.settings import Rules
from gateway.metrics.sources import BREAKERS, GATEWAY, HTTP_SERVED, SOURCES
from gateway.metrics.table import METRICS
from gateway.settings import load_settings
from mesh import telemetry
from mesh.conditions import Conditions
from mesh.errors import BrokerUnavailableError, ConfigError, Problem
from mesh.guard import Guard
from mesh.policies import CircuitBreaker, Policy
from mesh.resources.configuration import MetricLabel, MetricRule
from mesh.resources.loader import load_configuration_file
from mesh.resources.metric_patterns import PathPatterns, substitution
from mesh.telemetry import EVENTS_PUBLISHED, OPERATIONS, OTHER

COMPONENT = "component namespace operation success"
EVENT = "component namespace success topic"
PROCESSED = "component namespace process_status topic"
HTTP = "method path status"
POLICY = "flow_direction name namespace policy status target"
# As they were seen on Dapr 1.18's metrics port; all have app_id besides.
DAPR = {
    **{f"component_pubsub_egress{each}": EVENT for each in ("_count", "_latencies", "_bulk_count", "_bulk_latencies")},
    **{f"component_pubsub_ingress_{each}": f"{PROCESSED} status" for each in ("count", "latencies")},
    **{f"component_pubsub_ingress_bulk_{each}": PROCESSED for each in ("count", "latencies", "event_count")},
    **{
        f"component_{block}_{each}": COMPONENT
        for block in ("state", "configuration", "secret", "crypto", "output_binding")
        for each in ("count", "latencies")
    },
    **{
        f"component_{block}_{each}": "component namespace success"
        for block in ("input_binding", "conversation")
        for each in ("count", "latencies")
    },
    **{f"component_job_{each}_count": "namespace operation" for each in ("success", "failure")},
    "component_job_latencies": "namespace operation success",
    **{f"http_server_{each}": HTTP for each in ("request_count", "response_count", "latency")},
    **{f"http_server_{each}": "" for each in ("request_bytes", "response_bytes")},
    **{f"http_client_{each}": HTTP for each in ("completed_count", "roundtrip_latency")},
    **{f"http_healthprobes_{each}": "status" for each in ("completed_count", "roundtrip_latency")},
    **{
        f"grpc_io_server_{each}": "grpc_server_method grpc_server_status"
        for each in ("completed_rpcs", "server_latency")
    },
    **{
        f"grpc_io_client_{each}": "grpc_client_method grpc_client_status"
        for each in ("completed_rpcs", "roundtrip_latency")
    },
    **{f"grpc_io_healthprobes_{each}": "grpc_client_status" for each in ("completed_count", "roundtrip_latency")},
    **{f"resiliency_{each}": POLICY for each in ("count", "activations_total", "cb_state")},
    "resiliency_loaded": "name namespace",
    "error_code_total": "category error_code",
    **{
        f"runtime_acl_{by}_policy_action_{action}_total": "namespace trustDomain"
        for by in ("app", "global")
        for action in ("allowed", "blocked")
    },
    "runtime_actor_deactivated_total": "actor_type",
    "runtime_actor_pending_actor_calls": "actor_type",
    "runtime_actor_reminders_fired_total": "actor_type success",
    "runtime_actor_timers": "actor_type",
    "runtime_actor_timers_fired_total": "actor_type success",
    "runtime_component_init_total": "component",
    "runtime_component_init_fail_total": "component componentName reason",
    "runtime_component_loaded": "",
    "runtime_service_invocation_req_sent_total": "dst_app_id type",
    "runtime_service_invocation_req_recv_total": "src_app_id",
    "runtime_service_invocation_res_recv_total": "src_app_id status type",
    "runtime_service_invocation_res_recv_latency_ms": "src_app_id status",
    "runtime_service_invocation_res_sent_total": "dst_app_id status",
    "runtime_workflow_operation_count": "namespace operation status",
    "runtime_workflow_operation_latency": "namespace operation status",
    "runtime_workflow_execution_count": "namespace workflow_name status",
    "runtime_workflow_execution_latency": "namespace workflow_name status",
    "runtime_workflow_scheduling_latency": "namespace workflow_name",
    "runtime_workflow_activity_operation_count": "namespace activity_name status",
    "runtime_workflow_activity_operation_latency": "namespace activity_name status",
    "runtime_workflow_activity_execution_count": "namespace activity_name status",
    "runtime_workflow_activity_execution_latency": "namespace activity_name status",
    "runtime_workflow_acl_action_allowed_total": "src_app_id operation type",
    "runtime_workflow_acl_action_denied_total": "src_app_id operation type",
}


def test_names_and_labels_are_those_of_dapr() -> None:
    found = {each.name: each.labels for each in METRICS if each.name.startswith("dapr_")}
    assert {name.removeprefix("dapr_"): " ".join(sorted(labels)) for name, labels in found.items()} == {
        name: " ".join(sorted(labels.split())) for name, labels in DAPR.items()
    }


def test_rows_of_one_metric_agree() -> None:
    """In kind, text and labels; and each row takes what its source has."""
    first = {each.name: each for each in reversed(METRICS)}
    for each in METRICS:
        of = first[each.name]
        assert (each.kind, each.text, list(each.labels)) == (of.kind, of.text, list(of.labels))
        taken = {of for of in each.labels.values() if isinstance(of, str)} | set(each.where)
        assert taken <= {*SOURCES[each.source], "namespace"}, each.name


def lines(recorder: Recorder, name: str) -> list[str]:
    text = exposed(Told(recorder.measured(), "app", "ns", Rules())).decode()
    return [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]


def test_labels_are_bounded() -> None:
    """What comes beyond is counted together, under the labels that are known."""
    recorder = Recorder()
    for number in range(MAX_SERIES + 5):
        recorder(EVENTS_PUBLISHED, ("pubsub", f"t{number}"))
        recorder(OPERATIONS, ("state", "get", f"s{number}", "ok"))
    assert len(lines(recorder, "mesh_events_published_total")) == MAX_SERIES + 1
    assert f'mesh_events_published_total{{app_id="app",component="{OTHER}",topic="{OTHER}"}} 5' in lines(
        recorder, "mesh_events_published_total"
    )
    state = f'app_id="app",component="{OTHER}",namespace="ns",success="true",operation="get"'
    assert f"dapr_component_state_count{{{state}}} 5" in lines(recorder, "dapr_component_state_count")


async def test_states_of_breakers_are_bounded_and_what_is_open_comes_first() -> None:
    conditions = Conditions()
    breaker = CircuitBreaker("cb")
    guards = [Guard(Policy(breaker=breaker), conditions.of("invocation", str(number))) for number in range(1200)]
    last = guards[-1]
    for _ in range(6):
        await last.attempt(_away)
    told = breaker_states(conditions.breakers())
    assert len({labels[:-1] for labels, _ in told}) == MAX_SERIES + 1
    text = exposed(Told({BREAKERS: told}, "app", "", Rules())).decode()
    now = {each for each in text.splitlines() if each.startswith("dapr_resiliency_cb_state{") and each.endswith(" 1")}
    assert len(now) == MAX_SERIES + 1
    [opened] = (each for each in now if 'status="open"' in each)
    assert 'target="app_1199"' in opened
    [other] = (each for each in now if OTHER in each)
    assert 'status="closed"' in other


async def test_what_clients_choose_is_not_kept_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short verbs and paths are looked for once; verbs of HTTP/2 may be as long as a header section."""
    looked: list[str] = []
    recorder = Recorder()
    found = recorder.series

    def series(name: str, labels: tuple[str, ...] = ()) -> Series:
        looked.extend(labels[:1])
        return found(name, labels)

    async def answer(request: object) -> Response:
        return Response(204)

    monkeypatch.setattr(recorder, "series", series)
    measuring = _measuring(recorder, guarded=False)(answer)
    long = "M" * MAX_LABEL
    for verb in ("GET", long) * 3:
        await measuring(cast("Any", SimpleNamespace(method=verb, raw_path="/", content=SimpleNamespace(total_bytes=0))))
    assert looked == ["GET", long, long, long]


async def _away() -> object:
    raise BrokerUnavailableError("away")


def test_labels_are_cut() -> None:
    """Each is written for every bucket."""
    recorder = Recorder()
    for _ in range(2):
        recorder(EVENTS_PUBLISHED, ("pubsub", "t" * 10_000))
    topic = "t" * MAX_LABEL
    assert lines(recorder, "mesh_events_published_total") == [
        f'mesh_events_published_total{{app_id="app",component="pubsub",topic="{topic}"}} 2'
    ]


def test_whatever_is_observed_can_be_counted() -> None:
    """And told, as the counts of a node are in its metadata."""
    names = {value for name, value in vars(telemetry).items() if value == name.lower()}
    names -= {telemetry.OK, telemetry.BAGGAGE}
    assert telemetry.SPANS in names
    assert names <= SOURCES.keys()
    recorder = Recorder()
    for name in names:
        recorder(name, ("x",) * len(SOURCES[name]))
    assert {key[0] for key in recorder.snapshot()} == names


def test_histograms() -> None:
    """Buckets include their bound, and count everything below."""
    recorder = Recorder(buckets=(1, 10))
    for milliseconds in (0.5, 1, 2, 10, 11):
        recorder(HTTP_SERVED, ("GET", "/", "200"), 1, milliseconds / 1000)
    labels = 'app_id="app",method="GET",path="/",status="200"'
    name = "dapr_http_server_latency"
    assert lines(recorder, f"{name}_bucket") == [
        f'{name}_bucket{{{labels},le="1"}} 2',
        f'{name}_bucket{{{labels},le="10"}} 4',
        f'{name}_bucket{{{labels},le="+Inf"}} 5',
    ]
    assert lines(recorder, f"{name}_sum") == [f"{name}_sum{{{labels}}} 24.5"]
    assert lines(recorder, f"{name}_count") == [f"{name}_count{{{labels}}} 5"]


def test_values_of_labels_are_escaped() -> None:
    text = exposed(Told({GATEWAY: [(('a"b\\c\nd\udc80',), Series(times=1))]}, "app", "", Rules())).decode()
    assert 'mesh_gateway_info{app_id="app",version="a\\"b\\\\c\\nd?"} 1' in text.splitlines()


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/orders", "/orders"),
        ("/orders/1", "/orders/{id}"),
        ("/orders/mine", "/orders/mine"),
        ("/orders/", None),
        ("/orders/1/items", None),
        ("/files/a/b", "/files/{rest...}"),
        ("/files/", "/files/{rest...}"),
        ("/below/", "/below/"),
        ("/below/a/b", "/below/"),
        ("/below", None),
        ("/end/", "/end/{$}"),
        ("/end/x", None),
        ("/", None),
        ("*", None),
    ],
)
def test_patterns_of_paths(path: str, pattern: str | None) -> None:
    """The most exact one counts, in whatever order they stand."""
    patterns = ["/orders/{id}", "/orders", "/orders/mine", "/files/{rest...}", "/below/", "/end/{$}"]
    assert PathPatterns(patterns).match(path) == pattern
    assert PathPatterns(patterns[::-1]).match(path) == pattern


@pytest.mark.parametrize(
    ("rules", "value", "changed"),
    [
        ({"x": "a+"}, "baab", "bxb"),
        ({"x": ".*"}, "abc", "x"),
        ({"$1-${name}$$": "(a)(?P<name>b)"}, "ab", "a-b$"),
        ({"$9": "a"}, "ab", "b"),
        ({"\\1": "(a)"}, "a", "\\1"),
        ({"b": "a", "c": "b"}, "a", "c"),
        ({"\u00e9$0": "\u00fc|$"}, "a\u00fc", "a\u00e9\u00fc"),
        ({"x": "^(a+)+$"}, "a" * 5000 + "!", "a" * 5000 + "!"),
    ],
)
def test_rules_replace_as_in_go(rules: dict[str, str], value: str, changed: str) -> None:
    assert substitution(rules)(value) == changed


def test_rules_know_a_metric_by_each_of_its_names() -> None:
    for name in ("dapr_http_server_latency", "http_server_latency", "http/server/latency"):
        rules = Rules([MetricRule(name, (MetricLabel("path", {"x": "y"}),))])
        assert rules.of("dapr_http_server_latency")["path"]("y") == "x"


@pytest.mark.parametrize(
    ("metrics", "place", "message"),
    [
        ("{http: {pathMatching: [/a, b]}}", "4:44", "does not begin with '/'"),
        ("{http: {pathMatching: ['/a/x{id}']}}", "4:40", "'x{id}' is no parameter"),
        ("{http: {pathMatching: ['/{rest...}/b']}}", "4:40", "takes the rest of a path"),
        ("{http: {pathMatching: [/a, /b, /a]}}", "4:48", "the path '/a' stands there before"),
        ("{latencyDistributionBuckets: [5, 5]}", "4:46", "each more than the one before"),
        ("{latencyDistributionBuckets: [0, 5]}", "4:46", "above 0"),
        ("{rules: [{name: n, labels: [{name: l, regex: {x: '('}}]}]}", "4:66", "'(' is no regular expression"),
    ],
)
@pytest.mark.parametrize("section", ["metrics", "metric "])
def test_what_cannot_be_meant_is_told_with_its_place(
    metrics: str, place: str, message: str, section: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    text = (
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec: {" + f"{section}: {metrics}}}\n"
    )
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_configuration_file(path, {}, [])
    (problem,) = raised.value.problems
    assert str(problem).startswith(f"{path}:{place}: spec.{section.strip()}.")
    assert message in str(problem)


@pytest.mark.parametrize(
    ("rule", "place", "said"),
    [
        (
            "{name: dapr_http_server_latncy, labels: []}",
            "4:33: spec.metrics.rules[0].name",
            "a gateway has no metric 'dapr_http_server_latncy'; did you mean 'dapr_http_server_latency'?",
        ),
        ("{name: dapr_runtime_workflow_timers}", "4:33: spec.metrics.rules[0].name", "has no metric"),
        (
            "{name: http/server/latency, labels: [{name: paht, regex: {x: y}}]}",
            "4:70: spec.metrics.rules[0].labels[0].name",
            "dapr_http_server_latency has no label 'paht', but app_id, method, path, status",
        ),
        (
            "{name: http_server_latency, labels: [{name: path, regex: {$9: y}}]}",
            "4:88: spec.metrics.rules[0].labels[0].regex.$9",
            "'y' has no group '9', so that nothing takes the place of $9",
        ),
        (
            "{name: http_server_latency, labels: [{name: path, regex: {$1x: (y)}}]}",
            "4:89: spec.metrics.rules[0].labels[0].regex.$1x",
            "'(y)' has no group '1x', so that nothing takes the place of $1x; did you mean ${1}x?",
        ),
    ],
)
def test_rules_without_effect_are_told(rule: str, place: str, said: str, tmp_path: Path) -> None:
    """By ``mesh check`` and at start, with their place; Dapr has more metrics, so the file loads."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\n"
        "spec: {metrics: {rules: [" + rule + "]}}\n"
    )
    [warning] = check([path]).warnings
    assert str(warning).startswith(f"{path}:{place}: ")
    assert said in str(warning)
    at_start: list[Problem] = []
    load_settings(GatewayConfig("app", home=tmp_path, configuration_files=(path,)), at_start)
    assert at_start == [warning]
