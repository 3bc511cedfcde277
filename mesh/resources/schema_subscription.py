"""The file models of Subscription, in both shapes, and their conversion into values.

Source: Dapr 1.18, declarative subscriptions.
"""

# No `from __future__ import annotations`: pydantic reads these annotations at run time.

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from mesh.errors import Problem
from mesh.resources.documents import Document, FileModel, validate
from mesh.resources.fields import Count, MatchText, Name, Parsed, ScalarText, plain_text
from mesh.resources.schema import IN_ANY, Meta
from mesh.resources.subscription import BulkOptions, Rule, Subscription, normal_path

__all__ = ["V2", "subscription"]

V2 = "dapr.io/v2alpha1"


Route = Annotated[str, Parsed(lambda text: normal_path(plain_text(text)))]


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


def subscription(document: Document, problems: list[Problem], warnings: list[Problem]) -> Subscription | None:
    """Read a Subscription of either shape."""
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
    bulk = spec.bulk_subscribe
    return Subscription(
        name=model.metadata.name,
        namespace=model.metadata.namespace,
        pubsub=spec.pubsubname,
        topic=spec.topic,
        rules=tuple(Rule(rule.match, rule.path) for rule in routes.rules),
        default_path=routes.default,
        metadata=MappingProxyType(dict(spec.metadata)),
        dead_letter_topic=spec.dead_letter_topic or None,
        bulk=BulkOptions.of(bulk.enabled, bulk.max_messages_count, bulk.max_await_duration_ms),
        scopes=model.scopes,
        file=document.file,
        line=document.line,
    )
