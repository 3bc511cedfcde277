"""Resiliency resources, and which policy a target gets.

Source: Dapr 1.18, the Resiliency resource.
"""

# No `from __future__ import annotations`: the file models read these annotations at run time.

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from mesh.policies import BUILT_IN_RETRIES, CircuitBreaker, Policy, Retry, StatusCodes, Timeout
from mesh.resources.fields import Count
from mesh.scopes import in_scope

__all__ = [
    "ACTORS",
    "DEFAULT_LEVELS",
    "ENDPOINTS",
    "ComponentTarget",
    "Reference",
    "Resiliency",
    "ResiliencyPolicies",
    "Target",
    "default_name",
]

_T = TypeVar("_T")
_MIN_RETRIES = 3
_NOT_FOUND = "DaprBuiltInActorNotFoundRetries"
_OF_CALLS = "DaprBuiltInServiceRetries"
ENDPOINTS = 100
ACTORS = 5000
_KINDS = ("Statestore", "Pubsub", "Binding", "Secretstore", "Configuration", "Lock", "Crypto", "Conversation")
_COMPONENTS = ("Component", "ComponentInbound", "ComponentOutbound")
DEFAULT_LEVELS = ("", "App", "Actor", *_COMPONENTS, *(kind + each for kind in _KINDS for each in _COMPONENTS[1:]))
"""What default policies can be of."""
_UNAVAILABLE_OR_UNAUTHENTICATED = StatusCodes(((14, 14), (16, 16)))


@dataclass(frozen=True, slots=True)
class Target:
    """The policy names that a resource gives to one target; cache size and scope concern breakers.

    The size is how many of an application's endpoints, or of a type's actors, have a breaker at a time; None and 0 are
    the usual number.
    """

    timeout: str | None = None
    retry: str | None = None
    circuit_breaker: str | None = None
    circuit_breaker_scope: Literal["type", "id", "both"] | None = None
    circuit_breaker_cache_size: Count | None = None


@dataclass(frozen=True, slots=True)
class ComponentTarget:
    """The policy names for one component, per direction."""

    outbound: Target | None = None
    inbound: Target | None = None


Reference = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Resiliency:
    """One Resiliency resource: named policies, and which target uses which.

    Attributes:
        references: The policies that targets name: of which kind, the name, and where that stands.
    """

    name: str
    timeouts: Mapping[str, Timeout | None] = field(default_factory=dict)
    retries: Mapping[str, Retry] = field(default_factory=dict)
    breakers: Mapping[str, CircuitBreaker] = field(default_factory=dict)
    apps: Mapping[str, Target] = field(default_factory=dict)
    actors: Mapping[str, Target] = field(default_factory=dict)
    components: Mapping[str, ComponentTarget] = field(default_factory=dict)
    namespace: str | None = None
    scopes: tuple[str, ...] = ()
    references: tuple[Reference, ...] = field(default=(), compare=False)
    file: str | None = field(default=None, compare=False)
    line: int | None = field(default=None, compare=False)


