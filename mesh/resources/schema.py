"""The file models of Component, HTTPEndpoint and Configuration, and their conversion into values.

Each converter takes a document, adds what is wrong with it to the caller's problems, and returns what is there
without that; None if that is nothing.

Source: Dapr 1.18, the Component, Configuration and HTTPEndpoint resources.
"""

# No `from __future__ import annotations`: pydantic reads these annotations at run time.

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from mesh.errors import Problem
from mesh.resources.component import TOKEN, Component, EnvRef, HTTPEndpoint, MetadataEntry, SecretRef, header_refusal
from mesh.resources.configuration import (
    API_NAMES,
    API_VERSIONS,
    GRPC_PORT,
    PIPELINES,
    APISpec,
    Configuration,
    ConfigurationSpec,
    Metrics,
    SecretKeyRef,
    SecretsSpec,
    Tracing,
    WorkflowSpec,
)
from mesh.resources.documents import Document, Effect, FileModel, is_empty, validate
from mesh.resources.fields import AnyText, Name, Parsed, Seconds, plain_text
from mesh.resources.metric_patterns import metric_problems, metric_warnings
from mesh.resources.schema_access import access_control
from mesh.resources.schema_workflow import check_workflow
from mesh.spelling import did_you_mean
from mesh.urls import names_a_host, port_of
from mesh.values import is_host

__all__ = [
    "IN_ANY",
    "OURS",
    "PLACEMENT",
    "QUIET",
    "ComponentFile",
    "ConfigurationFile",
    "HTTPEndpointFile",
    "Meta",
    "component",
    "configuration",
    "http_endpoint",
]

OURS = "mesh."
PLACEMENT = "mesh.placement"
PLACEMENTS = ("nearest", "backbone", "local")

_TYPE = re.compile(r"[a-z][a-z0-9]*(\.[a-z0-9_-]+)+")
_URL = re.compile(r"https?://[^/\s]+\S*", re.IGNORECASE)


def _type(value: str) -> str:
    text = plain_text(value).lower()
    if not _TYPE.fullmatch(text):
        raise ValueError(f"a type looks like 'state.redis', not '{value}'")
    return text


def _url(value: str) -> str:
    text = plain_text(value)
    if not _URL.fullmatch(text):
        raise ValueError(f"expected a URL with http:// or https://, got '{text}'")
    try:
        parts = urlsplit(text)
        if not is_host(parts.hostname or "") or parts.port == 0:
            raise ValueError  # As what reads the port says it.
    except ValueError:
        raise ValueError(f"'{text}' names no server: a host that can be looked up, and perhaps a port") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("a login, a query or a fragment in it is not sent; a login belongs into spec.headers")
    return text.rstrip("/")


ComponentType = Annotated[str, Parsed(_type)]
URL = Annotated[str, Parsed(_url)]


