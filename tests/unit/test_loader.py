"""Files to resources: what loads, and where each problem is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import ConfigError, Problem
from mesh.policies import Timeout
from mesh.resources.loader import (
    FileModel,
    LoadedResources,
    ResourceFiles,
    expand_variables,
    load_configuration_file,
    load_resources,
    parse_documents,
    read_documents,
    validate,
)
from mesh.resources.resiliency import ResiliencyPolicies
from mesh.spelling import did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

COMPONENT = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: s\n"
SUBSCRIPTION_V1 = "apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata: {name: s}\nspec:\n"
SUBSCRIPTION_V2 = "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: s}\nspec:\n"
RESILIENCY = "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\nspec:\n"
ENDPOINT = "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: e}\nspec:\n"
CONFIGURATION = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n"


def problems_of(text: str, tmp_path: Path) -> list[str]:
    """Load one file and give its problems, without the directory."""
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_resources([tmp_path])
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


CASES: dict[str, tuple[str, list[str]]] = {
    "unknown key": (
        COMPONENT + "spec:\n  type: state.redis\n  ignoreError: true\n",
        ["f.yaml:7:3: spec.ignoreError: unknown field; did you mean 'ignoreErrors'?"],
    ),
    "unknown key without a guess": (
        COMPONENT + "spec:\n  type: state.redis\nauth: {zzz: 1}\n",
        ["f.yaml:7:8: auth.zzz: unknown field; known are secretStore, and ignoring it would be unsafe"],
    ),
    "misspelt required key is one problem": (
        COMPONENT + "spec:\n  tpye: state.redis\n",
        ["f.yaml:6:3: spec.tpye: unknown field; did you mean 'type'?"],
    ),
    "top-level key": (
        COMPONENT + "spec: {type: state.redis}\nscope: [a]\n",
        ["f.yaml:6:1: scope: unknown field; did you mean 'scopes'?"],
    ),
    "missing spec": (COMPONENT, ["f.yaml:1:1: spec: required field is missing"]),
    "missing type": (COMPONENT + "spec:\n  version: v1\n", ["f.yaml:5:1: spec.type: required field is missing"]),
    "type without a value": (COMPONENT + "spec:\n  type:\n", ["f.yaml:6:3: spec.type: required field is missing"]),
    "type without a block": (
        COMPONENT + "spec: {type: redis}\n",
        ["f.yaml:5:14: spec.type: a type looks like 'state.redis', not 'redis'"],
    ),
    "empty name": (
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: ''}\nspec: {type: a.b}\n",
        ["f.yaml:3:18: metadata.name: must not be empty"],
    ),
    "wrong scalar type": (
        COMPONENT + "spec:\n  type: state.redis\n  ignoreErrors: 'yes'\n  version: [1]\n",
        [
            "f.yaml:7:17: spec.ignoreErrors: expected true or false, got 'yes'",
            "f.yaml:8:12: spec.version: expected text, got a list",
        ],
    ),
    "wrong shape": (
        COMPONENT + "spec: {type: a.b, metadata: {a: b}}\nscopes: app1\n",
        [
            "f.yaml:5:29: spec.metadata: expected a list, got a mapping",
            "f.yaml:6:9: scopes: expected a list, got 'app1'",
        ],
    ),
    "spec is text": (COMPONENT + "spec: x\n", ["f.yaml:5:7: spec: expected a mapping, got 'x'"]),
    "bad duration": (
        COMPONENT + "spec:\n  type: a.b\n  initTimeout: 5\n",
        ["f.yaml:7:16: spec.initTimeout: a duration needs a unit: '5s' or '5ms', not '5'"],
    ),
    "bad duration text": (
        COMPONENT + "spec:\n  type: a.b\n  initTimeout: 5 s\n",
        ["f.yaml:7:16: spec.initTimeout: not a duration: '5 s' (for example '500ms', '1.5s', '1h30m' or 'PT1H')"],
    ),
    "entry without a name": (
        COMPONENT + "spec:\n  type: a.b\n  metadata:\n  - value: x\n",
        ["f.yaml:8:5: spec.metadata[0].name: required field is missing"],
    ),
    "entry with two values": (
        COMPONENT + "spec:\n  type: a.b\n  metadata:\n  - {name: a, value: x, envRef: Y}\n",
        ["f.yaml:8:5: spec.metadata[0]: has more than one of value, secretKeyRef and envRef"],
    ),
    "entry twice": (
        COMPONENT + "spec:\n  type: a.b\n  metadata:\n  - {name: a, value: x}\n  - {name: A, value: y}\n",
        ["f.yaml:9:12: spec.metadata[1].name: the name 'A' stands here twice"],
    ),
    "placement": (
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: c, annotations: {mesh.placement: locl}}\n"
        "spec: {type: a.b}\n",
        ["f.yaml:3:51: metadata.annotations.mesh.placement: expected one of nearest, backbone, local, got 'locl'"],
    ),
    "annotation": (
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: c, annotations: {mesh.placment: local}}\n"
        "spec: {type: a.b}\n",
        [
            "f.yaml:3:35: metadata.annotations.mesh.placment: unknown annotation; did you mean 'mesh.placement'?",
        ],
    ),
    "apiVersion": (
        COMPONENT.replace("v1alpha1", "v1alpha2") + "spec: {type: a.b}\n",
        [
            "f.yaml:1:13: apiVersion: expected 'dapr.io/v1alpha1', got 'dapr.io/v1alpha2'; "
            "did you mean 'dapr.io/v1alpha1'?"
        ],
    ),
    "no kind": ("apiVersion: dapr.io/v1alpha1\n", ["f.yaml:1:1: kind: expected the kind of a resource"]),
    "kind is no text": ("kind: 5\n", ["f.yaml:1:7: kind: expected the kind of a resource"]),
    "duplicate key": (
        COMPONENT + "spec:\n  type: a.b\n  type: a.c\n",
        ["f.yaml:7:3: the key 'type' stands here twice"],
    ),
    "syntax": (
        COMPONENT + "spec: {type: a.b\n",
        ["f.yaml:6:1: is not valid YAML: expected ',' or '}', but got '<stream end>'"],
    ),
    "tab": ("a:\n\tb: 1\n", ["f.yaml:2:1: is not valid YAML: found character '\\t' that cannot start any token"]),
    "control character": ("a: b\nc: \x01\n", ["f.yaml:2:4: is not valid YAML: the character U+0001 is not allowed"]),
    "undefined alias": ("a: *b\n", ["f.yaml:1:4: is not valid YAML: found undefined alias 'b'"]),
    "custom tag": ("a: !x y\n", ["f.yaml:1:4: the YAML tag '!x' is not supported"]),
    "recursive alias": ("a: &a [*a]\n", ["f.yaml:1:4: an alias contains itself"]),
    "key is a list": ("[a]: b\n", ["f.yaml:1:1: a key must be text"]),
    "no route": (
        SUBSCRIPTION_V1 + "  pubsubname: p\n  topic: t\n",
        ["f.yaml:4:1: spec.route: required field is missing"],
    ),
    "routes in the old shape": (
        SUBSCRIPTION_V1 + "  pubsubname: p\n  topic: t\n  routes: {default: a}\n",
        ["f.yaml:7:3: spec.routes: belongs to dapr.io/v2alpha1; in dapr.io/v1alpha1 there is one route (route: /path)"],
    ),
    "route in the new shape": (
        SUBSCRIPTION_V2 + "  pubsubname: p\n  topic: t\n  route: /a\n",
        [
            "f.yaml:7:3: spec.route: belongs to dapr.io/v1alpha1; in dapr.io/v2alpha1 it is the default of routes "
            "(routes: {default: /path})"
        ],
    ),
    "empty routes": (
        SUBSCRIPTION_V2 + "  pubsubname: p\n  topic: t\n  routes: {}\n",
        ["f.yaml:7:3: spec.routes: needs at least one rule or a default"],
    ),
    "bad CEL": (
        SUBSCRIPTION_V2
        + "  pubsubname: p\n  topic: t\n  routes:\n    rules:\n    - path: /a\n      match: event.type ==\n",
        [
            "f.yaml:10:14: spec.routes.rules[0].match: expression 'event.type ==' does not compile: "
            "mismatched input 'end of expression' at 1:14"
        ],
    ),
    "negative bulk": (
        SUBSCRIPTION_V1 + "  {pubsubname: p, topic: t, route: r, bulkSubscribe: {maxMessagesCount: -1}}\n",
        ["f.yaml:5:73: spec.bulkSubscribe.maxMessagesCount: expected a whole number of at least 0, got the number -1"],
    ),
    "several documents": (
        COMPONENT + "spec: {type: a}\n---\n" + SUBSCRIPTION_V1 + "  {pubsubname: p, topic: [5], route: ''}\n",
        [
            "f.yaml:5:14: spec.type: a type looks like 'state.redis', not 'a'",
            "f.yaml:11:26: spec.topic: expected text, got a list",
            "f.yaml:11:38: spec.route: must not be empty",
        ],
    ),
    "name clash": (
        COMPONENT + "spec: {type: a.b}\n---\n" + COMPONENT + "spec: {type: a.c}\n",
        ["f.yaml:10:9: metadata.name: a Component named 's' stands already in f.yaml:4"],
    ),
    "policies": (
        RESILIENCY
        + "  policies:\n    timeouts: {a: 5x}\n    retries:\n      r: {policy: exponental, maxRetries: x}\n"
        + "      q: {matching: {httpStatusCodes: '700'}}\n    circuitBreakers: {c: {trip: 'requests'}}\n",
        [
            "f.yaml:6:19: spec.policies.timeouts.a: not a duration: '5x' "
            "(for example '500ms', '1.5s', '1h30m' or 'PT1H', or whole milliseconds)",
            "f.yaml:8:19: spec.policies.retries.r.policy: expected 'constant' or 'exponential', got 'exponental'; "
            "did you mean 'exponential'?",
            "f.yaml:8:43: spec.policies.retries.r.maxRetries: expected a whole number, got 'x'",
            "f.yaml:9:39: spec.policies.retries.q.matching.httpStatusCodes: "
            "'700' is no status code or range within 100-599",
            "f.yaml:10:33: spec.policies.circuitBreakers.c.trip: "
            "expression 'requests' must give true or false, not int",
        ],
    ),
    "targets": (
        RESILIENCY
        + "  policies: {timeouts: {fast: 1s}, circuitBreakers: {c: {}}}\n  targets:\n"
        + "    apps: {a: {timeout: fsat, retry: DaprBuiltInServiceRetries}}\n"
        + "    actors: {t: {circuitBreaker: c}}\n"
        + "    components: {p: {inbound: {retry: zzz}, outbond: {}}}\n",
        [
            "f.yaml:7:25: spec.targets.apps.a.timeout: there is no timeout policy 'fsat'; did you mean 'fast'?",
            "f.yaml:8:34: spec.targets.actors.t.circuitBreaker: a circuit breaker of actors needs a "
            "circuitBreakerScope: type, id or both",
            "f.yaml:9:39: spec.targets.components.p.inbound.retry: there is no retry policy 'zzz'",
            "f.yaml:9:45: spec.targets.components.p.outbond: unknown field; did you mean 'outbound'?",
        ],
    ),
    "scopes of one store": (
        CONFIGURATION + "  secrets:\n    scopes:\n    - {storeName: a, defaultAccess: deny}\n    - {storeName: b}\n"
        "    - {storeName: a, defaultAccess: allow}\n",
        ["f.yaml:9:7: spec.secrets.scopes[2]: there is a scope of a before, which would not count"],
    ),
    "what would be around nothing": (
        RESILIENCY
        + "  policies: {timeouts: {a: 1s}, retries: {r: {dur: 5s}}}\n  targets:\n"
        + "    apps: {a: {foo: 1}}\n    components: {p: {timeoot: a, bar: 1}}\n  other: {}\n",
        [
            "f.yaml:7:16: spec.targets.apps.a.foo: unknown field; known are circuitBreaker, circuitBreakerCacheSize, "
            "circuitBreakerScope, retry, timeout",
            "f.yaml:8:22: spec.targets.components.p.timeoot: unknown field; did you mean 'timeout'?",
            "f.yaml:8:34: spec.targets.components.p.bar: unknown field; known are circuitBreaker, inbound, outbound, "
            "retry, timeout",
        ],
    ),
    "without names": (
        RESILIENCY + "  policies: {timeouts: {'': 1s}}\n  targets: {apps: {'': {timeout: ''}}}\n",
        ["f.yaml:5:25: spec.policies.timeouts.: it has no name", "f.yaml:6:20: spec.targets.apps.: it has no name"],
    ),
    "breakers of actors": (
        RESILIENCY
        + "  policies: {timeouts: {fast: 1s}, circuitBreakers: {c: {}}}\n  targets:\n"
        + "    apps: {a: {timeout: fsat, retry: DaprBuiltInServiceRetries}}\n"
        + "    actors: {t: {circuitBreaker: x}}\n"
        + "    components: {p: {inbound: {retry: zzz}}}\n",
        [
            "f.yaml:7:25: spec.targets.apps.a.timeout: there is no timeout policy 'fsat'; did you mean 'fast'?",
            "f.yaml:8:34: spec.targets.actors.t.circuitBreaker: "
            "a circuit breaker of actors needs a circuitBreakerScope: type, id or both",
            "f.yaml:8:34: spec.targets.actors.t.circuitBreaker: there is no circuit breaker policy 'x'",
            "f.yaml:9:39: spec.targets.components.p.inbound.retry: there is no retry policy 'zzz'",
        ],
    ),
    "unknown policies": (
        RESILIENCY
        + "  policies: {timeouts: {fast: 1s}}\n  targets:\n"
        + "    apps: {a: {timeout: fsat, retry: DaprBuiltInServiceRetries}}\n"
        + "    actors: {t: {circuitBreaker: x, circuitBreakerScope: id}}\n"
        + "    components: {p: {inbound: {retry: zzz}}}\n",
        [
            "f.yaml:7:25: spec.targets.apps.a.timeout: there is no timeout policy 'fsat'; did you mean 'fast'?",
            "f.yaml:8:34: spec.targets.actors.t.circuitBreaker: there is no circuit breaker policy 'x'",
            "f.yaml:9:39: spec.targets.components.p.inbound.retry: there is no retry policy 'zzz'",
        ],
    ),
    "endpoint": (
        ENDPOINT
        + "  baseUrl: ftp://x\n  clientTLS: {renegotiation: never}\n  headers: [{name: a, value: 1, envRef: B}]\n",
        [
            "f.yaml:5:12: spec.baseUrl: expected a URL with http:// or https://, got 'ftp://x'",
            "f.yaml:6:30: spec.clientTLS.renegotiation: "
            "expected 'Never', 'OnceAsClient' or 'FreelyAsClient', got 'never'; did you mean 'Never'?",
        ],
    ),
    "endpoint without a server": (
        ENDPOINT + "  baseUrl: http://x:abc\n",
        ["f.yaml:5:12: spec.baseUrl: 'http://x:abc' names no server: a host that can be looked up, and perhaps a port"],
    ),
    "endpoint with a bad address": (
        ENDPOINT + "  baseUrl: http://[::1\n",
        ["f.yaml:5:12: spec.baseUrl: 'http://[::1' names no server: a host that can be looked up, and perhaps a port"],
    ),
    "endpoint with a bad name": (
        ENDPOINT + "  baseUrl: http://a..b\n",
        ["f.yaml:5:12: spec.baseUrl: 'http://a..b' names no server: a host that can be looked up, and perhaps a port"],
    ),
    "endpoint with a header that cannot be sent": (
        ENDPOINT
        + '  baseUrl: http://x\n  headers:\n  - {name: "a\\nb", value: v}\n  - {name: "a:", value: "b\\tc"}\n'
        + '  - {name: X-Ok, value: "b\\r\\nX-Other: c"}\n  - name: Token\n    value: |\n      abc\n',
        [
            "f.yaml:7:12: spec.headers[0].name: no header can be called 'a\\nb'",
            "f.yaml:8:12: spec.headers[1].name: no header can be called 'a:'",
            "f.yaml:9:25: spec.headers[2].value: the value of a header cannot hold the character U+000D",
            "f.yaml:11:12: spec.headers[3].value: the value of a header cannot hold the character U+000A",
        ],
    ),
    "endpoint with a login": (
        ENDPOINT + "  baseUrl: https://me:secret@x/c\n",
        [
            "f.yaml:5:12: spec.baseUrl: "
            "a login, a query or a fragment in it is not sent; a login belongs into spec.headers"
        ],
    ),
    "scalars where they do not belong": (
        COMPONENT + "spec:\n  type: [a]\n  version: {}\n  initTimeout: true\n",
        [
            "f.yaml:6:9: spec.type: expected text, got a list",
            "f.yaml:7:12: spec.version: expected text, got a mapping",
            "f.yaml:8:16: spec.initTimeout: not a duration: 'true' (for example '500ms', '1.5s', '1h30m' or 'PT1H')",
        ],
    ),
    "lists where text belongs": (
        SUBSCRIPTION_V1 + "  {pubsubname: p, topic: t, route: r, metadata: {a: [1]}}\n",
        ["f.yaml:5:53: spec.metadata.a: expected text, got a list"],
    ),
    "timeout and gRPC codes": (
        RESILIENCY + "  policies:\n    timeouts: {a: 1.5}\n    retries: {r: {matching: {gRPCStatusCodes: 17}}}\n",
        [
            "f.yaml:6:19: spec.policies.timeouts.a: "
            "expected a duration such as '5s', or milliseconds, got the number 1.5",
            "f.yaml:7:47: spec.policies.retries.r.matching.gRPCStatusCodes: "
            "'17' is no status code or range within 0-16",
        ],
    ),
    "mappings where a function reads": (
        RESILIENCY + "  policies: {timeouts: {a: {b: 1}}, circuitBreakers: {c: {trip: {d: 1}}}}\n",
        [
            "f.yaml:5:28: spec.policies.timeouts.a: expected a duration such as '5s', or milliseconds, got a mapping",
            "f.yaml:5:65: spec.policies.circuitBreakers.c.trip: expected text, got a mapping",
        ],
    ),
    "endpoint header": (
        ENDPOINT + "  baseUrl: http://x\n  headers: [{name: a, value: 1, envRef: B}]\n",
        ["f.yaml:6:13: spec.headers[0]: has more than one of value, secretKeyRef and envRef"],
    ),
    "no ratio": (
        CONFIGURATION + "  tracing: {samplingRate: often}\n",
        ["f.yaml:5:27: spec.tracing.samplingRate: expected a number from 0 to 1, got 'often'"],
    ),
    "places of spans": (
        CONFIGURATION
        + "  tracing:\n    zipkin: {endpointAddress: 'localhost:9411'}\n    otel:\n      endpointAddress: 'udp://c'\n",
        [
            "f.yaml:6:31: spec.tracing.zipkin.endpointAddress: must be a URL as http://localhost:9411/api/v2/spans, "
            "not 'localhost:9411'",
            "f.yaml:8:24: spec.tracing.otel.endpointAddress: must be host:port, or a URL as http://localhost:4318, "
            "not 'udp://c'",
        ],
    ),
    "headers with spans": (
        CONFIGURATION + "  tracing:\n    otel:\n      headers: [{name: 'a b', value: x}, "
        "{name: a, value: x, secretKeyRef: {name: s}}]\n",
        [
            "f.yaml:7:24: spec.tracing.otel.headers[0].name: no header can be called 'a b'",
            "f.yaml:7:42: spec.tracing.otel.headers[1]: has more than one of value and secretKeyRef",
        ],
    ),
    "configuration": (
        CONFIGURATION + "  tracing: {samplingRate: '2', otel: {protocl: grpc}}\n  mtls: {workloadCertTTL: 1}\n",
        [
            "f.yaml:5:27: spec.tracing.samplingRate: expected a number from 0 to 1, got '2'",
            "f.yaml:5:39: spec.tracing.otel.protocl: unknown field; did you mean 'protocol'?",
            "f.yaml:6:27: spec.mtls.workloadCertTTL: a duration needs a unit: '1s' or '1ms', not '1'",
        ],
    ),
}


UNSAFE: dict[str, tuple[str, str]] = {
    "mtls": (CONFIGURATION + "  mtls: {enabled: true}\n", "mtls.enabled: gateways talk over the broker alone"),
    "part of a protection": (CONFIGURATION + "  secrets: {zzz: [x]}\n", "secrets.zzz: unknown field; known are scopes"),
    "protection by its name": (CONFIGURATION + "  encryption: {x: 1}\n", "encryption: unknown field; known are"),
    "certificate": (
        ENDPOINT + "  baseUrl: http://x\n  clientTLS: {certificate: {value: PEM}}\n",
        "clientTLS.certificate: ",
    ),
    "scopes in spec": (COMPONENT + "spec: {type: a.b, scopes: [x]}\n", "scopes: its place is beside spec, not in it"),
}


@pytest.mark.parametrize(("text", "expected"), UNSAFE.values(), ids=UNSAFE)
def test_what_protects_is_never_ignored(text: str, expected: str, tmp_path: Path) -> None:
    """A section that this version does not have, or that nothing knows, may be what keeps somebody out."""
    [problem] = problems_of(text, tmp_path)
    assert f": spec.{expected}" in problem
    assert problem.endswith(", and ignoring it would be unsafe")


def test_mtls_is_no_problem_where_every_caller_proves_who_it_is(tmp_path: Path) -> None:
    """To ask for none is told there."""
    (tmp_path / "c.yaml").write_text(CONFIGURATION + "  mtls: {enabled: true}\n")
    warnings: list[Problem] = []
    load_configuration_file(tmp_path / "c.yaml", {}, warnings, proven=True)
    assert warnings == []
    (tmp_path / "c.yaml").write_text(CONFIGURATION + "  mtls: {enabled: false}\n")
    load_configuration_file(tmp_path / "c.yaml", {}, warnings, proven=True)
    assert [str(each) for each in warnings] == [
        f"{tmp_path}/c.yaml:5:10: spec.mtls.enabled: callers prove who they are all the same"
    ]


_OLD = "nothing reads it, as in newer versions of Dapr"
STRANGERS: dict[str, tuple[str, list[str]]] = {
    "labels": (
        COMPONENT + "labels: {a: b}\nspec: {type: a.b}\n",
        ["5:1: labels: unknown field; its place is 'metadata.labels'"],
    ),
    "annotations": (
        COMPONENT + "annotations: {a: b}\nspec: {type: a.b}\n",
        ["5:1: annotations: unknown field; its place is 'metadata.annotations'"],
    ),
    "what a cluster adds": (
        COMPONENT
        + "  labels: {a: b}\n  uid: x\n  generation: 1\n  managedFields: [{manager: m}]\n  finalizers: [f]\n"
        + "spec: {type: a.b}\nstatus: {}\n",
        [],
    ),
    "the user's own": (COMPONENT + "x-note: {a: b}\nspec: {type: a.b, x-y: 1}\n", []),
    "version of an endpoint": (
        ENDPOINT + "  baseUrl: http://x\n  version: v1\n",
        ["6:3: spec.version: unknown field; known are baseUrl, clientTLS, headers"],
    ),
    "value of a reference": (
        COMPONENT + "spec:\n  type: a.b\n  metadata: [{name: a, secretKeyRef: {name: s, key: k, value: v}}]\n",
        ["7:56: spec.metadata[0].secretKeyRef.value: nothing reads it: 'name' and 'key' say where the value is"],
    ),
    "old tracing": (
        CONFIGURATION + "  tracing: {samplingRate: '1', enabled: true, expandParams: true, includeBody: true}\n",
        [
            f"5:32: spec.tracing.enabled: {_OLD}",
            f"5:47: spec.tracing.expandParams: {_OLD}",
            f"5:67: spec.tracing.includeBody: {_OLD}",
        ],
    ),
    "policies": (
        CONFIGURATION + "  policies: [{a: b}]\n",
        ["5:3: spec.policies: nothing reads it: policies of access stand in spec.accessControl"],
    ),
    "sections without effect": (
        CONFIGURATION
        + "  metric: {enabled: true}\n  metrics: {enabled: false}\n  logging: {apiLogging: {enabled: true}}\n"
        + "  nameResolution: {component: mdns}\n  mtls: {workloadCertTTL: 1h}\n  wasm: {strictSandbox: true}\n"
        + "  workflow: {maxConcurrentWorkflowInvocations: 1}\n  features: [{name: a, enabled: true}]\n",
        [
            "8:3: spec.nameResolution: it has no effect: applications are found over the broker",
            "9:3: spec.mtls: it has no effect: the broker's TLS takes its place",
            "10:3: spec.wasm: it has no effect yet: there is no WebAssembly",
        ],
    ),
    "a collector's port": (
        CONFIGURATION + "  tracing:\n    otel: {endpointAddress: 'https://c:4317/'}\n",
        [
            "6:29: spec.tracing.otel.endpointAddress: 4317 is usually gRPC's port, and without a protocol it is HTTP, "
            "unless OTEL_EXPORTER_OTLP_PROTOCOL says grpc"
        ],
    ),
    "a collector's port with its protocol": (
        CONFIGURATION + "  tracing: {otel: {endpointAddress: 'c:4317', protocol: http}}\n",
        [],
    ),
    "policies of actors": (
        RESILIENCY + "  policies: {timeouts: {t: 1s}}\n  targets: {actors: {a: {timeout: t}}}\n",
        [],
    ),
    "defaults that are none": (
        RESILIENCY
        + "  policies:\n    timeouts: {DefaultAppRetryPolicy: 1s, DefaultTimeoutPolicy: 1s, DefaultFastPolicy: 1s}\n"
        + "    retries:\n      DefaultStateStoreComponentOutboundRetryPolicy: {}\n      DaprBuiltInServiceRetrys: {}\n"
        + "      DefaultPubsubComponentInboundRetryPolicy: {}\n      DaprBuiltInServiceRetries: {}\n"
        + "  targets: {apps: {a: {timeout: DefaultFastPolicy}}}\n",
        [
            f"{place}: no default policy of this kind has this name: it counts only for targets that name it; "
            f"did you mean '{meant}'?"
            for place, meant in (
                ("6:16: spec.policies.timeouts.DefaultAppRetryPolicy", "DefaultAppTimeoutPolicy"),
                (
                    "8:7: spec.policies.retries.DefaultStateStoreComponentOutboundRetryPolicy",
                    "DefaultStatestoreComponentOutboundRetryPolicy",
                ),
                ("9:7: spec.policies.retries.DaprBuiltInServiceRetrys", "DaprBuiltInServiceRetries"),
            )
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), STRANGERS.values(), ids=STRANGERS)
def test_what_has_no_effect_is_told_once(text: str, expected: list[str], tmp_path: Path) -> None:
    """Files that were written for Dapr load; one line says what they ask for in vain."""
    warnings = load(text, tmp_path).warnings
    assert [str(each).removeprefix(f"{tmp_path}/f.yaml:") for each in warnings] == expected


@pytest.mark.parametrize(
    ("field", "meant"),
    [("namspace: a", "namespace"), ("nmae: a", "name"), ("anotations: {a: b}", "annotations")],
)
def test_near_misses_in_metadata(field: str, meant: str, tmp_path: Path) -> None:
    """A misspelt namespace would be every namespace."""
    text = COMPONENT + f"  {field}\nspec: {{type: a.b}}\n"
    assert problems_of(text, tmp_path) == [
        f"f.yaml:5:3: metadata.{field.partition(':')[0]}: unknown field; did you mean '{meant}'?"
    ]


@pytest.mark.parametrize(
    ("section", "said", "refused"),
    [
        ("denied: [{name: state, version: v1}, {name: actors}, {name: jobs, version: v1.0-alpha1}]", "", False),
        ("denied: [{name: staet}]", "name: no API has the name 'staet'; did you mean 'state'?", True),
        ("denied: [{name: State}]", "name: no API has the name 'State'; did you mean 'state'?", True),
        ("denied: [{name: quux}]", "name: no API has the name 'quux'; known are actors, ", True),
        ("denied: [{name: quux, protocol: grpc}]", "name: no API has the name 'quux'; known are actors, ", True),
        ("denied: [{name: state, version: v7}]", "version: no API has the version 'v7'; known are v1, ", True),
        (
            "denied: [{name: state, version: v1.0-beta1}]",
            "version: the API 'state' has not the version 'v1.0-beta1'; known are v1, v1alpha1, v1.0, v1.0-alpha1; it",
            True,
        ),
        ("denied: [{name: lock, version: v1}]", "version: the API 'lock' has not the version 'v1'; known", True),
        ("denied: [{name: lock, version: v1alpha1}, {name: lock}, {name: jobs, version: v1}]", "", False),
        ("allowed: [{name: lock, version: v1.0}]", "version: the API 'lock' has not the version 'v1.0'", False),
        ("denied: [{name: 'state/{storeName}/query'}]", "name: no API has the name 'state/{storeName}/query'", True),
        ("denied: [{name: ''}]", "name: no API has the name ''; known are actors, ", True),
        ("allowed: [{name: invok}]", "name: no API has the name 'invok'; did you mean 'invoke'?", True),
        (
            "allowed: [{name: state, version: v1.0alpha1}]",
            "version: no API has the version 'v1.0alpha1'; did you",
            True,
        ),
        ("allowed: [{name: quux}]", "name: no API has the name 'quux'; known are actors, ", False),
    ],
)
def test_names_of_the_api(section: str, said: str, refused: bool, tmp_path: Path) -> None:
    """A misspelt part would stay open, or closed, in silence."""
    text = CONFIGURATION + f"  api:\n    {section}\n"
    told = problems_of(text, tmp_path) if refused else [str(each) for each in load(text, tmp_path).warnings]
    place = f"spec.api.{section.partition(':')[0]}[0].{said}"
    assert [place in each and "f.yaml:6:" in each for each in told] == [True] * bool(said)


def test_a_list_of_resources_is_read(tmp_path: Path) -> None:
    """As kubectl writes it; problems have their places in the file."""
    item = (
        "- apiVersion: dapr.io/v1alpha1\n  kind: Component\n  metadata: {{name: {name}}}\n  spec: {{type: a.b{more}}}\n"
    )
    for kind in ("List", "ComponentList"):
        text = f"apiVersion: v1\nkind: {kind}\nitems:\n" + item.format(name="a", more="")
        assert [each.name for each in load(text + item.format(name="b", more=""), tmp_path).components] == ["a", "b"]
        wrong = text + item.format(name="b", more=", versoin: v1")
        assert problems_of(wrong, tmp_path) == ["f.yaml:11:21: spec.versoin: unknown field; did you mean 'version'?"]
    assert load("apiVersion: v1\nkind: List\nitems: []\n", tmp_path) == LoadedResources()
    inner = "apiVersion: v1\nkind: List\nitems:\n" + item.format(name="a", more="")
    outer = "apiVersion: v1\nkind: List\nitems:\n- " + inner.replace("\n", "\n  ").rstrip() + "\n"
    assert [each.name for each in load(outer, tmp_path).components] == ["a"]


@pytest.mark.parametrize("key", ["topic", "deadLetterTopic"])
def test_a_topic_over_the_limit_is_a_problem(key: str, tmp_path: Path) -> None:
    """As at the broker: bytes count."""
    text = (
        "apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata: {{name: s}}\nspec:\n  pubsubname: p\n"
        "  route: /r\n  topic: {topic}\n  deadLetterTopic: {deadLetterTopic}\n"
    )
    at = 7 if key == "topic" else 8
    names = {"topic": "t", "deadLetterTopic": "d"}
    assert load(text.format(**{**names, key: "ü" * 256}), tmp_path).subscriptions
    (problem,) = problems_of(text.format(**{**names, key: "ü" * 256 + "t"}), tmp_path)
    assert problem.startswith(f"f.yaml:{at}:")
    assert problem.endswith(f"spec.{key}: a topic has at most 512 bytes, this one has 513")


@pytest.mark.parametrize(("items", "place"), [("", "1:1"), ("items:\n", "3:7"), ("items: {a: b}\n", "3:8")])
def test_a_list_without_items_is_told(items: str, place: str, tmp_path: Path) -> None:
    (warning,) = load(f"apiVersion: v1\nkind: List\n{items}", tmp_path).warnings
    assert str(warning) == f"{tmp_path}/f.yaml:{place}: items: a list without items holds no resource"


def _two(first: str, second: str) -> str:
    return COMPONENT + first + "spec: {type: a.b}\n" + "---\n" + COMPONENT + second + "spec: {type: a.c}\n"


_A, _B, _DEFAULT = "  namespace: a\n", "  namespace: b\n", "  namespace: default\n"


@pytest.mark.parametrize(
    ("first", "second", "namespace", "app_id", "taken"),
    [
        (_A, _B, "a", "x", "a.b"),
        (_A, _B, "b", "x", "a.c"),
        (_A, _B, "c", "x", None),
        (_A, _DEFAULT, None, "x", "a.c"),
        ("scopes: [x]\n", "scopes: [y]\n", None, "x", "a.b"),
        ("scopes: [x]\n", "scopes: [y]\n", None, "y", "a.c"),
        ("scopes: [x]\n", "scopes: [y]\n", None, "z", None),
        (_A + "scopes: [x]\n", _B, "a", "y", None),
    ],
)
def test_of_two_of_one_name_each_takes_its_own(
    first: str, second: str, namespace: str | None, app_id: str, taken: str | None, tmp_path: Path
) -> None:
    """By namespace, and by scopes; without a word from the user the namespace is `default`."""
    (tmp_path / "f.yaml").write_text(_two(first, second))
    found = load_resources([tmp_path], namespace=namespace, app_id=app_id).components
    assert [each.type for each in found] == ([taken] if taken else [])
    assert len(load_resources([tmp_path], together=False).components) == 2


def test_without_a_word_from_the_user_the_namespace_is_default(tmp_path: Path) -> None:
    """And a resource that names none is for all, so that in the namespace `a` there would be two."""
    (tmp_path / "f.yaml").write_text(_two(_A, ""))
    assert [each.type for each in load_resources([tmp_path], namespace="", app_id="x").components] == ["a.c"]
    with pytest.raises(ConfigError, match="stands already"):
        load_resources([tmp_path], together=False)


@pytest.mark.parametrize(
    ("first", "second", "namespace", "more"),
    [
        (_A, "", "a", ""),
        (_A, _B, None, "; the variable NAMESPACE says which of their namespaces is this gateway's"),
        ("scopes: [x]\n", "", None, ""),
        ("scopes: [x, y]\n", "scopes: [z, x]\n", None, ""),
    ],
)
def test_two_of_one_name_for_one_gateway_are_a_problem(
    first: str, second: str, namespace: str | None, more: str, tmp_path: Path
) -> None:
    """Nobody can tell which it is to take."""
    (tmp_path / "f.yaml").write_text(_two(first, second))
    with pytest.raises(ConfigError) as caught:
        load_resources([tmp_path], namespace=namespace, app_id="x")
    assert str(caught.value).endswith(
        f"metadata.name: a Component named 's' stands already in {tmp_path}/f.yaml:4{more}"
    )


@pytest.mark.parametrize("others", ["  namespace: b\n", "scopes: [y]\n"])
def test_resources_of_others_are_not_looked_at(others: str, tmp_path: Path) -> None:
    """Their mistakes are not this gateway's."""
    text = COMPONENT + others + "spec: {tpye: a.b}\n"
    (tmp_path / "f.yaml").write_text(text)
    withheld = frozenset({"s"} if "scopes" in others else ())
    assert load_resources([tmp_path], namespace="a", app_id="x") == LoadedResources(withheld=withheld)
    with pytest.raises(ConfigError):
        load_resources([tmp_path])


