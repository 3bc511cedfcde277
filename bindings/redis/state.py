"""``state.redis``: state in Redis, laid out as the Dapr runtime lays it out.

Source: Dapr 1.18, the Redis state store.
"""

from __future__ import annotations

import asyncio
import heapq
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import orjson

from bindings.redis._adapter import RedisAdapter
from bindings.redis._client import Command, slot_of
from bindings.redis._search import Search
from bindings.redis._settings import StateSettings
from bindings.redis._state_scripts import CHECK, DELETE, READ, SET, SET_DOCUMENT, WRITE
from bindings.redis._wire import LostError, RefusedError, Reply
from mesh.blocks import matching
from mesh.errors import (
    BadArgumentError,
    ConfigError,
    ConflictError,
    InvalidEtagError,
    MeshError,
    OutcomeUnknownError,
    StateError,
    StateLimitError,
)
from mesh.query import Queried, Query
from mesh.resources.component import Component
from mesh.store import MAX_PARALLEL, Concurrency, Item, StateStore, Stored

__all__ = ["RedisStateStore"]

MAX_VALUE_BYTES = 512 * 1024 * 1024 - 1
MAX_LEVELS = 100  # The module takes 128; one that fails in the middle of a transaction could not be undone.
SCAN_COUNT = 1000
LOOKED_AT_ONCE = 100
MAX_LOOKED_AT_BYTES = 64 * 1024 * 1024
OUTBOX = "outboxPublishPubsub"
_ETAG = re.compile(r"-?[0-9]{1,18}")
_GLOB = re.compile(r"[\\*?\[\]^-]")


