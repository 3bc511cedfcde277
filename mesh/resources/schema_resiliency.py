"""The file model of Resiliency and its conversion into values.

Source: Dapr 1.18, the Resiliency resource.
"""

# No `from __future__ import annotations`: pydantic reads these annotations at run time.

import dataclasses
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from mesh.errors import Problem
from mesh.policies import BUILT_IN_RETRIES, EXPONENTIAL_MAX_ELAPSED, EXPONENTIAL_START, CircuitBreaker, Retry
from mesh.resources.documents import Document, FileModel, validate
from mesh.resources.fields import Count, GRPCCodes, HTTPCodes, Seconds, TimeoutValue, TripExpression
from mesh.resources.resiliency import DEFAULT_LEVELS, ComponentTarget, Reference, Resiliency, Target, default_name
from mesh.resources.schema import IN_ANY, QUIET, Meta
from mesh.scopes import in_scope
from mesh.spelling import did_you_mean

__all__ = ["ResiliencyFile", "resiliency", "unknown_policies"]

_DEFAULT = re.compile(r"default.*policy|daprbuiltin.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MatchingSpec:
    """The statuses that are retried."""

    http_status_codes: HTTPCodes | None = None
    grpc_status_codes: GRPCCodes | None = None


@dataclass(frozen=True, slots=True)
class RetrySpec:
    """A retry policy; -1 retries = no limit."""

    policy: Literal["constant", "exponential"] = "constant"
    duration: Seconds = 5.0
    max_interval: Seconds = 60.0
    max_retries: int = -1
    matching: MatchingSpec = MatchingSpec()


@dataclass(frozen=True, slots=True)
class BreakerSpec:
    """A circuit breaker policy."""

    max_requests: Count = 1
    interval: Seconds = 0.0
    timeout: Seconds = 60.0
    trip: TripExpression | None = None


@dataclass(frozen=True, slots=True)
class PoliciesSpec:
    """The policies by name."""

    timeouts: Mapping[str, TimeoutValue] = field(default_factory=dict)
    retries: Mapping[str, RetrySpec] = field(default_factory=dict)
    circuit_breakers: Mapping[str, BreakerSpec] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """The policy names for one component; those beside the directions are for both, where they name no other."""

    outbound: Target | None = None
    inbound: Target | None = None
    timeout: str | None = None
    retry: str | None = None
    circuit_breaker: str | None = None

    def target(self) -> ComponentTarget:
        """Give what holds for each direction."""
        if not (self.timeout or self.retry or self.circuit_breaker):
            return ComponentTarget(self.outbound, self.inbound)
        return ComponentTarget(self._with_ours(self.outbound or Target()), self._with_ours(self.inbound or Target()))

    def _with_ours(self, own: Target) -> Target:
        return dataclasses.replace(
            own,
            timeout=own.timeout or self.timeout,
            retry=own.retry or self.retry,
            circuit_breaker=own.circuit_breaker or self.circuit_breaker,
        )


@dataclass(frozen=True, slots=True)
class TargetsSpec:
    """Which target uses which policies."""

    apps: Mapping[str, Target] = field(default_factory=dict)
    actors: Mapping[str, Target] = field(default_factory=dict)
    components: Mapping[str, ComponentSpec] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResiliencySpec:
    """``spec`` of a Resiliency."""

    policies: PoliciesSpec = PoliciesSpec()
    targets: TargetsSpec = TargetsSpec()


class ResiliencyFile(FileModel):
    """A Resiliency as it stands in a file."""

    effects: ClassVar = {
        **IN_ANY,
        "version": QUIET,  # The reference's page of this kind has it, and nothing reads it.
    }

    # With a field that is not known there, policies would be around nothing.
    exact: ClassVar = (("spec", "targets"),)

    api_version: Literal["dapr.io/v1alpha1"]
    kind: Literal["Resiliency"]
    metadata: Meta
    spec: ResiliencySpec
    scopes: tuple[str, ...] = ()


def resiliency(document: Document, problems: list[Problem], warnings: list[Problem]) -> Resiliency | None:
    """Read a Resiliency."""
    model = validate(document, ResiliencyFile, problems, warnings)
    if model is None:
        return None
    policies, targets = model.spec.policies, model.spec.targets
    problems += [*_actor_problems(document, targets), *_nameless(document, model.spec)]
    references = tuple(_references(targets))
    warnings += _no_defaults(document, policies, {name for _, name, _ in references})
    return Resiliency(
        name=model.metadata.name,
        namespace=model.metadata.namespace,
        timeouts=MappingProxyType(dict(policies.timeouts)),
        retries=MappingProxyType({name: _retry(name, spec) for name, spec in policies.retries.items()}),
        breakers=MappingProxyType({name: _breaker(name, spec) for name, spec in policies.circuit_breakers.items()}),
        apps=MappingProxyType(dict(targets.apps)),
        actors=MappingProxyType(dict(targets.actors)),
        components=MappingProxyType({name: spec.target() for name, spec in targets.components.items()}),
        scopes=model.scopes,
        references=references,
        file=document.file,
        line=document.line,
    )


def _retry(name: str, spec: RetrySpec) -> Retry:
    growing = spec.policy == "exponential"
    return Retry(
        kind=spec.policy,
        # As in Dapr, `duration` is for constant retries; an exponential one always begins the same.
        interval=EXPONENTIAL_START if growing else spec.duration,
        max_interval=spec.max_interval,
        max_retries=None if spec.max_retries < 0 else spec.max_retries,
        max_elapsed=EXPONENTIAL_MAX_ELAPSED if growing else None,
        http_statuses=spec.matching.http_status_codes,
        grpc_statuses=spec.matching.grpc_status_codes,
        name=name,
    )


def _breaker(name: str, spec: BreakerSpec) -> CircuitBreaker:
    # As in gobreaker, zero means the default for these two.
    return CircuitBreaker(name, spec.max_requests or 1, spec.interval, spec.timeout or 60.0, spec.trip)


def _references(targets: TargetsSpec) -> Iterator[Reference]:
    """Find the policies that are named, and where."""
    at = ("spec", "targets")
    every: list[tuple[tuple[str, ...], Target | ComponentSpec]] = [
        ((*at, "apps", name), target) for name, target in targets.apps.items()
    ]
    every += [((*at, "actors", name), target) for name, target in targets.actors.items()]
    for name, component in targets.components.items():
        every.append(((*at, "components", name), component))
        for direction, target in (("outbound", component.outbound), ("inbound", component.inbound)):
            if target is not None:
                every.append(((*at, "components", name, direction), target))
    for place, each in every:
        used = {"timeout": each.timeout, "retry": each.retry, "circuitBreaker": each.circuit_breaker}
        yield from ((key, policy, (*place, key)) for key, policy in used.items() if policy)


def _actor_problems(document: Document, targets: TargetsSpec) -> Iterator[Problem]:
    """Find breakers of actors without a scope."""
    for name, target in targets.actors.items():
        if target.circuit_breaker and target.circuit_breaker_scope is None:
            message = "a circuit breaker of actors needs a circuitBreakerScope: type, id or both"
            yield document.problem(message, ("spec", "targets", "actors", name, "circuitBreaker"))


def _nameless(document: Document, spec: ResiliencySpec) -> Iterator[Problem]:
    """Find policies and targets without a name: nothing is called so."""
    policies, targets = spec.policies, spec.targets
    named: dict[tuple[str, str], Mapping[str, object]] = {
        ("policies", "timeouts"): policies.timeouts,
        ("policies", "retries"): policies.retries,
        ("policies", "circuitBreakers"): policies.circuit_breakers,
        ("targets", "apps"): targets.apps,
        ("targets", "actors"): targets.actors,
        ("targets", "components"): targets.components,
    }
    for place, each in named.items():
        if "" in each:
            yield document.problem("it has no name", ("spec", *place, ""), key=True)


def _no_defaults(document: Document, policies: PoliciesSpec, used: Container[str]) -> Iterator[Problem]:
    """Find policies that are called as if they were defaults, or built in, and are around nothing."""
    places: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("timeouts", "Timeout", policies.timeouts),
        ("retries", "Retry", policies.retries),
        ("circuitBreakers", "CircuitBreaker", policies.circuit_breakers),
    )
    for place, kind, named in places:
        known = [default_name(level, kind) for level in DEFAULT_LEVELS]
        known += BUILT_IN_RETRIES if kind == "Retry" else ()
        for name in named:
            if name in known or name in used or not _DEFAULT.fullmatch(name):
                continue
            guess = did_you_mean(name, known)
            told = "no default policy of this kind has this name: it counts only for targets that name it"
            told += f"; did you mean '{guess}'?" if guess else ""
            yield document.problem(told, ("spec", "policies", place, name), key=True)


