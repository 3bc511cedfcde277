"""Components, subscriptions, references and templates as values."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import GatewayConfig
from gateway.settings import load_settings
from mesh.errors import ConfigError
from mesh.resources.component import (
    Component,
    EnvRef,
    MetadataEntry,
    Secret,
    SecretRef,
    TemplateTokens,
    env_refusal,
    expand_template,
)
from mesh.resources.loader import LoadedResources, load_resources
from mesh.resources.subscription import (
    BulkOptions,
    Rule,
    Subscription,
    clashes,
    combined,
    programmatic_subscriptions,
)

if TYPE_CHECKING:
    from pathlib import Path


def load(text: str, tmp_path: Path) -> LoadedResources:
    """Load one file."""
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    return load_resources([tmp_path])


@pytest.mark.parametrize(("given", "version"), [("V2", "v2"), ("v0", "v1"), ("''", "v1")])
def test_versions_of_a_component(tmp_path: Path, given: str, version: str) -> None:
    """The first one has several names."""
    text = "{apiVersion: dapr.io/v1alpha1, kind: Component, metadata: {name: s}"
    text += f", spec: {{type: x.y, version: {given}}}}}"
    assert load(text, tmp_path).components[0].version == version


def test_component(tmp_path: Path) -> None:
    """Every field of a component arrives, values become text, references stay open."""
    component = load(
        """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore, namespace: default, annotations: {mesh.placement: local, other: 1}}
spec:
  type: State.Redis
  version: V2
  ignoreErrors: true
  initTimeout: 1m
  metadata:
    - {name: redisHost, value: "localhost:6379"}
    - {name: redisPassword, secretKeyRef: {name: redis, key: password}}
    - {name: token, secretKeyRef: {name: token}}
    - {name: region, envRef: AWS_REGION}
    - {name: actorStateStore, value: true}
    - {name: port, value: 6379}
    - {name: ratio, value: 0.5}
    - {name: indexes, value: [{name: a, n: null}]}
    - {name: nothing, value: }
auth: {secretStore: vault}
scopes: [app1, app2]
""",
        tmp_path,
    ).components[0]
    assert component == Component(
        name="statestore",
        type="state.redis",
        namespace="default",
        version="v2",
        ignore_errors=True,
        init_timeout=60.0,
        placement="local",
        auth_secret_store="vault",
        scopes=("app1", "app2"),
        metadata=(
            MetadataEntry("redisHost", "localhost:6379"),
            MetadataEntry("redisPassword", SecretRef("redis", "password")),
            MetadataEntry("token", SecretRef("token", "token")),
            MetadataEntry("region", EnvRef("AWS_REGION")),
            MetadataEntry("actorStateStore", "true"),
            MetadataEntry("port", "6379"),
            MetadataEntry("ratio", "0.5"),
            MetadataEntry("indexes", '[{"name":"a","n":null}]'),
            MetadataEntry("nothing", ""),
        ),
    )
    assert component.block == "state"
    assert component.file == str(tmp_path / "f.yaml")
    assert component.line == 2
    assert component.setting("REDISHOST") == "localhost:6379"
    assert component.setting("none") is None
    assert component.secret_refs() == (SecretRef("redis", "password"), SecretRef("token", "token"))
    with pytest.raises(ConfigError, match=r"f\.yaml:12:7: spec\.metadata\[1\] \(redisPassword\): is a reference"):
        component.setting("redispassword")
    assert str(component.problem("is wrong")).endswith("f.yaml:2:1: is wrong")


@pytest.mark.parametrize("metadata", ["", "  metadata:\n", "  metadata: []\n", "  version:\n", "  version: ''\n"])
def test_a_component_needs_little(metadata: str, tmp_path: Path) -> None:
    """Version and metadata may be absent or empty."""
    text = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: a}\nspec:\n  type: pubsub.x\n"
    component = load(text + metadata, tmp_path).components[0]
    assert component == Component("a", "pubsub.x")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("{appID}", "app"),
        ("a-{appID}-{namespace}-{podName}", "a-app-ns.app-pod-1"),
        ("{uuid}/{uuid}", "u1/u2"),
        ("{other} {APPID} {", "{other} {APPID} {"),
    ],
)
def test_templates(text: str, expanded: str) -> None:
    """Tokens expand inside larger text; each {uuid} is a new one."""
    numbers = itertools.count(1)
    tokens = TemplateTokens("app", "ns", "pod-1", lambda: f"u{next(numbers)}")
    assert expand_template(text, tokens) == expanded


def test_uuids_are_random_by_default() -> None:
    """Two tokens never give the same."""
    first, second = expand_template("{uuid} {uuid}", TemplateTokens("a", "n")).split()
    assert len(first) == 36
    assert first != second


@pytest.mark.parametrize(
    ("variable", "environ", "refused"),
    [
        ("REGION", {}, False),
        ("APP_API_TOKEN", {}, True),
        ("app_api_token", {}, True),
        ("DAPR_X", {}, True),
        ("dapr_x", {}, True),
        ("MESH_BACKBONE", {}, True),
        ("A B", {}, True),
        ("REGION", {"DAPR_ENV_KEYS": "A REGION B"}, False),
        ("REGION", {"DAPR_ENV_KEYS": "A B"}, True),
        ("REGION", {"DAPR_ENV_KEYS": ""}, True),
    ],
)
def test_env_rules(variable: str, environ: dict[str, str], refused: bool) -> None:
    """The runtime's own variables cannot be read, and a list narrows the rest."""
    assert (env_refusal(variable, environ) is not None) is refused


