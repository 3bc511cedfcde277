"""Configurations in the shape of the reference's own pages: each loads, and holds what it says.

What they do is tested where it is done. Those on access control are in ``test_access.py``, those on middleware in
``tests/middleware/test_pages.py``, and files of Resiliency in ``tests/http/test_resiliency_pages.py``.

Source: Dapr 1.18, the pages on configuration, tracing, metrics, the API allow list, secret scopes, logging, preview
features, component deny lists and name resolution.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import orjson
import pytest

from mesh.errors import Problem
from mesh.resources.configuration import APIOperation, MetricLabel, OTelHeader, SecretScope
from mesh.resources.loader import load_configuration_file

ZIPKIN = "http://zipkin.default.svc.cluster.local:9411/api/v2/spans"
PATHS = ("/items", "/orders/{orderID}", "/orders/{orderID}/items/{itemID}")
BUCKETS = (10, 25, 40, 50, 70, 100, 150, 200, 500, 1000, 5000)
_OTEL = {"endpointAddress": "localhost:4317", "isSecure": False, "protocol": "grpc"}

# The spec, what is then set, and the fields that get a warning.
PAGES: dict[str, tuple[dict[str, object], dict[str, object], list[str]]] = {
    "tracing to zipkin": (
        {"tracing": {"samplingRate": "1", "zipkin": {"endpointAddress": ZIPKIN}}},
        {"tracing.sampling_rate": 1.0, "tracing.zipkin.endpoint_address": ZIPKIN},
        [],
    ),
    "tracing to a collector and the log": (
        {"tracing": {"samplingRate": "1", "stdout": True, "otel": _OTEL}},
        {"tracing.stdout": True, "tracing.otel.protocol": "grpc", "tracing.otel.is_secure": False},
        [],
    ),
    "tracing without a protocol": (
        {"tracing": {"samplingRate": "1", "otel": {"endpointAddress": "myendpoint.cluster.local:4317"}}},
        {"tracing.otel.protocol": None, "tracing.otel.is_secure": True},
        ["spec.tracing.otel.endpointAddress"],
    ),
    "tracing with a number": ({"tracing": {"samplingRate": 1}}, {"tracing.sampling_rate": 1.0}, []),
    "header fields for a collector": (
        {"tracing": {"otel": {**_OTEL, "headers": [{"name": "api-key", "value": "abc"}], "timeout": "10s"}}},
        {"tracing.otel.headers": (OTelHeader("api-key", "abc"),), "tracing.otel.timeout.seconds": 10.0},
        [],
    ),
    "metrics off": ({"metrics": {"enabled": False}}, {"metrics.enabled": False}, []),
    "metrics": (
        {
            "metrics": {
                "enabled": True,
                "rules": [],
                "latencyDistributionBuckets": [],
                "recordErrorCodes": True,
                "http": {"increasedCardinality": True, "pathMatching": PATHS, "excludeVerbs": False},
            }
        },
        {"metrics.record_error_codes": True, "metrics.http.path_matching": PATHS, "metrics.rules": ()},
        [],
    ),
    "buckets": (
        {"metrics": {"enabled": True, "latencyDistributionBuckets": BUCKETS}},
        {"metrics.latency_distribution_buckets": BUCKETS},
        [],
    ),
    "rules of metrics": (
        {
            "metric": {
                "enabled": True,
                "rules": [
                    {
                        "name": "dapr_runtime_service_invocation_req_sent_total",
                        "labels": [{"name": "dst_app_id", "regex": {"orders/": "orders/.+"}}],
                    }
                ],
            }
        },
        {"metric.rules.0.labels": (MetricLabel("dst_app_id", {"orders/": "orders/.+"}),)},
        [],
    ),
    "one API over gRPC": (
        {"api": {"allowed": [{"name": "state", "version": "v1", "protocol": "grpc"}]}},
        {"api.allowed": (APIOperation("state", "v1", "grpc"),)},
        [],
    ),
    "one API denied over HTTP": (
        {"api": {"denied": [{"name": "state", "version": "v1.0", "protocol": "http"}]}},
        {"api.denied": (APIOperation("state", "v1.0", "http"),), "api.allowed": ()},
        [],
    ),
    "secret scopes": (
        {
            "secrets": {
                "scopes": [
                    {"storeName": "kubernetes", "defaultAccess": "deny", "allowedSecrets": ["redis-password"]},
                    {"storeName": "localstore", "defaultAccess": "allow", "deniedSecrets": ["redis-password"]},
                ]
            }
        },
        {
            "secrets.scopes": (
                SecretScope("kubernetes", "deny", allowed_secrets=("redis-password",)),
                SecretScope("localstore", "allow", denied_secrets=("redis-password",)),
            )
        },
        [],
    ),
    "logging": (
        {"logging": {"apiLogging": {"enabled": False, "obfuscateURLs": True, "omitHealthChecks": False}}},
        {"logging.api_logging.enabled": False, "logging.api_logging.obfuscate_urls": True},
        [],
    ),
    "features": (
        {"features": [{"name": "Feature1", "enabled": True}, {"name": "Feature2", "enabled": True}]},
        {"features.1.name": "Feature2", "features.1.enabled": True},
        [],
    ),
    "components denied": (
        {"components": {"deny": ["bindings.smtp", "secretstores.local.file"]}},
        {"components.deny": ("bindings.smtp", "secretstores.local.file")},
        [],
    ),
    "name resolution": (
        {"nameResolution": {"component": "consul", "configuration": {"selfRegister": True}}},
        {"name_resolution.component": "consul"},
        ["spec.nameResolution"],
    ),
    "strict sandbox": ({"wasm": {"strictSandbox": True}}, {"wasm.strict_sandbox": True}, ["spec.wasm"]),
    "workflows": (
        {"workflow": {"maxConcurrentWorkflowInvocations": 100}},
        {"workflow.max_concurrent_workflow_invocations": 100},
        [],
    ),
}


@pytest.mark.parametrize(("spec", "values", "warned"), PAGES.values(), ids=PAGES)
def test_a_page_loads(tmp_path: Path, spec: dict[str, object], values: dict[str, object], warned: list[str]) -> None:
    """Nothing of it is refused, and a warning tells what has no effect."""
    file = tmp_path / "config.yaml"
    head = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Configuration",
        "metadata": {"name": "c", "namespace": "default"},
    }
    file.write_bytes(orjson.dumps({**head, "spec": spec}))
    warnings: list[Problem] = []
    found = load_configuration_file(file, {}, warnings).spec
    assert [each.path for each in warnings] == warned
    assert {path: reduce(_member, path.split("."), found) for path in values} == values


def _member(holder: object, name: str) -> object:
    return holder[int(name)] if isinstance(holder, tuple) else getattr(holder, name)
