"""``metadata``, ``healthz``, ``shutdown``: the gateway about itself."""

from __future__ import annotations

from gateway.errors import APIError
from gateway.http.response import Answered, json_response, no_content
from gateway.routes.request import query_of, read_body
from gateway.routes.route import Asked, Route

__all__ = ["ROUTES"]

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
    return json_response(await asked.api.node.metadata())


async def set_label(asked: Asked) -> Answered:
    """Set a label."""
    name, labels = asked.text(0), asked.api.labels
    body = await read_body(asked.request)
    if name not in labels and len(labels) >= MAX_LABELS:
        raise APIError(400, "ERR_BAD_REQUEST", f"invalid request: more than {MAX_LABELS} labels")
    labels[name] = body.decode("utf-8", "replace")
    return no_content()


async def shutdown(asked: Asked) -> Answered:
    """Drain and stop."""
    asked.api.node.shut_down(force=asked.request.headers.get("dapr-force-shutdown", "").lower() == "true")
    return no_content()


READ = frozenset({"GET"})
ROUTES = (
    Route("metadata", metadata, READ),
    Route("metadata/{name}", set_label, frozenset({"PUT"})),
    Route("healthz", healthz, READ, always=True),
    Route("healthz/outbound", outbound, READ, always=True),
    Route("shutdown", shutdown, frozenset({"POST"})),
)