def test_references_are_closed_and_masked() -> None:
    """What comes from outside is masked, and secrets are not templates."""
    ref = SecretRef("redis", "password")
    component = Component(
        "s",
        "state.redis",
        (
            MetadataEntry("id", "{appID}"),
            MetadataEntry("pw", ref),
            MetadataEntry("region", EnvRef("REGION")),
            MetadataEntry("unset", EnvRef("NONE")),
        ),
    )
    closed = component.resolved(TemplateTokens("app", "ns"), {"REGION": "{namespace}"}, {ref: "pa{appID}ss"})
    assert [closed.setting(name) for name in ("id", "pw", "region", "unset")] == ["app", "pa{appID}ss", "ns.app", ""]
    assert "pa{appID}ss" not in repr(closed)
    assert "ns.app" not in repr(closed)
    assert f"{Secret('x')} {Secret('x')!r}" == "Secret('***') Secret('***')"
    again = closed.resolved(TemplateTokens("app", "ns"), {}, {})
    assert again == closed
    assert pickle.loads(pickle.dumps(Secret("x"))).reveal() == "x"


def test_all_open_references_are_reported() -> None:
    """Every setting without a value is one problem."""
    component = Component(
        "s",
        "state.redis",
        (
            MetadataEntry("pw", SecretRef("redis", "password"), "spec.metadata[0]", 3, 5),
            MetadataEntry("env", EnvRef("DAPR_API_TOKEN"), "spec.metadata[1]", 4, 5),
            MetadataEntry("pod", "{podName}"),
        ),
        file="f.yaml",
    )
    with pytest.raises(ConfigError) as caught:
        component.resolved(TemplateTokens("app", "ns"), {}, {})
    assert str(caught.value).splitlines() == [
        "f.yaml:3:5: spec.metadata[0] (pw): refers to the secret 'redis' (key 'password'), which no secret store gives",
        "f.yaml:4:5: spec.metadata[1] (env): the variable 'DAPR_API_TOKEN' belongs to the runtime and cannot be read",
        "f.yaml: pod: '{podName}' needs the variable POD_NAME, which is not set",
    ]


