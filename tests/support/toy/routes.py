"""``POST /v1.0/toys/{name}?by=…``."""

from __future__ import annotations

from gateway.http.response import Answered, json_response
from gateway.routes.request import query_of
from gateway.routes.route import WRITE, Asked, Route
from tests.support.toy.block import COUNT, Count


async def count(asked: Asked) -> Answered:
    """Count on, and tell the count."""
    name = asked.text(0)
    await asked.find(COUNT, name)
    return json_response({"count": await asked.run(COUNT, name, Count(int(query_of(asked.query).get("by", "1"))))})


ROUTES = (Route("toys/{name}", count, WRITE),)
