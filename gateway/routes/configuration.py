"""``configuration``: read, follow, and, as an addition, write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from gateway.errors import ERRORS, APIError, bad_request, told
from gateway.http.response import Answered, json_response, no_content
from gateway.routes.request import every, metadata_of, read_body
from gateway.routes.route import WRITE, Asked, Route
from mesh.blocks.configuration import (
    GET,
    SET,
    SUBSCRIBE,
    UNSUBSCRIBE,
    ConfigurationItem,
    Get,
    Set,
    described,
)
from mesh.blocks.configuration_store import MAX_KEYS

__all__ = ["ROUTES"]

READ = frozenset({"GET"})
VERSIONS = ("v1.0", "v1.0-alpha1")


async def get(asked: Asked) -> Answered:
    """Read the values of keys, or all."""
    store = asked.text(0)
    await asked.find(GET, store)
    found = cast("Mapping[str, ConfigurationItem]", await asked.run(GET, store, _wanted(asked)))
    return json_response({key: described(item) for key, item in found.items()}) if found else no_content()


async def subscribe(asked: Asked) -> Answered:
    """Have the application told of changes."""
    store = asked.text(0)
    await asked.find(SUBSCRIBE, store)
    if asked.api.config.app_port is None:
        text = "app channel is not initialized. cannot subscribe to configuration updates"
        raise APIError(500, "ERR_APP_CHANNEL_NIL", text)
    return json_response({"id": await asked.run(SUBSCRIBE, store, _wanted(asked))})


async def unsubscribe(asked: Asked) -> Answered:
    """End a subscription, also while its store is away."""
    store, subscription_id = asked.text(0), asked.text(1)
    if not await asked.run(UNSUBSCRIBE, store, subscription_id):
        await asked.find(UNSUBSCRIBE, store)
        error = f"subscription with id {subscription_id} does not exist"
        raise told(ERRORS["configuration.unsubscribe"], error, store, subscription_id)
    return json_response({"ok": True})


async def write(asked: Asked) -> Answered:
    """Write a value: the body, as it is."""
    store, key = asked.text(0), asked.text(1)
    await asked.find(SET, store)
    if not key:
        raise bad_request("the key of a value is missing at the end of the path")
    try:
        value = (await read_body(asked.request)).decode()
    except UnicodeDecodeError:
        raise bad_request("a value of a configuration is UTF-8 text") from None
    await asked.run(SET, store, Set(key, value))
    return no_content()


async def delete(asked: Asked) -> Answered:
    """Delete a key."""
    store, key = asked.text(0), asked.text(1)
    await asked.find(SET, store)
    await asked.run(SET, store, Set(key, None))
    return no_content()


def _wanted(asked: Asked) -> Get:
    """Read which keys are asked for; a name that comes several times is one."""
    keys = every(asked.query, "key")
    if len(keys) > MAX_KEYS:
        raise bad_request(f"more than {MAX_KEYS} keys")
    return Get(keys, dict(metadata_of(asked.query)))


ROUTES = (
    Route("configuration/{store}", get, READ, VERSIONS),
    Route("configuration/{store}/subscribe", subscribe, READ, VERSIONS),
    Route("configuration/{store}/{id}/unsubscribe", unsubscribe, READ, VERSIONS),
    Route("mesh/configuration/{store}/{key}", write, WRITE),
    Route("mesh/configuration/{store}/{key}", delete, frozenset({"DELETE"})),
)
