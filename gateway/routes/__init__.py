"""The table of routes: one module per building block, and what Configuration ``spec.api`` leaves of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from gateway.config import GatewayConfig
from gateway.http.response import Answered
from gateway.http.server import Find, Found, Router
from gateway.routes import (
    actor_calls,
    actor_stream,
    actor_views,
    actors,
    bindings,
    configuration,
    conversation,
    crypto,
    durable,
    invocation,
    jobs,
    lock,
    node,
    node_views,
    pubsub,
    secrets,
    state,
    streams,
    taps,
    topic_views,
    workflow_hub,
    workflow_stream,
    workflow_views,
    workflows,
)
from gateway.routes.invocation import by_header, by_nothing, comparable
from gateway.routes.route import API, Asked, Node, Route
from gateway.routes.rpc import RPC
from mesh.node.runtime import Runtime
from mesh.resources.configuration import API_VERSIONS, APILogging, APIOperation, APISpec

__all__ = ["ROUTES", "RPCS", "build_api", "build_router", "is_allowed"]

# The first that fits answers; what fits none is an invocation by header.
ROUTES: tuple[Route, ...] = (
    *invocation.ROUTES,
    *pubsub.ROUTES,
    *state.ROUTES,
    *secrets.ROUTES,
    *configuration.ROUTES,
    *lock.ROUTES,
    *bindings.ROUTES,
    *crypto.ROUTES,
    *conversation.ROUTES,
    *durable.ROUTES,
    *actors.ROUTES,
    *actor_views.ROUTES,
    *jobs.ROUTES,
    *workflows.ROUTES,
    *workflow_views.ROUTES,
    *node.ROUTES,
    *node_views.ROUTES,
    *topic_views.ROUTES,
    *taps.ROUTES,
)

RPCS: tuple[RPC, ...] = (
    *invocation.RPCS,
    *pubsub.RPCS,
    *state.RPCS,
    *secrets.RPCS,
    *configuration.RPCS,
    *lock.RPCS,
    *bindings.RPCS,
    *crypto.RPCS,
    *conversation.RPCS,
    *actor_calls.RPCS,
    *jobs.RPCS,
    *workflows.RPCS,
    *node.RPCS,
    *streams.RPCS,
    *actor_stream.RPCS,
    *workflow_stream.RPCS,
    *workflow_hub.RPCS,
)


def build_api(
    runtime: Runtime,
    config: GatewayConfig,
    node: Node,
    labels: dict[str, str],
    message: Callable[[str], Any],
    routes: Sequence[Route] = ROUTES,
) -> API:
    """Make what routes and RPCs are given."""
    names = frozenset(route.name for route in routes)
    spec = runtime.settings.configuration.spec
    logged = APILogging() if spec.logging is None else spec.logging.api_logging
    return API(
        runtime.run,
        runtime.services,
        runtime.caller,
        runtime.tracing,
        runtime.tap,
        runtime.streams,
        config,
        node,
        labels,
        names,
        message,
        spec.api,
        logged if config.api_logging is None else replace(logged, enabled=config.api_logging),
    )


def build_router(
    api: API, routes: Sequence[Route] = ROUTES, fallback: Callable[[Asked], Awaitable[Answered]] | None = None
) -> Router:
    """Make the router of a node; what fits no route is an invocation by header, unless another fallback is given."""
    allowed = api.allowed
    rows: dict[tuple[str, str], list[Route]] = {}
    for route in routes:
        for version in route.versions:
            if route.always or is_allowed(route.api or route.name, version, allowed, "http"):
                rows.setdefault((version, route.name), []).append(route)
    if fallback is None:
        fallback = by_header if any(name == "invoke" for _, name in rows) else by_nothing
    return Router({key: _find(api, found) for key, found in rows.items()}, _fallback(api, fallback), comparable)


def _find(api: API, routes: Sequence[Route]) -> Find:
    table = [(route.methods, route.matcher(), route.answer) for route in routes]

    def find(method: str, segments: Sequence[str]) -> Found | None:
        for methods, match, answer in table:
            if not methods or method in methods:
                opened = match(segments)
                if opened is not None:
                    return lambda request, query: answer(Asked(api, request, opened, query))
        return None

    return find


def _fallback(api: API, answer: Callable[[Asked], Awaitable[Answered]]) -> Find:
    def find(method: str, segments: Sequence[str]) -> Found:
        return lambda request, query: answer(Asked(api, request, segments, query))

    return find


def is_allowed(name: str, version: str, api: APISpec | None, protocol: str) -> bool:
    """Tell what ``spec.api`` allows; a path that it does not is an invocation like any unknown one, if those are."""
    if api is None:
        return True

    def listed(operations: Sequence[APIOperation]) -> bool:
        return any(
            each.name == name
            and API_VERSIONS.get(each.version, each.version or version) == version
            and each.protocol in ("", protocol)
            for each in operations
        )

    return not listed(api.denied) and (not api.allowed or listed(api.allowed))