def test_places_of_merged_keys() -> None:
    """A key that an anchor brought stands where the anchor is, also when aliases go round."""
    problems: list[Problem] = []
    [document] = parse_documents("x-a: &a {b: 1.10}\nc: {<<: *a, d: yes}\n", "f", problems)
    assert document.position(("c", "b")) == (1, 13)
    assert (document.written(("c", "b")), document.written(("c", "d")), document.written(("c",))) == (
        "1.10",
        "yes",
        None,
    )
    [document] = parse_documents("a: &a {<<: *a}\n", "f", problems)
    assert document.position(("a", "b")) == (1, 1)


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_every_problem_is_located(text: str, expected: list[str], tmp_path: Path) -> None:
    """Every problem names file, line, column and field, one per cause."""
    assert problems_of(text, tmp_path) == expected


def load(text: str, tmp_path: Path, namespace: str | None = None) -> LoadedResources:
    """Load one file."""
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    return load_resources([tmp_path / "f.yaml"], namespace=namespace)


def test_targets_name_policies_of_other_files(tmp_path: Path) -> None:
    """As in Dapr, but one that nobody has, or that is for other applications, is an error at its place."""
    policies, targets = tmp_path / "a.yaml", tmp_path / "b.yaml"
    named = RESILIENCY.replace("name: r", "name: p")
    policies.write_text(f"{named}  policies: {{timeouts: {{fast: 1s}}}}\nscopes: [one]\n")
    targets.write_text(f"{RESILIENCY}  targets: {{apps: {{x: {{timeout: fast}}}}}}\n")
    for app_id in ("one", None):
        loaded = load_resources([tmp_path], app_id=app_id)
        assert ResiliencyPolicies(loaded.resiliencies, "one").for_app("x").timeout == Timeout(1.0)
    for app_id, text in (("two", policies.read_text()), (None, f"{named}  policies: {{timeouts: {{other: 1s}}}}\n")):
        policies.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_resources([tmp_path], app_id=app_id)
        assert [str(each) for each in caught.value.problems] == [
            f"{targets}:5:33: spec.targets.apps.x.timeout: there is no timeout policy 'fast'"
        ]
    policies.write_text("{")
    with pytest.raises(ConfigError) as caught:
        load_resources([tmp_path])
    assert {each.file for each in caught.value.problems} == {str(policies)}, "what is in it is not known"


