"""The table of routes: which handler answers which path, and what Configuration ``spec.api`` leaves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiohttp import web

from gateway.config import GatewayConfig
from gateway.http.response import Answered
from gateway.http.server import Find, Route, Router
from gateway.routes.durable import DurableRoutes
from gateway.routes.invocation import InvocationRoutes, clean_path
from gateway.routes.node import Node, NodeRoutes, Refusal, absent
from gateway.routes.pubsub import PubSubRoutes
from gateway.routes.state import StateRoutes
from mesh.node.runtime import Runtime
from mesh.resources.configuration import APIOperation, APISpec

__all__ = ["build_router"]

V1, ALPHA1, ALPHA2, BETA1 = "v1.0", "v1.0-alpha1", "v1.0-alpha2", "v1.0-beta1"
WRITE = frozenset({"POST", "PUT"})
ALWAYS = frozenset({"healthz"})
VERSIONS = {"v1": V1, "v1alpha1": ALPHA1, "v1alpha2": ALPHA2, "v1beta1": BETA1}  # Others are the path's own.

_ABSENT: Mapping[str, Sequence[str]] = {
    "secrets": (V1,),
    "configuration": (V1, ALPHA1),
    "lock": (ALPHA1,),
    "unlock": (ALPHA1,),
    "crypto": (ALPHA1,),
    "subtlecrypto": (ALPHA1,),
    "bindings": (V1,),
    "actors": (V1,),
    "jobs": (V1, ALPHA1),
    "workflows": (V1, BETA1, ALPHA1),
    "conversation": (ALPHA1, ALPHA2),
}


def build_router(runtime: Runtime, config: GatewayConfig, node: Node, labels: dict[str, str]) -> Router:
    """Make the router of a node."""
    durable = DurableRoutes(runtime.durable)
    invocation = InvocationRoutes(
        runtime.invocation,
        runtime.tracing,
        app_id=config.app_id,
        namespace=config.namespace,
        timeout=config.call_timeout,
        strip_token=config.tokens.api is not None,
        durable=durable,
    )
    blocks: dict[tuple[str, str], Find] = {
        (V1, "invoke"): lambda method, segments: invocation.by_url,
        **_pubsub(PubSubRoutes(runtime.pubsub, config.app_id)),
        **_state(StateRoutes(runtime.state)),
        **_node(NodeRoutes(node, labels)),
        (V1, "mesh"): _mesh(durable),
    }
    for name, versions in _ABSENT.items():
        blocks.update(dict.fromkeys([(version, name) for version in versions], _refusing(absent(name))))
    allowed = _allowed(blocks, runtime.settings.configuration.spec.api)

    async def fallback(request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        return await invocation.by_header(request, segments[0], query)

    return Router(allowed, fallback, clean_path)


def _pubsub(routes: PubSubRoutes) -> dict[tuple[str, str], Find]:
    async def bulk(request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        return await routes.publish_bulk(request, segments[1:], query)

    def find(method: str, segments: Sequence[str]) -> Route | None:
        if method not in WRITE or len(segments) < 2:
            return None
        # A component named "bulk" can only receive topics of one segment; this is Dapr's order too.
        return bulk if segments[0] == "bulk" and len(segments) > 2 else routes.publish

    def find_alpha(method: str, segments: Sequence[str]) -> Route | None:
        return bulk if method in WRITE and len(segments) > 2 and segments[0] == "bulk" else None

    return {(V1, "publish"): find, (ALPHA1, "publish"): find_alpha}


def _state(routes: StateRoutes) -> dict[tuple[str, str], Find]:
    def find(method: str, segments: Sequence[str]) -> Route | None:
        if len(segments) == 1 and method in WRITE:
            return routes.save
        if len(segments) != 2:
            return None
        if method == "GET":
            return routes.get
        if method == "DELETE":
            return routes.delete
        if method in WRITE:
            return {"bulk": routes.bulk_get, "transaction": routes.transaction}.get(segments[1])
        return None

    def find_alpha(method: str, segments: Sequence[str]) -> Route | None:
        return routes.query if method in WRITE and len(segments) == 2 and segments[1] == "query" else None

    return {(V1, "state"): find, (ALPHA1, "state"): find_alpha}


def _node(routes: NodeRoutes) -> dict[tuple[str, str], Find]:
    def metadata(method: str, segments: Sequence[str]) -> Route | None:
        if method == "GET" and not segments:
            return routes.metadata
        return routes.set_label if method == "PUT" and len(segments) == 1 else None

    def healthz(method: str, segments: Sequence[str]) -> Route | None:
        if method != "GET":
            return None
        return {(): routes.healthz, ("outbound",): routes.outbound}.get(tuple(segments))

    def shutdown(method: str, segments: Sequence[str]) -> Route | None:
        return routes.shutdown if method == "POST" and not segments else None

    return {(V1, "metadata"): metadata, (V1, "healthz"): healthz, (V1, "shutdown"): shutdown}


def _mesh(durable: DurableRoutes) -> Find:
    """What Dapr does not have."""

    def find(method: str, segments: Sequence[str]) -> Route | None:
        return durable.outcome if method == "GET" and len(segments) == 2 and segments[0] == "invocations" else None

    return find


def _refusing(refusal: Refusal) -> Find:
    async def refuse(request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        raise refusal(segments)

    return lambda method, segments: refuse if segments else None


def _allowed(blocks: Mapping[tuple[str, str], Find], api: APISpec | None) -> Mapping[tuple[str, str], Find]:
    """Leave out what ``spec.api`` does not allow: such a path is an invocation like any unknown one."""
    if api is None:
        return blocks

    def listed(key: tuple[str, str], operations: Sequence[APIOperation]) -> bool:
        version, name = key
        return any(
            each.name == name and VERSIONS.get(each.version, each.version or version) == version
            for each in operations
            if each.protocol != "grpc"
        )

    return {
        key: find
        for key, find in blocks.items()
        if key[1] in ALWAYS or (not listed(key, api.denied) and (not api.allowed or listed(key, api.allowed)))
    }
