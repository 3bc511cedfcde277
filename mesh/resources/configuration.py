"""The Configuration resource: every section as a frozen value.

These dataclasses are the file's model too: `mesh.resources.fields` explains how. A section that the
file does not have is None; its defaults are those of its class (``configuration.tracing or Tracing()``).

Source: Dapr 1.18, the Configuration resource.
"""

# No `from __future__ import annotations`: the file models read these annotations at run time.

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from mesh.errors import Problem
from mesh.resources.fields import Action, AnyText, JSONText, Limit, Name, Ratio, ScalarText, Seconds, TimeoutValue

__all__ = [
    "API_NAMES",
    "API_VERSIONS",
    "DEFAULT_SAMPLING_RATIO",
    "GRPC_PORT",
    "MTLS",
    "APILogging",
    "APIOperation",
    "APISpec",
    "AccessControl",
    "AccessOperation",
    "AccessPolicy",
    "ComponentsSpec",
    "ConcurrencyLimit",
    "Configuration",
    "ConfigurationSpec",
    "Feature",
    "HTTPMetrics",
    "LoggingSpec",
    "MetricLabel",
    "MetricRule",
    "Metrics",
    "NameResolution",
    "OTel",
    "OTelHeader",
    "PIPELINES",
    "Pipeline",
    "PipelineHandler",
    "RetentionPolicy",
    "SecretKeyRef",
    "SecretScope",
    "SecretsSpec",
    "Selector",
    "SelectorField",
    "TapAccess",
    "TokenValidator",
    "Tracing",
    "Wasm",
    "WorkflowMetrics",
    "WorkflowSpec",
    "Zipkin",
]

DEFAULT_SAMPLING_RATIO = 0.0001
GRPC_PORT = 4317
"""Where collectors take OTLP over gRPC, by custom."""
API_VERSIONS = MappingProxyType(
    {"v1": "v1.0", "v1alpha1": "v1.0-alpha1", "v1alpha2": "v1.0-alpha2", "v1beta1": "v1.0-beta1"}
)
"""Versions as they may be written, and as they stand in paths."""
_ALPHA = dict.fromkeys(("crypto", "lock", "subscribe", "subtlecrypto", "unlock"), ("v1.0-alpha1",))
_BOTH = dict.fromkeys(("actors", "configuration", "jobs", "publish", "state"), ("v1.0", "v1.0-alpha1"))
_OTHERS = {
    "conversation": ("v1.0-alpha1", "v1.0-alpha2"),
    "workflows": ("v1.0", "v1.0-alpha1", "v1.0-beta1"),
}
API_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    dict.fromkeys(("bindings", "healthz", "invoke", "mesh", "metadata", "secrets", "shutdown"), ("v1.0",))
    | {**_ALPHA, **_BOTH, **_OTHERS}
)
"""What parts of the API are called, those of gRPC with them, and their versions."""


@dataclass(frozen=True, slots=True)
class SelectorField:
    """A condition on a pipeline handler."""

    field: str
    value: ScalarText


@dataclass(frozen=True, slots=True)
class Selector:
    """The conditions on a pipeline handler."""

    fields: tuple[SelectorField, ...] = ()


@dataclass(frozen=True, slots=True)
class PipelineHandler:
    """A middleware component in a pipeline."""

    name: str
    type: str
    version: str = "v1"
    selector: Selector = Selector()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Middleware in the order a request passes it."""

    handlers: tuple[PipelineHandler, ...] = ()


PIPELINES = MappingProxyType({"http_pipeline": "httpPipeline", "app_http_pipeline": "appHttpPipeline"})
"""Sections that are one: in front of the API, and of the application."""


@dataclass(frozen=True, slots=True)
class Zipkin:
    """Where spans go in Zipkin's format."""

    endpoint_address: str = ""


@dataclass(frozen=True, slots=True)
class SecretKeyRef:
    """A secret as a file refers to it; an empty ``key`` means the key ``name``."""

    name: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class OTelHeader:
    """A header of the OpenTelemetry exporter."""

    name: str
    value: AnyText = field(default="", repr=False)
    secret_key_ref: SecretKeyRef | None = None


