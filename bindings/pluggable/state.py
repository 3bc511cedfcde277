"""``state.<name>``: state in the pluggable component whose socket has the name.

Source: Dapr 1.18, pluggable state stores: how etags that do not match are told, and what metadata have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from bindings.pluggable._adapter import PluggableAdapter
from bindings.pluggable._connection import Connection, Failed
from bindings.pluggable._messages import Message, message
from bindings.remote import RemoteStateStore, uncertain
from mesh.errors import (
    BadArgumentError,
    ConflictError,
    FeatureNotSupportedError,
    InvalidEtagError,
    MeshError,
    StateError,
    StateLimitError,
)
from mesh.query import All, Compare, Filter, Match, Queried, Query
from mesh.store import MAX_PARALLEL, Concurrency, Item, Stored
from mesh.values import parse_instant

__all__ = ["PluggableStateStore"]

CONCURRENCY = {None: 0, Concurrency.FIRST_WRITE: 1, Concurrency.LAST_WRITE: 2}
STRONG = 2
EXPIRES, TTL = "ttlExpireTime", "ttlInSeconds"
BATCH = 100


class PluggableStateStore(PluggableAdapter, RemoteStateStore):
    """A store that keeps what its program keeps; what it does not declare is refused."""

    service = "StateStore"
    capabilities: Sequence[str] = ()
    guards = False
    batch = BATCH

    async def _initialise(self, connection: Connection, **more: str) -> None:
        await super()._initialise(connection, **more)
        can, has = self._features, self._services
        transacts = "TRANSACTIONAL" in can and "TransactionalStateStore" in has
        found = {
            "ETAG": "ETAG" in can,
            "TRANSACTIONAL": transacts,
            "TTL": "TTL" in can,
            "ACTOR": transacts and "ETAG" in can,
            "QUERY_API": "QUERY_API" in can and "QueriableStateStore" in has,
        }
        self.capabilities = [name for name, there in found.items() if there]
        if transacts and "TransactionalStoreMultiMaxSize" in has:
            service, asked = "TransactionalStoreMultiMaxSize", message("MultiMaxSizeRequest")()
            most = (await connection.call(service, "MultiMaxSize", asked, first=True)).max_size
            self.max_transaction = most if most > 0 else None

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a key; no data and no etag is no value."""
        return self._stored(await self._ask("Get", _get(key, metadata, strong=strong)))

    def _stored(self, answer: Message) -> Stored | None:
        if not answer.data and not answer.HasField("etag"):
            return None
        try:
            expires_at = parse_instant(answer.metadata[EXPIRES]) if EXPIRES in answer.metadata else None
        except ValueError:
            expires_at = None
        # One that cannot be compared is of no use.
        return Stored(answer.data, answer.etag.value if "ETAG" in self.capabilities else "", expires_at)

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read many at a time; one by one where the component cannot, or where they are too large together."""
        results: list[Stored | MeshError | None] = []
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            request = message("BulkGetRequest")(
                items=[_get(key, metadata, strong=strong) for key in dict.fromkeys(batch)],
                options={"parallelism": parallelism},
            )
            try:
                answer = await self._connection.call(self.service, "BulkGet", request)
            except Failed as failed:
                if failed.code.name in ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED"):
                    results += await super().get_many(batch, parallelism=parallelism, metadata=metadata, strong=strong)
                else:
                    results += [self._error(failed)] * len(batch)
                continue
            found = {
                each.key: StateError(self._settings.shown(each.error)) if each.error else self._stored(each)
                for each in answer.items
            }
            results += [found.get(key) for key in batch]
        return results

    async def write(self, items: Sequence[Item]) -> None:
        """Write one, or all in a transaction."""
        if any(item.check for item in items):
            raise FeatureNotSupportedError("a pluggable component", "checking a key without writing it")
        if len(items) == 1:
            name, request = _single(items[0])
            await self._write(name, request, items)
        elif items:
            operations = [{"delete" if item.value is None else "set": _single(item)[1]} for item in items]
            transaction = message("TransactionalStateRequest")(operations=operations)
            await self._write("Transact", transaction, items, "TransactionalStateStore")

    async def write_batch(self, items: Sequence[Item]) -> None:
        """Write many at a time; one by one where the component cannot."""
        for name, kept in (("Set", False), ("Delete", True)):
            some = [item for item in items if (item.value is None) is kept]
            if not some:
                continue
            request = message(f"Bulk{name}Request")(items=[_single(item)[1] for item in some])
            try:
                await self._write(f"Bulk{name}", request, some)
            except FeatureNotSupportedError:
                self.batch = 1
                for item in some:
                    await self.write([item])

    async def _write(self, name: str, request: Message, items: Sequence[Item], service: str = "") -> None:
        try:
            await self._connection.call(service or self.service, name, request)
        except Failed as failed:
            error = self._error(failed)
            if failed.unsure and isinstance(error, StateError):
                error = uncertain(error, items)
            raise error from None

    async def query(self, query: Query, prefix: str) -> Queried:
        """Have the component find values; the operators travel as JSON.

        Raises:
            BadArgumentError: The component cannot make sense of it.
        """
        raw: Mapping[str, Any] = {} if query.filter is None else _raw(query.filter)
        asked = {
            "filter": {name: {"value": orjson.dumps(operand)} for name, operand in raw.items()},
            "sort": [{"key": ".".join(each.path), "order": int(each.descending)} for each in query.sort],
            "pagination": {"limit": query.limit, "token": query.token},
        }
        request = message("QueryRequest")(query=asked, metadata=dict(query.metadata))
        try:
            answer = await self._connection.call("QueriableStateStore", "Query", request)
        except Failed as failed:
            if failed.code.name == "INVALID_ARGUMENT":
                raise BadArgumentError(str(failed)) from None
            raise self._error(failed) from None
        if failures := [each.error for each in answer.items if each.error]:
            raise StateError(self._settings.shown(failures[0]))
        return Queried([Match(each.key, each.data, each.etag.value) for each in answer.items], answer.token)

    def _error(self, failed: Failed) -> MeshError:
        wrong = failed.violations.get("etag")
        if wrong is not None and failed.code.name == "FAILED_PRECONDITION":
            return ConflictError(wrong or str(failed))
        if wrong is not None and failed.code.name == "INVALID_ARGUMENT":
            return InvalidEtagError(wrong or str(failed))
        if failed.too_large:
            return StateLimitError(str(failed))
        if failed.code.name == "UNIMPLEMENTED":
            return FeatureNotSupportedError("the pluggable component", str(failed))
        error = StateError(str(failed))
        error.retryable = not failed.final  # type: ignore[misc]  # as its status says
        return error


def _get(key: str, metadata: Mapping[str, str] | None, *, strong: bool = False) -> Message:
    return message("GetRequest")(key=key, metadata=dict(metadata or {}), consistency=STRONG if strong else 0)


def _single(item: Item) -> tuple[str, Message]:
    metadata = item.metadata
    if item.ttl is not None:
        metadata = {name: text for name, text in metadata.items() if name.lower() != TTL.lower()}
        metadata[TTL] = str(max(1, math.ceil(item.ttl)))
    fields: dict[str, Any] = {
        "key": item.key,
        "metadata": metadata,
        "etag": None if item.etag is None else {"value": item.etag},
        "options": {"concurrency": CONCURRENCY[item.concurrency], "consistency": STRONG if item.strong else 0},
    }
    if item.value is None:
        return "Delete", message("DeleteRequest")(**fields)
    kind = next((text for name, text in metadata.items() if name.lower() == "contenttype"), "")
    return "Set", message("SetRequest")(**fields, value=item.value, content_type=kind)


def _raw(condition: Filter) -> Mapping[str, Any]:
    """Give a filter as its user wrote it."""
    if isinstance(condition, Compare):
        operand = list(condition.values) if condition.operator == "IN" else condition.values[0]
        return {condition.operator: {".".join(condition.path): operand}}
    return {"AND" if isinstance(condition, All) else "OR": [_raw(each) for each in condition.filters]}