# What a cluster adds to a resource, or keeps there for its own ends.
_CLUSTER = (
    "clusterName",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
QUIET = Effect("", harmless=lambda _: True)
"""Nothing reads it, and nothing is said of it."""

_BESIDE = Effect("its place is beside spec, not in it", unsafe=True)
IN_ANY: Mapping[str, Effect] = {
    "status": QUIET,
    **{f"metadata.{name}": QUIET for name in _CLUSTER},
    **{f"{where}.{name}": _BESIDE for where in ("spec", "metadata") for name in ("scopes", "auth")},
}
"""What is read alike in every kind of resource."""


class Meta(FileModel):
    """``metadata``."""

    name: Name
    namespace: str | None = None
    labels: Mapping[str, AnyText | None] | None = None
    annotations: Mapping[str, AnyText | None] | None = None


_NOT_A_VALUE = Effect("nothing reads it: 'name' and 'key' say where the value is")


@dataclass(frozen=True, slots=True)
class Auth:
    """Where the resource's secrets are."""

    secret_store: str | None = None


@dataclass(frozen=True, slots=True)
class EntrySpec:
    """A named value, or a reference to one."""

    name: Name
    value: AnyText | None = None
    secret_key_ref: SecretKeyRef | None = None
    env_ref: Name | None = None


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """``spec`` of a Component."""

    type: ComponentType
    version: str = "v1"
    ignore_errors: bool = False
    init_timeout: Seconds = 5.0
    metadata: tuple[EntrySpec, ...] = ()


class ComponentFile(FileModel):
    """A Component as it stands in a file."""

    effects: ClassVar = {**IN_ANY, "spec.metadata.secretKeyRef.value": _NOT_A_VALUE}

    api_version: Literal["dapr.io/v1alpha1"]
    kind: Literal["Component"]
    metadata: Meta
    spec: ComponentSpec
    auth: Auth = Auth()
    scopes: tuple[str, ...] = ()


def component(document: Document, problems: list[Problem], warnings: list[Problem]) -> Component | None:
    """Read a Component."""
    model = validate(document, ComponentFile, problems, warnings)
    if model is None:
        return None
    metadata = _entries(document, model.spec.metadata, ("spec", "metadata"), problems)
    if model.spec.init_timeout == 0:
        problems.append(document.problem("must be longer than 0: nothing starts in no time", ("spec", "initTimeout")))
    placement = (model.metadata.annotations or {}).get(PLACEMENT)
    if placement is not None and placement not in PLACEMENTS:
        wrong = f"expected one of {', '.join(PLACEMENTS)}, got '{placement}'"
        problems.append(document.problem(wrong, ("metadata", "annotations", PLACEMENT)))
    return Component(
        name=model.metadata.name,
        namespace=model.metadata.namespace,
        type=model.spec.type,
        version={"": "v1", "v0": "v1"}.get(version := model.spec.version.lower(), version),
        metadata=metadata,
        ignore_errors=model.spec.ignore_errors,
        init_timeout=model.spec.init_timeout,
        scopes=model.scopes,
        auth_secret_store=model.auth.secret_store,
        placement=placement,
        file=document.file,
        line=document.line,
        type_place=document.position(("spec", "type")),
        metadata_place=document.position(("spec", "metadata"), key=True),
    )


@dataclass(frozen=True, slots=True)
class TLSValue:
    """PEM text, or the secret that holds it."""

    value: AnyText | None = None
    secret_key_ref: SecretKeyRef | None = None


@dataclass(frozen=True, slots=True)
class ClientTLS:
    """The client's side of TLS."""

    root_ca: TLSValue | None = None
    certificate: TLSValue | None = None
    private_key: TLSValue | None = None
    renegotiation: Literal["Never", "OnceAsClient", "FreelyAsClient"] = "Never"


@dataclass(frozen=True, slots=True)
class HTTPEndpointSpec:
    """``spec`` of an HTTPEndpoint."""

    base_url: URL
    headers: tuple[EntrySpec, ...] = ()
    client_tls: ClientTLS = ClientTLS()


_NO_CLIENT_CERTIFICATE = Effect("a client certificate is not supported yet", unsafe=True)


class HTTPEndpointFile(FileModel):
    """An HTTPEndpoint as it stands in a file."""

    effects: ClassVar = {
        **IN_ANY,
        "spec.headers.secretKeyRef.value": _NOT_A_VALUE,
        "spec.clientTLS.certificate": _NO_CLIENT_CERTIFICATE,
        "spec.clientTLS.privateKey": _NO_CLIENT_CERTIFICATE,
    }

    api_version: Literal["dapr.io/v1alpha1"]
    kind: Literal["HTTPEndpoint"]
    metadata: Meta
    spec: HTTPEndpointSpec
    auth: Auth = Auth()
    scopes: tuple[str, ...] = ()


def http_endpoint(document: Document, problems: list[Problem], warnings: list[Problem]) -> HTTPEndpoint | None:
    """Read an HTTPEndpoint."""
    model = validate(document, HTTPEndpointFile, problems, warnings)
    if model is None:
        return None
    headers = _entries(document, model.spec.headers, ("spec", "headers"), problems)
    tls = model.spec.client_tls
    _check_headers(document, headers, problems)
    return HTTPEndpoint(
        name=model.metadata.name,
        namespace=model.metadata.namespace,
        base_url=model.spec.base_url,
        headers=headers,
        root_ca=_tls_entry(document, "rootCA", tls.root_ca),
        certificate=_tls_entry(document, "certificate", tls.certificate),
        private_key=_tls_entry(document, "privateKey", tls.private_key),
        renegotiation=tls.renegotiation,
        auth_secret_store=model.auth.secret_store,
        scopes=model.scopes,
        file=document.file,
        line=document.line,
    )


def _check_headers(document: Document, headers: Sequence[MetadataEntry], problems: list[Problem]) -> None:
    """Find headers that no request can hold; what is referred to is looked at when it is known."""
    for index, entry in enumerate(headers):
        place = ("spec", "headers", index)
        if not TOKEN.fullmatch(entry.name):
            problems.append(document.problem(f"no header can be called {entry.name!r}", (*place, "name")))
        if isinstance(entry.value, str) and (refusal := header_refusal(entry.value)):
            problems.append(document.problem(refusal, (*place, "value")))


def _says_enabled(section: object) -> bool:
    return is_empty(section) or (isinstance(section, dict) and "enabled" in section)


_NO_BUCKETS = Effect("it has no effect: times of workflows fall into the buckets of latencyDistributionBuckets")
_NO_SELECTOR = Effect("nothing reads it, as in Dapr: every request passes the middleware")
_OLD = Effect("nothing reads it, as in newer versions of Dapr", harmless=lambda _: False)


class ConfigurationFile(FileModel):
    """A Configuration as it stands in a file."""

    effects: ClassVar = {
        **IN_ANY,
        **{f"spec.{name}.handlers.selector": _NO_SELECTOR for name in PIPELINES.values()},
        "spec.mtls.enabled": Effect(
            "gateways talk over the broker alone: its TLS (amqps://, rediss://, tls://), and --trust-mode strict, by "
            "which they prove who they are, take the place of mtls",
            unsafe=True,
        ),
        "spec.mtls": Effect("it has no effect: the broker's TLS takes its place", harmless=_says_enabled),
        "spec.policies": Effect("nothing reads it: policies of access stand in spec.accessControl"),
        "spec.tracing.enabled": _OLD,
        "spec.tracing.expandParams": _OLD,
        "spec.tracing.includeBody": _OLD,
        "spec.metric.workflow": _NO_BUCKETS,
        "spec.metrics.workflow": _NO_BUCKETS,
        "spec.nameResolution": Effect("it has no effect: applications are found over the broker"),
        "spec.wasm": Effect("it has no effect yet: there is no WebAssembly"),
    }

    api_version: Literal["dapr.io/v1alpha1"]
    kind: Literal["Configuration"]
    metadata: Meta
    spec: ConfigurationSpec = ConfigurationSpec()


class ProvenConfigurationFile(ConfigurationFile):
    """The same where every caller proves who it is: what ``spec.mtls`` asks for is so."""

    effects: ClassVar = {
        **ConfigurationFile.effects,
        "spec.mtls.enabled": Effect("callers prove who they are all the same", harmless=lambda value: value is True),
    }


def configuration(
    document: Document,
    problems: list[Problem],
    warnings: list[Problem],
    trust_domain: str = "",
    *,
    proven: bool = False,
) -> Configuration | None:
    """Read a Configuration; a trust domain is of who reads it, in place of its own."""
    model = validate(document, ProvenConfigurationFile if proven else ConfigurationFile, problems, warnings)
    if model is None:
        return None
    _check_api(document, model.spec.api or APISpec(), problems, warnings)
    for name, section in (("metric", model.spec.metric), ("metrics", model.spec.metrics)):
        problems += [document.problem(*each) for each in metric_problems(section, ("spec", name))]
    spec = model.spec
    if spec.access_control is not None:
        checked = access_control(document, spec.access_control, problems, warnings, trust_domain)
        spec = dataclasses.replace(spec, access_control=checked)
    if spec.tracing is not None:
        _check_tracing(document, spec.tracing, problems, warnings)
    _check_scopes(document, spec.secrets or SecretsSpec(), problems)
    check_workflow(document, spec.workflow or WorkflowSpec(), problems)
    meta = model.metadata
    sections = {"metric": spec.metric, "metrics": spec.metrics}
    for name, section in sections.items():
        warnings += [document.problem(*each) for each in metric_warnings(section, ("spec", name))]
    return Configuration(
        meta.name,
        spec,
        meta.namespace,
        file=document.file,
        line=document.line,
        handlers_at=_handlers(document, spec),
        rules_at=_rules(document, sections),
    )


def _rules(document: Document, sections: Mapping[str, Metrics | None]) -> dict[tuple[str, int, int | None], Problem]:
    """Note where rules of metrics and their labels stand: which there are is known later."""
    found: dict[tuple[str, int, int | None], Problem] = {}
    for name, section in sections.items():
        for number, rule in enumerate(() if section is None else section.rules):
            at = ("spec", name, "rules", number)
            found[name, number, None] = document.problem("", (*at, "name"))
            for place in range(len(rule.labels)):
                found[name, number, place] = document.problem("", (*at, "labels", place, "name"))
    return found


def _handlers(document: Document, spec: ConfigurationSpec) -> dict[tuple[str, int], Problem]:
    """Note where each middleware stands: whether there is such a component is known later."""
    return {
        (section, index): document.problem("", ("spec", name, "handlers", index))
        for section, name in PIPELINES.items()
        for index in range(len(getattr(getattr(spec, section), "handlers", ())))
    }


def _check_scopes(document: Document, section: SecretsSpec, problems: list[Problem]) -> None:
    """Find scopes of a store that has one already."""
    seen: set[str] = set()
    for index, scope in enumerate(section.scopes):
        if scope.store_name in seen:
            told = f"there is a scope of {scope.store_name} before, which would not count"
            problems.append(document.problem(told, ("spec", "secrets", "scopes", index)))
        seen.add(scope.store_name)


def _check_tracing(document: Document, tracing: Tracing, problems: list[Problem], warnings: list[Problem]) -> None:
    """Find places that no span can be sent to, and one that is likely another protocol's."""
    zipkin, otel = tracing.zipkin.endpoint_address.strip(), tracing.otel.endpoint_address.strip()
    place: tuple[str | int, ...] = ("spec", "tracing")
    if zipkin and not (zipkin.startswith(("http://", "https://")) and names_a_host(zipkin)):
        text = f"must be a URL as http://localhost:9411/api/v2/spans, not {zipkin!r}"
        problems.append(document.problem(text, (*place, "zipkin", "endpointAddress")))
    if otel and not (names_a_host(otel) and ("://" not in otel or otel.startswith(("http://", "https://")))):
        text = f"must be host:port, or a URL as http://localhost:4318, not {otel!r}"
        problems.append(document.problem(text, (*place, "otel", "endpointAddress")))
    elif tracing.otel.protocol is None and port_of(otel) == GRPC_PORT:
        text = "is usually gRPC's port, and without a protocol it is HTTP, unless OTEL_EXPORTER_OTLP_PROTOCOL says grpc"
        warnings.append(document.problem(f"{GRPC_PORT} {text}", (*place, "otel", "endpointAddress")))
    for index, each in enumerate(tracing.otel.headers):
        at = (*place, "otel", "headers", index)
        if not TOKEN.fullmatch(each.name):
            problems.append(document.problem(f"no header can be called {each.name!r}", (*at, "name")))
        if each.secret_key_ref is not None and each.value:
            problems.append(document.problem("has more than one of value and secretKeyRef", at))
        elif refusal := header_refusal(each.value):
            problems.append(document.problem(refusal, (*at, "value")))


def _check_api(document: Document, api: APISpec, problems: list[Problem], warnings: list[Problem]) -> None:
    """Find names and versions that nothing has: what was meant otherwise, or was to be denied, is a problem."""
    versions = (*API_VERSIONS, *API_VERSIONS.values())
    for list_name, operations in (("allowed", api.allowed), ("denied", api.denied)):
        for index, each in enumerate(operations):
            own = API_NAMES.get(each.name, API_VERSIONS.values())
            of_it = [version for version in versions if API_VERSIONS.get(version, version) in own]
            said = each.version or of_it[0]
            for key, value, known in (
                ("name", each.name, sorted(API_NAMES)),
                ("version", said, of_it if said in versions else versions),
            ):
                if value in known:
                    continue
                guess = None if value in versions else did_you_mean(value, known)
                unsafe = list_name == "denied"
                whose = f"the API '{each.name}' has not" if value in versions else "no API has"
                message = f"{whose} the {key} '{value}'"
                message += f"; did you mean '{guess}'?" if guess else f"; known are {', '.join(known)}"
                message += "; it would deny nothing" if unsafe else ""
                at = document.problem(message, ("spec", "api", list_name, index, key))
                (problems if guess or unsafe else warnings).append(at)


def _entries(
    document: Document, specs: tuple[EntrySpec, ...], location: tuple[str | int, ...], problems: list[Problem]
) -> tuple[MetadataEntry, ...]:
    entries: list[MetadataEntry] = []
    names: set[str] = set()
    for index, spec in enumerate(specs):
        place: tuple[str | int, ...] = (*location, index)
        given = [value for value in (spec.value, spec.secret_key_ref, spec.env_ref) if value is not None]
        if len(given) > 1:
            problems.append(document.problem("has more than one of value, secretKeyRef and envRef", place))
        if location[-1] == "metadata" and spec.name.casefold() in names:
            problems.append(document.problem(f"the name '{spec.name}' stands here twice", (*place, "name")))
        names.add(spec.name.casefold())
        entries.append(_entry(document, place, spec))
    return tuple(entries)


def _entry(document: Document, place: tuple[str | int, ...], spec: EntrySpec) -> MetadataEntry:
    value: str | SecretRef | EnvRef = spec.value or ""
    if spec.env_ref is not None:
        value = EnvRef(spec.env_ref)
    elif spec.secret_key_ref is not None:
        value = SecretRef(spec.secret_key_ref.name, spec.secret_key_ref.key or spec.secret_key_ref.name)
    at = document.problem("", place)
    return MetadataEntry(spec.name, value, at.path, at.line, at.column)


def _tls_entry(document: Document, name: str, spec: TLSValue | None) -> MetadataEntry | None:
    if spec is None:
        return None
    return _entry(document, ("spec", "clientTLS", name), EntrySpec(name, spec.value, spec.secret_key_ref))