class ResiliencyPolicies:
    """The policies that one app sees; of two resources that name the same thing the later wins."""

    def __init__(self, resiliencies: Iterable[Resiliency] = (), app_id: str = "") -> None:
        """Merge the resources.

        Args:
            resiliencies: In the order they were loaded.
            app_id: The app whose policies these are; resources scoped to others are left out.
        """
        self._timeouts: dict[str, Timeout | None] = {}
        self._retries: dict[str, Retry] = dict(BUILT_IN_RETRIES)
        self._breakers: dict[str, CircuitBreaker] = {}
        self._apps: dict[str, Target] = {}
        self._actors: dict[str, Target] = {}
        self._components: dict[str, ComponentTarget] = {}
        self._resources: dict[str, str] = {}
        for resiliency in resiliencies:
            if not in_scope(resiliency.scopes, app_id):
                continue
            self._timeouts.update(resiliency.timeouts)
            self._retries.update({name: _raised(name, retry) for name, retry in resiliency.retries.items()})
            self._breakers.update(resiliency.breakers)
            self._apps.update(resiliency.apps)
            self._actors.update(resiliency.actors)
            self._components.update(resiliency.components)
            named = (resiliency.timeouts, resiliency.retries, resiliency.breakers)
            self._resources |= {name: resiliency.name for policies in named for name in policies}

    def for_app(self, app_id: str) -> Policy:
        """Give the policy for invoking an app; the built-in retry only when a file redefines it.

        A call that may have run is repeated only by what a user wrote.
        """
        target = self._apps.get(app_id)
        policy = self._policy(target, ("App", ""))
        if policy.breaker is not None:
            size = target.circuit_breaker_cache_size if target is not None else None
            policy = dataclasses.replace(policy, endpoints=size or ENDPOINTS)
        built_in = self._retries[_OF_CALLS]
        if target is None and policy.retry is None and built_in is not BUILT_IN_RETRIES[_OF_CALLS]:
            return dataclasses.replace(policy, retry=_without_answers(built_in))
        return policy

    def for_actor(self, actor_type: str) -> Policy:
        """Give the policy for calls of a type's actors; a default circuit breaker is for the whole type."""
        target = self._actors.get(actor_type)
        policy = self._policy(target, ("Actor", ""))
        if target is None or policy.breaker is None or target.circuit_breaker_scope in (None, "type"):
            return policy
        size, both = target.circuit_breaker_cache_size, target.circuit_breaker_scope == "both"
        return dataclasses.replace(policy, endpoints=size or ACTORS, both=both)

    def for_component(self, name: str, kind: str, direction: Literal["inbound", "outbound"]) -> Policy:
        """Give the policy for a component.

        Args:
            name: The component.
            kind: Its block, as in the default names: ``statestore``, ``pubsub``, ``binding``, ``secretstore``…
            direction: ``outbound`` towards the component, ``inbound`` from it to the app.
        """
        named = self._components.get(name, ComponentTarget())
        target = named.outbound if direction == "outbound" else named.inbound
        way = direction.capitalize()
        return self._policy(target, (f"{kind.capitalize()}Component{way}", f"Component{way}", "Component", ""))

    def _policy(self, target: Target | None, levels: tuple[str, ...]) -> Policy:
        if target is not None:
            names = [[target.timeout or ""], [target.retry or ""], [target.circuit_breaker or ""]]
        else:
            names = [[default_name(level, kind) for level in levels] for kind in ("Timeout", "Retry", "CircuitBreaker")]
        resource = next((self._resources[name] for each in names for name in each if name in self._resources), "")
        timeout, retry, breaker = names
        return Policy(
            _first(self._timeouts, timeout),
            _first(self._retries, retry),
            _first(self._breakers, breaker),
            resource=resource,
        )


def default_name(level: str, kind: str) -> str:
    """Give the name of the default policy of one of `DEFAULT_LEVELS`; the kind is as ``CircuitBreaker``."""
    return f"Default{level}{kind}Policy"


def _raised(name: str, retry: Retry) -> Retry:
    if name == _NOT_FOUND:
        return BUILT_IN_RETRIES[name]
    few = retry.max_retries is None or retry.max_retries < _MIN_RETRIES  # No limit is -1 in a file, and less as well.
    return dataclasses.replace(retry, max_retries=_MIN_RETRIES) if few and name in BUILT_IN_RETRIES else retry


def _without_answers(retry: Retry) -> Retry:
    """Limit the built-in retry to calls that came to no answer of the application, unless it says what it matches."""
    if retry.http_statuses is not None or retry.grpc_statuses is not None:
        return retry
    return dataclasses.replace(retry, http_statuses=StatusCodes(()), grpc_statuses=_UNAVAILABLE_OR_UNAUTHENTICATED)


def _first(known: Mapping[str, _T], names: Iterable[str]) -> _T | None:
    return next((known[name] for name in names if name in known), None)