@pytest.mark.parametrize(
    ("targets", "policies", "app_id", "lacks"),
    [
        ("one", "one", None, ""),
        ("one", "one, two", None, ""),
        ("one", "", None, ""),
        ("", "two", None, ""),  # Whose gateways read it is not known.
        ("one", "two", None, "one"),
        ("one, two", "one", None, "two"),
        ("one, two", "one", "one", ""),
    ],
)
def test_policies_are_found_by_those_whose_targets_name_them(
    targets: str, policies: str, app_id: str | None, lacks: str, tmp_path: Path
) -> None:
    """What is right for all is right for the gateway of each: scopes of two resources have to go together."""
    text = f"{RESILIENCY}  targets: {{apps: {{x: {{circuitBreaker: cb}}}}}}\nscopes: [{targets}]\n---\n"
    text += RESILIENCY.replace("name: r", "name: p") + "  policies: {circuitBreakers: {cb: {timeout: 1s}}}\n"
    text += f"scopes: [{policies}]\n"
    (tmp_path / "f.yaml").write_text(text)
    try:
        load_resources([tmp_path], app_id=app_id)
        found = ""
    except ConfigError as error:
        [found] = map(str, error.problems)
    place = (
        "f.yaml:5:40: spec.targets.apps.x.circuitBreaker: there is no circuit breaker policy 'cb' for the application"
    )
    text = f"{tmp_path}/{place} '{lacks}': the Resiliency that has it is for others"
    assert found == (text if lacks else "")


