"""``metadata``, ``healthz``, ``shutdown``: the gateway about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from gateway.errors import APIError, bad_request
from gateway.http.response import Answered, json_response, no_content
from gateway.routes.request import query_of, read_body
from gateway.routes.route import API, Asked, Route
from gateway.routes.rpc import RPC, Called

__all__ = ["ROUTES", "RPCS"]

MAX_LABELS = 100


async def healthz(asked: Asked) -> Answered:
    """Tell whether everything works, the application included."""
    node = asked.api.node
    wanted = query_of(asked.query).get("appid") if asked.query else None
    if wanted is not None and wanted != node.app_id:
        raise APIError(500, "ERR_HEALTH_APPID_NOT_MATCH", "dapr app-id does not match")
    missing = node.not_ready
    if missing:
        raise APIError(500, "ERR_HEALTH_NOT_READY", f"dapr is not ready: [{' '.join(missing)}]")
    return no_content()


async def outbound(asked: Asked) -> Answered:
    """Tell whether calls out of the application work; the application need not be there."""
    if not asked.api.node.outbound_ready:
        raise APIError(500, "ERR_OUTBOUND_HEALTH_NOT_READY", "dapr outbound is not ready")
    return no_content()


async def metadata(asked: Asked) -> Answered:
    """Describe the node."""
    described = await asked.api.node.metadata()
    if not asked.api.values:  # Labels are the user's own, and a command line may have anything in it.
        described["extended"] = {"daprRuntimeVersion": described["runtimeVersion"]}
    return json_response(described)


async def set_label(asked: Asked) -> Answered:
    """Set a label."""
    body = await read_body(asked.request)
    _label(asked.api, asked.text(0), body.decode("utf-8", "replace"))
    return no_content()


def _label(api: API, name: str, value: str) -> None:
    if name not in api.labels and len(api.labels) >= MAX_LABELS:
        raise bad_request(f"more than {MAX_LABELS} labels")
    api.node.label(name, value)


async def shutdown(asked: Asked) -> Answered:
    """Drain and stop."""
    _shut_down(asked.api, asked.request.headers)
    return no_content()


def _shut_down(api: API, told: Mapping[str, str]) -> None:
    api.node.end(force=told.get("dapr-force-shutdown", "").lower() == "true")


async def metadata_rpc(called: Called) -> object:
    """Describe the node, by the names that the members have in JSON."""
    from google.protobuf.json_format import ParseDict  # It is there: a message came.

    described = await called.api.node.metadata()
    subscriptions = cast("Sequence[Mapping[str, object]]", described.get("subscriptions", ()))
    described["subscriptions"] = [{**each, "rules": {"rules": each.get("rules", [])}} for each in subscriptions]
    return ParseDict(described, called.reply(), ignore_unknown_fields=True)


async def set_label_rpc(called: Called) -> object:
    """Set a label."""
    _label(called.api, called.message.key, called.message.value)
    return called.reply()


async def shutdown_rpc(called: Called) -> object:
    """Drain and stop."""
    _shut_down(called.api, called.metadata)
    return called.reply()


RPCS = (
    RPC("GetMetadata", metadata_rpc, "metadata"),
    RPC("SetMetadata", set_label_rpc, "metadata"),
    RPC("Shutdown", shutdown_rpc, "shutdown"),
)


READ = frozenset({"GET"})
ROUTES = (
    Route("metadata", metadata, READ),
    Route("metadata/{name}", set_label, frozenset({"PUT"})),
    Route("healthz", healthz, READ, always=True),
    Route("healthz/outbound", outbound, READ, always=True),
    Route("shutdown", shutdown, frozenset({"POST"})),
)
