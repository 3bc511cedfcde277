"""The file models of Subscription, in both shapes, and their conversion into values.

Source: Dapr 1.18, declarative subscriptions.
"""

# No `from __future__ import annotations`: pydantic reads these annotations at run time.

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from mesh.address import MAX_TOPIC_BYTES
from mesh.errors import Problem
from mesh.resources.documents import Document, FileModel, validate
from mesh.resources.fields import Count, MatchText, Name, Parsed, ScalarText, plain_text
from mesh.resources.schema import IN_ANY, Meta
from mesh.resources.subscription import BulkOptions, Rule, Subscription, asked, checked_route, unknown_metadata

__all__ = ["V2", "SubscriptionV1File", "SubscriptionV2File", "check_metadata", "subscription"]

V1 = "dapr.io/v1alpha1"
V2 = "dapr.io/v2alpha1"
_TOP = "belongs to the top level of the document, beside spec"
_BELOW = "belongs below spec"
_MISPLACED: dict[tuple[str, ...], str] = {
    ("spec", "scopes"): _TOP,
    ("metadata", "scopes"): _TOP,
    ("spec", "version"): f"does not belong here: which shape it is, apiVersion says ({V1} or {V2})",
    **{(name,): _BELOW for name in ("bulkSubscribe", "deadLetterTopic", "pubsubname", "route", "routes", "topic")},
    **{("spec", name): f"belongs below spec.routes ({V2})" for name in ("rules", "default")},
}
_OTHER_SHAPE: dict[str, dict[tuple[str, ...], str]] = {
    V1: {("spec", "routes"): f"belongs to {V2}; in {V1} there is one route (route: /path)"},
    V2: {("spec", "route"): f"belongs to {V1}; in {V2} it is the default of routes (routes: {{default: /path}})"},
}


Route = Annotated[str, Parsed(lambda text: checked_route(plain_text(text)))]


@dataclass(frozen=True, slots=True)
class BulkSpec:
    """How deliveries are batched; zero means the default, as in Dapr."""

    enabled: bool = False
    max_messages_count: Count = 0
    max_await_duration_ms: Count = 0


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """One routing rule."""

    path: Route
    match: MatchText = ""


@dataclass(frozen=True, slots=True)
class RoutesSpec:
    """Rules in order, and where the rest goes."""

    rules: tuple[RuleSpec, ...] = ()
    default: Route | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSpec:
    """What ``spec`` has in both shapes."""

    pubsubname: Name
    topic: Name
    metadata: Mapping[str, ScalarText] = field(default_factory=dict)
    dead_letter_topic: str | None = None
    bulk_subscribe: BulkSpec = BulkSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionV1Spec(SubscriptionSpec):
    """``spec`` of the old shape: one route."""

    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionV2Spec(SubscriptionSpec):
    """``spec`` of the shape with routing rules."""

    routes: RoutesSpec


class SubscriptionV1File(FileModel):
    """A Subscription of the old shape as it stands in a file."""

    effects = IN_ANY

    api_version: Literal["dapr.io/v1alpha1", "dapr.io/v2alpha1"]
    kind: Literal["Subscription"]
    metadata: Meta
    spec: SubscriptionV1Spec
    scopes: tuple[str, ...] = ()


class SubscriptionV2File(FileModel):
    """A Subscription with routing rules as it stands in a file."""

    effects = IN_ANY

    api_version: Literal["dapr.io/v2alpha1"]
    kind: Literal["Subscription"]
    metadata: Meta
    spec: SubscriptionV2Spec
    scopes: tuple[str, ...] = ()


def check_metadata(document: Document, problems: list[Problem], warnings: list[Problem]) -> None:
    """Find metadata that nothing reads: what was probably meant otherwise is a problem, the rest a warning."""
    given = document.get("spec", "metadata")
    near, others = unknown_metadata(given if isinstance(given, dict) else ())
    for found, into in ((near, problems), (others, warnings)):
        into += [document.problem(message, ("spec", "metadata", name), key=True) for name, message in found]


def _misplaced(document: Document) -> list[Problem]:
    """Find fields that stand where a subscription has none of the name, but would elsewhere."""
    known = _MISPLACED | _OTHER_SHAPE.get(str(document.get("apiVersion")), {})
    return [
        document.problem(message, location, key=True)
        for location, message in known.items()
        if document.get(*location) is not None
    ]


def subscription(document: Document, problems: list[Problem], warnings: list[Problem]) -> Subscription | None:
    """Read a Subscription of either shape."""
    misplaced = _misplaced(document)
    if misplaced:  # What follows from it, a field that is missing elsewhere, is not another cause.
        problems += misplaced
        return None
    model: SubscriptionV1File | SubscriptionV2File | None
    if document.get("apiVersion") == V2:
        model = validate(document, SubscriptionV2File, problems, warnings)
    else:
        model = validate(document, SubscriptionV1File, problems, warnings)
    if model is None:
        return None
    spec = model.spec
    routes = RoutesSpec(default=spec.route) if isinstance(spec, SubscriptionV1Spec) else spec.routes
    if not routes.rules and routes.default is None:
        problems.append(document.problem("needs at least one rule or a default", ("spec", "routes"), key=True))
        return None
    wrong: list[tuple[tuple[str, ...], str]] = [
        (("spec", "metadata", name), message) for name, message in asked(spec.metadata)[1]
    ]
    for key, topic in (("topic", spec.topic), ("deadLetterTopic", spec.dead_letter_topic or "")):
        if (size := len(topic.encode())) > MAX_TOPIC_BYTES:
            wrong.append((("spec", key), f"a topic has at most {MAX_TOPIC_BYTES} bytes, this one has {size}"))
    problems += [document.problem(message, location) for location, message in wrong]
    bulk = spec.bulk_subscribe
    return Subscription(
        name=model.metadata.name,
        namespace=model.metadata.namespace,
        pubsub=spec.pubsubname,
        topic=spec.topic,
        rules=tuple(
            Rule(rule.match, rule.path, f"{document.file}:{document.position(('spec', 'routes', 'rules', index))[0]}")
            for index, rule in enumerate(routes.rules)
        ),
        default_path=routes.default,
        metadata=MappingProxyType(dict(spec.metadata)),
        dead_letter_topic=spec.dead_letter_topic or None,
        bulk=BulkOptions.of(bulk.enabled, bulk.max_messages_count, bulk.max_await_duration_ms),
        scopes=model.scopes,
        file=document.file,
        line=document.line,
    )