def test_both_shapes_of_a_subscription(tmp_path: Path) -> None:
    """Routes are as they were written, batching gets its defaults."""
    old, new = load(
        """
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: s1, namespace: ns}
spec:
  pubsubname: ps
  topic: orders
  route: orders
  metadata: {rawPayload: true}
  deadLetterTopic: poison
  bulkSubscribe: {enabled: true, maxMessagesCount: 10, maxAwaitDurationMs: 40}
scopes: [app1]
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: s2}
spec:
  pubsubName: ps
  topic: orders
  routes:
    rules:
      - {match: event.type == "a", path: a}
      - {path: /b}
    default: /rest
  bulkSubscribe: {enabled: true, maxMessagesCount: 0}
""",
        tmp_path,
    ).subscriptions
    assert old == Subscription(
        name="s1",
        namespace="ns",
        pubsub="ps",
        topic="orders",
        default_path="orders",
        metadata={"rawPayload": "true"},
        dead_letter_topic="poison",
        bulk=BulkOptions(enabled=True, max_messages=10, max_wait=0.04),
        scopes=("app1",),
    )
    assert new == Subscription(
        name="s2",
        pubsub="ps",
        topic="orders",
        rules=(Rule('event.type == "a"', "a"), Rule("", "/b")),
        default_path="/rest",
        bulk=BulkOptions(enabled=True, max_messages=100, max_wait=1.0),
    )


TOP = "belongs to the top level of the document, beside spec"
SHAPE = "does not belong here: which shape it is, apiVersion says (dapr.io/v1alpha1 or dapr.io/v2alpha1)"


@pytest.mark.parametrize(
    ("version", "line", "problem"),
    [
        ("v1alpha1", "spec: {pubsubname: p, topic: t, route: r, scopes: [a]}", f"spec.scopes: {TOP}"),
        ("v2alpha1", "spec: {pubsubname: p, topic: t, routes: {default: r}, scopes: [a]}", f"spec.scopes: {TOP}"),
        ("v1alpha1", "spec: {pubsubname: p, topic: t, route: r, version: v2alpha1}", f"spec.version: {SHAPE}"),
        (
            "v2alpha1",
            "spec: {pubsubname: p, topic: t, route: r}",
            "spec.route: belongs to dapr.io/v1alpha1; in dapr.io/v2alpha1 it is the default of routes "
            "(routes: {default: /path})",
        ),
        (
            "v1alpha1",
            "spec: {pubsubname: p, topic: t, Routes: {default: r}}",
            "spec.routes: belongs to dapr.io/v2alpha1; in dapr.io/v1alpha1 there is one route (route: /path)",
        ),
        (
            "v2alpha1",
            "spec: {pubsubname: p, topic: t, default: r}",
            "spec.default: belongs below spec.routes (dapr.io/v2alpha1)",
        ),
        ("v1alpha1", "route: r\nspec: {pubsubname: p, topic: t}", "route: belongs below spec"),
        (
            "v1alpha1",
            "spec: {pubsubname: p, topic: t, route: r, metadata: {rawPaylod: 'true'}}",
            "spec.metadata.rawPaylod: unknown metadata 'rawPaylod'; did you mean 'rawPayload'?",
        ),
    ],
)
def test_what_stands_elsewhere_in_a_subscription(version: str, line: str, problem: str, tmp_path: Path) -> None:
    """One problem for one cause, which says where it belongs."""
    text = f"apiVersion: dapr.io/{version}\nkind: Subscription\nmetadata: {{name: s}}\n{line}\n"
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path)
    (found,) = caught.value.problems
    assert f"{found.path}: {found.message}" == problem
    assert found.line == 4


@pytest.mark.parametrize("route", ["/a b", "/a\r\nX: y", "a\0"])
def test_route_that_cannot_be_called(route: str, tmp_path: Path) -> None:
    """Each event would come again for as long as it is stored."""
    head = "apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata: {name: s}\n"
    with pytest.raises(ConfigError, match=r"4:\d+: spec\.route: the route .* holds a blank or a control character"):
        load(f"{head}spec: {{pubsubname: p, topic: t, route: {json.dumps(route)}}}\n", tmp_path)
    item = {"pubsubname": "p", "topic": "t", "route": route}
    found, (warning,) = programmatic_subscriptions(json.dumps([item]).encode())
    assert not found
    assert "is left out: the route " in warning


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("rawPayload: maybe", "rawPayload: not a boolean: 'maybe' ('true' or 'false')"),
        ("israwpayload: 2", "israwpayload: not a boolean: '2' ('true' or 'false')"),
        ("ordered: ''", "ordered: not a boolean: '' ('true' or 'false')"),
        ("maxInFlight: -1", "maxInFlight: not a whole number from 1 to 10000: '-1'"),
        ("delivery: all", "delivery: delivery must be group or broadcast, not 'all'"),
        ("deduplicate: 5", "deduplicate: a duration needs a unit: '5s' or '5ms', not '5'"),
    ],
)
def test_metadata_of_a_subscription_that_cannot_be_read(metadata: str, problem: str, tmp_path: Path) -> None:
    """A gateway that starts all the same would leave the subscription out, and its events with it."""
    head = "apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata: {name: s}\n"
    with pytest.raises(ConfigError) as caught:
        load(f"{head}spec: {{pubsubname: p, topic: t, route: r, metadata: {{{metadata}}}}}\n", tmp_path)
    (found,) = caught.value.problems
    assert (f"{found.path}: {found.message}", found.line) == (f"spec.metadata.{problem}", 4)


