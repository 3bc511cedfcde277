"""``state``: get, save, delete, bulk get, transaction, query; and ``mesh/state``: the list of keys."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import orjson
from msgspec.structs import replace

from gateway.errors import APIError, answer, bad_request, malformed
from gateway.http.response import Answered, Response, json_response, no_content
from gateway.routes.request import fields, header, metadata_of, query_of, read_body, read_json, text_map
from gateway.routes.route import WRITE, Asked, Asking, Route
from gateway.routes.rpc import RPC, Called
from mesh.blocks.items import CONSISTENCIES, completed, named, named_options, options_of
from mesh.blocks.state import (
    BULK_GET,
    DELETE,
    GET,
    KEYS,
    MAX_LISTED,
    QUERY,
    SAVE,
    TRANSACT,
    BulkGet,
    Get,
    Keys,
    Listed,
    Save,
    Search,
)
from mesh.errors import FeatureNotSupportedError, StateError
from mesh.event import MAX_LEVELS
from mesh.operation import Method
from mesh.query import Queried
from mesh.store import Concurrency, Item, Stored
from mesh.values import parse_whole

__all__ = ["ROUTES", "RPCS", "get", "keys", "told_expiry"]

DEFAULT_LISTED = 100


async def get(asked: Asked) -> Answered:
    """Read one key."""
    store, key = asked.text(0), asked.text(1)
    await asked.find(GET, store)
    wanted = Get(key, "consistency=strong" in asked.query, dict(metadata_of(asked.query)))
    stored = cast("Stored | None", await asked.run(GET, store, wanted))
    if stored is None:
        return no_content()
    fields_told = [("Content-Type", "application/json"), ("ETag", stored.etag)]
    if stored.expires_at is not None:
        fields_told.append(("metadata.ttlExpireTime", _rfc3339(stored.expires_at)))
    return Response(200, orjson.dumps(stored.value.decode()) if stored.bare else stored.value, fields_told)


async def save(asked: Asked) -> Answered:
    """Write an array of items."""
    store = asked.text(0)
    await asked.find(SAVE, store)
    body = await read_json(asked.request)
    if not isinstance(body, list):
        raise malformed("the body must be an array of items")
    metadata = metadata_of(asked.query)
    await asked.run(SAVE, store, Save([_item(item, metadata, SAVE, store) for item in body]))
    return no_content()


async def delete(asked: Asked) -> Answered:
    """Delete one key."""
    store, key = asked.text(0), asked.text(1)
    await asked.find(DELETE, store)
    item = Item(key, None, header(asked.request, "If-Match") or None, metadata=dict(metadata_of(asked.query)))
    await _delete(asked, store, item, query_of(asked.query))
    return no_content()


async def _delete(asking: Asking, store: str, item: Item, options: Mapping[str, object]) -> None:
    given = Save([item])
    concurrency, strong = _options(options, DELETE, store, given)
    given.items[0] = replace(item, concurrency=concurrency, strong=strong)
    await asking.run(DELETE, store, given)


async def bulk_get(asked: Asked) -> Answered:
    """Read several keys."""
    store = asked.text(0)
    await asked.find(BULK_GET, store)
    body = fields(await read_json(asked.request) or {}, "the body")
    keys = body.get("keys") or []
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise malformed("keys must be an array of strings")
    parallelism = body.get("parallelism") or 0
    if not isinstance(parallelism, int):
        raise malformed("parallelism must be an integer")
    metadata = {**text_map(body.get("metadata"), "metadata"), **metadata_of(asked.query)}
    found = await asked.run(BULK_GET, store, BulkGet(tuple(keys), parallelism, metadata))
    results = zip(keys, cast("Sequence[Stored | str | None]", found), strict=True)
    return json_response([_found(key, stored) for key, stored in results])


async def transaction(asked: Asked) -> Answered:
    """Write several items, all or none."""
    store = asked.text(0)
    await _find_transactional(asked, store)
    body = fields(await read_json(asked.request) or {}, "the body")
    operations = body.get("operations") or []
    if not isinstance(operations, list):
        raise malformed("operations must be an array")
    metadata = metadata_of(asked.query)
    items: list[Item] = []
    whole = text_map(body.get("metadata"), "metadata")
    for operation in operations:
        members = fields(operation, "an operation")
        delete = _is_delete(members.get("operation"))
        items.append(_item(members.get("request"), metadata, TRANSACT, store, delete=delete))
    await _transact(asked, store, items, whole)
    return no_content()


async def _find_transactional(asking: Asking, store: str) -> None:
    component = await asking.find(TRANSACT, store)
    if "TRANSACTIONAL" not in component.capabilities:
        raise answer(FeatureNotSupportedError(store, "transactions"), TRANSACT, store)


def _is_delete(kind: object) -> bool:
    if kind not in ("upsert", "delete"):
        raise APIError(400, "ERR_NOT_SUPPORTED_STATE_OPERATION", f"operation type {kind} not supported")
    return kind == "delete"


async def _transact(asking: Asking, store: str, items: list[Item], whole: Mapping[str, str]) -> None:
    """Write all, or none. Of the metadata of the whole nothing holds for single items, but where they all are."""
    partition = {name: value for name, value in whole.items() if name.lower() == "partitionkey"}
    if partition:
        items = [replace(item, metadata={**partition, **item.metadata}) for item in items]
    await asking.run(TRANSACT, store, Save(items))


async def query(asked: Asked) -> Answered:
    """Find values by their contents."""
    store = asked.text(0)
    await asked.find(QUERY, store)
    search = Search(await read_body(asked.request), dict(metadata_of(asked.query)))
    found = cast("Queried", await asked.run(QUERY, store, search))
    if not found.matches:
        return no_content()
    results = [
        {"key": match.key, "data": _json(match.value), **({"etag": match.etag} if match.etag else {})}
        for match in found.matches
    ]
    return json_response({"results": results, **({"token": found.token} if found.token else {})})


async def keys(asked: Asked) -> Answered:
    """List keys, a page of them."""
    store = asked.text(0)
    await asked.find(KEYS, store)
    given = query_of(asked.query)
    try:
        limit = parse_whole(given.get("limit") or str(DEFAULT_LISTED), least=1, most=MAX_LISTED)
    except ValueError as error:
        raise bad_request(f"limit is {error}") from None
    wanted = Keys(given.get("prefix", ""), given.get("after", ""), limit)
    listed = cast("Listed", await asked.run(KEYS, store, wanted))
    return json_response({"keys": listed.keys, **({"after": listed.after} if listed.after else {})})


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _found(key: str, stored: Stored | str | None) -> dict[str, object]:
    result: dict[str, object] = {"key": key}
    if isinstance(stored, str):
        result["error"] = stored
    elif stored is not None:
        result["data"] = _json(stored.value)
        result["etag"] = stored.etag
        if told := told_expiry(stored):
            result["metadata"] = told
    return result


def _json(value: bytes) -> object:
    """Give a value as a part of a larger answer, which one that is no JSON would spoil: it stands there as text."""
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return orjson.Fragment(value)


def _options(
    options: Mapping[str, object], method: Method, store: str, arguments: object = None
) -> tuple[Concurrency | None, bool]:
    """Read concurrency, and whether consistency is strong."""
    try:
        return options_of(options)
    except StateError as error:
        raise answer(error, method, store, arguments) from None


def _item(value: object, url_metadata: Mapping[str, str], method: Method, store: str, *, delete: bool = False) -> Item:
    """Read an item of JSON."""
    members = fields(value, "an item")
    key = members.get("key")
    if not isinstance(key, str) or not key:
        raise malformed("'key' is required and must be a string that is not empty")
    options = fields(members.get("options") or {}, "options")
    etag = members.get("etag")
    if etag is not None and not isinstance(etag, str):
        raise malformed(f"'etag' of key {key} must be a string")
    # The URL's come first and win, also over a name in another case.
    metadata = {**url_metadata, **text_map(members.get("metadata"), f"'metadata' of key {key}"), **url_metadata}
    try:
        written = None if delete else orjson.dumps(members.get("value"))
    except orjson.JSONEncodeError:
        raise malformed(f"'value' of key {key} is nested more than {MAX_LEVELS} levels") from None
    return _complete(Item(key, written, etag or None, metadata=metadata), options, method, store)


def _complete(item: Item, options: Mapping[str, object], method: Method, store: str) -> Item:
    """Read an item's options, and of its metadata when it expires."""
    try:
        return completed(item, options)
    except StateError as error:
        raise answer(error, method, store, Save([item])) from None


