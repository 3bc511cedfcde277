"""``secrets``: one, or all that the application may read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from gateway.http.response import Answered, json_response, no_content
from gateway.routes.request import metadata_of
from gateway.routes.route import Asked, Route
from gateway.routes.rpc import RPC, Called
from mesh.blocks.secrets import BULK, GET, Bulk, Get

__all__ = ["ROUTES", "RPCS"]

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


async def get_rpc(called: Called) -> object:
    """Read one secret."""
    asked = called.message
    await called.find(GET, asked.store_name)
    return called.reply(data=await called.run(GET, asked.store_name, Get(asked.key, dict(asked.metadata))))


async def bulk_rpc(called: Called) -> object:
    """Read all secrets."""
    asked = called.message
    await called.find(BULK, asked.store_name)
    found = await called.run(BULK, asked.store_name, Bulk(dict(asked.metadata)))
    reply: Any = called.reply()
    for name, secret in cast("Mapping[str, Mapping[str, str]]", found).items():
        reply.data[name].secrets.update(secret)
    return reply


RPCS = (RPC("GetSecret", get_rpc, "secrets"), RPC("GetBulkSecret", bulk_rpc, "secrets"))

ROUTES = (Route("secrets/{store}/bulk", bulk, READ), Route("secrets/{store}/{name}", get, READ))