def test_metadata_of_a_subscription_that_nothing_reads(tmp_path: Path) -> None:
    """Is a warning, since other runtimes read it; known names count in any case, in both spellings."""
    loaded = load(
        """
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: s}
spec:
  pubsubname: p
  topic: t
  route: /r
  metadata: {colour: red, ISRAWPAYLOAD: true, maxinflight: 5, groupexpires: 2h}
""",
        tmp_path,
    )
    warning, other = loaded.warnings
    assert (warning.path, warning.line) == ("spec.metadata.colour", 9)
    assert warning.message.startswith("the metadata 'colour' has no effect here (known: ")
    assert other.message == "the metadata 'groupexpires' has no effect here: only groups of streams expire"


def test_http_endpoint(tmp_path: Path) -> None:
    """Headers and certificates may be references, a header may repeat."""
    endpoint = load(
        """
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: github}
spec:
  baseUrl: https://api.github.com/
  headers: [{name: a, value: b}, {name: a, secretKeyRef: {name: s, key: k}}]
  clientTLS: {rootCA: {value: PEM}, renegotiation: OnceAsClient}
auth: {secretStore: vault}
""",
        tmp_path,
    ).http_endpoints[0]
    assert endpoint.base_url == "https://api.github.com"
    assert [header.value for header in endpoint.headers] == ["b", SecretRef("s", "k")]
    assert endpoint.root_ca == MetadataEntry("rootCA", "PEM")
    assert (endpoint.renegotiation, endpoint.auth_secret_store) == ("OnceAsClient", "vault")


CONFIGURATION = """
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: c}
spec:
  httpPipeline: {handlers: []}
  appHttpPipeline: {handlers: }
  tracing:
    samplingRate: "0"
    stdout: true
    zipkin: {endpointAddress: "http://z"}
    otel: {endpointAddress: "o:4317", protocol: grpc, isSecure: false, headers: [{name: a, value: b}], timeout: 5000}
  metric: {enabled: true}
  metrics:
    enabled: false
    recordErrorCodes: true
    http: {increasedCardinality: false, pathMatching: [/a], excludeVerbs: true}
    rules: [{name: m, labels: [{name: l, regex: {a: "b$"}}]}]
    latencyDistributionBuckets: [1, 2]
    workflow: {latencyDistributionBuckets: [1], latencyDistributionUnits: ms}
  logging: {apiLogging: {enabled: true, obfuscateURLs: true, omitHealthChecks: true}}
  nameResolution: {component: mdns, version: v1, configuration: {Key: [1], other: null}}
  secrets: {scopes: [{storeName: s, defaultAccess: deny, allowedSecrets: [a], deniedSecrets: [b]}]}
  accessControl: {defaultAction: allow, trustDomain: public, policies: []}
  mtls: {enabled: false, workloadCertTTL: 1h, allowedClockSkew: 1m, sentryAddress: s, controlPlaneTrustDomain: d,
         tokenValidators: [{name: jwks, options: {a: 1}}]}
  features: [{name: HotReload, enabled: true}]
  api: {allowed: [{name: state, version: v1.0, protocol: http}], denied: [{name: invoke}]}
  components: {deny: [state.redis/v1]}
  wasm: {strictSandbox: true}
  workflow:
    maxConcurrentWorkflowInvocations: 1
    maxConcurrentActivityInvocations: 2
    globalMaxConcurrentWorkflowInvocations: 3
    globalMaxConcurrentActivityInvocations: 4
    workflowConcurrencyLimits: [{name: w, maxConcurrent: 5}]
    activityConcurrencyLimits: [{name: a, maxConcurrent: 6}]
    stateRetentionPolicy: {anyTerminal: 1h, completed: 2h, failed: 3h, terminated: 4h}
"""


