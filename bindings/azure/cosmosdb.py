"""``state.azure.cosmosdb``: state in a container of Cosmos DB, laid out as the Dapr runtime lays it out.

An item has ``id``, the key, ``partitionKey``, by default the key as well, ``value`` and ``isBinary``, and ``ttl`` in
seconds. A value that is JSON is kept as such, any other as base64. Where reading the JSON again would not give the same
bytes (blanks between, numbers beyond a double), ``text`` has them, which is ours.

Source: Dapr 1.18, the Azure Cosmos DB state store; the REST reference of Cosmos DB.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import orjson
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.cosmos.aio import CosmosClient
from azure.cosmos.exceptions import CosmosBatchOperationError

from bindings.azure._client import CONNECT_SECONDS, READ_SECONDS, RETRIES, AzureStateStore, Transport, failures
from bindings.remote import conditional, conflict, merged
from brokers.clients.azure import AzureSettings
from mesh.blocks import matching
from mesh.errors import BadArgumentError, ConfigError, FeatureNotSupportedError, StateError, StateLimitError
from mesh.query import All, Compare, Filter, Queried, Query
from mesh.query import Any as AnyOf
from mesh.resources.component import Component
from mesh.resources.settings import Kind, Setting, ignored, setting
from mesh.store import Item, Stored

__all__ = ["CosmosDBSettings", "CosmosDBStateStore"]

MAX_TRANSACTION = 100
MAX_KEY_BYTES = 1023
MAX_TTL = 2**31 - 1
MAX_LEVELS = 100  # Of a value that is kept as JSON; the service has a few more.
MAX_EXACT = 2**53
MAX_CANDIDATES = 10_000
MAX_LOOKED_AT_BYTES = 64 * 1024 * 1024
OUTBOX = "outboxPublishPubsub"
_PARTITION = "partitionkey"
_ILLEGAL = frozenset("/\\?#")
_OPERATORS = {"EQ": "=", "NEQ": "!=", "GT": ">", "GTE": ">=", "LT": "<", "LTE": "<="}
_NO_CONTAINER = 1003  # The sub-status of a 404; without it the item is missing.

_Document = dict[str, Any]


def _url(text: str) -> str:
    if not text.startswith(("https://", "http://")) or "@" in text:
        raise ValueError("is the https:// URL of the account, without credentials")
    return text


def _master_key(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("is the account's key, in base64") from None
    return text


@dataclass(frozen=True, slots=True)
class CosmosDBSettings(AzureSettings):
    """Settings of ``state.azure.cosmosdb``."""

    url: str = setting(
        "url",
        "URL of the account.",
        Kind("URL", _url),
        default="",
        required=True,
        example="https://shop.documents.azure.com:443/",
    )
    key: str | None = setting(
        "masterKey",
        "Key of the account; without it, it is asked as an identity of Microsoft Entra ID.",
        Kind("key", _master_key),
        secret=True,
    )
    database: str = setting(
        "database", "Name of the database, which must be there.", default="", required=True, example="shop"
    )
    collection: str = setting(
        "collection",
        "Name of the container, which must be there, with the partition key /partitionKey.",
        default="",
        required=True,
        example="state",
    )
    ignored: ClassVar[tuple[Setting, ...]] = ignored("a value is kept as JSON whenever it is JSON", "contentType")


class CosmosDBStateStore(AzureStateStore):
    """State in a container of Azure Cosmos DB for NoSQL."""

    settings = CosmosDBSettings
    tested = (
        "cosmosdb-server 1.0, with transactions and expiry added by hand from Microsoft's documentation; "
        "not run against the real service"
    )
    capabilities: Sequence[str] = ("ETAG", "TRANSACTIONAL", "TTL", "ACTOR", "QUERY_API")
    capabilities_with: ClassVar[Mapping[str, str]] = {"TTL": "a container that has a default time to live"}
    max_transaction = MAX_TRANSACTION
    guards = False
    _container: Any
    _lasts: int | None = None

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings."""
        made = super().from_component(component)
        if component.setting(OUTBOX):
            message = "the outbox is not for Cosmos DB: what it adds to a transaction is in another partition"
            raise ConfigError(component.problem(message, setting=OUTBOX))
        return made

    async def _enter(self) -> None:
        settings: CosmosDBSettings = self._settings
        options: dict[str, Any] = {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        credential: Any = settings.key if settings.key is not None else await self._identity()
        # It would ask in the background for the account's regions; the URL leads to the one that takes writes.
        options |= {"retry_total": RETRIES, "enable_endpoint_discovery": False}
        with failures(self._shown):
            transport = await self._stack.enter_async_context(Transport())  # The client leaves it open if it fails.
            client = CosmosClient(settings.url, credential, transport=transport, **options)
            await self._stack.enter_async_context(client)
            self._container = client.get_database_client(settings.database).get_container_client(settings.collection)
            properties = await self._container.read()
        paths = properties["partitionKey"]["paths"]
        if paths != ["/partitionKey"]:
            raise self._problem(f"the container's partition key must be /partitionKey, not {paths}", "collection")
        self._lasts = properties.get("defaultTtl")
        if self._lasts is None:
            self.capabilities = tuple(each for each in self.capabilities if each != "TTL")

    async def check(self) -> None:
        """Ask whether the container answers."""
        with failures(self._shown):
            await self._container.read()

    @property
    def _shown(self) -> str:
        return f"the Cosmos DB container {self._settings.collection!r}"

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read an item; how fresh it is, the account says."""
        if _illegal(key):
            return None
        with failures(self._shown):
            try:
                document = await self._container.read_item(key, _partition(key, metadata))
            except HttpResponseError as error:
                if _missing(error):
                    return None
                raise
        return self._stored(document)

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing; the items of a transaction are of one partition.

        Raises:
            BadArgumentError: They are not.
        """
        if any(item.check for item in items):
            raise FeatureNotSupportedError("Cosmos DB", "checking a key without writing it")
        if len(items) > MAX_TRANSACTION:
            raise StateLimitError(f"a transaction in Cosmos DB has at most {MAX_TRANSACTION} items, not {len(items)}")
        if not items:
            return
        partitions = {_partition(item.key, item.metadata) for item in items}
        if len(partitions) > 1:
            raise BadArgumentError("a transaction in Cosmos DB has one partition: give it metadata.partitionKey")
        (partition,) = partitions
        operations = [self._operation(each, partition) for key, each in merged(items).items() if _checked(key)]
        if any(made is None for made in operations):
            raise conflict(items)
        with failures(self._shown, items):
            try:
                if len(operations) == 1:
                    await self._write_one(cast("_Operation", operations[0]), partition)
                else:
                    await self._write_all(cast("list[_Operation]", operations), partition)
            except HttpResponseError as error:
                unmet = error.status_code in (409, 412) or _missing(error)
                if unmet and any(conditional(item) for item in items):
                    raise conflict(items) from None
                raise

    def _operation(self, each: tuple[list[Item], Item | None], partition: str) -> _Operation | None:
        conditions, written = each
        assert written is not None
        etags = {item.etag for item in conditions}
        if len(etags) > 1:
            return None  # They cannot all hold.
        document = {"id": written.key, "partitionKey": partition, "value": None, "isBinary": False}
        if written.value is not None:
            document |= _laid_out(written)
        return _Operation(document, written.value is None, bool(etags), next(iter(etags), None))

    async def _write_one(self, made: _Operation, partition: str) -> None:
        key = made.document["id"]
        match: dict[str, Any] = {}
        if made.etag is not None:
            match = {"etag": made.etag, "match_condition": MatchConditions.IfNotModified}
        if made.deletes and made.etag is None and made.conditional:
            await self._write_all([made], partition)
        elif made.deletes:
            try:
                await self._container.delete_item(key, partition, **match)
            except HttpResponseError as error:
                if made.conditional or not _missing(error):
                    raise
        elif made.etag is not None:
            await self._container.replace_item(key, made.document, **match)
        elif made.conditional:
            await self._container.create_item(made.document)
        else:
            await self._container.upsert_item(made.document)

    async def _write_all(self, operations: Sequence[_Operation], partition: str) -> None:
        batch = [step for each in operations for step in each.steps()]
        if len(batch) > MAX_TRANSACTION:
            raise StateLimitError(
                f"a transaction in Cosmos DB has at most {MAX_TRANSACTION} operations, "
                f"and a deletion without an etag counts twice: these are {len(batch)}"
            )
        try:
            await self._container.execute_item_batch(batch, partition)
        except CosmosBatchOperationError as error:
            if error.status_code == 424:  # The one at fault has another status.
                raise StateError(f"{self._shown}: the transaction failed") from None
            raise

    async def query(self, query: Query, prefix: str) -> Queried:
        """Find values by their contents; the container gives those that match, which are put in order here."""
        parameters: list[dict[str, Any]] = [{"name": "@prefix", "value": prefix}]
        where = "" if query.filter is None else f"AND {_condition(query.filter, parameters)}"
        statement = " ".join(("SELECT * FROM c WHERE STARTSWITH(c.id, @prefix) AND c.isBinary = false", where))
        partition = _named(query.metadata)
        scope = {} if partition is None else {"partition_key": partition}
        found: list[tuple[str, bytes, str]] = []
        left = MAX_LOOKED_AT_BYTES
        with failures(self._shown):
            async for document in self._container.query_items(statement, parameters=parameters, **scope):
                stored = self._stored(document)
                found.append((document["id"], stored.value, stored.etag))
                left -= len(stored.value)
                if len(found) > MAX_CANDIDATES or left < 0:
                    raise StateError(f"{self._shown}: too many values match to put them in order; ask for less")
        return await asyncio.to_thread(matching.run, query, found)

    def _stored(self, document: Mapping[str, Any]) -> Stored:
        ttl = document.get("ttl", self._lasts)
        expires_at = float(document["_ts"] + ttl) if self._lasts is not None and ttl and ttl > 0 else None
        return Stored(_value(document), document["_etag"], expires_at)


@dataclass(frozen=True, slots=True)
class _Operation:
    """What a key comes to.

    Attributes:
        document: What is written.
        deletes: Whether it is deleted.
        conditional: Whether it must have the etag, or without one must not exist.
        etag: The etag.
    """

    document: _Document
    deletes: bool
    conditional: bool
    etag: str | None

    def steps(self) -> Sequence[tuple[Any, ...]]:
        """Give what it is in a transaction, in which the deletion of what is missing fails."""
        key = self.document["id"]
        if self.etag is not None:
            match = {"if_match_etag": self.etag}
            return [("delete", (key,), match) if self.deletes else ("replace", (key, self.document), match)]
        write = ("create" if self.conditional else "upsert", (self.document,))
        return [write, ("delete", (key,))] if self.deletes else [write]


def _illegal(key: str) -> bool:
    return not _ILLEGAL.isdisjoint(key) or key.endswith(" ") or len(key.encode()) > MAX_KEY_BYTES


def _checked(key: str) -> bool:
    if _illegal(key):
        raise StateLimitError(
            f"a key in Cosmos DB has at most {MAX_KEY_BYTES} bytes, none of / \\ ? # and no blank at its end: {key!r}"
        )
    return True


def _named(metadata: Mapping[str, str] | None) -> str | None:
    return next((value for name, value in (metadata or {}).items() if name.lower() == _PARTITION), None)


def _partition(key: str, metadata: Mapping[str, str] | None) -> str:
    named = _named(metadata)
    return key if named is None else named


def _missing(error: HttpResponseError) -> bool:
    return error.status_code == 404 and getattr(error, "sub_status", None) != _NO_CONTAINER


def _laid_out(item: Item) -> _Document:
    value = item.value
    assert value is not None
    made: _Document = {} if item.ttl is None else {"ttl": min(MAX_TTL, max(1, math.ceil(item.ttl)))}
    try:
        read = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {**made, "value": base64.b64encode(value).decode(), "isBinary": True}
    levels, exact = _looked_at(read)
    if levels > MAX_LEVELS:
        return {**made, "value": base64.b64encode(value).decode(), "isBinary": True}
    if not exact or orjson.dumps(read) != value:
        made["text"] = value.decode()
    return {**made, "value": read}


def _looked_at(value: object) -> tuple[int, bool]:
    """Give how deep a value is, and whether all its numbers are whole and within what a double holds."""
    if isinstance(value, (dict, list)):
        inner = [_looked_at(each) for each in (value.values() if isinstance(value, dict) else value)]
        return 1 + max((levels for levels, _ in inner), default=0), all(exact for _, exact in inner)
    return 0, not isinstance(value, float) and (not isinstance(value, int) or abs(value) <= MAX_EXACT)


def _value(document: Mapping[str, Any]) -> bytes:
    value = document.get("value")
    if document.get("isBinary"):
        return base64.b64decode(value or "")
    if "text" in document:
        return cast("str", document["text"]).encode()
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _condition(found: Filter, parameters: list[dict[str, Any]]) -> str:
    """Give the condition of a filter, and put what it compares with among the parameters."""
    if isinstance(found, (All, AnyOf)):
        word = " AND " if isinstance(found, All) else " OR "
        return f"({word.join(_condition(each, parameters) for each in found.filters)})"
    assert isinstance(found, Compare)
    member = "c['value']" + "".join(f"[{json.dumps(name)}]" for name in found.path)
    names = []
    for value in found.values:
        names.append(f"@p{len(parameters)}")
        parameters.append({"name": names[-1], "value": value})
    if found.operator == "IN":
        return f"{member} IN ({', '.join(names)})" if names else "false"
    return f"{member} {_OPERATORS[found.operator]} {names[0]}"