def test_kinds_of_our_names_may_be_of_other_programs(tmp_path: Path) -> None:
    """They stand in the same folders; what looks like our group is not one of them."""
    others = {
        "Component": "core.oam.dev/v1beta1",
        "Configuration": "serving.knative.dev/v1",
        "Subscription": "apps.open-cluster-management.io/v1",
    }
    text = "---\n".join(f"kind: {kind}\napiVersion: {version}\nspec: {{a: 1}}\n" for kind, version in others.items())
    assert [(warning.line, warning.message) for warning in load(text, tmp_path).warnings] == [
        (4 * at + 1, f"the kind '{kind}' of {version} is ignored") for at, (kind, version) in enumerate(others.items())
    ]


@pytest.mark.parametrize("version", ["dapr/v1alpha1", "dapr.com/v1alpha1", "darp.io/v1alpha1", "v1alpha1", "v1"])
def test_misspelt_group(version: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"apiVersion: expected 'dapr\.io/v1alpha1'"):
        load(f"apiVersion: {version}\nkind: Component\nmetadata: {{name: a}}\nspec: {{type: state.mesh}}\n", tmp_path)


@pytest.mark.parametrize("kind", ["component", "Componet", "Subscriptions"])
def test_misspelt_kind_of_ours(kind: str, tmp_path: Path) -> None:
    """It was meant; without it something else would be missing later."""
    with pytest.raises(ConfigError, match=f"2:7: kind: unknown kind '{kind}'; did you mean '"):
        load(f"apiVersion: dapr.io/v1alpha1\nkind: {kind}\nmetadata: {{name: a}}\n", tmp_path)


