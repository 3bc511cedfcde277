"""State: keys and values per application, with etags, expiry and transactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mesh.broker import KeyValue, Operation
from mesh.errors import ConfigError, ConflictError, InvalidEtagError, StateError
from mesh.guard import Guard
from mesh.resources.component import Component

__all__ = [
    "Concurrency",
    "IllegalKeyError",
    "Item",
    "KeyValueStateStore",
    "State",
    "StateStore",
    "StateStoreComponent",
    "Stored",
    "key_prefix",
]

SEPARATOR = "||"
MAX_TTL_SECONDS = 2**31 - 1


class Concurrency(StrEnum):
    """Who wins when two write."""

    FIRST_WRITE = "first-write"
    LAST_WRITE = "last-write"


class IllegalKeyError(StateError):
    """The key holds what separates it from its prefix."""

    code = "STATE_ILLEGAL_KEY"
    retryable = False

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"input key/keyPrefix '{key}' can't contain '{SEPARATOR}'")


@dataclass(frozen=True, slots=True)
class Stored:
    """A value as stored.

    Attributes:
        value: The bytes as saved.
        etag: Changes with every write.
        expires_at: Unix time in seconds; None for never.
    """

    value: bytes
    etag: str
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One write.

    Attributes:
        key: The application's key.
        value: The bytes to save; None deletes.
        etag: The etag it must have; None when not given.
        concurrency: None when not given: a check with an etag, last-write without.
        ttl: Seconds until it expires; None for never.
    """

    key: str
    value: bytes | None
    etag: str | None = None
    concurrency: Concurrency | None = None
    ttl: float | None = None


class StateStore(Protocol):
    """What an adapter to a store implements; keys come with their prefix."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells (``ETAG``, ``TRANSACTIONAL``, ``TTL``…)."""

    async def get(self, key: str, *, strong: bool) -> Stored | None:
        """Read."""

    async def write(self, items: Sequence[Item]) -> None:
        """Do all or nothing.

        Raises:
            ConflictError: An etag does not match, or first-write lost; nothing was done.
            InvalidEtagError: An etag can not be one of this store's.
        """


class KeyValueStateStore:
    """A state store on a broker's (or the memory's) key/value store; its etags are revisions."""

    capabilities: Sequence[str] = ("ETAG", "TRANSACTIONAL", "TTL", "ACTOR")

    def __init__(self, key_value: KeyValue) -> None:
        """Use an open store."""
        self._key_value = key_value

    async def get(self, key: str, *, strong: bool) -> Stored | None:
        """Read a key."""
        entry = await self._key_value.get(key, strong=strong)
        return None if entry is None else Stored(entry.value, str(entry.revision), entry.expires_at)

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing."""
        await self._key_value.apply([self._operation(item) for item in items])

    def _operation(self, item: Item) -> Operation:
        if item.etag is not None:
            if not item.etag.isascii() or not item.etag.isdigit() or len(item.etag) > 19:
                raise InvalidEtagError(f"invalid etag value: {item.etag}")
            expected: int | None = int(item.etag)
            if expected == 0:  # No write has revision 0; in the store's terms it would mean "must not exist".
                raise ConflictError("etag 0 matches nothing")
        else:
            expected = 0 if item.concurrency is Concurrency.FIRST_WRITE and item.value is not None else None
        return Operation(item.key, item.value, expected, item.ttl)


@dataclass(frozen=True, slots=True)
class StateStoreComponent:
    """A configured state store.

    Attributes:
        name: As applications call it.
        type: Its component type.
        version: Its component version.
        store: The adapter.
        prefix: Put before every key, separator included; empty for none.
        guard: The outbound policy; None when there is none.
    """

    name: str
    type: str
    version: str
    store: StateStore
    prefix: str
    guard: Guard | None = None

    def key(self, key: str) -> str:
        """Give the key as stored.

        Raises:
            IllegalKeyError: It holds the separator.
        """
        if SEPARATOR in key:
            raise IllegalKeyError(key)
        return self.prefix + key


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


class State:
    """The building block."""

    def __init__(self, components: Mapping[str, StateStoreComponent]) -> None:
        """Use open stores, by name."""
        self.components = components

    async def get(self, component: StateStoreComponent, key: str, *, strong: bool = False) -> Stored | None:
        """Read one key."""
        prefixed = component.key(key)
        if component.guard is None:
            return await component.store.get(prefixed, strong=strong)
        return await component.guard.run(lambda: component.store.get(prefixed, strong=strong))

    async def save(self, component: StateStoreComponent, items: Sequence[Item]) -> None:
        """Write each item for itself, in order; the first failure ends it.

        Raises:
            ConflictError: An etag does not match; items before it are written.
        """
        prefixed = _prefixed(component, items)
        for item in prefixed:
            await _write(component, [item])

    async def transact(self, component: StateStoreComponent, items: Sequence[Item]) -> None:
        """Write all items, or none."""
        if items:
            await _write(component, _prefixed(component, items))


async def _write(component: StateStoreComponent, items: Sequence[Item]) -> None:
    if component.guard is None:
        await component.store.write(items)
    else:
        await component.guard.run(lambda: component.store.write(items))


def _prefixed(component: StateStoreComponent, items: Sequence[Item]) -> list[Item]:
    return [Item(component.key(item.key), item.value, item.etag, item.concurrency, item.ttl) for item in items]