def test_every_field_of_a_configuration_loads(tmp_path: Path) -> None:
    """All sections of the reference are known."""
    spec = load(CONFIGURATION, tmp_path).configurations[0].spec
    assert spec.tracing is not None
    assert spec.tracing.sampling_rate == 0.0
    assert spec.tracing.otel.timeout is not None
    assert spec.tracing.otel.timeout.seconds == 5.0
    assert spec.name_resolution is not None
    assert json.loads(spec.name_resolution.configuration) == {"Key": [1], "other": None}
    assert spec.mtls is not None
    assert spec.mtls.workload_cert_ttl == 3600.0
    assert spec.workflow is not None
    assert spec.workflow.state_retention_policy.terminated == 14400.0
    assert spec.access_control is not None
    assert spec.access_control.trust_domain == "public"
    assert spec.metric is not None
    assert spec.metrics is not None
    assert (spec.metrics.enabled, spec.metrics.record_error_codes) == (False, True)


def test_the_application_s_subscriptions() -> None:
    """Both formats are read, names in any case."""
    body = orjson.dumps(
        [
            {"pubsubname": "ps", "topic": "a", "route": "orders", "metadata": {"rawPayload": "true", "n": 1}},
            {
                "pubsubName": "ps",
                "Topic": "b",
                "route": "/old",
                "routes": {"rules": [{"match": "event.type == 'x'", "path": "x"}], "default": "/rest"},
                "deadLetterTopic": "dead",
                "bulkSubscribe": {"enabled": True, "maxMessagesCount": 5, "maxAwaitDurationMs": 20},
            },
        ]
    )
    assert programmatic_subscriptions(body) == (
        [
            Subscription(
                "", "ps", "a", default_path="orders", metadata={"rawPayload": "true", "n": "1"}, origin="PROGRAMMATIC"
            ),
            Subscription(
                name="",
                pubsub="ps",
                topic="b",
                rules=(Rule("event.type == 'x'", "x"),),
                default_path="/rest",
                dead_letter_topic="dead",
                bulk=BulkOptions(enabled=True, max_messages=5, max_wait=0.02),
                origin="PROGRAMMATIC",
            ),
        ],
        [
            "subscription of the application to 'a' on 'ps': the metadata 'n' has no effect here (known: "
            "acceptUnproven, deadLetters, deduplicate, "
            "delivery, group, groupExpires, isRawPayload, maxInFlight, ordered, rawPayload)"
        ],
    )


def test_an_application_s_misspelt_metadata() -> None:
    """Is told with what was meant; the subscription stays."""
    item = {"pubsubname": "p", "topic": "t", "route": "r", "metadata": {"rawPaylod": "true", "RAWPAYLOAD": "true"}}
    subscriptions, warnings = programmatic_subscriptions(orjson.dumps([item]))
    assert len(subscriptions) == 1
    assert warnings == [
        "subscription of the application to 't' on 'p': unknown metadata 'rawPaylod'; did you mean 'rawPayload'?"
    ]


def made(name: str, *matches: str, scopes: tuple[str, ...] = (), **more: Any) -> Subscription:
    rules = tuple(Rule(match, f"/{name}") for match in matches)
    return Subscription(name, "p", "t", rules, scopes=scopes, file=f"{name}.yaml", line=1, **more)


