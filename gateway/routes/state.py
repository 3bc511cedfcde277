"""``state``: get, save, delete, bulk get, transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import orjson
from aiohttp import web

from gateway import errors
from gateway.errors import APIError, malformed, rich, state_failed
from gateway.http.response import Answered, Response, json_response, no_content
from gateway.routes.request import (
    fields,
    header,
    metadata_of,
    query_of,
    read_json,
    text_map,
    unescape,
)
from mesh.blocks.state import Concurrency, IllegalKeyError, Item, State, StateStoreComponent, Stored
from mesh.errors import MeshError, StateError

__all__ = ["StateRoutes"]

MAX_BULK_PARALLELISM = 100
CONSISTENCIES = frozenset({"", "strong", "eventual"})


class StateRoutes:
    """State."""

    def __init__(self, block: State) -> None:
        """Bind the block."""
        self._block = block

    def component(self, name: str) -> StateStoreComponent:
        """Find a store."""
        component = self._block.components.get(name)
        if component is not None:
            return component
        if not self._block.components:
            message = f"state store {name} is not configured"
            raise rich(500, "ERR_STATE_STORE_NOT_CONFIGURED", "DAPR_STATE_NOT_CONFIGURED", message)
        raise rich(400, "ERR_STATE_STORE_NOT_FOUND", "DAPR_STATE_NOT_FOUND", f"state store {name} is not found")

    async def get(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Read one key."""
        component = self.component(unescape(segments[0]))
        key = unescape(segments[1])
        strong = "consistency=strong" in query
        try:
            stored = await self._block.get(component, key, strong=strong)
        except IllegalKeyError as error:
            raise _illegal(component, error) from None
        except MeshError as error:
            raise state_failed(
                "ERR_STATE_GET", f"fail to get {key} from state store {component.name}", error
            ) from error
        if stored is None:
            return no_content()
        told = [("Content-Type", "application/json"), ("ETag", stored.etag)]
        if stored.expires_at is not None:
            told.append(("metadata.ttlExpireTime", _rfc3339(stored.expires_at)))
        return Response(200, stored.value, told)

    async def save(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Write an array of items."""
        component = self.component(unescape(segments[0]))
        body = await read_json(request)
        if not isinstance(body, list):
            raise malformed("the body must be an array of items")
        metadata = metadata_of(query)
        message = f"failed saving state in state store {component.name}"
        items = [_item(item, metadata, "ERR_STATE_SAVE", message, delete=False) for item in body]
        try:
            await self._block.save(component, items)
        except IllegalKeyError as error:
            raise _illegal(component, error) from None
        except MeshError as error:
            raise state_failed("ERR_STATE_SAVE", message, error) from error
        return no_content()

    async def delete(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Delete one key."""
        component = self.component(unescape(segments[0]))
        key = unescape(segments[1])
        message = f"failed deleting state with key {key}"
        options = query_of(query)
        concurrency = _options(options, "ERR_STATE_DELETE", message)
        etag = header(request, "If-Match") or None
        try:
            await self._block.save(component, [Item(key, None, etag, concurrency)])
        except IllegalKeyError as error:
            raise _illegal(component, error) from None
        except MeshError as error:
            raise state_failed("ERR_STATE_DELETE", message, error) from error
        return no_content()

    async def bulk_get(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Read several keys."""
        component = self.component(unescape(segments[0]))
        body = fields(await read_json(request) or {}, "the body")
        keys = body.get("keys") or []
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise malformed("keys must be an array of strings")
        parallelism = body.get("parallelism") or 0
        if not isinstance(parallelism, int):
            raise malformed("parallelism must be an integer")
        text_map(body.get("metadata"), "metadata")
        results: list[dict[str, object]] = [{"key": key} for key in keys]
        permits = asyncio.Semaphore(min(parallelism, MAX_BULK_PARALLELISM) if parallelism > 0 else MAX_BULK_PARALLELISM)

        async def read(result: dict[str, object], key: str) -> None:
            async with permits:
                try:
                    stored = await self._block.get(component, key)
                except IllegalKeyError:
                    raise
                except MeshError as error:
                    result["error"] = str(error)
                    return
            if stored is not None:
                _fill(result, stored)

        try:
            async with asyncio.TaskGroup() as tasks:
                for result, key in zip(results, keys, strict=True):
                    tasks.create_task(read(result, key), name="state-bulk-get")
        except* IllegalKeyError as group:
            error = group.exceptions[0]
            assert isinstance(error, IllegalKeyError)
            raise _illegal(component, error) from None
        return json_response(results)

    async def transaction(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Write several items, all or none."""
        component = self.component(unescape(segments[0]))
        if "TRANSACTIONAL" not in component.store.capabilities:
            message = f"state store {component.name} doesn't support transactions"
            reason = "DAPR_STATE_TRANSACTIONS_NOT_SUPPORTED"
            raise rich(500, "ERR_STATE_STORE_NOT_SUPPORTED", reason, message, resource=("state", component.name))
        body = fields(await read_json(request) or {}, "the body")
        operations = body.get("operations") or []
        if not isinstance(operations, list):
            raise malformed("operations must be an array")
        metadata = metadata_of(query)
        message = "error while executing state transaction"
        items: list[Item] = []
        for operation in operations:
            members = fields(operation, "an operation")
            kind = members.get("operation")
            if kind not in ("upsert", "delete"):
                raise APIError(400, "ERR_NOT_SUPPORTED_STATE_OPERATION", f"operation type {kind} not supported")
            request_item = members.get("request")
            items.append(_item(request_item, metadata, "ERR_STATE_TRANSACTION", message, delete=kind == "delete"))
        try:
            await self._block.transact(component, items)
        except IllegalKeyError as error:
            raise _illegal(component, error) from None
        except MeshError as error:
            raise APIError(500, "ERR_STATE_TRANSACTION", f"{message}: {error}") from error
        return no_content()

    async def query(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Refuse: no store has a query language."""
        component = self.component(unescape(segments[0]))
        raise rich(
            500,
            "ERR_STATE_STORE_NOT_SUPPORTED",
            "DAPR_STATE_QUERYING_NOT_SUPPORTED",
            "state store does not support querying",
            resource=("state", component.name),
        )


def _illegal(component: StateStoreComponent, error: IllegalKeyError) -> APIError:
    return rich(
        400,
        "ERR_MALFORMED_REQUEST",
        "DAPR_STATE_ILLEGAL_KEY",
        str(error),
        resource=("state", component.name),
        field=(error.key, str(error)),
    )


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fill(result: dict[str, object], stored: Stored) -> None:
    result["data"] = orjson.Fragment(stored.value)
    result["etag"] = stored.etag
    if stored.expires_at is not None:
        result["metadata"] = {"ttlExpireTime": _rfc3339(stored.expires_at)}


def _options(options: Mapping[str, object], code: str, message: str) -> Concurrency | None:
    """Read concurrency and consistency."""
    consistency = options.get("consistency") or ""
    if consistency not in CONSISTENCIES:
        raise APIError(500, code, f"{message}: unrecognized consistency {consistency!r}")
    concurrency = options.get("concurrency") or ""
    try:
        return Concurrency(str(concurrency)) if concurrency else None
    except ValueError:
        raise APIError(500, code, f"{message}: unrecognized concurrency {concurrency!r}") from None


def _item(value: object, url_metadata: Mapping[str, str], code: str, message: str, *, delete: bool) -> Item:
    members = fields(value, "an item")
    key = members.get("key")
    if not isinstance(key, str) or not key:
        raise malformed("'key' is required and must be a string that is not empty")
    options = fields(members.get("options") or {}, "options")
    concurrency = _options(options, code, f"{message}: key {key}")
    etag = members.get("etag")
    if etag is not None and not isinstance(etag, str):
        raise malformed(f"'etag' of key {key} must be a string")
    metadata = {**url_metadata, **text_map(members.get("metadata"), f"'metadata' of key {key}"), **url_metadata}
    value_bytes = None if delete else orjson.dumps(members.get("value"))
    return Item(key, value_bytes, etag or None, concurrency, _ttl(metadata, code, f"{message}: key {key}"))


def _ttl(metadata: Mapping[str, str], code: str, message: str) -> float | None:
    text = next((value for name, value in metadata.items() if name.lower() == "ttlinseconds"), None)
    if text is None:
        return None
    try:
        seconds = int(text)
    except ValueError:
        seconds = -2
    if not -1 <= seconds < 2**31:
        error = StateError(f"ttlInSeconds must be a whole number of seconds from -1, not {text!r}")
        raise errors.state_failed(code, message, error)
    return None if seconds <= 0 else float(seconds)