class RedisStateStore(RedisAdapter, StateStore):
    """State in Redis; etags are the versions of keys."""

    tested = "Redis 7.0: one server, with the modules of Redis Stack, a cluster, Sentinels"
    settings = StateSettings
    failure = StateError
    capabilities: Sequence[str] = ("ETAG", "TRANSACTIONAL", "TTL", "ACTOR", "KEYS")
    capabilities_with: ClassVar[Mapping[str, str]] = {"QUERY_API": "`queryIndexes`"}

    def __init__(self, *arguments: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(*arguments)
        self._documents = False
        self._search: Search | None = None

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = super().from_component(component)
        if made._client.cluster and component.setting(OUTBOX):
            message = "the outbox is not for a Redis cluster: what it adds to a transaction is in another slot"
            raise ConfigError(component.problem(message, setting=OUTBOX))
        return made

    async def _enter(self) -> None:
        """Connect, and see whether the server has the JSON module."""
        await super()._enter()
        told = await self.run(Command(("COMMAND", "INFO", "JSON.SET", "FT.CREATE"), again=True))
        self._documents, searches = map(bool, cast("list[Reply]", told))
        indexes = self._settings.indexes
        if indexes:
            if self._client.cluster:
                raise StateError(
                    f"{self._client.shown}: queryIndexes needs one server: in a cluster none knows all values"
                )
            if not (self._documents and searches):
                raise StateError(
                    f"{self._client.shown}: queryIndexes needs the modules for JSON and search, which this server has "
                    "not: use Redis Stack or Redis 8, or leave queryIndexes out"
                )
            self._search = Search(self._client, indexes)
            with self._failures():
                await self._search.prepare()
            self.capabilities = (*self.capabilities, "QUERY_API")

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a key, from the primary."""
        return _stored(await self.run(READ.of((_encoded(key),))))

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several in few round trips."""
        replies = await self.run_all([READ.of((_encoded(key),)) for key in keys])
        return [self.failed(each) if isinstance(each, Exception) else _stored(each) for each in replies]

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing, in one script."""
        if not items:
            return
        self._check_slots(items)
        try:
            reply = await self._client.run(self._command(items))
        except (RefusedError, LostError) as error:
            raise self._unwritten(error, items) from error
        if reply:
            raise _conflict(items[cast("int", reply) - 1])

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        """Write each for itself, in few round trips; one that fails does not keep the others from being tried."""
        if len(items) == 1:  # The most frequent case, without what several need.
            return await super().save_each(items)
        commands, refused = [], dict[int, MeshError]()
        for index, item in enumerate(items):
            try:
                commands.append(self._command([item]))
            except MeshError as error:
                refused[index] = error
        replies = iter(await self.run_all(commands))
        results: list[MeshError | None] = []
        for index, item in enumerate(items):
            reply = refused.get(index) or next(replies)
            if isinstance(reply, MeshError):
                results.append(reply)
            elif isinstance(reply, Exception):
                results.append(self._unwritten(reply, items))
            else:
                results.append(_conflict(item) if reply else None)
        return results

    def _unwritten(self, error: RefusedError | LostError, items: Sequence[Item]) -> StateError:
        """Say what became of a write; one that may be done must not be made again if it would conflict with itself."""
        failed = cast("StateError", self.failed(error))
        conditions = any(item.check or item.etag or item.concurrency is Concurrency.FIRST_WRITE for item in items)
        if conditions and isinstance(error, LostError) and error.sent:
            return OutcomeUnknownError(f"{failed}; whether it was written is unknown")
        return failed

    def _command(self, items: Sequence[Item]) -> Command:
        keys: list[bytes] = []
        arguments: list[str | bytes | int] = []
        last = {} if len(items) == 1 else {item.key: index for index, item in enumerate(items) if not item.check}
        for index, item in enumerate(items):
            act = CHECK if item.check or last.get(item.key, index) != index else self._act(item)
            keys.append(_encoded(item.key))
            ttl: str | int = "" if item.ttl is None else max(1, round(item.ttl * 1000))
            arguments += (_expected(item), act, ttl, item.value or b"")
        return WRITE.of(keys, *arguments)

    def _act(self, item: Item) -> str:
        if item.value is None:
            return DELETE
        if len(item.value) > MAX_VALUE_BYTES:
            raise StateLimitError(f"the value of key {item.key!r} is over the limit of {MAX_VALUE_BYTES} bytes")
        return SET_DOCUMENT if self._documents and item.metadata and _is_document(item) else SET

    def _check_slots(self, items: Sequence[Item]) -> None:
        if not self._client.cluster or len(items) == 1:
            return
        first = items[0].key
        slot = slot_of(_encoded(first))
        other = next((item.key for item in items if slot_of(_encoded(item.key)) != slot), None)
        if other is not None:
            raise StateLimitError(
                f"a transaction on a Redis cluster needs keys of one slot, and {first!r} and {other!r} are in two; "
                "those with a part in braces in common are in one, as '{order-1}lines', and so are all with "
                "keyPrefix: '{NAME}'"
            )

    async def query(self, query: Query, prefix: str) -> Queried:
        """Find documents by their contents: an index gives those that may match, and then each is looked at.

        Raises:
            BadArgumentError: There is no such index.
            StateError: The server failed, or more may match than are looked at.
        """
        if self._search is None:
            return await super().query(query, prefix)
        name = next((value for name, value in query.metadata.items() if name.lower() == "queryindexname"), "")
        with self._failures():
            keys = [key for key in await self._search.candidates(query.filter, name) if key.startswith(prefix)]
        entries: list[tuple[str, bytes, str]] = []
        left = MAX_LOOKED_AT_BYTES
        for begin in range(0, len(keys), LOOKED_AT_ONCE):
            some = keys[begin : begin + LOOKED_AT_ONCE]
            for key, found in zip(some, await self.get_many(some), strict=True):
                if isinstance(found, MeshError):
                    raise found
                if found is not None:
                    entries.append((key, found.value, found.etag))
                    left -= len(found.value)
            if left < 0:
                raise StateError(
                    f"{self._client.shown}: values of over {MAX_LOOKED_AT_BYTES} bytes may match; "
                    "ask for less, by members of the index"
                )
        return await asyncio.to_thread(matching.run, query, entries)  # Nothing else waits for so many.

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys in order; each page goes through all keys of the database."""
        pattern = _GLOB.sub(r"\\\g<0>", prefix) + "*"
        kinds = ("hash", "ReJSON-RL") if self._documents else ("hash",)
        found: set[str] = set()
        with self._failures():
            for server in self._client.servers():
                for kind in kinds:
                    scan = ("MATCH", pattern.encode(), "COUNT", SCAN_COUNT, "TYPE", kind)
                    async for names in self._client.scan(server, scan):
                        found.update(_behind(names, prefix, after))
                        if len(found) > 2 * limit:
                            found = set(heapq.nsmallest(limit, found))
        return heapq.nsmallest(limit, found)


def _behind(names: Iterable[bytes], prefix: str, after: str) -> Iterable[str]:
    for name in names:
        key = name.decode("utf-8", "replace")
        if key > after and key.startswith(prefix):
            yield key


def _encoded(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError:
        raise BadArgumentError(f"the key {key!r} is no Unicode text") from None


def _expected(item: Item) -> str:
    """Give the version an item must have; empty for any.

    Raises:
        InvalidEtagError: The etag is no number.
    """
    if item.etag is not None and not (item.concurrency is Concurrency.LAST_WRITE and item.value is not None):
        if not _ETAG.fullmatch(item.etag):
            raise InvalidEtagError(f"invalid etag value: {item.etag}")
        return item.etag if item.etag != "0" else "-0"  # No write has version 0; in the script it is "must not exist".
    if item.check or (item.concurrency is Concurrency.FIRST_WRITE and item.value is not None):
        return "0"
    return ""


def _conflict(item: Item) -> ConflictError:
    if item.etag is None:
        return ConflictError(f"key {item.key!r} has a value already")
    return ConflictError(f"key {item.key!r} has not the etag {item.etag}")


def _is_document(item: Item) -> bool:
    """Tell whether a value is said to be JSON, and is some that the server's module takes."""
    kind = next((value for name, value in item.metadata.items() if name.lower() == "contenttype"), "")
    value = item.value or b""
    if kind.partition(";")[0].strip().lower() != "application/json":
        return False
    if value.count(b"[") + value.count(b"{") > MAX_LEVELS and _levels(value) > MAX_LEVELS:
        return False
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return True


def _levels(value: bytes) -> int:
    """Count the levels of JSON, or more: brackets in texts count as well."""
    level = most = 0
    for byte in value:
        if byte in b"[{":
            level += 1
            most = max(most, level)
        elif byte in b"]}":
            level -= 1
    return most


def _stored(reply: Reply) -> Stored | None:
    value, version, left = cast("tuple[bytes | None, bytes | None, int]", reply)
    if value is None:
        return None
    expires_at = time.time() + left / 1000 if left >= 0 else None
    return Stored(value, "" if version is None else version.decode(), expires_at)