RAW = {"rawPayload": "true"}
BULK = BulkOptions(enabled=True)


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        (made("a", "1"), made("b", "2"), None),
        (made("a", default_path="/x"), made("b", "2"), None),
        (made("a", "1"), made("b", default_path="/x"), None),
        (made("a", default_path="/x"), made("b", default_path="/x"), None),
        (made("a", default_path="/x"), made("b", default_path="/y"), "the route"),
        (made("a", "1", metadata=RAW), made("b", "2"), None),
        (made("a", "1"), made("b", "2", metadata=RAW, dead_letter_topic="d", bulk=BULK), None),
        (made("a", "1", metadata=RAW), made("b", "2", metadata={"ordered": "true"}), "metadata"),
        (made("a", "1", dead_letter_topic="d"), made("b", "2", dead_letter_topic="e"), "deadLetterTopic"),
        (made("a", "1", bulk=BULK), made("b", "2", bulk=BulkOptions(enabled=True, max_messages=2)), "bulkSubscribe"),
    ],
)
def test_two_subscriptions_to_one_topic(first: Subscription, second: Subscription, differ: str | None) -> None:
    """Their rules apply in their order; what there can be one of is that of whichever says it, or a located problem."""
    (one,), problems = combined([first, second])
    assert one.rules == first.rules + second.rules
    assert one.default_path == (first.default_path or second.default_path)
    for name in ("metadata", "dead_letter_topic", "bulk"):
        assert getattr(one, name) in (getattr(first, name), getattr(second, name))
    expected = (
        "b.yaml:1:1: a second subscription to the topic 't' of 'p', beside 'a' (a.yaml:1): the rules of both would "
        f"apply, but they differ in {differ}, of which there can be one only"
    )
    assert [str(problem) for problem in problems] == ([] if differ is None else [expected])
    assert clashes([first, second]) == problems


def test_subscriptions_that_never_meet() -> None:
    """Those of different applications, topics or namespaces."""
    one = made("a", default_path="/x", scopes=("one",))
    for other in (
        made("b", default_path="/y", scopes=("two", "three")),
        replace(made("b", default_path="/y"), topic="u"),
        replace(made("b", default_path="/y"), pubsub="q"),
    ):
        assert clashes([one, other]) == []
    assert clashes([replace(one, namespace="n"), replace(one, namespace="m", default_path="/y")]) == []
    assert len(clashes([one, replace(one, namespace="m", default_path="/y")])) == 1
    assert len(clashes([one, made("b", default_path="/y")])) == 1


@pytest.mark.parametrize(
    ("item", "warning"),
    [
        ({}, "it has no pubsubname"),
        ({"pubsubname": "p"}, "it has no topic"),
        ({"pubsubname": "p", "topic": "t"}, "'t' on 'p' has no usable route"),
        ({"pubsubname": "p", "topic": "t", "route": " "}, "'t' on 'p' has no usable route"),
        ({"pubsubname": "p", "topic": "t", "routes": {"rules": []}}, "'t' on 'p' has no usable route"),
        ({"pubsubname": "p", "topic": 5, "route": "r"}, "topic must be a string"),
        ({"pubsubname": "p", "topic": "t", "route": "r", "metadata": []}, "metadata must be an object"),
        ({"pubsubname": "p", "topic": "t", "routes": "r"}, "routes must be an object"),
        ({"pubsubname": "p", "topic": "t", "routes": {"rules": {}}}, "routes.rules must be an array"),
        (
            {"pubsubname": "p", "topic": "t", "route": "r", "bulkSubscribe": {"enabled": 1}},
            "bulkSubscribe.enabled must be true or false",
        ),
        (
            {"pubsubname": "p", "topic": "t", "route": "r", "bulkSubscribe": {"maxMessagesCount": -1}},
            "bulkSubscribe.maxMessagesCount must be a whole number of at least 0",
        ),
        (
            {"pubsubname": "p", "topic": "t", "routes": {"rules": [{"match": "a b", "path": "/a"}]}},
            "expression 'a b' does not compile: extraneous input 'b' expecting end of expression at 1:3",
        ),
        ("text", "it must be an object"),
    ],
)
def test_a_wrong_item_does_not_stop_the_others(item: object, warning: str) -> None:
    """It is left out with a warning that says why."""
    good = {"pubsubname": "p", "topic": "good", "route": "/g"}
    subscriptions, warnings = programmatic_subscriptions(orjson.dumps([item, good]))
    assert [subscription.topic for subscription in subscriptions] == ["good"]
    assert warnings == [f"subscription 0 of the application is left out: {warning}"]