def test_files_of_a_folder(tmp_path: Path) -> None:
    """What is named as YAML is read or told of, whatever the case of its ending."""
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "A.YML").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: a}\nspec: {type: state.mesh}\n"
    )
    assert [component.name for component in load_resources([tmp_path]).components] == ["a"]
    (tmp_path / "away.yaml").symlink_to("nowhere.yaml")
    (tmp_path / "self.yaml").symlink_to("self.yaml")
    with pytest.raises(ConfigError) as caught:
        load_resources([tmp_path])
    assert [str(problem) for problem in caught.value.problems] == [
        f"{tmp_path}/away.yaml: cannot be read: No such file or directory",
        f"{tmp_path}/self.yaml: cannot be read: Too many levels of symbolic links",
    ]


def test_what_is_no_resource_is_reported_and_ignored(tmp_path: Path) -> None:
    """Other kinds and other files give warnings with positions."""
    text = "kind: Deployment\n---\nservices: {}\n---\n---\n- a\n---\nkind: MCPServer\n---\nkind: component\n"
    warnings = [str(warning).partition("f.yaml:")[2] for warning in load(text, tmp_path).warnings]
    assert warnings == [
        "1:7: kind: the kind 'Deployment' is ignored",
        "3:1: is no resource (it has no apiVersion and kind) and is ignored",
        "6:1: is no resource (it has no apiVersion and kind) and is ignored",
        "8:7: kind: the kind 'MCPServer' is ignored",
        "10:7: kind: the kind 'component' is ignored; did you mean 'Component'?",
    ]


