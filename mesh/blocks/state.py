"""State: keys and values per application, with etags, expiry and transactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import cast

from mesh.blocks.block import Block, Parts
from mesh.blocks.components import ComponentService
from mesh.blocks.records import LazyRecords
from mesh.blocks.store import MAX_PARALLEL, Concurrency, Item, StateStore, Stored
from mesh.errors import ConfigError, IllegalKeyError, MeshError, NoResponderError, StateError
from mesh.operation import Method, Operation
from mesh.policies import Verdict, by_error
from mesh.registry import STATE_ON_BACKBONE
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, Setting

__all__ = [
    "BLOCK",
    "BULK_GET",
    "DELETE",
    "GET",
    "SAVE",
    "TRANSACT",
    "BulkGet",
    "Get",
    "Save",
    "StateStoreComponent",
    "key_prefix",
]

SEPARATOR = "||"
SETTINGS = (
    Setting(
        "keyPrefix",
        "What stands before every key: `appid`, `name` (of the component), `namespace`, `none`, or another text.",
        default="appid",
    ),
    Setting(
        "actorStateStore",
        "Whether the mesh's own records may be kept here, where the backbone has no store.",
        BOOLEAN,
        default=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key; ``strong`` never answers from a follower."""

    key: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class BulkGet:
    """Read several keys, so many at once; 0 = as many as the gateway likes."""

    keys: tuple[str, ...]
    parallelism: int = 0


@dataclass(slots=True)
class Save:
    """Write items: one after the other until the first failure, or, as a transaction, all or none."""

    items: list[Item] = field(default_factory=list)


GET = Method("state", "get", Get, Stored | None)
BULK_GET = Method("state", "bulk_get", BulkGet, tuple[Stored | str | None, ...])


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


class StateStoreComponent:
    """A configured state store; its functions are the block's methods."""

    def __init__(self, store: StateStore, prefix_of: Callable[[str], str], *, remembers: bool = False) -> None:
        """Use an open store.

        Args:
            store: The adapter.
            prefix_of: Gives what is put before every key of an app, separator included; empty for none.
            remembers: Whether the mesh keeps its own records in it, where the backbone cannot.
        """
        self.store = store
        self.remembers = remembers
        self._prefix_of = prefix_of

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
        return await self.store.get(self._key(operation, asked.key), strong=asked.strong)

    async def bulk_get(self, operation: Operation) -> tuple[Stored | str | None, ...]:
        """Read several keys; gives the text of the error where one could not be read."""
        asked = cast("BulkGet", operation.arguments)
        keys = [self._key(operation, key) for key in asked.keys]
        limit = min(asked.parallelism, MAX_PARALLEL) if asked.parallelism > 0 else MAX_PARALLEL
        found = await self.store.get_many(keys, parallelism=limit)
        return tuple(str(each) if isinstance(each, MeshError) else each for each in found)

    async def save(self, operation: Operation) -> None:
        """Write each item for itself.

        What is written is taken off the list, so that another attempt is of the others alone.

        Raises:
            StateError: Of the first item that was not written; others may be.
        """
        items = cast("Save", operation.arguments).items
        prefixed = [self._prefixed(operation, item) for item in items]
        results = list(await self.store.save_each(prefixed)) if items else []
        results += [StateError("was not tried")] * (len(items) - len(results))
        first = next((result for result in results if result is not None), None)
        items[:] = [item for item, result in zip(items, results, strict=True) if result is not None]
        if first is not None:
            raise first

    async def delete(self, operation: Operation) -> None:
        """Delete, as an item without a value."""
        await self.save(operation)

    async def transact(self, operation: Operation) -> None:
        """Write all items, or none."""
        items = cast("Save", operation.arguments).items
        if items:
            await self.store.write([self._prefixed(operation, item) for item in items])

    def _prefixed(self, operation: Operation, item: Item) -> Item:
        return replace(item, key=self._key(operation, item.key))


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


async def open_store(component: Component, parts: Parts) -> StateStoreComponent:
    """Open a state store component.

    Raises:
        ConfigError: Its settings are wrong.
    """
    store: StateStore
    if component.type == STATE_ON_BACKBONE:
        store = records = LazyRecords(component.name, parts.records)
        if parts.broker.features.key_value:
            store = await records.opened()  # So that what is wrong with it is told at start.
    else:
        adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
        store = await parts.stack.enter_async_context(adapter)
    namespace = parts.caller.namespace if parts.namespace_given else None
    key_prefix(component, parts.caller.app_id, namespace)  # For the same reason.
    prefix_of = lru_cache(1024)(lambda app_id: key_prefix(component, app_id, namespace))
    remembers = component.type != STATE_ON_BACKBONE and (component.setting("actorStateStore") or "").lower() == "true"
    return StateStoreComponent(store, prefix_of, remembers=remembers)


BLOCK = Block(
    "state",
    (GET, BULK_GET, SAVE, DELETE, TRANSACT),
    ComponentService,
    kind="state",
    open=open_store,
    settings=SETTINGS,
    check=lambda component: key_prefix(component, "", None),
    hosted=True,
    policy=lambda policies, target: policies.for_component(target, "statestore", "outbound"),
    called="statestore",
)