def test_a_rule_without_a_path_is_left_out() -> None:
    """The other routes of the subscription stay."""
    item = {"pubsubname": "p", "topic": "t", "routes": {"rules": [{"match": "true"}], "default": "d"}}
    subscriptions, warnings = programmatic_subscriptions(orjson.dumps([item]))
    assert subscriptions[0].default_path == "d"
    assert warnings == ["a rule of 't' on 'p' has no path and is left out: 'true'"]


@pytest.mark.parametrize(
    ("body", "warnings"),
    [
        (b"", []),
        (b" \n", []),
        (b"null", []),
        (b"[]", []),
        (b"{}", ["the application's subscriptions must be a JSON array"]),
    ],
)
def test_bodies_without_subscriptions(body: bytes, warnings: list[str]) -> None:
    """Nothing is fine, something else is a warning."""
    assert programmatic_subscriptions(body) == ([], warnings)


def test_a_body_that_is_no_json() -> None:
    """The warning carries the parser's reason."""
    subscriptions, warnings = programmatic_subscriptions(b"<html>")
    assert subscriptions == []
    assert warnings[0].startswith("the application's subscriptions are no JSON: ")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "p"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["pubsubname", "topic", "route", "routes", "rules", "bulkSubscribe"]), inner)
    ),
    max_leaves=12,
)


@settings(derandomize=True, deadline=None)
@given(_JSON)
def test_no_body_raises(body: object) -> None:
    """Whatever the application answers, each item is a subscription or a warning."""
    subscriptions, warnings = programmatic_subscriptions(orjson.dumps(body))
    items = len(body) if isinstance(body, list) else 0
    assert len(subscriptions) <= items
    assert len(subscriptions) + len(warnings) >= items


REFERS = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: state}
spec:
  type: state.redis
  version: v1
  metadata:
    - {name: redisHost, value: "localhost:1"}
    - {name: redisPassword, secretKeyRef: {name: redis, key: password}}
"""
OWN = """
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: NAME}
spec: {type: secretstores.local.env, version: v1}
"""
ENDPOINT = """
---
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: shop}
spec:
  baseUrl: http://localhost:1
  headers: [{name: token, secretKeyRef: {name: shop}}]
"""


@pytest.mark.parametrize(
    ("text", "stores", "named"),
    [
        (REFERS, {"kubernetes": "secretstores.kubernetes"}, ["kubernetes"]),
        (REFERS + ENDPOINT, {"kubernetes": "secretstores.kubernetes"}, ["kubernetes", "kubernetes"]),
        (REFERS + OWN.replace("NAME", "kubernetes"), {"kubernetes": "secretstores.local.env"}, ["kubernetes"]),
        (
            REFERS + OWN.replace("NAME", "env"),
            {"env": "secretstores.local.env", "kubernetes": "secretstores.kubernetes"},
            ["kubernetes"],
        ),
        (
            REFERS + "auth: {secretStore: env}\n" + OWN.replace("NAME", "env"),
            {"env": "secretstores.local.env"},
            ["env"],
        ),
        (OWN.replace("NAME", "env"), {"env": "secretstores.local.env"}, []),
        (ENDPOINT, {}, [None]),
    ],
)
def test_inside_kubernetes_references_that_name_no_store_are_to_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, stores: dict[str, str], named: list[str | None]
) -> None:
    """Nowhere else; and what is made for it answers no other node."""
    (tmp_path / "r.yaml").write_text(text)
    config = GatewayConfig("app", tmp_path / "home", resource_paths=(tmp_path / "r.yaml",))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    outside = load_settings(config)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    inside = load_settings(config)
    components = inside.components or ()
    assert {each.name: each.type for each in components if each.type.startswith("secretstores.")} == stores
    assert [each.auth_secret_store for each in (*components, *inside.endpoints) if each.secret_refs()] == named
    assert {each.placement for each in components if each.type == "secretstores.kubernetes"} <= {"local"}
    given = [each.auth_secret_store for each in (*(outside.components or ()), *outside.endpoints) if each.secret_refs()]
    assert given == [None if each == "kubernetes" else each for each in named]
    assert all(each.type != "secretstores.kubernetes" for each in outside.components or ())
    without = load_settings(replace(config, builtin_secrets=False))  # --disable-builtin-k8s-secret-store
    assert (without.components, without.endpoints) == (outside.components, outside.endpoints)