def test_an_annotation_that_looks_like_ours_is_a_warning(tmp_path: Path) -> None:
    """Others' annotations are theirs."""
    annotations = "annotations: {mesh.colour: red, owner: me, mesh.placement: local}"
    text = COMPONENT.replace("name: s", f"name: s\n  {annotations}") + "spec: {type: a.b}\n"
    warnings = [str(warning).partition("f.yaml:")[2] for warning in load(text, tmp_path).warnings]
    assert warnings == ["5:17: metadata.annotations.mesh.colour: unknown annotation, which nothing reads"]
    text = text.replace("Component", "Resiliency").replace("{type: a.b}", "{}")
    assert len(load(text, tmp_path).warnings) == 2, "what a component reads, nothing else does"


def test_a_directory_is_read_in_order_and_not_further_down(tmp_path: Path) -> None:
    """Both suffixes are read, sorted by name; a file given twice is read once."""
    for name, resource in {"b.yml": "two", "a.yaml": "one", "c.json": "three", "d/e.yaml": "four"}.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(COMPONENT.replace("name: s", f"name: {resource}") + "spec: {type: a.b}\n", encoding="utf-8")
    loaded = load_resources([tmp_path, tmp_path / "a.yaml"])
    assert [component.name for component in loaded.components] == ["one", "two"]


