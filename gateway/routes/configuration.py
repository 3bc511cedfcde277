"""``configuration``: read, follow, and, as an addition, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from gateway.errors import ERRORS, APIError, bad_request, told
from gateway.http.response import Answered, json_response, no_content
from gateway.routes.request import every, metadata_of, read_body
from gateway.routes.route import WRITE, Asked, Asking, Route
from gateway.routes.rpc import RPC, Called, Stream
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
from mesh.blocks.following import SUBSCRIBE_STREAM, Follow

__all__ = ["ROUTES", "RPCS"]

READ = frozenset({"GET"})
VERSIONS = ("v1.0", "v1.0-alpha1")


async def get(asked: Asked) -> Answered:
    """Read the values of keys, or all."""
    store = asked.text(0)
    await asked.find(GET, store)
    found = cast("Mapping[str, ConfigurationItem]", await asked.run(GET, store, _asked(asked)))
    return json_response({key: described(item) for key, item in found.items()}) if found else no_content()


async def subscribe(asked: Asked) -> Answered:
    """Have the application told of changes."""
    store = asked.text(0)
    await asked.find(SUBSCRIBE, store)
    if asked.api.config.app_port is None:
        text = "app channel is not initialized. cannot subscribe to configuration updates"
        raise APIError(500, "ERR_APP_CHANNEL_NIL", text)
    return json_response({"id": await asked.run(SUBSCRIBE, store, _asked(asked))})


async def unsubscribe(asked: Asked) -> Answered:
    """End a subscription, also while its store is away."""
    store, subscription_id = asked.text(0), asked.text(1)
    missing = await _unsubscribe(asked, store, subscription_id)
    if missing is not None:
        raise missing
    return json_response({"ok": True})


async def _unsubscribe(asking: Asking, store: str, subscription_id: str) -> APIError | None:
    """End a subscription; give the failure when there is none."""
    if await asking.run(UNSUBSCRIBE, store, subscription_id):
        return None
    if await asking.api.node.elsewhere("unsubscribe", store, subscription_id):
        return None
    await asking.find(UNSUBSCRIBE, store)
    error = f"subscription with id {subscription_id} does not exist"
    return told(ERRORS["configuration.unsubscribe"], error, store, subscription_id)


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


def _asked(asked: Asked) -> Get:
    return _wanted(every(asked.query, "key"), metadata_of(asked.query))


def _wanted(keys: Iterable[str], metadata: Mapping[str, str]) -> Get:
    """Tell which keys are asked for; a name that comes several times is one."""
    each = tuple(dict.fromkeys(keys))
    if len(each) > MAX_KEYS:
        raise bad_request(f"more than {MAX_KEYS} keys")
    return Get(each, dict(metadata))


async def get_rpc(called: Called) -> object:
    """Read the values of keys, or all."""
    asked = called.message
    await called.find(GET, asked.store_name)
    found = await called.run(GET, asked.store_name, _wanted(asked.keys, asked.metadata))
    return _filled(called.reply(), cast("Mapping[str, ConfigurationItem]", found))


async def subscribe_rpc(called: Called) -> None:
    """Tell the client of changes: of its subscription's id first, with nothing."""
    asked, client = called.message, cast("Stream", called.stream)
    await called.find(SUBSCRIBE_STREAM, asked.store_name)

    async def send(subscription_id: str, items: Mapping[str, ConfigurationItem | None]) -> None:
        await client.send(_filled(called.reply(id=subscription_id), items))

    follow = Follow(_wanted(asked.keys, asked.metadata), send)
    await called.run(SUBSCRIBE_STREAM, asked.store_name, follow)


def _filled(reply: Any, items: Mapping[str, ConfigurationItem | None]) -> Any:
    """Put values into a message; of a key that was deleted there is only its name."""
    for key, item in items.items():
        message = reply.items[key]
        if item is not None:
            message.value, message.version = item.value, item.version
            message.metadata.update(item.metadata)
    return reply


async def unsubscribe_rpc(called: Called) -> object:
    """End a subscription."""
    asked = called.message
    missing = await _unsubscribe(called, asked.store_name, asked.id)
    return called.reply(ok=True) if missing is None else called.reply(message=missing.message)


RPCS = (
    RPC("GetConfiguration", get_rpc, "configuration", ("GetConfigurationAlpha1",)),
    RPC("SubscribeConfiguration", subscribe_rpc, "configuration", ("SubscribeConfigurationAlpha1",)),
    RPC("UnsubscribeConfiguration", unsubscribe_rpc, "configuration", ("UnsubscribeConfigurationAlpha1",)),
)

ROUTES = (
    Route("configuration/{store}", get, READ, VERSIONS),
    Route("configuration/{store}/subscribe", subscribe, READ, VERSIONS),
    Route("configuration/{store}/{id}/unsubscribe", unsubscribe, READ, VERSIONS),
    Route("mesh/configuration/{store}/{key}", write, WRITE),
    Route("mesh/configuration/{store}/{key}", delete, frozenset({"DELETE"})),
)