# The same over gRPC, where a value is any bytes.


async def get_rpc(called: Called) -> object:
    """Read one key."""
    asked = called.message
    await called.find(GET, asked.store_name)
    wanted = Get(asked.key, named(CONSISTENCIES, asked.consistency) == "strong", dict(asked.metadata))
    stored = cast("Stored | None", await called.run(GET, asked.store_name, wanted))
    if stored is None:
        return called.reply()
    return called.reply(data=stored.value, etag=stored.etag, metadata=told_expiry(stored))


async def bulk_get_rpc(called: Called) -> object:
    """Read several keys."""
    asked = called.message
    await called.find(BULK_GET, asked.store_name)
    wanted = BulkGet(tuple(asked.keys), asked.parallelism, dict(asked.metadata))
    found = cast("Sequence[Stored | str | None]", await called.run(BULK_GET, asked.store_name, wanted))
    items: list[dict[str, object]] = []
    for key, stored in zip(wanted.keys, found, strict=True):
        if isinstance(stored, Stored):
            items.append({"key": key, "data": stored.value, "etag": stored.etag, "metadata": told_expiry(stored)})
        else:
            items.append({"key": key} if stored is None else {"key": key, "error": stored})
    return called.reply(items=items)


async def save_rpc(called: Called) -> object:
    """Write items."""
    asked = called.message
    await called.find(SAVE, asked.store_name)
    items = [_sent(item, SAVE, asked.store_name) for item in asked.states]
    await called.run(SAVE, asked.store_name, Save(items))
    return called.reply()