def test_a_clash_between_files_names_both(tmp_path: Path) -> None:
    """The second file's problem points to the first."""
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(COMPONENT + "spec: {type: a.b}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_resources([tmp_path])
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "b.yaml:4:9: metadata.name: a Component named 's' stands already in a.yaml:4"
    )


def test_a_clash_with_what_counts_as_it_was(tmp_path: Path) -> None:
    """Both are told: what is wrong with a file, and which other one has a name that it had."""
    one, two = tmp_path / "a.yaml", tmp_path / "b.yaml"
    one.write_text(COMPONENT + "spec: {type: a.b}\n")
    files = ResourceFiles([tmp_path])
    files.load()
    one.write_text("kind: [\n")
    two.write_text(COMPONENT + "spec: {type: a.c}\n")
    with pytest.raises(ConfigError) as caught:
        files.again()
    assert [each.file for each in caught.value.problems] == [str(one), str(two)]
    assert caught.value.problems == files.bad
    assert f"stands already in {one}:4" in files.bad[1].message


def test_unreadable_files_are_problems(tmp_path: Path) -> None:
    """A missing path, a path that is no text and a good file are told apart."""
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    with pytest.raises(ConfigError) as caught:
        load_resources([tmp_path / "none", tmp_path])
    assert [problem.message for problem in caught.value.problems] == [
        "there is no such file or directory",
        "is not UTF-8 text: byte 3 is wrong",
    ]
    problems: list[Problem] = []
    assert read_documents(tmp_path, problems) == []
    assert problems[0].message == "cannot be read: Is a directory"


@pytest.mark.parametrize(("namespace", "count"), [(None, 2), ("", 2), ("a", 2), ("b", 1)])
def test_resources_of_another_namespace_are_left_out(tmp_path: Path, namespace: str | None, count: int) -> None:
    """Only when both are set and differ."""
    text = COMPONENT + "  namespace: a\nspec: {type: a.b}\n---\n" + COMPONENT.replace("name: s", "name: t")
    assert len(load(text + "spec: {type: a.b}\n", tmp_path, namespace).components) == count


def test_real_files_load(tmp_path: Path) -> None:
    """What a cluster adds, keys in another case, merged anchors and a byte order mark are fine."""
    text = (
        "\ufeff# a comment\nAPIVersion: dapr.io/v1alpha1\nkind: Component\nscopes:\n"
        "metadata: {name: s, labels: {a: b}, annotations: {c: d}, creationTimestamp: 2024-01-01}\n"
        "spec:\n  type: state.redis\n  metadata:\n  - &e {name: a, value: 12:30}\n  - {<<: *e, name: b}\n"
        "  - {<<: [*e, {value: z}], name: c}\n"
    )
    component = load(text, tmp_path).components[0]
    assert [(entry.name, entry.value) for entry in component.metadata] == [
        ("a", "12:30"),
        ("b", "12:30"),
        ("c", "12:30"),
    ]


