"""State: keys and values per application, with etags, expiry and transactions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import cast

import msgspec

from mesh.blocks import shared_settings
from mesh.blocks.block import Block, Parts
from mesh.blocks.components import ComponentService
from mesh.blocks.encryption import EncryptedStateStore, encryption_keys
from mesh.blocks.outbox import OUTBOX_SETTINGS, PREFIX, PROJECTION, Outbox, named, outbox_settings, split
from mesh.blocks.records import LazyRecords
from mesh.errors import (
    AnswerTooLargeError,
    BadArgumentError,
    ConfigError,
    FeatureNotSupportedError,
    IllegalKeyError,
    MeshError,
    NoResponderError,
    OutcomeUnknownError,
    Problem,
    StateError,
    TooManyOperationsError,
)
from mesh.operation import Method, Operation
from mesh.policies import Verdict, by_error
from mesh.query import Queried, parse_query
from mesh.registry import STATE_ON_BACKBONE
from mesh.resources.component import Component
from mesh.scopes import share_apps
from mesh.store import MAX_PARALLEL, Concurrency, Item, StateStore, Stored
from mesh.values import parse_whole

__all__ = [
    "BLOCK",
    "BULK_GET",
    "DELETE",
    "GET",
    "KEYS",
    "MAX_ANSWER_BYTES",
    "MAX_LISTED",
    "QUERY",
    "SAVE",
    "SEPARATOR",
    "TRANSACT",
    "BulkGet",
    "Get",
    "Keys",
    "Listed",
    "Save",
    "Search",
    "StateStoreComponent",
    "is_marked",
    "key_prefix",
]

SEPARATOR = "||"
MAX_LISTED = 1000
MAX_TOLD = 5
MAX_ANSWER_BYTES = 64 * 1024 * 1024
ENTRY_BYTES = 256  # What an entry of an answer takes beside its key and its value.
FIRST_PART = 16  # Keys that are read together before it is known how large their values are.
TTL_SETTING = "ttlInSeconds"


class Get(msgspec.Struct, frozen=True):
    """Read one key; ``strong`` never answers from a follower; metadata are for stores that read them."""

    key: str
    strong: bool = False
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class BulkGet(msgspec.Struct, frozen=True):
    """Read several keys, so many at once; 0 = as many as the gateway likes."""

    keys: tuple[str, ...]
    parallelism: int = 0
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass(slots=True)
class Save:
    """Write items: one after the other until the first failure, or, as a transaction, all or none."""

    items: list[Item] = field(default_factory=list)

    @property
    def listed(self) -> str:
        """The keys, for people."""
        told = [item.key for item in self.items[:MAX_TOLD]]
        return ", ".join([*told, "…"] if len(self.items) > MAX_TOLD else told)


@dataclass(frozen=True, slots=True)
class Search:
    """Find values by their contents; the body is that of the API, read where the store is."""

    body: bytes
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keys:
    """List keys in order: those that begin with a prefix, from the first one behind ``after``."""

    prefix: str = ""
    after: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Listed:
    """Keys, and if there may be more, behind which one they begin."""

    keys: tuple[str, ...]
    after: str = ""


GET = Method("state", "get", Get, Stored | None)
BULK_GET = Method("state", "bulk_get", BulkGet, tuple[Stored | str | None, ...])
QUERY = Method("state", "query", Search, Queried)
KEYS = Method("state", "keys", Keys, Listed)


def _judge(operation: Operation, result: object, error: MeshError | None) -> Verdict:
    """A write with a condition that may have been done is not made again: it would conflict with itself."""
    verdict, items = by_error(result, error), cast("Save", operation.arguments).items
    conditions = any(item.etag is not None or item.concurrency is Concurrency.FIRST_WRITE for item in items)
    if not verdict.again or not conditions or isinstance(error, NoResponderError):
        return verdict
    whole = not operation.sent or len(items) == 1 or operation.method.name == "transact"
    return verdict._replace(again=isinstance(error, StateError) and whole)  # The store said no: it did nothing.


SAVE = Method("state", "save", Save, judge=_judge)
DELETE = Method("state", "delete", Save, judge=_judge)
TRANSACT = Method("state", "transact", Save, judge=_judge)


class _Room:
    """What is left of an answer's size."""

    def __init__(self, instead: str) -> None:
        """Begin with all of it; ``instead`` says what to ask for where that is not enough."""
        self._instead = instead
        self._left = MAX_ANSWER_BYTES
        self._largest = 1

    @property
    def fitting(self) -> int:
        """How many more fit that are as large as the largest until now."""
        return max(1, self._left // self._largest)

    def take(self, size: int, times: int = 1) -> None:
        """Take what a part of the answer needs.

        Raises:
            AnswerTooLargeError: That is more than is left.
        """
        self._largest = max(self._largest, size)
        self._left -= size * times
        if self._left < 0:
            raise AnswerTooLargeError(MAX_ANSWER_BYTES, self._instead)


class StateStoreComponent:
    """A configured state store; its functions are the block's methods."""

    def __init__(
        self,
        store: StateStore,
        prefix_of: Callable[[str], str],
        *,
        remembers: bool = False,
        marked: bool = False,
        ttl: float | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        """Use an open store.

        Args:
            store: The adapter.
            prefix_of: Gives what is put before every key of an app, separator included; empty for none.
            remembers: Whether the mesh keeps its own records in it, where the backbone cannot.
            marked: Whether the state of actors is kept in it.
            ttl: Seconds until what is written expires, where the item says nothing; None for never.
            outbox: Publishes what transactions write; None = nothing is published.
        """
        self.store = store
        self.remembers = remembers
        self.marked = marked
        self._prefix_of = prefix_of
        self._ttl = ttl
        self._outbox = outbox

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""
        return self.store.capabilities

    def _key(self, operation: Operation, key: str) -> str:
        if SEPARATOR in key:
            raise IllegalKeyError(key)
        return self._prefix_of(operation.context.caller.app_id) + key

    async def get(self, operation: Operation) -> Stored | None:
        """Read one key."""
        asked = cast("Get", operation.arguments)
        key = self._key(operation, asked.key)
        return await self.store.get(key, strong=asked.strong, metadata=asked.metadata)

    async def bulk_get(self, operation: Operation) -> tuple[Stored | str | None, ...]:
        """Read several keys; gives the text of the error where one could not be read.

        Each is read once, and they are read in parts, so that no more is held than an answer may have, and one part.

        Raises:
            AnswerTooLargeError: They are larger together.
        """
        asked = cast("BulkGet", operation.arguments)
        times = Counter(asked.keys)  # The answer repeats what was repeated.
        names = {key: self._key(operation, key) for key in times}
        limit = min(asked.parallelism, MAX_PARALLEL) if asked.parallelism > 0 else MAX_PARALLEL
        room = _Room("ask for fewer keys at once")
        for key, count in times.items():
            room.take(len(key) + ENTRY_BYTES, count)
        results: dict[str, Stored | str | None] = {}
        waiting, size = list(times), FIRST_PART
        while waiting:
            part, waiting = waiting[:size], waiting[size:]
            found = await self.store.get_many([names[key] for key in part], parallelism=limit, metadata=asked.metadata)
            for key, each in zip(part, found, strict=True):
                results[key] = stored = str(each) if isinstance(each, MeshError) else each
                room.take(len(stored.value if isinstance(stored, Stored) else stored or ""), times[key])
            size = min(room.fitting, MAX_PARALLEL)
        return tuple(results[key] for key in asked.keys)

    async def save(self, operation: Operation) -> None:
        """Write each item for itself.

        What is written is taken off the list, so that another attempt is of the others alone.

        Raises:
            StateError: Of the first item that was not written; others may be. One whose outcome is unknown is before
                the others: it is not tried again.
        """
        items = cast("Save", operation.arguments).items
        prefixed = [self._prefixed(operation, item) for item in items]
        results = list(await self.store.save_each(prefixed)) if items else []
        results += [StateError("was not tried")] * (len(items) - len(results))
        failed = [result for result in results if result is not None]
        items[:] = [item for item, result in zip(items, results, strict=True) if result is not None]
        if failed:
            raise next((error for error in failed if isinstance(error, OutcomeUnknownError)), failed[0])

    async def delete(self, operation: Operation) -> None:
        """Delete, as an item without a value."""
        await self.save(operation)

    async def transact(self, operation: Operation) -> None:
        """Write all items, or none.

        Raises:
            TooManyOperationsError: The store takes fewer at once.
        """
        items = cast("Save", operation.arguments).items
        most = self.store.max_transaction
        if most is not None and len(items) > most:
            raise TooManyOperationsError(len(items), most)
        prefixed = [self._prefixed(operation, item) for item in items]
        if self._outbox is not None:
            await self._outbox.transact(operation, items, prefixed)
        elif not all(split(items)[0]):
            raise BadArgumentError(f"{operation.target} has no outbox, and would store an {PROJECTION}")
        elif items:
            await self.store.write(prefixed)

    async def query(self, operation: Operation) -> Queried:
        """Find values by their contents, among the caller's keys.

        Raises:
            FeatureNotSupportedError: The store cannot.
            BadArgumentError: It is no query.
            AnswerTooLargeError: What was found is more than an answer carries.
        """
        asked = cast("Search", operation.arguments)
        if "QUERY_API" not in self.capabilities:
            raise FeatureNotSupportedError(operation.target, "querying")
        prefix = self._prefix_of(operation.context.caller.app_id)
        query = parse_query(asked.body, asked.metadata)
        while True:
            found = await self.store.query(query, prefix)
            own = [match for match in found.matches if self._is_own(prefix, match.key)]
            if own or not found.token:
                room = _Room("set a smaller page.limit")
                for match in own:
                    room.take(len(match.key) + len(match.value) + ENTRY_BYTES)
                return Queried([replace(match, key=match.key[len(prefix) :]) for match in own], found.token)
            query = replace(query, token=found.token)

    async def keys(self, operation: Operation) -> Listed:
        """List the caller's keys.

        Raises:
            FeatureNotSupportedError: The store cannot.
        """
        asked = cast("Keys", operation.arguments)
        if "KEYS" not in self.capabilities:
            raise FeatureNotSupportedError(operation.target, "listing keys")
        prefix = self._prefix_of(operation.context.caller.app_id)
        limit = max(1, min(asked.limit, MAX_LISTED))
        after = prefix + asked.after if asked.after else ""
        while True:
            page = await self.store.keys(prefix + asked.prefix, after, limit)
            own = tuple(key[len(prefix) :] for key in page if self._is_own(prefix, key))
            if own or len(page) < limit:
                return Listed(own, own[-1] if len(page) >= limit else "")
            after = page[-1]

    def _is_own(self, prefix: str, key: str) -> bool:
        """Tell an application's key from others in the store, which matters without a prefix."""
        own = key[len(prefix) :]
        marker = not prefix and self._outbox is not None and own.startswith(PREFIX)
        return key.startswith(prefix) and SEPARATOR not in own and not marker

    def _prefixed(self, operation: Operation, item: Item) -> Item:
        key, ttl = self._key(operation, item.key), item.ttl
        first = item.concurrency is Concurrency.FIRST_WRITE and item.value is not None
        if (item.etag is not None or first) and "ETAG" not in self.capabilities:
            raise BadArgumentError(f"key {item.key}: {operation.target} has no etags to compare, and no first-write")
        if item.value is not None:
            if ttl is not None and "TTL" not in self.capabilities:
                raise BadArgumentError(f"key {item.key}: {operation.target} cannot let values expire ({TTL_SETTING})")
            if (
                ttl is None
                and self._ttl is not None
                and not any(each.lower() == "ttlinseconds" for each in item.metadata)
            ):
                ttl = self._ttl
        return msgspec.structs.replace(item, key=key, ttl=ttl)


def key_prefix(component: Component, app_id: str, namespace: str | None) -> str:
    """Read ``keyPrefix``.

    Raises:
        ConfigError: It holds the separator.
    """
    wanted = component.setting("keyPrefix") or "appid"
    if SEPARATOR in wanted:
        raise ConfigError(component.problem(f"keyPrefix can't contain '{SEPARATOR}'", setting="keyPrefix"))
    match wanted.lower():
        case "none":
            return ""
        case "appid":
            prefix = app_id
        case "name":
            prefix = component.name
        case "namespace":
            prefix = f"{namespace}.{app_id}" if namespace else app_id
        case _:
            prefix = wanted
    return prefix + SEPARATOR


def default_ttl(component: Component) -> float | None:
    """Read ``ttlInSeconds``; None for never.

    Raises:
        ConfigError: It is none.
    """
    text = component.setting(TTL_SETTING)
    try:
        seconds = -1 if not text else parse_whole(text, least=-1, most=2**31 - 1)
    except ValueError as error:
        raise ConfigError(component.problem(f"is {error}", setting=TTL_SETTING)) from None
    return None if seconds <= 0 else float(seconds)


def check(component: Component) -> None:
    """Read what the block itself reads of a store's settings.

    Raises:
        ConfigError: Some are wrong; holds all of them, located.
    """
    problems: list[Problem] = []
    read: tuple[Callable[[Component], object], ...] = (
        lambda component: key_prefix(component, "", None),
        default_ttl,
        encryption_keys,
        outbox_settings,
    )
    for each in read:
        try:
            each(component)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def is_marked(component: Component) -> bool:
    """Tell whether actors keep their state in it, and the mesh its records; an open reference is no mark."""
    entry = component.entry("actorStateStore")
    return entry is not None and (entry.text() or "").strip().lower() == "true"


def second_marked(components: Sequence[Component]) -> Sequence[tuple[Component, Problem]]:
    """Find marked stores beside one that is marked for the same application."""
    first: list[Component] = []
    found: list[tuple[Component, Problem]] = []
    for component in filter(is_marked, components):
        other = next((each for each in first if share_apps(each.scopes, component.scopes)), None)
        if other is None:
            first.append(component)
            continue
        where = f"{other.name} ({other.file}:{other.line})" if other.file else other.name
        text = f"an application has one such store, and {where} is marked already: detected duplicate actor state store"
        found.append((component, component.problem(text, setting="actorStateStore")))
    return found


async def open_store(component: Component, parts: Parts) -> StateStoreComponent:
    """Open a state store component.

    Raises:
        ConfigError: Its settings are wrong.
    """
    check(component)
    store: StateStore
    if component.type == STATE_ON_BACKBONE:
        store = records = LazyRecords(component.name, parts.records)
        if parts.broker.features.key_value:
            store = await records.opened()  # So that what is wrong with it is told at start.
    else:
        adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
        store = await parts.stack.enter_async_context(adapter)
    namespace = parts.caller.namespace if parts.namespace_given else None
    keys, ttl, events = encryption_keys(component), default_ttl(component), outbox_settings(component)
    if keys:
        store = EncryptedStateStore(store, keys)
    if ttl is not None and "TTL" not in store.capabilities:
        raise ConfigError(component.problem(f"{component.type} cannot let values expire", setting=TTL_SETTING))
    outbox = None
    if events is not None:
        if not {"TRANSACTIONAL", "ETAG"} <= set(store.capabilities):
            reason = f"{component.type} has no transactions with etags, which an outbox needs"
            raise ConfigError(component.problem(reason, setting=OUTBOX_SETTINGS[0]))
        outbox = await parts.stack.enter_async_context(Outbox(component.name, store, events, parts))
    prefix_of = lru_cache(1024)(lambda app_id: key_prefix(component, app_id, namespace))
    marked = is_marked(component)
    remembers = marked and component.type != STATE_ON_BACKBONE
    return StateStoreComponent(store, prefix_of, remembers=remembers, marked=marked, ttl=ttl, outbox=outbox)


BLOCK = Block(
    "state",
    (GET, BULK_GET, SAVE, DELETE, TRANSACT, QUERY, KEYS),
    ComponentService,
    kind="state",
    open=open_store,
    settings=shared_settings.STATE,
    check=check,
    refers=named,
    together=second_marked,
    hosted=True,
    policy=lambda policies, target: policies.for_component(target, "statestore", "outbound"),
    called="statestore",
)
