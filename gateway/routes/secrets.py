"""``secrets``: one, or all that the application may read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from gateway.http.response import Answered, json_response, no_content
from gateway.routes.request import metadata_of
from gateway.routes.route import Asked, Route
from mesh.blocks.secrets import BULK, GET, Bulk, Get

__all__ = ["ROUTES"]

READ = frozenset({"GET"})


async def get(asked: Asked) -> Answered:
    """Read one secret."""
    store, name = asked.text(0), asked.text(1)
    await asked.find(GET, store)
    secret = await asked.run(GET, store, Get(name, dict(metadata_of(asked.query))))
    return json_response(secret) if secret else no_content()


async def bulk(asked: Asked) -> Answered:
    """Read all secrets."""
    store = asked.text(0)
    await asked.find(BULK, store)
    secrets = cast("Mapping[str, object]", await asked.run(BULK, store, Bulk(dict(metadata_of(asked.query)))))
    return json_response({name: secrets[name] for name in sorted(secrets)})


ROUTES = (Route("secrets/{store}/bulk", bulk, READ), Route("secrets/{store}/{name}", get, READ))