@pytest.mark.parametrize(
    ("yaml", "value"),
    [
        ("010", 8),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1.5", 1.5),
        (".inf", ".inf"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2024-01-01", "2024-01-01"),
        ("off", False),
        ("'1'", "1"),
        ("9" * 5000, "9" * 5000),
        ("=", "="),
    ],
)
def test_scalars_are_read_as_dapr_reads_them(yaml: str, value: object) -> None:
    """No sexagesimal numbers and no dates."""
    problems: list[Problem] = []
    assert parse_documents(f"a: {yaml}", "f", problems)[0].data == {"a": value}
    assert problems == []


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("1", "1"),
        ("-7", "-7"),
        ("0x1F", "31"),
        ("1.0", "1.0"),
        ("1.10", "1.10"),
        ("1_0.5", "10.5"),
        ("true", "true"),
        ("off", "false"),
        ("'1.0'", "1.0"),
    ],
)
def test_a_number_where_text_belongs_is_its_text(written: str, text: str, tmp_path: Path) -> None:
    """In every field of text, of every kind: people leave the quotes away."""
    resources = load(
        f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {written}, namespace: {written}}}\n"
        f"spec:\n  type: state.redis\n  version: {written}\n  metadata: [{{name: {written}, value: {written}}}]\n"
        f"auth: {{secretStore: {written}}}\nscopes: [{written}]\n---\n{SUBSCRIPTION_V1}  pubsubname: {written}\n"
        f"  topic: {written}\n  route: {written}\n  deadLetterTopic: {written}\n  metadata: {{a: {written}}}\n",
        tmp_path,
    )
    component, subscription = resources.components[0], resources.subscriptions[0]
    found = [component.name, component.namespace, component.version, component.auth_secret_store, *component.scopes]
    found += [component.metadata[0].name, component.metadata[0].value]
    found += [subscription.pubsub, subscription.topic, subscription.dead_letter_topic, subscription.metadata["a"]]
    assert found == [text] * 11
    assert subscription.default_path == text


def test_a_setting_may_be_any_value(tmp_path: Path) -> None:
    """A list or mapping is its JSON."""
    component = load(
        COMPONENT + "spec:\n  type: a.b\n  metadata: [{name: a, value: {b: [1, x, true]}}, {name: c, value: [1.5]}]\n",
        tmp_path,
    ).components[0]
    assert [entry.value for entry in component.metadata] == ['{"b":[1,"x",true]}', "[1.5]"]


def test_an_alias_bomb_is_refused() -> None:
    """Aliases of aliases do not fill the memory."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    problems: list[Problem] = []
    parse_documents("\n".join(lines), "f", problems)
    assert [problem.message for problem in problems] == ["holds more than 100000 values"]


def test_deep_nesting_is_refused() -> None:
    """A file cannot exhaust the stack."""
    problems: list[Problem] = []
    assert parse_documents("[" * 5000, "f", problems) == []
    assert [problem.message for problem in problems] == ["is nested too deeply"]


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=40))
def test_no_text_raises(text: str) -> None:
    """Whatever a file holds, the answer is documents and located problems."""
    problems: list[Problem] = []
    documents = parse_documents(text, "f", problems)
    assert all(document.position(()) >= (1, 1) for document in documents)


class Template(FileModel):
    """A model of another file."""

    version: int
    apps: tuple[str, ...] = ()


def test_other_files_are_validated_the_same_way() -> None:
    """The pieces work for any model."""
    problems: list[Problem] = []
    document = parse_documents("version: 1\napps: [a]\n", "dapr.yaml", problems)[0]
    assert validate(document, Template, problems, problems) == Template(version=1, apps=("a",))
    wrong = parse_documents("version: x\n", "dapr.yaml", problems)[0]
    assert validate(wrong, Template, problems, problems) is None
    assert [str(problem) for problem in problems] == ["dapr.yaml:1:10: version: expected a whole number, got 'x'"]


def test_configuration_file_expands_variables(tmp_path: Path) -> None:
    """Both forms are expanded, unset variables are empty, other dollar signs stay."""
    file = tmp_path / "c.yaml"
    file.write_text(CONFIGURATION + '  tracing: {samplingRate: ${RATE}, zipkin: {endpointAddress: "$URL$NONE"}}\n')
    configuration = load_configuration_file(file, {"RATE": "0.5", "URL": "http://z"}, [])
    assert configuration.spec.tracing is not None
    assert configuration.spec.tracing.sampling_rate == 0.5
    assert configuration.spec.tracing.zipkin.endpoint_address == "http://z"
    assert expand_variables("^/a$ $1 $$ ${} ${a-b}", {}) == "^/a$ $1 $$ ${} ${a-b}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: holds no Configuration"),
        ("kind: Component", "c.yaml:1:7: kind: expected a Configuration here"),
        (CONFIGURATION + "---\n" + CONFIGURATION, "c.yaml:6:1: a second Configuration in one file"),
        (CONFIGURATION + "  metrcs: {}\n", "c.yaml:5:3: spec.metrcs: unknown field; did you mean 'metrics'?"),
    ],
)
def test_configuration_file_problems(text: str, message: str, tmp_path: Path) -> None:
    """A configuration file holds one Configuration and nothing else."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_configuration_file(tmp_path / "c.yaml", {}, [])
    assert str(caught.value).replace(f"{tmp_path}/", "") == message


def test_missing_configuration_file(tmp_path: Path) -> None:
    """A file that cannot be read is a problem with its name."""
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read: No such file"):
        load_configuration_file(tmp_path / "c.yaml", {}, [])


def test_later_configuration_sections_win(tmp_path: Path) -> None:
    """Sections that the later file does not have stay."""
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(CONFIGURATION + "  wasm: {strictSandbox: true}\n  features: [{name: a, enabled: true}]\n")
    second.write_text(CONFIGURATION + "  features: [{name: b, enabled: false}]\n")
    both = load_configuration_file(first, {}, []).overlaid(load_configuration_file(second, {}, []))
    assert both.features() == {"b": False}
    assert both.spec.wasm is not None
    assert both.spec.wasm.strict_sandbox


def test_did_you_mean() -> None:
    """A name close to a known one is found whatever its case; others are not."""
    assert did_you_mean("REDISHOST", ["redisHost", "port"]) == "redisHost"
    assert did_you_mean("zzz", ["redisHost", "port"]) is None