@dataclass(frozen=True, slots=True)
class OTel:
    """Where spans go in OpenTelemetry's format; None = take it from the environment."""

    endpoint_address: str = ""
    protocol: Literal["grpc", "http"] | None = None
    is_secure: bool = True
    headers: tuple[OTelHeader, ...] = ()
    timeout: TimeoutValue | None = None


@dataclass(frozen=True, slots=True)
class Tracing:
    """How much is traced, and where it goes; a ratio of 0 switches tracing off."""

    sampling_rate: Ratio = DEFAULT_SAMPLING_RATIO
    stdout: bool = False
    zipkin: Zipkin = Zipkin()
    otel: OTel = OTel()


@dataclass(frozen=True, slots=True)
class HTTPMetrics:
    """Labels of the HTTP metrics."""

    increased_cardinality: bool = True
    path_matching: tuple[str, ...] = ()
    exclude_verbs: bool = False


@dataclass(frozen=True, slots=True)
class MetricLabel:
    """Rewrites one label: by what takes its place (``$1``: a group), what is matched; one after the other."""

    name: str
    regex: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class MetricRule:
    """Rewrites the labels of one metric."""

    name: str
    labels: tuple[MetricLabel, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkflowMetrics:
    """Buckets of the workflow latencies."""

    latency_distribution_buckets: tuple[int, ...] = ()
    latency_distribution_units: str = ""


@dataclass(frozen=True, slots=True)
class Metrics:
    """What is measured; buckets are milliseconds, none = the built-in ones."""

    enabled: bool = True
    record_error_codes: bool = False
    http: HTTPMetrics = HTTPMetrics()
    rules: tuple[MetricRule, ...] = ()
    latency_distribution_buckets: tuple[int, ...] = ()
    workflow: WorkflowMetrics = WorkflowMetrics()


@dataclass(frozen=True, slots=True)
class APILogging:
    """Whether each API call is logged."""

    enabled: bool = False
    obfuscate_urls: bool = False
    omit_health_checks: bool = False


@dataclass(frozen=True, slots=True)
class LoggingSpec:
    """What is logged."""

    api_logging: APILogging = APILogging()


@dataclass(frozen=True, slots=True)
class NameResolution:
    """Read so that Dapr's files load; the mesh needs no name resolution."""

    component: str = ""
    version: str = ""
    configuration: JSONText = "{}"


@dataclass(frozen=True, slots=True)
class SecretScope:
    """Which secrets of a store an app may read."""

    store_name: str
    default_access: Literal["allow", "deny", ""] = "allow"
    allowed_secrets: tuple[str, ...] = ()
    denied_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SecretsSpec:
    """Secret scopes, one per store."""

    scopes: tuple[SecretScope, ...] = ()


@dataclass(frozen=True, slots=True)
class AccessOperation:
    """A path pattern, the verbs (``*`` = every), and what becomes of a call."""

    name: str
    http_verb: tuple[str, ...] = ()
    action: Action = "allow"


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """What one calling app may do."""

    app_id: str
    trust_domain: str
    namespace: str
    default_action: Literal["allow", "deny", ""] = ""
    operations: tuple[AccessOperation, ...] = ()


@dataclass(frozen=True, slots=True)
class TapAccess:
    """Who may see what passes the app's gateway, by app id; an empty action is that of ``defaultAction``."""

    action: Literal["allow", "deny", ""] = ""
    values: tuple[str, ...] = ()
    manage: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AccessControl:
    """Who may invoke the app; an empty action is allow without policies and deny with them."""

    default_action: Literal["allow", "deny", ""] = ""
    trust_domain: str = "public"
    policies: tuple[AccessPolicy, ...] = ()
    tap: TapAccess | None = None


@dataclass(frozen=True, slots=True)
class TokenValidator:
    """Read so that Dapr's files load."""

    name: str
    options: JSONText = "{}"


@dataclass(frozen=True, slots=True)
class MTLS:
    """Read so that Dapr's files load; the backbone's TLS protects the mesh. Times are seconds."""

    enabled: bool = True
    workload_cert_ttl: Seconds = 24 * 3600.0
    allowed_clock_skew: Seconds = 15 * 60.0
    sentry_address: str = ""
    control_plane_trust_domain: str = ""
    token_validators: tuple[TokenValidator, ...] = ()


@dataclass(frozen=True, slots=True)
class Feature:
    """A preview feature."""

    name: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class APIOperation:
    """A part of the gateway's API; an empty member means any."""

    name: str
    version: str = ""
    protocol: Literal["http", "grpc", ""] = ""


@dataclass(frozen=True, slots=True)
class APISpec:
    """Which part of the gateway's API may be used; nothing allowed = everything not denied."""

    allowed: tuple[APIOperation, ...] = ()
    denied: tuple[APIOperation, ...] = ()


@dataclass(frozen=True, slots=True)
class ComponentsSpec:
    """Component types that refuse to load: ``state.redis`` or ``state.redis/v1``."""

    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wasm:
    """How WebAssembly middleware runs."""

    strict_sandbox: bool = False


@dataclass(frozen=True, slots=True)
class ConcurrencyLimit:
    """How many of one workflow or activity run at once."""

    name: Name
    max_concurrent: Limit


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Seconds that an ended workflow's state is kept; None = for ever; that of a status goes before that of any."""

    any_terminal: Seconds | None = None
    completed: Seconds | None = None
    failed: Seconds | None = None
    terminated: Seconds | None = None


@dataclass(frozen=True, slots=True)
class WorkflowSpec:
    """Limits of the workflow engine; None = no limit."""

    max_concurrent_workflow_invocations: Limit | None = None
    max_concurrent_activity_invocations: Limit | None = None
    global_max_concurrent_workflow_invocations: Limit | None = None
    global_max_concurrent_activity_invocations: Limit | None = None
    workflow_concurrency_limits: tuple[ConcurrencyLimit, ...] = ()
    activity_concurrency_limits: tuple[ConcurrencyLimit, ...] = ()
    state_retention_policy: RetentionPolicy = RetentionPolicy()


@dataclass(frozen=True, slots=True)
class ConfigurationSpec:
    """Everything under ``spec``; ``metric`` is the old name of ``metrics``, ``placement`` is brokermesh's own."""

    http_pipeline: Pipeline | None = None
    app_http_pipeline: Pipeline | None = None
    tracing: Tracing | None = None
    metric: Metrics | None = None
    metrics: Metrics | None = None
    logging: LoggingSpec | None = None
    name_resolution: NameResolution | None = None
    secrets: SecretsSpec | None = None
    access_control: AccessControl | None = None
    mtls: MTLS | None = None
    features: tuple[Feature, ...] | None = None
    api: APISpec | None = None
    components: ComponentsSpec | None = None
    wasm: Wasm | None = None
    workflow: WorkflowSpec | None = None
    placement: Literal["nearest", "backbone", "local"] | None = None

    def overlaid(self, later: "ConfigurationSpec") -> "ConfigurationSpec":
        """Give the two as one; a section of the later one replaces ours."""
        given = {item.name: getattr(later, item.name) for item in dataclasses.fields(later)}
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Configuration:
    """A named set of settings for gateways."""

    name: str = ""
    spec: ConfigurationSpec = ConfigurationSpec()
    namespace: str | None = None
    file: str | None = field(default=None, compare=False)
    line: int | None = field(default=None, compare=False)
    handlers_at: Mapping[tuple[str, int], Problem] = field(default_factory=dict, compare=False, repr=False)
    rules_at: Mapping[tuple[str, int, int | None], Problem] = field(default_factory=dict, compare=False, repr=False)

    def problem(self, message: str, section: str, index: int) -> Problem:
        """Say what is wrong with the middleware of a pipeline, at its place in the file."""
        path = f"spec.{PIPELINES[section]}.handlers[{index}]"
        at = self.handlers_at.get((section, index), Problem("", path, self.file, self.line))
        return dataclasses.replace(at, message=message)

    def features(self) -> Mapping[str, bool]:
        """List the named preview features, and whether each is on."""
        return MappingProxyType({feature.name: feature.enabled for feature in self.spec.features or ()})

    def overlaid(self, later: "Configuration") -> "Configuration":
        """Give the two as one: sections of the later file replace those of the earlier."""
        places = {**self.handlers_at, **later.handlers_at}
        return dataclasses.replace(later, spec=self.spec.overlaid(later.spec), handlers_at=places)