def unknown_policies(found: Sequence[tuple[Document, Resiliency]], app_id: str | None = None) -> Iterator[Problem]:
    """Find names of policies that no resource has: what targets name may stand in another one, as in Dapr.

    Args:
        found: All of them.
        app_id: Whose they are; None = each is read by the applications in its scopes, which have to find the policies.
    """
    every = _names([document for document, _ in found])
    for document, resource in found:
        known: dict[str, Mapping[str, set[str]]] = {}
        for app in resource.scopes if app_id is None else ():
            known[app] = _names([other for other, each in found if in_scope(each.scopes, app)])
        for key, policy, place in resource.references:
            what = "circuit breaker" if key == "circuitBreaker" else key
            if policy not in every[key]:
                guess = did_you_mean(policy, sorted(every[key]))
                hint = f"; did you mean '{guess}'?" if guess else ""
                yield document.problem(f"there is no {what} policy '{policy}'{hint}", place)
            elif lacking := [app for app, names in known.items() if policy not in names[key]]:
                message = f"there is no {what} policy '{policy}' for the application '{lacking[0]}'"
                yield document.problem(f"{message}: the Resiliency that has it is for others", place)


def _names(documents: Sequence[Document]) -> Mapping[str, set[str]]:
    """Give the names of policies, also of those with which something is wrong: they are there."""

    def named(kind: str) -> set[str]:
        given = [each.get("spec", "policies", kind) for each in documents]
        return {name for each in given if isinstance(each, dict) for name in each}

    return {
        "timeout": named("timeouts"),
        "retry": {*BUILT_IN_RETRIES, *named("retries")},
        "circuitBreaker": named("circuitBreakers"),
    }