async def delete_rpc(called: Called) -> object:
    """Delete one key."""
    asked = called.message
    await called.find(DELETE, asked.store_name)
    item = Item(asked.key, None, asked.etag.value or None, metadata=dict(asked.metadata))
    await _delete(called, asked.store_name, item, named_options(asked.options.concurrency, asked.options.consistency))
    return called.reply()


async def delete_bulk_rpc(called: Called) -> object:
    """Delete several keys, each for itself."""
    asked = called.message
    await called.find(DELETE, asked.store_name)
    items = [_sent(item, DELETE, asked.store_name, delete=True) for item in asked.states]
    if items:
        await called.run(DELETE, asked.store_name, Save(items))
    return called.reply()


async def transaction_rpc(called: Called) -> object:
    """Write several items, all or none."""
    asked = called.message
    store: str = asked.storeName
    await _find_transactional(called, store)
    items = [_sent(each.request, TRANSACT, store, delete=_is_delete(each.operationType)) for each in asked.operations]
    await _transact(called, store, items, asked.metadata)
    return called.reply()


async def query_rpc(called: Called) -> object:
    """Find values by their contents."""
    asked = called.message
    await called.find(QUERY, asked.store_name)
    search = Search(asked.query.encode(), dict(asked.metadata))
    found = cast("Queried", await called.run(QUERY, asked.store_name, search))
    results = [{"key": match.key, "data": match.value, "etag": match.etag or ""} for match in found.matches]
    return called.reply(results=results, token=found.token)


def _sent(given: Any, method: Method, store: str, *, delete: bool = False) -> Item:
    """Read an item of a message."""
    if not given.key:
        raise APIError(400, "ERR_MALFORMED_REQUEST", "state key cannot be empty")
    value = None if delete else given.value
    item = Item(given.key, value, given.etag.value or None, metadata=dict(given.metadata))
    return _complete(item, named_options(given.options.concurrency, given.options.consistency), method, store)


def told_expiry(stored: Stored) -> dict[str, str]:
    """Tell in metadata when a value expires."""
    return {} if stored.expires_at is None else {"ttlExpireTime": _rfc3339(stored.expires_at)}


RPCS = (
    RPC("GetState", get_rpc, "state"),
    RPC("GetBulkState", bulk_get_rpc, "state"),
    RPC("SaveState", save_rpc, "state"),
    RPC("DeleteState", delete_rpc, "state"),
    RPC("DeleteBulkState", delete_bulk_rpc, "state"),
    RPC("ExecuteStateTransaction", transaction_rpc, "state"),
    RPC("QueryStateAlpha1", query_rpc, "state"),
)

ROUTES = (
    Route("state/{store}", save, WRITE),
    Route("state/{store}/{key}", get, frozenset({"GET"})),
    Route("state/{store}/{key}", delete, frozenset({"DELETE"})),
    Route("state/{store}/bulk", bulk_get, WRITE),
    Route("state/{store}/transaction", transaction, WRITE),
    Route("state/{store}/query", query, WRITE, ("v1.0-alpha1",)),
    Route("mesh/state/{store}", keys, frozenset({"GET"}), api="state"),
)
