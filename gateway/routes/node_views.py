"""``mesh/node``, ``mesh/components``, ``mesh/resources``, ``mesh/logs``: a gateway for those who look after it."""

from __future__ import annotations

from gateway.errors import bad_request
from gateway.http.response import Answered, json_response
from gateway.logs import LEVELS
from gateway.routes.request import query_of
from gateway.routes.route import Asked, Route
from gateway.routes.state import get, keys
from mesh.values import parse_whole

__all__ = ["ROUTES"]

READ = frozenset({"GET"})
DEFAULT_LINES, MAX_LINES = 200, 1000


async def node(asked: Asked) -> Answered:
    """Tell of the node and its process."""
    return json_response(await asked.api.node.views.node())


async def components(asked: Asked) -> Answered:
    """List the components of the node."""
    return json_response({"components": await asked.api.node.views.components()})


async def resources(asked: Asked) -> Answered:
    """Give the resources of the node as YAML, with what is wrong with them."""
    return json_response({"resources": await asked.api.node.views.resources()})


async def logs(asked: Asked) -> Answered:
    """Give the last lines of the log, or those behind one."""
    query = query_of(asked.query)
    try:
        limit = parse_whole(query.get("limit", str(DEFAULT_LINES)), least=1, most=MAX_LINES)
    except ValueError as error:
        raise bad_request(f"limit is {error}") from None
    try:
        after = parse_whole(query["after"], least=0) if "after" in query else None
    except ValueError as error:
        raise bad_request(f"after is {error}") from None
    level = query.get("level", "debug").lower()
    if level not in LEVELS:
        raise bad_request(f"there is no level {level[:50]!r}, only {', '.join(LEVELS)}")
    found = await asked.api.node.views.lines(after, limit, level)
    lines = [
        {"n": each.n, "time": each.time, "level": each.level, "scope": each.scope, "message": each.message}
        for each in found.lines
    ]
    return json_response({"lines": lines, "next": found.next, "missed": found.missed})


_COMPONENT = "mesh/components/{name}"
ROUTES = (
    Route("mesh/node", node, READ),
    Route("mesh/components", components, READ),
    Route("mesh/resources", resources, READ),
    Route("mesh/logs", logs, READ),
    Route(f"{_COMPONENT}/keys", keys, READ, api="state"),
    Route(f"{_COMPONENT}/keys/{{key}}", get, READ, api="state"),
)
