"""``state.mongodb``: state in a MongoDB collection, laid out as the Dapr runtime lays it out.

A document has ``_id``, the key, ``value``, ``_etag``, a random UUID as text, and ``_ttl``, when it expires, or null.
The value is a document or an array where it is a JSON object or array, else its text. What is no UTF-8 is kept as
bytes.

A write with a condition is one request, whose filter is the condition: MongoDB changes a document atomically. Writes of
several keys are a transaction, for which the server must belong to a replica set.

Source: Dapr 1.18, the MongoDB state store.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from bson.errors import BSONError
from pymongo import AsyncMongoClient, DeleteOne, ReadPreference, UpdateOne, timeout
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from bindings.mongodb._documents import (
    alive,
    checked_key,
    condition,
    laid_out,
    now,
    order_of,
    prefixed,
    skipped,
    stored,
    text_of,
)
from bindings.mongodb._settings import Document, MongoDBSettings, collection_of, make_client, wrong
from bindings.remote import RemoteStateStore, conflict, merged, uncertain
from mesh.errors import ConfigError, FeatureNotSupportedError, MeshError, StateError, StateLimitError
from mesh.query import Match, Queried, Query
from mesh.resources.component import Component
from mesh.resources.settings import read_settings
from mesh.store import MAX_PARALLEL, Item, Stored

__all__ = ["MongoDBStateStore"]

MAX_BATCH = 100
MAX_READS = 1000
MAX_REQUESTS = 100
ATTEMPTS = 3
START_SHARE = 0.8  # Of the time for a component's start, so that what fails can still be told.
MAX_TOLD = 300
_TOO_LARGE = (257, 10334, 17280, 17419)
_DUPLICATE = 11000
_TRANSACTIONAL = ("LoadBalancer", "Mongos", "RSPrimary")

_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


class MongoDBStateStore(RemoteStateStore):
    """State in a MongoDB collection."""

    settings = MongoDBSettings
    tested = (
        "mongo-java-server 1.47, which speaks MongoDB's protocol; transactions, against answers written by hand from "
        "its documentation. Never run against MongoDB itself"
    )
    capabilities: Sequence[str] = ("ETAG", "TRANSACTIONAL", "TTL", "QUERY_API", "ACTOR", "KEYS")
    batch = MAX_BATCH

    def __init__(self, settings: MongoDBSettings, start_within: float = 5.0) -> None:
        """Prepare; entering connects.

        Args:
            settings: Its settings.
            start_within: Seconds that entering may take.
        """
        super().__init__(settings)
        self._within = start_within * START_SHARE
        self._shown = settings.shown
        self._timeout = settings.timeout
        self._free = asyncio.Semaphore(MAX_REQUESTS)
        self._tasks: asyncio.TaskGroup
        self._client: AsyncMongoClient[Document]
        self._collection: AsyncCollection[Document]
        self._primary: AsyncCollection[Document]

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        settings = read_settings(component, MongoDBSettings)
        if problems := list(wrong(settings, component)):
            raise ConfigError(problems)
        made = cls(settings, component.init_timeout)
        made._component = component
        return made

    async def _enter(self) -> None:
        settings: MongoDBSettings = self._settings
        setting = "connectionString" if settings.url else "params" if settings.params else None
        try:
            self._client = make_client(settings, self._within, lambda told: logger.warning("%s: %s", self._shown, told))
            self._stack.push_async_callback(self._client.close)
            self._collection = collection_of(self._client, settings)
        except (PyMongoError, ValueError) as error:
            raise self._problem(str(error), setting) from None
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._primary = self._collection.with_options(read_preference=ReadPreference.PRIMARY)
        with self._failures():
            await self._client.admin.command("ping")
            await self._collection.create_index("_ttl", expireAfterSeconds=0)
        servers = self._client.topology_description.server_descriptions().values()
        if not any(each.server_type_name in _TRANSACTIONAL for each in servers):
            logger.info("%s belongs to no replica set: without one MongoDB has no transactions", self._shown)
            self.capabilities = tuple(each for each in self.capabilities if each not in ("TRANSACTIONAL", "ACTOR"))

    @contextmanager
    def _failures(self, items: Sequence[Item] = ()) -> Iterator[None]:
        """Raise the block's errors instead of the client's."""
        try:
            yield
        except DocumentTooLarge as error:
            raise StateLimitError(f"{self._shown} takes no value that large: {str(error)[:MAX_TOLD]}") from error
        except (WriteConcernError, WTimeoutError, ExecutionTimeout) as error:  # It may have been done.
            raise uncertain(StateError(f"{self._shown} did not confirm: {_told(error)}"), items) from error
        except BulkWriteError as error:
            failed = [*error.details.get("writeErrors", ()), *error.details.get("writeConcernErrors", ())]
            kind = StateLimitError if any(each.get("code") in _TOO_LARGE for each in failed) else StateError
            told = str(failed[0].get("errmsg"))[:MAX_TOLD] if failed else "a write of several failed"
            raise kind(f"{self._shown} refused: {told}") from error
        except OperationFailure as error:
            kind = StateLimitError if error.code in _TOO_LARGE else StateError
            raise kind(f"{self._shown} refused: {_told(error)}") from error
        except (ConfigurationError, ServerSelectionTimeoutError, WaitQueueTimeoutError) as error:
            raise StateError(f"cannot reach {self._shown}: {str(error)[:MAX_TOLD]}") from error
        except (PyMongoError, BSONError, OSError) as error:
            told = str(error)[:MAX_TOLD] or type(error).__name__
            raise uncertain(StateError(f"{self._shown} did not answer: {told}"), items) from error

    async def _do(self, work: Callable[[], Awaitable[_Result]], items: Sequence[Item] = ()) -> _Result:
        """Use the client; raises the block's errors.

        What has begun goes to its end, which the operation's timeout bounds, also when nobody waits for it any more: a
        cancelled request would leave the client a connection that nobody closes, and it may lose the cancellation.
        """
        outcome: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                with timeout(self._timeout):  # A transaction would be tried again for longer.
                    result = await work()
            except Exception as error:  # noqa: BLE001 - It is raised where the outcome is awaited.
                if not outcome.done():
                    outcome.set_exception(error)
                    outcome.exception()  # Who awaited it may be cancelled now; then nobody takes it.
            else:
                if not outcome.done():
                    outcome.set_result(result)
            finally:
                outcome.cancel()
                self._free.release()

        await self._free.acquire()
        self._tasks.create_task(run(), name="mongodb-request")
        with self._failures(items):
            return await outcome

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a document; ``strong`` is from the primary, whatever the URL prefers."""
        collection, filters = self._primary if strong else self._collection, {"_id": checked_key(key)}
        return stored(await self._do(lambda: collection.find_one(filters)))

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several in few requests."""
        collection = self._primary if strong else self._collection
        distinct = list(dict.fromkeys(map(checked_key, keys)))
        found: dict[str, Stored | MeshError | None] = {}
        for start in range(0, len(distinct), MAX_READS):
            part = distinct[start : start + MAX_READS]
            try:
                documents = await self._do(collection.find({"_id": {"$in": part}}).to_list)
            except MeshError as error:
                found |= dict.fromkeys(part, error)
            else:
                found |= {document["_id"]: stored(document) for document in documents}
        return [found.get(key) for key in keys]

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing: one key by one request, several in a transaction."""
        by_key = {checked_key(key): each for key, each in sorted(merged(items).items())}
        if len(by_key) == 1:
            ((key, (conditions, written)),) = by_key.items()
            if written is not None and (written.value is not None or not _absent(conditions)):
                if not await self._do(lambda: self._write(key, conditions, written), items):
                    raise conflict(items)
                return
        if by_key:
            await self._transact(items, by_key)

    async def _transact(self, items: Sequence[Item], by_key: Mapping[str, tuple[list[Item], Item | None]]) -> None:
        if "TRANSACTIONAL" not in self.capabilities:
            raise FeatureNotSupportedError(f"{self._shown}, which belongs to no replica set,", "transactions")

        async def work(session: AsyncClientSession) -> None:
            for key, (conditions, written) in by_key.items():  # In the order of keys: fewer are in each other's way.
                if not await self._write(key, conditions, written, session):
                    raise conflict(items)

        async def run() -> None:
            how = ReadConcern("snapshot"), WriteConcern("majority"), ReadPreference.PRIMARY
            for left in reversed(range(ATTEMPTS)):
                try:
                    async with self._client.start_session() as session:
                        await session.with_transaction(work, *how)
                    return
                except DuplicateKeyError:  # Another one has made the document since the transaction began.
                    if not left:
                        raise

        await self._do(run, items)

    async def _write(
        self,
        key: str,
        conditions: Sequence[Item],
        written: Item | None,
        session: AsyncClientSession | None = None,
    ) -> bool:
        """Write one key, or in a transaction keep others from it; False if a condition does not hold."""
        etags = {item.etag for item in conditions}
        if len(etags) > 1:
            return False
        if _absent(conditions):
            return await self._create(key, written, session)
        filters: Document = {"_id": key}
        if etags:
            filters |= {"_etag": etags.pop(), **alive()}
        if written is None:  # A read alone would not be in the way of another transaction's write.
            held = await self._collection.update_one(
                filters, {"$set": {"_checked": str(uuid.uuid4())}}, session=session
            )
            return bool(held.matched_count)
        if written.value is None:
            deleted = await self._collection.delete_one(filters, session=session)
            return not conditions or bool(deleted.deleted_count)
        update = {"$set": laid_out(written)}
        if conditions:
            return bool((await self._collection.update_one(filters, update, session=session)).matched_count)
        for left in reversed(range(ATTEMPTS if session is None else 1)):
            try:
                await self._collection.update_one(filters, update, upsert=True, session=session)
                break
            except DuplicateKeyError:  # Two that wrote it at the same time found nothing, and both made it.
                if not left:
                    raise
        return True

    async def _create(self, key: str, written: Item | None, session: AsyncClientSession | None) -> bool:
        """Write a key that must not be there; what has expired may still be."""
        filters = {"_id": key, "_ttl": {"$lte": now()}}
        remains = written is not None and written.value is not None
        update = laid_out(written) if written is not None and remains else {"_ttl": None}
        try:
            await self._collection.update_one(filters, {"$set": update}, upsert=True, session=session)
        except DuplicateKeyError:
            return False
        if not remains:  # Nothing is left of it, but whoever makes it meanwhile is in its way.
            await self._collection.delete_one({"_id": key}, session=session)
        return True

    async def write_batch(self, items: Sequence[Item]) -> None:
        """Write several items in one request, and those that others wrote at the same time once more."""
        writes = [
            DeleteOne({"_id": checked_key(item.key)})
            if item.value is None
            else UpdateOne({"_id": checked_key(item.key)}, {"$set": laid_out(item)}, upsert=True)
            for item in items
        ]

        async def run() -> Sequence[int]:
            try:
                await self._collection.bulk_write(writes, ordered=False)
            except BulkWriteError as error:
                failed = error.details.get("writeErrors", [])
                if not failed or any(each.get("code") != _DUPLICATE for each in failed):
                    raise
                return [each["index"] for each in failed]
            return ()

        for index in await self._do(run, items):
            await self.write([items[index]])

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys in order, by the index that every collection has."""
        filters = {"_id": prefixed(checked_key(prefix), checked_key(after)), **alive()}
        found = self._primary.find(filters, {"_id": 1}).sort("_id", 1).limit(limit)
        return [document["_id"] for document in await self._do(found.to_list)]

    async def query(self, query: Query, prefix: str) -> Queried:
        """Find documents by the members of their values; a page's token is how many were given before.

        Raises:
            BadArgumentError: The token is none, or a member has a name that none can have.
        """
        parts: list[Any] = [{"_id": prefixed(prefix, "")}, alive()]
        if query.filter is not None:
            parts.append(condition(query.filter))
        before, order = skipped(query), order_of(query)
        found = self._collection.find({"$and": parts}).sort(order).skip(before)
        if query.limit:
            found = found.limit(query.limit + 1)
        documents = await self._do(found.to_list)
        more = bool(query.limit) and len(documents) > query.limit
        given = documents[: query.limit] if more else documents
        matches = [Match(each["_id"], text_of(each.get("value")), str(each.get("_etag") or "")) for each in given]
        return Queried(matches, str(before + len(given)) if more else "")


def _absent(conditions: Sequence[Item]) -> bool:
    """Tell whether there must be no value."""
    return any(item.etag is None for item in conditions)


def _told(error: OperationFailure) -> str:
    return str((error.details or {}).get("errmsg") or error)[:MAX_TOLD]
